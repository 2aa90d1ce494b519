"""A pattern of answers as an automaton over bytes, with marks where a label has been said.

Built as Thompson's automaton is: a state reads one byte, or passes on to others without reading, plain ways first.
Several readings of one text may be alive at once. A reading is a thread: a state, and the bits of the labels that it
has said. What all threads have said is certain.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, field

from edgeguard.pattern import Choose, Either, Field, Label, Node, Open, Repeat, Say, Series, Text

MAX_STATES = 300_000  # a profile is written by hand; a bigger automaton is a mistake or an attack
START, NO_BYTE = 0, -1

Marks = Callable[[Field, Label], int]  # the bits that saying a label of a field sets
Thread = tuple[int, int]  # (state, bits of labels said beyond the certain ones)
Threads = frozenset[Thread]


class TooManyStates(Exception):
    """A pattern that no answer needs."""


@dataclass(eq=False)
class Automaton:
    """State 0 is the start. What is listed is by state.

    byte      the byte it reads; NO_BYTE where it reads none
    after     the state after that byte
    passes    (bits said, state) it passes on to without reading, the plain way first
    spelling  whether it stands in the part of a label's form that tells it from the field's other labels
    choice    the field whose labels part there, for the states where some do
    again     those of them that stand in what `*` repeats
    can_say   bits of all labels on any way from it
    accept    where a whole answer ends
    open      where anything may follow, or nothing; None where no answer ends so
    """

    byte: list[int] = field(default_factory=list)
    after: list[int] = field(default_factory=list)
    passes: list[list[tuple[int, int]]] = field(default_factory=list)
    spelling: list[bool] = field(default_factory=list)
    choice: dict[int, str] = field(default_factory=dict)
    again: set[int] = field(default_factory=set)
    can_say: list[int] = field(default_factory=list)
    accept: int = START
    open: int | None = None

    def closure(self, threads: Iterable[Thread]) -> set[Thread]:
        """These threads and those they pass on to, without those that are only passing."""
        todo, seen = list(threads), set(threads)
        while todo:
            state, said = todo.pop()
            for bits, target in self.passes[state]:
                there = (target, said | bits)
                if there not in seen:
                    seen.add(there)
                    todo.append(there)
        # A state that only passes on is not a place to be; dropping it lets `S10` be certain at once.
        return {thread for thread in seen if self.byte[thread[0]] != NO_BYTE or self.ends(thread[0])}

    def ends(self, state: int) -> bool:
        """May an answer end in this state?"""
        return state in (self.accept, self.open)

    def start(self) -> tuple[Threads, int]:
        """(threads, certain bits) before the first byte."""
        return factored(self.closure({(START, 0)}))

    def step(self, threads: Threads, byte: int) -> tuple[Threads, int] | None:
        """(threads, bits newly certain) after a byte; None where no reading goes on."""
        reached = {(self.after[state], said) for state, said in threads if self.byte[state] == byte}
        reached |= {thread for thread in threads if thread[0] == self.open}
        return factored(self.closure(reached)) if reached else None

    def bytes_from(self, threads: Threads) -> set[int]:
        """The bytes that some reading goes on with; an open end goes on with all of them, and is not looked at."""
        return {self.byte[state] for state, _ in threads} - {NO_BYTE}

    def writes(self, text: bytes) -> bool:
        """May `text` stand anywhere in an answer, but for its open end?"""
        states = {state for state in range(len(self.byte)) if self.byte[state] == text[0]}
        for n, byte in enumerate(text):
            states = {self.after[state] for state in states if self.byte[state] == byte}
            if n + 1 < len(text):
                states = {state for state, _ in self.closure({(state, 0) for state in states})}
        return bool(states)

    def way_to(self, start: int, said: int, stops: Container[int] = ()) -> tuple[bytes, int] | None:
        """The plainest way from a state that says just the bits `said` in one place: (text, state after it), or None.

        It may end early, in a state of `stops` from which they may yet be said.
        """
        todo, seen = [(0, start, b"")], set[int]()
        while todo:
            bits, state, text = todo.pop()
            if bits == said:
                return text, state
            if state in seen or self.can_say[state] & said != said:
                continue
            if state in stops:
                return text, state
            seen.add(state)
            if self.byte[state] != NO_BYTE:
                todo.append((0, self.after[state], text + bytes([self.byte[state]])))
            todo.extend((bits, target, text) for bits, target in reversed(self.passes[state]))
        return None

    def said_with_another(self, labels: int) -> int:
        """Two of these labels, as bits, that one answer may say one after the other; 0 where there are none."""
        for passes in self.passes:
            for bits, target in passes:
                if bits & labels and (another := self.can_say[target] & labels & ~bits):
                    return (bits & labels) | (another & -another)
        return 0

    def plain_way(self, state: int) -> Iterator[tuple[int, int, bytes]]:
        """The plain way on to an end of the answer, place by place: (bits just said, state, text until there)."""
        bits, text = 0, b""
        while True:
            yield bits, state, text
            if self.byte[state] != NO_BYTE:
                bits, state, text = 0, self.after[state], text + bytes([self.byte[state]])
            elif self.passes[state]:
                bits, state = self.passes[state][0]
            else:
                return


def factored(threads: set[Thread]) -> tuple[Threads, int]:
    """Split off what every reading has said: (threads with the rest, certain bits)."""
    certain = -1
    for _, said in threads:
        certain &= said
    return frozenset((state, said & ~certain) for state, said in threads), certain


def build(pattern: Node, marks: Marks) -> Automaton:
    """The automaton of a pattern. Raises TooManyStates."""
    made = Automaton()
    start = _add(made)
    made.accept = _part(made, pattern, start, marks)
    made.can_say = _can_say(made)
    return made


def _add(made: Automaton, *, spelling: bool = False) -> int:
    if len(made.byte) >= MAX_STATES:
        raise TooManyStates
    made.byte.append(NO_BYTE)
    made.after.append(NO_BYTE)
    made.passes.append([])
    made.spelling.append(spelling)
    return len(made.byte) - 1


def _part(made: Automaton, node: Node, start: int, marks: Marks) -> int:
    """Build a part from a state that leads nowhere yet; returns where it ends, a state that leads nowhere yet."""
    match node:
        case Text(text):
            return _text(made, text.encode(), start)
        case Choose():
            return _choose(made, node, start, marks)
        case Say(of, label):
            end = _add(made)
            made.passes[start].append((marks(of, label), end))
            return end
        case Series(parts):
            for part in parts:
                start = _part(made, part, start, marks)
            return start
        case Either(parts):
            end = _add(made)
            for part in parts:
                begin = _add(made)
                made.passes[start].append((0, begin))
                made.passes[_part(made, part, begin, marks)].append((0, end))
            return end
        case Repeat(part, least=1):
            return _part(made, Repeat(part, least=0, endless=True), _part(made, part, start, marks), marks)
        case Repeat(part, endless=endless):
            begin, end = _add(made), _add(made)
            turn = _part(made, part, begin, marks)
            # Plain is once what may be left out, and no more often than needed what may be repeated.
            made.passes[start] += [(0, end), (0, begin)] if endless else [(0, begin), (0, end)]
            made.passes[turn] += [(0, end), (0, begin)] if endless else [(0, end)]
            if endless:
                made.again |= {state for state in made.choice if state >= begin}
            return end
        case Open():
            if made.open is None:
                made.open = _add(made)
            made.passes[start].append((0, made.open))
            return _add(made)  # where nothing comes from


def _text(made: Automaton, text: bytes, start: int, *, spelling_from: int | None = None) -> int:
    """One byte after the other; the label is being spelled after the first `spelling_from` bytes and one more."""
    for i, byte in enumerate(text):
        end = _add(made, spelling=spelling_from is not None and i >= spelling_from)
        made.byte[start], made.after[start] = byte, end
        start = end
    return start


def _choose(made: Automaton, node: Choose, start: int, marks: Marks) -> int:
    shared = len(common_prefix([form.encode() for label in node.field.labels for form in label.forms]))
    parts = len(node.labels) > 1 or len(node.labels) == len(node.field.labels)
    end = _add(made)
    for label in node.labels:
        for form in label.forms:
            begin = _add(made)
            made.passes[start].append((0, begin))
            before = _text(made, form.encode()[:shared], begin)
            if parts:
                made.choice[before] = node.field.name
            spelled = _text(made, form.encode()[shared:], before, spelling_from=0)
            made.passes[spelled].append((marks(node.field, label), end))
    return end


def common_prefix(texts: list[bytes]) -> bytes:
    """What all texts begin with; of the shortest a byte is left, so that there is one to tell it by."""
    low, high = min(texts), max(texts)
    n = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return low[: min(n, min(map(len, texts)) - 1)]


def _can_say(made: Automaton) -> list[int]:
    """For each state, the bits of all labels on any way from it. Ways run upward, so it is found downward."""
    can = [0] * len(made.byte)
    changed = True
    while changed:
        changed = False
        for state in reversed(range(len(can))):
            bits = can[made.after[state]] if made.byte[state] != NO_BYTE else 0
            for said, target in made.passes[state]:
                bits |= said | can[target]
            if bits != can[state]:
                can[state], changed = bits, True
    return can


# Mistakes that only the readings of whole answers show


@dataclass(frozen=True)
class Ambiguity:
    """An answer that can be read in two ways. `first` and `second` are bits said by each.

    open  free text may follow the answer, in one reading, and in another one the pattern goes on
    """

    text: bytes
    first: int
    second: int
    open: bool


def ambiguity(made: Automaton) -> Ambiguity | None:
    """An answer that one cannot read for certain, or None: one that says other labels in another reading, or one after
    which free text may follow while the pattern goes on.

    Where it finds none, every answer says the same in all its readings. What it finds has two readings, but they may
    differ in the order of what they say alone: what both have said before is not kept, or there would be a state for
    each set of labels. Raises TooManyStates.
    """
    start, _ = made.start()
    came: dict[Threads, tuple[Threads, int] | None] = {start: None}
    todo = deque([start])  # the shortest answers first: they are the ones to show
    while todo:
        here = todo.popleft()
        ended = sorted(said for state, said in here if made.ends(state))
        is_open = len(here) > 1 and any(state == made.open for state, _ in here)
        if is_open or (ended and ended[0] != ended[-1]):
            return Ambiguity(_text_to(came, here), ended[0], ended[-1], is_open)
        for byte in made.bytes_from(here):
            stepped = made.step(here, byte)
            assert stepped is not None
            if stepped[0] not in came:
                if len(came) >= MAX_STATES:
                    raise TooManyStates
                came[stepped[0]] = (here, byte)
                todo.append(stepped[0])
    return None


def _text_to(came: dict[Threads, tuple[Threads, int] | None], here: Threads) -> bytes:
    read: list[int] = []
    while (before := came[here]) is not None:
        here, byte = before
        read.append(byte)
    return bytes(reversed(read))
