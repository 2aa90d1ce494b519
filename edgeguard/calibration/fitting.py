"""Fits calibrations: a monotone map for a label's scores, and a threshold on what it gives. Pure numpy.

`log_odds` is (n,): a label's scores as their log-odds, of `unsafe` the margins. `target` is (n,) in [0, 1]: the truth,
or the probabilities that another model gives the same records, which a map can be fitted to without any labels.

Every fit but the isotonic one has a prior towards changing nothing, `prior` records strong: a label of few positives
gets a cautious map.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgeguard.calibration.maps import Calibration, Map, sigmoid
from edgeguard.errors import CalibrationError
from edgeguard.evaluation.table import ScoreTable, log_odds_of, predictions, truth_with_unsafe
from edgeguard.formats.hashes import sha256

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Method = Literal["temperature", "platt", "beta", "isotonic"]

PRIOR = 1.0
FOLDS = 5
_STEPS = 100  # Newton's, more than it ever takes: each of these losses is convex


def fit_map(method: Method, log_odds: Floats, target: Floats, *, prior: float = PRIOR) -> Map:
    """The map of that method with the least log loss. Raises CalibrationError where the scores rank the wrong way."""
    return _FITS[method](log_odds, np.asarray(target, dtype=np.float64), prior)


def _temperature(x: Floats, target: Floats, prior: float) -> Map:
    (slope,) = _logistic(x[:, None], target, np.array([1.0]), prior)
    return Map("temperature", {"temperature": 1 / _rising(slope)})


def _platt(x: Floats, target: Floats, prior: float) -> Map:
    slope, intercept = _logistic(np.stack([x, np.ones_like(x)], axis=1), target, np.array([1.0, 0.0]), prior)
    return Map("platt", {"slope": _rising(slope), "intercept": float(intercept)})


def _beta(x: Floats, target: Floats, prior: float) -> Map:
    """Kull et al.'s way to non-negative a and b: fit, and leave out what came out negative."""
    features = np.stack([-np.logaddexp(0, -x), np.logaddexp(0, x), np.ones_like(x)], axis=1)  # log p, -log(1 - p), 1
    start, kept = np.array([1.0, 1.0, 0.0]), np.array([True, True, True])
    found = _logistic(features, target, start, prior)
    for i in (0, 1):
        if found[i] < 0:
            kept[i] = False
            found = np.zeros(3)
            found[kept] = _logistic(features[:, kept], target, start[kept], prior)
    a, b, c = found
    if max(a, b) <= 0 or min(a, b) < 0:
        _rising(0.0)
    return Map("beta", {"a": float(a), "b": float(b), "c": float(c)})


def _isotonic(x: Floats, target: Floats, prior: float) -> Map:
    """Pool adjacent violators; no probability nearer to 0 or 1 than 1 / (n + 2), which n records cannot tell."""
    knots, inverse = np.unique(x, return_inverse=True)
    weight = np.bincount(inverse).astype(float)
    mean = np.bincount(inverse, target) / weight
    blocks: list[list[float]] = []  # mean, weight, index of the first knot
    for i, (m, w) in enumerate(zip(mean, weight, strict=True)):
        blocks.append([m, w, i])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            last, before = blocks.pop(), blocks.pop()
            total = before[1] + last[1]
            blocks.append([(before[0] * before[1] + last[0] * last[1]) / total, total, before[2]])
    least = 1 / (len(x) + 2)
    xs: list[float] = []
    ys: list[float] = []
    ends = [int(b[2]) for b in blocks[1:]] + [len(knots)]
    for (level, _, first), end in zip(blocks, ends, strict=True):
        y = float(np.clip(level, least, 1 - least))
        for knot in dict.fromkeys((knots[int(first)], knots[end - 1])):
            xs.append(float(knot))
            ys.append(y)
    return Map("isotonic", {"x": tuple(xs), "y": tuple(ys)})


_FITS: dict[Method, Callable[[Floats, Floats, float], Map]] = {
    "temperature": _temperature,
    "platt": _platt,
    "beta": _beta,
    "isotonic": _isotonic,
}
METHODS: tuple[Method, ...] = tuple(_FITS)  # from the simplest on


def _rising(slope: float) -> float:
    if slope <= 1e-6:
        raise CalibrationError("the scores fall where the truth rises; no increasing map mends that")
    return float(slope)


def _logistic(features: Floats, target: Floats, start: Floats, prior: float) -> Floats:
    """Coefficients of a logistic regression by Newton's method, drawn towards `start`: (n, k), (n,), (k,) → (k,)."""

    def objective(coefficients: Floats) -> float:
        z = features @ coefficients
        return float(np.sum(np.logaddexp(0, z) - target * z) + prior / 2 * np.sum((coefficients - start) ** 2))

    found, least = start.copy(), objective(start)
    for _ in range(_STEPS):
        p = sigmoid(features @ found)
        gradient = features.T @ (p - target) + prior * (found - start)
        curvature = (features * (p * (1 - p))[:, None]).T @ features + (prior + 1e-9) * np.eye(len(start))
        step = np.linalg.solve(curvature, gradient)
        while (now := objective(found - step)) > least and np.abs(step).max() > 1e-12:
            step = step / 2  # far from the minimum a full step overshoots
        found, least = found - step, min(now, least)
        if np.abs(step).max() < 1e-10:
            break
    return found


def cross_validated(
    log_odds: Floats, truth: Bools, maps: Sequence[Method] = METHODS, *, seed: int = 0
) -> dict[str, Floats]:
    """Method → (n,) log loss of each record under a map fitted on the folds it is not in; "none" leaves scores alone.

    Raises CalibrationError where a fold would hold one class only.
    """
    folds = _folds(truth, seed)
    losses = {"none": _loss(truth, sigmoid(log_odds))}
    for method in maps:
        p = np.empty(len(truth))
        for fold in range(FOLDS):
            inside = folds == fold
            p[inside] = fit_map(method, log_odds[~inside], truth[~inside].astype(float))(log_odds[inside])
        losses[method] = _loss(truth, p)
    return losses


def choose_method(log_odds: Floats, truth: Bools, *, seed: int = 0) -> Method | None:
    """The simplest method within one standard error of the best by cross-validation; None: leave the scores alone."""
    losses = cross_validated(log_odds, truth, seed=seed)
    best = min(losses, key=lambda name: float(losses[name].mean()))
    for name in ("none", *METHODS):
        gap = losses[name] - losses[best]
        if gap.mean() <= gap.std() / np.sqrt(len(gap)):
            return None if name == "none" else name  # type: ignore[return-value]
    raise AssertionError("the best is within its own error")


def _folds(truth: Bools, seed: int) -> npt.NDArray[np.int64]:
    """(n,) fold of each record, both classes spread evenly."""
    if min(truth.sum(), (~truth).sum()) < FOLDS:
        raise CalibrationError(
            f"{int(truth.sum())} records are true and {int((~truth).sum())} false; "
            f"cross-validation needs {FOLDS} of each: give more records, or name a method"
        )
    folds, rng = np.empty(len(truth), dtype=np.int64), np.random.default_rng(seed)
    for side in (truth, ~truth):
        where = rng.permutation(np.flatnonzero(side))
        folds[where] = np.arange(len(where)) % FOLDS
    return folds


def _loss(truth: Bools, p: Floats) -> Floats:
    p = np.clip(p, 1e-12, 1 - 1e-12)
    loss: Floats = -np.where(truth, np.log(p), np.log1p(-p))
    return loss


# Thresholds


@dataclass(frozen=True)
class Target:
    """What a threshold is chosen for.

    f1         the best F1
    precision  at least `value`, with the best recall that leaves
    recall     at least `value`, with the best precision that leaves
    fpr        a false-positive rate of at most `value`, with the best recall that leaves
    cost       the least cost, where a miss costs `value` false alarms
    """

    name: Literal["f1", "precision", "recall", "fpr", "cost"]
    value: float = 0.0

    def __str__(self) -> str:
        return self.name if self.name == "f1" else f"{self.name}={self.value:g}"

    def __post_init__(self) -> None:
        if self.name not in ("f1", "precision", "recall", "fpr", "cost"):
            raise ValueError(f"{self.name!r} is none of f1, precision, recall, fpr, cost")
        if self.name == "cost" and not (0 < self.value < np.inf):
            raise ValueError(f"cost is {self.value}; a miss must cost more than 0 false alarms")
        if self.name in ("precision", "recall", "fpr") and not 0 <= self.value <= 1:
            raise ValueError(f"{self.name} is {self.value}; it must lie in [0, 1]")


@dataclass(frozen=True)
class Threshold:
    """A threshold, and what it gave on the records it was chosen on; `met` is false where none reaches the target."""

    value: float
    precision: float
    recall: float
    fpr: float
    f1: float
    met: bool


def choose_threshold(truth: Bools, p: Floats, target: Target, *, spared: Bools | None = None) -> Threshold:
    """The threshold between two neighbouring probabilities that serves the target best. A record at it counts.

    spared  (n,) records that no threshold may reach down to
    """
    order = np.argsort(-p, kind="stable")
    last = np.append(np.flatnonzero(np.diff(p[order])), len(p) - 1)
    levels = p[order][last]
    hits = np.append(0, np.cumsum(truth[order])[last])
    alarms = np.append(0, np.cumsum(~truth[order])[last])
    values = np.concatenate([[(levels[0] + 1) / 2], (levels[:-1] + levels[1:]) / 2, [levels[-1] / 2]])
    if levels[0] >= 1:  # no threshold is over a probability of 1
        hits, alarms, values = hits[1:], alarms[1:], values[1:]
    if spared is not None and spared.any():
        high = values > p[spared].max()
        high[0] = True  # the highest there is
        hits, alarms, values = hits[high], alarms[high], values[high]
    n_true, n_false = max(1, int(truth.sum())), max(1, int((~truth).sum()))
    recall, fpr = hits / n_true, alarms / n_false
    precision = np.where(hits + alarms > 0, hits / np.maximum(1, hits + alarms), 1.0)
    f1 = 2 * hits / np.maximum(1, hits + alarms + n_true)
    best, met = _best(target, precision=precision, recall=recall, fpr=fpr, f1=f1, hits=hits, alarms=alarms)
    return Threshold(
        float(values[best]), float(precision[best]), float(recall[best]), float(fpr[best]), float(f1[best]), met
    )


def _best(target: Target, **curves: Floats) -> tuple[int, bool]:
    """Index of the best point of the curves, which run from the highest threshold down, and whether it will do."""
    if target.name == "f1":
        return int(np.argmax(curves["f1"])), True
    if target.name == "cost":
        misses = -curves["hits"]  # but for a constant
        return int(np.argmin(curves["alarms"] + target.value * misses)), True
    if target.name == "recall":
        good = curves["recall"] >= target.value
        return int(np.argmax(good)), bool(good.any())
    good = curves["precision"] >= target.value if target.name == "precision" else curves["fpr"] <= target.value
    good = good & (curves["hits"] > 0)
    if not good.any():
        return 0, False
    recall = np.where(good, curves["recall"], -1.0)
    return int(np.argmax(recall)), True


# A label as a whole


@dataclass(frozen=True)
class LabelFit:
    """What was made of one label.

    n_true       records that have the label
    map          None: its scores are left alone
    reason       why they are left alone, "" where a map was fitted
    loss_before  log loss of the scores as they are, nats; nan where the records cannot tell
    loss_after   log loss under the map, out of fold; nan likewise
    threshold    None where no threshold can be chosen
    """

    label: str
    n_true: int
    map: Map | None
    reason: str
    loss_before: float
    loss_after: float
    threshold: Threshold | None


def fit_label(
    label: str,
    log_odds: Floats,
    p: Floats,
    truth: Bools,
    *,
    method: Method | Literal["auto", "none"],
    target: Target,
    safe: Bools | None = None,
    safe_rate: float = 1.0,
) -> LabelFit:
    """Fit a label's map and choose its threshold on what the map gives.

    log_odds, p  (n,) the label's scores, as log-odds and as the probabilities that they are without a map
    method       "auto": chosen by cross-validation; "none": a threshold only
    safe         (n,) records without any label: at most a share `safe_rate` of them may be over the threshold

    A label without records that have it, or of records that all have it, is left alone, as is one that "auto" has too
    few records for.
    """
    n_true = int(truth.sum())
    if n_true in (0, len(truth)):
        said = "no record has it" if n_true == 0 else "every record has it"
        return LabelFit(label, n_true, None, said, np.nan, np.nan, None)
    map_, reason, before, after = None, "", float(_loss(truth, p).mean()), np.nan
    try:
        chosen = choose_method(log_odds, truth) if method == "auto" else None if method == "none" else method
        if chosen is None:
            reason = "as asked" if method == "none" else "no map does better"
        else:
            map_ = fit_map(chosen, log_odds, truth.astype(float))
    except CalibrationError as error:
        reason = str(error)
    if map_ is not None and min(n_true, len(truth) - n_true) >= FOLDS:
        after = float(cross_validated(log_odds, truth, [map_.method])[map_.method].mean())  # type: ignore[list-item]
    mapped = p if map_ is None else map_(log_odds)
    spared = None if safe is None else _all_but(mapped, safe, safe_rate)
    found = choose_threshold(truth, mapped, target, spared=spared)
    return LabelFit(label, n_true, map_, reason, before, after, found)


def fit_table(
    table: ScoreTable,
    estimator: str,
    *,
    method: Method | Literal["auto", "none"] = "auto",
    targets: Mapping[str, Target] = MappingProxyType({}),
    safe_rate: float = 1.0,
) -> list[LabelFit]:
    """`fit_label` for "unsafe" and every label of a table with its truth.

    targets    by label, "" for those without one of their own; the best F1 for the rest
    safe_rate  the share of safe records that may be over a category's threshold; "unsafe" has none
    """
    assert table.truth is not None
    odds, raw, truth = log_odds_of(table, estimator), predictions(table, estimator).p, truth_with_unsafe(table.truth)
    return [
        fit_label(
            label,
            odds[:, i],
            raw[:, i],
            truth[:, i],
            method=method,
            target=targets.get(label) or targets.get("") or Target("f1"),
            safe=~truth[:, 0],
            safe_rate=1.0 if label == "unsafe" else safe_rate,
        )
        for i, label in enumerate(("unsafe", *table.labels))
    ]


def calibration_of(
    fits: Sequence[LabelFit],
    identity: Mapping[str, Any],
    source: Path,
    *,
    records: int,
    targets: Mapping[str, Target],
    safe_rate: float,
) -> Calibration:
    """What was fitted, as a calibration that says on what; thresholds to six digits, as records lie apart.

    identity  guard, profile, estimator and model_sha256, as a Calibration has them
    source    the file that `records` records were read from; its hash is kept
    """
    return Calibration(
        **identity,
        maps={fit.label: fit.map for fit in fits if fit.map is not None},
        thresholds={fit.label: float(f"{fit.threshold.value:.6g}") for fit in fits if fit.threshold is not None},
        fitted={
            "file": source.name,
            "sha256": sha256(source),
            "records": records,
            "thresholds_for": {label or "all": str(goal) for label, goal in targets.items()} or {"all": "f1"},
            "safe_rate": safe_rate,
            "left_alone": {fit.label: fit.reason for fit in fits if fit.map is None},
        },
    )


def _all_but(p: Floats, safe: Bools, rate: float) -> Bools:
    """(n,) the safe records, but for the share `rate` of them with the highest p."""
    spared = safe.copy()
    order = np.flatnonzero(safe)[np.argsort(-p[safe], kind="stable")]
    spared[order[: int(rate * len(order))]] = False
    return spared


def contextual_map(content_free: float) -> Map:
    """The map that takes a content-free text's log-odds to even odds (Zhao et al., 2021; for guards arXiv 2410.10414).

    For when there are no labels: what a guard says of nothing is its bias.
    """
    return Map("platt", {"slope": 1.0, "intercept": -float(content_free)})
