"""JSON Lines: one object a line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import BinaryIO

from edgeguard.errors import RecordError
from edgeguard.rows.row import Row
from edgeguard.rows.streams import Lines, decoded
from edgeguard.rows.values import MAX_RECORD, parse_json, shown, too_large


def rows(stream: BinaryIO, *, encoding: str = "utf-8", limit: int = MAX_RECORD) -> Iterator[Row]:
    """The objects of a stream; blank lines are none. A line that is no object is a Row with an error."""
    for line in Lines(stream, limit=limit):
        if not line.blank:
            yield json_row(line.number, line.data, "the line", "write one JSON object a line", encoding=encoding)


def count(stream: BinaryIO) -> int:
    """How many rows `rows` will give."""
    return sum(1 for line in Lines(stream) if not line.blank)


def json_row(number: int, data: bytes | None, what: str, advice: str, *, encoding: str) -> Row:
    """The object in `data`, None for too much of it; `what` and `advice` are for messages."""
    try:
        return Row(number, _json_object(data, what, advice, encoding))
    except RecordError as error:
        return Row(number, {}, error)


def _json_object(data: bytes | None, what: str, advice: str, encoding: str) -> Mapping[str, object]:
    if data is None:
        raise too_large(what)
    value = parse_json(decoded(data, what, encoding), what, advice)
    if not isinstance(value, dict):
        raise RecordError(f"{what} is {shown(value)}, expected an object", kind="invalid_type")
    return value
