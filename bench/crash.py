"""Runs that are killed at random moments and resumed: is the output the one that nobody interrupted?

    python bench/crash.py                               # 100 moments for each format, one process and two workers
    python bench/crash.py --n 10 --formats csv --workers 2

kill -9 of the run, or of one of its workers. A run that was killed is resumed, and may be killed again, up to three
times; one that lost a worker goes on by itself. Exit code 1 where an output differs, a file is left over, or a worker
lives on without its run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import common  # noqa: F401  (it puts tests/ on the path)
from conftest import BIAS, TINY_PROFILE
from tiny_gguf import write_tiny_llama

from edgeguard.rows.run import run_file

FORMATS = ("jsonl", "csv", "parquet")
SECONDS = 120.0  # that one run may take, on a busy machine
KILLS = 3  # of one output, at most
_DONE = re.compile(rb"^\d+ records( \(and \d+ resumed\))?, \d+ flagged", re.MULTILINE)


@dataclass
class Found:
    """What came of the moments of one format. `failures` says what differed."""

    same: int = 0
    kills: Counter[str] = field(default_factory=Counter)  # of the run, of a worker
    rows: list[int] = field(default_factory=list)  # noted when the run was killed
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Setting:
    """A tiny guard and records in a folder."""

    folder: Path
    n_records: int

    @classmethod
    def made(cls, folder: Path, n_records: int) -> Setting:
        """Records of many lengths; some cannot be read, some have no ids."""
        draw = random.Random(0)
        write_tiny_llama(folder / "tiny.gguf", n_ctx=1024, logit_std=1.0, bias=BIAS)
        (folder / "tiny.toml").write_text(TINY_PROFILE, encoding="utf-8")
        lines = []
        for i in range(n_records):
            record = {"id": f"r{i}", "text": f'record {i}, "é\n' + "word " * draw.randrange(40)}
            if i % 7 == 3:
                del record["id"]
            lines.append("{}" if i % 31 == 5 else json.dumps(record))
        (folder / "in.jsonl").write_text("\n".join(lines), encoding="utf-8")
        return cls(folder, n_records)

    def command(self, out: Path, workers: int, *flags: str) -> list[str]:
        """The command line of a run."""
        guard = ("-m", f"{self.folder}/tiny.gguf", "-p", f"{self.folder}/tiny.toml", "-t", "1", "--max-nodes", "4")
        words = ("score", f"{self.folder}/in.jsonl", "-o", str(out), "--workers", str(workers), *guard, *flags)
        return [sys.executable, "-m", "edgeguard", *words]

    def whole(self, format: str) -> bytes:
        """The output of a run that nobody interrupts."""
        out = self.folder / f"whole.{format}"
        subprocess.run(self.command(out, 1), stderr=subprocess.DEVNULL, check=False, timeout=SECONDS)
        return out.read_bytes()


def crash(setting: Setting, format: str, workers: int, *, n: int, seed: int = 0) -> Found:
    """Kill `n` runs at a random moment each, go on with them, and compare."""
    found, whole = Found(), setting.whole(format)
    for i in range(n):
        draw = random.Random(f"{seed}:{format}:{workers}:{i}")
        folder = setting.folder / f"{format}-{workers}-{i}"
        folder.mkdir()
        out = folder / f"out.{format}"
        wrong = _one(setting, out, workers, draw, found)
        if not wrong and out.read_bytes() != whole:
            wrong = "the output differs"
        left = sorted(path.name for path in folder.iterdir() if path not in (out, run_file(out)))
        if wrong or left:
            found.failures.append(f"{format}, {workers} workers, moment {i}: {wrong or f'left over: {left}'}")
            sys.stderr.write(f"{found.failures[-1]}\n")
            continue
        found.same += 1
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    return found


def _one(setting: Setting, out: Path, workers: int, draw: random.Random, found: Found) -> str:
    """One output, from begun to done, whatever is killed on the way. What was wrong, or ""."""
    for attempt in range(KILLS + 1):
        command = setting.command(out, workers, "--resume")
        with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
            if attempt < draw.choice([1, 1, 2, KILLS]):
                _kill(process, out, workers, setting.n_records, draw, found)
            try:
                _, said = process.communicate(timeout=SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                return f"not done after {SECONDS:.0f} s"
        if process.returncode in (0, 1) and _DONE.search(said):  # 1: some of the records cannot be read
            return ""
        if process.returncode != -signal.SIGKILL:
            return f"exit status {process.returncode}: {said.decode(errors='replace')[-300:]}"
    return "killed too often"  # not reached: the last attempt is left alone


def _kill(
    process: subprocess.Popen[bytes], out: Path, workers: int, n_records: int, draw: random.Random, found: Found
) -> None:
    """At a moment that is drawn: a time while nothing is noted yet, or a little after so many rows are."""
    rows = draw.randrange(n_records) if draw.random() < 0.85 else None
    until = time.monotonic() + (SECONDS if rows is not None else draw.random())
    while process.poll() is None and time.monotonic() < until and (rows is None or _noted(out) <= rows):
        time.sleep(0.0005)
    time.sleep(draw.random() * 0.004)
    children = list(_children(process.pid))
    if workers > 1 and children and draw.random() < 0.4:
        with suppress(ProcessLookupError):
            os.kill(draw.choice(children), signal.SIGKILL)
        found.kills["of a worker"] += 1
        return
    if process.poll() is None:
        found.kills["of the run"] += 1
        found.rows.append(_noted(out))
    process.kill()
    process.wait()
    end = time.monotonic() + 10
    while any(map(_is_alive, children)):
        if time.monotonic() > end:
            found.failures.append(f"{out.name}: a worker lives on without its run")
            return
        time.sleep(0.01)


def _noted(out: Path) -> int:
    """Rows that are noted of the run: lines of its file but the first."""
    try:
        return max(0, run_file(out).read_bytes().count(b"\n") - 1)
    except OSError:
        return 0


def _children(pid: int) -> Iterator[int]:
    """Processes that a process has started; on Linux alone."""
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            yield from map(int, (task / "children").read_text().split())


def _is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def print_found(format: str, workers: int, n: int, found: Found) -> None:
    """A line for a format."""
    kills = ", ".join(f"{count} kills {what}" for what, count in sorted(found.kills.items()))
    rows = f", at {min(found.rows)} to {max(found.rows)} rows" if found.rows else ""
    what = "one process" if workers == 1 else f"{workers} workers"
    print(f"{format}, {what}: {found.same} of {n} identical; {kills}{rows}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Kill, resume, compare, and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--n", type=int, default=100, help="moments for each format and number of workers")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--records", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting.made(Path(folder), args.records)
        for format in args.formats:
            for workers in args.workers:
                found = crash(setting, format, workers, n=args.n, seed=args.seed)
                print_found(format, workers, args.n, found)
                failed |= bool(found.failures)
    sys.exit(failed)


if __name__ == "__main__":
    main()
