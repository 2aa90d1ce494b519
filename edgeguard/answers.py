"""The answers a guard may give, as an automaton over bytes, and which labels each answer names.

A profile's pattern describes answer *texts*: `safe`, or `unsafe\\nS1,S10`. A model writes *tokens*,
and one text has many tokenisations. So the pattern is compiled to a byte automaton, and a token is
allowed in a state if its bytes lead somewhere. What a token names is read off the automaton:

- `S1` is named by a token only when the answer cannot become `S10` any more. Where the tokenizer
  splits digits that is the separator or the stop after the `1`; elsewhere it may be the token itself.
- All surface forms of a label, and all its tokenisations, name the same label.
- What an answer has named stays named, however it goes on.

Every set of labels here has `unsafe` first, then the categories in the profile's order, then `safe`: up to there are
the labels of a decision. Those of the answer's other fields follow, as "refusal=yes".
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeguard import automaton
from edgeguard.automaton import Marks, Threads, build, factored
from edgeguard.backend import Vocabulary
from edgeguard.errors import ProfileError
from edgeguard.grammar import AnswerGrammar, Judged, Readout
from edgeguard.pattern import Field, Label

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

STOPPED = -1  # the state of an answer that has ended
START = 0
UNSAFE = 0  # the place of `unsafe` among the labels; the categories come after it


@dataclass(frozen=True, eq=False)
class Moves:
    """What may come next in a state: k allowed tokens.

    tokens    (k,) ids, ascending
    next      (k,) states after them
    named     (k, n_labels) what each token newly names, for certain
    reach     (k, n_labels) what may yet be named after it
    spelling  (k,) whether it ends in the middle of what tells a label from the others
    stop      (n_labels,) what stopping here newly names, or None where an answer may not end
    """

    tokens: Ints
    next: Ints
    named: Bools
    reach: Bools
    spelling: Bools
    stop: Bools | None


@dataclass(frozen=True)
class _Step:
    state: int
    named: int  # bits


class Answers:
    """The compiled pattern over one vocabulary. States are small integers, made as they are met.

    Two equal grammars over two vocabularies give different moves and the same labels.

    labels  "unsafe", the codes, "safe", then "field=label" for all that the other fields may say
    safe    the place of "safe" among them: the labels of a decision are those before it
    """

    def __init__(
        self,
        grammar: AnswerGrammar,
        vocabulary: Vocabulary,
        stops: frozenset[int],
        *,
        judged: Judged = "user",
    ) -> None:
        """Compile the answers that judge a turn of the user or the assistant."""
        self._readout = grammar.readout(judged)
        self.labels = _labels(grammar, self._readout)
        self.safe = self.labels.index("safe")
        self.stops: Ints = np.array(sorted(stops), dtype=np.int64)
        marks = _marks(self.labels, self._readout)
        self._automaton = build(grammar.parsed, marks)
        self._verdicts = _marks_of(self._readout.verdict, grammar, marks)
        self._codes = _marks_of(self._readout.category, grammar, marks)
        # Some guards answer in control tokens (`<UNSAFE-S3>`): those that the pattern writes count as text.
        names = {i: name.encode() for name, i in vocabulary.control.items() if name}
        self._spelled = {i: name for i, name in names.items() if self._automaton.writes(name)}
        self._vocabulary_pieces, self._encode = vocabulary.pieces, vocabulary.encode
        self._pieces, self._ids = _sorted_pieces(vocabulary.pieces, self._spelled, stops)
        self._threads: list[Threads] = []
        self._state_of: dict[Threads, int] = {}
        self._steps: dict[tuple[int, int], _Step | None] = {}
        self._moves: dict[int, Moves] = {}
        self._spines: dict[int, tuple[tuple[int, ...], ...]] = {}
        self._intern(self._automaton.start()[0])

    @property
    def n_labels(self) -> int:
        """Those of the decision, `safe`, and those of the other fields."""
        return len(self.labels)

    def moves(self, state: int) -> Moves:
        """The tokens allowed in a state. Cached; the first call walks the vocabulary's prefixes."""
        if state not in self._moves:
            self._moves[state] = self._find_moves(state)
        return self._moves[state]

    def reach(self, state: int) -> Bools:
        """(n_labels,) labels that an answer in this state may yet name."""
        if state == STOPPED:
            return np.zeros(self.n_labels, dtype=np.bool_)
        bits = 0
        for q, named in self._threads[state]:
            bits |= named | self._automaton.can_say[q]
        return self._bools(bits)

    def spelling(self, state: int) -> bool:
        """Is the answer, in this state, in the middle of the part that tells a label from the others?"""
        threads = self._threads[state]
        return any(named or self._automaton.spelling[q] for q, named in threads)

    def spines(self, state: int) -> tuple[tuple[int, ...], ...]:
        """Token runs worth evaluating together with this state: the plainest ways on, in this vocabulary.

        Where the verdict comes next: one through each of its labels to the next choice of a label behind it, so that
        both sides of the log-odds are looked at however small. Elsewhere to the next choice, or to the end of the
        label that is being spelled. A run costs a few tokens in a batch and saves as many steps of one token each.
        Its last token is one whose row matters: a word that is complete needs no row of its own.

        Raises ProfileError at the start where the vocabulary cannot write a verdict.
        """
        if state not in self._spines:
            self._spines[state] = self._find_spines(state)
        return self._spines[state]

    @property
    def way_to_label(self) -> tuple[int, ...]:
        """Tokens of the plainest way from the start to where the first label is chosen: `unsafe`, `\\n`, `S`."""
        if not self._codes:
            return ()
        choices = {q for q, name in self._automaton.choice.items() if name == self._readout.category}
        judged = self._automaton.way_to(automaton.START, self._verdicts[0], choices) or (b"", automaton.START)
        # Where the label comes before the verdict, as both may in one token, there is no way on from the verdict.
        chosen = self._automaton.way_to(judged[1], self._codes[0], choices)
        return self._beginning(START, judged[0] + (b"" if chosen is None else chosen[0]))

    def run(self, text: bytes, state: int = START) -> tuple[int, int] | None:
        """Read bytes from a state: (state, bits newly named), or None where the grammar breaks."""
        named = 0
        for byte in text:
            step = self._step(state, byte)
            if step is None:
                return None
            state, named = step.state, named | step.named
        return state, named

    def stop_names(self, state: int) -> int | None:
        """Bits that ending the answer in this state newly names, or None where it may not end."""
        ended = {(q, named) for q, named in self._threads[state] if self._automaton.ends(q)}
        return factored(ended)[1] if ended else None

    def piece(self, token: int) -> bytes:
        """The bytes a token writes into an answer."""
        return self._spelled.get(token) or self._vocabulary_pieces[token]

    def _bools(self, bits: int) -> Bools:
        return np.array([bits >> i & 1 for i in range(self.n_labels)], dtype=np.bool_)

    def _intern(self, threads: Threads) -> int:
        if threads not in self._state_of:
            self._state_of[threads] = len(self._threads)
            self._threads.append(threads)
        return self._state_of[threads]

    def _step(self, state: int, byte: int) -> _Step | None:
        key = (state, byte)
        if key not in self._steps:
            stepped = self._automaton.step(self._threads[state], byte)
            self._steps[key] = None if stepped is None else _Step(self._intern(stepped[0]), stepped[1])
        return self._steps[key]

    def _find_moves(self, state: int) -> Moves:
        found: list[tuple[int, int, int]] = []  # (token, state, named bits)
        self._descend(state, b"", 0, 0, len(self._pieces), found)
        found.sort()
        states = [s for _, s, _ in found]
        shape = (len(found), self.n_labels)
        stop = self.stop_names(state)
        return Moves(
            tokens=np.array([t for t, _, _ in found], dtype=np.int64),
            next=np.array(states, dtype=np.int64),
            named=np.array([self._bools(m) for _, _, m in found], dtype=np.bool_).reshape(shape),
            reach=np.array([self.reach(s) for s in states], dtype=np.bool_).reshape(shape),
            spelling=np.array([self.spelling(s) for s in states], dtype=np.bool_),
            stop=None if stop is None else self._bools(stop),
        )

    def _descend(
        self, state: int, read: bytes, named: int, lo: int, hi: int, found: list[tuple[int, int, int]]
    ) -> None:
        """All pieces in [lo, hi) of the sorted vocabulary begin with `read`; follow the allowed ones."""
        if any(q == self._automaton.open for q, _ in self._threads[state]):  # whatever they go on with
            found.extend((token, state, named) for token in self._ids[lo:hi])
            return
        while lo < hi and self._pieces[lo] == read:
            if read:
                found.append((self._ids[lo], state, named))
            lo += 1
        if lo == hi:
            return
        for byte in self._automaton.bytes_from(self._threads[state]):
            longer = read + bytes([byte])
            left = bisect_left(self._pieces, longer, lo, hi)
            beyond = read + bytes([byte + 1]) if byte < 255 else None
            right = bisect_left(self._pieces, beyond, left, hi) if beyond else hi
            if left == right:
                continue
            step = self._step(state, byte)
            if step is not None:
                self._descend(step.state, longer, named | step.named, left, right, found)

    def _find_spines(self, state: int) -> tuple[tuple[int, ...], ...]:
        ways = [way for mark in self._verdicts if (way := self._way_through(state, mark)) is not None]
        if state == START:
            self._check_words(ways)
        ways = ways or [way for way in [self._way_on(state)] if way is not None]
        runs = [self._beginning(state, text)[: -1 if is_word else None] for text, is_word in ways]
        return tuple(dict.fromkeys(run for run in runs if run))

    def _way_through(self, state: int, mark: int) -> tuple[bytes, bool] | None:
        """The plainest way that says a label of the verdict, and on to the next choice.

        (text, whether it ends with the word that says the label, for want of a choice), or None.
        """
        others = {q for q, name in self._automaton.choice.items() if name != self._readout.verdict}
        ways = (self._automaton.way_to(q, mark, others) for q in self._places(state))
        found = [way for way in ways if way is not None]
        if not found:
            return None
        text, there = min(found, key=lambda way: len(way[0]))
        for _, q, more in self._automaton.plain_way(there):
            if q in others:
                return text + more, False
        return text, True

    def _way_on(self, state: int) -> tuple[bytes, bool] | None:
        """The plain way to the next choice; where one reading is left and none comes, to the end of its label.

        To a choice that `*` repeats only where all readings go there: after `S1,`, and not after `S1`.
        """
        places = self._places(state)
        ways = [self._to_choice(q) for q in places]
        first = [text for text, again in filter(None, ways) if not again]
        again = [text for text, _ in filter(None, ways)] if all(ways) else []
        if first or again:
            return min(first or again, key=len), False
        if len(places) == 1:
            return next(((text, True) for bits, _, text in self._automaton.plain_way(places[0]) if bits), None)
        return None

    def _places(self, state: int) -> list[int]:
        """Where the readings of an answer stand, plain ones first; at its start the plain way is the pattern's."""
        return [automaton.START] if state == START else sorted({q for q, _ in self._threads[state]})

    def _to_choice(self, q: int) -> tuple[bytes, bool] | None:
        """The plain way to the next choice, and whether that is one that only repeats another."""
        for _, there, text in self._automaton.plain_way(q):
            if there in self._automaton.choice:
                return text, there in self._automaton.again
        return None

    def _check_words(self, ways: Sequence[tuple[bytes, bool]]) -> None:
        for text, is_word in ways:
            if is_word and self._spell(START, text) is None:
                raise ProfileError(
                    f"the model's vocabulary cannot write {text.decode()!r}, an answer of the profile; "
                    "this profile is not for this model"
                )

    def _beginning(self, state: int, text: bytes) -> tuple[int, ...]:
        """Tokens of the longest beginning of `text` that the vocabulary can write from here.

        As the tokenizer writes it, where that is an answer: a model's own tokens are those, as a rule.
        """
        if usual := self._tokenized(state, text):
            return usual
        runs = (self._spell(state, text[:n]) for n in range(len(text), 0, -1))
        return next((run for run in runs if run is not None), ())

    def _tokenized(self, state: int, text: bytes) -> tuple[int, ...]:
        """What the tokenizer makes of `text`, where these tokens write just that from here; else ()."""
        tokens: list[int] = []
        with suppress(ValueError):  # half a character, or one that the vocabulary has not
            tokens = self._encode(text.decode())
        if b"".join(self._vocabulary_pieces[t] for t in tokens) != text:
            return ()  # such as the space that SentencePiece puts first
        for token in tokens:
            moves = self.moves(state)
            at = int(np.searchsorted(moves.tokens, token))
            if at == len(moves.tokens) or moves.tokens[at] != token:
                return ()
            state = int(moves.next[at])
        return tuple(tokens)

    def _spell(self, state: int, text: bytes, dead: set[int] | None = None) -> tuple[int, ...] | None:
        """Tokens that write `text` from a state, longest first; None where the vocabulary has no way.

        `dead` are the lengths of rests that are known to have none; how they were reached does not matter.
        """
        if not text:
            return ()
        dead = set() if dead is None else dead
        moves = self.moves(state)
        fits = [i for i, t in enumerate(moves.tokens) if text.startswith(self.piece(int(t)))]
        for i in sorted(fits, key=lambda i: -len(self.piece(int(moves.tokens[i])))):
            token = int(moves.tokens[i])
            left = text[len(self.piece(token)) :]
            if len(left) in dead:
                continue
            rest = self._spell(int(moves.next[i]), left, dead)
            if rest is not None:
                return (token, *rest)
        dead.add(len(text))
        return None


def _labels(grammar: AnswerGrammar, readout: Readout) -> tuple[str, ...]:
    """All labels in order."""
    codes = [label.name for field in grammar.fields if field.name == readout.category for label in field.labels]
    further = [f"{field.name}={label.name}" for field in grammar.reported for label in field.labels]
    return ("unsafe", *codes, "safe", *further)


def _marks(labels: Sequence[str], readout: Readout) -> Marks:
    """Which places of `labels` a label of a field names, as bits."""
    bit = {label: 1 << i for i, label in enumerate(labels)}
    sides = readout.sides(readout.default)

    def marks(field: Field, label: Label) -> int:
        bits = bit.get(f"{field.name}={label.name}", 0)
        if field.name == readout.category:
            bits |= bit[label.name]
        if field.name == readout.verdict and label.name in sides:
            bits |= bit[sides[label.name]]
        return bits

    return marks


def _marks_of(name: str | None, grammar: AnswerGrammar, marks: Marks) -> list[int]:
    """Of a field's labels, what they name; those that name `unsafe` first."""
    found = [marks(field, label) for field in grammar.fields if field.name == name for label in field.labels]
    return sorted(found, key=lambda bits: not bits >> UNSAFE & 1)


def _sorted_pieces(
    pieces: Sequence[bytes], spelled: Mapping[int, bytes], stops: frozenset[int]
) -> tuple[list[bytes], list[int]]:
    """All pieces in byte order, with their ids: a prefix is a range of it."""
    written = {**dict(enumerate(pieces)), **spelled}
    ids = sorted((i for i, piece in written.items() if piece and i not in stops), key=written.__getitem__)
    return [written[i] for i in ids], ids
