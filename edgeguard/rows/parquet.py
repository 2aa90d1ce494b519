"""Parquet: typed columns, read row by row. Needs pyarrow."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO

from edgeguard.errors import InputError, RecordError, printable
from edgeguard.rows.row import Row
from edgeguard.rows.streams import CHUNK, MAX_RATIO, check_ratio
from edgeguard.rows.values import MAX_RECORD

BATCH, BATCH_BYTES = 256, 8 << 20  # rows that are in memory at once, and about how many bytes


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
            packed = _in_dictionaries(pq.read_metadata(file))
            # buffer_size: pages are read one after the other, not a row group's whole column at once
            opened = stack.enter_context(pq.ParquetFile(file, buffer_size=CHUNK, read_dictionary=packed))
            columns_of(opened)
        except (pa.ArrowException, OSError) as error:
            raise _broken(where, error) from None
        except UnicodeDecodeError as error:
            raise InputError(
                f"{where}: the name of a column is not UTF-8 ({ascii(error.object[:60])[2:-1]}); write the file again "
                "with another name"
            ) from None
        yield opened


def _in_dictionaries(metadata: Any) -> list[str]:
    """The columns of texts that are written once for many rows, to be read so: a short file may hold very many rows."""
    kinds = {"RLE_DICTIONARY", "PLAIN_DICTIONARY"}
    found = _chunks(metadata)
    return sorted({path for path, c in found if c.physical_type == "BYTE_ARRAY" and kinds & {*c.encodings}})


def _chunks(metadata: Any) -> Iterator[tuple[str, Any]]:
    """(the column's path, what is said of it in a row group), for all. The schema's paths: a chunk may have another."""
    paths = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for i, path in enumerate(paths):
            yield path, group.column(i)


def columns_of(file: Any) -> list[str]:
    """The names of its columns, in order."""
    return [str(name) for name in file.schema_arrow.names]


def rows(file: Any, columns: Sequence[str], where: str, *, max_ratio: int = MAX_RATIO) -> Iterator[Row]:
    """The rows of an open file with these columns. A cell that is not UTF-8 spoils its own row. Raises InputError.

    max_ratio  bytes that its texts may have for each of the file's, behind the first FREE
    """
    number = n_out = 0
    n_in, n_stated = _sizes(file.metadata, columns)
    check_ratio(n_stated, n_in, max_ratio, where)
    n_rows = min(BATCH, max(1, BATCH_BYTES * file.metadata.num_rows // (n_stated or 1)))
    for batch in _batches(file, columns, n_rows, where):
        for i in range(batch.num_rows):
            number += 1
            row = row_of(batch, i, number)
            n_out += sum(map(_weight, row.fields.values()))
            check_ratio(n_out, n_in, max_ratio, where)
            yield row


def _sizes(metadata: Any, columns: Sequence[str]) -> tuple[int, int]:
    """Bytes of the whole file's columns as they are stored, and of these columns without their compression."""
    n_in = n_out = 0
    for path, chunk in _chunks(metadata):
        n_in += chunk.total_compressed_size
        wanted = any(f"{path}.".startswith(f"{name}.") for name in columns)
        n_out += chunk.total_uncompressed_size * wanted
    return n_in, n_out


def _weight(value: object) -> int:
    """Characters, or bytes, of all texts in a value."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_weight, value.values()))
    return sum(map(_weight, value)) if isinstance(value, list) else 0


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
