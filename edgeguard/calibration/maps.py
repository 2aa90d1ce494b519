"""Calibration: monotone maps from a guard's scores to probabilities that hold, and thresholds that go with them.

A map takes the log-odds of a score (natural logarithm) and gives a probability:

temperature  σ(x / T)                                      Guo et al., 2017, arXiv 1706.04599
platt        σ(a x + b), a > 0                             Platt, 1999
beta         σ(a log p - b log(1 - p) + c), a, b ≥ 0       Kull et al., 2017, AISTATS
isotonic     straight lines between knots (x, y)           Zadrozny & Elkan, 2002

All of them are increasing (isotonic ones: nowhere falling), so bounds of a score become bounds of its probability. For
a category x is the log-odds of P(the answer names it); for `unsafe` it is the margin, log P(unsafe) - log P(safe).

A calibration belongs to one guard, profile, estimator and model file, and is refused elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeguard.errors import CalibrationError

Floats = npt.NDArray[np.float64]

SMALLEST = 1e-7  # what a score of 0 is taken for: about what float32 logits resolve


@dataclass(frozen=True)
class Map:
    """One label's map: "temperature", "platt", "beta" or "isotonic"; the module's head has their parameters.

    An isotonic map's x and y are tuples of the same length, x rising, y in [0, 1] and nowhere falling; before the
    first knot and behind the last it is level.
    """

    method: str
    parameters: Mapping[str, Any]

    def __call__(self, log_odds: npt.ArrayLike) -> Floats:
        """Log-odds of any shape → probabilities in [0, 1] of the same shape. Increasing; ±inf are taken."""
        x = np.asarray(log_odds, dtype=np.float64)
        p = self.parameters
        if self.method == "temperature":
            return sigmoid(x / p["temperature"])
        if self.method == "platt":
            return sigmoid(p["slope"] * x + p["intercept"])
        if self.method == "isotonic":
            return np.asarray(np.interp(x, p["x"], p["y"]), dtype=np.float64)
        with np.errstate(invalid="ignore"):  # 0 · inf at the ends of a one-sided map
            left, right = p["a"] * -np.logaddexp(0, -x), p["b"] * np.logaddexp(0, x)
        return sigmoid(np.nan_to_num(left, nan=0.0, neginf=-np.inf) + np.nan_to_num(right, nan=0.0) + p["c"])


@dataclass(frozen=True)
class Calibration:
    """Maps and thresholds by label, "unsafe" and the codes of a taxonomy. A label without a map is left alone.

    guard, profile, estimator, model_sha256  what it was fitted on
    two_stage  whether its thresholds of categories are for records that are unsafe by that of the verdict alone
    priors   mean of each label's probabilities over what it was fitted on: about the share that has the label
    goals    what each threshold was chosen for, as `Goal` writes it
    fitted   on what, and how: for people, not read by edgeguard
    bound    whether it is refused on another guard
    """

    guard: str
    profile: str
    estimator: str
    model_sha256: str
    maps: Mapping[str, Map]
    thresholds: Mapping[str, float] = field(default_factory=dict)
    fitted: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    bound: bool = True
    two_stage: bool = False
    priors: Mapping[str, float] = field(default_factory=dict)
    goals: Mapping[str, str] = field(default_factory=dict)

    def unbound(self) -> Calibration:
        """A copy that no guard refuses: its probabilities need not hold there."""
        return replace(self, bound=False)

    def check(self, *, profile: str, estimator: str, model_sha256: str) -> None:
        """Refuse to be used on another guard, unless unbound. Raises CalibrationError."""
        for what, own, other in (
            ("profile", self.profile, profile),
            ("estimator", self.estimator, estimator),
            ("model", self.model_sha256, model_sha256),
        ):
            if self.bound and own != other:
                raise CalibrationError(
                    f"{self.source or 'the calibration'} was fitted on {what} {own}, this is {what} {other}; "
                    "fit one for this guard, or take it `unbound`",
                    kind="other_calibration",
                )


def shifted(map_: Map | None, by: float) -> Map:
    """The map with all its log-odds moved `by` nats, as a change of the prior moves them. None: the scores as they are.

    An isotonic one keeps its knots, and is straight in probability between them: there it is moved nearly.
    """
    if map_ is None:
        return Map("platt", {"slope": 1.0, "intercept": by})
    p = map_.parameters
    if map_.method == "temperature":
        return Map("platt", {"slope": 1 / p["temperature"], "intercept": by})
    if map_.method == "platt":
        return Map("platt", {"slope": p["slope"], "intercept": p["intercept"] + by})
    if map_.method == "beta":
        return Map("beta", {"a": p["a"], "b": p["b"], "c": p["c"] + by})
    return Map("isotonic", {"x": p["x"], "y": tuple(sigmoid(logit(p["y"]) + by).tolist())})


def sigmoid(x: npt.ArrayLike) -> Floats:
    """1 / (1 + e^-x) without overflow."""
    x = np.asarray(x, dtype=np.float64)
    small = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1 / (1 + small), small / (1 + small)))


def logit(p: npt.ArrayLike) -> Floats:
    """Log-odds, p taken no nearer to 0 and 1 than SMALLEST."""
    p = np.clip(np.asarray(p, dtype=np.float64), SMALLEST, 1 - SMALLEST)
    return np.asarray(np.log(p) - np.log1p(-p))
