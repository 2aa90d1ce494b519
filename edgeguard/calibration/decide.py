"""The decision: from a guard's scores of n records to probabilities that hold, and to what is said of each record.

The columns of every array are the labels that a guard decides: "unsafe" first, then the taxonomy's codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeguard.calibration.maps import SMALLEST, Calibration, logit
from edgeguard.calibration.thresholds import Thresholds

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Decisions:
    """What a guard says of n records.

    labels  "unsafe" and the taxonomy's codes
    y_prob  (n, n_labels) probabilities, calibrated where the calibration has a map
    y_pred  (n, n_labels) whether a label counts, as `predict` says; that of "unsafe" is `flagged`
    bounds  (n, n_labels, 2) certified [lower, upper] of y_prob; None where none were given
    """

    labels: tuple[str, ...]
    y_prob: Floats
    y_pred: Bools
    bounds: Floats | None = None


def decide(
    margin: Floats,
    scores: Floats,
    *,
    labels: Sequence[str],
    calibration: Calibration | None,
    thresholds: Thresholds,
    bounds: Floats | None = None,
) -> Decisions:
    """Calibrate the scores of n records, their bounds with them, and hold them against the thresholds.

    margin  (n,) log P(unsafe) - log P(safe), nats
    scores  (n, n_labels) probabilities before calibration
    bounds  (n, n_labels + 1, 2) certified bounds of the scores, and behind them of P(safe)

    A record's decision depends on its own row alone.
    """
    y_prob, limits = scores, None if bounds is None else bounds[:, :-1]
    if calibration is not None:
        y_prob = _mapped(calibration, labels, label_log_odds(margin, scores), otherwise=scores)
        if bounds is not None:
            limits = _mapped(calibration, labels, _log_odds_bounds(bounds), otherwise=bounds[:, :-1])
            # The margin and its bounds are rounded apart: the last digit must not put the one outside of the other.
            limits[:, 0, 0] = np.minimum(limits[:, 0, 0], y_prob[:, 0])
            limits[:, 0, 1] = np.maximum(limits[:, 0, 1], y_prob[:, 0])
    y_pred = predict(y_prob, thresholds.array(labels), two_stage=thresholds.two_stage)
    return Decisions(tuple(labels), y_prob, y_pred, limits)


def predict(y_prob: Floats, thresholds: Floats, *, two_stage: bool = False) -> Bools:
    """(n, n_labels) what is at or over its threshold, (n_labels,); "unsafe" also where only a category is.

    In two stages a category counts only where "unsafe" is at or over its own.
    """
    y_pred = y_prob >= thresholds
    if two_stage:
        y_pred[:, 1:] &= y_pred[:, :1]
    else:
        y_pred[:, 0] |= y_pred[:, 1:].any(axis=1)
    return y_pred


def label_log_odds(margin: Floats, scores: Floats) -> Floats:
    """(n, n_labels) what maps take: of "unsafe" the margin, which does not tie near 0 and 1, of codes the log-odds."""
    return np.column_stack([margin, logit(scores[:, 1:])])


def _log_odds_bounds(bounds: Floats) -> Floats:
    """(n, n_labels, 2) bounds of `label_log_odds`; the margin's are those of P(unsafe) over P(unsafe) + P(safe)."""
    unsafe, safe = bounds[:, 0], bounds[:, -1]
    verdict = unsafe / np.maximum(unsafe + safe[:, ::-1], SMALLEST)  # the least of one goes with the most of the other
    return logit(np.concatenate([verdict[:, None], bounds[:, 1:-1]], axis=1))


def _mapped(calibration: Calibration, labels: Sequence[str], odds: Floats, *, otherwise: Floats) -> Floats:
    """(n, n_labels, …) log-odds through the labels' maps; a label without one has what `otherwise` says."""
    mapped = otherwise.copy()
    for i, label in enumerate(labels):
        if label in calibration.maps:
            mapped[:, i] = calibration.maps[label](odds[:, i])
    return mapped
