"""Repair without labels: what brings a variant's scores back to the reference's, as a calibration."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeguard.calibration.fitting import FOLDS, fit_map
from edgeguard.calibration.maps import Calibration, Map
from edgeguard.errors import CalibrationError
from edgeguard.evaluation import drift, metrics
from edgeguard.evaluation.table import ScoreTable, log_odds_of
from edgeguard.quant.choices import Choices, decided, thresholds_of

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

SAME = 0.001  # RMS of Δp that two runtimes may differ by with the same weights: nothing to repair
SURE = 2.0  # standard errors by which a repair must do better than nothing on what it is fitted to


def repair(left: ScoreTable, right: ScoreTable, estimator: str, choices: Choices) -> tuple[dict[str, Any], Calibration]:
    """Monotone maps from the variant's scores to what the reference says, fitted on half of the records without labels.

    What they remove of the drift is told on the other half. The thresholds are those that reproduce the reference's
    decisions on the first half. The calibration is fitted on that half too, so that the figures are its own.
    """
    fit_on, told_on = drift.split(len(left), seed=choices.seed)
    p = decided(left, estimator, choices)
    odds, thresholds = log_odds_of(right, estimator), {}
    before = decided(right, estimator, choices)
    maps: dict[str, Map] = {}
    after_p, after_said = before.p.copy(), before.said.copy()
    for i, label in enumerate(p.labels):
        map_ = _nearer(odds[fit_on, i], before.p[fit_on, i], p.p[fit_on, i])
        if map_ is not None:
            maps[label] = map_
            after_p[:, i] = map_(odds[:, i])
        # The label's own decision: "unsafe" is also said where only a category is.
        given = thresholds_of(estimator, choices).of(label)
        thresholds[label] = reproducing(p.p[fit_on, i] >= given, after_p[fit_on, i], given)
        after_said[:, i] = after_p[:, i] >= thresholds[label]
    after_said[:, 0] |= after_said[:, 1:].any(axis=1)
    labels = {}
    for i, label in enumerate(p.labels):
        gap, left_gap = (x[told_on, i] - p.p[told_on, i] for x in (before.p, after_p))
        labels[label] = {
            "rms_before": float(np.sqrt(np.mean(gap**2))),
            "rms_after": float(np.sqrt(np.mean(left_gap**2))),
            "flips_before": asdict(drift.flips(p.said[told_on, i], before.said[told_on, i])),
            "flips_after": asdict(drift.flips(p.said[told_on, i], after_said[told_on, i])),
        }
    found: dict[str, Any] = {"fitted_on": len(fit_on), "told_on": len(told_on), "labels": labels}
    if left.truth is not None:
        truth = np.atleast_1d(left.truth.any(axis=1))[told_on]
        found["reliability"] = asdict(metrics.reliability(truth, after_p[told_on, 0]))
        found["ece"] = {
            name: metrics.ece_loss(truth, x[told_on, 0])
            for name, x in (("reference", p.p), ("before", before.p), ("after", after_p))
        }
    calibration = Calibration("", "", estimator, "", maps=maps, thresholds=thresholds)
    return found, calibration


def _nearer(odds: Floats, now: Floats, target: Floats) -> Map | None:
    """The map that brings scores nearest to a target, if it surely brings them nearer than they are: out of fold."""
    if np.mean((now - target) ** 2) < SAME**2:
        return None
    folds = np.arange(len(odds)) % FOLDS
    try:
        gain = np.empty(len(odds))
        for fold in range(FOLDS):
            out = folds == fold
            map_ = fit_map("platt", odds[~out], target[~out])
            gain[out] = (now[out] - target[out]) ** 2 - (map_(odds[out]) - target[out]) ** 2
        map_ = fit_map("platt", odds, target)
    except CalibrationError:  # the variant ranks this label the wrong way: nothing monotone mends it
        return None
    return map_ if gain.mean() > SURE * gain.std() / math.sqrt(len(gain)) else None


def reproducing(said: Bools, p: Floats, otherwise: float) -> float:
    """The threshold on p that agrees best with decisions, if it surely agrees better than `otherwise` does.

    Between two neighbouring values, of several the nearest to `otherwise`. Surely: by a sign test of the records that
    the two thresholds decide differently. Noise near a threshold must not move it.
    """
    order = np.argsort(p, kind="stable")
    sorted_p, sorted_said = p[order], said[order]
    # With the threshold before place k, the wrong ones are those said before it and those not said from it on.
    missed, kept = (np.append(0.0, np.cumsum(x, dtype=np.float64)) for x in (sorted_said, ~sorted_said))
    wrong = missed + kept[-1] - kept
    now = int(np.searchsorted(sorted_p, otherwise))
    allowed = np.append(True, np.append(np.diff(sorted_p) > 0, True))
    candidates = np.flatnonzero(allowed & (wrong == wrong[allowed].min()))
    edges = np.concatenate([[sorted_p[0] / 2], (sorted_p[:-1] + sorted_p[1:]) / 2, [(sorted_p[-1] + 1) / 2]])
    best = candidates[np.argmin(np.abs(edges[candidates] - otherwise))]
    if wrong[now] - wrong[best] <= SURE * math.sqrt(abs(best - now)):
        return otherwise
    return float(edges[best])
