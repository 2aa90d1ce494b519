"""A row as a file has it, before anybody asks what it means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from edgeguard.errors import RecordError


class Row(NamedTuple):
    """A line, a row or an element.

    line    1-based line where it starts; 1-based row of Parquet
    fields  name → value; where there is an error, what could be read all the same
    error   why it cannot be read
    """

    line: int
    fields: Mapping[str, object]
    error: RecordError | None = None
