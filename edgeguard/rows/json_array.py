"""A JSON array of objects, cut into its elements as it streams by: a file of many gigabytes takes no memory.

A splitter of our own, because a damaged element is to be one failed record and not the end of the file: it knows
strings and brackets only, and each element is then parsed as a line of JSONL is. A streaming parser such as ijson
stops at the first error, and makes an event of every value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

from edgeguard.errors import InputError
from edgeguard.rows.jsonl import json_row
from edgeguard.rows.row import Row
from edgeguard.rows.streams import CHUNK
from edgeguard.rows.values import MAX_RECORD

_OUTSIDE = re.compile(rb'["\[\]{},]')  # what matters outside of a string
_INSIDE = re.compile(rb'["\\]')  # and inside


def rows(stream: BinaryIO, where: str, *, encoding: str = "utf-8") -> Iterator[Row]:
    """The elements of the array in a stream. An element that is no object is a Row with an error.

    Raises InputError where the array breaks off, or something follows it.
    """
    for number, data in _elements(stream, where):
        yield json_row(number, data, "the element", "write the array's elements as JSON objects", encoding=encoding)


def count(stream: BinaryIO, where: str) -> int:
    """How many rows `rows` will give. Raises InputError as it does."""
    return sum(1 for _ in _elements(stream, where))


def _elements(stream: BinaryIO, where: str) -> Iterator[tuple[int, bytes | None]]:
    """(line where it starts, its bytes) of each element; None in place of more than MAX_RECORD bytes."""
    element = _Element()
    depth, in_string, escaped = 0, False, False
    while chunk := stream.read(CHUNK):
        at = begin = 0
        while at < len(chunk):
            if escaped:  # the byte behind a backslash, which may be the next chunk's first
                escaped, at = False, at + 1
                continue
            found = (_INSIDE if in_string else _OUTSIDE).search(chunk, at)
            if found is None:
                break
            byte, at = found.group(), found.end()
            if in_string:
                escaped, in_string = byte == b"\\", byte != b'"'
            elif byte == b'"':
                in_string = True
            elif byte == b"," and depth == 1:
                element.add(chunk[begin : at - 1])
                yield element.taken()
                begin = at
            elif byte in b"[{":
                depth += 1
                if depth == 1:
                    element.skip(chunk[begin:at])
                    begin = at
            elif byte in b"]}":
                depth -= 1
                if depth == 0:
                    element.add(chunk[begin : at - 1])
                    if not element.blank:  # an empty array, or a comma behind the last element
                        yield element.taken()
                    _check_end(chunk[at:], stream, where)
                    return
        element.add(chunk[begin:])
    raise InputError(f"{where}:{element.line}: the JSON array breaks off, its closing ] is missing; copy it again")


class _Element:
    """The bytes of an element so far, and the line where it starts."""

    def __init__(self) -> None:
        self.line = 1
        self._data: bytearray | None = bytearray()
        self._n_lines = 0  # line ends in the data

    @property
    def blank(self) -> bool:
        return self._data is not None and not self._data

    def skip(self, data: bytes) -> None:
        """Pass over bytes before the element."""
        self.line += data.count(b"\n")

    def add(self, data: bytes) -> None:
        if self.blank:
            rest = data.lstrip()
            self.skip(data[: len(data) - len(rest)])
            data = rest
        self._n_lines += data.count(b"\n")
        if self._data is not None:
            self._data += data
            if len(self._data) > MAX_RECORD:
                self._data = None

    def taken(self) -> tuple[int, bytes | None]:
        """What there is, and begin anew behind it."""
        line, data = self.line, self._data
        self.line, self._data, self._n_lines = line + self._n_lines, bytearray(), 0
        return line, None if data is None else bytes(data)


def _check_end(rest: bytes, stream: BinaryIO, where: str) -> None:
    while not rest.strip():
        rest = stream.read(CHUNK)
        if not rest:
            return
    raise InputError(f"{where}: goes on behind the array's closing ]; a file holds one array, or one object a line")
