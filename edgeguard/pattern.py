"""How an answer is written: a small pattern language with named fields, and its parser.

    Safety: {verdict}\\nCategories: (None|{category}(, {category})*)(\\nRefusal: {refusal})?

Text stands for itself. `( | )` are alternatives, `?` `*` `+` repeat what stands before them, a group, a field or one
character, as in regular expressions. `{field}` is one label of a field in any of its forms, `{field=a|b}` one of these
labels; `{field:=a}` is no text and says `a`. `...`, at the end, is any text or none. `\\` makes the next character
plain; `\\n` is a line break, as a line break in the pattern is, `\\t` a tabulator.

Of several ways the first is the plain one: the first alternative, with what `?` makes optional, without what `*`
repeats.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from edgeguard.errors import did_you_mean

MAX_DEPTH = 50  # groups in groups
_PLAIN_ESCAPES = {"n": "\n", "t": "\t"}
_SPECIAL = "\\(){}|?*+"
_PLACE = re.compile(r"\{([^{}=:]*)(?::=([^{}|]*)|=([^{}]*))?\}")


@dataclass(frozen=True)
class Label:
    """One thing that a field can say. `forms` are how answers write it, the first is the plain one."""

    name: str
    forms: tuple[str, ...]


@dataclass(frozen=True)
class Field:
    """What an answer says of one matter: exactly one of its labels in each place of the pattern."""

    name: str
    labels: tuple[Label, ...]

    def label(self, name: str) -> Label | None:
        """The label of that name."""
        return next((label for label in self.labels if label.name == name), None)


@dataclass(frozen=True)
class Text:
    """Text that stands for itself."""

    text: str


@dataclass(frozen=True)
class Choose:
    """`{field}`, `{field=a|b}`: one of these labels of a field, in one of its forms."""

    field: Field
    labels: tuple[Label, ...]


@dataclass(frozen=True)
class Say:
    """`{field:=a}`: no text; whoever reads on from here has said the label."""

    field: Field
    label: Label


@dataclass(frozen=True)
class Series:
    """One part after the other."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Either:
    """One of the parts."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Repeat:
    """The part `least` times (0 or 1) or more: `?` once at most, `*` and `+` without end."""

    part: Node
    least: int
    endless: bool


@dataclass(frozen=True)
class Open:
    """`...`: any text, or none."""

    at: int = field(default=0, compare=False)


Node = Text | Choose | Say | Series | Either | Repeat | Open


class PatternMistake(Exception):
    """A mistake at a character of the pattern, counted from 0."""

    def __init__(self, at: int, message: str) -> None:
        super().__init__(message)
        self.at = at


def parse_pattern(text: str, fields: Mapping[str, Field]) -> Node:
    """The pattern that `text` writes over these fields, by name. Raises PatternMistake."""
    reader = _Reader(text, fields)
    node = reader.either(0)
    if reader.at < len(text):  # only a parenthesis ends `either` early
        raise PatternMistake(reader.at, '")" closes no "("; write \\) for a parenthesis of the answer')
    for end in _ends_inside(node, last=True):
        raise PatternMistake(
            end.at, '"..." is free text, and only the end of an answer can be free; write \\. for dots'
        )
    return node


def nodes(node: Node) -> Iterator[Node]:
    """The node and all inside it, in the order they are written."""
    yield node
    match node:
        case Series(parts) | Either(parts):
            for part in parts:
                yield from nodes(part)
        case Repeat(part):
            yield from nodes(part)


def _ends_inside(node: Node, *, last: bool) -> Iterator[Open]:
    """The open ends with something behind them."""
    match node:
        case Open() if not last:
            yield node
        case Series(parts):
            for part in parts[:-1]:
                yield from _ends_inside(part, last=False)
            if parts:
                yield from _ends_inside(parts[-1], last=last)
        case Either(parts):
            for part in parts:
                yield from _ends_inside(part, last=last)
        case Repeat(part, endless=endless):
            yield from _ends_inside(part, last=last and not endless)


class _Reader:
    """Recursive descent: each method reads its part from `at` on."""

    def __init__(self, text: str, fields: Mapping[str, Field]) -> None:
        self.text, self.fields, self.at = text, fields, 0

    def either(self, depth: int) -> Node:
        parts = [self.sequence(depth)]
        while self.text.startswith("|", self.at):
            self.at += 1
            parts.append(self.sequence(depth))
        return parts[0] if len(parts) == 1 else Either(tuple(parts))

    def sequence(self, depth: int) -> Node:
        parts: list[Node] = []
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            part = self.repeated(self.part(depth))
            if isinstance(part, Text) and parts and isinstance(parts[-1], Text):
                parts[-1] = Text(parts[-1].text + part.text)
            else:
                parts.append(part)
        return parts[0] if len(parts) == 1 else Series(tuple(parts))

    def repeated(self, part: Node) -> Node:
        sign = self.text[self.at : self.at + 1]
        if not sign or sign not in "?*+":
            return part
        self.at += 1
        if (again := self.text[self.at : self.at + 1]) and again in "?*+":
            raise PatternMistake(
                self.at, f'"{again}" after "{sign}" repeats nothing; write \\{again} for the character'
            )
        return Repeat(part, least=1 if sign == "+" else 0, endless=sign != "?")

    def part(self, depth: int) -> Node:
        at, character = self.at, self.text[self.at]
        if character == "(":
            return self.group(depth)
        if character == "{":
            return self.place()
        if character == "\\":
            return self.escaped()
        if character in _SPECIAL:
            before = "nothing stands before it to repeat" if character in "?*+" else 'it closes no "{"'
            raise PatternMistake(at, f'"{character}": {before}; write \\{character} for the character')
        if self.text.startswith("...", at):
            self.at += 3
            return Open(at)
        self.at += 1
        return Text(character)

    def group(self, depth: int) -> Node:
        at = self.at
        if depth == MAX_DEPTH:
            raise PatternMistake(at, f"more than {MAX_DEPTH} groups stand in each other")
        self.at += 1
        inside = self.either(depth + 1)
        if self.at == len(self.text):
            raise PatternMistake(at, '"(" is not closed; write \\( for a parenthesis of the answer')
        self.at += 1
        return inside

    def escaped(self) -> Node:
        at, character = self.at, self.text[self.at + 1 : self.at + 2]
        if not character or (character.isalnum() and character not in _PLAIN_ESCAPES):
            raise PatternMistake(at, f"\\{character} is no escape; expected \\n, \\t, or \\ before a sign such as \\(")
        self.at += 2
        return Text(_PLAIN_ESCAPES.get(character, character))

    def place(self) -> Choose | Say:
        at = self.at
        match = _PLACE.match(self.text, at)
        if match is None:
            raise PatternMistake(at, '"{" begins no field; expected {field}, {field=label|label} or {field:=label}')
        name, said, chosen = match.groups()
        if name not in self.fields:
            known = ", ".join(self.fields)
            raise PatternMistake(at, f"there is no field {name!r}{did_you_mean(name, self.fields)}; known are {known}")
        found = self.fields[name]
        self.at = match.end()
        if said is not None:
            return Say(found, self.label(at, found, said))
        if chosen is None:
            return Choose(found, found.labels)
        names = chosen.split("|")
        if len(set(names)) < len(names):
            raise PatternMistake(at, f"{match[0]} has a label twice")
        return Choose(found, tuple(self.label(at, found, name) for name in names))

    def label(self, at: int, of: Field, name: str) -> Label:
        found = of.label(name)
        if found is None:
            known = [label.name for label in of.labels]
            raise PatternMistake(
                at, f"field {of.name} has no label {name!r}{did_you_mean(name, known)}; it has {', '.join(known)}"
            )
        return found
