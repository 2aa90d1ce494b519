"""Ray: what a batch costs beside its scoring, what an actor costs to start, two actors over one; and a calculation.

    python bench/scale.py                          # about 6 minutes on 2 quiet cores; needs the extra `ray`
    python bench/scale.py --records 20 --rounds 1  # a quick look

Measured, on a Ray of this machine alone:

- two actors over one, of linear: for records that sleep 100 ms, for records that keep a core busy for 100 ms, and for
  the default guard on texts that take it so long or longer. While all actors are at work, what is between two batches
  included; one and two take turns within a round
- for the guard, each with one thread: one actor over this process, and two worker processes without Ray over it, of
  linear: what this machine gives two processes that compute so
- the load of an actor: from the call to the first row, with Ray's own way there
- a batch of 64 that is not scored: what scheduling it and handing it over takes, two actors taking turns

Calculated from these, with the assumptions printed beside it: hours for 10⁶ to 10⁹ records on 1 to 1,000 actors, and
where the driver, which hands out every batch, becomes the limit.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import common
import numpy as np

from edgeguard import Guard, RuntimeOptions, Workers
from edgeguard.ray.cluster import cluster
from edgeguard.ray.dataset import BATCH, pool
from edgeguard.ray.scorer import GuardJob, TableScorer
from edgeguard.rows.shapes import USUAL

SECONDS = 0.1  # of a record, at least
AT_A_TIME = 8  # records of a batch where rates are measured: a round must not take a day
Actor = tuple[type, dict[str, Any]]


class Stub:
    """A record takes 100 ms of nobody's time, or of a core's."""

    def __init__(self, work: str) -> None:
        self._work = work

    def __call__(self, batch: Any) -> Any:
        for _ in range(batch.num_rows):
            until = time.perf_counter() + SECONDS
            if self._work == "sleep":
                time.sleep(SECONDS)
            while time.perf_counter() < until:
                pass
        return batch


class Nothing:
    def __call__(self, batch: Any) -> Any:
        return batch


class Timed:
    """Says of each row which actor had its batch, and when that began and ended."""

    def __init__(self, kind: type, arguments: dict[str, Any]) -> None:
        self._call = kind(**arguments)

    def __call__(self, batch: Any) -> Any:
        import pyarrow as pa

        began = time.time()
        n = self._call(batch).num_rows
        return pa.table({"actor": [os.getpid()] * n, "began": [began] * n, "ended": [time.time()] * n})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=None, help="[default: the default guard]")
    parser.add_argument("--profile", default=None)
    parser.add_argument("--records", type=int, default=80, help="of a measurement, for each actor")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=2000, help="of the measurement of batches that are not scored")
    args = parser.parse_args()
    runtime = RuntimeOptions(threads=1)
    options = {"profile": args.profile, "runtime": runtime}
    with (
        Guard.load(args.model, **options) as guard,
        Workers(args.model, workers=2, **options) as pair,
        cluster(None, cpus=2) as ray,
    ):
        texts = long_texts(guard, 2 * args.records)
        job = GuardJob.of({"model": args.model, "profile": args.profile, "runtime": runtime}, 1)
        scorer = TableScorer, {"job": job, "fields": USUAL, "strict": False, "keep": ()}
        print(f"Ray {ray.__version__} on this machine; {args.records} records an actor, {args.rounds} rounds")
        for what, made in (("sleeping", (Stub, {"work": "sleep"})), ("computing", (Stub, {"work": "spin"}))):
            one, two, *_ = compared(ray, made, texts, args.rounds)
            tell(f"records of {SECONDS:g} s of {what}", one, two)
        without = [lambda some: [*guard.score_many(some)], lambda some: [*pair.score_many(some)]]
        one, two, lone, both = compared(ray, scorer, texts, args.rounds, without)
        tell(f"{guard.name}, texts of {SECONDS:g} s or more", one, two)
        print(f"   one actor over a lone process: {common.spread(one / lone, '×')}")
        print(f"   two processes without Ray over a lone one, of linear: {common.spread(both / lone / 2, '×')}")
        print(f"   two actors over two processes without Ray: {common.spread(two / both, '×')}")
        loads = [load_seconds(ray, scorer, texts) for _ in range(args.rounds)]
        batches = [batch_seconds(ray, args.batches) for _ in range(args.rounds)]
    print(f"an actor, from the call to its first row: {common.spread(loads, ' s')}")
    print(f"a batch of {BATCH} records that are not scored: {common.spread(np.array(batches) * 1e3, ' ms')}")
    calculate(float(np.median(one)), float(np.median(loads)), float(np.median(batches)))


def tell(what: str, one: np.ndarray, two: np.ndarray) -> None:
    print(f"{what}: one actor {common.spread(one, ' records/s')}")
    print(f"   two actors over one, of linear: {common.spread(two / one / 2, '×')}")


def long_texts(guard: Guard, n: int) -> list[str]:
    """Different texts that take this guard 100 ms each, or longer."""
    longest, taken = 30, 0.0
    while taken < SECONDS:
        longest *= 2
        (text,) = common.messages(guard.backend.vocabulary, 1, shortest=longest)
        taken = common.seconds(partial(guard.score, text))
    return common.messages(guard.backend.vocabulary, n, shortest=longest, longest=longest + 40)


def compared(
    ray: Any, made: Actor, texts: Sequence[str], rounds: int, others: Sequence[Callable[[Sequence[str]], object]] = ()
) -> np.ndarray:
    """(2 + others, rounds) records/s: of one actor, two, and the others, the first of which gets half the texts."""
    half = texts[: len(texts) // 2]
    found = []
    for _ in range(rounds):
        rates = [len(some) / common.seconds(partial(f, some)) for f, some in zip(others, (half, texts), strict=False)]
        found.append((rate(ray, made, half, 1), rate(ray, made, texts, 2), *rates))
    return np.array(found).T


def rate(ray: Any, made: Actor, texts: Sequence[str], actors: int) -> float:
    """Records/s of all actors together, while all are at work: what is between two batches counts."""
    timed = Timed, {"kind": made[0], "arguments": made[1]}
    rows = dataset(ray, timed, texts, actors, batch_size=AT_A_TIME).take_all()
    batches: dict[int, list[tuple[float, float]]] = {}
    for row in rows[::AT_A_TIME]:
        batches.setdefault(row["actor"], []).append((row["began"], row["ended"]))
    if len(batches) < actors:
        raise SystemExit(f"{len(batches)} of {actors} actors had all records; give more --records")
    begin = max(min(began for began, _ in each) for each in batches.values())
    end = min(max(ended for _, ended in each) for each in batches.values())
    total = 0.0
    for each in batches.values():
        ends = sorted(ended for began, ended in each if began >= begin and ended <= end)
        if len(ends) < 2:
            raise SystemExit("the actors were at work together for too short a time; give more --records")
        total += AT_A_TIME * (len(ends) - 1) / (ends[-1] - ends[0])
    return total


def dataset(ray: Any, made: Actor, texts: Sequence[str], actors: int, *, batch_size: int) -> Any:
    """What the actors give, once somebody asks for it."""
    import pyarrow as pa

    kind, arguments = made
    ds = ray.data.from_arrow(pa.table({"text": list(texts)})).repartition(target_num_rows_per_block=batch_size)
    scored = ds.map_batches(kind, fn_constructor_kwargs=arguments, **pool(ray, actors, 1, batch_size))
    scored.context.enable_progress_bars = False
    scored.context.execution_options.preserve_order = True
    return scored


def load_seconds(ray: Any, made: Actor, texts: Sequence[str]) -> float:
    return common.seconds(lambda: dataset(ray, made, texts[:1], 1, batch_size=1).take_all())


def batch_seconds(ray: Any, n: int) -> float:
    """Seconds a batch for actors that do nothing, without what starting them takes."""
    texts = ["some text that is as long as a message of two lines is, more or less, in what people write"] * (BATCH * n)
    few = texts[: BATCH * (n // 10)]
    short, long = (
        common.seconds(lambda some=some: dataset(ray, (Nothing, {}), some, 2, batch_size=BATCH).materialize())
        for some in (few, texts)
    )
    return (long - short) / (n - n // 10)


def calculate(rate: float, load: float, batch: float) -> None:
    """Hours, by a model that is told beside it."""
    limit = 1 / batch * BATCH
    print("calculated, not measured; assumptions:")
    print(f"   an actor does {rate:.3g} records/s, one thread each, as here, and loads its model once in {load:.3g} s")
    print("   actors do not slow each other down: machines are alike, and their memory is wide enough for their cores")
    print(f"   one driver hands out a batch of {BATCH} in {batch * 1e3:.3g} ms, whatever the number of actors")
    print(f"   so it is the limit from {limit:.3g} records/s on, what {limit / rate:.3g} such actors do")
    print("   reading and writing are done by the cluster, side by side; nobody fails")
    sizes, actors = (10**6, 10**7, 10**8, 10**9), (1, 10, 100, 1000)
    print("hours for records: " + "".join(f"{f'10^{len(str(n)) - 1}':>10}" for n in sizes))
    for n in actors:
        hours = [(load + records / min(n * rate, limit)) / 3600 for records in sizes]
        bound = "   (the driver is the limit)" if n * rate > limit else ""
        print(f"{n:>9} actors      " + "".join(f"{h:>10.3g}" for h in hours) + bound)


if __name__ == "__main__":
    main()
