"""From a conversation to the token ids of the guard's prompt.

The template is rendered once per sequence of roles, with a sentinel in the place of each message's text.
The rendering is then cut at control tokens. What stands between two of them, a run, is tokenised as a
whole with the texts filled in, because a tokenizer merges across the seam of template and text just as it
did when the guard was trained. Control tokens come from the template and never from a text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import lru_cache
from itertools import takewhile

from edgeguard.backend import Vocabulary
from edgeguard.errors import ContextOverflow, ProfileError, RecordError, shortened
from edgeguard.profile import Profile
from edgeguard.rows.record import Message
from edgeguard.templates import (
    LOOKS_SPECIAL,
    MARK,
    SENTINEL,
    Render,
    WrittenBy,
    find_writer,
    not_judged,
    one_of,
    renderer,
    sentinel,
    text_of,
)

Ids = tuple[int, ...]

_SHORT, _CHARACTERS = 1 << 16, 16  # a text that is encoded as a whole, and characters for each token of the context
MAX_SHAPES = 64  # sequences of roles kept rendered
PROBES = ("a", "A", " ", "\n", "1", "é", "<", "The", "漢", "=", "://", "'s", "\u0301", "...")


@dataclass(frozen=True)
class Slot:
    """The place of a message's text. `left` and `right` are characters to strip there, None for all space."""

    message: int
    left: str | None
    right: str | None


@dataclass(frozen=True)
class Run:
    """Text between two control tokens, to be tokenised as a whole."""

    parts: tuple[str | Slot, ...]

    @property
    def fixed(self) -> str | None:
        """The text, where no message is in it."""
        return None if any(isinstance(p, Slot) for p in self.parts) else "".join(map(str, self.parts))


@dataclass(frozen=True)
class Shape:
    """The prompt for one sequence of roles: fixed ids and runs, and ids that no text may become."""

    pieces: tuple[Ids | Run, ...]
    forbidden: Mapping[int, str]  # id → spelling


@dataclass(frozen=True)
class Parts:
    """The prompts about one record, cut where others begin alike: each is preamble + shared + rest.

    shared  what the prompts of all questions begin with behind their preamble, where the text stands before the
            question; () where it does not, and where there is one question
    asked   the code that is asked about, None for a question about all → (preamble, rest)
    """

    shared: Ids
    asked: Mapping[str | None, tuple[Ids, Ids]]


@dataclass(frozen=True, eq=False)
class Prompter:
    """Writes a guard's prompts. Made by `compile_prompt`.

    stops       ids that end the guard's answer
    questions   the codes that are asked about, one prompt for each; (None,) for one prompt about all
    written_by  whose template writes the prompts: the model file's, or the profile's own text
    """

    profile: Profile
    vocabulary: Vocabulary = field(repr=False)
    stops: frozenset[int]
    questions: tuple[str | None, ...]
    written_by: WrittenBy
    _shape: Callable[[tuple[str, ...], str | None], Shape] = field(repr=False)
    _preamble: Callable[[tuple[str, ...], str | None], Ids] = field(repr=False)
    _text_first: Callable[[tuple[str, ...]], bool] = field(repr=False)

    def encode(self, messages: Sequence[Message], question: str | None = None) -> Ids:
        """Token ids of a whole prompt. No text adds a control token. Raises RecordError.

        question  the code that is asked about, where there is a question for each
        """
        shape = self._shape_of(tuple(m.role for m in messages), question)
        return _fill(shape, [m.content for m in messages], self.vocabulary)

    def preamble(self, roles: Sequence[str], question: str | None = None) -> Ids:
        """The ids that prompts with these roles begin with: the policy, as a rule. Cached.

        It is found with probe texts, so a tokenizer may begin a strange text otherwise: see `parts`.
        """
        self._shape_of(tuple(roles), question)
        return self._preamble(tuple(roles), question)

    def parts(self, messages: Sequence[Message]) -> Parts:
        """The prompts about one record. Which of a profile's questions are asked changes nothing about the others.

        A preamble is () where this very text does not begin with it.
        """
        roles = tuple(m.role for m in messages)
        codes = [c.code for c in self.profile.categories] if self.questions != (None,) else [None]
        prompts = {code: self.encode(messages, code) for code in codes}
        preambles = {code: self._preamble(roles, code) for code in codes}
        shared: Ids = ()
        if self._text_first(roles):
            preambles = dict.fromkeys(codes, _common_prefix([*preambles.values()]))
            # What is left of a prompt must be something: its last token is what the answer follows.
            shared = _common_prefix([ids[:-1] for ids in prompts.values()])[len(preambles[codes[0]]) :]
        begun = {code: ids[: len(preambles[code])] == preambles[code] for code, ids in prompts.items()}
        if shared and not all(begun.values()):
            shared = _common_prefix([ids[:-1] for ids in prompts.values()])
        asked = {}
        for code in self.questions:
            preamble = preambles[code] if begun[code] and (all(begun.values()) or not shared) else ()
            asked[code] = preamble, prompts[code][len(preamble) + len(shared) :]
        return Parts(shared, asked)

    def _shape_of(self, roles: tuple[str, ...], question: str | None) -> Shape:
        if not roles:
            raise RecordError("the conversation has no messages; nothing could be judged")
        if roles[-1] not in self.profile.prompt.judges:
            raise RecordError(not_judged(self.profile), kind="invalid_roles")
        try:
            return self._shape(roles, question)
        except ProfileError as error:
            raise RecordError(f"roles {shortened(', '.join(roles), 200)}: {error}", kind="invalid_roles") from error


def compile_prompt(profile: Profile, chat_template: str | None, vocabulary: Vocabulary) -> Prompter:
    """Fit a profile to a model's vocabulary and chat template. Raises ProfileError where it does not fit.

    chat_template  the model file's own, needed where the profile says template = "model"
    """
    written_by = find_writer(profile, chat_template)
    names = _control_names(profile, vocabulary, written_by)
    categories = {c.code: c for c in profile.categories} if profile.questions else {}
    codes: list[str | None] = [*categories] or [None]
    renderers = {
        code: renderer(profile, written_by, chat_template, vocabulary, names, categories.get(code or ""))
        for code in codes
    }

    @lru_cache(maxsize=MAX_SHAPES * len(codes))
    def shape(roles: tuple[str, ...], code: str | None) -> Shape:
        return _make_shape(profile, renderers[code], roles, names, vocabulary, written_by)

    def probed(roles: tuple[str, ...], code: str | None, probe: str) -> Ids:
        return _fill(shape(roles, code), [probe] * len(roles), vocabulary)

    @lru_cache(maxsize=MAX_SHAPES * len(codes))
    def preamble(roles: tuple[str, ...], code: str | None) -> Ids:
        return _common_prefix([probed(roles, code, p) for p in PROBES])

    @lru_cache(maxsize=MAX_SHAPES)
    def text_first(roles: tuple[str, ...]) -> bool:
        begun = {_common_prefix([probed(roles, code, p) for code in codes]) for p in PROBES}
        return len(codes) > 1 and len(begun) > 1  # what all questions begin with differs from text to text

    first = ("user",) if "user" in profile.prompt.judges else ("user", "assistant")
    for code in codes:  # a profile's mistakes show here, before the first record
        shape(first, code)
    asked = profile.questions.asked if profile.questions else (None,)
    stops = _stops(profile, vocabulary)
    return Prompter(profile, vocabulary, stops, asked, written_by, shape, preamble, text_first)


# Control tokens


def _control_names(profile: Profile, vocabulary: Vocabulary, written_by: WrittenBy) -> dict[str, int]:
    """Spelling → id of each control token that the template may hold."""
    if written_by == "profile":
        return {name: _control_id(profile, "[prompt] control", name, vocabulary) for name in profile.prompt.control}
    # Some files declare the token that ends a turn as ordinary text.
    ends = {text_of(vocabulary, i): i for i in vocabulary.eog if vocabulary.pieces[i]}
    return {name: i for name, i in {**ends, **vocabulary.control}.items() if name}


def _control_id(profile: Profile, key: str, name: str, vocabulary: Vocabulary) -> int:
    if name in vocabulary.control:
        return vocabulary.control[name]
    spelled = _atomic(vocabulary, [name])
    if name not in spelled:
        near = get_close_matches(name, [*vocabulary.control], n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else "; is this profile for another model?"
        raise ProfileError(f"{profile.source}: {key} names {name!r}, which the model has no control token for{hint}")
    return spelled[name]


def _atomic(vocabulary: Vocabulary, texts: Iterable[str]) -> dict[str, int]:
    """Those texts that the tokenizer always reads as one token, though the file calls it no control token."""
    wanted = {text.encode(): text for text in texts}
    found = {wanted[piece]: i for i, piece in enumerate(vocabulary.pieces) if piece in wanted} if wanted else {}
    return {text: i for text, i in found.items() if i in vocabulary.encode(f"a{text}b")}


def _stops(profile: Profile, vocabulary: Vocabulary) -> frozenset[int]:
    stops = frozenset(_control_id(profile, "stop", name, vocabulary) for name in profile.stop) or vocabulary.eog
    if not stops:
        raise ProfileError(
            f"{profile.source}: the model file declares no token that ends an answer; "
            'name it in the profile: stop = ["<|im_end|>"]'
        )
    return stops


# Shapes


def _make_shape(
    profile: Profile,
    render: Render,
    roles: tuple[str, ...],
    names: Mapping[str, int],
    vocabulary: Vocabulary,
    written_by: WrittenBy,
) -> Shape:
    rendered = render(roles, sentinel)
    if not rendered.endswith(profile.prompt.ends_with):
        tail = SENTINEL.sub("…", rendered)[-40:]
        raise ProfileError(
            f"{profile.source}: the prompt ends with {tail!r}; [prompt] ends_with is {profile.prompt.ends_with!r}"
        )
    template_text = SENTINEL.sub("\n", rendered)
    if written_by == "profile":
        _refuse_unlisted(profile, template_text, names, vocabulary)
    spelled = _atomic(vocabulary, {*LOOKS_SPECIAL.findall(template_text)} - names.keys())
    names = {**names, **spelled}
    control = {i: name for name, i in vocabulary.control.items() if name}
    ends = {i: text_of(vocabulary, i) for i in vocabulary.eog if vocabulary.pieces[i]}
    forbidden = {**control, **ends, **{i: name for name, i in names.items()}}
    runs = _cut(rendered, names, _slots(profile, render, roles, rendered))
    return Shape(_fuse(_with_bos(runs, vocabulary.bos), forbidden, vocabulary), forbidden)


def _refuse_unlisted(profile: Profile, text: str, names: Mapping[str, int], vocabulary: Vocabulary) -> None:
    """A control token spelled in the prompt and not listed would reach the model as plain text, unnoticed."""
    spelled = one_of({*(n for n in vocabulary.control if len(n) > 2), *names})
    for name in spelled.findall(text) if spelled else ():
        if name not in names:
            raise ProfileError(f"{profile.source}: [prompt] text spells {name!r}; list it in [prompt] control")


def _slots(profile: Profile, render: Render, roles: tuple[str, ...], rendered: str) -> list[Slot]:
    """The slots of a rendering, in order, with what the template strips off each text's ends."""
    gaps, order = _gaps(rendered)
    space = _kept(profile, render, roles, gaps, (" \n\t ", " \t\n "))
    lines = _kept(profile, render, roles, gaps, ("\n", "\n\n"))
    strips = [[_strip(s, n) for s, n in zip(*sides, strict=True)] for sides in zip(space, lines, strict=True)]
    return [Slot(message, left, right) for message, (left, right) in zip(order, strips, strict=True)]


def _strip(space_kept: bool, newline_kept: bool) -> str | None:
    if not space_kept:
        return None
    return "" if newline_kept else "\n"


def _gaps(rendered: str) -> tuple[list[str], list[int]]:
    """The texts between sentinels, one more than there are sentinels, and the messages these stand for."""
    parts = SENTINEL.split(rendered)
    return parts[::2], [int(i) for i in parts[1::2]]


def _kept(
    profile: Profile, render: Render, roles: tuple[str, ...], gaps: list[str], pads: tuple[str, str]
) -> list[tuple[bool, bool]]:
    """For each slot, whether padding put left and right of the text is still there in the rendering."""
    padded, _ = _gaps(render(roles, lambda i: pads[0] + sentinel(i) + pads[1]))
    n = len(gaps) - 1
    sides: list[tuple[bool, bool]] = []  # per gap: of the text before it its right, of the one after its left
    for j, gap in enumerate(gaps):
        befores, afters = (True, False) if j else (False,), (True, False) if j < n else (False,)
        ways = ((b, a) for b in befores for a in afters)
        fits = (w for w in ways if padded[j : j + 1] == [pads[1] * w[0] + gap + pads[0] * w[1]])
        side = next(fits, None)
        if side is None or len(padded) != len(gaps):
            raise ProfileError(f"{profile.source}: the template changes the messages' text beyond stripping it")
        sides.append(side)
    return [(sides[j][1], sides[j + 1][0]) for j in range(n)]


def _cut(rendered: str, names: Mapping[str, int], slots: Sequence[Slot]) -> list[int | Run]:
    """Control ids and the runs between them."""
    spelled = one_of(names)
    pieces: list[int | Run] = []
    run: list[str | Slot] = []
    gaps, order = _gaps(rendered)
    for j, gap in enumerate(gaps):
        at = 0
        for match in spelled.finditer(gap) if spelled else ():
            run.append(gap[at : match.start()].replace(MARK, ""))
            pieces += [Run(tuple(run)), names[match[0]]]
            run, at = [], match.end()
        run.append(gap[at:].replace(MARK, ""))
        if j < len(order):
            run.append(slots[j])
    return [*pieces, Run(tuple(run))]


def _with_bos(pieces: list[int | Run], bos: int | None) -> list[int | Run]:
    """Begin with bos, once, whether or not the template writes it."""
    if bos is None:
        return pieces
    filled = [p for p in pieces if p == bos or not (isinstance(p, Run) and p.fixed == "")]
    opening = list(takewhile(lambda p: p == bos or (isinstance(p, Run) and _is_blank(p)), filled))
    last = max((i for i, p in enumerate(opening) if p == bos), default=-1)
    return [bos, *filled[last + 1 :]]


def _is_blank(run: Run) -> bool:
    return run.fixed is not None and not run.fixed.strip()


def _fuse(pieces: Iterable[int | Run], forbidden: Mapping[int, str], vocabulary: Vocabulary) -> tuple[Ids | Run, ...]:
    """Encode what has no slot, once and for all, and join it with the control ids around it."""
    fused: list[Ids | Run] = []
    fixed: list[int] = []
    for piece in pieces:
        if isinstance(piece, int):
            fixed.append(piece)
        elif piece.fixed is None:
            fused += [tuple(fixed), piece]
            fixed = []
        else:
            fixed += _encode_run(piece.fixed, forbidden, vocabulary)
    return (*fused, tuple(fixed))


# Encoding


def _fill(shape: Shape, texts: Sequence[str], vocabulary: Vocabulary) -> Ids:
    ids: list[int] = []
    for piece in shape.pieces:
        if isinstance(piece, Run):
            text = "".join(p if isinstance(p, str) else _stripped(texts[p.message], p) for p in piece.parts)
            ids += _encode_run(text, shape.forbidden, vocabulary)
        else:
            ids += piece
    return tuple(ids)


def _stripped(text: str, slot: Slot) -> str:
    return text.lstrip(slot.left).rstrip(slot.right)


def _encode_run(text: str, forbidden: Mapping[int, str], vocabulary: Vocabulary) -> list[int]:
    """Ids of plain text, none of them forbidden."""
    if not text:
        return []
    ids = vocabulary.encode(text)
    if forbidden.keys().isdisjoint(ids):
        return ids
    return _encode_apart(text, ids, forbidden, vocabulary)


def told_early(vocabulary: Vocabulary, n_ctx: int) -> Vocabulary:
    """The same, but a text far beyond a context of `n_ctx` tokens is a ContextOverflow before all of it is encoded.

    A beginning is encoded first, then one four times as long. Where it has twice the tokens that the context holds, the
    whole text cannot fit: whatever follows, tokens change near the cut alone.
    """

    def encode(text: str) -> list[int]:
        size = max(_SHORT, _CHARACTERS * n_ctx)
        while size < len(text):
            n_tokens = len(vocabulary.encode(text[:size]))
            if n_tokens > 2 * n_ctx:
                raise ContextOverflow(n_tokens, n_ctx, counted_all=False)
            size *= 4
        return vocabulary.encode(text)

    return replace(vocabulary, encode=encode)


def _encode_apart(text: str, ids: list[int], forbidden: Mapping[int, str], vocabulary: Vocabulary) -> list[int]:
    """Encode with a cut after the first character of each spelling that the tokenizer takes for a token.

    No piece then holds a whole spelling. The guard reads the same characters.
    """
    spelled = one_of(name for name in forbidden.values() if len(name) > 1)
    cuts = [m.start() + 1 for m in re.finditer(f"(?={spelled.pattern})", text)] if spelled else []
    apart: list[int] = []
    for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        apart += vocabulary.encode(text[begin:end])
    if not forbidden.keys().isdisjoint(apart):
        names = sorted(forbidden[i] for i in set(apart) & forbidden.keys())
        raise RecordError(
            f"the tokenizer reads part of the text as the control token {', '.join(map(repr, names))}; "
            "the text cannot be judged as text",
            kind="control_token",
        )
    return apart


def _common_prefix(rows: Sequence[Ids]) -> Ids:
    same = takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False))
    return tuple(column[0] for column in same)
