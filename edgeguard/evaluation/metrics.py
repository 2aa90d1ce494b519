"""Metrics of scores against the truth. Pure numpy; those that scikit-learn has agree with it, ties included.

`truth` is (n,) bool, `score` (n,) float, higher for true; `p` likewise and a probability. `weight` is (n,), or None for
all ones: a bootstrap draws weights, how often each record came up, in place of records. A weight of (draws, n) gives
(draws,) figures at once, with the records sorted once. A figure that the records cannot have, such as the AUROC of
records of one class, is nan.

Scores, higher is better: auroc, partial_auroc, auprc, f1, precision, recall. Losses: brier_loss, log_loss, ece_loss,
classwise_ece_loss, hamming_loss.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Weight = npt.NDArray[np.float64] | None
Figure = Any  # a float; for weights of (draws, n) an array of (draws,)

N_BINS = 15
SMALLEST = float(np.finfo(float).eps)  # log_loss takes no probability nearer to 0 or 1, as scikit-learn does not


def _rows(weight: Weight, n: int) -> Floats:
    """(draws, n) weights."""
    return np.ones((1, n)) if weight is None else np.atleast_2d(weight)


def as_given(found: Floats, weight: Weight) -> Figure:
    """(draws,) figures, or the only one as a float."""
    return float(found[0]) if weight is None or weight.ndim == 1 else found


def _over(part: Floats, whole: Floats, otherwise: float) -> Floats:
    """part / whole, and `otherwise` where whole is nought."""
    found: Floats = np.where(whole > 0, part / np.where(whole > 0, whole, 1), otherwise)
    return found


# Ranking


@dataclass(frozen=True, eq=False)
class Curve:
    """(draws, k + 1) weight of the true and of the false records at or over each of k scores, from none to all."""

    hits: Floats
    alarms: Floats


def roc_curve(truth: Bools, score: Floats, weight: Weight = None) -> Curve:
    """What auroc, partial_auroc and auprc are read from: `area`, `partial_area`, `average_precision`."""
    order = np.argsort(-score, kind="stable")
    last = np.append(np.flatnonzero(np.diff(score[order])), len(order) - 1)  # of the records that tie
    weights = _rows(weight, len(truth))[:, order]
    hits, said = (np.zeros((len(weights), len(last) + 1)) for _ in range(2))
    hits[:, 1:] = np.cumsum(weights * truth[order], axis=1)[:, last]
    said[:, 1:] = np.cumsum(weights, axis=1)[:, last]
    return Curve(hits, said - hits)


def area(curve: Curve) -> Floats:
    """(draws,) area under the curve, in [0, 1]."""
    found = np.asarray(np.trapezoid(curve.hits, curve.alarms, axis=1))
    return _over(found, curve.hits[:, -1] * curve.alarms[:, -1], np.nan)


def partial_area(curve: Curve, max_fpr: float) -> Floats:
    """(draws,) the same up to a false-positive rate, standardised: 0.5 for chance, 1 for perfect (McClish, 1989)."""
    all_hits, all_alarms = curve.hits[:, -1], curve.alarms[:, -1]
    # Each step of the curve up to there: a trapezoid whose right side is where the step crosses the rate.
    most = (max_fpr * all_alarms)[:, None]
    steps = np.minimum(curve.alarms, most)
    wide = np.flatnonzero((np.diff(steps, axis=1) > 0).any(axis=0))
    left, right, low, high = (x[:, wide + i] for x in (curve.alarms, curve.hits) for i in (0, 1))
    width = steps[:, wide + 1] - steps[:, wide]
    found = np.sum(width * (low + (high - low) * _over(width, right - left, 1.0) / 2), axis=1)
    least = 0.5 * max_fpr**2
    share = _over(found, all_hits * all_alarms, np.nan)
    return np.asarray(0.5 * (1 + (share - least) / (max_fpr - least)))


def average_precision(curve: Curve) -> Floats:
    """(draws,) precision at each threshold, weighted by the recall it adds. In [0, 1]."""
    share = _over(curve.hits, curve.hits + curve.alarms, 0.0)[:, 1:]
    return _over(np.sum(np.diff(curve.hits, axis=1) * share, axis=1), curve.hits[:, -1], np.nan)


def auroc(truth: Bools, score: Floats, weight: Weight = None) -> Figure:
    """Area under the ROC curve, in [0, 1]."""
    return as_given(area(roc_curve(truth, score, weight)), weight)


def partial_auroc(truth: Bools, score: Floats, weight: Weight = None, *, max_fpr: float) -> Figure:
    """The same up to a false-positive rate, standardised."""
    return as_given(partial_area(roc_curve(truth, score, weight), max_fpr), weight)


def auprc(truth: Bools, score: Floats, weight: Weight = None) -> Figure:
    """Average precision, in [0, 1]."""
    return as_given(average_precision(roc_curve(truth, score, weight)), weight)


def n_distinct(score: Floats) -> int:
    """How many different scores there are: few of them rank badly whatever the model knows."""
    return len(np.unique(score))


# Probabilities


def brier_loss(truth: Bools, p: Floats, weight: Weight = None) -> Figure:
    """Mean squared difference, in [0, 1]."""
    return _mean((p - truth) ** 2, weight)


def log_loss(truth: Bools, p: Floats, weight: Weight = None) -> Figure:
    """Mean negative log-likelihood, nats."""
    p = np.clip(p, SMALLEST, 1 - SMALLEST)
    return _mean(-np.where(truth, np.log(p), np.log1p(-p)), weight)


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
    """(draws, n_bins) weight of the records in each bin, and the sums of their p and truth. Some may be empty."""

    mass: Floats
    p: Floats
    truth: Floats


def equal_mass_bins(truth: Bools, p: Floats, weight: Weight = None, *, n_bins: int = N_BINS) -> Bins:
    """What ece_loss and brier_parts are read from. Records that tie may fall into two bins."""
    order = np.argsort(p, kind="stable")
    weights = _rows(weight, len(truth))[:, order]
    place = np.cumsum(weights, axis=1)
    place -= weights / 2
    bins = np.minimum((place * (n_bins / weights.sum(axis=1, keepdims=True))).astype(int), n_bins - 1)
    at = (bins + n_bins * np.arange(len(weights))[:, None]).ravel()

    def total(weights: Floats) -> Floats:
        found: Floats = np.bincount(at, weights.ravel(), len(weights) * n_bins).astype(float)
        return found.reshape(-1, n_bins)

    return Bins(total(weights), total(weights * p[order]), total(weights * truth[order]))


def reliability(truth: Bools, p: Floats, *, n_bins: int = N_BINS) -> Reliability:
    """The bins that are not empty."""
    bins = equal_mass_bins(truth, p, n_bins=n_bins)
    there = bins.mass[0] > 0
    mass = bins.mass[0, there]
    return Reliability(bins.p[0, there] / mass, bins.truth[0, there] / mass, mass / len(truth))


def ece_of(bins: Bins) -> Floats:
    """(draws,) expected calibration error, in [0, 1]. Biased upward where bins hold few records."""
    found: Floats = np.abs(bins.p - bins.truth).sum(axis=1) / bins.mass.sum(axis=1)
    return found


def ece_loss(truth: Bools, p: Floats, weight: Weight = None, *, n_bins: int = N_BINS) -> Figure:
    """Expected calibration error over bins of equal mass, in [0, 1]."""
    return as_given(ece_of(equal_mass_bins(truth, p, weight, n_bins=n_bins)), weight)


def classwise_ece_loss(truth: Bools, p: Floats, weight: Weight = None, *, n_bins: int = N_BINS) -> Figure:
    """Mean over labels of their calibration errors: truth and p are (n, n_labels)."""
    return macro(lambda t, q, w: ece_loss(t, q, w, n_bins=n_bins), truth, p, weight)


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


def brier_parts(truth: Bools, p: Floats, weight: Weight = None, *, n_bins: int = N_BINS) -> BrierParts:
    """Murphy's decomposition (1973) over bins of equal mass."""
    found = [as_given(part, weight) for part in parts_of(equal_mass_bins(truth, p, weight, n_bins=n_bins))]
    calibration, resolution, uncertainty = found
    rest = brier_loss(truth, p, weight) - (calibration - resolution + uncertainty)
    return BrierParts(calibration, resolution, uncertainty, within=rest)


def parts_of(bins: Bins) -> tuple[Floats, Floats, Floats]:
    """(draws,) each: reliability, resolution and uncertainty."""
    whole = bins.mass.sum(axis=1)
    base = bins.truth.sum(axis=1) / whole
    gap, over = bins.p - bins.truth, bins.truth - bins.mass * base[:, None]
    return (
        _over(gap**2, bins.mass, 0.0).sum(axis=1) / whole,
        _over(over**2, bins.mass, 0.0).sum(axis=1) / whole,
        base * (1 - base),
    )


# Decisions: truth and said are (n, n_labels), or (n,)


def precision(truth: Bools, said: Bools, weight: Weight = None) -> Figure:
    """Share of what was said that is true; 0 where nothing was said."""
    hits, said_, _ = _counts(truth, said, weight)
    return as_given(_over(hits.sum(axis=1), said_.sum(axis=1), 0.0), weight)


def recall(truth: Bools, said: Bools, weight: Weight = None) -> Figure:
    """Share of what is true that was said; 0 where nothing is true."""
    hits, _, there = _counts(truth, said, weight)
    return as_given(_over(hits.sum(axis=1), there.sum(axis=1), 0.0), weight)


def f1(truth: Bools, said: Bools, weight: Weight = None) -> Figure:
    """Harmonic mean of precision and recall, over all labels together (micro)."""
    hits, said_, there = _counts(truth, said, weight)
    return as_given(_over(2 * hits.sum(axis=1), (said_ + there).sum(axis=1), 0.0), weight)


def macro_f1(truth: Bools, said: Bools, weight: Weight = None) -> Figure:
    """Mean of the labels' F1, over the labels that some record has; nan where none has any."""
    hits, said_, there = _counts(truth, said, weight)
    scores = np.where(there > 0, _over(2 * hits, said_ + there, 0.0), 0.0)
    return as_given(_over(scores.sum(axis=1), (there > 0).sum(axis=1), np.nan), weight)


def false_positive_rate(truth: Bools, said: Bools, weight: Weight = None) -> Figure:
    """Share of the false that was said; nan where all is true."""
    weights = _rows(weight, len(truth))
    return as_given(_over(weights @ (said & ~truth), weights @ ~truth, np.nan), weight)


def hamming_loss(truth: Bools, said: Bools, weight: Weight = None) -> Figure:
    """Share of the labels that are wrong, in [0, 1]."""
    return _mean((truth != said).reshape(len(truth), -1).mean(axis=1), weight)


def _counts(truth: Bools, said: Bools, weight: Weight) -> tuple[Floats, Floats, Floats]:
    """(draws, n_labels) weight of the hits, of what was said, of what is true."""
    truth, said = truth.reshape(len(truth), -1), said.reshape(len(said), -1)
    weights = _rows(weight, len(truth))
    hits, said_, there = (
        weights @ x.astype(float) for x in (truth & said, said, truth)
    )  # floats: numpy hands it to BLAS
    return hits, said_, there


# Several labels


def macro(
    metric: Callable[[Bools, Floats, Weight], Figure], truth: Bools, score: Floats, weight: Weight = None
) -> Figure:
    """Mean of a metric over the labels that have it; nan where none has."""
    return mean_of_labels([metric(truth[:, i], score[:, i], weight) for i in range(truth.shape[1])])


def mean_of_labels(found: Sequence[Figure]) -> Figure:
    """The mean over the labels that have a figure; nan where none has."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a mean over no label
        return np.nanmean(np.array(found), axis=0)


def micro(
    metric: Callable[[Bools, Floats, Weight], Figure], truth: Bools, score: Floats, weight: Weight = None
) -> Figure:
    """A metric over all labels of all records as if they were one label."""
    spread = None if weight is None else np.repeat(weight, truth.shape[1], axis=-1)
    return metric(truth.ravel(), score.ravel(), spread)


# Uncertainty


@dataclass(frozen=True)
class Interval:
    """A figure with the ends of its interval; nan for ends that the records do not give."""

    value: float
    low: float
    high: float


def bootstrap(
    figures: Callable[[Weight], Mapping[str, Figure]], n: int, *, draws: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, Interval]:
    """Percentile intervals of figures over records drawn with replacement (Efron, 1979).

    `figures` gives them for a weight of each record, or as many at once as there are rows of weights. The same n and
    seed give the same draws: two calls are paired.
    An interval is nan where under half of the draws have the figure, or there are under 10 records.
    """
    whole, rng = figures(None), np.random.default_rng(seed)
    samples: dict[str, list[Floats]] = {name: [] for name in whole}
    left, at_once = draws, max(1, _AT_ONCE // max(1, n))
    while left > 0:
        counts = [np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(min(left, at_once))]
        for name, found in figures(np.array(counts, dtype=np.float64)).items():
            samples[name].append(np.broadcast_to(found, len(counts)))
        left -= len(counts)
    intervals = {}
    for name, value in whole.items():
        sample = np.concatenate([[], *samples[name]])
        sample = sample[~np.isnan(sample)]
        low = high = np.nan
        if n >= 10 and len(sample) > draws / 2:
            low, high = np.quantile(sample, [(1 - level) / 2, (1 + level) / 2])
        intervals[name] = Interval(float(value), float(low), float(high))
    return intervals


_AT_ONCE = 100_000  # weights; a figure over fourteen labels makes arrays that many times as large
