"""The run behind an output: which rows it has noted, of which records, under which settings, and who may write now.

It stands beside the output, hidden, as `.OUT.edgeguard-run`: one line of JSON with the settings, then one line of fixed
length for each row, written before the row is. It is there for `resume`, after the run has ended too, and can be
removed by whoever will not resume. The lock that makes a run the only one to write is on this file.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

from edgeguard.errors import OutputError, shortened
from edgeguard.files import hidden_beside, locked, target
from edgeguard.rows.record import Failure, Record

Settings = Mapping[str, str | int | float | bool | None]

_MAGIC = b'{"edgeguard_run": 1, '
_LONGEST_HEAD = 1 << 20
_TOKEN = re.compile(r"[0-9a-f]{16}\Z")
_MARKS = (1, 4, 16, 64, 256)  # bytes of a row's beginning that are told apart
_ENTRY = re.compile(rb"([0-9a-f]{16}) ([0-9a-f]{16}) ([0-9a-f]{20})\n\Z")
_ENTRY_SIZE = 16 + 1 + 16 + 1 + 4 * len(_MARKS) + 1
_FEW = 3  # differences of one kind that an error names
NO_SETTINGS: Settings = MappingProxyType({})
NO_RECORD = "0" * 16  # the digest of a row that no record is known for


def digest_of(record: Record | Failure, where: str = "") -> str:
    """16 hexadecimal digits for a record's id and content, or for what is known of one that could not be read.

    where  the input's name, which stands in a Failure's message and is no part of the record
    """
    if isinstance(record, Record):
        known: list[object] = [record.id, [[m.role, m.content] for m in record.messages], record.skipped]
    else:
        known = [record.id, record.kind, record.message.removeprefix(where), record.line]
    return _digest(json.dumps(known).encode(), 8)


@dataclass(frozen=True)
class NotedRow:
    """What is noted of a row: its record's digest, its own, and marks of its beginning."""

    record: str
    row: str
    marks: str

    @classmethod
    def of(cls, row: bytes, record: str) -> NotedRow:
        """Of a row's bytes and its record's digest."""
        return cls(record, _digest(row, 8), "".join(_digest(row[:n], 2) for n in _MARKS))

    def is_of(self, row: bytes) -> bool:
        """Whether it was noted of this row."""
        return _digest(row, 8) == self.row

    def began(self, torn: bytes) -> bool:
        """Whether `torn` can be the beginning of the row, as far as the marks tell."""
        marks = [self.marks[i : i + 4] for i in range(0, len(self.marks), 4)]
        return all(_digest(torn[:n], 2) == mark for n, mark in zip(_MARKS, marks, strict=True) if n <= len(torn))

    def line(self) -> bytes:
        """As it stands in the file."""
        return f"{self.record} {self.row} {self.marks}\n".encode()


@dataclass(frozen=True)
class Noted:
    """What an earlier run has noted. `end` is the length of its first line."""

    format: str
    settings: Settings
    token: str
    end: int
    entries: int

    def changed(self, format: str, settings: Settings) -> list[str]:
        """What another run would do otherwise: "threshold was 0.5, is 0.7"; of many alike, "a of b", the first few."""
        was, now = {"format": self.format, **self.settings}, {"format": format, **settings}
        found: dict[str, list[str]] = {}
        for name in dict.fromkeys((*was, *now)):
            if _said(was, name) != _said(now, name):
                kind, of, _ = name.partition(" of ")
                found.setdefault(kind + of, []).append(f"{name} was {_said(was, name)}, is {_said(now, name)}")
        more = {kind: len(alike) - _FEW for kind, alike in found.items() if len(alike) > _FEW}
        said = [one for alike in found.values() for one in alike[:_FEW]]
        return [*said, *(f"{kind}{n} more" for kind, n in more.items())]


def _said(settings: Settings, name: str) -> str:
    value = settings.get(name)
    return "not given" if value is None else shortened(str(value), 80)


@dataclass
class OutputRun:
    """The one run that may write an output: a context manager that holds the lock.

    output  the file itself, links followed
    path    where it is noted; made: nothing was there
    noted   what an earlier run has left, or this one has begun
    restored  the journal has been made of the finished output
    """

    output: Path
    path: Path
    made: bool
    noted: Noted | None
    _file: FileIO = field(repr=False)
    _size: int = 0
    restored: bool = False

    def begin(self, format: str, settings: Settings, token: str) -> None:
        """Note a run without a row yet, in place of what there was. Raises OSError."""
        head = json.dumps({"edgeguard_run": 1, "format": format, "token": token, "settings": dict(settings)})
        data = head.encode() + b"\n"
        self._file.truncate(0)
        self._file.seek(0)
        _write(self._file, data)
        self.noted, self._size = Noted(format, settings, token, len(data), 0), len(data)

    def keep(self, n_rows: int) -> None:
        """Go on behind the entries of the first rows. Raises OSError."""
        assert self.noted is not None
        self._size = self.noted.end + n_rows * _ENTRY_SIZE
        self._file.truncate(self._size)
        self._file.seek(self._size)

    def note(self, row: bytes, record: str) -> None:
        """Before a row is written. Raises OSError; half an entry is taken back."""
        try:
            _write(self._file, NotedRow.of(row, record).line())
        except BaseException:
            self.take_back()
            raise
        self._size += _ENTRY_SIZE

    def forget(self) -> None:
        """The last row was not written."""
        self._size -= _ENTRY_SIZE
        self.take_back()

    def take_back(self) -> None:
        """Cut off what belongs to no row."""
        with suppress(OSError):  # an entry without its row is passed over
            self._file.truncate(self._size)
            self._file.seek(self._size)

    def entries(self) -> Iterator[NotedRow]:
        """Those of the rows, in order."""
        if self.noted is None:
            return
        with open(self.path, "rb") as stream:
            yield from _entries(stream, self.noted.end)

    def __enter__(self) -> OutputRun:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the output go; a file that was made for a run that never began is removed. Twice is fine."""
        if self._file.closed:
            return
        if self.made and self.noted is None:
            with suppress(OSError):  # Windows removes nothing that is open; it is empty and does no harm
                self.path.unlink()
        self._file.close()


def hold(output: Path) -> OutputRun:
    """Take an output for this run alone, before anything of it is written.

    Raises OutputError where another process has it, or a file that is none of ours has the name of its run's.
    """
    output = target(output)
    path = run_file(output)
    try:
        descriptor, made = locked(path)
    except BlockingIOError:
        raise in_use(output) from None
    file = FileIO(descriptor, "r+", closefd=True)
    try:
        noted = _read(file, path)
    except BaseException:
        file.close()
        raise
    return OutputRun(output, path, made, noted, file)


def run_file(output: Path) -> Path:
    """Where the run of an output is noted."""
    return hidden_beside(target(output), "edgeguard-run")


def new_token() -> str:
    """Part of the names of a run's partial files: nobody else's file has such a name."""
    return secrets.token_hex(8)


def in_use(output: Path) -> OutputError:
    """The error for an output that another process writes."""
    return OutputError(
        f"{output}: another process is writing it; wait until that has ended, or name another output",
        kind="output_in_use",
    )


def _read(file: FileIO, path: Path) -> Noted | None:
    """What the file says, None where it is empty. Raises OutputError where it is none of ours."""
    head = file.read(_LONGEST_HEAD) or b""
    if not head:
        return None
    line, end, _ = head.partition(b"\n")
    if _MAGIC.startswith(head):
        return None  # cut in its beginning
    try:
        if not line.startswith(_MAGIC):
            raise ValueError
        if not end:
            return None
        said = json.loads(line)
        format, token, settings = said["format"], said["token"], said["settings"]
        if not isinstance(format, str) or not _TOKEN.match(token) or not isinstance(settings, dict):
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise OutputError(
            f"{path}: has the name of the file where a run is noted, and is none that edgeguard wrote; move it away"
        ) from None
    file.seek(0)
    with open(path, "rb") as stream:
        entries = sum(1 for _ in _entries(stream, len(line) + 1))
    return Noted(format, settings, token, len(line) + 1, entries)


def _entries(stream: BinaryIO, at: int) -> Iterator[NotedRow]:
    stream.seek(at)
    while found := _ENTRY.match(stream.read(_ENTRY_SIZE)):
        record, row, marks = (group.decode() for group in found.groups())
        yield NotedRow(record, row, marks)


def _write(file: FileIO, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) or 0 :]


def _digest(data: bytes, size: int) -> str:
    return hashlib.blake2b(data, digest_size=size).hexdigest()
