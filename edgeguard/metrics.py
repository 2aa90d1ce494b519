"""Metrics of scores against the truth. Pure numpy; those that scikit-learn has agree with it, ties included.

`truth` is (n,) bool, `score` (n,) float, higher for true; `p` likewise and a probability. `weight` is (n,) or None for
all ones: a bootstrap draws weights, how often each record came up, in place of records. A figure that the records
cannot have, such as the AUROC of records of one class, is nan.

Scores, higher is better: auroc, partial_auroc, auprc, f1, precision, recall. Losses: brier_loss, log_loss, ece_loss,
classwise_ece_loss, hamming_loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Weight = npt.NDArray[np.float64] | None

N_BINS = 15
SMALLEST = float(np.finfo(float).eps)  # log_loss takes no probability nearer to 0 or 1, as scikit-learn does not


# Ranking


def auroc(truth: Bools, score: Floats, weight: Weight = None) -> float:
    """Area under the ROC curve, in [0, 1]."""
    hits, alarms = _curve(truth, score, weight)
    if hits[-1] == 0 or alarms[-1] == 0:
        return np.nan
    return float(np.trapezoid(hits, alarms) / hits[-1] / alarms[-1])


def partial_auroc(truth: Bools, score: Floats, weight: Weight = None, *, max_fpr: float) -> float:
    """The same up to a false-positive rate, standardised to 0.5 for chance and 1 for perfect (McClish, 1989)."""
    hits, alarms = _curve(truth, score, weight)
    if hits[-1] == 0 or alarms[-1] == 0:
        return np.nan
    tpr, fpr = hits / hits[-1], alarms / alarms[-1]
    stop = int(np.searchsorted(fpr, max_fpr, side="right"))
    end = float(np.interp(max_fpr, fpr[stop - 1 : stop + 1], tpr[stop - 1 : stop + 1]))
    area = float(np.trapezoid(np.append(tpr[:stop], end), np.append(fpr[:stop], max_fpr)))
    least = 0.5 * max_fpr**2
    return 0.5 * (1 + (area - least) / (max_fpr - least))


def auprc(truth: Bools, score: Floats, weight: Weight = None) -> float:
    """Average precision: precision at each threshold, weighted by the recall it adds. In [0, 1]."""
    hits, alarms = _curve(truth, score, weight)
    if hits[-1] == 0:
        return np.nan
    said = np.maximum(hits + alarms, np.finfo(float).tiny)
    return float(np.sum(np.diff(hits) * (hits / said)[1:]) / hits[-1])


def _curve(truth: Bools, score: Floats, weight: Weight) -> tuple[Floats, Floats]:
    """(k + 1,) weight of true and of false records at or over each of the k distinct scores, from none to all."""
    weight = np.ones(len(truth)) if weight is None else weight
    order = np.argsort(-score, kind="stable")
    last = np.append(np.flatnonzero(np.diff(score[order])), len(order) - 1)  # of the records that tie
    hits, alarms = np.cumsum((weight * truth)[order])[last], np.cumsum((weight * ~truth)[order])[last]
    return np.append(0.0, hits), np.append(0.0, alarms)


def n_distinct(score: Floats) -> int:
    """How many different scores there are: few of them rank badly whatever the model knows."""
    return len(np.unique(score))


# Probabilities


def brier_loss(truth: Bools, p: Floats, weight: Weight = None) -> float:
    """Mean squared difference, in [0, 1]."""
    return float(np.average((p - truth) ** 2, weights=weight))


def log_loss(truth: Bools, p: Floats, weight: Weight = None) -> float:
    """Mean negative log-likelihood, nats."""
    p = np.clip(p, SMALLEST, 1 - SMALLEST)
    return float(np.average(-np.where(truth, np.log(p), np.log1p(-p)), weights=weight))


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


def reliability(truth: Bools, p: Floats, weight: Weight = None, *, n_bins: int = N_BINS) -> Reliability:
    """The bins. Records that tie may fall into two."""
    weight = np.ones(len(truth)) if weight is None else weight
    order = np.argsort(p, kind="stable")
    order = order[weight[order] > 0]
    place = np.cumsum(weight[order]) - weight[order] / 2
    bins = np.minimum((place / weight.sum() * n_bins).astype(int), n_bins - 1)
    mass = np.bincount(bins, weight[order], n_bins)
    there = mass > 0
    total_p = np.bincount(bins, (weight * p)[order], n_bins)
    total_truth = np.bincount(bins, (weight * truth)[order], n_bins)
    return Reliability(
        total_p[there] / mass[there], total_truth[there] / mass[there], mass[there] / float(weight.sum())
    )


def ece_loss(truth: Bools, p: Floats, weight: Weight = None, *, n_bins: int = N_BINS) -> float:
    """Expected calibration error over bins of equal mass, in [0, 1]. Biased upward where bins hold few records."""
    r = reliability(truth, p, weight, n_bins=n_bins)
    return float(np.sum(r.weight * np.abs(r.mean_p - r.frequency)))


def classwise_ece_loss(truth: Bools, p: Floats, weight: Weight = None, *, n_bins: int = N_BINS) -> float:
    """Mean over labels of their calibration errors: truth and p are (n, n_labels)."""
    return float(np.mean([ece_loss(truth[:, i], p[:, i], weight, n_bins=n_bins) for i in range(truth.shape[1])]))


@dataclass(frozen=True)
class BrierParts:
    """brier_loss = reliability - resolution + uncertainty + within.

    reliability  what calibration would mend
    resolution   what the score tells about the truth
    uncertainty  the variance of the truth
    within       what binning hides (Stephenson et al., 2008, Weather and Forecasting 23)
    """

    reliability: float
    resolution: float
    uncertainty: float
    within: float


def brier_parts(truth: Bools, p: Floats, weight: Weight = None, *, n_bins: int = N_BINS) -> BrierParts:
    """Murphy's decomposition (1973) over bins of equal mass."""
    r = reliability(truth, p, weight, n_bins=n_bins)
    base = float(np.average(truth, weights=weight))
    parts = (
        float(np.sum(r.weight * (r.mean_p - r.frequency) ** 2)),
        float(np.sum(r.weight * (r.frequency - base) ** 2)),
        base * (1 - base),
    )
    return BrierParts(*parts, within=brier_loss(truth, p, weight) - (parts[0] - parts[1] + parts[2]))


# Decisions: truth and said are (n, n_labels), or (n,)


def precision(truth: Bools, said: Bools, weight: Weight = None) -> float:
    """Share of what was said that is true; 0 where nothing was said."""
    hits, said_, _ = _counts(truth, said, weight)
    return _ratio(hits.sum(), said_.sum())


def recall(truth: Bools, said: Bools, weight: Weight = None) -> float:
    """Share of what is true that was said; 0 where nothing is true."""
    hits, _, there = _counts(truth, said, weight)
    return _ratio(hits.sum(), there.sum())


def f1(truth: Bools, said: Bools, weight: Weight = None) -> float:
    """Harmonic mean of precision and recall, over all labels together (micro)."""
    hits, said_, there = _counts(truth, said, weight)
    return _ratio(2 * hits.sum(), said_.sum() + there.sum())


def macro_f1(truth: Bools, said: Bools, weight: Weight = None) -> float:
    """Mean of the labels' F1, over the labels that some record has; nan where none has any."""
    hits, said_, there = _counts(truth, said, weight)
    scores = [_ratio(2 * h, s + t) for h, s, t in zip(hits, said_, there, strict=True) if t > 0]
    return float(np.mean(scores)) if scores else np.nan


def false_positive_rate(truth: Bools, said: Bools, weight: Weight = None) -> float:
    """Share of the false that was said; nan where all is true."""
    weight = np.ones(len(truth)) if weight is None else weight
    false = float((weight * ~truth).sum())
    return float((weight * (said & ~truth)).sum()) / false if false else np.nan


def hamming_loss(truth: Bools, said: Bools, weight: Weight = None) -> float:
    """Share of the labels that are wrong, in [0, 1]."""
    wrong = (truth != said).reshape(len(truth), -1).mean(axis=1)
    return float(np.average(wrong, weights=weight))


def _counts(truth: Bools, said: Bools, weight: Weight) -> tuple[Floats, Floats, Floats]:
    """(n_labels,) weight of the hits, of what was said, of what is true."""
    truth, said = truth.reshape(len(truth), -1), said.reshape(len(said), -1)
    weight = np.ones(len(truth)) if weight is None else weight
    return weight @ (truth & said), weight @ said, weight @ truth


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0


# Several labels


def macro(
    metric: Callable[[Bools, Floats, Weight], float], truth: Bools, score: Floats, weight: Weight = None
) -> float:
    """Mean of a metric over the labels that have it; nan where none has."""
    found = np.array([metric(truth[:, i], score[:, i], weight) for i in range(truth.shape[1])])
    return float(np.nanmean(found)) if not np.isnan(found).all() else np.nan


def micro(
    metric: Callable[[Bools, Floats, Weight], float], truth: Bools, score: Floats, weight: Weight = None
) -> float:
    """A metric over all labels of all records as if they were one label."""
    spread = None if weight is None else np.repeat(weight, truth.shape[1])
    return metric(truth.ravel(), score.ravel(), spread)


# Uncertainty


@dataclass(frozen=True)
class Interval:
    """A figure with the ends of its interval; nan for ends that the records do not give."""

    value: float
    low: float
    high: float


def bootstrap(
    figures: Callable[[Weight], Mapping[str, float]], n: int, *, draws: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, Interval]:
    """Percentile intervals of figures over records drawn with replacement (Efron, 1979).

    `figures` gives them for a weight of each record. The same n and seed give the same draws: two calls are paired.
    An interval is nan where under half of the draws have the figure, or there are under 10 records.
    """
    whole, rng = figures(None), np.random.default_rng(seed)
    samples = [figures(np.bincount(rng.integers(0, n, n), minlength=n).astype(float)) for _ in range(draws)]
    found = {}
    for name, value in whole.items():
        sample = np.array([s[name] for s in samples])
        sample = sample[~np.isnan(sample)]
        low = high = np.nan
        if n >= 10 and len(sample) > draws / 2:
            low, high = np.quantile(sample, [(1 - level) / 2, (1 + level) / 2])
        found[name] = Interval(float(value), float(low), float(high))
    return found
