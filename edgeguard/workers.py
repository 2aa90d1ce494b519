"""A guard in several processes at once: many records, all cores.

A record's scores are the same bits in any of them, and in one process with as many threads. The processes share the
pages of a GGUF file, which llama.cpp maps into memory; each has a context of its own.
"""

from __future__ import annotations

import glob
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from edgeguard.ahead import Ahead
from edgeguard.backend import Device, RuntimeOptions
from edgeguard.backends import runtime_of
from edgeguard.calibration.maps import Calibration
from edgeguard.calibration.thresholds import Thresholds
from edgeguard.errors import ModelError, RecordError, WorkerDied
from edgeguard.formats.model_file import find_model
from edgeguard.forms import Tell, in_log
from edgeguard.guard import EstimatorName, Guard, Score, Search, WindowSize, prepared
from edgeguard.machine import available_cores, free_memory
from edgeguard.pool import Pool
from edgeguard.profile import Profile
from edgeguard.rows.judging import Input, answered, blocks, judged, understood
from edgeguard.rows.record import Failure, Record
from edgeguard.rows.shapes import make_record

T = TypeVar("T")

AHEAD = 8  # records a process that are read and not answered, so that one that takes long keeps nobody waiting
BLOCKS_AHEAD = 2  # blocks a process, where records go together
HEAVIEST = 32 << 20  # characters in all of them
SMALL = 1 << 30  # bytes of a model's file: from here on threads are as good, and its processes cost too much memory
EACH = 8  # records that are worth a process's start
MEMORY = 512 << 20  # bytes that a process may take beside the weights: the context of a small model, and Python


# How many


@dataclass(frozen=True)
class Plan:
    """How to spread a run: processes, and threads of each; None: as many as there are cores."""

    workers: int = 1
    threads: int | None = None


def plan(
    *,
    workers: int | None,
    threads: int | None,
    device: Device,
    model_bytes: int | None,
    records: int | None,
    cores: int,
    memory: int | None,
) -> Plan:
    """What a run takes where it was not told: `workers` and `threads` are what was asked for.

    model_bytes, records, memory  of the model's file, to come, and free; None: not known

    A small model gets a process of one thread for each core, as far as memory and records go; a big one, and one on a
    GPU, a single process with all threads. The number of threads never depends on the records: it may change bits.
    """
    if workers is not None:
        return Plan(workers, threads or 1)
    if threads is not None or device != "cpu" or model_bytes is None or model_bytes > SMALL:
        return Plan(1, threads)
    most = cores
    if memory is not None:
        most = min(most, memory // (MEMORY + model_bytes))
    if records is not None:
        most = min(most, -(-records // EACH))
    return Plan(max(1, most), 1)


def planned(path: Path, runtime: RuntimeOptions, *, workers: int | None = None, records: int | None = None) -> Plan:
    """The plan for a model's file or folder, on this machine as it is now."""
    try:
        takes_threads = "threads" in runtime_of(path).takes
    except ModelError:  # who opens it says so
        takes_threads = True
    if not takes_threads:
        return Plan(workers or 1, runtime.threads)  # its processes cannot be kept from taking all cores
    return plan(
        workers=workers,
        threads=runtime.threads,
        device=runtime.device,
        model_bytes=size_of(path),
        records=records if records is None or runtime.together is None else -(-records // runtime.together) * EACH,
        cores=available_cores(),
        memory=free_memory(),
    )


def size_of(path: Path) -> int | None:
    """Bytes of a model's file: all parts of a GGUF, and what lies beside an ONNX graph under its name.

    None: not known.
    """
    try:
        file = find_model(path).path if path.is_dir() else path
        part = re.fullmatch(r"(.*-)\d{5}(-of-\d{5}\.gguf)", file.name)
        if part:
            files = list(file.parent.glob(f"{glob.escape(part[1])}[0-9][0-9][0-9][0-9][0-9]{glob.escape(part[2])}"))
        elif file.suffix == ".onnx":
            files = [beside for beside in file.parent.iterdir() if beside.name.startswith(file.name)]
        else:
            files = [file]
        return sum(one.stat().st_size for one in files)
    except (ModelError, OSError, ValueError):  # ValueError: a NUL in the path
        return None


# The processes


@dataclass(frozen=True)
class _Opening:
    """What a process opens: the arguments of `Guard.load`."""

    model: str | Path | None
    options: Mapping[str, Any]

    def __call__(self) -> Guard:
        guard: Guard = Guard.load(self.model, **self.options)
        return guard


@dataclass(frozen=True)
class _Facts:
    """What the processes say of their guard; all say the same, or one has found other files."""

    name: str
    estimator: EstimatorName
    profile: Profile
    codes: tuple[str, ...]
    field_labels: tuple[str, ...]
    questions: tuple[str | None, ...]
    umbrella: str | None
    lists_codes: bool
    model_sha256: str
    calibration: Calibration | None
    thresholds: Thresholds


def _facts(guard: Guard) -> _Facts:
    return _Facts(**{name: getattr(guard, name) for name in _Facts.__dataclass_fields__})


class Workers:
    """A guard in several processes. Use as a context manager, or close it.

    It has what `Guard` says of itself, and scores as `Guard` does; any number of threads may ask. A process that dies
    is replaced and its record tried once more; then the record is a Failure of kind "worker_died" in its place, and
    the others go on. The processes end with this one, even where that is killed.

    >>> with Workers(workers=4) as workers:                         # doctest: +SKIP
    ...     for result in workers.score_many(records):
    ...         print(result.row())
    """

    name: str
    estimator: EstimatorName
    profile: Profile
    codes: tuple[str, ...]
    field_labels: tuple[str, ...]
    questions: tuple[str | None, ...]
    umbrella: str | None
    lists_codes: bool
    model_sha256: str
    calibration: Calibration | None
    thresholds: Thresholds

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        workers: int | Plan | None = None,
        at_once: int | None = None,
        profile: str | Path | Profile | None = None,
        policies: Sequence[str] | None = None,
        strictness: str | None = None,
        estimator: EstimatorName = "marginal",
        runtime: RuntimeOptions = RuntimeOptions(),
        search: Search = Search(),
        calibration: str | Path | Calibration | bool = True,
        thresholds: Thresholds | Mapping[str, float] | None = None,
        window: WindowSize | None = None,
        tell: Tell = in_log,
    ) -> None:
        """Start the processes; each loads the guard by the other arguments, as `Guard.load`, whose errors are raised.

        workers  processes, or processes and threads; None: as `plan` says, one for each core where the model is small
        at_once  processes to start now, the others as records wait; None: all
        runtime  without `threads`, each process has one
        tell     as of `Guard.load`; what several processes say, it hears once
        """
        model, path = prepared(model, profile, runtime, tell=tell)
        chosen = workers if isinstance(workers, Plan) else planned(path, runtime, workers=workers)
        runtime = replace(runtime, threads=chosen.threads)
        options = {
            "profile": profile,
            "policies": policies,
            "strictness": strictness,
            "estimator": estimator,
            "runtime": runtime,
            "search": search,
            "calibration": calibration,
            "thresholds": thresholds,
            "window": window,
        }
        self.workers, self.runtime = chosen.workers, runtime
        self._pool = Pool(
            _Opening(model, options),
            hello=_facts,
            n=chosen.workers,
            start=chosen.workers if at_once is None else at_once,
            what="a worker process",
            tell=tell,
        )
        try:
            self._facts: _Facts = self._pool.hello()
        except BaseException:
            self._pool.close()
            raise

    def __getattr__(self, name: str) -> Any:
        """What the guard says of itself."""
        if name in _Facts.__dataclass_fields__:
            return getattr(self._facts, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def score(self, record: str | Mapping[str, Any] | Record) -> Score:
        """As `Guard.score`, in one of the processes. Raises WorkerDied, a RecordError, too."""
        return self.ask(Guard.score, make_record(record))

    def score_many(self, records: Iterable[Input]) -> Iterator[Score | Failure]:
        """As `Guard.score_many`. The records are read in a thread of its own, some ahead of their results."""
        return (result for _, result in self.judged(records, Guard.score, many=Guard.score_together))

    def judged(
        self,
        records: Iterable[Input],
        task: Callable[[Guard, Record], T],
        *,
        many: Callable[[Guard, Sequence[Record]], Sequence[T | RecordError]] | None = None,
        where: str = "",
    ) -> Iterator[tuple[Record | Failure, T | Failure]]:
        """As `Guard.judged`. `task` and `many` are sent by pickle: a function of a module, a method, a `partial`."""
        if self.runtime.together is not None and many is not None:
            return self._judged_together(records, many, self.runtime.together, where)
        return self._judged(records, task, where)

    def _judged_together(
        self,
        records: Iterable[Input],
        many: Callable[[Guard, Sequence[Record]], Sequence[T | RecordError]],
        n: int,
        where: str,
    ) -> Iterator[tuple[Record | Failure, T | Failure]]:
        """In blocks, each a task. One whose processes died is tried once more record by record."""

        def sent(block: Block) -> tuple[Block, Future[Sequence[T | RecordError]] | None]:
            fit = _fit(block)
            return block, self._pool.submit(many, fit) if fit else None

        def alone(record: Record) -> T | RecordError:
            try:
                return self.ask(many, [record])[0]
            except WorkerDied as error:
                return error

        ahead = Ahead(
            blocks(map(understood, records), n),
            sent,
            most=BLOCKS_AHEAD * self.workers,
            weigh=lambda block: sum(map(_weight, block)),
            heaviest=HEAVIEST,
        )
        try:
            for block, answer in ahead:
                try:
                    results = answer.result() if answer is not None else ()
                except WorkerDied:
                    results = [alone(record) for record in _fit(block)]
                yield from answered(block, results, where=where)
        finally:
            for _, left in ahead.close():
                if left is not None:
                    left.cancel()

    def _judged(
        self, records: Iterable[Input], task: Callable[[Guard, Record], T], where: str
    ) -> Iterator[tuple[Record | Failure, T | Failure]]:
        def sent(record: Record | Failure) -> tuple[Record | Failure, Future[T] | None]:
            return record, None if isinstance(record, Failure) else self._pool.submit(task, record)

        ahead = Ahead(map(understood, records), sent, most=AHEAD * self.workers, weigh=_weight, heaviest=HEAVIEST)
        answers: deque[Future[T]] = deque()  # that of the record in hand, and no other

        def in_order() -> Iterator[Record | Failure]:
            for record, answer in ahead:
                if answer is not None:
                    answers.append(answer)
                yield record

        def result_of(record: Record) -> T:
            return answers.popleft().result()

        try:
            yield from judged(in_order(), result_of, where=where)
        finally:
            for _, left in ahead.close():
                if left is not None:
                    left.cancel()

    def ask(self, task: Callable[[Guard, Any], T], item: Any = None) -> T:
        """What `task(guard, item)` gives in one of the processes; both are sent by pickle."""
        return self.submit(task, item).result()

    def submit(self, task: Callable[[Guard, Any], T], item: Any = None, *, worker: int | None = None) -> Future[T]:
        """What `ask` waits for; a server has other things to do meanwhile (`asyncio.wrap_future`).

        Cancelled before a process has begun with it, it is never done.

        worker  the process that is to do it, of 0 … workers - 1; None: whichever has time first
        """
        return self._pool.submit(task, item, seat=worker)

    @property
    def deaths(self) -> int:
        """How many of the processes have died so far; others stand in their places."""
        return self._pool.deaths

    def close(self) -> None:
        """End the processes, in the midst of what they do. Calling it twice is fine."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


Block = tuple[Record | Failure, ...]


def _fit(block: Block) -> list[Record]:
    """Those of a block that could be understood."""
    return [record for record in block if isinstance(record, Record)]


def _weight(record: Record | Failure) -> int:
    """Characters of it."""
    return 0 if isinstance(record, Failure) else sum(len(message.content) for message in record.messages)


def open_guard(
    model: str | Path | None = None,
    *,
    workers: int | None = None,
    records: int | None = None,
    isolated: bool = False,
    profile: str | Path | Profile | None = None,
    runtime: RuntimeOptions = RuntimeOptions(),
    tell: Tell = in_log,
    **options: Any,
) -> Guard | Workers:
    """A guard for many records: in this process, or in several, as `plan` says. `options` are those of `Guard.load`.

    records   how many are to come, where that is known
    isolated  not in this process, also where one is enough
    """
    model, path = prepared(model, profile, runtime, tell=tell)
    chosen = planned(path, runtime, workers=workers, records=records)
    options |= {"profile": profile, "runtime": replace(runtime, threads=chosen.threads), "tell": tell}
    if chosen.workers == 1 and not isolated:
        guard: Guard = Guard.load(model, **options)
        return guard
    # Where nobody knows how many come, the first is started alone: one may be all that is needed.
    unknown = 1 if workers is None else chosen.workers
    at_once = unknown if records is None else min(chosen.workers, max(1, records))
    return Workers(model, workers=chosen, at_once=at_once, **options)


def isolated(model: str | Path | None = None, *, runtime: RuntimeOptions = RuntimeOptions(), **options: Any) -> Workers:
    """A guard in one process that is not this one, with the threads of `Guard.load`, whose other arguments it takes.

    What native code does there, a crash on a hostile model file or text, is a ModelError or a WorkerDied here.
    """
    return Workers(model, workers=Plan(1, runtime.threads), runtime=runtime, **options)


def score_many(
    records: Iterable[Input],
    model: str | Path | None = None,
    *,
    workers: int | None = None,
    together: int | None = None,
    **options: Any,
) -> Iterator[Score | Failure]:
    """Score a stream on all cores: one result a record, in order, as they come. A bad record is a Failure in its place.

    workers   processes; None: as `plan` says. 1: this one
    together  records that go through the model in one batch, as `RuntimeOptions` has it: a mode with noise of its own
    options   of `Guard.load`
    """
    if together is not None:
        options["runtime"] = replace(options.get("runtime", RuntimeOptions()), together=together)
    with open_guard(model, workers=workers, **options) as guard:
        yield from guard.score_many(records)
