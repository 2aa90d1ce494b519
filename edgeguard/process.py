"""A job in a process of its own: what it imports may print, abort, take gigabytes, or not hear Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from edgeguard.errors import printable

_LAST_LINES, _LAST_CHARACTERS = 8, 1000
_SAID = "edgeguard says: "


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
    with subprocess.Popen(
        [sys.executable, "-P", "-c", code, *sys.path],
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as child:
        assert child.stdin is not None
        assert child.stderr is not None
        try:
            with suppress(BrokenPipeError):  # it ended before it read; its last words say why
                child.stdin.write(json.dumps(job).encode() + b"\n")
                child.stdin.flush()
            last: deque[str] = deque(maxlen=_LAST_LINES)
            for raw in child.stderr:
                line = raw.decode(errors="replace").strip()
                if line.startswith(_SAID):
                    tell(line.removeprefix(_SAID))
                elif any(map(str.isalnum, line)):
                    last.append(line)
            return child.wait(), list(last)
        except BaseException:
            child.kill()
            raise


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


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # nothing ever comes; it returns when the other end is closed
    os._exit(1)
