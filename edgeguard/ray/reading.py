"""Files as a Ray dataset of records: read by our own readers, so that a row is what one machine makes of it.

A row has

place   int64: the file's number and the record's in it, which no other row has and each run finds again
where   the file's name, for messages
record  a pickled Record or Failure
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from ray.data import Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask

from edgeguard.ray.places import Place
from edgeguard.rows.readers import Reading
from edgeguard.rows.record import Failure, Record

if TYPE_CHECKING:
    import pyarrow as pa

MOST_FILES = 2**22
_IN_FILE = 40  # bits of a place for the record's number in its file
_ROWS, _BYTES = 256, 2**22  # of one block


class Records(Datasource):  # type: ignore[misc]  # Ray's types are not looked at
    """The records of files, in their order. `limit`: of the first file, the only one then."""

    def __init__(self, files: Sequence[Place], reading: Reading, limit: int | None = None) -> None:
        super().__init__()
        if len(files) > MOST_FILES:
            raise ValueError(f"there are {len(files)} files, at most {MOST_FILES} can be scored in one run")
        self._files, self._reading, self._limit = list(enumerate(files)), reading, limit

    def estimate_inmemory_data_size(self) -> int:
        """Bytes, roughly."""
        return sum(file.size or 0 for _, file in self._files)

    def get_read_tasks(self, parallelism: int, per_task_row_limit: int | None = None, **_: Any) -> list[Any]:
        """A task for each run of files; no more than are useful, since the driver holds them all."""
        size = -(-len(self._files) // max(1, parallelism))
        runs = [self._files[i : i + size] for i in range(0, len(self._files), size)]
        return [
            ReadTask(
                partial(_blocks, run, self._reading, self._limit),
                BlockMetadata(
                    num_rows=None,
                    size_bytes=sum(file.size or 0 for _, file in run),
                    input_files=[file.shown for _, file in run],
                    exec_stats=None,
                ),
                per_task_row_limit=per_task_row_limit,
            )
            for run in runs
        ]


def records_in(file: Place, reading: Reading, limit: int | None = None) -> Iterator[Record | Failure]:
    """What `read_records` gives. Raises InputError."""
    with file.opened() as stream:
        yield from reading.records(stream, limit=limit)


def _blocks(files: Sequence[tuple[int, Place]], reading: Reading, limit: int | None) -> Iterator[pa.Table]:
    rows = (
        (number << _IN_FILE | n, file.shown, pickle.dumps(record))
        for number, file in files
        for n, record in enumerate(records_in(file, reading, limit))
    )
    while block := list(_some(rows)):
        yield _table(block)


def _some(rows: Iterator[tuple[int, str, bytes]]) -> Iterator[tuple[int, str, bytes]]:
    size = 0
    for row in islice(rows, _ROWS):
        yield row
        size += len(row[2])
        if size > _BYTES:
            return


def _table(rows: Sequence[tuple[int, str, bytes]]) -> pa.Table:
    import pyarrow as pa

    places, wheres, records = zip(*rows, strict=True)
    return pa.table(
        {
            "place": pa.array(places, pa.int64()),
            "where": pa.array(wheres, pa.string()),
            "record": pa.array(records, pa.large_binary()),
        }
    )
