"""What the pictures of an evaluation draw, with scikit-learn's names: arrays in, arrays out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeguard.evaluation.figures import PER_BIN
from edgeguard.evaluation.intervals import wilson
from edgeguard.evaluation.metrics import N_BINS, roc_curve

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class ThresholdCurve:
    """(k,) each, thresholds falling: what a label's decisions are worth if it counts from there on.

    As in scikit-learn's precision_recall_curve: thresholds are the scores that there are, a record at one counts.
    """

    thresholds: Floats
    precision: Floats
    recall: Floats
    fpr: Floats


def threshold_curve(y_true: Bools, y_prob: Floats) -> ThresholdCurve:
    """(n,) both; both classes are there."""
    curve = roc_curve(y_true, y_prob)
    tps, fps = curve.tps[0, 1:], curve.fps[0, 1:]
    return ThresholdCurve(np.unique(y_prob)[::-1], tps / (tps + fps), tps / tps[-1], fps / fps[-1])


@dataclass(frozen=True, eq=False)
class CalibrationCurve:
    """(n_bins,) each, as scikit-learn's calibration_curve with strategy="quantile".

    prob_pred  mean probability of the bin's records; prob_true  share of them that is true, in [low, high] by Wilson
    count      records
    """

    prob_pred: Floats
    prob_true: Floats
    low: Floats
    high: Floats
    count: Ints


def calibration_curve(y_true: Bools, y_prob: Floats) -> CalibrationCurve | None:
    """Bins of equal count, at most N_BINS, of PER_BIN records at least; records that tie are in one bin.

    None where that leaves fewer than two: too few records, or too few different probabilities.
    """
    order = np.argsort(y_prob, kind="stable")
    p, true = y_prob[order], y_true[order]
    n_bins = min(N_BINS, len(p) // PER_BIN)
    ends = {int(np.searchsorted(p, p[round(len(p) * i / n_bins) - 1], "right")) for i in range(1, n_bins)}
    edges = _large_enough(sorted(ends), len(p))
    if len(edges) < 3:
        return None
    count = np.diff(edges)
    sums = [np.add.reduceat(values.astype(float), edges[:-1]) for values in (p, true)]
    ends_of = np.array([wilson(float(hits), float(n)) for hits, n in zip(sums[1], count, strict=True)])
    return CalibrationCurve(sums[0] / count, sums[1] / count, ends_of[:, 0], ends_of[:, 1], count)


def _large_enough(ends: list[int], n: int) -> list[int]:
    """Bins' edges from 0 to n, without those that would leave a bin too few records."""
    edges = [0]
    for end in ends:
        if end - edges[-1] >= PER_BIN and n - end >= PER_BIN:
            edges.append(end)
    return [*edges, n]
