"""From a conversation to the token ids of the guard's prompt.

The template is rendered once per sequence of roles, with a sentinel in the place of each message's text.
The rendering is then cut at control tokens. What stands between two of them, a run, is tokenised as a
whole with the texts filled in, because a tokenizer merges across the seam of template and text just as it
did when the guard was trained. Control tokens come from the template and never from a text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from difflib import get_close_matches
from functools import lru_cache
from itertools import takewhile
from typing import Any, Literal

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edgeguard.backend import Vocabulary
from edgeguard.errors import ProfileError, RecordError
from edgeguard.profile import CONVERSATION, Category, Profile
from edgeguard.rows.record import Message

Ids = tuple[int, ...]
WrittenBy = Literal["file", "profile"]

MAX_RENDERED = 1 << 20  # characters; a template from a stranger may loop
MAX_SHAPES = 64  # sequences of roles kept rendered
# Some chat templates print today's date, which would change scores overnight. The date is the one that
# Llama 3.1's and 3.2's templates print where they are given no clock.
TODAY = datetime(2024, 7, 26)
PROBES = ("a", "A", " ", "\n", "1", "é", "<", "The", "漢", "=", "://", "'s", "\u0301", "...")

# Texts that no template holds: private-use characters around what a template could rewrite or escape.
_TAIL = "<&\"'\\Éé\ue001"
_SENTINEL = re.compile("\ue000(\\d+)" + re.escape(_TAIL))
_MARK = "\ue002"  # stands inside a control spelling that is to stay text
_PRIVATE = re.compile("[\ue000-\ue002]")
# What a special token looks like: <think>, [INST], <｜User｜>
_LOOKS_SPECIAL = re.compile(r"<[^<>\s]{1,64}>|\[[^\[\]\s]{1,64}\]")


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
            raise RecordError(_not_judged(self.profile), kind="invalid_roles")
        try:
            return self._shape(roles, question)
        except ProfileError as error:
            raise RecordError(f"roles {', '.join(roles)}: {error}", kind="invalid_roles") from error


def compile_prompt(profile: Profile, chat_template: str | None, vocabulary: Vocabulary) -> Prompter:
    """Fit a profile to a model's vocabulary and chat template. Raises ProfileError where it does not fit.

    chat_template  the model file's own, needed where the profile says template = "model"
    """
    written_by = find_writer(profile, chat_template)
    names = _control_names(profile, vocabulary, written_by)
    categories = {c.code: c for c in profile.categories} if profile.questions else {}
    codes: list[str | None] = [*categories] or [None]
    renderers = {
        code: _renderer(profile, written_by, chat_template, vocabulary, names, categories.get(code or ""))
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


def _not_judged(profile: Profile) -> str:
    if "user" in profile.prompt.judges:
        return (
            f"the last turn is the assistant's, and {profile.name} judges what a user says; "
            "give it the conversation up to the user's last turn, or use another guard"
        )
    return (
        f"the last turn is the user's, and {profile.name} judges what an assistant answers; "
        "give it the response too, or use another guard"
    )


def find_writer(profile: Profile, chat_template: str | None) -> WrittenBy:
    """Whose template writes the prompts. Raises ProfileError where neither can."""
    spec = profile.prompt
    if spec.template == "own":
        return "profile"
    if spec.messages and chat_template:
        return "file"
    # Without messages of its own, the profile leaves the policy to the model's template: it must be there.
    if chat_template and profile.detect.fits_template(chat_template):
        return "file"
    if spec.text:
        return "profile"
    if not chat_template:
        raise ProfileError(
            f"{profile.source}: the model file carries no chat template (tokenizer.chat_template), and this "
            "profile asks through it; convert the model with its template, or write a profile with "
            'template = "own"'
        )
    wanted = ", ".join(repr(text) for text in profile.detect.template_contains)
    raise ProfileError(
        f"{profile.source}: the chat template in the model file is not this guard's: it should hold {wanted}; "
        "use the original model's template, or another profile"
    )


@dataclass(frozen=True)
class Draft:
    """Writes a guard's prompts as text, control tokens spelled out: to be shown and compared, never to be asked.

    chat_template  the model file's own; None where the profile's text writes
    bos, eos       what the file's template sees as bos_token and eos_token
    question       the code that is asked about, where there is a question for each
    """

    profile: Profile
    chat_template: str | None = None
    bos: str = ""
    eos: str = ""
    question: str | None = None

    def write(self, messages: Sequence[Message], *, parts: bool = False) -> str:
        """The prompt about a conversation; `parts`: the file's template gets content as a list of parts.

        A template that drops a text is not refused here. Raises ProfileError; its kind is "template_refuses" and its
        data has what the template `said`, where the template itself refuses.
        """
        roles = tuple(m.role for m in messages)
        self._check_judged(roles)
        if self.chat_template is None:
            return _own_text(self.profile, self._data())(roles, lambda i: messages[i].content)
        render = _file_text(self.profile, self.chat_template, self._data(), bos=self.bos, eos=self.eos)
        return render(roles, lambda i: messages[i].content, parts)

    def chat(self, messages: Sequence[Message]) -> list[tuple[str, str]]:
        """The chat that a file's template would get, (role, text): [[prompt.message]], or the conversation itself."""
        self._check_judged([m.role for m in messages])
        return _own_messages(self.profile, self._data())([(m.role, m.content) for m in messages])

    def _check_judged(self, roles: Sequence[str]) -> None:
        if roles[-1] not in self.profile.prompt.judges:
            raise ProfileError(_not_judged(self.profile))

    def _data(self) -> Data:
        asked = next((c for c in self.profile.categories if c.code == self.question), None)
        return _data(self.profile, asked, lambda text: text)


def draft(profile: Profile, vocabulary: Vocabulary, chat_template: str | None, *, by: WrittenBy) -> Draft:
    """What one of the two templates writes for a model of this vocabulary, about the first question of several."""
    asked = None if profile.questions is None else profile.questions.asked[0]
    if by == "profile":
        return Draft(profile, question=asked)
    bos, eos = _name_of(vocabulary, vocabulary.bos), _name_of(vocabulary, min(vocabulary.eog, default=None))
    return Draft(profile, chat_template, bos, eos, asked)


# Control tokens


def _control_names(profile: Profile, vocabulary: Vocabulary, written_by: WrittenBy) -> dict[str, int]:
    """Spelling → id of each control token that the template may hold."""
    if written_by == "profile":
        return {name: _control_id(profile, "[prompt] control", name, vocabulary) for name in profile.prompt.control}
    # Some files declare the token that ends a turn as ordinary text.
    ends = {_text(vocabulary, i): i for i in vocabulary.eog if vocabulary.pieces[i]}
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


def _text(vocabulary: Vocabulary, token: int) -> str:
    return vocabulary.pieces[token].decode(errors="replace")


# Rendering

Render = Callable[[tuple[str, ...], Callable[[int], str]], str]  # (roles, text of message i) → the prompt


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's text for training; here it only passes it on."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own way)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment(**options: Any) -> ImmutableSandboxedEnvironment:
    """Jinja as Hugging Face sets it up for chat templates: these come from strangers, hence the sandbox."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationTag, "jinja2.ext.loopcontrols"],
        **options,
    )
    environment.filters["tojson"] = lambda value, **kw: json.dumps(value, ensure_ascii=False, **kw)
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = TODAY.strftime
    return environment


def _raise_exception(message: object) -> None:
    raise jinja2.TemplateError(str(message))


def _renderer(
    profile: Profile,
    written_by: WrittenBy,
    chat_template: str | None,
    vocabulary: Vocabulary,
    names: Mapping[str, int],
    category: Category | None,
) -> Render:
    """What writes a prompt; `category` is what it asks about, None for all of them."""
    # A profile's names and descriptions are data: a control token spelled there stays text.
    data = _data(profile, category, _keep_text({*names, *vocabulary.control}))
    if written_by == "profile":
        return _try_once(profile.source, _own_text(profile, data))
    assert chat_template is not None
    ends = {"bos": _name_of(vocabulary, vocabulary.bos), "eos": _name_of(vocabulary, min(vocabulary.eog, default=None))}
    return _try_both(profile.source, _file_text(profile, chat_template, data, **ends))


Data = Callable[[tuple[str, ...]], dict[str, Any]]  # roles → what a profile's own templates see beside the messages


def _data(profile: Profile, category: Category | None, guard: Callable[[str], str]) -> Data:
    """`guard` keeps a text of the profile from being a control token."""
    spec = profile.prompt
    own = [spec.text, *(message.text for message in spec.messages)]
    _refuse_private(profile, [*own, spec.user, spec.assistant, *_category_texts(profile)])

    def data(roles: tuple[str, ...]) -> dict[str, Any]:
        described = [_described(c, roles[-1], guard) for c in profile.categories]
        asked = {} if category is None else {"category": _described(category, roles[-1], guard)}
        return {
            "categories": described,
            "roles": {"user": guard(spec.user), "assistant": guard(spec.assistant)},
            **asked,
        }

    return data


def _strict() -> ImmutableSandboxedEnvironment:
    """For a profile's own texts: what they mistype is an error."""
    return _environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)


def _own_text(profile: Profile, data: Data) -> Render:
    compiled = _compile(profile, _strict(), profile.prompt.text, "the profile's text")

    def render(roles: tuple[str, ...], text: Callable[[int], str]) -> str:
        messages = [{"role": role, "content": text(i)} for i, role in enumerate(roles)]
        return _run(profile, compiled, {"messages": messages, **data(roles)}, "[prompt] text")

    return render


def _own_messages(profile: Profile, data: Data) -> Callable[[Sequence[tuple[str, str]]], list[tuple[str, str]]]:
    """What makes, of the turns of a conversation, (role, text), the chat that the model file's template gets."""
    strict = _strict()
    compiled = [_compile(profile, strict, message.text, "the profile's text") for message in profile.prompt.messages]

    def chat(turns: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        if not compiled:
            return list(turns)
        messages = [{"role": role, "content": text} for role, text in turns]
        inner = {"messages": messages, **data(tuple(role for role, _ in turns))}
        written: list[tuple[str, str]] = []
        for n, (message, own) in enumerate(zip(profile.prompt.messages, compiled, strict=True), 1):
            text = _run(profile, own, inner, f"[[prompt.message]] {n}")
            written += turns if message.role == CONVERSATION else [(message.role, text)]
        return written

    return chat


def _file_text(
    profile: Profile, chat_template: str, data: Data, *, bos: str, eos: str
) -> Callable[[tuple[str, ...], Callable[[int], str], bool], str]:
    """What the model file's template writes; with content as a list of parts where the last argument is true."""
    _refuse_private(profile, [chat_template])
    template = _compile(profile, _environment(), chat_template, "the chat template")
    chat, strict = _own_messages(profile, data), _strict()
    variables: dict[str, Any] = {
        "bos_token": bos,
        "eos_token": eos,
        "add_generation_prompt": True,
        "tools": None,
        "documents": None,
    }

    def render(roles: tuple[str, ...], text: Callable[[int], str], parts: bool) -> str:
        messages = chat([(role, text(i)) for i, role in enumerate(roles)])
        given = [{"role": r, "content": [{"type": "text", "text": t}] if parts else t} for r, t in messages]
        filled = {key: _filled(profile, strict, value, data(roles)) for key, value in profile.prompt.variables}
        return _run(profile, template, {"messages": given, **variables, **filled}, "the chat template")

    return render


def _described(category: Category, judged: str, guard: Callable[[str], str]) -> dict[str, str]:
    """A category as templates see it, in the words for whose turn is judged."""
    by_response = judged == "assistant" and category.response_description
    return {
        "code": guard(category.code),
        "name": guard(category.name),
        "description": guard(category.response_description if by_response else category.description),
    }


def _filled(profile: Profile, strict: ImmutableSandboxedEnvironment, value: Any, data: Mapping[str, Any]) -> Any:
    """A variable's value for a chat template: texts in it, however deep, are Jinja over the profile's data."""
    if isinstance(value, Mapping):
        return {key: _filled(profile, strict, inner, data) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(profile, strict, inner, data) for inner in value]
    if not isinstance(value, str) or "{" not in value:
        return value
    return _run(profile, _compile(profile, strict, value, "[prompt.variables]"), data, "[prompt.variables]")


def _try_once(source: str, render: Render) -> Render:
    def checked(roles: tuple[str, ...], text: Callable[[int], str]) -> str:
        rendered = render(roles, text)
        if missing := _missing(rendered, len(roles)):
            raise ProfileError(_dropped(source, "[prompt] text", missing[0]))
        return rendered

    return checked


def _try_both(source: str, render: Callable[[tuple[str, ...], Callable[[int], str], bool], str]) -> Render:
    """Content as plain text, and, where a template drops that, as a list of parts.

    Llama-Guard-3-1B's template reads only the second and judges an empty conversation without an error.
    """

    def checked(roles: tuple[str, ...], text: Callable[[int], str]) -> str:
        first: ProfileError | None = None
        for parts in (False, True):
            try:
                rendered = render(roles, text, parts)
            except ProfileError as error:
                first = first or error
                continue
            missing = _missing(rendered, len(roles))
            if not missing:
                return rendered
            first = first or ProfileError(_dropped(source, "the chat template", missing[0]))
        assert first is not None
        raise first

    return checked


def _missing(rendered: str, n: int) -> list[int]:
    there = {int(i) for i in _SENTINEL.findall(rendered)}
    return [i for i in range(n) if i not in there]


def _dropped(source: str, what: str, message: int) -> str:
    return (
        f"{source}: {what} drops or rewrites message {message + 1}: an empty conversation would be judged; "
        "write every message's content as it is"
    )


def _category_texts(profile: Profile) -> list[str]:
    return [text for c in profile.categories for text in (c.code, c.name, c.description, c.response_description)]


def _refuse_private(profile: Profile, texts: Iterable[str]) -> None:
    for text in texts:
        if found := _PRIVATE.search(text):
            code = f"U+{ord(found[0]):04X}"
            raise ProfileError(f"{profile.source}: a template holds {code}, which edgeguard uses itself; remove it")


def _keep_text(names: Iterable[str]) -> Callable[[str], str]:
    """A function that puts a mark into whatever might be a control token, after its first character."""
    spelled = _one_of(name for name in names if len(name) > 1)

    def guard(text: str) -> str:
        for pattern in (spelled, _LOOKS_SPECIAL):
            text = pattern.sub(lambda m: m[0][0] + _MARK + m[0][1:], text) if pattern else text
        return text

    return guard


def _one_of(texts: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern that finds any of the texts, the longest first as llama.cpp does; None for no texts."""
    longest_first = sorted(set(texts), key=lambda t: (-len(t), t))
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _compile(profile: Profile, environment: ImmutableSandboxedEnvironment, text: str, what: str) -> jinja2.Template:
    try:
        return environment.from_string(text)
    except jinja2.TemplateSyntaxError as error:
        raise ProfileError(f"{profile.source}: {what}, line {error.lineno}: {error.message}") from None
    except Exception as error:  # a stranger's template may fail in any way, RecursionError among them
        raise ProfileError(f"{profile.source}: {what}: {type(error).__name__}: {error}") from None


def _run(profile: Profile, template: jinja2.Template, variables: Mapping[str, Any], what: str) -> str:
    chunks: list[str] = []
    room = MAX_RENDERED
    try:
        for chunk in template.generate(variables):
            chunks.append(chunk)
            room -= len(chunk)
            if room < 0:
                raise ProfileError(f"{profile.source}: {what} writes more than {MAX_RENDERED} characters")
    except ProfileError:
        raise
    except jinja2.TemplateError as error:  # raise_exception's message among them
        hint = ""
        if "system" in str(error).lower():
            hint = '; this model takes no system message: put the policy into one with role = "user"'
        said = {"kind": "template_refuses", "said": str(error)}
        raise ProfileError(f"{profile.source}: {what} refuses: {error}{hint}", **said) from None
    except Exception as error:  # a stranger's template may fail in any way
        raise ProfileError(f"{profile.source}: {what} fails: {type(error).__name__}: {error}") from None
    return "".join(chunks)


def _name_of(vocabulary: Vocabulary, token: int | None) -> str:
    if token is None:
        return ""
    return next((name for name, i in vocabulary.control.items() if i == token), _text(vocabulary, token))


# Shapes


def _make_shape(
    profile: Profile,
    render: Render,
    roles: tuple[str, ...],
    names: Mapping[str, int],
    vocabulary: Vocabulary,
    written_by: WrittenBy,
) -> Shape:
    rendered = render(roles, _sentinel)
    if not rendered.endswith(profile.prompt.ends_with):
        tail = _SENTINEL.sub("…", rendered)[-40:]
        raise ProfileError(
            f"{profile.source}: the prompt ends with {tail!r}; [prompt] ends_with is {profile.prompt.ends_with!r}"
        )
    template_text = _SENTINEL.sub("\n", rendered)
    if written_by == "profile":
        _refuse_unlisted(profile, template_text, names, vocabulary)
    spelled = _atomic(vocabulary, {*_LOOKS_SPECIAL.findall(template_text)} - names.keys())
    names = {**names, **spelled}
    control = {i: name for name, i in vocabulary.control.items() if name}
    ends = {i: _text(vocabulary, i) for i in vocabulary.eog if vocabulary.pieces[i]}
    forbidden = {**control, **ends, **{i: name for name, i in names.items()}}
    runs = _cut(rendered, names, _slots(profile, render, roles, rendered))
    return Shape(_fuse(_with_bos(runs, vocabulary.bos), forbidden, vocabulary), forbidden)


def _sentinel(message: int) -> str:
    return f"\ue000{message}{_TAIL}"


def _refuse_unlisted(profile: Profile, text: str, names: Mapping[str, int], vocabulary: Vocabulary) -> None:
    """A control token spelled in the prompt and not listed would reach the model as plain text, unnoticed."""
    spelled = _one_of({*(n for n in vocabulary.control if len(n) > 2), *names})
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
    parts = _SENTINEL.split(rendered)
    return parts[::2], [int(i) for i in parts[1::2]]


def _kept(
    profile: Profile, render: Render, roles: tuple[str, ...], gaps: list[str], pads: tuple[str, str]
) -> list[tuple[bool, bool]]:
    """For each slot, whether padding put left and right of the text is still there in the rendering."""
    padded, _ = _gaps(render(roles, lambda i: pads[0] + _sentinel(i) + pads[1]))
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
    spelled = _one_of(names)
    pieces: list[int | Run] = []
    run: list[str | Slot] = []
    gaps, order = _gaps(rendered)
    for j, gap in enumerate(gaps):
        at = 0
        for match in spelled.finditer(gap) if spelled else ():
            run.append(gap[at : match.start()].replace(_MARK, ""))
            pieces += [Run(tuple(run)), names[match[0]]]
            run, at = [], match.end()
        run.append(gap[at:].replace(_MARK, ""))
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


def _encode_apart(text: str, ids: list[int], forbidden: Mapping[int, str], vocabulary: Vocabulary) -> list[int]:
    """Encode with a cut after the first character of each spelling that the tokenizer takes for a token.

    No piece then holds a whole spelling. The guard reads the same characters.
    """
    spelled = _one_of(name for name in forbidden.values() if len(name) > 1)
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
