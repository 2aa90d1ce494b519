"""CSV as RFC 4180 has it, and as spreadsheets write it: comma, semicolon, tab or pipe, told by the header.

Not the csv module: it has one field limit for the whole process (128 KiB unless a library sets that global), does not
say where a row starts, and holds an unclosed quote's text to the end of the file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

from edgeguard.errors import InputError, RecordError
from edgeguard.rows.row import Row
from edgeguard.rows.streams import CHUNK, Line, Lines, not_text
from edgeguard.rows.values import MAX_RECORD, shown, too_large

DELIMITERS = (",", ";", "\t", "|")

_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # bytes that surrogateescape could not decode
_IN_QUOTES = re.compile(r'[^"]*+(?:""[^"]*+)*+')
_SEP = re.compile(r"sep=(.)\s*\Z")  # Excel's own first line


@dataclass(frozen=True)
class Table:
    """A CSV file that is being read: its columns, and its rows with a cell for each; "" is an empty one."""

    columns: list[str]
    rows: Iterator[Row]


def read(
    stream: BinaryIO, where: str, *, encoding: str = "utf-8", delimiter: str | None = None, limit: int = MAX_RECORD
) -> Table:
    """The table in a stream; blank lines between rows are none. A row that cannot be read has an error.

    delimiter  None: told by the header, or by the line `sep=;` that Excel writes above it
    limit      bytes of one row

    Raises InputError for a header that cannot be read.
    """
    lines = Lines(stream, limit=limit)
    first = next((line for line in lines if not line.blank), None)
    if first is None:
        raise InputError(f"{where}: is empty, CSV needs a header row", kind="no_columns")
    text = "" if first.data is None else first.data.decode("utf-8", "replace")
    if (said := _SEP.match(text)) is not None and delimiter in (None, said[1]):
        delimiter, first = said[1], next((line for line in lines if not line.blank), first)
        text = "" if first.data is None else first.data.decode("utf-8", "replace")
    reader = _Reader(lines, delimiter or delimiter_of(text), limit, encoding)
    columns = _header(reader.row(first), where)
    return Table(columns, _named(reader, columns))


def delimiter_of(header: str) -> str:
    """The delimiter that stands most often in a header row outside quotes; a comma where none does."""
    bare = _QUOTED.sub("", header[:CHUNK])
    return max(DELIMITERS, key=bare.count)


def count(stream: BinaryIO) -> int:
    """Rows below the header: line ends that are outside quotes. Malformed CSV can make it differ."""
    n_rows = 0
    lines = Lines(stream)
    for line in lines:
        n_rows += not line.blank and not (n_rows == 0 and _is_sep(line))
        n_quotes = line.quotes
        while n_quotes % 2 and (more := lines.quoted()) is not None:
            n_quotes += more.quotes
    return max(0, n_rows - 1)


def encoded(values: Sequence[object]) -> bytes:
    """One row, ending in LF; None is an empty cell, a bool true or false. ValueError for NaN and infinity.

    Cells are written as they are: ids and messages come from strangers, and a spreadsheet runs a cell that
    begins with `=`, `+`, `-` or `@` as a formula. Escaping it would change ids and negative numbers;
    import the columns as text where that matters.
    """
    # backslashreplace: a lone surrogate becomes \udc80, as it is written in JSON
    return (",".join(map(_cell, values)) + "\n").encode("utf-8", "backslashreplace")


def cells_of(data: bytes) -> list[str]:
    """The cells of one row as `encoded` wrote it. Raises ValueError where it is none."""
    if not data.endswith(b"\n"):
        raise ValueError("the row is cut short")
    lines = Lines(BytesIO(data), limit=len(data))
    row = _Reader(lines, ",", len(data), "utf-8").row(next(lines))
    if row.error is not None or next(lines, None) is not None:
        raise ValueError(f"not one row: {row.error or 'it goes on'}")
    return row.cells


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not a number that can be written")
    text = str(value)
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\r\n') else text


def _is_sep(line: Line) -> bool:
    return line.data is not None and _SEP.match(line.data.decode("utf-8", "replace")) is not None


def _header(row: _Cells, where: str) -> list[str]:
    if row.error is not None and row.error.kind == "invalid_utf8":
        raise InputError(f"{where}: the header row cannot be read: {row.error}", kind="invalid_utf8", **row.error.data)
    if row.error is not None:
        raise InputError(f"{where}:{row.number}: the header row cannot be read: {row.error}")
    if any("\r" in name for name in row.cells):
        raise InputError(f"{where}: its lines end in CR alone; convert it to LF line ends (mac2unix)")
    return [name.strip() for name in row.cells]


def _named(reader: _Reader, columns: Sequence[str]) -> Iterator[Row]:
    for row in reader.rows():
        if row.error is None and len(row.cells) != len(columns):
            error = RecordError(
                f"the row has {len(row.cells)} cells, expected {len(columns)} as in the header; "
                "quote cells that contain the delimiter",
                kind="invalid_type",
            )
            yield Row(row.number, {}, error)
        else:
            yield Row(row.number, dict(zip(columns, row.cells, strict=False)), row.error)


# ---------------------------------------------------------------- rows of cells


@dataclass(frozen=True)
class _Cells:
    """One row: the line where it starts, its cells, and why they are none or not all text."""

    number: int
    cells: list[str]
    error: RecordError | None = None


class _Reader:
    """Rows from physical lines; no row is held beyond `limit` bytes."""

    def __init__(self, lines: Lines, delimiter: str, limit: int, encoding: str) -> None:
        self._lines, self._delimiter, self._limit, self._encoding = lines, delimiter, limit, encoding
        # A plain cell: up to the delimiter or the line's end; a lone CR inside is text.
        end = re.escape(delimiter)
        self._plain = re.compile(f"[^{end}\r\n]*(?:\r(?!\n|\\Z)[^{end}\r\n]*)*")

    def rows(self) -> Iterator[_Cells]:
        for line in self._lines:
            if not line.blank:
                yield self.row(line)

    def row(self, first: Line) -> _Cells:
        """The row that begins with this line."""
        try:
            cells = self._cells(_Cursor(first, self._lines, self._limit))
        except RecordError as error:
            return _Cells(first.number, [], error)
        bad = next((cell for cell in cells if _not_utf8(cell)), None)
        if bad is None:
            return _Cells(first.number, cells)
        data = bad.encode("utf-8", "surrogateescape")
        wrong = _NOT_UTF8.search(bad)
        assert wrong is not None
        at = len(bad[: wrong.start()].encode())
        return _Cells(first.number, cells, not_text(data, at, "a cell of the row", self._encoding))

    def _cells(self, cursor: _Cursor) -> list[str]:
        cells: list[str] = []
        while True:
            if cursor.text.startswith('"', cursor.at):
                cells.append(_quoted_cell(cursor))
            else:
                found = self._plain.match(cursor.text, cursor.at)
                assert found is not None  # the pattern matches the empty string
                cells.append(found.group())
                cursor.at = found.end()
            rest = cursor.text[cursor.at : cursor.at + 60 + 1].rstrip("\r\n")
            if not rest:
                return cells
            if not rest.startswith(self._delimiter):
                raise RecordError(
                    f"cell {len(cells)} of the row goes on after its closing quote with {shown(rest)}; "
                    'write a " inside a quoted cell as ""',
                    kind="invalid_csv",
                )
            cursor.at += 1


class _Cursor:
    """A place in a CSV row: `text` is its current physical line, or several inside of quotes; `at` an index into it."""

    def __init__(self, first: Line, lines: Lines, limit: int) -> None:
        self._lines, self._limit, self._size, self._quotes = lines, limit, 0, 0
        self._take(first)

    def next_line(self) -> None:
        line = self._lines.quoted()
        if line is None:
            raise RecordError(
                "the row has a quoted cell that is not closed by the end of the file; "
                'close it, and write a " inside a cell as ""',
                kind="invalid_csv",
            )
        self._take(line)

    def _take(self, line: Line) -> None:
        self._size += self._limit + 1 if line.data is None else len(line.data)
        self._quotes += line.quotes
        if line.data is None or self._size > self._limit:
            self._skip_row()
            raise too_large("the row")
        # Bytes that are not UTF-8 become lone surrogates: only their own row is lost.
        self.text, self.at = line.data.decode("utf-8", "surrogateescape"), 0

    def _skip_row(self) -> None:
        """Go to the row's end, where all its quotes are closed, holding nothing."""
        while self._quotes % 2:
            line = self._lines.quoted()
            if line is None:
                return
            self._quotes += line.quotes


def _quoted_cell(cursor: _Cursor) -> str:
    """The text of the quoted cell at the cursor, which then stands behind its closing quote."""
    parts: list[str] = []
    cursor.at += 1
    while True:
        found = _IN_QUOTES.match(cursor.text, cursor.at)
        assert found is not None  # the pattern matches the empty string
        parts.append(found.group().replace('""', '"'))
        cursor.at = found.end()
        if cursor.at < len(cursor.text):
            cursor.at += 1
            return "".join(parts)
        cursor.next_line()


def _not_utf8(text: str) -> bool:
    return not text.isascii() and _NOT_UTF8.search(text) is not None
