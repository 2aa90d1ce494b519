"""How a study compares: what decisions are taken on, what a variant may cost, how often chance is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgeguard.calibration.decide import Decisions
from edgeguard.calibration.maps import Calibration
from edgeguard.calibration.thresholds import Thresholds, thresholds_for
from edgeguard.evaluation.table import ScoreTable, decisions


@dataclass(frozen=True)
class Choices:
    """How to compare.

    calibrations  estimator → the reference's own calibration; decisions are taken on what it gives
    thresholds    as `thresholds_for` takes them beside a calibration
    """

    calibrations: Mapping[str, Calibration]
    thresholds: Thresholds | Mapping[str, float] | None
    max_flip_rate: float | None
    max_auprc_loss: float | None
    draws: int
    seed: int


def decided(table: ScoreTable, estimator: str, choices: Choices) -> Decisions:
    """What decisions are taken on, and the decisions: of every record, for every label."""
    return decisions(table, estimator, calibration=choices.calibrations.get(estimator), thresholds=choices.thresholds)


def thresholds_of(estimator: str, choices: Choices) -> Thresholds:
    """From where on a label counts: as chosen, else the calibration's, else 0.5."""
    return thresholds_for(choices.calibrations.get(estimator), choices.thresholds)
