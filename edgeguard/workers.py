"""All cores: the same guard in several processes, fed in order, answering in order, with the bits of one."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import IO, Any, NoReturn, Self

from edgeguard import process
from edgeguard.backend import RuntimeOptions
from edgeguard.errors import ModelError, RecordError
from edgeguard.fingerprint import contents
from edgeguard.guard import Guard, Score
from edgeguard.rows.judging import Input, judged, understood
from edgeguard.rows.record import Failure, Record, failure_of

_ATTEMPTS = 2
_AHEAD = 16  # records a worker, read and not yet given back: one that takes long keeps the others busy so far
_CHARACTERS = 2**26  # of their texts, all workers together
_LAST_LINES = 8


@dataclass(frozen=True)
class About:
    """What a guard is, for who writes its rows without having it.

    model_sha256  as a score has it
    contents      everything of it that can change a row, as `fingerprint.contents` gives it
    codes         of the taxonomy, those asked about, in order; names: code → its name
    field_labels  what rows report besides, as "field=label"
    """

    estimator: str
    profile: str
    model_sha256: str
    codes: tuple[str, ...]
    names: Mapping[str, str]
    field_labels: tuple[str, ...]
    contents: Mapping[str, str | int | float | bool | None]


def about(guard: Guard) -> About:
    """What a loaded guard is."""
    return About(
        estimator=guard.estimator,
        profile=guard.profile.name,
        model_sha256=guard.backend.info.sha256,
        codes=guard.codes,
        names={category.code: category.name for category in guard.profile.categories},
        field_labels=guard.field_labels,
        contents=contents(guard),
    )


class Workers:
    """Processes with a guard each. Use as a context manager, or close it: that ends them.

    A record's scores are the bits that one process with as many threads gives, whatever the number of workers. A
    worker that dies is started anew, and its record is tried once more; then it is a Failure of kind "worker_died".
    Workers end with this process, however it ends. Any number of threads may use one pool.

    >>> with Workers(2) as workers:                                 # doctest: +SKIP
    ...     for result in workers.score_many(records):
    ...         print(result.row())
    """

    def __init__(
        self,
        n: int,
        model: str | Path | None = None,
        *,
        runtime: RuntimeOptions = RuntimeOptions(),
        load: Callable[..., Guard] = Guard.load,
        **arguments: Any,
    ) -> None:
        """Start n processes and wait until each has its guard.

        runtime    as of `Guard.load`, but one thread each where it names no number
        load       what makes a worker's guard: a function that its process can import by name
        arguments  the others of `Guard.load`

        Raises what `load` raises, and ModelError where a process ended before its model was loaded.
        """
        if n < 1:
            raise ValueError(f"{n} workers were asked for; expected at least 1")
        if runtime.threads is None:
            runtime = replace(runtime, threads=1)
        self._job = pickle.dumps((load, {"model": model, "runtime": runtime, **arguments}))
        self._lock = threading.Lock()
        self._closing = False
        self._waiting: SimpleQueue[_Task | None] = SimpleQueue()
        self._processes: list[_Process] = []
        self._drivers: list[threading.Thread] = []
        try:
            for _ in range(n):
                self._processes.append(_Process(self._job))
            *_, self.about = [one.ready() for one in self._processes]
        except BaseException:
            self.close()
            raise
        self._drivers += [threading.Thread(target=self._drive, args=(seat,), daemon=True) for seat in range(n)]
        for driver in self._drivers:
            driver.start()

    def score_many(self, records: Iterable[Input]) -> Iterator[Score | Failure]:
        """As `Guard.score_many`: one result a record, in order, as they come; a bad record is a Failure in its place.

        The records are read in a thread of their own, as far ahead as keeps the workers busy: 16 a worker at most.
        """
        return (result for _, result in self.judged(records))

    def judged(
        self, records: Iterable[Input], *, where: str = ""
    ) -> Iterator[tuple[Record | Failure, Score | Failure]]:
        """Each record as it was understood, and its score, as `rows.judging.judged` gives them.

        where  the records' file, for the messages of what cannot be scored
        """
        if self._closing:
            raise ValueError("the workers are closed")
        stream = _Stream(_Window(_AHEAD * len(self._processes), _CHARACTERS))
        # A thread, so that results are given back while the next record is waited for: it may come in an hour.
        threading.Thread(target=self._feed, args=(records, where, stream), daemon=True).start()
        try:
            while (task := stream.ordered.get()) is not None:
                task.done.wait()
                stream.window.leave(task.size)
                if isinstance(task.result, BaseException):
                    raise task.result
                assert task.result is not None
                yield task.record, task.result
        finally:
            stream.window.close()

    def close(self) -> None:
        """End the processes, whatever they do. Calling it twice is fine; scoring after it is a ValueError."""
        with self._lock:
            self._closing = True
            for one in self._processes:
                one.kill()
        for _ in self._drivers:
            self._waiting.put(None)
        for driver in self._drivers:
            if driver.ident is not None:
                driver.join()
        for one in self._processes:
            one.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _feed(self, records: Iterable[Input], where: str, stream: _Stream) -> None:
        """Read records into the stream's order and before the workers, no further ahead than its window."""
        try:
            for given in records:
                task = _Task(understood(given), where, stream)
                if not stream.window.enter(task.size):
                    return
                stream.ordered.put(task)
                if isinstance(task.record, Failure):
                    task.finish(task.record)
                    continue
                with self._lock:  # behind the last words of `close` nobody would take it
                    if self._closing:
                        task.finish(ValueError("the workers are closed"))
                    else:
                        self._waiting.put(task)
            stream.ordered.put(None)
        except BaseException as error:  # of the records: it is raised in its place, after the rows before it
            broken = _Task(Failure(None, "", ""), where, stream)
            broken.finish(error)
            stream.ordered.put(broken)

    def _drive(self, seat: int) -> None:
        """Hand tasks to the process in one seat, one by one."""
        while (task := self._waiting.get()) is not None:
            if task.stream.window.closed:
                continue  # nobody waits for it
            try:
                task.finish(task.stream.error or self._asked(seat, task))
            except Exception as error:  # no process can be started any more: who has taken a later record need not try
                task.stream.error = error
                task.finish(error)

    def _asked(self, seat: int, task: _Task) -> Result:
        data, died = pickle.dumps((task.record, task.where)), ""
        for _ in range(_ATTEMPTS):
            try:
                answer: Result = self._alive(seat).ask(data)
                return answer
            except _Died as error:
                died = process.ending("the process that scored it", error.code)
        assert isinstance(task.record, Record)
        said = RecordError(f"{died}, {_ATTEMPTS} times; its text may be too much for the runtime", kind="worker_died")
        return failure_of(said, task.record.id, where=task.where, line=task.record.line)

    def _alive(self, seat: int) -> _Process:
        """The seat's process, a new one if need be. Raises ValueError where the workers are closed."""
        one = self._processes[seat]
        if one.is_alive():
            return one
        with self._lock:
            if self._closing:
                raise ValueError("the workers are closed")
            one.end()
            self._processes[seat] = one = _Process(self._job)
        one.ready()
        return one


Result = Score | Failure | BaseException


class _Task:
    """A record on its way. `result` is there when `done` is set; an exception is to be raised in its place."""

    def __init__(self, record: Record | Failure, where: str, stream: _Stream) -> None:
        self.record, self.where, self.stream = record, where, stream
        self.size = sum(len(m.content) for m in record.messages) if isinstance(record, Record) else 0
        self.done = threading.Event()
        self.result: Result | None = None

    def finish(self, result: Result) -> None:
        self.result = result
        self.done.set()


class _Window:
    """How much may be between the records' source and who takes the results: a number, and characters.

    One record is let in whatever its size.
    """

    def __init__(self, records: int, characters: int) -> None:
        self._changed, self._limits = threading.Condition(), (records, characters)
        self._records = self._characters = 0
        self.closed = False

    def enter(self, size: int) -> bool:
        """Wait for room. False: the window is closed."""
        records, characters = self._limits
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self.closed
                    or self._records == 0
                    or (self._records < records and self._characters + size <= characters)
                )
            )
            self._records += 1
            self._characters += size
            return not self.closed

    def leave(self, size: int) -> None:
        with self._changed:
            self._records -= 1
            self._characters -= size
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self.closed = True
            self._changed.notify()


class _Stream:
    """The records of one call. `ordered` ends with None; `error` is why no more of them can be scored."""

    def __init__(self, window: _Window) -> None:
        self.window = window
        self.ordered: SimpleQueue[_Task | None] = SimpleQueue()
        self.error: Exception | None = None


class _Died(Exception):
    """The process has ended. `code` as Popen's returncode."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class _Process:
    """One worker process, as its driver sees it. Not forked: llama.cpp and fork do not go together."""

    def __init__(self, job: bytes) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-c", process.start(__name__), *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self._child.stdin is not None and self._child.stdout is not None and self._child.stderr is not None
        self._to, self._from = self._child.stdin, self._child.stdout
        self._last: deque[str] = deque(maxlen=_LAST_LINES)
        self._drain = threading.Thread(target=_drained, args=(self._child.stderr, self._last), daemon=True)
        self._drain.start()
        with suppress(BrokenPipeError):  # `ready` says so
            _write(self._to, job)

    def ready(self) -> About:
        """Wait until the guard is loaded. Raises what loading raised, ModelError where the process ended."""
        try:
            said = self._answer()
        except _Died as died:
            self._drain.join(5)
            raise ModelError(
                f"{process.ending('a worker process', died.code)} before its model was loaded: "
                f"{process.last_words(self._last)}",
                kind="worker_not_started",
            ) from None
        if isinstance(said, BaseException):
            self.end()
            raise said
        assert isinstance(said, About)
        return said

    def ask(self, data: bytes) -> Any:
        """The answer to a message. Raises _Died."""
        try:
            _write(self._to, data)
        except OSError:
            raise _Died(self.end()) from None
        return self._answer()

    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return self._child.poll() is None

    def kill(self) -> None:
        """End the process. Its driver may wait for an answer: that ends with _Died."""
        self._child.kill()
        self._child.wait()

    def end(self) -> int:
        """End it for good, pipes too: for its driver alone. The exit status."""
        self.kill()
        for pipe in (self._to, self._from):
            with suppress(OSError):
                pipe.close()
        return self._child.returncode

    def _answer(self) -> Any:
        try:
            return pickle.loads(_read(self._from))
        except EOFError:
            raise _Died(self.end()) from None


def _drained(stream: IO[bytes], last: deque[str]) -> None:
    """Keep the last lines: a pipe that nobody reads would stop the process."""
    with stream:
        for raw in stream:
            line = raw.decode(errors="replace").strip()
            if any(map(str.isalnum, line)):
                last.append(line)


def _write(stream: IO[bytes], data: bytes) -> None:
    stream.write(len(data).to_bytes(8, "little"))
    stream.write(data)
    stream.flush()


def _read(stream: IO[bytes]) -> bytes:
    """One message. Raises EOFError where the other side has ended, in the middle of one too."""
    head = stream.read(8)
    data = stream.read(int.from_bytes(head, "little")) if len(head) == 8 else b""
    if len(head) < 8 or len(data) < int.from_bytes(head, "little"):
        raise EOFError
    return data


# In the worker's process. Both ends are this program: what goes through the pipes is pickled.


def _child() -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it, and ends this process
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a runtime prints is no answer
    messages: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, messages), daemon=True).start()
    try:
        _work(messages.get, lambda answer: _write(answers, _pickled(answer)))
    except Exception as error:
        sys.stderr.write(f"\n{type(error).__name__}: {error}\n")
        sys.stderr.flush()
    os._exit(1)  # the thread still waits


def _listen(stream: IO[bytes], messages: SimpleQueue[bytes]) -> None:
    """Messages as they come. When the parent has ended, however it did, so does this process, in a record's middle."""
    try:
        while True:
            messages.put(_read(stream))
    finally:  # whatever stopped it: nobody would hear the parent any more
        os._exit(1)


def _work(receive: Callable[[], bytes], say: Callable[[object], None]) -> None:
    try:
        load, arguments = pickle.loads(receive())
        guard = load(**arguments)
    except Exception as error:
        return say(error)
    say(about(guard))
    while True:
        record, where = pickle.loads(receive())
        try:
            ((_, result),) = judged([record], guard.score, where=where)
        except Exception as error:
            result = error
        say(result)


def _pickled(answer: object) -> bytes:
    """An error that cannot be pickled, and one that cannot be made again of what it was, goes as its text."""
    try:
        data = pickle.dumps(answer)
        if isinstance(answer, Exception):
            pickle.loads(data)
    except Exception:
        data = pickle.dumps(RuntimeError(f"{type(answer).__name__}: {answer}"))
    return data
