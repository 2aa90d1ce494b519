"""Readers of JSONL, CSV and Parquet, gzip too: a file in, one Record or BadRecord a record, in order.

A place that holds no scorable record becomes a `BadRecord` and the next one is read: nothing is dropped.
Memory does not grow with the input, but for some 15 bytes an id to find duplicates.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import os
import re
import shutil
import sys
import tempfile
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from edgeguard.errors import InputError, RecordError, printable
from edgeguard.rows.record import (
    CONTENT_FIELDS,
    EXPECTED,
    MAX_RECORD,
    BadRecord,
    Record,
    build_record,
    parse_json,
    placed,
    readable_id,
    shown,
    too_large,
)

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

FORMATS = ("jsonl", "csv", "tsv", "parquet")

_EXTENSIONS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
_ACCEPTED = "JSONL (.jsonl, .ndjson, .json), CSV (.csv), TSV (.tsv) or Parquet (.parquet), each also with .gz"
_UTF8_BOM, _UTF16_BOMS = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")
_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"
_CHUNK = 64 * 1024


# ---------------------------------------------------------------- files


def read_records(
    source: str | Path | BinaryIO,
    *,
    format: str | None = None,
    text_field: str | None = None,
    limit: int | None = None,
) -> Iterator[Record | BadRecord]:
    """The records of a file in their order, one `Record` or `BadRecord` for each, at most `limit`.

    source      a path, "-" for stdin, or an open binary stream (left open)
    format      one of FORMATS; None recognises it by content, then by extension. gzip is always undone
    text_field  take the text from this field and ignore `text`, `prompt`, `response` and `messages`

    Raises InputError, at the first `next()` or where the file breaks off, and ValueError for an unknown
    format. Memory stays flat, but for 16 bytes and some slack for each id seen.
    """
    if format is not None and format not in FORMATS:
        raise ValueError(f"format is {format!r}, expected one of {', '.join(FORMATS)}")
    with _opened(source, format) as (stream, kind, where, plain):
        records: Iterator[Record | BadRecord]
        if kind == "parquet":
            records = _parquet_records(plain or stream, where, text_field)
        elif kind == "jsonl":
            records = _jsonl_records(stream, where, text_field)
        else:
            records = _csv_records(stream, where, text_field, "\t" if kind == "tsv" else ",")
        yield from itertools.islice(_without_duplicates(records, where), limit)


def count_records(source: str | Path, *, format: str | None = None) -> int | None:
    """How many records `read_records` will give, for a progress bar; None for stdin, pipes and gzip.

    Reads a JSONL or CSV file once without parsing it. Malformed CSV can make it differ. Raises InputError.
    """
    if str(source) == "-" or not _is_plain_file(Path(source)):
        return None
    with _opened(source, format) as (stream, kind, where, plain):
        if plain is None:
            return None
        if kind == "parquet":
            with _parquet_file(plain, where) as file:
                return int(file.metadata.num_rows)
        if kind == "jsonl":
            return sum(1 for line in _lines(stream) if not line.blank)
        return max(0, _csv_row_count(_lines(stream)) - 1)


def _is_plain_file(path: Path) -> bool:
    try:
        return path.is_file() or not path.exists()  # a missing one is reported by _opened
    except OSError:
        return True


class _Opened(NamedTuple):
    stream: BinaryIO
    format: str
    where: str  # the file's name as messages show it
    plain: BinaryIO | None  # the source itself, where it can be sought and is not compressed


@contextmanager
def _opened(source: str | Path | BinaryIO, format: str | None) -> Iterator[_Opened]:
    """The decompressed stream without its BOM, its format and its name."""
    with ExitStack() as stack:
        raw, where = _open_source(source, stack)
        plain = raw if raw.seekable() and raw.tell() == 0 else None
        stream, head = _peeked(_Checked(raw, where), stack)
        extensions = Path(where).suffixes
        if head.startswith(_GZIP):
            unzipped = stack.enter_context(gzip.GzipFile(fileobj=stream, mode="rb"))
            stream, head = _peeked(_Unzipped(unzipped, where), stack)
            plain = None
            if extensions and extensions[-1].lower() == ".gz":
                extensions.pop()
        if head.startswith(_UTF16_BOMS):
            raise InputError(f"{where}: is UTF-16; convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)")
        kind = format or _recognised(head, extensions[-1].lower() if extensions else "", where)
        if head.startswith(_UTF8_BOM) and kind != "parquet":
            stream.read(len(_UTF8_BOM))
        yield _Opened(stream, kind, where, plain)


def _open_source(source: str | Path | BinaryIO, stack: ExitStack) -> tuple[BinaryIO, str]:
    """An open stream, closed by `stack` if opened here, and its name. Raises InputError."""
    if not isinstance(source, str | Path):
        name = getattr(source, "name", None)
        return source, printable(name) if isinstance(name, str) else "<stdin>"
    if str(source) == "-":
        return sys.stdin.buffer, "<stdin>"
    where = printable(str(source))
    try:
        return stack.enter_context(open(source, "rb")), where
    except FileNotFoundError:
        raise InputError(f"{where}: there is no such file; check the path") from None
    except IsADirectoryError:
        raise InputError(f"{where}: is a directory; give one of its files") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{where}: cannot be opened ({reason}); check the path and its permissions") from None


class _Checked(RawIOBase):
    """A stream's bytes as they come, with every failure to read turned into an InputError.

    Reads no more than one underlying read gives, so lines that trickle through a pipe are passed on at once.
    """

    def __init__(self, stream: BinaryIO | gzip.GzipFile, where: str) -> None:
        self._read = getattr(stream, "read1", stream.read)
        self._where = where
        self.head = b""  # bytes to give first

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer)
        data = self.head[: len(view)] or self._next(len(view))
        self.head = self.head[len(data) :]
        view[: len(data)] = data
        return len(data)

    def _next(self, n: int) -> bytes:
        try:
            data: bytes = self._read(n)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(self._reason(error)) from None
        return data

    def _reason(self, error: Exception) -> str:
        return f"{self._where}: reading failed ({error}); check the file and its disk"


class _Unzipped(_Checked):
    """What a gzip stream holds."""

    def _reason(self, error: Exception) -> str:
        return (
            f"{self._where}: the gzip data is broken or cut short ({error}); "
            "test it with gzip -t, and copy or compress it again"
        )


def _peeked(raw: _Checked, stack: ExitStack) -> tuple[BinaryIO, bytes]:
    """A buffered stream, and its first bytes, up to the first one that is no white space."""
    head = b""
    while len(head) < _CHUNK and (len(head) < 4 or not head.removeprefix(_UTF8_BOM).strip()):
        more = raw.read(_CHUNK)
        if not more:
            break
        head += more
    raw.head = head
    return stack.enter_context(BufferedReader(raw, _CHUNK)), head


def _recognised(head: bytes, extension: str, where: str) -> str:
    """The format, by content and then by extension. Raises InputError."""
    if head.startswith(_PARQUET):
        return "parquet"
    first = head.removeprefix(_UTF8_BOM).lstrip()[:1]
    if first == b"{":
        return "jsonl"
    if first == b"[" and extension not in (".jsonl", ".ndjson"):
        raise InputError(
            f"{where}: is a JSON array, expected JSONL, one object a line; "
            "convert it with: jq -c '.[]' data.json > data.jsonl"
        )
    if extension in _EXTENSIONS:
        return _EXTENSIONS[extension]
    if not first:
        return "jsonl"  # nothing in, nothing out: `grep … | edgeguard score -` may find nothing
    seen = shown(head[:60].decode("utf-8", "replace"))
    raise InputError(
        f"{where}: the format is not recognised, it begins with {seen}; "
        f"expected {_ACCEPTED}, or name it with --input-format"
    )


class _Line(NamedTuple):
    """One physical line. `data` is None where it is longer than MAX_RECORD; `quotes` counts its `"`."""

    number: int
    data: bytes | None
    quotes: int

    @property
    def blank(self) -> bool:
        return self.data is not None and not self.data.strip()


def _lines(stream: BinaryIO) -> Iterator[_Line]:
    """The physical lines with their ends, never holding more than MAX_RECORD bytes of one."""
    for number in itertools.count(1):
        data = stream.readline(MAX_RECORD + 1)
        if not data:
            return
        if len(data) <= MAX_RECORD:
            yield _Line(number, data, data.count(b'"'))
            continue
        quotes = data.count(b'"')
        while data and not data.endswith(b"\n"):
            data = stream.readline(_CHUNK)
            quotes += data.count(b'"')
        yield _Line(number, None, quotes)


# ---------------------------------------------------------------- JSONL


def _jsonl_records(stream: BinaryIO, where: str, text_field: str | None) -> Iterator[Record | BadRecord]:
    for line in _lines(stream):
        if line.blank:
            continue
        try:
            fields = _json_object(line.data)
        except RecordError as error:
            yield BadRecord(placed(error, where, line.number), None, line.number)
        else:
            yield build_record(fields, line=line.number, where=where, text_field=text_field)


def _json_object(data: bytes | None) -> Mapping[str, object]:
    if data is None:
        raise too_large("the line")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecordError(
            f"byte {error.start + 1} of the line is {data[error.start]:#04x}, which is not UTF-8; "
            "convert the file to UTF-8 (iconv -t UTF-8)",
            kind="invalid_utf8",
        ) from None
    value = parse_json(text, "the line", "write one JSON object a line")
    if not isinstance(value, dict):
        raise RecordError(f"the line is {shown(value)}, expected an object; {EXPECTED}", kind="invalid_type")
    return value


# ---------------------------------------------------------------- CSV


class _Row(NamedTuple):
    """One CSV row: its cells, or why it has none."""

    number: int  # line where it starts
    cells: list[str]
    error: RecordError | None


def _csv_records(stream: BinaryIO, where: str, text_field: str | None, delimiter: str) -> Iterator[Record | BadRecord]:
    rows = _csv_rows(stream, delimiter)
    header = _csv_header(next(rows, None), where)
    _check_columns(header, where, text_field, "CSV needs a header row")
    for row in rows:
        try:
            fields = _csv_fields(header, row, text_field)
        except RecordError as error:
            yield BadRecord(placed(error, where, row.number), _csv_id(header, row), row.number)
        else:
            yield build_record(fields, line=row.number, where=where, text_field=text_field)


def _csv_rows(stream: BinaryIO, delimiter: str) -> Iterator[_Row]:
    """The rows of an RFC 4180 file; blank lines between them are skipped.

    Not the csv module: it has one field limit for the whole process (128 KiB unless a library sets that
    global), does not say where a row starts, and holds an unclosed quote's text to the end of the file.
    """
    # A plain cell: up to the delimiter or the line's end; a lone CR inside is text.
    plain = re.compile(f"[^{delimiter}\r\n]*(?:\r(?!\n|\\Z)[^{delimiter}\r\n]*)*")
    lines = _lines(stream)
    for line in lines:
        if line.blank:
            continue
        try:
            yield _Row(line.number, _csv_cells(_Cursor(line, lines), delimiter, plain), None)
        except RecordError as error:
            yield _Row(line.number, [], error)


def _csv_row_count(lines: Iterator[_Line]) -> int:
    """Rows of a CSV file with its header: its line ends that are outside quotes."""
    n_rows = n_quotes = 0
    for line in lines:
        n_rows += n_quotes % 2 == 0 and not line.blank
        n_quotes += line.quotes
    return n_rows


class _Cursor:
    """A place in a CSV row: `text` is its current physical line, `at` an index into it."""

    def __init__(self, first: _Line, lines: Iterator[_Line]) -> None:
        self._lines, self._size, self._quotes = lines, 0, 0
        self._take(first)

    def next_line(self) -> None:
        line = next(self._lines, None)
        if line is None:
            raise RecordError(
                "the row has a quoted cell that is not closed by the end of the file; "
                'close it, and write a " inside a cell as ""',
                kind="invalid_csv",
            )
        self._take(line)

    def _take(self, line: _Line) -> None:
        self._size += MAX_RECORD + 1 if line.data is None else len(line.data)
        self._quotes += line.quotes
        if line.data is None or self._size > MAX_RECORD:
            self._skip_row()
            raise too_large("the row")
        # Bytes that are not UTF-8 become lone surrogates: only their own row is lost.
        self.text, self.at = line.data.decode("utf-8", "surrogateescape"), 0

    def _skip_row(self) -> None:
        """Go to the row's end, where all its quotes are closed, holding nothing."""
        while self._quotes % 2:
            line = next(self._lines, None)
            if line is None:
                return
            self._quotes += line.quotes


def _csv_cells(cursor: _Cursor, delimiter: str, plain: re.Pattern[str]) -> list[str]:
    cells: list[str] = []
    while True:
        if cursor.text.startswith('"', cursor.at):
            cells.append(_quoted_cell(cursor))
        else:
            found = plain.match(cursor.text, cursor.at)
            assert found is not None  # the pattern matches the empty string
            cells.append(found.group())
            cursor.at = found.end()
        rest = cursor.text[cursor.at : cursor.at + 60 + 1].rstrip("\r\n")
        if not rest:
            return cells
        if not rest.startswith(delimiter):
            raise RecordError(
                f"cell {len(cells)} of the row goes on after its closing quote with {shown(rest)}; "
                'write a " inside a quoted cell as ""',
                kind="invalid_csv",
            )
        cursor.at += 1


def _quoted_cell(cursor: _Cursor) -> str:
    """The text of the quoted cell at the cursor, which then stands behind its closing quote."""
    parts: list[str] = []
    cursor.at += 1
    while True:
        end = cursor.text.find('"', cursor.at)
        if end < 0:
            parts.append(cursor.text[cursor.at :])
            cursor.next_line()
            continue
        parts.append(cursor.text[cursor.at : end])
        cursor.at = end + 1
        if not cursor.text.startswith('"', cursor.at):
            return "".join(parts)
        parts.append('"')
        cursor.at += 1


def _csv_header(row: _Row | None, where: str) -> list[str]:
    if row is None:
        raise InputError(f"{where}: is empty, CSV needs a header row; {EXPECTED}")
    if row.error is not None:
        raise InputError(f"{where}:{row.number}: the header row cannot be read: {row.error}")
    if any("\r" in name for name in row.cells):
        raise InputError(f"{where}: its lines end in CR alone; convert it to LF line ends (mac2unix)")
    if any(_not_utf8(name) for name in row.cells):
        raise InputError(f"{where}: the header row is not UTF-8; convert the file (iconv -t UTF-8)")
    return [name.strip() for name in row.cells]


def _check_columns(names: Sequence[str], where: str, text_field: str | None, needed: str) -> None:
    """Raises InputError where no column can hold a record's text, or two have one name."""
    wanted = ("text", "prompt", "messages") if text_field is None else (text_field,)
    if not set(wanted) & set(names):
        has = ", ".join(map(shown, names[:8])) + (", …" if len(names) > 8 else "")
        missing = " or ".join(map(shown, wanted))
        raise InputError(
            f"{where}: there is no column {missing} among {has or 'none'}; {needed}, "
            "or name the column that holds the text with --text-field"
        )
    for name in (*CONTENT_FIELDS, "id", "labels", *wanted):
        if names.count(name) > 1:
            raise InputError(f"{where}: the column {shown(name)} is there twice; rename or remove one")


def _csv_fields(header: Sequence[str], row: _Row, text_field: str | None) -> dict[str, object]:
    """The row's fields. CSV has no null, so an empty cell is a missing field."""
    if row.error is not None:
        raise row.error
    if len(row.cells) != len(header):
        raise RecordError(
            f"the row has {len(row.cells)} cells, expected {len(header)} as in the header; "
            "quote cells that contain the delimiter",
            kind="invalid_type",
        )
    bad = next((cell for cell in row.cells if _not_utf8(cell)), None)
    if bad is not None:
        raise RecordError(
            f"the row is not UTF-8: {shown(bad)}; convert the file to UTF-8 (iconv -t UTF-8)",
            kind="invalid_utf8",
        )
    cells = dict(zip(header, row.cells, strict=True))
    fields: dict[str, object] = {name: cell for name, cell in cells.items() if cell}
    named = ("text", "prompt", "messages") if text_field is None else (text_field,)
    if not any(name in fields for name in named):  # then it is an empty text, not a missing field
        name = next(name for name in named if name in cells)
        fields[name] = [] if name == "messages" and text_field is None else ""
    return fields


def _csv_id(header: Sequence[str], row: _Row) -> str | int | None:
    """The id of a row that cannot be read otherwise."""
    cells = dict(zip(header, row.cells, strict=False)) if len(row.cells) == len(header) else {}
    return readable_id(cells.get("id") or None)


def _not_utf8(text: str) -> bool:
    return any("\udc80" <= c <= "\udcff" for c in text) if not text.isascii() else False


# ---------------------------------------------------------------- Parquet


def _parquet_records(source: BinaryIO, where: str, text_field: str | None) -> Iterator[Record | BadRecord]:
    with _parquet_file(source, where) as file:
        names = list(file.schema_arrow.names)
        _check_columns(names, where, text_field, "Parquet needs one")
        content = CONTENT_FIELDS if text_field is None else (text_field,)
        columns = [name for name in names if name in (*content, "id", "labels")]
        number = 0
        for batch in _batches(file, columns, where):
            for i in range(batch.num_rows):
                number += 1
                yield _parquet_record(batch, i, number, where, text_field)


def _parquet_record(batch: Any, i: int, number: int, where: str, text_field: str | None) -> Record | BadRecord:
    known: str | int | None = None
    try:
        if "id" in batch.schema.names:
            known = readable_id(_cell(batch, "id", i))
        fields = {name: _cell(batch, name, i) for name in batch.schema.names}
    except RecordError as error:
        return BadRecord(placed(error, where, number), known, number)
    return build_record(fields, line=number, where=where, text_field=text_field)


def _cell(batch: Any, name: str, i: int) -> object:
    try:
        value: object = batch.column(name)[i].as_py()
    except UnicodeDecodeError:
        raise RecordError(f'"{name}" is not UTF-8; write the column again as UTF-8', kind="invalid_utf8") from None
    return value


@contextmanager
def _parquet_file(source: BinaryIO, where: str) -> Iterator[Any]:
    """An open pyarrow ParquetFile. A source that cannot be sought is copied to a temporary file first."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError(f"{where}: reading Parquet needs pyarrow; pip install 'edgeguard[parquet]'") from None
    with ExitStack() as stack:
        file: Any = source
        if source.seekable():
            source.seek(0)
        else:
            file = stack.enter_context(tempfile.SpooledTemporaryFile(max_size=MAX_RECORD))
            _copy(source, file, where)
        try:
            # buffer_size: pages are read one after the other, not a row group's whole column at once
            opened = stack.enter_context(pq.ParquetFile(file, buffer_size=_CHUNK))
        except (pa.ArrowException, OSError) as error:
            raise _broken_parquet(where, error) from None
        yield opened


def _copy(source: BinaryIO, spool: Any, where: str) -> None:
    try:
        shutil.copyfileobj(source, spool, _CHUNK)
        spool.seek(0)
    except OSError as error:
        raise InputError(
            f"{where}: copying it to {tempfile.gettempdir()} failed ({error}); "
            "free space there, or give the file by its path"
        ) from None


def _batches(file: Any, columns: list[str], where: str) -> Iterator[Any]:
    import pyarrow as pa

    batches = file.iter_batches(batch_size=256, columns=columns, use_threads=False)
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowException, OSError) as error:
            raise _broken_parquet(where, error) from None
        if batch is None:
            return
        yield batch


def _broken_parquet(where: str, error: Exception) -> InputError:
    reason = printable(str(error).partition("\n")[0])[:200]
    return InputError(f"{where}: the Parquet data is broken or cut short ({reason}); write the file again")


# ---------------------------------------------------------------- ids


def _without_duplicates(records: Iterator[Record | BadRecord], where: str) -> Iterator[Record | BadRecord]:
    """Each record but those whose id an earlier one has; they become BadRecords."""
    seen = _SeenIds()
    for record in records:
        if record.id is None:
            yield record
            continue
        first = seen.first_line(record.id, record.line)
        if first == record.line or isinstance(record, BadRecord):
            yield record
            continue
        error = RecordError(
            f"the id {shown(record.id)} was already used on line {first}; "
            "give each record its own id, or leave the ids out",
            kind="duplicate_id",
        )
        yield BadRecord(placed(error, where, record.line), record.id, record.line)


class _SeenIds:
    """Ids and the line where each came first: 1.5 MiB for 100,000 of them.

    A dict of the ids would take 20 MB. Kept instead is a 64-bit digest and the line, in one open-addressing
    table of machine integers. Two of a million ids share a digest with probability 3e-8, and nobody can
    make them do so, for the digest is keyed anew in each run. An id 1 and an id "1" are two ids.
    """

    def __init__(self) -> None:
        self._key = os.urandom(16)
        self._used = 0
        self._allocate(1024)

    def first_line(self, value: str | int, line: int) -> int:
        """The line where `value` came first, which is `line` if it has not come before."""
        name = f"i{value:x}" if isinstance(value, int) else f"s{value}"
        digest = hashlib.blake2b(name.encode("utf-8"), digest_size=8, key=self._key).digest()
        number = int.from_bytes(digest, "little") or 1  # 0 marks a free slot
        slot = self._slot(number)
        if self._digests[slot]:
            return self._lines[slot]
        self._digests[slot], self._lines[slot] = number, min(line, 2**32 - 1)
        self._used += 1
        if 5 * self._used > 4 * len(self._digests):
            self._grow()
        return line

    def _slot(self, number: int) -> int:
        mask = len(self._digests) - 1
        slot = number & mask
        while self._digests[slot] not in (0, number):
            slot = (slot + 1) & mask
        return slot

    def _allocate(self, n: int) -> None:
        self._digests, self._lines = array("Q", [0]) * n, array("I", [0]) * n

    def _grow(self) -> None:
        digests, lines = self._digests, self._lines
        self._allocate(2 * len(digests))
        for number, line in zip(digests, lines, strict=True):
            if number:
                slot = self._slot(number)
                self._digests[slot], self._lines[slot] = number, line
