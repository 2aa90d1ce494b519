"""A record: one text or conversation to judge; and a failure, which stands in the place of one that is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgeguard.errors import RecordError

Id = str | int | None


@dataclass(frozen=True)
class Message:
    """One turn of a conversation. `role` is "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True)
class Record:
    """One conversation to judge, the last message being the one judged.

    messages  from a user's on, the two roles in turn
    line      1-based line where it starts (JSONL, JSON, CSV), 1-based row (Parquet), 0 if made in Python
    skipped   turns, and parts of turns, that were left out: guards do not judge them
    checked   made by `make_record` or a reader, so that it need not be looked at again. A copy is not
    """

    messages: tuple[Message, ...]
    id: Id = None
    line: int = 0
    skipped: int = 0
    checked: bool = field(default=False, init=False, repr=False, compare=False)


def as_checked(record: Record) -> Record:
    """This very record, checked from now on."""
    object.__setattr__(record, "checked", True)
    return record


@dataclass(frozen=True)
class Failure:
    """A record that could not be read or scored, and why. Never to be read as safe.

    kind     for machines, as an error's
    message  begins with the file and line, where there are any
    line     as a Record's
    data     what happened, by name, as an error's
    """

    id: Id
    kind: str
    message: str
    line: int = 0
    data: Mapping[str, object] = field(default_factory=dict, repr=False, compare=False)

    def row(self) -> dict[str, Any]:
        """As one JSON object."""
        return {"id": self.id, "error": {"type": self.kind, "message": self.message, "line": self.line}}


def failure_of(error: RecordError, id_: Id, *, where: str = "", line: int = 0) -> Failure:
    """The failure that an error makes of a record; `where` is its file."""
    place = f"{where}:{line}" if where and line else where
    message = f"{place}: {error}" if place else str(error)
    return Failure(id_, error.kind, message, line, error.data)
