"""Ground truth: what the fields of a file's records say, in a taxonomy's labels, joined to scores.

A file either says which categories hold, or only safe or unsafe, which is not "no category": the two never mix.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgeguard.errors import InputError
from edgeguard.evaluation.label_map import DEFAULT_MAPS, LabelMap
from edgeguard.evaluation.table import ScoreTable
from edgeguard.rows.readers import AS_IT_IS, Reading, read_fields
from edgeguard.rows.record import Id, Record
from edgeguard.rows.results import holds_results
from edgeguard.rows.values import readable_id

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class TruthRow:
    """What a file says of one record.

    labels   those that hold: "unsafe", and the codes behind it; () is safe; None where it does not say
    problem  why it does not say, where that is a mistake
    """

    id: Id
    labels: tuple[str, ...] | None
    problem: InputError | None = None


@dataclass(frozen=True)
class Truth:
    """What a file says of its records, in their order.

    labels            "unsafe" and the taxonomy's codes
    names_categories  whether it says which codes hold; else only safe or unsafe
    label_map         how it was read
    counts            their name → how many records have it
    """

    where: str
    labels: tuple[str, ...]
    rows: tuple[TruthRow, ...]
    names_categories: bool
    label_map: LabelMap
    counts: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.rows)


def read_truth(
    rows: Iterable[Mapping[str, object] | None],
    labels: Sequence[str],
    *,
    label_map: LabelMap | None = None,
    where: str = "the file",
) -> Truth | None:
    """The truth of records from their fields; None where no record has any.

    rows       the fields of each record; None for one that could not be read
    labels     "unsafe" and the taxonomy's codes
    label_map  None: `labels`, else `label` (1 is unsafe), else `is_safe`, in the taxonomy's own names

    Raises InputError where the map does not fit the file or the taxonomy, and where some records say categories and
    others only "unsafe". What a single record says wrong is kept with it, and raised where the record is needed.
    """
    maps = DEFAULT_MAPS if label_map is None else (label_map,)
    wanted = {name for one in maps for name in (*one.fields, one.id)}  # the texts are not kept
    kept = [None if fields is None else {k: v for k, v in fields.items() if k in wanted} for fields in rows]
    chosen = next((m for m in maps if any(fields and m.value(fields) is not None for fields in kept)), None)
    if chosen is None:
        if label_map is not None:
            raise InputError(f"{where}: no record has {', '.join(map(repr, label_map.fields))}, which the map names")
        return None
    if chosen.field is None:
        _check_columns(chosen, kept, where)
    known, counts = _known(chosen, labels, where), Counter[str]()
    found = []
    for number, fields in enumerate(kept, 1):
        id_ = None if fields is None else readable_id(fields.get(chosen.id))
        try:
            if fields is None:
                raise InputError("cannot be read")
            names = _names(chosen.value(fields), known, labels, chosen.missing)
        except InputError as error:
            problem = InputError(f"{where}: record {number} (id {id_!r}) {error}", kind=error.kind)
            found.append(TruthRow(id_, None, problem))
            continue
        counts.update(set(names or ()))
        found.append(TruthRow(id_, None if names is None else _held(names, known, labels)))
    return Truth(where, tuple(labels), tuple(found), _names_categories(found, chosen, where), chosen, counts)


def find_truth(
    source: Path,
    labels: Sequence[str],
    *,
    file: Path | None = None,
    label_map: LabelMap | None = None,
    reading: Reading = AS_IT_IS,
    limit: int | None = None,
) -> Truth | None:
    """The truth of the first `limit` records of `source`, from themselves or from another file; None where none is.

    reading  how `source` is read; another file is read as it is

    A record that can be scored and has no truth is said here, and not after hours of scoring. Raises InputError.
    """
    where = source if file is None else file
    raw = {"format": reading.format, "encoding": reading.encoding} if file is None else {}
    rows = (fields if isinstance(fields, Mapping) else None for _, fields in read_fields(where, **raw))
    truth = read_truth(rows, labels, label_map=label_map, where=str(where))
    if truth is not None and not holds_results(source):
        records = list(enumerate(reading.records(source, limit=limit)))
        good = [(record.id, place) for place, record in records if isinstance(record, Record)]
        ids, places = [id_ for id_, _ in good], [place for _, place in good]
        join(truth, ids, places, len(records), same_file=file is None)
    return truth


def _known(label_map: LabelMap, labels: Sequence[str], where: str) -> dict[str, tuple[str, ...]]:
    """Name → the labels it stands for: the map's, the taxonomy's own, and "safe" and "unsafe"."""
    for name, targets in label_map.names.items():
        if unknown := set(targets) - set(labels):
            raise InputError(
                f"{where}: the map has {name!r} for {sorted(unknown)[0]!r}; the taxonomy has {', '.join(labels[1:])}"
            )
    known: dict[str, tuple[str, ...]] = {"safe": (), **{code: (code,) for code in labels[1:]}}
    if not label_map.names_categories:
        known["unsafe"] = ("unsafe",)
    return known | dict(label_map.names)


def _check_columns(label_map: LabelMap, rows: Sequence[Mapping[str, object] | None], where: str) -> None:
    """A column that no record has is a mistake in the map, and not "never holds"."""
    for name in label_map.names:
        if not any(fields and name in fields for fields in rows):
            raise InputError(f"{where}: no record has {name!r}, which the map names as a column")


def _names(
    value: object, known: Mapping[str, tuple[str, ...]], labels: Sequence[str], missing: bool | None
) -> tuple[str, ...] | None:
    """`names_in`, all of them known. Raises InputError."""
    names = names_in(value, known, missing=missing)
    if unknown := [name for name in names or () if name not in known]:
        raise InputError(
            f"has the label {unknown[0]!r}; the taxonomy has {', '.join(labels[1:])}", kind="unknown_label"
        )
    return names


def _held(names: Sequence[str], known: Mapping[str, tuple[str, ...]], labels: Sequence[str]) -> tuple[str, ...]:
    """The labels that hold: "unsafe" wherever a name stands for any."""
    held = {label for name in names for label in known[name]}
    return tuple(label for label in labels if label in held or (label == "unsafe" and held))


def names_in(
    value: object, known: Mapping[str, tuple[str, ...]], *, missing: bool | None = None
) -> tuple[str, ...] | None:
    """The names that a field holds; None where it holds nothing.

    A list of names; an object of names with true or false, 1 or 0; a class, also as a number or true; a text with
    one name, several between `,`, `;` or `|`, or JSON of any of these. Raises InputError that says what is unclear.
    """
    match value:
        case None | "":
            return None
        case bool():
            return (str(value).lower(),)
        case int() | float():
            return None if value != value else (str(int(value) if float(value).is_integer() else value),)
        case str():
            return _names_in_text(value.strip(), known, missing)
        case Mapping():
            return tuple(str(name) for name, flag in value.items() if _holds(str(name), flag, missing))
        case list() | tuple() if all(isinstance(name, str) for name in value):
            names = tuple(name.strip() for name in value)
            if "" in names or ("safe" in names and len(set(names)) > 1):
                raise InputError(f'has the labels {", ".join(map(repr, names))}; expected "safe" alone, or names')
            return names
    raise InputError(f"has {value!r:.60} for labels; expected names, an object of names with true or false, or a class")


def _names_in_text(text: str, known: Mapping[str, tuple[str, ...]], missing: bool | None) -> tuple[str, ...] | None:
    if not text:
        return None
    if text in known:
        return (text,)
    if text[0] in "[{":
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            raise InputError(f"has labels that are no JSON: {text:.60}") from None
        return names_in(value, known, missing=missing)
    if text.lower() in known:  # `True`, as Python writes CSV
        return (text.lower(),)
    if re.fullmatch(r"-?\d+\.0", text):  # as pandas writes whole numbers in CSV
        return (text.removesuffix(".0"),)
    return names_in(re.split("[,;|]", text), known)


def _holds(name: str, flag: object, missing: bool | None) -> bool:
    """Whether a column or key says that its name holds. Raises InputError."""
    text = "" if flag is None or flag != flag else str(flag).strip().lower()
    if text in ("1", "1.0", "true"):
        return True
    if text in ("0", "0.0", "false") or (text == "" and missing is False):
        return False
    if text == "":
        raise InputError(f"does not say {name!r}; a labels map with `missing = false` counts that as not holding")
    raise InputError(f"has {flag!r:.60} for {name!r}; expected true or false, 1 or 0")


def _names_categories(rows: Sequence[TruthRow], label_map: LabelMap, where: str) -> bool:
    """Whether the rows say which categories hold. Raises InputError where some do and others say only "unsafe"."""
    if label_map.names_categories:
        return True
    bare = next((n for n, row in enumerate(rows, 1) if row.labels == ("unsafe",)), None)
    named = next((n for n, row in enumerate(rows, 1) if row.labels and len(row.labels) > 1), None)
    if bare and named:
        raise InputError(
            f'{where}: record {bare} says "unsafe" and no category, record {named} says '
            f"{', '.join((rows[named - 1].labels or ())[1:])}; name the categories of all records, or of none"
        )
    if bare or named:
        return named is not None
    return not label_map.names  # all are safe: in a field of categories none holds, of a verdict nothing is known


# To scores


def join(truth: Truth, ids: Sequence[Id], places: Sequence[int], n_records: int, *, same_file: bool) -> Bools:
    """(n, n_labels) the truth of n scored records; (n, 1) where the file says only safe or unsafe.

    places     0-based, in the input of n_records records, those counted that could not be scored
    same_file  whether the truth was read from that input: then by place, else by id, by place where there are no ids

    Records of the file that were not scored are left out. Raises InputError that names a record without a truth.
    """
    at = list(places) if same_file else _places_of(truth.where, truth.rows, ids, places, n_records)
    rows = [truth.rows[place] for place in at]
    for row in rows:
        if row.problem is not None:
            raise row.problem
    without = [i for i, row in enumerate(rows) if row.labels is None]
    if without:
        i = without[0]
        raise InputError(
            f"{truth.where}: record {at[i] + 1} (id {rows[i].id!r}) has no labels, and {len(without)} of {len(rows)} "
            'like it; give each its labels, [] or "safe" where none holds'
        )
    y_true = np.array([[label in (row.labels or ()) for label in truth.labels] for row in rows], dtype=np.bool_)
    y_true = y_true.reshape(len(rows), len(truth.labels))
    return y_true if truth.names_categories else y_true[:, :1]


def places_in(
    where: str, rows: Sequence[Mapping[str, object] | None], ids: Sequence[Id], places: Sequence[int], n_records: int
) -> list[int]:
    """Where scored records are among the rows of a file, joined as `join` does. Raises InputError."""
    keys = [TruthRow(None if fields is None else readable_id(fields.get("id")), ()) for fields in rows]
    return _places_of(where, keys, ids, places, n_records)


def _places_of(
    where: str, rows: Sequence[TruthRow], ids: Sequence[Id], places: Sequence[int], n_records: int
) -> list[int]:
    """Where the scored records are in the file of the truth."""
    by_id: dict[str, int] = {}
    for place, row in enumerate(rows):
        if row.id is not None:
            first = by_id.setdefault(str(row.id), place)
            if rows[first].labels != row.labels:
                raise InputError(
                    f"{where}: records {first + 1} and {place + 1} have the id {row.id!r} and other labels"
                )
    if by_id and all(id_ is not None for id_ in ids):
        missing = [id_ for id_ in ids if str(id_) not in by_id]
        if missing:
            raise InputError(
                f"{where} has no record of id {missing[0]!r} ({len(missing)} of {len(ids)} are missing); "
                "give the labels of these scores"
            )
        return [by_id[str(id_)] for id_ in ids]
    if len(rows) != n_records:
        raise InputError(
            f"{where} has {len(rows)} records, {n_records} were read to be scored; without ids they are joined "
            "in order, which these numbers forbid"
        )
    return list(places)


def with_truth(table: ScoreTable, truth: Truth, *, same_file: bool = False) -> ScoreTable:
    """The table with its truth, joined as `join` does."""
    n_records = len(table) + len(table.failed)
    return replace(table, truth=join(truth, table.ids, table.places.tolist(), n_records, same_file=same_file))


def described(truth: Truth) -> list[str]:
    """What was read as what, a line each; nothing where the file speaks the taxonomy's names."""
    label_map, lines = truth.label_map, []
    if label_map not in DEFAULT_MAPS:
        stands_for = {name: ", ".join(targets) or "safe" for name, targets in label_map.names.items()}
        shown = {name: f"{name} → {what} ({truth.counts.get(name, 0)})" for name, what in stands_for.items()}
        apart = {name for name, what in stands_for.items() if truth.names_categories and what in ("unsafe", "safe")}
        lines.append(f"{truth.where}: mapped: {'; '.join(shown[name] for name in shown if name not in apart)}")
        if apart:
            named = "; ".join(shown[name] for name in shown if name in apart)
            lines.append(f"{truth.where}: left out of the categories: {named}")
    if not truth.names_categories:
        fields = ", ".join(f"`{name}`" for name in label_map.fields)
        lines.append(f"{truth.where}: {fields} says safe or unsafe alone: only the verdict can be held against it")
    return lines
