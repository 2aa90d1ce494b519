"""Output: result rows to JSONL, CSV or Parquet, whole rows only, so that a run can be resumed after a crash.

A row is a plain dict, `id` first: a score with the keys of a score line, or an error,
`{"id", "error": {"type", "message", "line"}}`. Every row is in the file, whole, before `write` returns. After
`kill -9` the file holds whole rows and at most one torn one at its end, which `resume` cuts off; on a full
disk it holds whole rows only. Parquet cannot be appended to: its rows go to a journal beside it,
`OUT.partial.jsonl`, and become OUT when the run has succeeded.
"""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

from edgeguard.errors import OutputError

Row = Mapping[str, Any]

FORMATS = ("jsonl", "csv", "parquet")

_ROW_GROUP = 4096  # rows held in memory while Parquet is written
_IDENTITY = ("estimator", "profile", "model_sha256")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CELL = re.compile(r'(?:"(?P<quoted>[^"]*(?:""[^"]*)*)"|(?P<plain>[^,"\r\n]*))[,\n]')


# ---------------------------------------------------------------- rows


def to_json_line(row: Row) -> str:
    """The row as one line of JSON, without its end; floats as they are. ValueError for NaN and infinity."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False)


def columns(labels: Sequence[str]) -> list[str]:
    """The columns of CSV and Parquet for a taxonomy."""
    return [*_types(labels)]


def _types(labels: Sequence[str]) -> dict[str, str]:
    """Column → its Arrow type."""
    return {
        "id": "string",
        "flagged": "bool",
        "unsafe": "double",
        "margin": "double",
        "categories": "string",
        **{f"score_{label}": "double" for label in labels},
        **{f"{side}_{label}": "double" for label in labels for side in ("lower", "upper")},
        "unexplored": "double",
        "off_grammar": "double",
        "estimator": "string",
        "calibrated": "bool",
        "guard": "string",
        "profile": "string",
        "model_sha256": "string",
        "tokens_prompt": "int64",
        "tokens_reused": "int64",
        "tokens_answer": "int64",
        "error_type": "string",
        "error_message": "string",
        "error_line": "int64",
    }


def flatten(row: Row, labels: Sequence[str]) -> dict[str, Any]:
    """Column → value, None where the row has none. The id becomes a string, the categories `S1;S10`.

    ValueError where the row scores a label that is not among `labels`.
    """
    unknown = set(row.get("category_scores") or ()) - set(labels)
    if unknown:
        raise ValueError(f"the row has scores for {sorted(unknown)}, which are not among the labels {list(labels)}")
    scores, bounds = row.get("category_scores") or {}, row.get("bounds") or {}
    tokens, error = row.get("tokens") or {}, row.get("error") or {}
    flat = {name: row.get(name) for name in columns(labels)}
    flat["id"] = None if row.get("id") is None else str(row["id"])
    flat["categories"] = ";".join(row["categories"]) if "categories" in row else None
    for label in labels:
        lower, upper = bounds.get(label, (None, None))
        flat |= {f"score_{label}": scores.get(label), f"lower_{label}": lower, f"upper_{label}": upper}
    flat |= {f"tokens_{part}": tokens.get(part) for part in ("prompt", "reused", "answer")}
    flat |= {f"error_{part}": error.get(part) for part in ("type", "message", "line")}
    return flat


def _json_bytes(row: Row) -> bytes:
    # backslashreplace: a lone surrogate becomes \udc80, which is its JSON escape
    return to_json_line(row).encode("utf-8", "backslashreplace") + b"\n"


def _csv_bytes(values: Sequence[object]) -> bytes:
    """One RFC 4180 row, ending in LF.

    Cells are written as they are: ids and messages come from strangers, and a spreadsheet runs a cell that
    begins with `=`, `+`, `-` or `@` as a formula. Escaping it would change ids and negative numbers;
    import the columns as text where that matters.
    """
    return (",".join(map(_csv_cell, values)) + "\n").encode("utf-8", "backslashreplace")


def _csv_cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not a number that can be written")
    text = str(value)
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\r\n') else text


# ---------------------------------------------------------------- formats


class SeenRow(NamedTuple):
    """What a row already written tells. CSV and Parquet give every id as a string, and "" as None.

    identity  its estimator, profile and model_sha256; None for an error row, as is `unsafe`
    """

    id: str | int | None
    is_error: bool
    identity: dict[str, Any] | None
    flagged: bool = False
    unsafe: float | None = None


@dataclass(frozen=True)
class _Format:
    """How rows become lines of bytes, and back.

    header   the first line, b"" for none
    opening  what every row begins with
    quoted   a row may go on over a line end inside quotes
    read     the row in these bytes; ValueError where there is none
    """

    header: bytes
    opening: bytes
    quoted: bool
    encode: Callable[[Row], bytes]
    read: Callable[[bytes], SeenRow]


def _jsonl_format() -> _Format:
    return _Format(b"", b'{"id": ', False, _json_bytes, _read_json)


def _journal_format(labels: Sequence[str]) -> _Format:
    """Flat rows as JSON: a finished Parquet file can be turned back into its journal."""
    return _Format(b"", b'{"id": ', False, lambda row: _json_bytes(flatten(row, labels)), _read_flat_json)


def _csv_format(labels: Sequence[str]) -> _Format:
    names = columns(labels)
    return _Format(
        _csv_bytes(names),
        b"",
        True,
        lambda row: _csv_bytes(list(flatten(row, labels).values())),
        partial(_read_csv, names),
    )


def _read_json(data: bytes) -> SeenRow:
    row = json.loads(data.decode("utf-8"))
    if not isinstance(row, dict) or not any({"id", *keys} <= row.keys() for keys in (("error",), _IDENTITY)):
        raise ValueError("not a result row")
    identity = None if "error" in row else {key: row[key] for key in _IDENTITY}
    return SeenRow(row["id"], identity is None, identity, row.get("flagged") is True, row.get("unsafe"))


def _read_flat_json(data: bytes) -> SeenRow:
    row = json.loads(data.decode("utf-8"))
    if not isinstance(row, dict) or not {"id", "error_type", *_IDENTITY} <= row.keys():
        raise ValueError("not a row of a journal")
    return _seen_flat(row)


def _read_csv(names: Sequence[str], data: bytes) -> SeenRow:
    text = data.decode("utf-8")
    found = list(_CELL.finditer(text))
    if len(found) != len(names) or sum(len(cell.group()) for cell in found) != len(text):
        raise ValueError("not a row with these columns")
    cells = [cell["quoted"].replace('""', '"') if cell["quoted"] else cell["plain"] for cell in found]
    return _seen_flat({name: cell or None for name, cell in zip(names, cells, strict=True)})


def _seen_flat(row: Row) -> SeenRow:
    is_error = row["error_type"] is not None
    if is_error:
        return SeenRow(row["id"], True, None)
    identity = {key: row[key] for key in _IDENTITY}
    flagged, unsafe = row["flagged"] in (True, "true"), float(row["unsafe"])  # CSV cells are strings
    return SeenRow(row["id"], False, identity, flagged, unsafe)


# ---------------------------------------------------------------- resuming


@dataclass(frozen=True)
class _Found:
    """The whole rows of an existing output, its first `end` bytes."""

    end: int = 0
    n_rows: int = 0
    identity: dict[str, Any] | None = None


def _scan(path: Path, format: _Format) -> _Found:
    """What can be kept of the file. Raises OutputError where edgeguard cannot have written it so.

    A torn row at the end is what a crash leaves. Anything else that is no row is damage, or somebody's file
    given by mistake: it is not cut off.
    """
    with open(path, "rb") as stream:
        header = stream.read(len(format.header))
        if header != format.header:
            if format.header.startswith(header):
                return _Found()  # cut in the header, or empty
            raise OutputError(
                f"{path}: its header row is not the one of this taxonomy; "
                "choose another file, or --overwrite to start anew"
            )
        end, n_rows, identity, torn = len(header), 0, None, None
        for number, data in _split(stream, format, 1 + header.count(b"\n")):
            if torn is not None:
                raise _not_a_row(path, *torn)
            try:
                if not data.endswith(b"\n"):
                    raise ValueError("cut short")
                seen = format.read(data)
            except (ValueError, RecursionError):
                torn = number, data
            else:
                end, n_rows, identity = end + len(data), n_rows + 1, identity or seen.identity
    if torn is not None and not _is_torn_row(torn[1], format):
        raise _not_a_row(path, *torn)
    return _Found(end, n_rows, identity)


def _split(stream: BinaryIO, format: _Format, number: int) -> Iterator[tuple[int, bytes]]:
    """Rows with their line ends, each with the number of its first line; the last may be torn."""
    for data in stream:
        first = number
        while format.quoted and data.count(b'"') % 2 and (more := stream.readline()):
            data += more
        number += max(1, data.count(b"\n"))
        yield first, data


def _is_torn_row(data: bytes, format: _Format) -> bool:
    """Whether a crash while a row was written can leave this; file systems may fill with NULs."""
    start = data[: len(format.opening)]
    return format.opening.startswith(start) or not data.strip(b"\0")


def _not_a_row(path: Path, number: int, data: bytes) -> OutputError:
    seen = ascii(data[:60].decode("utf-8", "replace"))
    return OutputError(
        f"{path}:{number}: is not a result row of edgeguard: {seen}; remove the line to resume, "
        "choose another file, or --overwrite to start anew"
    )


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
    return OutputError(f"{what}: {n_rows} rows are safe in {where}; {cure} and run again with --resume")


class Writer:
    """An open output, a context manager. Leaving it without an exception completes the output.

    resumed           rows that were there already
    resumed_identity  estimator, profile and model_sha256 of the first scored one of them, None without one
    """

    def __init__(self, sink: _Sink, format: _Format, found: _Found, finish: Callable[[int], None]) -> None:
        self._sink, self._format, self._finish = sink, format, finish
        self.resumed = found.n_rows
        self.resumed_identity = found.identity

    @property
    def rows(self) -> int:
        """Rows in the output now, the resumed ones included."""
        return self._sink.n_rows

    def write(self, row: Row) -> None:
        """Append one row, whole. Raises OutputError, and BrokenPipeError where a reader has gone."""
        self._sink.append(self._format.encode(row))
        self._sink.n_rows += 1

    def resumed_rows(self) -> Iterator[SeenRow]:
        """Each row that was there already, in order, read from the file as asked for."""
        if not self.resumed:
            return
        with open(self._sink.where, "rb") as stream:
            header = stream.read(len(self._format.header))
            rows = _split(stream, self._format, 1 + header.count(b"\n"))
            for _, data in itertools.islice(rows, self.resumed):
                yield self._format.read(data)

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sink.close()
        if kind is None:
            self._finish(self.rows)


def open_writer(
    path: str | Path | None,
    *,
    format: str,
    labels: Sequence[str],
    overwrite: bool = False,
    resume: bool = False,
) -> Writer:
    """A Writer to `path`; None or "-" is stdout. `labels` are the taxonomy, in the order of the columns.

    resume keeps the whole rows of an existing file and goes on after them; a missing file is begun.
    Raises OutputError: the file exists and neither flag is given, it holds something else, it cannot be
    written. Whether its rows are those of the same input and model is for the caller to check.
    """
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}, expected one of {', '.join(FORMATS)}")
    if overwrite and resume:
        raise OutputError("--overwrite and --resume exclude each other; give one of them")
    if path is None or str(path) == "-":
        return _stdout_writer(format, labels, resume=resume)
    if format == "parquet":
        return _parquet_writer(Path(path), labels, overwrite=overwrite, resume=resume)
    lines = _jsonl_format() if format == "jsonl" else _csv_format(labels)
    with _as_output_errors(Path(path)):
        return _file_writer(Path(path), lines, lambda _: None, overwrite=overwrite, resume=resume)


def _stdout() -> Any:
    """stdout without its buffer: a row is out when it is written, and none is left over for a closed pipe."""
    return getattr(sys.stdout.buffer, "raw", sys.stdout.buffer)


def _stdout_writer(format: str, labels: Sequence[str], *, resume: bool) -> Writer:
    if format == "parquet":
        raise OutputError("Parquet cannot be written to stdout; name a file with --output")
    if resume:
        raise OutputError("stdout cannot be resumed; name a file with --output")
    sys.stdout.flush()
    lines = _jsonl_format() if format == "jsonl" else _csv_format(labels)
    sink = _Sink(_stdout(), "<stdout>", end=None, borrowed=True)
    sink.append(lines.header)
    return Writer(sink, lines, _Found(), lambda _: None)


def _file_writer(path: Path, lines: _Format, finish: Callable[[int], None], *, overwrite: bool, resume: bool) -> Writer:
    found = _Found()
    end: int | None = 0
    exists = path.exists()
    if exists and not path.is_file():
        if resume or path.is_dir():
            raise OutputError(f"{path}: is not a regular file; name another one")
        file, end = FileIO(path, "w"), None  # a device or a named pipe
    elif exists and resume:
        found = _scan(path, lines)
        file, end = FileIO(path, "a"), found.end
        file.truncate(end)
    else:
        file = FileIO(path, "w" if overwrite else "x")
    sink = _Sink(file, str(path), end=end, n_rows=found.n_rows)
    if not end:
        try:
            sink.append(lines.header)
        except BaseException:
            sink.close()
            raise
    return Writer(sink, lines, found, finish)


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
    return OutputError(f"{path}: exists already; --resume goes on where it ends, --overwrite replaces it")


# ---------------------------------------------------------------- Parquet


def _parquet_writer(path: Path, labels: Sequence[str], *, overwrite: bool, resume: bool) -> Writer:
    try:
        import pyarrow.parquet  # noqa: F401  a missing one must show before the first row is scored
    except ImportError:
        raise OutputError(f"{path}: writing Parquet needs pyarrow; pip install 'edgeguard[parquet]'") from None
    journal = path.with_name(path.name + ".partial.jsonl")
    lines = _journal_format(labels)
    with _as_output_errors(path):
        if path.exists() and not path.is_file():
            raise OutputError(f"{path}: is not a regular file; name another one")
        if path.exists() and not (overwrite or resume):
            raise already_exists(path)
        if resume and path.exists() and not journal.exists():
            _restore_journal(path, journal, labels)
    with _as_output_errors(journal):
        finish = partial(_finish_parquet, journal, path, labels)
        return _file_writer(journal, lines, finish, overwrite=overwrite, resume=resume)


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
    schema = pa.schema([(name, arrow_type(kind)) for name, kind in _types(labels).items()])
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
                    f"{path}: its columns are not those of this taxonomy; "
                    "choose another file, or --overwrite to start anew"
                )
            for batch in file.iter_batches(batch_size=_ROW_GROUP):
                lines.writelines(map(_json_bytes, batch.to_pylist()))
        os.replace(temporary, journal)
    except pa.ArrowException as error:
        raise OutputError(
            f"{path}: is not a Parquet file that can be read ({error}); --overwrite replaces it"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
