"""Records out of an Arrow table that is in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgeguard.errors import RecordError
from edgeguard.rows.parquet import row_of
from edgeguard.rows.readers import record_columns
from edgeguard.rows.record import Failure, Record, failure_of
from edgeguard.rows.shapes import USUAL, Fields, id_of, make_record

if TYPE_CHECKING:
    import pyarrow as pa


def records_of(table: pa.Table, *, fields: Fields = USUAL, strict: bool = False) -> Iterator[Record | Failure]:
    """One Record or Failure a row, in order. Keywords as of `read_records`; there is no file, so `line` is 0."""
    for batch in table.select(record_columns(table.column_names, fields)).to_batches():
        for i in range(batch.num_rows):
            row = row_of(batch, i, 0)
            try:
                if row.error is not None:
                    raise row.error
                yield make_record(row.fields, fields=fields, strict=strict)
            except RecordError as error:
                yield failure_of(error, id_of(row.fields, fields))
