"""The answers a guard may give, as an automaton over bytes, and which labels each answer names.

A profile's grammar describes answer *texts*: `safe`, or `unsafe\\nS1,S10`. A model writes *tokens*,
and one text has many tokenisations. So the grammar is compiled to a byte automaton, and a token is
allowed in a state if its bytes lead somewhere. What a token names is read off the automaton:

- `S1` is named by a token only when the answer cannot become `S10` any more. Where the tokenizer
  splits digits that is the separator or the stop after the `1`; elsewhere it may be the token itself.
- All surface forms of a label, and all its tokenisations, name the same label.
- What an answer has named stays named, however it goes on.

Every set of labels here has `unsafe` first, then the categories in the profile's order, then `safe`: all but the
last are the labels that a guard decides.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edgeguard.backend import Vocabulary
from edgeguard.errors import ProfileError
from edgeguard.profile import AnswerGrammar, Category

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


@dataclass
class _Nfa:
    """Thompson automaton over bytes. Marks sit on empty edges and name a label."""

    bytes_: list[list[tuple[int, int]]] = field(default_factory=list)  # state → (byte, target)
    empty: list[list[tuple[int, int]]] = field(default_factory=list)  # state → (label or -1, target)
    spelling: list[bool] = field(default_factory=list)  # inside the part that tells a label from the others

    def add(self, spelling: bool = False) -> int:
        self.bytes_.append([])
        self.empty.append([])
        self.spelling.append(spelling)
        return len(self.bytes_) - 1

    def text(self, start: int, forms: Iterable[str], end: int, *, names: int = -1, shared: int = 0) -> None:
        """Edges from `start` to `end` for each form; its bytes after the first `shared` spell a label."""
        for form in forms:
            here = start
            for i, byte in enumerate(form.encode()):
                there = self.add(spelling=names >= 0 and i >= shared)
                self.bytes_[here].append((byte, there))
                here = there
            self.empty[here].append((names, end))


Threads = frozenset[tuple[int, int]]  # (NFA state, bits of labels this reading names beyond the certain ones)


@dataclass(frozen=True)
class _Step:
    state: int
    named: int  # bits


class Answers:
    """The compiled grammar over one vocabulary. States are small integers, made as they are met.

    Two equal grammars over two vocabularies give different moves and the same labels.
    """

    def __init__(
        self,
        grammar: AnswerGrammar,
        categories: Sequence[Category],
        vocabulary: Vocabulary,
        stops: frozenset[int],
    ) -> None:
        self.labels: tuple[str, ...] = ("unsafe", *(c.code for c in categories), "safe")
        self.stops: Ints = np.array(sorted(stops), dtype=np.int64)
        forms = [c.forms for c in categories]
        shared = _common_prefix([f.encode() for fs in forms for f in fs]) if forms else b""
        self._nfa, self._accept = _build(grammar, forms, len(shared))
        self._can_name = _closure_of_names(self._nfa)
        spelled = {*grammar.safe, *grammar.unsafe, *(f for fs in forms for f in fs)}
        # Some guards answer in control tokens (`<UNSAFE-S3>`): those the grammar spells count as text.
        self._spelled = {i: name.encode() for name, i in vocabulary.control.items() if name in spelled}
        self._vocabulary_pieces = vocabulary.pieces
        self._pieces, self._ids = _sorted_pieces(vocabulary, self._spelled, stops)
        self._threads: list[Threads] = []
        self._state_of: dict[Threads, int] = {}
        self._steps: dict[tuple[int, int], _Step | None] = {}
        self._moves: dict[int, Moves] = {}
        self._spines: dict[int, tuple[tuple[int, ...], ...]] = {}
        start, _ = _factor(self._closure({(0, 0)}))
        self._intern(start)
        self._to_choice, self._words = _plainest(grammar, forms, shared)

    @property
    def n_labels(self) -> int:
        """`unsafe`, the categories, and `safe`."""
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
            bits |= named | self._can_name[q]
        return self._bools(bits)

    def spelling(self, state: int) -> bool:
        """Is the answer, in this state, in the middle of the part that tells a label from the others?"""
        threads = self._threads[state]
        return any(named or self._nfa.spelling[q] for q, named in threads)

    def spines(self, state: int) -> tuple[tuple[int, ...], ...]:
        """Token runs worth evaluating together with this state: the plainest ways on, in this vocabulary.

        From the start: through `unsafe` to where the first label is chosen, and to the end of `safe`, so
        that both sides of the log-odds are looked at however small. Elsewhere to the next choice of a label.
        A run costs a few tokens in a batch and saves as many steps of one token each. Its last token is
        one whose row matters: a word that is complete needs no row of its own.
        """
        if state not in self._spines:
            self._spines[state] = self._find_spines(state)
        return self._spines[state]

    @property
    def way_to_label(self) -> tuple[int, ...]:
        """Tokens of the plainest way from the start to where the first label is chosen: `unsafe`, `\\n`, `S`."""
        return self._beginning(START, self._to_choice)

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
        ended = [named for q, named in self._threads[state] if q == self._accept]
        return None if not ended else _and(ended)

    def _bools(self, bits: int) -> Bools:
        return np.array([bits >> i & 1 for i in range(self.n_labels)], dtype=np.bool_)

    def _intern(self, threads: Threads) -> int:
        if threads not in self._state_of:
            self._state_of[threads] = len(self._threads)
            self._threads.append(threads)
        return self._state_of[threads]

    def _closure(self, threads: Iterable[tuple[int, int]]) -> set[tuple[int, int]]:
        todo, seen = list(threads), set(threads)
        while todo:
            q, named = todo.pop()
            for label, target in self._nfa.empty[q]:
                there = (target, named if label < 0 else named | 1 << label)
                if there not in seen:
                    seen.add(there)
                    todo.append(there)
        # A state that only passes on is not a place to be; dropping it lets `S10` be certain at once.
        return {(q, m) for q, m in seen if self._nfa.bytes_[q] or q == self._accept}

    def _step(self, state: int, byte: int) -> _Step | None:
        key = (state, byte)
        if key not in self._steps:
            reached = {(t, m) for q, m in self._threads[state] for b, t in self._nfa.bytes_[q] if b == byte}
            if not reached:
                self._steps[key] = None
            else:
                threads, certain = _factor(self._closure(reached))
                self._steps[key] = _Step(self._intern(threads), certain)
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
        while lo < hi and self._pieces[lo] == read:
            if read:
                found.append((self._ids[lo], state, named))
            lo += 1
        if lo == hi:
            return
        for byte in {b for q, _ in self._threads[state] for b, _ in self._nfa.bytes_[q]}:
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
        if state == START:
            words = [self._spell(START, word) for word in self._words]
            if None in words:
                word = self._words[words.index(None)].decode()
                raise ProfileError(
                    f"the model's vocabulary cannot write {word!r}, an answer of the profile; "
                    "this profile is not for this model"
                )
            runs = (self._beginning(START, self._to_choice), *(word[:-1] for word in words if word))
            return tuple(run for run in runs if run)
        choice = self.run(self._to_choice)
        for length in range(1, len(self._to_choice) + 1):  # the shortest rest of that way which fits here
            text = self._to_choice[-length:]
            there = self.run(text, state)
            if choice is not None and there is not None and there[0] == choice[0]:
                run = self._beginning(state, text)
                return (run,) if run else ()
        return ()

    def _beginning(self, state: int, text: bytes) -> tuple[int, ...]:
        """Tokens of the longest beginning of `text` that the vocabulary can write from here."""
        runs = (self._spell(state, text[:n]) for n in range(len(text), 0, -1))
        return next((run for run in runs if run is not None), ())

    def _spell(self, state: int, text: bytes) -> tuple[int, ...] | None:
        """Tokens that write `text` from a state, longest first; None where the vocabulary has no way."""
        if not text:
            return ()
        moves = self.moves(state)
        fits = [i for i, t in enumerate(moves.tokens) if text.startswith(self.piece(int(t)))]
        for i in sorted(fits, key=lambda i: -len(self.piece(int(moves.tokens[i])))):
            token = int(moves.tokens[i])
            rest = self._spell(int(moves.next[i]), text[len(self.piece(token)) :])
            if rest is not None:
                return (token, *rest)
        return None

    def piece(self, token: int) -> bytes:
        """The bytes a token writes into an answer."""
        return self._spelled.get(token) or self._vocabulary_pieces[token]


def _build(grammar: AnswerGrammar, forms: Sequence[Sequence[str]], shared: int) -> tuple[_Nfa, int]:
    """The automaton of a grammar and its accepting state. State 0 is the start."""
    safe = 1 + len(forms)
    nfa = _Nfa()
    start, verdict, ending, accept = nfa.add(), nfa.add(), nfa.add(), nfa.add()
    nfa.text(start, grammar.lead or ("",), verdict)
    nfa.text(verdict, grammar.safe, ending, names=safe)
    nfa.text(ending, grammar.end or ("",), accept)
    if grammar.labels == "verdict":
        _add_labels(nfa, verdict, forms, ending, shared, also=UNSAFE)
        return nfa, accept
    judged = nfa.add()
    nfa.text(verdict, grammar.unsafe, judged, names=UNSAFE)
    nfa.empty[judged].append((-1, ending))  # `unsafe` and no category: allowed, names none
    if grammar.labels == "none":
        return nfa, accept
    choose, chosen = nfa.add(), nfa.add()
    nfa.text(judged, grammar.before_labels or ("",), choose)
    _add_labels(nfa, choose, forms, chosen, shared)
    nfa.empty[chosen].append((-1, ending))
    if grammar.labels == "list":
        nfa.text(chosen, grammar.separator, choose)
    return nfa, accept


def _add_labels(
    nfa: _Nfa, start: int, forms: Sequence[Sequence[str]], end: int, shared: int, also: int | None = None
) -> None:
    for label, variants in enumerate(forms, UNSAFE + 1):
        if also is None:
            nfa.text(start, variants, end, names=label, shared=shared)
        else:
            named = nfa.add()
            nfa.text(start, variants, named, names=label, shared=shared)
            nfa.empty[named].append((also, end))


def _closure_of_names(nfa: _Nfa) -> list[int]:
    """For each NFA state, the bits of all labels on any way from it."""
    names = [0] * len(nfa.empty)
    changed = True
    while changed:
        changed = False
        for q in range(len(names)):
            bits = names[q]
            for _, target in nfa.bytes_[q]:
                bits |= names[target]
            for label, target in nfa.empty[q]:
                bits |= names[target] | (0 if label < 0 else 1 << label)
            if bits != names[q]:
                names[q], changed = bits, True
    return names


def _factor(threads: set[tuple[int, int]]) -> tuple[Threads, int]:
    """Split off what every reading names: (threads with the rest, certain bits)."""
    certain = _and([named for _, named in threads])
    return frozenset((q, named & ~certain) for q, named in threads), certain


def _and(bits: Sequence[int]) -> int:
    both = bits[0]
    for more in bits[1:]:
        both &= more
    return both


def _common_prefix(texts: Sequence[bytes]) -> bytes:
    low, high = min(texts), max(texts)
    n = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    # A single label, or one form that begins all others, must keep a byte of its own to be told by.
    return low[: min(n, min(map(len, texts)) - 1)]


def _plainest(grammar: AnswerGrammar, forms: Sequence[Sequence[str]], shared: bytes) -> tuple[bytes, tuple[bytes, ...]]:
    """By the first-named variants: the way to the first choice of a label, and the words of the verdict."""
    lead, safe = (grammar.lead or ("",))[0].encode(), grammar.safe[0].encode()
    if grammar.labels == "verdict":
        return lead + shared, (lead + safe, lead + forms[0][0].encode())
    unsafe = lead + grammar.unsafe[0].encode()
    if grammar.labels == "none":
        return b"", (lead + safe, unsafe)
    return unsafe + (grammar.before_labels or ("",))[0].encode() + shared, (lead + safe,)


def _sorted_pieces(
    vocabulary: Vocabulary, spelled: Mapping[int, bytes], stops: frozenset[int]
) -> tuple[list[bytes], list[int]]:
    """All pieces in byte order, with their ids: a prefix is a range of it."""
    pairs = [(piece, i) for i, piece in enumerate(vocabulary.pieces) if piece and i not in stops]
    pairs += [(piece, i) for i, piece in spelled.items() if i not in stops]
    pairs.sort()
    return [p for p, _ in pairs], [i for _, i in pairs]
