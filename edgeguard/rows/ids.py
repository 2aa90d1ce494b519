"""Ids that a file has used already, without keeping them."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterator

from edgeguard.errors import RecordError
from edgeguard.rows.record import Failure, Record, failure_of
from edgeguard.rows.values import shown


def without_duplicates(records: Iterator[Record | Failure], where: str) -> Iterator[Record | Failure]:
    """Each record but those whose id an earlier one has; they become Failures."""
    seen = SeenIds()
    for record in records:
        if record.id is None:
            yield record
            continue
        first = seen.first_line(record.id, record.line)
        if first == record.line or isinstance(record, Failure):
            yield record
            continue
        error = RecordError(
            f"the id {shown(record.id)} was already used on line {first}; "
            "give each record its own id, or leave the ids out",
            kind="duplicate_id",
        )
        yield failure_of(error, record.id, where=where, line=record.line)


class SeenIds:
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
