"""Runs damaged files, each in a limited process of its own, and counts what came of them.

A kind of file is three functions: what whole files there are, one mutant of them, and how edgeguard opens it. What
edgeguard refuses with an error of its own is right; a signal, a traceback, a hang or too much memory is not.
"""

from __future__ import annotations

import collections
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeguard.errors import EdgeguardError

SECONDS = 10.0  # that one mutant may take
MEMORY = 1 << 30  # bytes that may become resident at once for a mutant
_ADDRESSES = 16 << 30  # bytes of address space; what is resident is measured, this only keeps the machine alive

Draw = random.Random


class Wrong(Exception):
    """Raised by an attempt that saw what must not be: a lost record, a doubled one."""


@dataclass(frozen=True)
class Kind:
    """A kind of file to damage.

    whole    writes sound files into a folder; what it returns is given to `mutant`
    mutant   writes one damaged file, or a folder with one, to a path, and returns the path to open
    attempt  opens it in the child and says what came of it in a few words. EdgeguardError is "refused"; anything
             else that it raises is a failure
    """

    whole: Callable[[Path], Any]
    mutant: Callable[[Draw, Any, Path], Path]
    attempt: Callable[[Path], str]


@dataclass
class Count:
    """What came of the mutants of a kind. `failures` says of each that failed which it was, and how."""

    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    failures: list[str] = field(default_factory=list)
    peak: int = 0  # bytes that became resident, of the mutant with most
    slowest: float = 0.0  # seconds


def run(name: str, kind: Kind, *, n: int, seed: int, only: Sequence[int] = (), keep: Path | None = None) -> Count:
    """Make and open `n` mutants of a kind, or the `only` ones. Those that fail are kept in the folder `keep`."""
    count = Count()
    with tempfile.TemporaryDirectory() as base:
        folder = Path(base)
        whole = kind.whole(folder)
        for i in only or range(n):
            path = kind.mutant(random.Random(f"{name}:{seed}:{i}"), whole, folder / f"mutant-{i}")
            outcome, failed, peak, took = attempt(kind, path)
            if outcome == "hang":  # a machine that stood still for a while is not the mutant's doing
                outcome, failed, peak, took = attempt(kind, path)
            count.outcomes[outcome] += 1
            count.peak, count.slowest = max(count.peak, peak), max(count.slowest, took)
            if failed:
                count.failures.append(f"{name} {i}: {outcome}\n{failed}")
            _put_away(folder / f"mutant-{i}", keep / f"{name}-{i}" if failed and keep else None)
    return count


def attempt(kind: Kind, path: Path) -> tuple[str, str, int, float]:
    """One mutant in a child: (outcome, why it is a failure or "", bytes that became resident, seconds)."""
    begin = time.monotonic()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _child(kind, path, writer)
    os.close(writer)
    status, usage = _wait(pid, begin + SECONDS)
    with os.fdopen(reader, "rb") as pipe:
        before, _, said = pipe.read().decode(errors="replace").partition("\n")
    took = time.monotonic() - begin
    peak = (usage.ru_maxrss - int(before or usage.ru_maxrss)) * 1024
    if status is None:
        return "hang", f"not done after {SECONDS:.0f} s", peak, took
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        return name, said or "no words", peak, took
    outcome, _, why = said.partition("\n")
    if peak > MEMORY and not why:
        why = f"{peak >> 20} MiB became resident"
    return outcome or "ended without a word", why if outcome else f"exit status {status >> 8}", peak, took


def _wait(pid: int, until: float) -> tuple[int | None, Any]:
    """The child's exit status and what it used; None where it had to be killed."""
    pause = 0.002
    while time.monotonic() < until:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            return status, usage
        time.sleep(pause)
        pause = min(0.05, pause * 1.5)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # with what it started
    return None, os.wait4(pid, 0)[2]


def _child(kind: Kind, path: Path, writer: int) -> None:
    """Never returns. It writes its peak as it begins with it, the outcome, and lines on why that is a failure."""
    os.setpgid(0, 0)
    # A forked process begins with what its parent has.
    os.write(writer, f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}\n".encode())
    silent = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(silent, descriptor)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESSES, _ADDRESSES))
    try:
        said = kind.attempt(path)
    except EdgeguardError as error:
        said = f"refused, {type(error).__name__}"
    except Wrong as error:
        said = f"wrong\n{error}"
    except BaseException as error:  # a traceback is what is looked for
        said = f"{type(error).__name__}\n{traceback.format_exc()}"
    try:
        os.write(writer, said.encode(errors="replace"))
    finally:
        os._exit(0)


def _put_away(path: Path, kept: Path | None) -> None:
    """Move what a mutant was written to, whatever its ending, to `kept`, or delete it."""
    for there in path.parent.glob(path.name + "*"):
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            there.rename(kept.with_name(kept.name + there.name.removeprefix(path.name)))
        elif there.is_dir():
            for inner in sorted(there.rglob("*"), reverse=True):
                inner.rmdir() if inner.is_dir() and not inner.is_symlink() else inner.unlink()
            there.rmdir()
        else:
            there.unlink()


def print_count(name: str, count: Count) -> None:
    """A line for the kind, one for each outcome, and the first failures on stderr."""
    print(
        f"{name}: {count.outcomes.total()} mutants, {len(count.failures)} failed; "
        f"at most {count.peak >> 20} MiB, {count.slowest:.1f} s",
        flush=True,
    )
    for outcome, n in sorted(count.outcomes.items()):
        print(f"  {outcome}: {n}", flush=True)
    for failure in count.failures[:3]:
        sys.stderr.write(f"{failure}\n")
