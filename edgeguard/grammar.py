"""What a guard may answer, and how a decision is read off its answers: the tables [answer], [field] and [readout].

[answer]
pattern = '{verdict=safe}|{verdict=unsafe}(\\n{category}(, {category})*)?'

[field.verdict]
safe = ["safe"]
unsafe = ["unsafe"]
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from edgeguard.automaton import TooManyStates, ambiguity, build
from edgeguard.errors import ProfileError, did_you_mean
from edgeguard.pattern import Choose, Field, Label, Node, PatternMistake, Say, nodes, parse_pattern
from edgeguard.tomlfile import TomlTable, show

Judged = Literal["user", "assistant"]

CATEGORY, VERDICT = "category", "verdict"  # the taxonomy's field; the one that decides where nothing is said
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_EXAMPLE = r"pattern = '{verdict=safe}|{verdict=unsafe}(\n{category}(, {category})*)?'"
_OLD_KEYS = ("lead", "safe", "unsafe", "labels", "before_labels", "separator", "end")


@dataclass(frozen=True)
class Readout:
    """How a decision is read off the fields of an answer.

    verdict   the field that decides
    category  the field whose labels are the taxonomy's codes; None where the answer names none
    unsafe    (strictness, the labels of `verdict` that mean unsafe under it); one pair of "" where there is one meaning
    safe      the labels that mean safe under all; one in no list, such as N/A, means neither
    default   the strictness to read with where none is chosen
    """

    verdict: str
    category: str | None
    unsafe: tuple[tuple[str, tuple[str, ...]], ...]
    safe: tuple[str, ...]
    default: str = ""

    def strictness(self, chosen: str | None) -> str:
        """The chosen one, or the default. Raises ProfileError for one that there is not."""
        known = [name for name, _ in self.unsafe]
        if chosen is None or chosen in known:
            return self.default if chosen is None else chosen
        choices = ", ".join(filter(None, known)) or "none to choose from"
        raise ProfileError(f"there is no strictness {chosen!r}; the profile has {choices}", kind="unknown_strictness")

    def sides(self, strictness: str) -> dict[str, str]:
        """Label of the verdict → "unsafe" or "safe". What only another strictness calls unsafe is safe."""
        unsafe = dict(self.unsafe)
        sometimes = [label for labels in unsafe.values() for label in labels]
        return {
            **dict.fromkeys([*self.safe, *sometimes], "safe"),
            **dict.fromkeys(unsafe[strictness], "unsafe"),
        }

    def row(self) -> dict[str, Any]:
        """As one JSON object."""
        return {
            "verdict": self.verdict,
            "category": self.category,
            "unsafe": {name: list(labels) for name, labels in self.unsafe},
            "safe": list(self.safe),
            "strictness": self.default,
        }

    def is_said_by(self, field: Field) -> bool:
        """Is this the verdict's field, and safe or unsafe all that it says?"""
        return field.name == self.verdict and len(field.labels) == len(self.sides(self.default)) == 2


@dataclass(frozen=True)
class AnswerGrammar:
    """What the guard may answer, and how it is read.

    pattern          as it is written
    parsed           what it means
    fields           those of the pattern; `category` is the first where the answer names categories
    user, assistant  the readout where the last turn is the user's, and where it is the assistant's
    """

    pattern: str
    parsed: Node = dataclasses.field(repr=False)
    fields: tuple[Field, ...]
    user: Readout
    assistant: Readout

    def readout(self, judged: Judged) -> Readout:
        """How to read an answer that judges a turn of the user or of the assistant."""
        return self.user if judged == "user" else self.assistant

    @property
    def reported(self) -> tuple[Field, ...]:
        """What answers say beside the decision: all but what one of the readouts says wholly, whoever is judged."""
        return tuple(
            field
            for field in self.fields
            if not all(field.name == r.category or r.is_said_by(field) for r in (self.user, self.assistant))
        )

    def judging(self, strictness: str) -> AnswerGrammar:
        """The same answers with one meaning of "unsafe". Raises ProfileError for one that there is not."""
        user, assistant = (
            replace(readout, default=readout.strictness(strictness)) for readout in (self.user, self.assistant)
        )
        return replace(self, user=user, assistant=assistant)

    def row(self) -> dict[str, Any]:
        """As one JSON object: the pattern, field → label → forms, and the readouts."""
        fields = {field.name: {label.name: list(label.forms) for label in field.labels} for field in self.fields}
        readouts = {judged: self.readout(judged).row() for judged in get_args(Judged)}
        return {"pattern": self.pattern, "fields": fields, "readout": readouts}


def read_grammar(top: TomlTable, codes: tuple[Label, ...]) -> AnswerGrammar:
    """The grammar in a profile's tables; `codes` are its categories, as labels. Raises ProfileError."""
    table = top.table("answer")
    if table is None:
        top.fail(None, "[answer] is missing; it says how the guard answers, such as safe and unsafe")
    for key in _OLD_KEYS:
        if key in table.values:
            table.fail(key, f"{key}: an answer is one pattern now; expected {_EXAMPLE} and a table [field.verdict]")
    table.only("pattern")
    fields = _read_fields(top, codes)
    parsed = _read_pattern(table, {field.name: field for field in fields})
    _check_places(top, parsed, fields)
    user, assistant = _read_readouts(top, fields, codes)
    _check_readings(table, parsed, fields, {user.verdict, assistant.verdict})
    return AnswerGrammar(table.text("pattern"), parsed, fields, user, assistant)


def _read_fields(top: TomlTable, codes: tuple[Label, ...]) -> tuple[Field, ...]:
    fields = [Field(CATEGORY, codes)] if codes else []
    table = top.table("field")
    for name in table.values if table else ():
        assert table is not None
        if not _NAME.fullmatch(name):
            table.fail(name, f"{show(name)} is no name of a field; expected letters, digits and _")
        if name == CATEGORY:
            table.fail(name, f"{CATEGORY} is the taxonomy's own field, whose labels are the [[category]] tables")
        own = table.table(name)
        assert own is not None
        fields.append(Field(name, _read_labels(own, codes)))
    return tuple(fields)


def _read_labels(table: TomlTable, codes: tuple[Label, ...]) -> tuple[Label, ...]:
    """Label → forms; or the taxonomy's, by `labels = "categories"`."""
    if table.values.get("labels") == "categories":
        table.only("labels")
        if not codes:
            table.fail("labels", "labels are the categories, and there is no [[category]]")
        return codes
    labels: list[Label] = []
    owner: dict[str, str] = {}  # form → label
    for name in table.values:
        if not name.isprintable() or not name.strip() or set(name) & set("{}=|:"):
            table.fail(name, f"{show(name)} is no name of a label; expected printable text without any of {{}}=|:")
        forms = table.texts(name)
        for form in forms:
            if form in owner:
                table.fail(name, f"{name} has {show(form)}, which is also a form of {owner[form]}")
            owner[form] = name
        labels.append(Label(name, forms))
    if not labels:
        table.fail(None, 'there are no labels; expected some, such as yes = ["yes"]')
    return tuple(labels)


def _read_pattern(table: TomlTable, fields: Mapping[str, Field]) -> Node:
    text = table.text("pattern")
    if text.endswith("\n"):
        table.fail_inside(
            "pattern",
            len(text) - 1,
            r"it ends with a line break; close the quotes behind the last character, or write '\n' if answers end so",
        )
    try:
        return parse_pattern(text, fields)
    except PatternMistake as mistake:
        table.fail_inside("pattern", mistake.at, str(mistake))


def _check_places(top: TomlTable, pattern: Node, fields: Sequence[Field]) -> None:
    """Refuse a label that no answer can say, and one without a form where answers are to write it."""
    written, said = set[tuple[str, str]](), set[tuple[str, str]]()
    for node in nodes(pattern):
        if isinstance(node, Choose):
            written.update((node.field.name, label.name) for label in node.labels)
        elif isinstance(node, Say):
            said.add((node.field.name, node.label.name))
    for field in fields:
        for i, label in enumerate(field.labels):
            message = ""
            if (field.name, label.name) not in written | said:
                message = f"{label.name} has no place in the pattern; write {{{field.name}}} where answers say it"
            elif not label.forms and (field.name, label.name) in written:
                message = f"{label.name} is an empty list; expected the forms that {{{field.name}}} stands for"
            if message and field.name == CATEGORY:
                top.tables("category")[i].fail(None, message)
            if message:
                TomlTable({}, ("field", field.name), top.source).fail(label.name, message)


def _read_readouts(top: TomlTable, fields: Sequence[Field], codes: tuple[Label, ...]) -> tuple[Readout, Readout]:
    table = top.table("readout") or TomlTable({}, ("readout",), top.source)
    known = ("verdict", "category", "unsafe", "safe", "strictness")
    table.only(*known, "assistant")
    own = table.table("assistant")
    user = _read_readout(table, fields, codes)
    if own is None:
        return user, user
    own.only(*known)
    assistant = _read_readout(TomlTable({**table.values, **own.values}, own.key, own.source), fields, codes)
    if [name for name, _ in assistant.unsafe] != [name for name, _ in user.unsafe]:
        own.fail("unsafe", "unsafe has other strictnesses than [readout] has; expected the same names")
    return user, assistant


def _read_readout(table: TomlTable, fields: Sequence[Field], codes: tuple[Label, ...]) -> Readout:
    named = {field.name: field for field in fields}
    verdict = table.text("verdict", VERDICT)
    if verdict not in named:
        table.fail(
            "verdict",
            f"there is no field {verdict!r}{did_you_mean(verdict, named)} to tell safe from unsafe; expected a table "
            f"[field.{verdict}] and its place in the pattern, or verdict = another field's name",
        )
    category = table.text("category", CATEGORY) if codes else None
    if category is not None and (category not in named or named[category].labels is not codes):
        table.fail("category", f"category is {show(category)}; expected a field whose labels are the categories")
    unsafe, default = _read_unsafe(table, named[verdict])
    sometimes = {label for _, labels in unsafe for label in labels}
    others = tuple(label.name for label in named[verdict].labels if label.name not in sometimes)
    safe = _labels_of(table, "safe", named[verdict], others)
    if both := sometimes & set(safe):
        table.fail("safe", f"safe has {show(min(both))}, which unsafe has too")
    return Readout(verdict, category, unsafe, safe, default)


def _read_unsafe(table: TomlTable, verdict: Field) -> tuple[tuple[tuple[str, tuple[str, ...]], ...], str]:
    """The labels that mean unsafe, under each strictness, and the strictness to use."""
    if not isinstance(table.values.get("unsafe"), dict):
        if "strictness" in table.values:
            table.fail("strictness", "strictness has no place where unsafe is one list; expected a table of lists")
        return (("", _labels_of(table, "unsafe", verdict, ("unsafe",))),), ""
    meanings = table.table("unsafe")
    assert meanings is not None
    if not meanings.values:
        table.fail("unsafe", "unsafe is an empty table; expected a list of labels for each strictness")
    default = table.one_of("strictness", tuple(meanings.values))
    return tuple((name, _labels_of(meanings, name, verdict, ())) for name in meanings.values), default


def _labels_of(table: TomlTable, key: str, field: Field, default: tuple[str, ...]) -> tuple[str, ...]:
    """Some labels of a field, at least one."""
    labels, known = table.texts(key, default), [label.name for label in field.labels]
    if not labels:
        table.fail(key, f"{key} is an empty list; expected labels of {field.name}: {', '.join(known)}")
    if unknown := next((label for label in labels if label not in known), None):
        table.fail(
            key,
            f"{key} has {show(unknown)}{did_you_mean(unknown, known)}, which field {field.name} has not; "
            f"expected some of {', '.join(known)}",
        )
    return labels


def _check_readings(table: TomlTable, pattern: Node, fields: Sequence[Field], verdicts: set[str]) -> None:
    """Refuse a pattern by which an answer cannot be read for certain."""
    said = [f"{field.name}={label.name}" for field in fields for label in field.labels]
    bit = {name: 1 << i for i, name in enumerate(said)}
    try:
        built = build(pattern, lambda field, label: bit[f"{field.name}={label.name}"])
        found = ambiguity(built)
    except TooManyStates:
        table.fail("pattern", "pattern has more ways than any answer needs; expected fewer labels, forms or groups")

    def names(bits: int) -> str:
        return " and ".join(name for name in said if bits & bit[name]) or "nothing"

    if early := built.start()[1]:
        table.fail("pattern", f"pattern says {names(early)} before any text; every answer would")
    for verdict in verdicts:
        labels = sum(bits for name, bits in bit.items() if name.startswith(f"{verdict}="))
        if both := built.said_with_another(labels):
            table.fail("pattern", f"pattern lets one answer say {names(both)}; expected one verdict an answer")
    if found is None:
        return
    answer = show(found.text.decode(errors="replace").replace("\n", "\\n"))
    if found.open:
        table.fail(
            "pattern",
            f"free text may follow the answer {answer}, and another reading goes on there; "
            "expected one way on: write what begins the free text",
        )
    table.fail(
        "pattern",
        f"the answer {answer} reads in two ways: it says {names(found.first)}, or {names(found.second)}; "
        "expected forms and separators that tell them apart",
    )
