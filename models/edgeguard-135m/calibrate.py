"""Fits the calibration and the default thresholds of the built-in guard, on the validation set alone.

    python models/edgeguard-135m/calibrate.py VAL.jsonl

Maps: Platt's, label by label, on the log-odds of the scores (of `unsafe`: on the margin), with his smoothed targets,
which keep a label of few positives from being taken for certain.

Thresholds, on the calibrated probabilities: for `unsafe` the lowest at which at most 2 % of the safe rows are over it;
for each category the one that gives the best F1, the median of 200 resamplings, and no lower than where 0.2 % of the
safe rows are over it.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

from edgeguard.calibration import Calibration, Map, logit, write_calibration
from edgeguard.estimators import ESTIMATORS
from edgeguard.files import sha256
from edgeguard.guard import Guard
from edgeguard.inputs import read_records
from edgeguard.models import built_in
from edgeguard.scores import ScoreTable, load_table, save_table, score_records

HERE = Path(__file__).parent
UNSAFE_RATE, LABEL_RATE = 0.02, 0.002  # of the safe rows over the threshold of `unsafe`, of one category
RESAMPLINGS = 200
GRID = np.round(np.arange(0.05, 0.951, 0.01), 2)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("val", type=Path)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--scores", type=Path, help="keep the scores here, and take them from here")
    args = parser.parse_args()
    guard = built_in("edgeguard-135m")
    if args.scores and args.scores.exists():
        table = load_table(args.scores)
    else:
        with Guard.load(calibration=False) as loaded:
            table = score_records(loaded, read_records(args.val))
        if args.scores:
            save_table(table, args.scores)
    for estimator in ESTIMATORS:
        maps, thresholds = fit(table, estimator)
        calibration = Calibration(
            guard=guard.name,
            profile=guard.profile,
            estimator=estimator,
            model_sha256=guard.model_sha256,
            maps=maps,
            thresholds=thresholds,
            fitted={"file": args.val.name, "sha256": sha256(args.val), "records": len(table)},
        )
        write_calibration(calibration, args.out / f"calibration-{estimator}.json")


def fit(table: ScoreTable, estimator: str) -> tuple[dict[str, Map], dict[str, float]]:
    """Maps and thresholds by label."""
    unsafe = table.truth.any(axis=1)
    odds = {"unsafe": table.margin} | {c: logit(table.scores[estimator][:, i]) for i, c in enumerate(table.labels)}
    truth = {"unsafe": unsafe} | {c: table.truth[:, i] for i, c in enumerate(table.labels)}
    maps = {label: platt(odds[label], truth[label]) for label in odds}
    thresholds = {}
    for label, map_ in maps.items():
        p = map_(odds[label])
        if label == "unsafe":
            thresholds[label] = over(p[~unsafe], UNSAFE_RATE)
        else:
            thresholds[label] = max(best_f1(p, truth[label]), over(p[~unsafe], LABEL_RATE))
    return maps, {label: round(float(t), 4) for label, t in thresholds.items()}


def platt(log_odds: np.ndarray, truth: np.ndarray) -> Map:
    """σ(a x + b) with the targets (n+ + 1) / (n+ + 2) and 1 / (n- + 2)."""
    n = truth.sum()
    target = np.where(truth, (n + 1) / (n + 2), 1 / (len(truth) - n + 2))
    x = np.concatenate([log_odds, log_odds])[:, None]
    y = np.concatenate([np.ones(len(truth)), np.zeros(len(truth))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = LogisticRegression(C=1e6, max_iter=1000).fit(x, y, np.concatenate([target, 1 - target]))
    return Map(
        "platt", {"slope": round(float(model.coef_[0, 0]), 6), "intercept": round(float(model.intercept_[0]), 6)}
    )


def over(p: np.ndarray, rate: float) -> float:
    """The lowest threshold, on a grid of 0.0001, that at most `rate` of p are at or over."""
    allowed = int(rate * len(p))
    return min(0.9999, float(np.floor(np.sort(p)[::-1][allowed] * 1e4) / 1e4) + 1e-4)


def best_f1(p: np.ndarray, truth: np.ndarray) -> float:
    """Median of the thresholds with the best F1 over resamplings of the rows."""
    rng, found = np.random.default_rng(0), []
    flagged = p[:, None] >= GRID
    for _ in range(RESAMPLINGS):
        rows = rng.integers(0, len(p), len(p))
        hit, said, there = (flagged[rows] & truth[rows, None]).sum(0), flagged[rows].sum(0), truth[rows].sum()
        f1 = 2 * hit / np.maximum(1, said + there)
        best = GRID[f1 == f1.max()]
        found.append(best[np.argmin(np.abs(best - 0.5))])
    return float(np.median(found))


if __name__ == "__main__":
    main()
