"""Rows back from a file that `edgeguard score` wrote: JSONL, CSV or Parquet, compressed too, told by content."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from edgeguard.errors import InputError, RecordError, printable
from edgeguard.rows import csv, jsonl, parquet
from edgeguard.rows.row import Row
from edgeguard.rows.schema import is_flat, is_result, typed, unflatten
from edgeguard.rows.streams import Opened, opened
from edgeguard.rows.values import MAX_RECORD

MAX_ROW = 8 * MAX_RECORD  # a record's id stands in its row, six bytes a character where they are escaped
_NEEDED = (
    "unsafe",
    "margin",
    "category_scores",
    "off_grammar",
    "estimator",
    "calibrated",
    "guard",
    "profile",
    "model_sha256",
)
_GO = "give a file that `edgeguard score` wrote"


def holds_results(path: Path) -> bool:
    """Whether the file begins as one that `edgeguard score` wrote, and not as records to score."""
    if not path.is_file():
        return False  # stdin is read once
    try:
        with ExitStack() as stack:
            file = stack.enter_context(opened(path))
            if file.is_parquet:
                return is_flat(_table(file, stack).columns)
            if file.head.lstrip()[:1] != b"{":
                return is_flat(csv.read(file.stream, file.where, limit=MAX_ROW).columns)
            first = next(jsonl.rows(file.stream, limit=MAX_ROW), None)
            return first is not None and is_result(first.fields)
    except InputError:
        return False


def read_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """The rows as `edgeguard score` writes them as JSON, errors too, each checked. Ids of CSV and Parquet are strings.

    Raises InputError with the row's place.
    """
    with ExitStack() as stack:
        file = stack.enter_context(opened(path))
        rows, nested = _open_rows(file, stack)
        labels: tuple[str, ...] | None = None
        for row in rows:
            where = f"{file.where}:{row.line}"
            try:
                if row.error is not None:
                    raise row.error
                found = nested(row.fields)
            except (RecordError, ValueError) as error:
                raise InputError(f"{where}: {printable(str(error))}; {_GO}") from None
            _check(found, where)
            if "error" not in found:
                labels = _check_scores(found, labels, where)
            yield found


def _open_rows(file: Opened, stack: ExitStack) -> tuple[Iterator[Row], Callable[[Any], Mapping[str, Any]]]:
    """The file's rows, and what makes a nested row of the fields of one."""
    if file.is_parquet:
        table = _table(file, stack)
        return parquet.rows(table, table.columns, file.where), unflatten
    if file.head.lstrip()[:1] == b"{":
        return jsonl.rows(file.stream, limit=MAX_ROW), dict
    return csv.read(file.stream, file.where, limit=MAX_ROW).rows, lambda cells: unflatten(typed(cells))


def _table(file: Opened, stack: ExitStack) -> Any:
    return stack.enter_context(parquet.opened_table(file.plain or file.stream, file.where))


def _check(row: Mapping[str, Any], where: str) -> None:
    """Raises InputError for what is no result row."""
    if "error" in row:
        if not isinstance(row["error"], dict):
            raise InputError(f"{where}: is no result row; {_GO}")
        return
    missing = [key for key in _NEEDED if row.get(key) is None]
    if missing:
        raise InputError(f"{where}: has no {missing[0]}; {_GO}")
    if not isinstance(row["category_scores"], dict) or not isinstance(row["calibrated"], bool):
        raise InputError(f"{where}: is no result row; {_GO}")


def _check_scores(row: Mapping[str, Any], labels: tuple[str, ...] | None, where: str) -> tuple[str, ...]:
    """The row's labels, which are those of the first row. Raises InputError, for what is no probability too."""
    said = {f"{field}={label}": p for field, each in _fields(row, where).items() for label, p in each.items()}
    scores = {**row["category_scores"], **said}
    if labels is not None and tuple(scores) != labels:
        raise InputError(f"{where}: scores {', '.join(scores)}, the first row {', '.join(labels)}")
    for label, value in {"unsafe": row["unsafe"], "off_grammar": row["off_grammar"], **scores}.items():
        if not _is_number(value) or not 0 <= value <= 1:
            raise InputError(f"{where}: {printable(label)} is {value!r}; expected a probability")
    if not _is_number(row["margin"]):
        raise InputError(f"{where}: margin is {row['margin']!r}; expected a finite number")
    return tuple(scores)


def _fields(row: Mapping[str, Any], where: str) -> Mapping[str, Mapping[str, Any]]:
    """What answers said besides; {} in rows from before there were fields."""
    fields = row.get("fields", {})
    if not isinstance(fields, dict) or not all(isinstance(said, dict) for said in fields.values()):
        raise InputError(f"{where}: fields is {fields!r}; expected an object for each field")
    return fields


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
