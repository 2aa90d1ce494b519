"""Figures of what a system says of labelled records, with 95 % intervals. Arrays in, numbers out.

Of a file: the bootstrap's, over the same draws of records for every system, so that differences are paired. Of a group
of records (a length, a source): Wilson's, as groups are small.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from edgeguard.calibration.maps import Calibration, sigmoid
from edgeguard.evaluation import metrics
from edgeguard.evaluation.baselines import greedy, greedy_verdict
from edgeguard.evaluation.intervals import ENOUGH, auroc_interval, wilson
from edgeguard.evaluation.table import ScoreTable, decisions

DRAWS = 1000
PER_BIN = 10  # records of a bin of a group's calibration error, at least
FEW = 15  # records: groups of fewer are not shown
Interval = metrics.Interval
Drawn = Mapping[str, np.ndarray]  # figure → (1 + DRAWS,) its value, then that of each draw


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a system says of n records; "unsafe" stands first, the codes behind it.

    y_pred  (n, n_labels) at the system's thresholds
    y_prob  (n, n_labels) probabilities, to rank by too; None for a system that has none
    raw     (n,) P(unsafe) before calibration; None likewise
    """

    y_pred: np.ndarray
    y_prob: np.ndarray | None = None
    raw: np.ndarray | None = None


def at(calibration: Calibration, table: ScoreTable, estimator: str) -> Predictions:
    """Scores with a calibration and its thresholds, as `edgeguard score` shows them."""
    decided = decisions(table, estimator, calibration=calibration)
    return Predictions(decided.y_pred, decided.y_prob, sigmoid(table.margin))


def answer(table: ScoreTable) -> Predictions:
    """The greedy answer: what is read of a guard that is let write, at no threshold at all."""
    return Predictions(np.column_stack([greedy_verdict(table), greedy(table)]))


def of_rows(predictions: Predictions, rows: np.ndarray) -> Predictions:
    """The predictions of some records: a mask or indices."""
    y_prob = None if predictions.y_prob is None else predictions.y_prob[rows]
    raw = None if predictions.raw is None else predictions.raw[rows]
    return replace(predictions, y_pred=predictions.y_pred[rows], y_prob=y_prob, raw=raw)


# Of a file


def draw(predictions: Predictions, y_true: np.ndarray) -> dict[str, np.ndarray]:
    """Figure → its value and those of DRAWS draws of records: the same draws for every system on as many records."""
    return drawn(partial(figures_of, predictions, y_true), len(y_true))


def drawn(figures: Callable[[np.ndarray], Mapping[str, np.ndarray]], n: int) -> dict[str, np.ndarray]:
    """Figures of the records as they are, then of each draw; `figures` takes (draws, n) weights."""
    rng, found = np.random.default_rng(0), [figures(np.ones((1, n)))]
    for _ in range(DRAWS // 50):  # 50 draws at a time: the codes of all records in 50 draws are an array of some MB
        found.append(figures(np.array([np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(50)], float)))
    return {key: np.concatenate([np.atleast_1d(one[key]) for one in found]) for key in found[0]}


def figures_of(predictions: Predictions, y_true: np.ndarray, weight: np.ndarray) -> dict[str, np.ndarray]:
    """All figures at once of (draws, n) weights; nan where the records are of one class only."""
    verdict, codes = y_true[:, 0], y_true[:, 1:]
    flagged, named = predictions.y_pred[:, 0], predictions.y_pred[:, 1:]
    some, recall = weight @ verdict > 0, metrics.recall(verdict, flagged, weight)
    found = {
        "F1": metrics.f1(verdict, flagged, weight),
        "precision": metrics.precision(verdict, flagged, weight),
        "false positives": metrics.false_positive_rate(verdict, flagged, weight),
        "recall": np.where(some, recall, np.nan),
        "misses": np.where(some, 1 - recall, np.nan),
        "micro F1": metrics.f1(codes, named, weight),
        "macro F1": metrics.macro_f1(codes, named, weight),
        "micro precision": metrics.precision(codes, named, weight),
        "micro recall": metrics.recall(codes, named, weight),
        "Hamming loss": metrics.hamming_loss(codes, named, weight),
    }
    if predictions.y_prob is None or predictions.raw is None:
        return found
    unsafe, probabilities = predictions.y_prob[:, 0], predictions.y_prob[:, 1:]
    curve = metrics.roc_curve(verdict, unsafe, weight)
    both = some & (weight @ ~verdict > 0)
    return found | {
        "AUROC": metrics.area(curve),
        "AUPRC": np.where(both, metrics.average_precision(curve), np.nan),
        "Brier": metrics.brier_loss(verdict, unsafe, weight),
        "Brier raw": metrics.brier_loss(verdict, predictions.raw, weight),
        "ECE": metrics.ece_loss(verdict, unsafe, weight),
        "ECE raw": metrics.ece_loss(verdict, predictions.raw, weight),
        "micro AUPRC": metrics.micro(metrics.auprc, codes, probabilities, weight),
        "macro AUPRC": metrics.macro(metrics.auprc, codes, probabilities, weight),
    }


def interval(values: np.ndarray) -> list[float]:
    """Value, lower and upper end of its 95 % interval."""
    sample = values[1:][~np.isnan(values[1:])]
    low, high = np.percentile(sample, [2.5, 97.5]) if len(sample) > DRAWS // 2 else (np.nan, np.nan)
    return [float(values[0]), float(low), float(high)]


# Of groups of its records


@dataclass(frozen=True)
class Share:
    """Of n records, so many."""

    hits: int
    n: int

    @property
    def interval(self) -> Interval:
        """The share, and Wilson's interval; nan of none."""
        return Interval(self.hits / self.n if self.n else np.nan, *wilson(self.hits, self.n))


@dataclass(frozen=True)
class Group:
    """The verdict on some of a file's records.

    false_alarms  of the safe ones
    misses        of the unsafe ones
    auroc         nan with fewer than 10 of each
    ece           of at most 15 bins of at least 10 records; its interval is the bootstrap's
    """

    name: str
    n: int
    false_alarms: Share
    misses: Share
    auroc: Interval
    ece: Interval


def groups(
    predictions: Predictions, y_true: np.ndarray, names: np.ndarray, *, order: Sequence[str] = (), least: int = 1
) -> list[Group]:
    """The groups that `names`, (n,), puts the records into and that have at least so many: as `order` has them, else
    the largest first."""
    found, counts = np.unique(names, return_counts=True)
    by_size = [str(name) for _, name in sorted(zip(-counts, found, strict=True))]
    wanted = [name for name in order or by_size if (names == name).sum() >= least]
    return [_group(name, of_rows(predictions, names == name), y_true[names == name, 0]) for name in wanted]


def _group(name: str, predictions: Predictions, unsafe: np.ndarray) -> Group:
    assert predictions.y_prob is not None
    flagged, p = predictions.y_pred[:, 0], predictions.y_prob[:, 0]
    n_bins = int(np.clip(len(p) // PER_BIN, 1, metrics.N_BINS))
    ece = interval(drawn(lambda weight: {"ece": metrics.ece_loss(unsafe, p, weight, n_bins=n_bins)}, len(p))["ece"])
    ranked = min(unsafe.sum(), (~unsafe).sum()) >= ENOUGH
    return Group(
        name,
        len(p),
        Share(int((flagged & ~unsafe).sum()), int((~unsafe).sum())),
        Share(int((~flagged & unsafe).sum()), int(unsafe.sum())),
        Interval(metrics.auroc(unsafe, p), *auroc_interval(unsafe, p)) if ranked else Interval(*[np.nan] * 3),
        Interval(*ece),
    )


def worst_calibrated(found: Sequence[Group]) -> Group | None:
    """The group with the largest calibration error; None of none."""
    return max(found, key=lambda group: group.ece.value, default=None)
