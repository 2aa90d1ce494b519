"""Calibration files: JSON, one label a line, read with suspicion."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeguard.calibration.maps import Calibration, Map
from edgeguard.calibration.thresholds import read_goal
from edgeguard.errors import CalibrationError, shown
from edgeguard.files import write_whole
from edgeguard.formats.bounded_json import read_object

FORMAT = "edgeguard-calibration-1"
TWO_STAGES = "edgeguard-calibration-2"  # also says "stages": an edgeguard that knows the first alone would misread it
MAX_BYTES = 16 << 20
MAX_KNOTS = 100_000
_PARAMETERS = {
    "temperature": ("temperature",),
    "platt": ("slope", "intercept"),
    "beta": ("a", "b", "c"),
    "isotonic": ("x", "y"),
}


def write_calibration(calibration: Calibration, path: Path) -> None:
    """As JSON, one label a line; the same calibration gives the same bytes. The whole file, or OSError and nothing."""
    head = {
        "format": TWO_STAGES if calibration.two_stage else FORMAT,
        **({"stages": 2} if calibration.two_stage else {}),
        **{key: getattr(calibration, key) for key in ("guard", "profile", "estimator", "model_sha256")},
        "fitted": calibration.fitted,
    }
    labels = {}
    for label in dict.fromkeys((*calibration.maps, *calibration.thresholds, *calibration.priors)):
        map_, threshold = calibration.maps.get(label), calibration.thresholds.get(label)
        labels[label] = {} if map_ is None else {"method": map_.method, **map_.parameters}
        if threshold is not None:
            labels[label]["threshold"] = threshold
        if label in calibration.goals:
            labels[label]["threshold_for"] = calibration.goals[label]
        if label in calibration.priors:
            labels[label]["prior"] = calibration.priors[label]
    lines = [f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items()]
    rows = ",\n".join(f"    {json.dumps(key)}: {json.dumps(value)}" for key, value in labels.items())
    text = "{\n" + ",\n".join([*lines, f'  "labels": {{\n{rows}\n  }}']) + "\n}\n"
    write_whole(path, text.encode("utf-8", "backslashreplace"))


def read_calibration(path: str | Path) -> Calibration:
    """A calibration file. Raises CalibrationError, which names the file and the key."""
    path = Path(path)
    value = read_object(path, max_bytes=MAX_BYTES, cure="give a calibration file", error=CalibrationError)
    form = value.get("format")
    if form not in (FORMAT, TWO_STAGES):
        raise CalibrationError(f"{path}: format is {shown(form)}; expected {FORMAT!r} or {TWO_STAGES!r}")
    stages = value.get("stages", 1 if form == FORMAT else None)
    if stages not in ((1,) if form == FORMAT else (1, 2)) or isinstance(stages, bool):
        raise CalibrationError(f"{path}: stages is {shown(stages)}; expected 2, or 1 with format {FORMAT!r}")
    names: dict[str, Any] = {key: _text(path, value, key) for key in ("guard", "profile", "estimator", "model_sha256")}
    labels, fitted = value.get("labels"), value.get("fitted", {})
    if not isinstance(labels, dict) or not isinstance(fitted, dict):
        raise CalibrationError(f"{path}: labels and fitted must be objects; is this a calibration file?")
    maps: dict[str, Map] = {}
    thresholds: dict[str, float] = {}
    priors: dict[str, float] = {}
    goals: dict[str, str] = {}
    for label, entry in labels.items():
        where = f"{path}: {shown(label)}"
        if not isinstance(entry, dict):
            raise CalibrationError(f"{where} is {shown(entry)}; expected an object with a method")
        if "method" in entry:
            maps[label] = _map(where, entry)
        for key, kept in (("threshold", thresholds), ("prior", priors)):
            if key in entry:
                kept[label] = _number(where, entry, key)
                if not 0 <= kept[label] <= 1:
                    raise CalibrationError(f"{where}: {key} is {kept[label]}; expected a number in [0, 1]")
        if "threshold_for" in entry:
            goals[label] = _goal(where, entry["threshold_for"])
    return Calibration(
        **names,
        maps=maps,
        thresholds=thresholds,
        fitted=fitted,
        source=str(path),
        two_stage=stages == 2,
        priors=priors,
        goals=goals,
    )


def _goal(where: str, value: object) -> str:
    try:
        return str(read_goal(value if isinstance(value, str) else ""))
    except ValueError as error:
        raise CalibrationError(f"{where}: threshold_for is {shown(value)}; {error}") from None


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


def _text(path: Path, entry: Mapping[str, Any], key: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str):
        raise CalibrationError(f"{path}: {key} is {shown(value)}; expected a text")
    return value
