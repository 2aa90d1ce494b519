"""Rows back from a file that `edgeguard score` wrote: JSONL, CSV or Parquet, told by content."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgeguard.errors import InputError, printable

_SCORE = "score_"  # of a column of a flat row
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
    try:
        with path.open("rb") as file:
            head = file.read(1 << 20)
    except OSError:
        return False
    if head.startswith(b"PAR1"):
        return "model_sha256" in _parquet_columns(path)
    first = head.partition(b"\n")[0]
    if not first.lstrip().startswith(b"{"):
        return b"model_sha256" in first and b"score_" in first
    try:
        row = json.loads(first)
    except ValueError:
        return False
    return isinstance(row, dict) and ("category_scores" in row or {"id", "error"} == row.keys())


def read_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """The rows as `edgeguard score` writes them as JSON, errors too, each checked. Raises InputError with its line."""
    try:
        with path.open("rb") as file:
            head = file.read(4)
        if head == b"PAR1":
            yield from _checked(path, _unflatten_all(_parquet(path)), "row")
        elif head.lstrip()[:1] == b"{":
            yield from _checked(path, _jsonl(path), "line")
        else:
            yield from _checked(path, _unflatten_all(_csv(path)), "row")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error.reason}; {_GO}") from None


def _jsonl(path: Path) -> Iterator[Mapping[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise InputError(f"{path}:{number}: is not JSON: {error}; {_GO}") from None


def _csv(path: Path) -> Iterator[Mapping[str, Any]]:
    with open(path, encoding="utf-8", newline="") as file:
        try:
            yield from csv.DictReader(file)
        except csv.Error as error:
            raise InputError(f"{path} is no CSV: {error}; {_GO}") from None


def _parquet(path: Path) -> Iterator[Mapping[str, Any]]:
    for batch in _parquet_file(path).iter_batches():
        yield from batch.to_pylist()


def _parquet_columns(path: Path) -> list[str]:
    return [str(name) for name in _parquet_file(path).schema_arrow.names]


def _parquet_file(path: Path) -> Any:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError:
        raise InputError(f"{path} is Parquet, which needs pyarrow; pip install 'edgeguard[parquet]'") from None
    try:
        return ParquetFile(path)
    except (ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path} is no whole Parquet file: {error}") from None


def _unflatten_all(rows: Iterator[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Flat rows as nested ones; CSV cells are strings, "" where there is nothing."""
    for flat in rows:
        if flat.get("error_type"):
            yield {
                "id": flat.get("id") or None,
                "error": {"type": flat["error_type"], "message": flat.get("error_message")},
            }
            continue
        row = {key: flat.get(key) for key in _NEEDED if key != "category_scores"} | {"id": flat.get("id") or None}
        row["calibrated"] = row["calibrated"] in (True, "true")
        scores = {key.removeprefix(_SCORE): value for key, value in flat.items() if key and key.startswith(_SCORE)}
        for where, key in [(row, k) for k in ("unsafe", "margin", "off_grammar")] + [(scores, k) for k in scores]:
            if isinstance(where[key], str):
                with suppress(ValueError):  # _checked names it
                    where[key] = float(where[key])
        yield row | {"category_scores": scores}


def _checked(path: Path, rows: Iterator[Any], unit: str) -> Iterator[Mapping[str, Any]]:
    labels: tuple[str, ...] | None = None
    for number, row in enumerate(rows, 1):
        where = f"{path}: {unit} {number}"
        if not isinstance(row, dict):
            raise InputError(f"{where} is no object; {_GO}")
        if isinstance(row.get("error"), dict):
            yield row
            continue
        missing = [key for key in _NEEDED if row.get(key) is None]
        if missing:
            raise InputError(f"{where} has no {missing[0]}; {_GO}")
        scores = row["category_scores"]
        if not isinstance(scores, dict) or not isinstance(row["calibrated"], bool):
            raise InputError(f"{where} is no result row; {_GO}")
        labels = labels or tuple(scores)
        if tuple(scores) != labels:
            raise InputError(f"{where} scores {', '.join(scores)}, the first row {', '.join(labels)}")
        for label, value in {"unsafe": row["unsafe"], "off_grammar": row["off_grammar"], **scores}.items():
            if not _is_number(value) or not 0 <= value <= 1:
                raise InputError(f"{where}: {printable(label)} is {value!r}; expected a probability")
        if not _is_number(row["margin"]):
            raise InputError(f"{where}: margin is {row['margin']!r}; expected a finite number")
        yield row


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
