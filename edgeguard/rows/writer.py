"""Output: result rows to JSONL, CSV or Parquet, whole rows only, so that a run can be resumed after a crash.

Every row is in the file, whole, before `write` returns. After `kill -9` the file holds whole rows and at most one torn
one at its end, which `resume` cuts off; on a full disk it holds whole rows only. Parquet cannot be appended to: its
rows go to a journal beside it, `OUT.partial.jsonl`, and become OUT when the run has succeeded.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from edgeguard.errors import OutputError
from edgeguard.rows.resuming import Encoding, Found, SeenRow, as_csv, as_journal, as_json, json_bytes, scan, seen, split
from edgeguard.rows.schema import ResultRow, columns, types_of

FORMATS = ("jsonl", "csv", "parquet")

_ENDINGS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".parquet": "parquet"}
_ROW_GROUP = 4096  # rows held in memory while Parquet is written
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


# ---------------------------------------------------------------- writing


class _Sink:
    """Bytes to a file, whole rows only. `end` is None where nothing can be taken back: pipes, devices."""

    def __init__(self, file: Any, where: str, *, end: int | None, n_rows: int = 0, borrowed: bool = False) -> None:
        self.file, self.where, self.end, self.n_rows, self.borrowed = file, where, end, n_rows, borrowed

    def close(self) -> None:
        if not self.borrowed:
            self.file.close()

    def append(self, data: bytes) -> None:
        """Write `data` whole, or not at all, or raise: OutputError, and BrokenPipeError as it is."""
        try:
            self._write(data)
        except BaseException as error:  # Ctrl-C too must not leave half a row
            self._take_back()
            if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
                raise self._failure(error) from None
            raise
        if self.end is not None:
            self.end += len(data)

    def _write(self, data: bytes) -> None:
        # Unbuffered: as a rule one system call for the row, so nothing comes between its bytes.
        rest = memoryview(data)
        while rest:
            n = self.file.write(rest)
            if n is None:
                raise BlockingIOError(errno.EAGAIN, "it does not take data now")
            rest = rest[n:]

    def _take_back(self) -> None:
        if self.end is not None:
            with suppress(OSError):  # then resume finds a torn row and cuts it off
                self.file.truncate(self.end)
                self.file.seek(self.end)

    def _failure(self, error: OSError) -> OutputError:
        return _write_failure(error, self.where, self.n_rows, resumable=self.end is not None)


def _write_failure(error: OSError, where: str, n_rows: int, *, resumable: bool) -> OutputError:
    what, cure = (
        ("disk full", "free space")
        if error.errno in _FULL
        else (f"writing failed ({error.strerror or error})", "repair that")
    )
    if not resumable:
        return OutputError(f"{what}: {n_rows} rows were written to {where}; {cure} and run again")
    return OutputError(f"{what}: {n_rows} rows are safe in {where}; {cure} and run again", kind="output_broken_off")


class Writer:
    """An open output, a context manager. Leaving it without an exception completes the output.

    resumed           rows that were there already
    resumed_identity  estimator, profile and model_sha256 of the first scored one of them, None without one
    """

    def __init__(self, sink: _Sink, encoding: Encoding, found: Found, finish: Callable[[int], None]) -> None:
        self._sink, self._encoding, self._finish = sink, encoding, finish
        self.resumed = found.n_rows
        self.resumed_identity = found.identity

    @property
    def rows(self) -> int:
        """Rows in the output now, the resumed ones included."""
        return self._sink.n_rows

    def write(self, row: ResultRow) -> None:
        """Append one row, whole. Raises OutputError, and BrokenPipeError where a reader has gone."""
        self._sink.append(self._encoding.encode(row))
        self._sink.n_rows += 1

    def resumed_rows(self) -> Iterator[SeenRow]:
        """Each row that was there already, in order, read from the file as asked for."""
        if not self.resumed:
            return
        with open(self._sink.where, "rb") as stream:
            header = stream.read(len(self._encoding.header))
            rows = split(stream, self._encoding, 1 + header.count(b"\n"))
            for _, data in itertools.islice(rows, self.resumed):
                yield seen(self._encoding.decode(data))

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sink.close()
        if kind is None:
            self._finish(self.rows)


def format_of(path: str | Path | None) -> str:
    """The format that an output's name says: JSONL for stdout and for a name without an ending.

    Raises OutputError for an ending that is none of ours.
    """
    ending = "" if path is None else Path(path).suffix.lower()
    if ending and ending not in _ENDINGS:
        raise OutputError(
            f"{path}: {ending} is the ending of no format that can be written; expected .jsonl, .csv or .parquet",
            kind="unknown_ending",
        )
    return _ENDINGS.get(ending, "jsonl")


def open_writer(
    path: str | Path | None,
    *,
    format: str,
    labels: Sequence[str],
    overwrite: bool = False,
    resume: bool = False,
) -> Writer:
    """A Writer to `path`; None or "-" is stdout. `labels` are those of `schema`, in the columns' order.

    resume keeps the whole rows of an existing file and goes on after them; a missing file is begun.
    Raises OutputError: the file exists and is neither to be resumed nor replaced, it holds something else, it cannot be
    written. Whether its rows are those of the same input and model is for the caller to check.
    """
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}, expected one of {', '.join(FORMATS)}")
    if overwrite and resume:
        raise ValueError("overwrite and resume exclude each other; give one of them")
    if path is None or str(path) == "-":
        return _stdout_writer(format, labels, resume=resume)
    if format == "parquet":
        return _parquet_writer(Path(path), labels, overwrite=overwrite, resume=resume)
    encoding = as_json() if format == "jsonl" else as_csv(labels)
    with _as_output_errors(Path(path)):
        return _file_writer(Path(path), encoding, lambda _: None, overwrite=overwrite, resume=resume)


def _stdout() -> Any:
    """stdout without its buffer: a row is out when it is written, and none is left over for a closed pipe."""
    return getattr(sys.stdout.buffer, "raw", sys.stdout.buffer)


def _stdout_writer(format: str, labels: Sequence[str], *, resume: bool) -> Writer:
    if format == "parquet":
        raise OutputError("Parquet cannot be written to stdout; name a file", kind="no_output_name")
    if resume:
        raise OutputError("stdout cannot be resumed; name a file", kind="no_output_name")
    sys.stdout.flush()
    encoding = as_json() if format == "jsonl" else as_csv(labels)
    sink = _Sink(_stdout(), "<stdout>", end=None, borrowed=True)
    sink.append(encoding.header)
    return Writer(sink, encoding, Found(), lambda _: None)


def _file_writer(
    path: Path, encoding: Encoding, finish: Callable[[int], None], *, overwrite: bool, resume: bool
) -> Writer:
    found = Found()
    end: int | None = 0
    exists = path.exists()
    if exists and not path.is_file():
        if resume or path.is_dir():
            raise OutputError(f"{path}: is not a regular file; name another one")
        file, end = FileIO(path, "w"), None  # a device or a named pipe
    elif exists and resume:
        found = scan(path, encoding)
        file, end = FileIO(path, "a"), found.end
        file.truncate(end)
    else:
        file = FileIO(path, "w" if overwrite else "x")
    sink = _Sink(file, str(path), end=end, n_rows=found.n_rows)
    if not end:
        try:
            sink.append(encoding.header)
        except BaseException:
            sink.close()
            raise
    return Writer(sink, encoding, found, finish)


@contextmanager
def _as_output_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise already_exists(path) from None
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror or error}); check the folder and its permissions"
        ) from None


def already_exists(path: Path) -> OutputError:
    """The error for an output that is there already."""
    return OutputError(f"{path}: exists already", kind="output_exists")


# ---------------------------------------------------------------- Parquet


def _parquet_writer(path: Path, labels: Sequence[str], *, overwrite: bool, resume: bool) -> Writer:
    try:
        import pyarrow.parquet  # noqa: F401  a missing one must show before the first row is scored
    except ImportError:
        raise OutputError(f"{path}: writing Parquet needs pyarrow; pip install 'edgeguard[parquet]'") from None
    journal = path.with_name(path.name + ".partial.jsonl")
    encoding = as_journal(labels)
    with _as_output_errors(path):
        if path.exists() and not path.is_file():
            raise OutputError(f"{path}: is not a regular file; name another one")
        if path.exists() and not (overwrite or resume):
            raise already_exists(path)
        if resume and path.exists() and not journal.exists():
            _restore_journal(path, journal, labels)
    with _as_output_errors(journal):
        finish = partial(_finish_parquet, journal, path, labels)
        return _file_writer(journal, encoding, finish, overwrite=overwrite, resume=resume)


def _finish_parquet(journal: Path, path: Path, labels: Sequence[str], n_rows: int) -> None:
    """Turn the journal into the Parquet file, in constant memory; `path` changes at once or not at all."""
    import pyarrow as pa

    temporary = path.with_name(path.name + ".partial")
    try:
        _convert(journal, temporary, labels)
        os.replace(temporary, path)
        journal.unlink()
    except (OSError, pa.ArrowException) as error:
        with suppress(OSError):
            temporary.unlink()
        cause = error if isinstance(error, OSError) else OSError(errno.EIO, str(error))
        raise _write_failure(cause, str(journal), n_rows, resumable=True) from None


def _convert(journal: Path, path: Path, labels: Sequence[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrow_type: Any = pa.type_for_alias
    schema = pa.schema([(name, arrow_type(kind)) for name, kind in types_of(labels).items()])
    with open(journal, "rb") as lines, open(path, "wb") as file:
        with pq.ParquetWriter(file, schema) as writer:
            while group := list(itertools.islice(lines, _ROW_GROUP)):
                rows = [json.loads(line) for line in group]
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
        file.flush()
        os.fsync(file.fileno())


def _restore_journal(path: Path, journal: Path, labels: Sequence[str]) -> None:
    """The journal of a finished Parquet file, to go on from."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    temporary = path.with_name(path.name + ".partial")
    try:
        with pq.ParquetFile(path) as file, open(temporary, "wb") as lines:
            if list(file.schema_arrow.names) != columns(labels):
                raise OutputError(
                    f"{path}: its columns are not those of this taxonomy; choose another file",
                    kind="other_output",
                )
            for batch in file.iter_batches(batch_size=_ROW_GROUP):
                lines.writelines(map(json_bytes, batch.to_pylist()))
        os.replace(temporary, journal)
    except pa.ArrowException as error:
        raise OutputError(
            f"{path}: is not a Parquet file that can be read ({error}); choose another file", kind="other_output"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
