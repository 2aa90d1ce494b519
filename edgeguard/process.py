"""A job in a process of its own: what it imports may print, abort, take gigabytes, or not hear Ctrl-C."""

from __future__ import annotations

import atexit
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NoReturn, Self

from edgeguard.errors import printable

_LAST_LINES, _LAST_CHARACTERS = 8, 1000
_SAID = "edgeguard says: "
_PATIENCE = 10.0  # seconds that a process that does jobs gets to end after the last
_DONE = "edgeguard is done, and waits"
_START = 60.0  # seconds that a process may take until it answers, on the busiest machine


def start(module: str) -> str:
    """Python that runs a module's `_child`.

    With this process's path, and not the folder it stands in: a file of a stranger's there must not be imported.
    """
    return f"import sys; sys.path[:] = sys.argv[1:]; from {module} import _child; _child()"


def run(
    code: str,
    job: Mapping[str, Any],
    environment: Mapping[str, str],
    *,
    tell: Callable[[str], None] = lambda line: None,
) -> tuple[int, list[str]]:
    """Run Python `code`, which serves `job`: its exit status, and its last lines on stderr.

    What the job says with `say` goes to `tell`, line by line, and is none of them. The process is ended when this one
    is interrupted or ends; its stdout is thrown away.
    """
    with Jobs(code, environment) as process:
        status, last = process.do(job, tell=tell)
        assert status is not None  # `serve` ends with its job
        return status, last


class Jobs:
    """A process that runs Python `code`, and does job after job where that calls `serve_jobs`, with `serve` one.

    It is ended when this one is interrupted or ends, and by `close`. For one thread.
    """

    def __init__(self, code: str, environment: Mapping[str, str] = MappingProxyType({})) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-c", code, *sys.path],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def do(
        self, job: Mapping[str, Any], *, tell: Callable[[str], None] = lambda line: None
    ) -> tuple[int | None, list[str]]:
        """Its exit status, None where it waits for the next job, and its last lines on stderr."""
        child = self._child
        assert child.stdin is not None
        assert child.stderr is not None
        try:
            with suppress(BrokenPipeError):  # it ended before it read; its last words say why
                child.stdin.write(json.dumps(job).encode() + b"\n")
                child.stdin.flush()
            last: deque[str] = deque(maxlen=_LAST_LINES)
            for raw in child.stderr:
                line = raw.decode(errors="replace").strip()
                if line == _DONE:
                    return None, list(last)
                if line.startswith(_SAID):
                    tell(line.removeprefix(_SAID))
                elif any(map(str.isalnum, line)):
                    last.append(line)
            return child.wait(), list(last)
        except BaseException:
            child.kill()
            raise

    def close(self) -> None:
        """Let the process end, and end it where it does not. Calling it twice is fine."""
        stdin = self._child.stdin
        if self._child.poll() is None and stdin is not None and not stdin.closed:
            with suppress(OSError, subprocess.TimeoutExpired):
                stdin.write(b"null\n")
                stdin.flush()
                self._child.wait(_PATIENCE)
        self._child.kill()
        for pipe in (self._child.stdin, self._child.stderr):
            if pipe is not None:
                with suppress(OSError):  # what was not sent
                    pipe.close()
        self._child.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def last_words(last: Sequence[str]) -> str:
    """The lines that `run` gave as one, printable and not too long."""
    return printable("; ".join(last))[-_LAST_CHARACTERS:] or "it gave no reason"


def ending(program: str, code: int) -> str:
    """How a process ended that did not end well: by which signal, or by itself."""
    return f"{program} was ended by {signal.Signals(-code).name}" if code < 0 else f"{program} failed"


def say(line: str) -> None:
    """In the process: tell the parent something while the job goes on."""
    sys.stderr.write(f"\n{_SAID}{line}\n")
    sys.stderr.flush()


def serve(work: Callable[[Any], int]) -> NoReturn:
    """In the process: do the job that the first line of stdin describes, and exit with what `work` returns."""
    job = json.loads(sys.stdin.buffer.readline())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it, and ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    code = 1
    try:
        code = work(job)
    except Exception as error:
        sys.stderr.write(f"\n{type(error).__name__}: {error}\n")
    sys.stderr.flush()
    os._exit(code)  # the thread still waits


def serve_jobs(work: Callable[[Any], int], end: Callable[[], None]) -> NoReturn:
    """In the process: do job after job, as they come on stdin; end with the first that fails, or with the parent.

    end  is called where the parent wants no more
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    jobs: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_hear_jobs, args=(jobs,), daemon=True).start()
    while True:
        code = 1
        try:
            job = json.loads(jobs.get())
            if job is None:
                end()
                os._exit(0)
            code = work(job)
        except Exception as error:
            sys.stderr.write(f"\n{type(error).__name__}: {error}\n")
        if code:
            sys.stderr.flush()
            os._exit(code)
        sys.stderr.write(f"\n{_DONE}\n")
        sys.stderr.flush()


def _hear_jobs(jobs: queue.SimpleQueue[bytes]) -> None:
    for line in sys.stdin.buffer:
        jobs.put(line)
    os._exit(1)  # the other end is closed


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # nothing ever comes; it returns when the other end is closed
    os._exit(1)


# A process that answers many requests, each within limits


@dataclass(frozen=True)
class Limits:
    """Of one request: whole seconds of a processor, seconds of the clock, bytes of address space.

    Where the system knows no such limits (Windows), or does not keep the last (macOS), the clock is what is left.
    """

    cpu: int
    wall: float
    memory: int


class OverLimit(Exception):
    """A request that the process did not live through. The message says what it did: "takes longer than 1 s".

    idle  it was ended by the clock and had hardly worked: the machine stood still, or was too busy
    """

    def __init__(self, said: str, *, idle: bool = False) -> None:
        super().__init__(said)
        self.idle = idle


class Server:
    """A process of its own that runs Python `code`, which calls `serve_many`. For any number of threads.

    It is begun at the first request, and again at the one after which it had to be ended. It ends with this process.
    """

    def __init__(self, code: str, limits: Limits) -> None:
        self._code, self._limits = code, limits
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = 0  # the process that began it: a fork of that one must not speak to it
        self._ready = False

    def start(self) -> None:
        """Begin it, if it does not run yet: it gets ready while this process does something else."""
        with self._lock:
            self._begin()

    def ask(self, job: Mapping[str, Any]) -> Any:
        """The answer to a request, JSON both. Raises OverLimit."""
        request = json.dumps(job).encode() + b"\n"
        with self._lock:
            try:
                return self._answer(request)
            except OverLimit as error:
                if not error.idle:
                    raise
            return self._answer(request)

    def _answer(self, request: bytes) -> Any:
        child = self._begin()
        if not self._ready:
            self._exchange(child, b"", _START)
            self._ready = True
        return json.loads(self._exchange(child, request, self._limits.wall))

    def _begin(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._owner != os.getpid() or self._child.poll() is not None:
            if not self._owner:
                atexit.register(self.end)
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-c", self._code, *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            self._owner, self._ready = os.getpid(), False
        return self._child

    def _exchange(self, child: subprocess.Popen[bytes], request: bytes, seconds: float) -> bytes:
        """Send a line and read one. A process that does not answer is ended."""
        assert child.stdin is not None
        assert child.stdout is not None
        late = threading.Timer(seconds, child.kill)
        late.start()
        try:
            with suppress(BrokenPipeError):  # it has ended; how says its status
                child.stdin.write(request)
                child.stdin.flush()
            line = child.stdout.readline()
        except BaseException:
            self._close(child)
            raise
        finally:
            late.cancel()
        if not line.endswith(b"\n"):
            raise self._ended(child)
        return line

    def _ended(self, child: subprocess.Popen[bytes]) -> OverLimit:
        before = _worked()
        code = self._close(child)
        names = {name: getattr(signal, name, None) for name in ("SIGKILL", "SIGXCPU")}  # Windows has neither
        if os.name == "nt" or -code in names.values():
            idle = -code == names["SIGKILL"] and _worked() - before < self._limits.cpu / 2
            return OverLimit(f"takes longer than {self._limits.cpu} s", idle=idle)
        by = f" ({signal.Signals(-code).name})" if code < 0 else ""
        return OverLimit(f"takes more memory than it may, or ends its process otherwise{by}")

    def _close(self, child: subprocess.Popen[bytes]) -> int:
        self._child = None
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with suppress(OSError):  # what was not sent
                    pipe.close()
        if child.poll() is None:
            with suppress(subprocess.TimeoutExpired):  # it ends by itself where its stdin does; its status says more
                child.wait(0.2)
        child.kill()
        return child.wait()

    def end(self) -> None:
        """End the process, if this one began it."""
        with self._lock:
            if self._child is not None and self._owner == os.getpid():
                self._child.kill()
                self._close(self._child)


def _worked() -> float:
    """Seconds of a processor that ended processes of this one have taken; 0 where the system does not tell."""
    times = os.times()
    return times.children_user + times.children_system


def serve_many(answer: Callable[[Any], Any], limits: Limits) -> NoReturn:
    """In the process: answer request after request, until stdin ends. What is printed on the way goes nowhere."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it
    out = os.fdopen(os.dup(1), "wb")
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    _limit_memory(limits.memory)
    out.write(b"\n")  # ready
    out.flush()
    for line in sys.stdin.buffer:
        _limit_cpu(limits.cpu)
        said = json.dumps(answer(json.loads(line))).encode()
        out.write(said + b"\n")
        out.flush()
    os._exit(0)


def _limit_memory(n_bytes: int) -> None:
    with suppress(ImportError, ValueError, OSError):  # no such limit here, or a lower one already
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (n_bytes, n_bytes))


def _limit_cpu(seconds: int) -> None:
    """From now on. The system ends the process, whatever it does, and after its parent's end too."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        until = int(used.ru_utime + used.ru_stime) + 1 + seconds
        resource.setrlimit(resource.RLIMIT_CPU, (until, resource.getrlimit(resource.RLIMIT_CPU)[1]))
