"""How a study compares: what decisions are taken on, what a variant may cost, how often chance is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgeguard.calibration.maps import Calibration
from edgeguard.evaluation.table import Predictions, ScoreTable, predictions
from edgeguard.guard import Thresholds


@dataclass(frozen=True)
class Choices:
    """How to compare.

    calibrations  estimator → the reference's own calibration; decisions are taken on what it gives
    thresholds    None: the calibration's, 0.5 without one
    """

    calibrations: Mapping[str, Calibration]
    thresholds: Thresholds | None
    max_flip_rate: float | None
    max_auprc_loss: float | None
    draws: int
    seed: int


def decided(table: ScoreTable, estimator: str, choices: Choices) -> Predictions:
    """What decisions are taken on, and the decisions: of every record, for every label."""
    return predictions(table, estimator, calibration=choices.calibrations.get(estimator), thresholds=choices.thresholds)


def thresholds_of(estimator: str, choices: Choices) -> Thresholds:
    """From where on a label counts: as chosen, else the calibration's, else 0.5."""
    calibration = choices.calibrations.get(estimator)
    return choices.thresholds or Thresholds(labels=calibration.thresholds if calibration else {})
