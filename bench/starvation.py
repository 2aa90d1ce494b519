"""How much processes that score at once, or beside other work, hinder each other.

    python bench/starvation.py                              # 4 minutes on 2 quiet cores
    python bench/starvation.py --runtimes llama --records 30

Two commands `edgeguard score -` with the default settings, loaded before the clock runs. In turn within a round: one
alone; both at once, counted until the first of them is done; one beside a process that only counts (`while True`).
Where nothing is lost, two together are as fast as one alone that has all cores. Beside the process that counts
something has to be lost: on two cores a quarter to a third, where the kernel shares them out evenly; half, where each
thread waits for the slowest.

By default a small guard has processes of one thread, which wait for nobody. So llama.cpp is measured with a thread for
each core too, as edgeguard has them wait and as libgomp has them wait by itself (GOMP_SPINCOUNT=300000).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import common
import numpy as np

from edgeguard.machine import available_cores

MODULES = {"llama": "llama_cpp", "onnx": "onnxruntime"}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=16, help="for each process, each time [default: 16]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runtimes", nargs="+", choices=list(MODULES), default=list(MODULES))
    parser.add_argument("--texts", type=Path, default=None, help="a file of records, in place of the examples")
    args = parser.parse_args()
    texts = common.texts_between(args.records, 100, 400, args.texts)
    print(f"{common.machine()}; {args.records} texts of 100 to 400 characters, default settings", flush=True)
    for runtime in args.runtimes:
        if not find_spec(MODULES[runtime]):
            print(f"{runtime}: not installed")
            continue
        for name, options, variables in conditions(runtime):
            command = partial(common.Command, "--runtime", runtime, *options, variables=variables)
            with command() as one, command() as other:
                for each in (one, other):
                    each.score(texts[:2])
                rounds = 1 if variables else args.rounds  # what starves takes long
                show(name, [measured(one, other, texts) for _ in range(rounds)])


def conditions(runtime: str) -> list[tuple[str, tuple[str, ...], dict[str, str]]]:
    """(name, options, variables of the environment) of what is measured."""
    if runtime != "llama":
        return [(runtime, (), {})]
    cores = available_cores()
    threads = ("--threads", str(cores))
    return [
        ("llama", (), {}),
        (f"llama, {cores} threads", threads, {}),
        (f"llama, {cores} threads that wait as libgomp has them", threads, {"GOMP_SPINCOUNT": "300000"}),
    ]


def show(runtime: str, rounds: Sequence[tuple[float, float, float]]) -> None:
    """Print rates and ratios. rounds: records/s of one alone, of two together, of one beside a busy process."""
    alone, together, beside = np.array(rounds).T
    print(f"{runtime}: one alone {common.spread(alone, ' records/s')}")
    print(f"   two at once, together {common.spread(together, ' records/s')}")
    print(f"   two at once over one alone: {common.spread(together / alone, '×')}")
    print(f"   beside a busy process over alone: {common.spread(beside / alone, '×')}", flush=True)


def measured(one: common.Command, other: common.Command, texts: Sequence[str]) -> tuple[float, float, float]:
    """Records/s of one alone, of two together, of one beside a busy process."""
    alone = rate([one], texts)
    together = rate([one, other], texts)
    with busy():
        return alone, together, rate([one], texts)


def rate(commands: Sequence[common.Command], texts: Sequence[str]) -> float:
    """Records/s of all commands together, until the first of them is done: so long all of them are at work."""
    arrived: list[list[float]] = [[] for _ in commands]

    def run(i: int) -> None:
        arrived[i] += [at for _, at in commands[i].arrivals(texts)]

    began = time.perf_counter()
    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(commands))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if not all(arrived):
        raise SystemExit("a command ended; what it said stands above")
    until = min(times[-1] for times in arrived)
    return sum(at <= until for times in arrived for at in times) / (until - began)


@contextmanager
def busy() -> Iterator[None]:
    """A process that takes all it can get of one core."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
