"""Outputs as rows of bytes, and what can be kept of an output that a run has left behind.

After `kill -9` a file holds whole rows and at most one torn one at its end. What the run has noted beside it
(`rows.run`) tells which rows are its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NamedTuple

from edgeguard.errors import OutputError
from edgeguard.rows import csv
from edgeguard.rows.record import Id
from edgeguard.rows.run import NO_RECORD, OutputRun, Settings
from edgeguard.rows.schema import IDENTITY, ResultRow, columns, flatten, to_json_line, typed, unflatten


class SeenRow(NamedTuple):
    """What a row already written tells. CSV and Parquet give every id as a string, and CSV "" as None.

    unsafe  None for an error row
    record  the digest of the record that it was made of
    """

    id: Id
    is_error: bool
    flagged: bool = False
    unsafe: float | None = None
    record: str = NO_RECORD


@dataclass(frozen=True)
class Encoding:
    """How rows become lines of bytes, and back.

    header   the first line, b"" for none
    quoted   a row may go on over a line end inside quotes
    encode   the row's bytes, with their line end
    decode   the row in such bytes; ValueError where there is none
    """

    header: bytes
    quoted: bool
    encode: Callable[[ResultRow], bytes]
    decode: Callable[[bytes], ResultRow]


def as_json() -> Encoding:
    """JSON lines."""
    return Encoding(b"", False, json_bytes, _json_row)


def as_journal(labels: Sequence[str]) -> Encoding:
    """Flat rows as JSON: a finished Parquet file can be turned back into its journal."""
    names = columns(labels)
    return Encoding(b"", False, lambda row: json_bytes(flatten(row, labels)), partial(_journal_row, names))


def as_csv(labels: Sequence[str]) -> Encoding:
    """CSV with its header."""
    names = columns(labels)
    return Encoding(
        csv.encoded(names),
        True,
        lambda row: csv.encoded([*flatten(row, labels).values()]),
        partial(_csv_row, names),
    )


def json_bytes(row: ResultRow) -> bytes:
    """One line of JSON with its end."""
    # backslashreplace: a lone surrogate becomes \udc80, which is its JSON escape
    return to_json_line(row).encode("utf-8", "backslashreplace") + b"\n"


def seen(row: ResultRow) -> SeenRow:
    """What a row that is there already tells. ValueError where it is no result row."""
    if "id" not in row or not ("error" in row or row.keys() >= set(IDENTITY)):
        raise ValueError("not a result row")
    if "error" in row:
        return SeenRow(row["id"], True)
    return SeenRow(row["id"], False, row.get("flagged") is True, row.get("unsafe"))


def _json_row(data: bytes) -> ResultRow:
    row = json.loads(data.decode("utf-8"))
    if not isinstance(row, Mapping):
        raise ValueError("not an object")
    return row


def _journal_row(names: Sequence[str], data: bytes) -> ResultRow:
    flat = _json_row(data)
    if list(flat) != names:
        raise ValueError("not a row with these columns")
    return unflatten(flat)


def _csv_row(names: Sequence[str], data: bytes) -> ResultRow:
    return unflatten(typed(dict(zip(names, csv.cells_of(data), strict=True))))


@dataclass(frozen=True)
class Found:
    """The whole rows of an existing output, its first `end` bytes."""

    end: int = 0
    n_rows: int = 0


def scan(path: Path, encoding: Encoding, run: OutputRun, format: str, settings: Settings) -> Found:
    """What can be kept of the file. Raises OutputError where the run that is noted beside it has not written it so.

    A torn row at the end is what a crash leaves, and it begins as a noted row does. Anything else that is no such row
    is damage, or somebody's file given by mistake: it is not cut off.
    """
    with open(path, "rb") as stream:
        header = stream.read(len(encoding.header))
        if header != encoding.header:
            if encoding.header.startswith(header):
                return Found()  # cut in the header, or empty
            raise OutputError(
                f"{path}: its header row is not the one of this taxonomy; choose another file",
                kind="other_output",
            )
        rows = split(stream, encoding, 1 + header.count(b"\n"))
        first = next(rows, None)
        if first is None:
            return Found(len(header))
        check_run(path, run, format, settings, lambda: _looks_right(path, encoding, *first))
        return _kept(path, len(header), chain((first,), rows), run, encoding)


def check_run(path: Path, run: OutputRun, format: str, settings: Settings, look: Callable[[], None]) -> None:
    """Raises OutputError where no run is noted, or one that could make other rows than this one will.

    look  raises OutputError where the output is none of ours: then that is what is wrong
    """
    if run.noted is None:
        look()
        raise OutputError(
            f"{path}: which run wrote it is not known, since {run.path.name} is not beside it; nothing can be added",
            kind="no_run",
        )
    if changed := run.noted.changed(format, settings):
        raise OutputError(
            f"{path}: another run wrote its rows: {', '.join(changed)}; resume with the same, or write to another file",
            kind="other_run",
        )


def _looks_right(path: Path, encoding: Encoding, number: int, data: bytes) -> None:
    try:
        seen(encoding.decode(data))
    except (ValueError, RecursionError):
        raise _not_a_row(path, number, data) from None


def _kept(path: Path, end: int, rows: Iterator[tuple[int, bytes]], run: OutputRun, encoding: Encoding) -> Found:
    entries = run.entries()
    n_rows = 0
    for number, data in rows:
        entry = next(entries, None)
        if entry is None or not entry.is_of(data):
            after = next(rows, None)
            if after is None and (not data.strip(b"\0") or (entry is not None and entry.began(data.rstrip(b"\0")))):
                break
            raise _not_a_row(path, number, data)
        end, n_rows = end + len(data), n_rows + 1
    return Found(end, n_rows)


def split(stream: BinaryIO, encoding: Encoding, number: int) -> Iterator[tuple[int, bytes]]:
    """Rows with their line ends, each with the number of its first line; the last may be torn."""
    for data in stream:
        first = number
        while encoding.quoted and data.count(b'"') % 2 and (more := stream.readline()):
            data += more
        number += max(1, data.count(b"\n"))
        yield first, data


def _not_a_row(path: Path, number: int, data: bytes) -> OutputError:
    beginning = ascii(data[:60].decode("utf-8", "replace"))
    return OutputError(
        f"{path}:{number}: is not a result row of edgeguard, or not the one that its run noted: {beginning}; "
        "remove it and what follows to resume, or choose another file",
        kind="other_output",
    )
