"""`edgeguard score`: a file in, a row a record out."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

import click

from edgeguard.cli import on_ray
from edgeguard.cli.advice import advised_rows
from edgeguard.cli.options import (
    begin_guard,
    calibration_options,
    model_options,
    open_guard,
    record_options,
    refuse_read,
    reported_errors,
    search_options,
    take_reading,
    together_option,
    workers_option,
)
from edgeguard.cli.say import drop, say, stdout_is_free
from edgeguard.errors import printable
from edgeguard.rows.tally import Tally
from edgeguard.windows import LEAST

if TYPE_CHECKING:
    from edgeguard.guard import Guard
    from edgeguard.rows.readers import Reading
    from edgeguard.rows.record import Failure, Record
    from edgeguard.rows.run import OutputRun, Settings
    from edgeguard.rows.writer import Writer
    from edgeguard.workers import Workers

_PEEK, _PATIENCE = 8, 0.05  # records, and seconds, that tell a few lines from a stream


def _read_window(context: click.Context, option: click.Parameter, value: str | None) -> int | str | None:
    """A number of tokens, or "auto"."""
    if value is None or value == "auto":
        return value
    try:
        tokens = int(value)
    except ValueError:
        tokens = 0
    if tokens < LEAST:
        raise click.BadParameter(f"{value!r} is neither auto nor a number of at least {LEAST} tokens")
    return tokens


estimator_option = click.option(
    "--estimator",
    "-e",
    type=click.Choice(["conditional", "joint", "marginal"]),
    default="marginal",
    show_default=True,
    help="How a category's probability is estimated",
)
window_option = click.option(
    "--window",
    callback=_read_window,
    metavar="TOKENS|auto",
    help="Score a longer text in overlapping windows of so many tokens, the worst one counts; auto: as many as the "
    "context leaves [default: a text longer than the context is an error]",
)


@click.command(
    epilog="""\b
Examples:
  edgeguard score examples/messages.jsonl
  edgeguard score examples/messages.jsonl --table --limit 5
  echo '{"text": "How do I pick a lock?"}' | edgeguard score -
  edgeguard score chats.csv.gz -m guard.gguf -p llama-guard-3 -o scores.parquet --resume
  edgeguard score s3://bucket/chats -o s3://bucket/scores -f parquet --ray auto"""
)
@click.argument("source", metavar="FILE|-", type=on_ray.PathOrUri(path_type=Path, allow_dash=True))
@model_options
@workers_option
@together_option
@estimator_option
@search_options
@calibration_options
@window_option
@click.option("--output", "-o", type=on_ray.PathOrUri(path_type=Path), help="File to write [default: stdout]")
@click.option(
    "--format",
    "-f",
    "format_",
    type=click.Choice(["jsonl", "csv", "parquet"]),
    help="Of the output [default: by its name, else jsonl]",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing output")
@click.option("--resume", is_flag=True, help="Go on where an interrupted output ends")
@on_ray.ray_option
@click.option("--limit", "-n", type=click.IntRange(min=0), help="Score the first N records only")
@record_options
@click.option(
    "--fail-over",
    type=click.FloatRange(0, 1),
    metavar="P",
    help="Exit with 3 if any record is unsafe with more than P",
)
@click.option("--table", is_flag=True, help="A table for people instead of data")
def score(
    source: Path,
    estimator: str,
    output: Path | None,
    format_: str | None,
    overwrite: bool,
    resume: bool,
    limit: int | None,
    fail_over: float | None,
    table: bool,
    workers: int | None,
    ray_address: str | None,
    **options: Any,
) -> None:
    """Score the records of a JSONL, JSON, CSV or Parquet file, compressed too, or of stdin (-).

    A record has a `text`, or a `prompt` and perhaps a `response`, or `messages` with roles and contents;
    ShareGPT's chats and requests of OpenAI's Batch are read too, and other names with the --…-field options.
    Each gives one row, in order: P(unsafe), a probability for every category, certified bounds, and the
    mass that was not explored or left the guard's grammar. Turns that guards do not judge (system, tool
    calls, images) are left out and counted as `skipped`. A record that cannot be scored gives an error
    row in its place, and exit code 1.
    """
    if resume and (output is None or table):
        raise click.UsageError("--resume needs --output FILE, and no --table")
    if resume and overwrite:
        raise click.UsageError("--resume and --overwrite exclude each other")
    if table and (output is not None or format_ is not None):
        raise click.UsageError("--table is for the screen; leave --output and --format out")
    on_ray.check(ray_address, source, output, table=table)
    if ray_address is not None and options["together"] is not None:
        raise click.UsageError("--together and --ray exclude each other: on many machines each record is scored alone")
    reading = take_reading(options)
    if ray_address is not None:
        options |= {"format_": format_, "workers": workers, "limit": limit, "resume": resume, "overwrite": overwrite}
        _leave(_on_ray(ray_address, source, output, reading=reading, estimator=estimator, **options), fail_over)
    with reported_errors():
        begin_guard()
        from edgeguard.rows.readers import count_records, peeked
        from edgeguard.rows.writer import format_of

        stdout_is_free[0] = output is not None and str(output) != "-"
        to = Output(output, format_ or format_of(output), overwrite, resume)
        with to.claimed({"input": source, **options}) as run:
            opened = _own_stdin() if str(source) == "-" else source
            records = peeked(reading.records(opened, limit=limit))  # what is wrong with the file, before a model
            total = _smaller(count_records(source, format=reading.format, encoding=reading.encoding), limit)
            known = total
            if total is None and workers is None:
                records, known = _a_few(records)
            with open_guard(workers=workers, records=known, estimator=estimator, **options) as guard:
                if table:
                    tally = _show_table(guard, records, source)
                else:
                    tally = _write(guard, records, source, total, to, run, reading)
    _leave(tally, fail_over)


def _leave(tally: Tally, fail_over: float | None) -> NoReturn:
    """End with the exit code that the rows ask for."""
    if fail_over is not None and tally.highest > fail_over:
        say(f"edgeguard: a record is unsafe with {tally.highest:.4g}, over --fail-over {fail_over:g}")
        sys.exit(3)
    sys.exit(1 if tally.errors.total() else 0)


def _on_ray(address: str, source: Path, output: Path | None, **options: Any) -> Tally:
    began = time.perf_counter()
    stdout_is_free[0] = True
    with reported_errors():
        assert output is not None
        outcome = on_ray.score(address, source, output, **options)
    _summarise(outcome.now, time.perf_counter() - began, outcome.before.records)
    return _with_resumed(outcome.now, outcome.before)


@dataclass(frozen=True)
class Output:
    """Where rows go: a file, None or "-" for stdout, and what may be done with one that is there."""

    path: Path | None
    format: str
    overwrite: bool
    resume: bool

    @contextmanager
    def claimed(self, options: Mapping[str, Any]) -> Iterator[OutputRun | None]:
        """The output for this process alone, before a model is loaded. `options` name the files that it must not be."""
        from edgeguard.files import target
        from edgeguard.rows.run import run_file
        from edgeguard.rows.writer import claim

        if self.path is not None and str(self.path) != "-":
            refuse_read([target(self.path), run_file(self.path)], options)
        run = claim(self.path, format=self.format, overwrite=self.overwrite, resume=self.resume)
        with run or nullcontext():
            yield run

    def writer(self, guard: Guard | Workers, run: OutputRun | None, settings: Settings) -> Writer:
        """The open output."""
        from edgeguard.rows.writer import open_writer

        labels = (*guard.codes, *guard.field_labels)
        flags = {"overwrite": self.overwrite, "resume": self.resume}
        return open_writer(self.path, format=self.format, labels=labels, settings=settings, run=run, **flags)


def _own_stdin() -> str | BinaryIO:
    """stdin with a buffer of its own: Python ends badly where a thread still waits at the buffer of sys.stdin."""
    try:
        return open(sys.stdin.fileno(), "rb", closefd=False)  # the thread has it until the process ends
    except (AttributeError, OSError):  # it is closed, or not a file
        return "-"


def _a_few(records: Iterator[Record | Failure]) -> tuple[Iterator[Record | Failure], int | None]:
    """The same records, and how many, where they are few and come at once: for these one process is enough."""
    from edgeguard.ahead import Ahead

    ahead = Ahead(records, lambda record: record, most=_PEEK)
    return ahead, ahead.number_within(_PATIENCE)


def _smaller(total: int | None, limit: int | None) -> int | None:
    return limit if total is None else total if limit is None else min(total, limit)


def _name_of(source: Path) -> str:
    """The file, as the readers' errors name it."""
    return "<stdin>" if str(source) == "-" else printable(str(source))


def _write(
    guard: Guard | Workers,
    records: Iterator[Record | Failure],
    source: Path,
    total: int | None,
    to: Output,
    run: OutputRun | None,
    reading: Reading,
) -> Tally:
    from edgeguard.fingerprint import fingerprint
    from edgeguard.guard import Guard
    from edgeguard.rows.run import digest_of

    tally, where = Tally(), _name_of(source)
    writer = to.writer(guard, run, fingerprint(guard, reading))
    began = time.perf_counter()
    try:
        with writer, _progress(total, writer.resumed) as advance:
            done, begun = _skip_resumed(records, where, writer, to.path, together=guard.runtime.together)
            records = chain(begun, records)
            judged = guard.judged(records, Guard.score, many=Guard.score_together, where=where)
            for record, result in islice(judged, len(begun), None):
                row = result.row()
                writer.write(row, digest_of(record, where))
                tally.add(row)
                advance()
    except BrokenPipeError:
        drop(sys.stdout)
        say(f"edgeguard: the output was closed after {tally.records} rows")
        sys.exit(1)
    except KeyboardInterrupt:
        again = f"; run again with --resume to go on from row {writer.rows}" if to.path else ""
        say(f"edgeguard: interrupted after {tally.records} records{again}")
        sys.exit(130)
    _summarise(tally, time.perf_counter() - began, writer.resumed, guard.runtime.together)
    return _with_resumed(tally, done)


def _skip_resumed(
    records: Iterator[Record | Failure], where: str, writer: Writer, output: Path | None, *, together: int | None
) -> tuple[Tally, list[Record | Failure]]:
    """Pass over the records whose rows are there already, and check that they are theirs.

    Of records that are scored together, those of the block that was broken off are given back: the others get the bits
    that they would have had.
    """
    from edgeguard.errors import OutputError
    from edgeguard.rows.run import digest_of

    done, again = Tally(), list[Any]()
    for number, row in enumerate(writer.resumed_rows(), 1):
        record = next(records, None)
        if record is None:
            raise OutputError(f"{output} has {writer.resumed} rows, the input only {number - 1}; it is not its output")
        if _as_text(record.id) != _as_text(row.id):
            raise OutputError(
                f"{output}: row {number} has id {row.id!r}, the input's record {number} has {record.id!r}; "
                "this is not the output of this input"
            )
        if digest_of(record, where) != row.record:
            raise OutputError(
                f"{output}: row {number} was made of a record with another content than the input's record {number} "
                f"(line {record.line}); was one changed, put in or taken out? This is not the output of this input"
            )
        done.records += 1
        done.errors["resumed"] += row.is_error
        done.flagged += row.flagged
        done.highest = max(done.highest, row.unsafe or 0.0)
        if together is not None:
            again = [] if number % together == 0 else [*again, record]
    return done, again


def _as_text(id_: str | int | None) -> str:
    """CSV and Parquet know ids as strings only."""
    return "" if id_ is None else str(id_)


def _with_resumed(tally: Tally, done: Tally) -> Tally:
    return Tally(
        records=tally.records + done.records,
        flagged=tally.flagged + done.flagged,
        errors=tally.errors + done.errors,
        highest=max(tally.highest, done.highest),
    )


def _progress(total: int | None, done: int) -> AbstractContextManager[Any]:
    """A bar with rate and time left on stderr, on a terminal only."""
    if not sys.stderr.isatty():
        return nullcontext(lambda: None)
    from edgeguard.cli.screen.progress import progress

    return progress(total, done)


def _summarise(tally: Tally, seconds: float, resumed: int, together: int | None = None) -> None:
    rate = tally.records / seconds if seconds > 0 else 0.0
    parts = [
        f"{tally.records} records" + (f" (and {resumed} resumed)" if resumed else ""),
        f"{tally.flagged} flagged",
        f"{tally.errors.total()} errors",
        *([f"{together} together"] if together is not None else []),
        *([f"{tally.windowed} scored in {tally.windows} windows"] if tally.windowed else []),
        *([f"{tally.skipped} turns or parts left out of {tally.shortened} records"] if tally.skipped else []),
        f"{rate:.1f} records/s",
        f"{tally.evaluated} tokens evaluated, {tally.reused} reused",
    ]
    say(", ".join(parts))
    for line in advised_rows(tally.errors):
        say(f"edgeguard: {line}")


def _show_table(guard: Guard | Workers, records: Iterator[Record | Failure], source: Path) -> Tally:
    from edgeguard.cli.screen.scores import print_scores
    from edgeguard.guard import Guard
    from edgeguard.rows.record import Failure, Record

    tally, lines, began = Tally(), [], time.perf_counter()
    judged = guard.judged(records, Guard.score, many=Guard.score_together, where=_name_of(source))
    for record, result in judged:
        tally.add(result.row())
        text = record.messages[-1].content if isinstance(record, Record) else ""
        window = None if isinstance(result, Failure) else result.window
        if window is not None:
            text = f"[window {window.number} of {window.of}] {text[window.begin : window.end]}"
        lines.append((printable(text[:200]), result))
    print_scores(lines, {category.code: category.name for category in guard.profile.categories})
    _summarise(tally, time.perf_counter() - began, 0, guard.runtime.together)
    return tally
