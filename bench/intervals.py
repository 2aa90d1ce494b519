"""How often do the intervals of an evaluation hold the true value? Simulated, where that is known.

    python bench/intervals.py                 # a minute on one core
    python bench/intervals.py --studies 1000

Of each case that many studies are drawn: scores of true and of false records, normally distributed, the true ones with
a spread of their own. "holds" is the share of studies whose 95 % interval holds the true value, "bootstrap" that of the
percentile bootstrap, of which one study in ten is asked.
"""

from __future__ import annotations

import argparse
import math
from statistics import NormalDist

import numpy as np

from edgeguard.evaluation.intervals import auprc_interval, auroc_interval, f1_interval, wilson
from edgeguard.evaluation.metrics import auprc, auroc, bootstrap

AREAS = (0.7, 0.85, 0.95, 0.985)
COUNTS = ((3, 50), (10, 10), (10, 50), (10, 500), (20, 200), (50, 50), (100, 900))
SPREADS = (0.5, 1.0, 2.0)
DRAWS = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--studies", type=int, default=400, help="of each case")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    print(
        f"{args.studies} studies of each case; the standard error of a share of 0.95 is "
        f"{math.sqrt(0.95 * 0.05 / args.studies):.3f}\n"
    )
    rankings(rng, args.studies)
    shares(rng, args.studies)


def rankings(rng: np.random.Generator, studies: int) -> None:
    """The least and the most of each row: areas from 0.7 to 0.985, spreads from half to twice that of the false."""
    print("| true, false records | AUROC holds | bootstrap | AUPRC holds | bootstrap |")
    print("|---|---|---|---|---|")
    for n_true, n_false in COUNTS:
        found = []
        for area in AREAS:
            for spread in SPREADS:
                shift = NormalDist().inv_cdf(area) * math.hypot(1, spread)
                found.append(ranking(rng, studies, n_true, n_false, shift, spread, area))
        ends = (f"{min(column):.3f} to {max(column):.3f}" for column in zip(*found, strict=True))
        print(f"| {n_true}, {n_false} | {' | '.join(ends)} |", flush=True)
    print()


def ranking(
    rng: np.random.Generator, studies: int, n_true: int, n_false: int, shift: float, spread: float, area: float
) -> list[float]:
    y_true = np.arange(n_true + n_false) < n_true

    def scores(times: int = 1) -> np.ndarray:
        true, false = rng.normal(shift, spread, n_true * times), rng.normal(0, 1, n_false * times)
        return np.concatenate([true, false])

    many = 20_000 // n_true + 1
    precision = float(auprc(np.repeat([True, False], [n_true * many, n_false * many]), scores(many)))
    held = np.zeros(4)
    asked = 0
    for i in range(studies):
        drawn = scores()
        low, high = auroc_interval(y_true, drawn)
        held[0] += low <= area <= high
        low, high = auprc_interval(float(auprc(y_true, drawn)), n_true)
        held[1] += low <= precision <= high
        if i % 10 == 0:
            asked += 1
            ends = bootstrap(
                lambda w, drawn=drawn: {"auroc": auroc(y_true, drawn, w), "auprc": auprc(y_true, drawn, w)},
                len(y_true),
                draws=DRAWS,
            )
            held[2] += ends["auroc"].low <= area <= ends["auroc"].high
            held[3] += ends["auprc"].low <= precision <= ends["auprc"].high
    return [held[0] / studies, held[2] / asked, held[1] / studies, held[3] / asked]


def shares(rng: np.random.Generator, studies: int) -> None:
    """Of shares as of F1: many more studies, since they cost nothing."""
    print("| records | share | holds | F1 | holds |")
    print("|---|---|---|---|---|")
    for n in (10, 30, 100, 300):
        for p in (0.5, 0.8, 0.95, 0.99):
            drawn = rng.multinomial(n, [p, (1 - p) / 2, (1 - p) / 2], size=studies * 25)
            share = np.mean([low <= p <= high for low, high in (wilson(hits, n) for hits in drawn[:, 0])])
            true = 2 * p / (1 + p)
            f1 = np.mean([low <= true <= high for low, high in (f1_interval(d[0], d[1] + d[2]) for d in drawn)])
            print(f"| {n} | {p} | {share:.3f} | {true:.3f} | {f1:.3f} |")


if __name__ == "__main__":
    main()
