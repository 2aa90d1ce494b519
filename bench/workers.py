"""Workers over lone processes, and over one process with its default threads; and the memory that they share.

    python bench/workers.py                            # 1 and 2 workers; about 3 minutes on 2 quiet cores
    python bench/workers.py --workers 1 2 4 --records 100 --model guard.gguf --profile llama-guard-3

N workers score all the records; N lone processes of one thread score a part each, side by side, without a word in
between; one process with its default threads scores all. All have loaded before the clock runs, and take turns within
a round: read the ratios, not the rates. Memory is the sum of the processes' PSS, in which a page that n of them have
counts 1/n for each; while a pool is measured, no other process has the model open.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import common
import numpy as np

from edgeguard import Guard, RuntimeOptions, Workers

_MORE = 150  # MiB that a worker may take beside the first's


class Lone:
    """A process with a guard, which scores its texts when it is told to."""

    def __init__(self, model: str | None, profile: str | None, threads: int | None, texts: Sequence[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--lone"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._to, self._from = self.process.stdin, self.process.stdout
        assert self._to is not None
        self._to.write(json.dumps({"model": model, "profile": profile, "threads": threads, "texts": texts}) + "\n")
        self.go()

    def go(self) -> None:
        assert self._to is not None
        self._to.write("\n")
        self._to.flush()

    def done(self) -> None:
        assert self._from is not None
        if not self._from.readline():
            raise SystemExit("a lone process ended")

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def lone() -> None:
    """In a lone process."""
    job = json.loads(sys.stdin.readline())
    runtime = RuntimeOptions(threads=job["threads"])
    with Guard.load(job["model"], profile=job["profile"], runtime=runtime) as guard:
        texts = [job["texts"][0]]  # the preamble is evaluated here
        for _ in sys.stdin:
            for _ in guard.score_many(texts):
                pass
            texts = job["texts"]
            print("done", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=None, help="[default: the default guard]")
    parser.add_argument("--profile", default=None)
    parser.add_argument("--records", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--lone", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.lone:
        return lone()
    with Guard.load(args.model, profile=args.profile, runtime=RuntimeOptions(threads=1)) as guard:
        texts = common.messages(guard.backend.vocabulary, args.records)
        print(f"{guard.name}, {len(texts)} records of 20 to 60 tokens, {args.rounds} rounds")
    memory = {n: peak_of(n, args.model, args.profile, texts) for n in args.workers}
    compare(args.workers, args.model, args.profile, texts, args.rounds)
    print("peak PSS of all workers, without the parent")
    for n, peak in memory.items():
        one = f"; one worker and {n} × {_MORE} MiB: {memory[1] + n * _MORE:.0f} MiB" if 1 in memory and n > 1 else ""
        print(f"   {n} workers: {peak:.0f} MiB{one}")
    return None


def compare(counts: Sequence[int], model: str | None, profile: str | None, texts: list[str], rounds: int) -> None:
    alone = Lone(model, profile, None, texts)
    parts = [texts[i :: max(counts)] for i in range(max(counts))]
    lones = [Lone(model, profile, 1, part) for part in parts]
    pools = {n: Workers(model, profile=profile, workers=n) for n in counts}
    for one in (alone, *lones):
        one.done()
    for pool in pools.values():
        scored(pool, texts)
    rates: dict[str, list[float]] = {}
    for _ in range(rounds):
        rates.setdefault("default", []).append(len(texts) / common.seconds(lambda: side_by_side([alone])))
        for n in counts:
            some = lones[:n]
            taken = common.seconds(lambda some=some: side_by_side(some))
            rates.setdefault(f"lone {n}", []).append(sum(map(len, parts[:n])) / taken)
            rates.setdefault(f"workers {n}", []).append(
                len(texts) / common.seconds(lambda n=n: scored(pools[n], texts))
            )
    for one in (alone, *lones):
        one.end()
    for pool in pools.values():
        pool.close()
    found = {name: np.array(values) for name, values in rates.items()}
    print(f"one process, default threads: {common.spread(found['default'], ' records/s')}")
    for n in counts:
        workers, beside = found[f"workers {n}"], found[f"lone {n}"]
        print(f"{n} workers: {common.spread(workers, ' records/s')}")
        print(f"   over {n} lone processes of one thread: {common.spread(workers / beside, '×')}")
        print(f"   over one process with its default threads: {common.spread(workers / found['default'], '×')}")


def side_by_side(processes: Sequence[Lone]) -> None:
    for one in processes:
        one.go()
    for one in processes:
        one.done()


def scored(pool: Workers, texts: Sequence[str]) -> None:
    for _ in pool.score_many(texts):
        pass


def peak_of(n: int, model: str | None, profile: str | None, texts: Sequence[str]) -> float:
    """MiB of PSS that n workers had together at most, while they scored."""
    before, peak, over = children(), 0.0, threading.Event()
    with Workers(model, profile=profile, workers=n) as pool:
        pids = children() - before

        def watch() -> None:
            nonlocal peak
            while not over.is_set():
                peak = max(peak, sum(map(pss, pids)))
                time.sleep(0.1)

        watching = threading.Thread(target=watch)
        watching.start()
        scored(pool, texts)
        over.set()
        watching.join()
    return peak


def children() -> set[int]:
    """The processes that this one has started."""
    threads = Path("/proc/self/task").iterdir()
    return {int(pid) for thread in threads for pid in (thread / "children").read_text().split()}


def pss(pid: int) -> float:
    """MiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


if __name__ == "__main__":
    main()
