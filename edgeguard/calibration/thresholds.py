"""Thresholds: from which probability on a label counts, and the one that serves a goal best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgeguard.calibration.maps import Calibration

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Thresholds:
    """From which probability on a label counts: one number, or one for each label that needs another.

    Labels are the category codes and "unsafe". Raises ValueError for a number outside [0, 1].

    two_stage  whether a category counts only where "unsafe" does, as an answer has it: first the verdict, then what
               given that; else each counts by itself, and one that does makes the record unsafe
    """

    default: float = 0.5
    labels: Mapping[str, float] = field(default_factory=dict)
    two_stage: bool = False

    def __post_init__(self) -> None:
        for label, value in {"default": self.default, **self.labels}.items():
            if not 0 <= value <= 1:
                raise ValueError(f"the threshold of {label} is {value}; it must lie in [0, 1]")

    def of(self, label: str) -> float:
        """The threshold of a label."""
        return self.labels.get(label, self.default)

    def array(self, labels: Sequence[str]) -> Floats:
        """(n_labels,) the thresholds of labels."""
        return np.array([self.of(label) for label in labels], dtype=np.float64)

    def replaced(self, numbers: Mapping[str, float]) -> Thresholds:
        """These with others in their place, label → number; a "default" replaces all that are not named beside it.

        The stages stay: what a number is held against is another matter than the number.
        """
        if "default" in numbers:
            named = {k: v for k, v in numbers.items() if k != "default"}
            return Thresholds(numbers["default"], named, self.two_stage)
        return Thresholds(self.default, {**self.labels, **numbers}, self.two_stage)


def thresholds_for(
    calibration: Calibration | None, given: Thresholds | Mapping[str, float] | None = None
) -> Thresholds:
    """What to decide by: the calibration's thresholds, 0.5 where it has none.

    given  Thresholds take the place of all of them, a mapping that of the labels it names, as `replaced` has it
    """
    if isinstance(given, Thresholds):
        return given
    own = Thresholds() if calibration is None else Thresholds(0.5, calibration.thresholds, calibration.two_stage)
    return own.replaced(given or {})


# Choosing one


@dataclass(frozen=True)
class Goal:
    """What a threshold is chosen for.

    f1         the best F1
    precision  at least `value`, with the best recall that leaves
    recall     at least `value`, with the best precision that leaves
    fpr        a false-positive rate of at most `value`, with the best recall that leaves
    cost       the least cost, where a false negative costs `value` false positives
    greedy     what the greedy answer has on the same records: of "unsafe" its false-positive rate, of a category its
               precision, with the best recall that leaves; see `choose_as_greedy`
    """

    name: Literal["f1", "precision", "recall", "fpr", "cost", "greedy"]
    value: float = 0.0

    def __str__(self) -> str:
        return self.name if self.name in _BARE else f"{self.name}={self.value:g}"

    def __post_init__(self) -> None:
        if self.name not in ("f1", "precision", "recall", "fpr", "cost", "greedy"):
            raise ValueError(f"{self.name!r} is none of f1, precision, recall, fpr, cost, greedy")
        if self.name == "cost" and not (0 < self.value < np.inf):
            raise ValueError(f"cost is {self.value}; a miss must cost more than 0 false alarms")
        if self.name in ("precision", "recall", "fpr") and not 0 <= self.value <= 1:
            raise ValueError(f"{self.name} is {self.value}; it must lie in [0, 1]")


def read_goal(text: str) -> Goal:
    """`f1`, `fpr=0.02`. Raises ValueError that says what was expected."""
    name, equals, number = text.partition("=")
    if (name.strip() in _BARE) == bool(equals):
        raise ValueError("expected f1, greedy, precision=P, recall=P, fpr=P or cost=N")
    return Goal(name.strip(), float(number) if equals else 0.0)  # type: ignore[arg-type]


_BARE = ("f1", "greedy")  # goals without a number


@dataclass(frozen=True)
class ChosenThreshold:
    """A threshold, and what it gave on the records it was chosen on; `met` is false where none reaches the goal."""

    value: float
    precision: float
    recall: float
    fpr: float
    f1: float
    met: bool


def choose_threshold(
    y_true: Bools, y_prob: Floats, goal: Goal, *, spared: Bools | None = None, weight: Floats | None = None
) -> ChosenThreshold:
    """The threshold between two neighbouring probabilities that serves the goal best. A record at it counts.

    goal    any but "greedy": see `choose_as_greedy`
    spared  (n,) records that no threshold may reach down to
    weight  (n,) how many records each stands for; None for one each
    """
    if goal.name == "greedy":
        raise ValueError("the goal greedy says no number; expected one that `choose_as_greedy` makes of it")
    weights = np.ones(len(y_true)) if weight is None else weight
    thresholds, tps, fps = _curve(y_true, y_prob, weights)
    if spared is not None and spared.any():
        high = thresholds > y_prob[spared].max()
        high[0] = True  # the highest there is
        thresholds, tps, fps = thresholds[high], tps[high], fps[high]
    n_true, n_false = (float(weights[side].sum()) or 1.0 for side in (y_true, ~y_true))
    recall, fpr = tps / n_true, fps / n_false
    predicted = tps + fps
    precision = np.where(predicted > 0, tps / np.where(predicted > 0, predicted, 1), 1.0)
    f1 = 2 * tps / (predicted + n_true)
    best, met = _best(goal, precision=precision, recall=recall, fpr=fpr, f1=f1, tps=tps, fps=fps)
    return ChosenThreshold(
        float(thresholds[best]), float(precision[best]), float(recall[best]), float(fpr[best]), float(f1[best]), met
    )


def choose_as_greedy(
    label: str,
    y_true: Bools,
    y_prob: Floats,
    y_greedy: Bools,
    *,
    spared: Bools | None = None,
    weight: Floats | None = None,
) -> tuple[ChosenThreshold, Goal]:
    """The goal "greedy" of a label: its threshold, and what stands for it as a number.

    y_greedy  (n,) what the greedy answer says

    A category that no threshold makes as precise as the greedy answer is found as often as that finds it. One that it
    never finds says nothing to keep up with: the best F1.
    """
    weights = np.ones(len(y_true)) if weight is None else weight

    def share(part: Bools, whole: Bools) -> float:
        return float(weights @ (part & whole) / max(float(weights @ whole), _ROUNDED))

    def chosen(goal: Goal) -> tuple[ChosenThreshold, Goal]:
        return choose_threshold(y_true, y_prob, goal, spared=spared, weight=weight), goal

    if label == "unsafe":
        return chosen(Goal("fpr", min(1.0, share(y_greedy, ~y_true) + _ROUNDED)))
    if not (y_true & y_greedy).any():
        return chosen(Goal("f1"))
    found = chosen(Goal("precision", max(0.0, share(y_true, y_greedy) - _ROUNDED)))
    return found if found[0].met else chosen(Goal("recall", max(0.0, share(y_greedy, y_true) - _ROUNDED)))


_ROUNDED = 1e-9  # by which sums of weights in another order may differ, and more


def _curve(y_true: Bools, y_prob: Floats, weight: Floats) -> tuple[Floats, Floats, Floats]:
    """(k,) each: thresholds from the highest down, the true and the false positives at each."""
    order = np.argsort(-y_prob, kind="stable")
    last = np.append(np.flatnonzero(np.diff(y_prob[order])), len(y_prob) - 1)  # of the records that tie
    levels = y_prob[order][last]
    tps = np.append(0, np.cumsum((weight * y_true)[order])[last])
    fps = np.append(0, np.cumsum((weight * ~y_true)[order])[last])
    thresholds = np.concatenate([[(levels[0] + 1) / 2], (levels[:-1] + levels[1:]) / 2, [levels[-1] / 2]])
    first = 1 if levels[0] >= 1 else 0  # no threshold is over a probability of 1
    return thresholds[first:], tps[first:], fps[first:]


def _best(goal: Goal, **curves: Floats) -> tuple[int, bool]:
    """Index of the best point of the curves, which run from the highest threshold down, and whether it will do."""
    if goal.name == "f1":
        return int(np.argmax(curves["f1"])), True
    if goal.name == "cost":
        fns = -curves["tps"]  # but for a constant
        return int(np.argmin(curves["fps"] + goal.value * fns)), True
    if goal.name == "recall":
        good = curves["recall"] >= goal.value
        return int(np.argmax(good)), bool(good.any())
    good = curves["precision"] >= goal.value if goal.name == "precision" else curves["fpr"] <= goal.value
    good = good & (curves["tps"] > 0)
    if not good.any():
        return 0, False
    recall = np.where(good, curves["recall"], -1.0)
    return int(np.argmax(recall)), True
