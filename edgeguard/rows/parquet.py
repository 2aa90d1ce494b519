"""Parquet: typed columns, read row by row. Needs pyarrow."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO

from edgeguard.errors import InputError, RecordError, printable
from edgeguard.rows.row import Row
from edgeguard.rows.streams import CHUNK
from edgeguard.rows.values import MAX_RECORD


@contextmanager
def opened_table(source: BinaryIO, where: str) -> Iterator[Any]:
    """An open pyarrow ParquetFile. A source that cannot be sought is copied to a temporary file first.

    Raises InputError.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError(f"{where}: reading Parquet needs pyarrow; pip install 'edgeguard[parquet]'") from None
    with ExitStack() as stack:
        file: Any = source
        if source.seekable():
            source.seek(0)
        else:
            file = stack.enter_context(tempfile.SpooledTemporaryFile(max_size=MAX_RECORD))
            _copy(source, file, where)
        try:
            # buffer_size: pages are read one after the other, not a row group's whole column at once
            opened = stack.enter_context(pq.ParquetFile(file, buffer_size=CHUNK))
        except (pa.ArrowException, OSError) as error:
            raise _broken(where, error) from None
        yield opened


def columns_of(file: Any) -> list[str]:
    """The names of its columns, in order."""
    return [str(name) for name in file.schema_arrow.names]


def rows(file: Any, columns: Sequence[str], where: str) -> Iterator[Row]:
    """The rows of an open file with these columns. A cell that is not UTF-8 spoils its own row. Raises InputError."""
    number = 0
    for batch in _batches(file, columns, where):
        for i in range(batch.num_rows):
            number += 1
            yield row_of(batch, i, number)


def row_of(batch: Any, i: int, number: int) -> Row:
    """Row i of a record batch. A cell that is not UTF-8 is an error of its own row."""
    fields: dict[str, object] = {}
    error: RecordError | None = None
    for name in batch.schema.names:
        try:
            fields[name] = batch.column(name)[i].as_py()
        except UnicodeDecodeError:
            error = RecordError(f'"{name}" is not UTF-8; write the column again as UTF-8', kind="invalid_utf8")
    return Row(number, fields, error)


def _copy(source: BinaryIO, spool: Any, where: str) -> None:
    try:
        shutil.copyfileobj(source, spool, CHUNK)
        spool.seek(0)
    except OSError as error:
        raise InputError(
            f"{where}: copying it to {tempfile.gettempdir()} failed ({error}); "
            "free space there, or give the file by its path"
        ) from None


def _batches(file: Any, columns: Sequence[str], where: str) -> Iterator[Any]:
    import pyarrow as pa

    batches = file.iter_batches(batch_size=256, columns=list(columns), use_threads=False)
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowException, OSError) as error:
            raise _broken(where, error) from None
        if batch is None:
            return
        yield batch


def _broken(where: str, error: Exception) -> InputError:
    reason = printable(str(error).partition("\n")[0])[:200]
    return InputError(f"{where}: the Parquet data is broken or cut short ({reason}); write the file again")
