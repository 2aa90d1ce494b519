"""Parquet: typed columns, read row by row. Needs pyarrow."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

from edgeguard.errors import InputError, RecordError, printable
from edgeguard.rows.row import Row
from edgeguard.rows.streams import CHUNK, MAX_RATIO, check_ratio
from edgeguard.rows.values import MAX_RECORD

BATCH, BATCH_BYTES = 256, 8 << 20  # rows that are in memory at once, and about how many bytes


@dataclass(frozen=True)
class ParquetTable:
    """An open file: pyarrow's, the names of its columns in order, and its bytes."""

    file: Any
    columns: list[str]
    n_bytes: int

    @property
    def n_rows(self) -> int:
        """As the file states it."""
        return int(self.file.metadata.num_rows)

    @property
    def n_stated(self) -> int:
        """Bytes that it states to hold without its compression, as far as texts are not stored once for many rows."""
        metadata = self.file.metadata
        return sum(int(metadata.row_group(i).total_byte_size) for i in range(metadata.num_row_groups))


@contextmanager
def opened_table(source: BinaryIO, where: str) -> Iterator[ParquetTable]:
    """An open Parquet file. A source that cannot be sought is copied to a temporary file first.

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
            texts = _columns_of_texts(pq.read_metadata(file))
            # buffer_size: pages are read one after the other, not a row group's whole column at once
            opened = stack.enter_context(pq.ParquetFile(file, buffer_size=CHUNK, read_dictionary=texts))
            table = ParquetTable(opened, [str(name) for name in opened.schema_arrow.names], _size(file))
        except (pa.ArrowException, OSError) as error:
            raise _broken(where, error) from None
        except UnicodeDecodeError as error:
            raise InputError(
                f"{where}: the name of a column is not UTF-8 ({ascii(error.object[:60])[2:-1]}); write the file again "
                "with another name"
            ) from None
        yield table


def _columns_of_texts(metadata: Any) -> list[str]:
    """To be read as dictionaries: where a text is stored once for many rows, it is in memory once.

    By the schema: pyarrow ends the process where what is said of a chunk of a column contradicts itself.
    """
    columns = map(metadata.schema.column, range(metadata.num_columns))
    return [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]


def _size(file: Any) -> int:
    file.seek(0, os.SEEK_END)
    size = int(file.tell())
    file.seek(0)
    return size


def rows(table: ParquetTable, columns: Sequence[str], where: str, *, max_ratio: int = MAX_RATIO) -> Iterator[Row]:
    """The rows of an open file with these columns. A cell that is not UTF-8 spoils its own row. Raises InputError.

    max_ratio  bytes that its texts may have for each of the file's, behind the first FREE
    """
    number = n_out = 0
    n_stated = table.n_stated
    check_ratio(n_stated, table.n_bytes, max_ratio, where)
    n_rows = min(BATCH, max(1, BATCH_BYTES * table.n_rows // (n_stated or 1)))
    for batch in _batches(table.file, columns, n_rows, where):
        for i in range(batch.num_rows):
            number += 1
            row = row_of(batch, i, number)
            n_out += sum(map(_weight, row.fields.values()))
            check_ratio(n_out, table.n_bytes, max_ratio, where)
            yield row
    if number != table.n_rows:  # a damaged count of values ends a column early, without a word
        raise _broken(where, ValueError(f"it states {table.n_rows} rows and holds {number}"))


def _weight(value: object) -> int:
    """Characters, or bytes, of all texts in a value."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_weight, value.values()))
    return sum(map(_weight, value)) if isinstance(value, list) else 0


def row_of(batch: Any, i: int, number: int) -> Row:
    """Row i of a record batch. A cell that is not UTF-8, or cannot be read, is an error of its own row."""
    import pyarrow as pa

    fields: dict[str, object] = {}
    error: RecordError | None = None
    for name in batch.schema.names:
        try:
            fields[name] = batch.column(name)[i].as_py()
        except UnicodeDecodeError:
            error = RecordError(f'"{name}" is not UTF-8; write the column again as UTF-8', kind="invalid_utf8")
        except pa.ArrowException as broken:  # its place in a dictionary, which there is not
            reason = printable(str(broken))[:200]
            error = RecordError(f'"{name}" cannot be read ({reason}); write the file again', kind="invalid_type")
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


def _batches(file: Any, columns: Sequence[str], n_rows: int, where: str) -> Iterator[Any]:
    import pyarrow as pa

    batches = file.iter_batches(batch_size=n_rows, columns=list(columns), use_threads=False)
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
