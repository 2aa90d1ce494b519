"""Fits a monotone map to a label's scores, and chooses a threshold on what it gives. Arrays in, maps out; no files.

`log_odds` is (n,): a label's scores as their log-odds, of `unsafe` the margins. `y_true` is (n,) bool. `target` is (n,)
in [0, 1]: the truth, or the probabilities that another model gives the same records, to which a map can be fitted
without any labels. `weight` is (n,), how many records each stands for, None for one each: maps, thresholds and losses
are those of the mixture that the weights make.

Every fit but the isotonic one has a prior towards changing nothing, `prior` records strong: a label of few positives
gets a cautious map.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgeguard.calibration.maps import Map, sigmoid
from edgeguard.calibration.thresholds import ChosenThreshold, Goal, choose_as_greedy, choose_threshold
from edgeguard.errors import CalibrationError

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Method = Literal["temperature", "platt", "beta", "isotonic"]

PRIOR = 1.0
FOLDS = 5
_STEPS = 100  # Newton's, more than it ever takes: each of these losses is convex


def fit_map(
    method: Method, log_odds: Floats, target: Floats, *, prior: float = PRIOR, weight: Floats | None = None
) -> Map:
    """The map of that method with the least log loss. Raises CalibrationError where the scores rank the wrong way."""
    weights = np.ones(len(log_odds)) if weight is None else weight
    return _FITS[method](log_odds, np.asarray(target, dtype=np.float64), weights, prior)


def _temperature(x: Floats, target: Floats, weight: Floats, prior: float) -> Map:
    (slope,) = _logistic(x[:, None], target, weight, np.array([1.0]), prior)
    return Map("temperature", {"temperature": 1 / _rising(slope)})


def _platt(x: Floats, target: Floats, weight: Floats, prior: float) -> Map:
    slope, intercept = _logistic(np.stack([x, np.ones_like(x)], axis=1), target, weight, np.array([1.0, 0.0]), prior)
    return Map("platt", {"slope": _rising(slope), "intercept": float(intercept)})


def _beta(x: Floats, target: Floats, weight: Floats, prior: float) -> Map:
    """Kull et al.'s way to non-negative a and b: fit, and leave out what came out negative."""
    features = np.stack([-np.logaddexp(0, -x), np.logaddexp(0, x), np.ones_like(x)], axis=1)  # log p, -log(1 - p), 1
    start, kept = np.array([1.0, 1.0, 0.0]), np.array([True, True, True])
    coefficients = _logistic(features, target, weight, start, prior)
    for i in (0, 1):
        if coefficients[i] < 0:
            kept[i] = False
            coefficients = np.zeros(3)
            coefficients[kept] = _logistic(features[:, kept], target, weight, start[kept], prior)
    a, b, c = coefficients
    if max(a, b) <= 0 or min(a, b) < 0:
        _rising(0.0)
    return Map("beta", {"a": float(a), "b": float(b), "c": float(c)})


def _isotonic(x: Floats, target: Floats, weight: Floats, prior: float) -> Map:
    """Pool adjacent violators; no probability nearer to 0 or 1 than 1 / (n + 2), which n records cannot tell.

    n is what the weights leave of it: (Σ w)² / Σ w² (Kish, 1965).
    """
    knots, inverse = np.unique(x, return_inverse=True)
    mass = np.bincount(inverse, weight)
    mean = np.bincount(inverse, weight * target) / mass
    blocks: list[list[float]] = []  # mean, weight, index of the first knot
    for i, (m, w) in enumerate(zip(mean, mass, strict=True)):
        blocks.append([m, w, i])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            last, before = blocks.pop(), blocks.pop()
            total = before[1] + last[1]
            blocks.append([(before[0] * before[1] + last[0] * last[1]) / total, total, before[2]])
    least = 1 / (weight.sum() ** 2 / (weight**2).sum() + 2)
    xs: list[float] = []
    ys: list[float] = []
    ends = [int(b[2]) for b in blocks[1:]] + [len(knots)]
    for (level, _, first), end in zip(blocks, ends, strict=True):
        y = float(np.clip(level, least, 1 - least))
        for knot in dict.fromkeys((knots[int(first)], knots[end - 1])):
            xs.append(float(knot))
            ys.append(y)
    return Map("isotonic", {"x": tuple(xs), "y": tuple(ys)})


_FITS: dict[Method, Callable[[Floats, Floats, Floats, float], Map]] = {
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


def _logistic(features: Floats, target: Floats, weight: Floats, start: Floats, prior: float) -> Floats:
    """A logistic regression by Newton's method, drawn towards `start`: (n, k), (n,), (n,), (k,) → (k,) coefficients."""

    def objective(coefficients: Floats) -> float:
        z = features @ coefficients
        return float(weight @ (np.logaddexp(0, z) - target * z) + prior / 2 * np.sum((coefficients - start) ** 2))

    coefficients, least = start.copy(), objective(start)
    for _ in range(_STEPS):
        p = sigmoid(features @ coefficients)
        gradient = features.T @ (weight * (p - target)) + prior * (coefficients - start)
        curvature = (features * (weight * p * (1 - p))[:, None]).T @ features + (prior + 1e-9) * np.eye(len(start))
        step = np.linalg.solve(curvature, gradient)
        while (loss := objective(coefficients - step)) > least and np.abs(step).max() > 1e-12:
            step = step / 2  # far from the minimum a full step overshoots
        coefficients, least = coefficients - step, min(loss, least)
        if np.abs(step).max() < 1e-10:
            break
    return coefficients


def cross_validated(
    log_odds: Floats,
    y_true: Bools,
    maps: Sequence[Method] = METHODS,
    *,
    weight: Floats | None = None,
    seed: int = 0,
) -> dict[str, Floats]:
    """Method → (n,) log loss of each record under a map fitted on the folds it is not in; "none" leaves scores alone.

    Raises CalibrationError where a fold would hold one class only.
    """
    folds = _folds(y_true, seed)
    losses = {"none": _loss(y_true, sigmoid(log_odds))}
    for method in maps:
        p = np.empty(len(y_true))
        for fold in range(FOLDS):
            inside = folds == fold
            outside = None if weight is None else weight[~inside]
            map_ = fit_map(method, log_odds[~inside], y_true[~inside].astype(float), weight=outside)
            p[inside] = map_(log_odds[inside])
        losses[method] = _loss(y_true, p)
    return losses


def choose_method(log_odds: Floats, y_true: Bools, *, weight: Floats | None = None, seed: int = 0) -> Method | None:
    """The simplest method within one standard error of the best by cross-validation; None: leave the scores alone."""
    losses = cross_validated(log_odds, y_true, weight=weight, seed=seed)
    share = _shares(weight, len(y_true))
    best = min(losses, key=lambda name: float(share @ losses[name]))
    for name in ("none", *METHODS):
        gap = losses[name] - losses[best]
        if share @ gap <= np.sqrt(np.sum((share * (gap - share @ gap)) ** 2)):
            return None if name == "none" else name  # type: ignore[return-value]
    raise AssertionError("the best is within its own error")


def _folds(y_true: Bools, seed: int) -> npt.NDArray[np.int64]:
    """(n,) fold of each record, both classes spread evenly."""
    if min(y_true.sum(), (~y_true).sum()) < FOLDS:
        raise CalibrationError(
            f"{int(y_true.sum())} records are true and {int((~y_true).sum())} false; "
            f"cross-validation needs {FOLDS} of each: give more records, or name a method"
        )
    folds, rng = np.empty(len(y_true), dtype=np.int64), np.random.default_rng(seed)
    for side in (y_true, ~y_true):
        where = rng.permutation(np.flatnonzero(side))
        folds[where] = np.arange(len(where)) % FOLDS
    return folds


def _loss(y_true: Bools, p: Floats) -> Floats:
    p = np.clip(p, 1e-12, 1 - 1e-12)
    loss: Floats = -np.where(y_true, np.log(p), np.log1p(-p))
    return loss


# A label as a whole


@dataclass(frozen=True)
class LabelFit:
    """What was made of one label.

    n_true       records that have the label
    prior        mean of its probabilities, mapped: the share that has it, as far as the map fits; nan for a label
                 without records of both kinds
    map          None: its scores are left alone
    reason       why they are left alone, "" where a map was fitted
    loss_before  log loss of the scores as they are, nats; nan where the records cannot tell
    loss_after   log loss under the map, out of fold; nan likewise
    threshold    None where no threshold can be chosen
    goal         what it was chosen for, "greedy" as the number that it stood for
    """

    label: str
    n_true: int
    prior: float
    map: Map | None
    reason: str
    loss_before: float
    loss_after: float
    threshold: ChosenThreshold | None
    goal: str = ""


def fit_label(
    label: str,
    log_odds: Floats,
    scores: Floats,
    y_true: Bools,
    *,
    method: Method | Literal["auto", "none"],
    goal: Goal,
    safe: Bools | None = None,
    safe_rate: float = 1.0,
    among: Bools | None = None,
    weight: Floats | None = None,
    y_greedy: Bools | None = None,
) -> LabelFit:
    """Fit a label's map and choose its threshold on what the map gives.

    log_odds, scores  (n,) the label's scores, as log-odds and as the probabilities that they are without a map
    method            "auto": chosen by cross-validation; "none": a threshold only
    safe              (n,) records without any label: at most a share `safe_rate` of them may be over the threshold
    among             (n,) the records that the threshold is chosen on, None for all; the map is fitted on all

    A label without records that have it, or of records that all have it, is left alone, as is one that "auto" has too
    few records for.
    """
    n_true = int(y_true.sum())
    if n_true in (0, len(y_true)):
        reason = "no record has it" if n_true == 0 else "every record has it"
        return LabelFit(label, n_true, np.nan, None, reason, np.nan, np.nan, None)
    share = _shares(weight, len(y_true))
    map_, reason, before, after = None, "", float(share @ _loss(y_true, scores)), np.nan
    try:
        chosen = (
            choose_method(log_odds, y_true, weight=weight) if method == "auto" else None if method == "none" else method
        )
        if chosen is None:
            reason = "as asked" if method == "none" else "no map does better"
        else:
            map_ = fit_map(chosen, log_odds, y_true.astype(float), weight=weight)
    except CalibrationError as error:
        reason = str(error)
    if map_ is not None and min(n_true, len(y_true) - n_true) >= FOLDS:
        after = _out_of_fold(map_, log_odds, y_true, weight, share)
    mapped = scores if map_ is None else map_(log_odds)
    spared = None if safe is None else _all_but(mapped, safe, safe_rate, share)
    kept = np.ones_like(y_true) if among is None else among
    threshold = None
    if y_true[kept].any() and not y_true[kept].all():  # else it says nothing among them
        spared = spared if among is None else None
        inside = None if weight is None else weight[kept]
        t, p = y_true[kept], mapped[kept]
        if goal.name == "greedy":
            assert y_greedy is not None
            threshold, goal = choose_as_greedy(label, t, p, y_greedy[kept], spared=spared, weight=inside)
        else:
            threshold = choose_threshold(t, p, goal, spared=spared, weight=inside)
    return LabelFit(label, n_true, float(share @ mapped), map_, reason, before, after, threshold, str(goal))


def _out_of_fold(map_: Map, log_odds: Floats, y_true: Bools, weight: Floats | None, share: Floats) -> float:
    """Log loss under maps of this one's method, nats; nan where the scores of a fold rank the wrong way."""
    try:
        (_, losses) = cross_validated(log_odds, y_true, [map_.method], weight=weight).values()  # type: ignore[list-item]
    except CalibrationError:
        return np.nan
    return float(share @ losses)


def _shares(weight: Floats | None, n: int) -> Floats:
    """(n,) what each record is of the mixture; together 1."""
    return np.full(n, 1 / n) if weight is None else weight / weight.sum()


def fit_labels(
    labels: Sequence[str],
    log_odds: Floats,
    scores: Floats,
    y_true: Bools,
    *,
    method: Method | Literal["auto", "none"] | Mapping[str, Method | Literal["none"]] = "auto",
    goals: Mapping[str, Goal] = MappingProxyType({}),
    safe_rate: float = 1.0,
    two_stage: bool = False,
    weight: Floats | None = None,
    y_greedy: Bools | None = None,
) -> list[LabelFit]:
    """`fit_label` for each label, a column of the arrays: "unsafe" first. All arrays are (n, n_labels).

    method     as `fit_label` has it; or by label, "" for those without one of their own
    goals      by label, "" for those without one of their own; the best F1 for the rest
    safe_rate  the share of safe records that may be over a category's threshold; "unsafe" has none
    two_stage  a category's threshold is chosen on the unsafe records alone: what it is worth given that they are
    y_greedy   what the greedy answer says; None where no goal is "greedy"
    """
    return [
        fit_label(
            label,
            log_odds[:, i],
            scores[:, i],
            y_true[:, i],
            method=method if isinstance(method, str) else method.get(label) or method[""],
            goal=goal_of(label, goals),
            safe=~y_true[:, 0],
            safe_rate=1.0 if label == "unsafe" else safe_rate,
            among=y_true[:, 0] if two_stage and label != "unsafe" else None,
            weight=weight,
            y_greedy=None if y_greedy is None else y_greedy[:, i],
        )
        for i, label in enumerate(labels)
    ]


def goal_of(label: str, goals: Mapping[str, Goal]) -> Goal:
    """What a label's threshold is for: its own goal, else that of "", else the best F1."""
    return goals.get(label) or goals.get("") or Goal("f1")


def _all_but(p: Floats, safe: Bools, rate: float, share: Floats) -> Bools:
    """(n,) the safe records, but for the share `rate` of them with the highest p."""
    spared = safe.copy()
    order = np.flatnonzero(safe)[np.argsort(-p[safe], kind="stable")]
    reached = np.cumsum(share[order]) <= rate * share[order].sum() * (
        1 + 1e-12
    )  # k of n at the rate k / n are let over
    spared[order[reached]] = False
    return spared


def contextual_map(content_free: float) -> Map:
    """The map that takes a content-free text's log-odds to even odds (Zhao et al., 2021; for guards arXiv 2410.10414).

    For when there are no labels: what a guard says of nothing is its bias.
    """
    return Map("platt", {"slope": 1.0, "intercept": -float(content_free)})
