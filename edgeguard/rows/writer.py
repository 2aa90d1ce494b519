"""Output: result rows to JSONL, CSV or Parquet, whole rows only, so that a run can be resumed after a crash.

Every row is in the file, whole, before `write` returns. After `kill -9` the file holds whole rows and at most one torn
one at its end, which `resume` cuts off; on a full disk it holds whole rows only. Parquet cannot be appended to: its
rows go to a journal beside it, with a name of its own, and become OUT when the run has succeeded. What
the rows were made of is noted beside the output (`rows.run`), and the lock there lets one process write.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import select
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from edgeguard.errors import OutputError
from edgeguard.files import hidden_beside, lock, reason, target
from edgeguard.rows.resuming import (
    Encoding,
    Found,
    SeenRow,
    as_csv,
    as_journal,
    as_json,
    check_run,
    json_bytes,
    scan,
    seen,
    split,
)
from edgeguard.rows.run import NO_RECORD, NO_SETTINGS, OutputRun, Settings, hold, in_use, new_token
from edgeguard.rows.schema import ResultRow, columns, types_of

FORMATS = ("jsonl", "csv", "parquet")

_ENDINGS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".parquet": "parquet"}
_ROW_GROUP = 4096  # rows held in memory while Parquet is written


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
            if n is None:  # somebody has told the pipe not to wait: then we do
                select.select([], [self.file], [])
                continue
            rest = rest[n:]

    def _take_back(self) -> None:
        if self.end is not None:
            with suppress(OSError):  # then resume finds a torn row and cuts it off
                self.file.truncate(self.end)
                self.file.seek(self.end)

    def _failure(self, error: OSError) -> OutputError:
        return _write_failure(error, self.where, self.n_rows, resumable=self.end is not None)


def _write_failure(error: OSError, where: str, n_rows: int, *, resumable: bool) -> OutputError:
    what, cure = reason(error)
    if not resumable:
        return OutputError(f"{what}: {n_rows} rows were written to {where}; {cure} and run again")
    return OutputError(f"{what}: {n_rows} rows are safe in {where}; {cure} and run again", kind="output_broken_off")


class Writer:
    """An open output, a context manager. Leaving it without an exception completes the output.

    resumed  rows that were there already
    """

    def __init__(
        self, sink: _Sink, encoding: Encoding, found: Found, run: OutputRun | None, finish: Callable[[int], None]
    ) -> None:
        self._sink, self._encoding, self._run, self._finish = sink, encoding, run, finish
        self.resumed = found.n_rows

    @property
    def rows(self) -> int:
        """Rows in the output now, the resumed ones included."""
        return self._sink.n_rows

    def write(self, row: ResultRow, record: str = NO_RECORD) -> None:
        """Append one row, whole. Raises OutputError, and BrokenPipeError where a reader has gone.

        record  the digest of what it was made of (`rows.run.digest_of`)
        """
        data = self._encoding.encode(row)
        if self._run is not None:
            try:
                self._run.note(data, record)
            except OSError as error:
                raise _write_failure(error, self._sink.where, self.rows, resumable=True) from None
        try:
            self._sink.append(data)
        except BaseException:
            if self._run is not None:
                self._run.forget()
            raise
        self._sink.n_rows += 1

    def resumed_rows(self) -> Iterator[SeenRow]:
        """Each row that was there already, in order, read from the file as asked for."""
        if not self.resumed or self._run is None:
            return
        with open(self._sink.where, "rb") as stream:
            header = stream.read(len(self._encoding.header))
            rows = split(stream, self._encoding, 1 + header.count(b"\n"))
            for (_, data), entry in zip(itertools.islice(rows, self.resumed), self._run.entries(), strict=False):
                yield seen(self._encoding.decode(data))._replace(record=entry.record)

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sink.close()
        try:
            if kind is None:
                self._finish(self.rows)
            elif self.rows == self.resumed and self._run is not None:
                _drop_restored(self._run)
        finally:
            if self._run is not None:
                self._run.close()


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


def claim(path: str | Path | None, *, format: str, overwrite: bool = False, resume: bool = False) -> OutputRun | None:
    """The output for this run alone, before anything is written; None for stdout and devices, which all may write.

    Raises OutputError: it exists and is neither to be resumed nor replaced, another process writes it, it cannot be
    written.
    """
    if overwrite and resume:
        raise ValueError("overwrite and resume exclude each other; give one of them")
    if path is None or str(path) == "-":
        return None
    named, path = path, target(Path(path))
    with _as_output_errors(path):
        if path.is_symlink():
            raise OutputError(f"{named}: its links lead round in a circle; name another file")
        if path.exists() and not path.is_file():
            if resume or path.is_dir() or format == "parquet":
                raise OutputError(f"{path}: is not a regular file; name another one")
            return None
        if path.exists() and not (overwrite or resume):
            raise already_exists(path)
        run = hold(path)
        if not (overwrite or resume) and run.noted is not None and _rows_file(run, run.noted.token).exists():
            run.close()
            raise OutputError(
                f"{path}: rows of a run that was interrupted are there, in {_rows_file(run, run.noted.token).name}",
                kind="output_exists",
            )
        return run


def open_writer(
    path: str | Path | None,
    *,
    format: str,
    labels: Sequence[str],
    overwrite: bool = False,
    resume: bool = False,
    settings: Settings = NO_SETTINGS,
    run: OutputRun | None = None,
) -> Writer:
    """A Writer to `path`; None or "-" is stdout. `labels` are those of `schema`, in the columns' order.

    resume    keeps the whole rows of an existing file and goes on after them; a missing file is begun
    settings  all that can change a row: a run with others is not resumed
    run       what `claim` gave, where it was called before; the Writer lets it go

    Raises OutputError: the file exists and is neither to be resumed nor replaced, it holds something else, another run
    wrote it, another process writes it, it cannot be written. Whether its rows are those of the same records is for the
    caller to check.
    """
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}, expected one of {', '.join(FORMATS)}")
    if path is None or str(path) == "-":
        return _stdout_writer(format, labels, resume=resume)
    if format == "parquet":
        _check_pyarrow(path)
    run = claim(path, format=format, overwrite=overwrite, resume=resume) if run is None else run
    if run is None:
        return _device_writer(Path(path), as_json() if format == "jsonl" else as_csv(labels))
    try:
        with _as_output_errors(run.output):
            if format == "parquet":
                return _parquet_writer(run, labels, settings, overwrite=overwrite, resume=resume)
            encoding = as_json() if format == "jsonl" else as_csv(labels)
            return _file_writer(run, run.output, encoding, format, settings, overwrite=overwrite, resume=resume)
    except BaseException:
        run.close()
        raise


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
    return Writer(sink, encoding, Found(), None, lambda _: None)


def _device_writer(path: Path, encoding: Encoding) -> Writer:
    with _as_output_errors(path):
        sink = _Sink(FileIO(path, "w"), str(path), end=None)
        return _begun(sink, encoding, Found(), None, lambda _: None)


def _file_writer(
    run: OutputRun,
    path: Path,
    encoding: Encoding,
    format: str,
    settings: Settings,
    *,
    overwrite: bool,
    resume: bool,
    finish: Callable[[int], None] = lambda _: None,
) -> Writer:
    """Rows to `path`, which is the output itself or a journal beside it."""
    found = scan(path, encoding, run, format, settings) if resume and path.exists() else Found()
    file = _opened(path, new=not (overwrite or resume))
    sink = _Sink(file, str(path), end=found.end if found.n_rows else 0, n_rows=found.n_rows)
    try:
        if found.n_rows:
            file.truncate(found.end)
            file.seek(found.end)
            run.keep(found.n_rows)
            return Writer(sink, encoding, found, run, finish)
        token = run.noted.token if run.noted is not None and path != run.output else new_token()
        file.truncate(0)
        run.begin(format, settings, token)
    except BaseException:
        sink.close()
        raise
    return _begun(sink, encoding, found, run, finish)


def _begun(
    sink: _Sink, encoding: Encoding, found: Found, run: OutputRun | None, finish: Callable[[int], None]
) -> Writer:
    """A Writer that has written its header."""
    try:
        sink.append(encoding.header)
    except BaseException:
        sink.close()
        raise
    return Writer(sink, encoding, found, run, finish)


def _opened(path: Path, *, new: bool) -> FileIO:
    """A file for this process alone, with what is in it."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags | os.O_EXCL if new else flags, 0o666)
    try:
        lock(descriptor, path)  # its run may be noted under another name: of a hard link
    except BlockingIOError:
        os.close(descriptor)
        raise in_use(path) from None
    return FileIO(descriptor, "r+")


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


def _check_pyarrow(path: str | Path) -> None:
    try:
        import pyarrow.parquet  # noqa: F401  a missing one must show before the first row is scored
    except ImportError:
        raise OutputError(f"{path}: writing Parquet needs pyarrow; pip install 'edgeguard[parquet]'") from None


def _rows_file(run: OutputRun, token: str) -> Path:
    """The journal of a Parquet file: its name is nobody else's."""
    return hidden_beside(run.output, token, "rows")


def _half_file(run: OutputRun, token: str) -> Path:
    """What becomes the journal or the Parquet file when it is whole."""
    return hidden_beside(run.output, token, "half")


def _parquet_writer(
    run: OutputRun, labels: Sequence[str], settings: Settings, *, overwrite: bool, resume: bool
) -> Writer:
    path, encoding = run.output, as_journal(labels)
    if resume and path.exists() and not (run.noted and _rows_file(run, run.noted.token).exists()):
        check_run(path, run, "parquet", settings, lambda: _check_columns(path, labels))
        _restore_journal(run, labels)
    if run.noted is not None and not resume:
        for made in (_rows_file, _half_file):
            made(run, run.noted.token).unlink(missing_ok=True)
    if run.noted is None or not resume:
        # The journal before its name is noted: what is noted without one would be taken for finished.
        _begin_journal(run, settings)
    assert run.noted is not None
    journal = _rows_file(run, run.noted.token)
    finish = partial(_finish_parquet, run, labels)
    return _file_writer(run, journal, encoding, "parquet", settings, overwrite=False, resume=True, finish=finish)


def _begin_journal(run: OutputRun, settings: Settings) -> None:
    token = new_token()
    _opened(_rows_file(run, token), new=True).close()
    run.begin("parquet", settings, token)


def _finish_parquet(run: OutputRun, labels: Sequence[str], n_rows: int) -> None:
    """Turn the journal into the Parquet file, in constant memory; the output changes at once or not at all."""
    import pyarrow as pa

    assert run.noted is not None
    journal, half = _rows_file(run, run.noted.token), _half_file(run, run.noted.token)
    try:
        _convert(journal, half, labels)
        os.replace(half, run.output)
        journal.unlink()
    except (OSError, pa.ArrowException) as error:
        with suppress(OSError):
            half.unlink()
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


def _restore_journal(run: OutputRun, labels: Sequence[str]) -> None:
    """The journal of a finished Parquet file, to go on from."""
    import pyarrow.parquet as pq

    assert run.noted is not None
    half = _half_file(run, run.noted.token)
    _check_columns(run.output, labels)
    try:
        with pq.ParquetFile(run.output) as file, open(half, "wb") as lines:
            for batch in file.iter_batches(batch_size=_ROW_GROUP):
                lines.writelines(map(json_bytes, batch.to_pylist()))
        os.replace(half, _rows_file(run, run.noted.token))
        run.restored = True
    finally:
        half.unlink(missing_ok=True)


def _drop_restored(run: OutputRun) -> None:
    """Remove the journal of a finished Parquet file that was not gone on from; the file has its rows."""
    if run.restored:
        with suppress(OSError):
            _rows_file(run, run.noted.token if run.noted else "").unlink()


def _check_columns(path: Path, labels: Sequence[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = list(file.schema_arrow.names)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise OutputError(
            f"{path}: is not a Parquet file that can be read ({error}); choose another file", kind="other_output"
        ) from None
    if names != columns(labels):
        raise OutputError(
            f"{path}: its columns are not those of this taxonomy; choose another file",
            kind="other_output",
        )
