"""Records in one batch over one at a time: records/s, and how far that moves scores.

    python bench/together.py                                         # the default guard on the CPU; some 10 minutes
    python bench/together.py --model merged.q8_0.gguf --profile edgeguard-135m --device cuda

On a GPU each record alone on the CPU is measured too: with all cores, as many workers of one thread as there are cores.
Every way scores the same records, has loaded and scored a few before the clock runs, and takes turns with the others
within a round: read the ratios, not the rates. Margins are natural logs; the noise is against each record alone, on the
same device and on the CPU. "same bits" is of two passes over the same records.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import common
import numpy as np

from edgeguard import Guard, RuntimeOptions, Workers
from edgeguard.backend import Condition
from edgeguard.errors import EdgeguardError
from edgeguard.guard import Score
from edgeguard.rows.record import Failure

_WARM = 4  # records that are scored before the clock runs


@dataclass
class Way:
    """One way to score all texts: a guard that is open, and what came of it. Rates are records a second."""

    name: str
    guard: Guard | Workers
    rates: list[float] = field(default_factory=list)
    passes: list[list[dict[str, Any]]] = field(default_factory=list)

    def score(self, texts: Sequence[str], clock: Callable[[], float]) -> None:
        """One pass; its rows are kept."""
        began = clock()
        rows = [row_of(result) for result in self.guard.score_many(texts)]
        self.rates.append(len(texts) / (clock() - began))
        self.passes.append(rows)

    @property
    def margins(self) -> np.ndarray:
        """(n,) of the last pass, nats."""
        return np.array([row["margin"] for row in self.passes[-1]])

    @property
    def flagged(self) -> np.ndarray:
        """(n,) of the last pass."""
        return np.array([row["flagged"] for row in self.passes[-1]])


def row_of(result: Score | Failure) -> dict[str, Any]:
    if isinstance(result, Failure):
        raise SystemExit(f"a text could not be scored: {result.message}")
    return result.row()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=None, help="[default: the default guard]")
    parser.add_argument("--profile", default=None)
    parser.add_argument("--runtime", choices=["llama", "onnx"], nargs="+", default=[None], help="Of a built-in guard")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--together", type=int, nargs="+", default=None, help="[default: 2 … 16, with cuda … 128]")
    parser.add_argument("--records", type=int, default=None, help="[default: 32, with cuda 512]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None, help="[default: 1, with cuda all cores]")
    parser.add_argument("--characters", type=int, nargs=2, default=(20, 400), metavar=("FROM", "TO"))
    parser.add_argument("--texts", type=Path, default=None, help="File of records [default: the examples, lengthened]")
    parser.add_argument("--workers", type=int, nargs="+", default=[1], help="With cuda: processes on the GPU")
    parser.add_argument("--flash", action="store_true", help="GGUF: each number with the fused attention kernel too")
    parser.add_argument("--cpu-records", type=int, default=64, help="With cuda: of these each alone on the CPU too")
    parser.add_argument("--seconds", type=float, default=None, help="Begin no other way or round after so many")
    args = parser.parse_args()
    on_gpu = args.device == "cuda"
    low, high = args.characters
    counts = args.together or ([2, 4, 8, 16, 32, 64, 128] if on_gpu else [2, 4, 8, 16])
    texts = common.texts_between(args.records or (512 if on_gpu else 32), low, high, args.texts)
    began = time.perf_counter()

    def is_over() -> bool:
        return args.seconds is not None and time.perf_counter() - began > args.seconds

    describe(args.device, texts, args.characters)
    threads, clock = args.threads or (None if on_gpu else 1), time.perf_counter if on_gpu else time.process_time
    for runtime in args.runtime:
        args.runtime = runtime
        cpu = cpu_alone(args, texts[: args.cpu_records]) if on_gpu else None
        alone = opened(args, "one at a time", together=None, threads=threads)
        print(f"{alone.guard.name}, {runtime or 'the runtime of its file'}")
        ways = [way for way in several(args, counts, threads, is_over) if way is not None]
        measure([alone, *ways], texts, args.rounds, clock, is_over)
        report(alone, ways, cpu, "records/s" if on_gpu else "records a second of CPU time")
        for way in (alone, *ways):
            way.guard.close()


def describe(device: str, texts: Sequence[str], characters: Sequence[int]) -> None:
    """The machine, the versions and the records."""
    print(common.machine())
    if device == "cuda":
        asked = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        try:
            print(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip())
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"nvidia-smi says nothing: {error}")
    for package in ("llama-cpp-python", "onnxruntime", "onnxruntime-gpu", "numpy"):
        try:
            print(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    print(f"{len(texts)} records of {characters[0]} to {characters[1]} characters")


def opened(args: argparse.Namespace, name: str, *, workers: int = 1, **options: Any) -> Way:
    """A guard on the device, warm."""
    runtime = RuntimeOptions(device=args.device, runtime=args.runtime, **options)
    given: dict[str, Any] = {"profile": args.profile, "calibration": False, "runtime": runtime}
    guard = Guard.load(args.model, **given) if workers == 1 else Workers(args.model, workers=workers, **given)
    for result in guard.score_many(["Warm is what this makes it."] * workers * max(_WARM, options["together"] or 0)):
        row_of(result)
    return Way(name, guard)


def several(
    args: argparse.Namespace, counts: Sequence[int], threads: int | None, is_over: Callable[[], bool]
) -> list[Way | None]:
    """A way for each number of records together; one that cannot be opened says why."""
    kinds: list[tuple[str, dict[str, Any]]] = [("", {})]
    if args.flash:
        kinds.append((", flash", {"condition": Condition(attention="flash")}))
    return [
        tried(args, f"together {n}{named(workers)}{kind}", together=n, workers=workers, threads=threads, **more)
        for workers in args.workers
        for n in counts
        for kind, more in kinds
        if not is_over()
    ]


def named(workers: int) -> str:
    return "" if workers == 1 else f", {workers} workers"


def tried(args: argparse.Namespace, name: str, **options: Any) -> Way | None:
    try:
        return opened(args, name, **options)
    except (EdgeguardError, ValueError) as error:
        print(f"{name}: {error}")
        return None


def cpu_alone(args: argparse.Namespace, texts: Sequence[str]) -> Way:
    """Each record alone on the CPU, on all cores."""
    runtime, cores = RuntimeOptions(runtime=args.runtime, threads=1), len(os.sched_getaffinity(0))
    options: dict[str, Any] = {"profile": args.profile, "calibration": False, "runtime": runtime}
    with Workers(args.model, workers=cores, **options) as workers:
        way = Way(f"CPU, one at a time, {cores} workers of one thread, {len(texts)} records", workers)
        for result in workers.score_many(["Warm is what this makes it."] * 2 * cores):
            row_of(result)
        for _ in range(2):
            way.score(texts, time.perf_counter)
    return way


def measure(
    ways: Sequence[Way], texts: Sequence[str], rounds: int, clock: Callable[[], float], is_over: Callable[[], bool]
) -> None:
    """All ways, in turns. The first round is done whatever the time."""
    for i in range(rounds):
        for way in ways:
            if i > 0 and is_over():
                return
            way.score(texts, clock)
            print(f"{way.name}: {way.rates[-1]:.3g}", file=sys.stderr, flush=True)


def report(alone: Way, ways: Sequence[Way], cpu: Way | None, unit: str) -> None:
    if cpu is not None:
        print(f"{cpu.name}: {common.spread(cpu.rates)} records/s")
    print(f"{alone.name}: {common.spread(alone.rates)} {unit}, {same_bits(alone)}")
    if cpu is not None:
        print(f"   against the CPU: {noise(alone, cpu)}")
    for way in ways:
        n = min(len(way.rates), len(alone.rates))
        ratio = np.array(way.rates[:n]) / np.array(alone.rates[:n])
        print(f"{way.name}: {common.spread(way.rates)} {unit}, {common.spread(ratio, '×')} one at a time")
        print(f"   against one at a time: {noise(way, alone)}; {same_bits(way)}")


def noise(way: Way, other: Way) -> str:
    """How far margins and decisions are apart, over the records that both have."""
    n = min(len(way.margins), len(other.margins))
    apart = np.abs(way.margins[:n] - other.margins[:n])
    flips = int((way.flagged[:n] != other.flagged[:n]).sum())
    return (
        f"margin {np.sqrt((apart**2).mean()):.2g} nats RMS, {apart.max():.2g} at most; {flips} of {n} decisions "
        f"flipped; {int((apart == 0).sum())} margins the same bits"
    )


def same_bits(way: Way) -> str:
    """Of its passes over the same records."""
    if len(way.passes) < 2:
        return "one pass"
    return "the same bits again" if all(rows == way.passes[0] for rows in way.passes) else "OTHER BITS AGAIN"


if __name__ == "__main__":
    main()
