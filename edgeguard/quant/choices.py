"""How a study compares: what decisions are taken on, what a variant may cost, how often chance is asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from edgeguard.calibration.decide import Decisions
from edgeguard.calibration.maps import Calibration
from edgeguard.calibration.thresholds import Thresholds, thresholds_for
from edgeguard.errors import CalibrationError
from edgeguard.evaluation.table import ScoreTable, decisions

HEADLINE = "marginal"  # the estimator that the summary, the page and the recommendation speak of


@dataclass(frozen=True)
class Choices:
    """How to compare.

    calibrations    estimator → the reference's own calibration; decisions are taken on what it gives
    thresholds      as `thresholds_for` takes them beside a calibration
    max_flip_rate   of verdicts, for the recommendation; None: any
    max_auprc_loss  of the verdict, for the recommendation; None: any
    watch           whether a variant's scoring may end before the last record, as soon as the limits are decided
    draws           of the bootstrap
    seed            of the bootstrap, and of the half that repairs are fitted on
    """

    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    thresholds: Thresholds | Mapping[str, float] | None = None
    max_flip_rate: float | None = None
    max_auprc_loss: float | None = None
    watch: bool = True
    draws: int = 500
    seed: int = 0


def by_estimator(calibrations: Iterable[Calibration]) -> dict[str, Calibration]:
    """Estimator → its calibration. Raises CalibrationError for a second one."""
    found: dict[str, Calibration] = {}
    for calibration in calibrations:
        if calibration.estimator in found:
            raise CalibrationError(
                f"{calibration.source or 'a calibration'} is the second one for {calibration.estimator}; give one"
            )
        found[calibration.estimator] = calibration
    return found


def decided(table: ScoreTable, estimator: str, choices: Choices) -> Decisions:
    """What decisions are taken on, and the decisions: of every record, for every label."""
    return decisions(table, estimator, calibration=choices.calibrations.get(estimator), thresholds=choices.thresholds)


def thresholds_of(estimator: str, choices: Choices) -> Thresholds:
    """From where on a label counts: as chosen, else the calibration's, else 0.5."""
    return thresholds_for(choices.calibrations.get(estimator), choices.thresholds)
