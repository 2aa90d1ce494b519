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

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeguard.errors import CalibrationError, shown
from edgeguard.formats.bounded_json import read_object

Floats = npt.NDArray[np.float64]

FORMAT = "edgeguard-calibration-1"
MAX_BYTES = 16 << 20  # of a file
SMALLEST = 1e-7  # what a score of 0 is taken for: about what float32 logits resolve
MAX_KNOTS = 100_000
_PARAMETERS = {
    "temperature": ("temperature",),
    "platt": ("slope", "intercept"),
    "beta": ("a", "b", "c"),
    "isotonic": ("x", "y"),
}


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

    def apply(self, label: str, log_odds: float) -> float:
        """The probability of a label whose score has these log-odds."""
        map_ = self.maps.get(label)
        return float(sigmoid(np.float64(log_odds)) if map_ is None else map_(log_odds))

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
                    f"{self.source} was fitted on {what} {own}, this is {what} {other}; "
                    "fit one for this guard, or take it `unbound`",
                    kind="other_calibration",
                )


def sigmoid(x: npt.ArrayLike) -> Floats:
    """1 / (1 + e^-x) without overflow."""
    x = np.asarray(x, dtype=np.float64)
    small = np.exp(-np.abs(x))
    found: Floats = np.where(x >= 0, 1 / (1 + small), small / (1 + small))
    return found


def logit(p: npt.ArrayLike) -> Floats:
    """Log-odds, p taken no nearer to 0 and 1 than SMALLEST."""
    p = np.clip(np.asarray(p, dtype=np.float64), SMALLEST, 1 - SMALLEST)
    found: Floats = np.log(p) - np.log1p(-p)
    return found


def write_calibration(calibration: Calibration, path: Path) -> None:
    """As JSON, one label a line; the same calibration gives the same bytes."""
    head = {
        "format": FORMAT,
        **{key: getattr(calibration, key) for key in ("guard", "profile", "estimator", "model_sha256")},
        "fitted": calibration.fitted,
    }
    labels = {}
    for label in dict.fromkeys((*calibration.maps, *calibration.thresholds)):
        map_, threshold = calibration.maps.get(label), calibration.thresholds.get(label)
        labels[label] = {} if map_ is None else {"method": map_.method, **map_.parameters}
        if threshold is not None:
            labels[label]["threshold"] = threshold
    lines = [f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items()]
    rows = ",\n".join(f"    {json.dumps(key)}: {json.dumps(value)}" for key, value in labels.items())
    path.write_text("{\n" + ",\n".join([*lines, f'  "labels": {{\n{rows}\n  }}']) + "\n}\n", encoding="utf-8")


def read_calibration(path: str | Path) -> Calibration:
    """A calibration file. Raises CalibrationError, which names the file and the key."""
    path = Path(path)
    found = read_object(path, max_bytes=MAX_BYTES, cure="give a calibration file", error=CalibrationError)
    if found.get("format") != FORMAT:
        raise CalibrationError(f"{path}: format is {shown(found.get('format'))}; expected {FORMAT!r}")
    names: dict[str, Any] = {key: _text(path, found, key) for key in ("guard", "profile", "estimator", "model_sha256")}
    labels, fitted = found.get("labels"), found.get("fitted", {})
    if not isinstance(labels, dict) or not isinstance(fitted, dict):
        raise CalibrationError(f"{path}: labels and fitted must be objects; is this a calibration file?")
    maps, thresholds = {}, {}
    for label, entry in labels.items():
        where = f"{path}: {shown(label)}"
        if not isinstance(entry, dict):
            raise CalibrationError(f"{where} is {shown(entry)}; expected an object with a method")
        if "method" in entry:
            maps[label] = _map(where, entry)
        if "threshold" in entry:
            thresholds[label] = _number(where, entry, "threshold")
            if not 0 <= thresholds[label] <= 1:
                raise CalibrationError(f"{where}: threshold is {thresholds[label]}; expected a number in [0, 1]")
    return Calibration(**names, maps=maps, thresholds=thresholds, fitted=fitted, source=str(path))


def _map(where: str, entry: Mapping[str, Any]) -> Map:
    method = entry["method"]
    if not isinstance(method, str) or method not in _PARAMETERS:
        raise CalibrationError(f"{where}: method is {shown(method)}; expected one of {', '.join(_PARAMETERS)}")
    if method == "isotonic":
        return Map(method, _knots(where, entry))
    values = {name: _number(where, entry, name) for name in _PARAMETERS[method]}
    positive = {"temperature": ("temperature",), "platt": ("slope",)}.get(method, ())
    bad = [n for n in positive if values[n] <= 0] + [n for n in ("a", "b") if method == "beta" and values[n] < 0]
    if bad or (method == "beta" and values["a"] == values["b"] == 0):
        name = bad[0] if bad else "a"
        raise CalibrationError(f"{where}: {name} is {values[name]}; the map must be increasing")
    return Map(method, values)


def _knots(where: str, entry: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
    lists = {}
    for key in ("x", "y"):
        values = entry.get(key)
        if not isinstance(values, list) or not 1 <= len(values) <= MAX_KNOTS:
            raise CalibrationError(f"{where}: {key} is {shown(values)}; expected 1 to {MAX_KNOTS} numbers")
        lists[key] = tuple(_number(where, {key: value}, key) for value in values)
    x, y = np.array(lists["x"]), np.array(lists["y"])
    if len(x) != len(y) or (np.diff(x) <= 0).any() or (np.diff(y) < 0).any() or y[0] < 0 or y[-1] > 1:
        raise CalibrationError(f"{where}: x must rise and y not fall in [0, 1], both of the same length")
    return lists


def _number(where: str, entry: Mapping[str, Any], key: str) -> float:
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise CalibrationError(f"{where}: {key} is {shown(value)}; expected a finite number")
    return float(value)


def _text(path: Path, found: Mapping[str, Any], key: str) -> str:
    value = found.get(key)
    if not isinstance(value, str):
        raise CalibrationError(f"{path}: {key} is {shown(value)}; expected a text")
    return value
