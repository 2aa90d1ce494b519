"""Metrics of scores against the truth. Pure numpy; those that scikit-learn has agree with it, ties included.

`y_true` is (n,) bool, `y_score` (n,) float, higher for true; `y_prob` likewise and a probability; `y_pred` (n,) bool.
`weight` is (n,), or None for all ones: a bootstrap draws weights, how often each record came up, in place of records. A
weight of (draws, n) gives (draws,) figures at once, with the records sorted once. A figure that the records cannot
have, such as the AUROC of records of one class, is nan.

Scores, higher is better: auroc, partial_auroc, auprc, f1, precision, recall. Losses: brier_loss, log_loss, ece_loss,
classwise_ece_loss, hamming_loss.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeguard.evaluation import intervals

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Weight = npt.NDArray[np.float64] | None
Figure = Any  # a float; for weights of (draws, n) an array of (draws,)

N_BINS = 15
SMALLEST = float(np.finfo(float).eps)  # log_loss takes no probability nearer to 0 or 1, as scikit-learn does not


def _rows(weight: Weight, n: int) -> Floats:
    """(draws, n) weights."""
    return np.ones((1, n)) if weight is None else np.atleast_2d(weight)


def as_given(figures: Floats, weight: Weight) -> Figure:
    """(draws,) figures, or the only one as a float."""
    return float(figures[0]) if weight is None or weight.ndim == 1 else figures


def _over(part: Floats, whole: Floats, otherwise: float) -> Floats:
    """part / whole, and `otherwise` where whole is nought."""
    return np.asarray(np.where(whole > 0, part / np.where(whole > 0, whole, 1), otherwise))


# Ranking


@dataclass(frozen=True, eq=False)
class Curve:
    """(draws, k + 1) weight of the true and of the false positives at each of k scores, from none to all."""

    tps: Floats
    fps: Floats


def roc_curve(y_true: Bools, y_score: Floats, weight: Weight = None) -> Curve:
    """What auroc, partial_auroc and auprc are read from: `area`, `partial_area`, `average_precision`."""
    order = np.argsort(-y_score, kind="stable")
    last = np.append(np.flatnonzero(np.diff(y_score[order])), len(order) - 1)  # of the records that tie
    weights = _rows(weight, len(y_true))[:, order]
    tps, positives = (np.zeros((len(weights), len(last) + 1)) for _ in range(2))
    tps[:, 1:] = np.cumsum(weights * y_true[order], axis=1)[:, last]
    positives[:, 1:] = np.cumsum(weights, axis=1)[:, last]
    return Curve(tps, positives - tps)


def area(curve: Curve) -> Floats:
    """(draws,) area under the curve, in [0, 1]."""
    under = np.asarray(np.trapezoid(curve.tps, curve.fps, axis=1))
    return _over(under, curve.tps[:, -1] * curve.fps[:, -1], np.nan)


def partial_area(curve: Curve, max_fpr: float) -> Floats:
    """(draws,) the same up to a false-positive rate, standardised: 0.5 for chance, 1 for perfect (McClish, 1989)."""
    n_true, n_false = curve.tps[:, -1], curve.fps[:, -1]
    # Each step of the curve up to there: a trapezoid whose right side is where the step crosses the rate.
    most = (max_fpr * n_false)[:, None]
    steps = np.minimum(curve.fps, most)
    wide = np.flatnonzero((np.diff(steps, axis=1) > 0).any(axis=0))
    left, right, low, high = (x[:, wide + i] for x in (curve.fps, curve.tps) for i in (0, 1))
    width = steps[:, wide + 1] - steps[:, wide]
    under = np.sum(width * (low + (high - low) * _over(width, right - left, 1.0) / 2), axis=1)
    least = 0.5 * max_fpr**2
    share = _over(under, n_true * n_false, np.nan)
    return np.asarray(0.5 * (1 + (share - least) / (max_fpr - least)))


def average_precision(curve: Curve) -> Floats:
    """(draws,) precision at each threshold, weighted by the recall it adds. In [0, 1]."""
    precisions = _over(curve.tps, curve.tps + curve.fps, 0.0)[:, 1:]
    return _over(np.sum(np.diff(curve.tps, axis=1) * precisions, axis=1), curve.tps[:, -1], np.nan)


def auroc(y_true: Bools, y_score: Floats, weight: Weight = None) -> Figure:
    """Area under the ROC curve, in [0, 1]."""
    return as_given(area(roc_curve(y_true, y_score, weight)), weight)


def partial_auroc(y_true: Bools, y_score: Floats, weight: Weight = None, *, max_fpr: float) -> Figure:
    """The same up to a false-positive rate, standardised."""
    return as_given(partial_area(roc_curve(y_true, y_score, weight), max_fpr), weight)


def auprc(y_true: Bools, y_score: Floats, weight: Weight = None) -> Figure:
    """Average precision, in [0, 1]."""
    return as_given(average_precision(roc_curve(y_true, y_score, weight)), weight)


def n_distinct(y_score: Floats) -> int:
    """How many different scores there are: few of them rank badly whatever the model knows."""
    return len(np.unique(y_score))


# Probabilities


def brier_loss(y_true: Bools, y_prob: Floats, weight: Weight = None) -> Figure:
    """Mean squared difference, in [0, 1]."""
    return _mean((y_prob - y_true) ** 2, weight)


def log_loss(y_true: Bools, y_prob: Floats, weight: Weight = None) -> Figure:
    """Mean negative log-likelihood, nats."""
    y_prob = np.clip(y_prob, SMALLEST, 1 - SMALLEST)
    return _mean(-np.where(y_true, np.log(y_prob), np.log1p(-y_prob)), weight)


def _mean(values: Floats, weight: Weight) -> Figure:
    weights = _rows(weight, len(values))
    return as_given(weights @ values / weights.sum(axis=1), weight)


@dataclass(frozen=True, eq=False)
class Reliability:
    """Bins of equal mass over a score, for a reliability diagram. All (n_bins,); a bin holds at least one record.

    mean_p     mean probability of the bin's records
    frequency  share of them that is true
    weight     share of all records that is in the bin
    """

    mean_p: Floats
    frequency: Floats
    weight: Floats


@dataclass(frozen=True, eq=False)
class Bins:
    """(draws, n_bins) weight of the records in each bin, and the sums of their y_prob and y_true. Some may be empty."""

    mass: Floats
    y_prob: Floats
    y_true: Floats


def equal_mass_bins(y_true: Bools, y_prob: Floats, weight: Weight = None, *, n_bins: int = N_BINS) -> Bins:
    """What ece_loss and brier_parts are read from. Records that tie may fall into two bins."""
    order = np.argsort(y_prob, kind="stable")
    weights = _rows(weight, len(y_true))[:, order]
    place = np.cumsum(weights, axis=1)
    place -= weights / 2
    bins = np.minimum((place * (n_bins / weights.sum(axis=1, keepdims=True))).astype(int), n_bins - 1)
    at = (bins + n_bins * np.arange(len(weights))[:, None]).ravel()

    def total(weights: Floats) -> Floats:
        sums: Floats = np.bincount(at, weights.ravel(), len(weights) * n_bins).astype(float)
        return sums.reshape(-1, n_bins)

    return Bins(total(weights), total(weights * y_prob[order]), total(weights * y_true[order]))


def reliability(y_true: Bools, y_prob: Floats, *, n_bins: int = N_BINS) -> Reliability:
    """The bins that are not empty."""
    bins = equal_mass_bins(y_true, y_prob, n_bins=n_bins)
    filled = bins.mass[0] > 0
    mass = bins.mass[0, filled]
    return Reliability(bins.y_prob[0, filled] / mass, bins.y_true[0, filled] / mass, mass / len(y_true))


def ece_of(bins: Bins) -> Floats:
    """(draws,) expected calibration error, in [0, 1]. Biased upward where bins hold few records."""
    return np.asarray(np.abs(bins.y_prob - bins.y_true).sum(axis=1) / bins.mass.sum(axis=1))


def ece_loss(y_true: Bools, y_prob: Floats, weight: Weight = None, *, n_bins: int = N_BINS) -> Figure:
    """Expected calibration error over bins of equal mass, in [0, 1]."""
    return as_given(ece_of(equal_mass_bins(y_true, y_prob, weight, n_bins=n_bins)), weight)


def classwise_ece_loss(y_true: Bools, y_prob: Floats, weight: Weight = None, *, n_bins: int = N_BINS) -> Figure:
    """Mean over labels of their calibration errors: y_true and y_prob are (n, n_labels)."""
    return macro(lambda t, q, w: ece_loss(t, q, w, n_bins=n_bins), y_true, y_prob, weight)


@dataclass(frozen=True)
class BrierParts:
    """brier_loss = reliability - resolution + uncertainty + within.

    reliability  what calibration would mend
    resolution   what the score tells about the truth
    uncertainty  the variance of the truth
    within       what binning hides (Stephenson et al., 2008, Weather and Forecasting 23)
    """

    reliability: Figure
    resolution: Figure
    uncertainty: Figure
    within: Figure


def brier_parts(y_true: Bools, y_prob: Floats, weight: Weight = None, *, n_bins: int = N_BINS) -> BrierParts:
    """Murphy's decomposition (1973) over bins of equal mass."""
    bins = equal_mass_bins(y_true, y_prob, weight, n_bins=n_bins)
    calibration, resolution, uncertainty = (as_given(part, weight) for part in parts_of(bins))
    rest = brier_loss(y_true, y_prob, weight) - (calibration - resolution + uncertainty)
    return BrierParts(calibration, resolution, uncertainty, within=rest)


def parts_of(bins: Bins) -> tuple[Floats, Floats, Floats]:
    """(draws,) each: reliability, resolution and uncertainty."""
    whole = bins.mass.sum(axis=1)
    base = bins.y_true.sum(axis=1) / whole
    gap, over = bins.y_prob - bins.y_true, bins.y_true - bins.mass * base[:, None]
    return (
        _over(gap**2, bins.mass, 0.0).sum(axis=1) / whole,
        _over(over**2, bins.mass, 0.0).sum(axis=1) / whole,
        base * (1 - base),
    )


# Decisions: y_true and y_pred are (n, n_labels), or (n,)


def precision(y_true: Bools, y_pred: Bools, weight: Weight = None) -> Figure:
    """Share of the predicted labels that are true; 0 where none was predicted."""
    tps, predicted, _ = _counts(y_true, y_pred, weight)
    return as_given(_over(tps.sum(axis=1), predicted.sum(axis=1), 0.0), weight)


def recall(y_true: Bools, y_pred: Bools, weight: Weight = None) -> Figure:
    """Share of the true labels that were predicted; 0 where none is true."""
    tps, _, positives = _counts(y_true, y_pred, weight)
    return as_given(_over(tps.sum(axis=1), positives.sum(axis=1), 0.0), weight)


def f1(y_true: Bools, y_pred: Bools, weight: Weight = None) -> Figure:
    """Harmonic mean of precision and recall, over all labels together (micro)."""
    tps, predicted, positives = _counts(y_true, y_pred, weight)
    return as_given(_over(2 * tps.sum(axis=1), (predicted + positives).sum(axis=1), 0.0), weight)


def macro_f1(y_true: Bools, y_pred: Bools, weight: Weight = None) -> Figure:
    """Mean of the labels' F1, over the labels that some record has; nan where none has any."""
    tps, predicted, positives = _counts(y_true, y_pred, weight)
    scores = np.where(positives > 0, _over(2 * tps, predicted + positives, 0.0), 0.0)
    return as_given(_over(scores.sum(axis=1), (positives > 0).sum(axis=1), np.nan), weight)


def false_positive_rate(y_true: Bools, y_pred: Bools, weight: Weight = None) -> Figure:
    """Share of the false that was predicted; nan where all is true."""
    weights = _rows(weight, len(y_true))
    return as_given(_over(weights @ (y_pred & ~y_true), weights @ ~y_true, np.nan), weight)


def hamming_loss(y_true: Bools, y_pred: Bools, weight: Weight = None) -> Figure:
    """Share of the labels that are wrong, in [0, 1]."""
    return _mean((y_true != y_pred).reshape(len(y_true), -1).mean(axis=1), weight)


def _counts(y_true: Bools, y_pred: Bools, weight: Weight) -> tuple[Floats, Floats, Floats]:
    """(draws, n_labels) weight of the true positives, of what was predicted, of what is true."""
    y_true, y_pred = y_true.reshape(len(y_true), -1), y_pred.reshape(len(y_pred), -1)
    weights = _rows(weight, len(y_true))
    tps, predicted, positives = (
        weights @ x.astype(float) for x in (y_true & y_pred, y_pred, y_true)
    )  # floats: numpy hands it to BLAS
    return tps, predicted, positives


# Several labels


def macro(
    metric: Callable[[Bools, Floats, Weight], Figure], y_true: Bools, y_score: Floats, weight: Weight = None
) -> Figure:
    """Mean of a metric over the labels that have it; nan where none has."""
    return mean_of_labels([metric(y_true[:, i], y_score[:, i], weight) for i in range(y_true.shape[1])])


def mean_of_labels(figures: Sequence[Figure]) -> Figure:
    """The mean over the labels that have a figure; nan where none has."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a mean over no label
        return np.nanmean(np.array(figures), axis=0)


def micro(
    metric: Callable[[Bools, Floats, Weight], Figure], y_true: Bools, y_score: Floats, weight: Weight = None
) -> Figure:
    """A metric over all labels of all records as if they were one label."""
    spread = None if weight is None else np.repeat(weight, y_true.shape[1], axis=-1)
    return metric(y_true.ravel(), y_score.ravel(), spread)


# Uncertainty


@dataclass(frozen=True)
class Interval:
    """A figure with the ends of its interval; nan for ends that the records do not give."""

    value: float
    low: float
    high: float


def bootstrap(
    figures: Callable[[Weight], Mapping[str, Figure]],
    n: int,
    *,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    telling: int | None = None,
    symmetric: Collection[str] = (),
) -> dict[str, Interval]:
    """Percentile intervals of figures over records drawn with replacement (Efron, 1979).

    `figures` gives them for a weight of each record, or as many at once as there are rows of weights. The same n and
    seed give the same draws: two calls are paired.

    telling    records that the figures rest on, such as those of the rarer class: percentiles are moved out as
               `intervals.expanded` says; None: they stay
    symmetric  figures that reach at least to where Student's law and the draws' standard error have it: what a few
               records decide takes few values, and percentiles of those are too near (bench/coverage.py)

    An interval is nan where under half of the draws have the figure, or there are under 10 records.
    """
    whole, rng = figures(None), np.random.default_rng(seed)
    samples: dict[str, list[Floats]] = {name: [] for name in whole}
    left, at_once = draws, max(1, _AT_ONCE // max(1, n))
    while left > 0:
        counts = [np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(min(left, at_once))]
        for name, drawn in figures(np.array(counts, dtype=np.float64)).items():
            samples[name].append(np.broadcast_to(drawn, len(counts)))
        left -= len(counts)
    alpha, found = (1 - level) / 2, {}
    tail = alpha if telling is None else intervals.expanded(alpha, telling)
    for name, value in whole.items():
        sample = np.concatenate([[], *samples[name]])
        sample = sample[~np.isnan(sample)]
        low = high = np.nan
        if n >= 10 and len(sample) > draws / 2:
            low, high = np.quantile(sample, [tail, 1 - tail])
            if name in symmetric:
                half = intervals.student(alpha, n - 1) * np.sqrt(n / (n - 1)) * sample.std()
                low, high = min(low, value - half), max(high, value + half)
        found[name] = Interval(float(value), float(low), float(high))
    return found


_AT_ONCE = 100_000  # weights; a figure over fourteen labels makes arrays that many times as large
