"""Readers: a file of any format that we know in, one Record or Failure for each of its records out, in order.

A place that holds no scorable record becomes a `Failure` and the next one is read: nothing is dropped. Memory does not
grow with the input, but for some 15 bytes an id to find duplicates.

A new format is a module beside this one that gives a `Row` for each record, and a line in `_rows` and `_recognised`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO

from edgeguard.errors import InputError, RecordError
from edgeguard.rows import csv, json_array, jsonl, parquet
from edgeguard.rows.ids import without_duplicates
from edgeguard.rows.record import Failure, Record, failure_of
from edgeguard.rows.row import Row
from edgeguard.rows.shapes import CONTENT, USUAL, Fields, check_names, check_usual_names, id_of, lookalike, make_record
from edgeguard.rows.streams import MAX_RATIO, Opened, opened
from edgeguard.rows.values import shown

FORMATS = ("jsonl", "json", "csv", "tsv", "parquet")

_ENDINGS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
_ACCEPTED = (
    "JSONL (.jsonl, .ndjson), a JSON array (.json), CSV (.csv), TSV (.tsv) or Parquet (.parquet), "
    "each also with .gz, .bz2, .xz or .zst"
)
_REQUEST = ("custom_id", "body")  # of OpenAI's Batch
_BESIDE = ("id", *_REQUEST)  # what a record may have besides its content
_OBJECT_WITH_LIST = re.compile(rb'\s*\{\s*"([^"\\]{1,100})"\s*:\s*\[\s*(?:\{|$)')
_PEEKED = 10  # records that must all have the same trouble with names before the file is said to have it
_OF_NAMES = ("no_such_field", "unnamed_field", "unnamed_pair")  # kinds that are as a rule a whole file's


def read_records(
    source: str | Path | BinaryIO,
    *,
    format: str | None = None,
    fields: Fields = USUAL,
    encoding: str | None = None,
    strict: bool = False,
    max_ratio: int = MAX_RATIO,
    limit: int | None = None,
) -> Iterator[Record | Failure]:
    """The records of a file in their order, one `Record` or `Failure` for each, at most `limit`.

    source    a path, "-" for stdin, or an open binary stream (left open)
    format    one of FORMATS; None recognises it by content, then by the name's ending. Compression is always undone
    fields    the names of the fields, or columns, that hold a record
    encoding  of text without a byte order mark, such as "cp1252"; None: UTF-8
    strict    what guards do not judge (system turns, images) is an error, not left out
    max_ratio  bytes that a compressed file, Parquet too, may hold for each of its own, behind the first 64 MiB

    Raises InputError, at the first `next()` or where the file breaks off, and ValueError for a format or encoding that
    is not known. Memory stays flat, but for 16 bytes and some slack for each id seen.
    """
    with ExitStack() as stack:
        file, kind = _opened(source, format, encoding, stack, max_ratio)
        rows = _rows(file, kind, stack, partial(_record_columns, file.where, fields), max_ratio)
        if kind in ("csv", "tsv"):
            rows = (row._replace(fields=_without_empty_cells(row.fields, fields)) for row in rows)
        records = (_record(row, file.where, fields, strict) for row in rows)
        yield from islice(without_duplicates(records, file.where), limit)


@dataclass(frozen=True)
class Reading:
    """How the records of a file are read, as one value: the keywords of `read_records`."""

    format: str | None = None
    fields: Fields = USUAL
    encoding: str | None = None
    strict: bool = False
    max_ratio: int = MAX_RATIO

    def records(self, source: str | Path | BinaryIO, *, limit: int | None = None) -> Iterator[Record | Failure]:
        """`read_records` of a file."""
        return read_records(source, **vars(self), limit=limit)

    def check(self, source: str | Path) -> None:
        """Raises InputError for what is wrong with a file as a whole, as far as its first records tell."""
        peeked(self.records(source))


AS_IT_IS = Reading()


def read_fields(
    source: str | Path | BinaryIO,
    *,
    format: str | None = None,
    encoding: str | None = None,
    names: Collection[str] | None = None,
) -> Iterator[tuple[int, Mapping[str, object] | Failure]]:
    """(line, fields) of each record as the file has them, whatever they mean; a Failure for one that cannot be read.

    A cell of CSV is a string, "" where it is empty. `names` are columns to take of a file that can tell them apart;
    None: all. Otherwise as `read_records`, and the two give as many.
    """
    with ExitStack() as stack:
        file, kind = _opened(source, format, encoding, stack)
        for row in _rows(file, kind, stack, lambda columns: [c for c in columns if names is None or c in names]):
            if row.error is None:
                yield row.line, row.fields
            else:
                yield row.line, failure_of(row.error, id_of(row.fields), where=file.where, line=row.line)


def peeked(records: Iterator[Record | Failure]) -> Iterator[Record | Failure]:
    """The same records, after the first of them has been read: what is wrong with the file is said now.

    Raises InputError as they do, and where the first records all lack the field that was named, or have their content
    under names that were not.
    """
    head: list[Record | Failure] = []
    for record in islice(records, _PEEKED):
        head.append(record)
        if isinstance(record, Record) or record.kind not in _OF_NAMES:
            return chain(head, records)
    first = next(iter(head), None)
    if isinstance(first, Failure):
        raise InputError(first.message, kind=first.kind, **first.data)
    return chain(head, records)


def count_records(source: str | Path, *, format: str | None = None, encoding: str | None = None) -> int | None:
    """How many records `read_records` will give, for a progress bar; None for stdin, pipes and compressed files.

    Reads a file once without parsing it. Malformed CSV can make it differ. Raises InputError.
    """
    if str(source) == "-" or not _is_plain_file(Path(source)):
        return None
    with ExitStack() as stack:
        file, kind = _opened(source, format, encoding, stack)
        if file.plain is None:
            return None
        if kind == "parquet":
            return stack.enter_context(parquet.opened_table(file.plain, file.where)).n_rows
        if kind == "json":
            return json_array.count(file.stream, file.where)
        return jsonl.count(file.stream) if kind == "jsonl" else csv.count(file.stream)


def _is_plain_file(path: Path) -> bool:
    try:
        return path.is_file() or not path.exists()  # a missing one is reported where it is opened
    except OSError:
        return True


# ---------------------------------------------------------------- formats


def _opened(
    source: str | Path | BinaryIO,
    format: str | None,
    encoding: str | None,
    stack: ExitStack,
    max_ratio: int = MAX_RATIO,
) -> tuple[Opened, str]:
    """The open file and its format."""
    if format is not None and format not in FORMATS:
        raise ValueError(f"format is {format!r}, expected one of {', '.join(FORMATS)}")
    file = stack.enter_context(opened(source, encoding=encoding, max_ratio=max_ratio))
    kind = format or _recognised(file)
    first = file.head.lstrip()[:1]
    if kind == "json" and first not in (b"[", b""):
        raise InputError(f"{file.where}: is no JSON array, it begins with {_beginning(file.head)}")
    return file, kind


def _recognised(file: Opened) -> str:
    """The format, by content and then by the name's ending. Raises InputError."""
    if file.is_parquet:
        return "parquet"
    first = file.head.lstrip()[:1]
    if first == b"{":
        _refuse_one_object(file)
        return "jsonl"
    if first == b"[" and file.ending not in (".jsonl", ".ndjson"):
        return "json"
    if file.ending in _ENDINGS:
        return _ENDINGS[file.ending]
    if not first:
        return "jsonl"  # nothing in, nothing out: `grep … | edgeguard score -` may find nothing
    raise InputError(
        f"{file.where}: the format is not recognised, it begins with {_beginning(file.head)}; expected {_ACCEPTED}",
        kind="format_not_recognised",
    )


def _refuse_one_object(file: Opened) -> None:
    """Raises InputError for one JSON object over several lines, with the records in a list inside."""
    found = _OBJECT_WITH_LIST.match(file.head)
    if found is not None and b"\n" in found.group():
        key = found[1].decode("utf-8", "replace")
        raise InputError(
            f"{file.where}: is one JSON object with a list under {shown(key)}, expected the list alone, or one object "
            f"a line; take it out: jq '.[{shown(key)}]' data.json > list.json"
        )


def _beginning(head: bytes) -> str:
    return shown(head[:60].decode("utf-8", "replace"))


def _rows(
    file: Opened,
    kind: str,
    stack: ExitStack,
    choose: Callable[[list[str]], list[str]],
    max_ratio: int = MAX_RATIO,
) -> Iterator[Row]:
    """The rows of an open file. `choose` is shown the columns of a table, and says which of them are wanted."""
    match kind:
        case "jsonl":
            return jsonl.rows(file.stream, encoding=file.encoding)
        case "json":
            return json_array.rows(file.stream, file.where, encoding=file.encoding)
        case "parquet":
            table = stack.enter_context(parquet.opened_table(file.plain or file.stream, file.where))
            return parquet.rows(table, choose(table.columns), file.where, max_ratio=max_ratio)
        case _:
            delimiter = "\t" if kind == "tsv" else None
            cells = csv.read(file.stream, file.where, encoding=file.encoding, delimiter=delimiter)
            choose(cells.columns)
            return cells.rows


# ---------------------------------------------------------------- records


def _record(row: Row, where: str, fields: Fields, strict: bool) -> Record | Failure:
    try:
        if row.error is not None:
            raise row.error
        return make_record(row.fields, fields=fields, strict=strict, line=row.line)
    except RecordError as error:
        return failure_of(error, id_of(row.fields, fields), where=where, line=row.line)


def _record_columns(where: str, fields: Fields, columns: list[str]) -> list[str]:
    """The columns that records are made of, or that could be meant to be theirs. Raises InputError where none are."""
    _check_columns(columns, where, fields)
    return record_columns(columns, fields)


def record_columns(columns: Collection[str], fields: Fields) -> list[str]:
    """Those of a table's columns that records are made of, or that could be meant to be theirs."""
    tops = {name.partition(".")[0] for name in fields.named.values()}
    wanted = {*CONTENT, *_BESIDE, *fields.named.values(), *tops}
    return [name for name in columns if name in wanted or lookalike("response", [name]) is not None]


def _check_columns(columns: list[str], where: str, fields: Fields) -> None:
    """Raises InputError where no column can hold a record's content, or two have one name."""
    inside = {name for name in fields.named.values() if name.partition(".")[0] in columns}  # as far as columns tell
    try:
        check_names(dict.fromkeys((*columns, *inside), ""), fields)
        if not fields.names_content and not set(_REQUEST) <= set(columns):
            check_usual_names(columns)
    except RecordError as error:
        has = ", ".join(map(shown, columns[:8])) + (", …" if len(columns) > 8 else "")
        kind = "no_content_column" if error.kind == "missing_field" else error.kind
        raise InputError(f"{where}: {error}; the columns are {has or 'none'}", kind=kind, **error.data) from None
    for name in (*CONTENT, *_BESIDE, *fields.named.values()):
        if columns.count(name) > 1:
            raise InputError(f"{where}: the column {shown(name)} is there twice; rename or remove one")


def _without_empty_cells(cells: Mapping[str, object], fields: Fields) -> dict[str, object]:
    """CSV has no null, so an empty cell is one; but a row without any content has an empty text."""
    found: dict[str, object] = {name: cell if cell != "" else None for name, cell in cells.items()}
    named = fields.text or fields.messages or fields.prompt or ("prompt" if fields.response else None)
    content = [name for name in ((named,) if named else CONTENT) if name in cells and name != "response"]
    if content and all(found[name] is None for name in content):
        found[content[0]] = ""
    return found
