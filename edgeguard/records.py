"""Records: one text or conversation to judge, and the readers of JSONL, CSV and Parquet."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from edgeguard.errors import RecordError


@dataclass(frozen=True)
class Message:
    """One turn of a conversation. `role` is "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True)
class Record:
    """One conversation to judge, the last message being the one judged.

    line    1-based line (JSONL), or 1-based row (CSV without header, Parquet), 0 if made in Python
    labels  ground truth where the input has it, as given
    """

    messages: tuple[Message, ...]
    id: str | int | None = None
    labels: tuple[str, ...] | None = None
    line: int = 0


@dataclass(frozen=True)
class BadRecord:
    """A place in the input where a record should be and is not scorable."""

    error: RecordError
    id: str | int | None = None
    line: int = 0
