"""Result rows from a Ray dataset to a folder of files, in the bytes that one machine writes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from ray.data.block import BlockAccessor
from ray.data.datasource import BlockBasedFileDatasink, FilenameProvider

from edgeguard.ray.places import Place
from edgeguard.ray.scorer import table_of
from edgeguard.rows.resuming import as_csv
from edgeguard.rows.schema import flatten, unflatten
from edgeguard.rows.tally import Tally

_TASK = 10  # digits: Ray takes a name that begins with another one's for a file of the same task


class Names(FilenameProvider):  # type: ignore[misc]  # Ray's types are not looked at
    """part-RUN-TASK-UUID: by name the files of one run are in the order of their records."""

    def __init__(self, run: int, format: str) -> None:
        super().__init__(file_format=format)
        self._run, self._format = run, format

    def get_filename_for_task(self, write_uuid: str, task_index: int) -> str:
        """As Ray asks for it: the same for the same task, tried again."""
        return f"part-{self._run:04}-{task_index:0{_TASK}}-{write_uuid}.{self._format}"


class RowFiles(BlockBasedFileDatasink):  # type: ignore[misc]
    """A file for each so many rows. What has been written is in `tally`, when the run is over."""

    def __init__(self, folder: Place, *, format: str, labels: Sequence[str], run: int, rows_per_file: int) -> None:
        super().__init__(
            folder.path,
            filesystem=folder.filesystem,
            filename_provider=Names(run, format),
            file_format=format,
            min_rows_per_file=rows_per_file,
        )
        self._format, self._labels = format, tuple(labels)
        self.tally = Tally()

    def write(self, blocks: Iterable[Any], ctx: Any) -> Tally:
        """Write one file; what is in it."""
        given = list(blocks)
        super().write(given, ctx)
        tally = Tally()
        for block in given:
            for line in _lines(block):
                tally.add(json.loads(line))
        return tally

    def write_block_to_file(self, block: BlockAccessor, file: Any) -> None:
        """The rows of a block, in the file's format."""
        write_rows(_lines(block.to_arrow()), file, self._format, self._labels)

    def on_write_complete(self, write_result: Any) -> None:
        """On the driver, when all is written."""
        super().on_write_complete(write_result)
        for tally in write_result.write_returns:
            if tally is not None:
                self.tally.include(tally)


def write_rows(lines: Iterable[bytes], file: Any, format: str, labels: Sequence[str]) -> None:
    """Rows, each as its line of JSON, to an open file. Parquet holds all of them in memory."""
    if format == "jsonl":
        for line in lines:
            file.write(line)
        return
    rows = map(json.loads, lines)
    if format == "csv":
        encoding = as_csv(labels)
        file.write(encoding.header)
        for row in rows:
            file.write(encoding.encode(row))
        return
    import pyarrow.parquet as pq

    pq.write_table(table_of([flatten(row, labels) for row in rows], labels), file)


def tally_of(file: Place, format: str) -> Tally:
    """What is in a file that was written. Raises OSError, ValueError."""
    import io

    import pyarrow.parquet as pq

    tally = Tally()
    data = file.read()
    if format == "jsonl":
        rows: Iterable[Any] = map(json.loads, data.splitlines())
    elif format == "csv":
        from edgeguard.rows import csv
        from edgeguard.rows.schema import typed

        cells = csv.read(io.BytesIO(data), file.shown).rows
        rows = (unflatten(typed({name: str(cell) for name, cell in row.fields.items()})) for row in cells)
    else:
        rows = map(unflatten, pq.read_table(io.BytesIO(data)).to_pylist())
    for row in rows:
        tally.add(row)
    return tally


def _lines(block: Any) -> Iterable[bytes]:
    return BlockAccessor.for_block(block).to_arrow().column("row").to_pylist()  # type: ignore[no-any-return]
