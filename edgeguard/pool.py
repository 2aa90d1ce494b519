"""A pool of processes, each of which opens something that is slow to open, and then does tasks with it.

What goes over the pipes is pickle of our own values, a length before each. A process that dies is replaced, the task
that it had is done once more, and after that it is that task's error. The processes end with this one, however it
ends: they notice that the pipe they read is closed.
"""

from __future__ import annotations

import importlib
import logging
import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, BinaryIO, NoReturn, Self, TypeVar

from edgeguard.ahead import block_interrupts
from edgeguard.errors import EdgeguardError, ModelError, WorkerDied
from edgeguard.process import ending, last_words, start

T = TypeVar("T")
Opening = Callable[[], AbstractContextManager[Any]]
Task = Callable[[Any, Any], T]

_ATTEMPTS = 2  # processes that a task may end
_OPENINGS = 3  # times that a process may die while it opens, or idle under one task's eyes, until it is an error
_REST = 5.0  # seconds for which no process is started after one could not open; tasks get its error meanwhile
_PATIENCE = 5.0  # seconds that a process gets to end after its pipes have
_LAST_LINES, _LONGEST_LINE = 8, 1 << 14
_REMEMBERED = 64  # lines that were told and are not told again
_LENGTH = struct.Struct("!Q")


@dataclass(frozen=True, eq=False)
class _Job:
    """A task, pickled, where its result goes, and the one process that may do it; None: any."""

    data: bytes
    future: Future[Any]
    seat: int | None = None


_begun: deque[tuple[_Child, Any]] = deque()  # started ahead, and of no pool yet; with what it has of this process


def begin(module: str) -> None:
    """Start a process now, which imports `module`, for the first pool that will want one.

    For a command that knows it will score, while it imports what it needs itself. It ends with this process. Where one
    was begun already there is no other.
    """
    if not _begun:
        with suppress(ModelError):  # the pool says so
            _begun.append((_Child(_folder(), module), _inherited()))


def _inherited() -> Any:
    return _folder(), dict(os.environ), list(sys.path)


def _begun_one() -> _Child | None:
    """The process that was started ahead, if it has what one would have that is started now."""
    if not _begun:
        return None
    child, inherited = _begun.popleft()
    if inherited == _inherited():
        return child
    child.close()
    return None


class Pool:
    """Processes that do tasks. They are started as tasks wait; a context manager, or close it.

    opening  what each process opens: picklable, gives a context manager
    hello    said by each process of what it has opened; it must be the same of all
    n        processes at most; start: so many at once
    what     they are called in messages: "the process that loads guard.gguf"
    tell     hears what the processes say in the log "edgeguard", line by line; what several say, once

    Any thread may submit tasks. Closing ends the processes in the midst of what they do. Where a process cannot open,
    tasks get the error; after some seconds another process is tried.
    """

    def __init__(
        self,
        opening: Opening,
        *,
        hello: Callable[[Any], Any],
        n: int,
        start: int = 1,
        what: str = "the process",
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        if n < 1:
            raise ValueError(f"{n} processes were asked for, expected at least 1")
        self._opening, self._n, self._what, self._tell = pickle.dumps((opening, hello)), n, what, tell
        self._folder = _folder()
        self._changed = threading.Condition()
        self._jobs: deque[_Job] = deque()
        self._seats: list[_Seat] = []
        self._idle = 0
        self._hello: tuple[Any] | None = None
        self._broken: tuple[BaseException, float] | None = None  # what a process could not open for, and when
        self._told: deque[str] = deque(maxlen=_REMEMBERED)
        self._closed = False
        self._deaths = 0
        with self._changed:
            for _ in range(min(n, max(1, start))):
                self._add_seat()

    def hello(self) -> Any:
        """What the processes say of what they have opened, when the first has. Raises what kept it from opening."""
        with self._changed:
            self._changed.wait_for(lambda: self._hello or self._broken or self._closed)
            if self._hello is not None:
                return self._hello[0]
            raise self._broken[0] if self._broken else ValueError("the pool is closed")

    @property
    def deaths(self) -> int:
        """How many processes have ended that nobody had ended, so far."""
        return self._deaths

    def submit(self, task: Task[T], item: Any, *, seat: int | None = None) -> Future[T]:
        """Have `task(opened, item)` done; both are pickled here. Its result, or what it raised, or WorkerDied.

        seat  the process that does it, of 0 … n - 1, or what stands in its place; None: whichever has time
        """
        if seat is not None and not 0 <= seat < self._n:
            raise ValueError(f"seat is {seat}; the pool has {self._n}")
        job = _Job(pickle.dumps((task, item)), Future(), seat)
        with self._changed:
            if self._closed:
                raise ValueError("the pool is closed")
            self._jobs.append(job)
            if len(self._jobs) > self._idle and len(self._seats) < self._n:
                self._add_seat()
            while seat is not None and len(self._seats) <= seat:
                self._add_seat()
            self._changed.notify_all()
        return job.future

    def close(self) -> None:
        """End all processes, now. What was not done is cancelled. Calling it twice is fine."""
        with self._changed:
            self._closed = True
            left, seats = [*self._jobs], [*self._seats]
            self._jobs.clear()
            self._changed.notify_all()
        for job in left:
            job.future.cancel()
        for seat in seats:
            seat.end()
        for seat in seats:
            seat.thread.join(_PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _add_seat(self) -> None:
        seat = _Seat(self, len(self._seats))
        self._seats.append(seat)
        seat.thread.start()

    # What seats call

    def next(self, seat: int) -> _Job | None:
        """The next job for this seat, as soon as there is one; None where there will be none."""
        with self._changed:
            self._idle += 1
            self._changed.wait_for(lambda: self._next(seat) or self._closed)
            self._idle -= 1
            job = self._next(seat)
            if job is not None:
                self._jobs.remove(job)
            return job

    def _next(self, seat: int) -> _Job | None:
        return next((job for job in self._jobs if job.seat is None or job.seat == seat), None)

    def died(self) -> None:
        """Hear that a process has ended, and nobody had ended it."""
        with self._changed:
            self._deaths += 1

    def opened(self, hello: Any) -> None:
        """Hear what one process has opened. Raises ModelError where it is not what the others have."""
        with self._changed:
            if self._hello is None:
                self._hello = (hello,)
            elif self._hello[0] != hello:
                raise ModelError(
                    f"{self._what} found other files than those before it: they changed meanwhile; run again"
                )
            self._broken = None
            self._changed.notify_all()

    def broke(self, error: BaseException) -> None:
        """Hear that a process could not open."""
        with self._changed:
            if self._broken is None or self._broken[0] is not error:
                self._broken = (error, time.monotonic())
            self._changed.notify_all()

    def child(self) -> _Child:
        """A new process, that has not opened. Raises ModelError, and what one could not open for a moment ago."""
        with self._changed:
            if self._broken is not None and time.monotonic() < self._broken[1] + _REST:
                raise self._broken[0]
            child = _begun_one()
        child = child or _Child(self._folder)
        child.what, child.heard = self._what, self._heard
        return child

    @property
    def opening(self) -> bytes:
        """The first message to a process."""
        return self._opening

    def _heard(self, line: str) -> None:
        with self._changed:
            if line in self._told:
                return
            self._told.append(line)
        self._tell(line)


def _folder() -> str | None:
    """Of the paths in `opening`, for processes that are started later too. None: it is gone, and so are they."""
    try:
        return os.getcwd()
    except OSError:
        return None


class _Seat:
    """A thread of the pool with its process, which it starts, asks, and replaces."""

    def __init__(self, pool: Pool, number: int) -> None:
        self._pool, self._number = pool, number
        self._child: _Child | None = None
        self._ended = False
        self._lock = threading.Lock()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def end(self) -> None:
        """End the process, from another thread; whoever waits for it sees it die."""
        with self._lock:
            self._ended = True
            if self._child is not None:
                self._child.end()

    def _run(self) -> None:
        block_interrupts()
        with suppress(_Closing):
            try:
                self._open()
            except Exception as error:  # each job hears it
                self._pool.broke(error)
            while (job := self._pool.next(self._number)) is not None:
                if job.future.set_running_or_notify_cancel():
                    self._do(job)
            self._drop()

    def _do(self, job: _Job) -> None:
        """The job, twice where the process dies of it."""
        try:
            done, value = self._ask(job)
        except _Died as death:
            when = (
                "while it had this record, twice"
                if death.at_work
                else f"before it had begun with this record, {_OPENINGS} times"
            )
            job.future.set_exception(WorkerDied(f"{death} {when}; it said last: {death.last_words}"))
        except _Closing:
            job.future.set_exception(ValueError("the pool is closed"))
            raise
        except Exception as error:
            self._pool.broke(error)
            job.future.set_exception(error)
        else:
            job.future.set_result(value) if done else job.future.set_exception(value)

    def _ask(self, job: _Job) -> tuple[bool, Any]:
        """Whether the task was done, and its result or what it raised. Raises _Died, and what opening raises.

        A process that had not begun with the task has not died of it: that is no attempt.
        """
        attempts = idle = 0
        while True:
            child = self._child or self._open()
            try:
                return child.ask(job.data)
            except _Died as death:
                self._drop()
                self._pool.died()
                attempts, idle = attempts + death.at_work, idle + (not death.at_work)
                if attempts == _ATTEMPTS or idle == _OPENINGS:
                    raise

    def _open(self) -> _Child:
        """A fresh process that has opened. Raises what it could not open for, _Closing where nobody wants it."""
        pool = self._pool
        for attempt in range(1, _OPENINGS + 1):
            child = pool.child()
            with self._lock:
                self._child = child
                if self._ended:
                    child.end()
            try:
                done, value = child.ask(pool.opening)
                if not done:
                    raise value
                pool.opened(value)
                return child
            except _Died as death:
                self._drop()
                pool.died()
                if attempt == _OPENINGS:
                    raise ModelError(
                        f"{death} while it started, {attempt} times; it said last: {death.last_words}",
                        kind="worker_not_started",
                    ) from None
            except BaseException:
                self._drop()
                raise
        raise AssertionError

    def _drop(self) -> None:
        """Forget the process, which is dead or will be. Raises _Closing where it was meant to end."""
        with self._lock:
            if self._child is not None:
                self._child.close()
            self._child = None
            if self._ended:
                raise _Closing


class _Closing(Exception):
    """The pool is being closed."""


class _Died(Exception):
    """A process has ended, and how. `at_work`: after it had begun with what it was asked."""

    def __init__(self, how: str, words: str, at_work: bool) -> None:
        super().__init__(how)
        self.last_words, self.at_work = words, at_work


class _Child:
    """A process, for one thread; `end` is for any."""

    what = "the process"  # it is called in messages

    def __init__(self, folder: str | None, module: str = "") -> None:
        """Start it; it imports `module` while it waits. Raises ModelError where the system does not start it."""
        self.heard: Callable[[str], None] = lambda line: None  # gets what it logs
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", start("edgeguard.pool"), *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,  # what a buffer still held for a dead process would be written when it is thrown away
                cwd=folder,
            )
        except OSError as error:
            raise _not_started(self.what, error) from None
        assert self._process.stdout is not None
        self._answers = os.fdopen(os.dup(self._process.stdout.fileno()), "rb")
        self._process.stdout.close()
        self._last: deque[str] = deque(maxlen=_LAST_LINES)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        with suppress(OSError):  # it has died; asking says so
            self._send(_LENGTH.pack(len(module)) + module.encode())

    def ask(self, data: bytes) -> tuple[bool, Any]:
        """Send pickled data, and wait: whether it was done, and the result or what was raised. Raises _Died."""
        began = False
        with suppress(OSError):  # it has died: there is no answer
            self._send(_LENGTH.pack(len(data)))
            self._send(data)
        while True:
            said, value = self._answer(began)
            if said == "began":
                began = True
            elif said == "logged":
                self.heard(value)
            else:
                return said == "done", value

    def end(self) -> None:
        """Kill it, from any thread. Calling it twice is fine."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Kill it and forget its pipes; for the thread that asks it."""
        self.end()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._answers.close()

    def _answer(self, began: bool) -> tuple[str, Any]:
        try:
            data = _read(self._answers)
        except (OSError, EOFError):
            raise self._death(began) from None
        try:
            said, value = pickle.loads(data)
        except Exception as error:  # of a class that is not known here
            return "raised", error
        return said, value

    def _send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        rest = memoryview(data)
        while rest:
            rest = rest[self._process.stdin.write(rest) :]

    def _death(self, at_work: bool) -> _Died:
        try:
            code = self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self.end()
            code = self._process.wait()
        self._listener.join(_PATIENCE)
        how = f"{self.what} ended with exit status {code}" if code >= 0 else ending(self.what, code)
        return _Died(how, last_words(self._last), at_work)

    def _listen(self) -> None:
        """Keep its last words."""
        block_interrupts()
        assert self._process.stderr is not None
        with open(self._process.stderr.fileno(), "rb", closefd=False) as lines, self._process.stderr:
            while raw := lines.readline(_LONGEST_LINE):
                line = raw.decode(errors="replace").strip()
                if any(map(str.isalnum, line)):
                    self._last.append(line)


def _not_started(what: str, error: OSError) -> ModelError:
    return ModelError(f"{what} could not be started: {error.strerror or error}", kind="worker_not_started")


def _read(stream: BinaryIO) -> bytes:
    """The next message. Raises EOFError where it is cut short."""
    head = stream.read(_LENGTH.size)
    if len(head) == _LENGTH.size:
        (length,) = _LENGTH.unpack(head)
        data = stream.read(length)
        if len(data) == length:
            return data
    raise EOFError


# In the process


class _Answers(logging.Handler):
    """The way back: what was begun, the result of each message, and what is logged meanwhile."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        self._stream, self._one_at_a_time = stream, threading.Lock()

    def emit(self, record: logging.LogRecord) -> None:
        self._send(pickle.dumps(("logged", record.getMessage())))

    def to(self, message: bytes, work: Callable[[Any], Any]) -> bool:
        """Answer one message with what `work` makes of it; False where that raised something."""
        try:
            asked = pickle.loads(message)
            self._send(pickle.dumps(("began", None)))
            data, done = pickle.dumps(("done", work(asked))), True
        except Exception as error:
            data, done = pickle.dumps(("raised", _sendable(error))), False
        self._send(data)
        return done

    def _send(self, data: bytes) -> None:
        try:
            with self._one_at_a_time:
                self._stream.write(_LENGTH.pack(len(data)))
                self._stream.write(data)
                self._stream.flush()
        except OSError:  # nobody hears it
            os._exit(1)


def _child() -> NoReturn:
    """Open what the first message says, then do a task for each message; end with the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it, and ends this process
    requests = os.fdopen(os.dup(0), "rb")
    answers = _Answers(os.fdopen(os.dup(1), "wb"))
    # Whatever the libraries print from here on goes nowhere, and cannot stand between answers.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    module = _read(requests).decode()
    messages: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_hear, args=(requests, messages), daemon=True).start()
    log = logging.getLogger("edgeguard")
    log.addHandler(answers)
    log.propagate = False  # stderr has last words alone
    if module:
        with suppress(Exception):  # opening says so
            importlib.import_module(module)
    opened: list[Any] = []

    def open_it(asked: Any) -> Any:
        opening, hello = asked
        opened.append(opening().__enter__())  # it is left with the process
        return hello(opened[0])

    if answers.to(messages.get(), open_it):
        while True:
            answers.to(messages.get(), lambda asked: asked[0](opened[0], asked[1]))
    sys.stderr.flush()
    os._exit(1)  # the thread still waits


def _hear(requests: BinaryIO, messages: queue.SimpleQueue[bytes]) -> None:
    """Pass messages on, of which the parent sends one at a time; the end of the pipe is the end of the process."""
    with suppress(EOFError, OSError):
        while True:
            messages.put(_read(requests))
    os._exit(0)


def _sendable(error: Exception) -> Exception:
    """The error, or one that says what it was where it does not survive being sent; a bug's with where it is from."""
    if not isinstance(error, EdgeguardError):
        error.add_note("In the worker process:\n" + "".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
