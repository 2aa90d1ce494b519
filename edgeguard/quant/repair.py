"""Repair without labels: what brings a variant's scores back to the reference's, as a calibration."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeguard.calibration.decide import predict
from edgeguard.calibration.fitting import FOLDS, fit_map
from edgeguard.calibration.maps import Calibration, Map
from edgeguard.errors import CalibrationError
from edgeguard.evaluation import drift, metrics
from edgeguard.evaluation.table import ScoreTable
from edgeguard.quant.choices import Choices, decided, thresholds_of
from edgeguard.quant.oracle import as_data, oracle

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

SAME = 0.001  # RMS of Δp that two runtimes may differ by with the same weights: nothing to repair
FEWEST = 2 * FOLDS  # records that a map is fitted to: two in each fold
SURE = 2.0  # standard errors by which a repair must do better than nothing on what it is fitted to


def repair(left: ScoreTable, right: ScoreTable, estimator: str, choices: Choices) -> tuple[dict[str, Any], Calibration]:
    """Monotone maps from the variant's scores to what the reference says, fitted on half of the records without labels.

    What they remove of the drift is told on the other half. The thresholds are those that reproduce the reference's
    decisions on the first half. The calibration is fitted on that half too, so that the figures are its own.
    """
    fit_on, told_on = drift.split(len(left), seed=choices.seed)
    goal, before = decided(left, estimator, choices), decided(right, estimator, choices)
    rule = thresholds_of(estimator, choices)
    odds, given = right.log_odds(estimator), rule.array(goal.labels)
    maps: dict[str, Map] = {}
    after, thresholds = before.y_prob.copy(), given.copy()
    for i, label in enumerate(goal.labels):
        map_ = _nearer(odds[fit_on, i], before.y_prob[fit_on, i], goal.y_prob[fit_on, i])
        if map_ is not None:
            maps[label] = map_
            after[:, i] = map_(odds[:, i])
        # The label's own decision: what counts depends on other labels too.
        own = goal.y_prob[fit_on, i] >= given[i]
        thresholds[i] = reproducing(own, after[fit_on, i], float(given[i]))
    y_pred, labels = predict(after, thresholds, two_stage=rule.two_stage), {}
    for i, label in enumerate(goal.labels):
        gap, left_gap = (y_prob[told_on, i] - goal.y_prob[told_on, i] for y_prob in (before.y_prob, after))
        labels[label] = {
            "rms_before": float(np.sqrt(np.mean(gap**2))),
            "rms_after": float(np.sqrt(np.mean(left_gap**2))),
            "flips_before": asdict(drift.flips(goal.y_pred[told_on, i], before.y_pred[told_on, i])),
            "flips_after": asdict(drift.flips(goal.y_pred[told_on, i], y_pred[told_on, i])),
        }
    found: dict[str, Any] = {"fitted_on": len(fit_on), "told_on": len(told_on), "labels": labels}
    told = replace(before, y_prob=before.y_prob[told_on], y_pred=before.y_pred[told_on])
    found["oracle"] = as_data(oracle(goal.y_pred[told_on, 0], told, odds[told_on], two_stage=rule.two_stage))
    if left.truth is not None:
        y_true = left.truth[told_on, 0]
        found["reliability"] = asdict(metrics.reliability(y_true, after[told_on, 0]))
        found["ece"] = {
            name: metrics.ece_loss(y_true, y_prob[told_on, 0])
            for name, y_prob in (("reference", goal.y_prob), ("before", before.y_prob), ("after", after))
        }
    by_label = dict(zip(goal.labels, thresholds.tolist(), strict=True))
    return found, Calibration("", "", estimator, "", maps=maps, thresholds=by_label, two_stage=rule.two_stage)


def _nearer(odds: Floats, y_prob: Floats, target: Floats) -> Map | None:
    """The map that brings scores nearest to a target, if it surely brings them nearer than they are: out of fold."""
    if len(odds) < FEWEST or np.mean((y_prob - target) ** 2) < SAME**2:
        return None
    folds = np.arange(len(odds)) % FOLDS
    try:
        gain = np.empty(len(odds))
        for fold in range(FOLDS):
            out = folds == fold
            map_ = fit_map("platt", odds[~out], target[~out])
            gain[out] = (y_prob[out] - target[out]) ** 2 - (map_(odds[out]) - target[out]) ** 2
        map_ = fit_map("platt", odds, target)
    except CalibrationError:  # the variant ranks this label the wrong way: nothing monotone mends it
        return None
    return map_ if gain.mean() > SURE * gain.std() / math.sqrt(len(gain)) else None


def reproducing(y_pred: Bools, y_prob: Floats, otherwise: float) -> float:
    """The threshold on y_prob that agrees best with decisions, if it surely agrees better than `otherwise` does.

    Between two neighbouring values, of several the nearest to `otherwise`. Surely: by a sign test of the records that
    the two thresholds decide differently. Noise near a threshold must not move it.
    """
    if not len(y_prob):
        return otherwise
    order = np.argsort(y_prob, kind="stable")
    sorted_p, sorted_pred = y_prob[order], y_pred[order]
    # With the threshold before place k, the wrong ones are the positives before it and the negatives from it on.
    fns, tns = (np.append(0.0, np.cumsum(x, dtype=np.float64)) for x in (sorted_pred, ~sorted_pred))
    wrong = fns + tns[-1] - tns
    stay = int(np.searchsorted(sorted_p, otherwise))
    allowed = np.append(True, np.append(np.diff(sorted_p) > 0, True))
    candidates = np.flatnonzero(allowed & (wrong == wrong[allowed].min()))
    edges = np.concatenate([[sorted_p[0] / 2], (sorted_p[:-1] + sorted_p[1:]) / 2, [(sorted_p[-1] + 1) / 2]])
    best = candidates[np.argmin(np.abs(edges[candidates] - otherwise))]
    if wrong[stay] - wrong[best] <= SURE * math.sqrt(abs(best - stay)):
        return otherwise
    return float(edges[best])
