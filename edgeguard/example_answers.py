"""Answers that a grammar reads, the shortest of their kind: what a guard writes, shown to a person."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from edgeguard.grammar import AnswerGrammar, Judged
from edgeguard.pattern import Choose, Either, Field, Label, Node, Open, Repeat, Say, Series, Text

Side = Literal["safe", "unsafe"]
_VERDICT = "=verdict"  # no code has an = in it


@dataclass(frozen=True, order=True)
class _Cost:
    """What makes an answer less plain: codes that nobody asked for, then its length."""

    codes: int = 0
    length: int = 0


@dataclass(frozen=True)
class _Way:
    """A text, and what of the wanted it says."""

    text: str = ""
    said: frozenset[str] = frozenset()
    cost: _Cost = field(default_factory=_Cost)

    def then(self, other: _Way) -> _Way:
        cost = _Cost(self.cost.codes + other.cost.codes, self.cost.length + other.cost.length)
        return _Way(self.text + other.text, self.said | other.said, cost)


def example_answer(
    grammar: AnswerGrammar, side: Side, codes: Sequence[str] = (), judged: Judged = "user"
) -> str | None:
    """The shortest answer that is safe, or unsafe and names these codes; None where the grammar has none.

    It names no other code where there is one that does not, and writes labels in their plain form.
    """
    found = _ways(grammar.parsed, _Wanted(grammar, side, frozenset(codes), judged))
    return next((way.text for way in found if way.said == {_VERDICT, *codes}), None)


@dataclass(frozen=True)
class _Wanted:
    grammar: AnswerGrammar
    side: Side
    codes: frozenset[str]
    judged: Judged

    def way(self, of: Field, label: Label, text: str) -> _Way | None:
        """Saying a label by a text; None where that is another verdict."""
        readout = self.grammar.readout(self.judged)
        if of.name == readout.verdict:
            if readout.sides(readout.default).get(label.name) != self.side:
                return None
            return _Way(text, frozenset({_VERDICT}), _Cost(0, len(text)))
        if of.name == readout.category and label.name in self.codes:
            return _Way(text, frozenset({label.name}), _Cost(0, len(text)))
        return _Way(text, frozenset(), _Cost(int(self._names_categories(of)), len(text)))

    def _names_categories(self, of: Field) -> bool:
        taxonomy = next((f for f in self.grammar.fields if f.name == self.grammar.user.category), None)
        return taxonomy is not None and of.labels == taxonomy.labels


def _ways(node: Node, wanted: _Wanted) -> list[_Way]:
    """The cheapest way through a part for each set of the wanted that it can say."""
    match node:
        case Text(text):
            return [_Way(text, cost=_Cost(0, len(text)))]
        case Choose(of, labels):
            return _cheapest(wanted.way(of, label, label.forms[0]) for label in labels if label.forms)
        case Say(of, label):
            return _cheapest([wanted.way(of, label, "")])
        case Series(parts):
            found = [_Way()]
            for part in parts:
                found = _both(found, _ways(part, wanted))
            return found
        case Either(parts):
            return _cheapest(way for part in parts for way in _ways(part, wanted))
        case Repeat(part, least, endless):
            once = _ways(part, wanted)
            found = once if least else _cheapest([_Way(), *once])
            for _ in range(len(wanted.codes) if endless else 0):
                found = _cheapest([*found, *_both(found, once)])
            return found
        case Open():
            return [_Way()]


def _both(first: Iterable[_Way], second: Sequence[_Way]) -> list[_Way]:
    return _cheapest(a.then(b) for a in first for b in second)


def _cheapest(ways: Iterable[_Way | None]) -> list[_Way]:
    """One way for each set of what is said; of equals the first, which patterns have as the plain one."""
    best: dict[frozenset[str], _Way] = {}
    for way in ways:
        if way is not None and (way.said not in best or way.cost < best[way.said].cost):
            best[way.said] = way
    return list(best.values())
