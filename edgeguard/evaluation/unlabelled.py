"""A calibration for texts that nobody has labelled: an existing one, moved by what the guard says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgeguard.calibration.maps import Calibration, logit, sigmoid
from edgeguard.calibration.shift import PriorFit, fit_prior, moved
from edgeguard.errors import CalibrationError
from edgeguard.evaluation.calibrate import CONTENT_FREE
from edgeguard.evaluation.table import ScoreTable, decisions
from edgeguard.formats.hashes import sha256

Floats = npt.NDArray[np.float64]

FEWEST_TEXTS = 100  # with fewer the likeliest share is anywhere


@dataclass(frozen=True)
class LabelShift:
    """What was done to one label.

    before  prior that the calibration was fitted with
    after   likeliest share of the texts; None where no text was asked
    by      nats that the log-odds move, 0 where the label is left alone
    reason  why it is left alone, "" where it is not
    """

    label: str
    before: float
    after: PriorFit | None
    by: float
    reason: str = ""


def shifted_to_texts(
    calibration: Calibration, table: ScoreTable, *, source: Path
) -> tuple[Calibration, tuple[LabelShift, ...]]:
    """Moved to the share of unsafe texts, and of those of each category, that a table of their scores makes likeliest.

    source  the file of the texts: its name and hash are kept

    A category is left alone where no share of it is likelier than none: how rare it is, such texts do not say. Raises
    CalibrationError for too few texts, a calibration without priors, and where that is so of `unsafe`.
    """
    if len(table) < FEWEST_TEXTS:
        raise CalibrationError(
            f"{source} has {len(table)} texts that could be scored; the share of unsafe ones takes {FEWEST_TEXTS} at "
            "least: give more"
        )
    _check_priors(calibration)
    estimator = calibration.estimator if calibration.estimator in table.scores else next(iter(table.scores))
    y_prob = decisions(table, estimator, calibration=calibration).y_prob
    shifts = tuple(
        _shift(label, y_prob[:, i], calibration.priors[label])
        for i, label in enumerate(table.labels)
        if label in calibration.priors
    )
    verdict = shifts[0]
    assert verdict.after is not None
    if verdict.reason:
        which = "unsafe" if verdict.after.value == 0 else "safe"
        raise CalibrationError(
            f"{source}: by these {len(table)} texts' scores no share of {which} ones is likelier than none, so there "
            f"is no prior to move to; give texts of which some are {which}, or keep the calibration as it is"
        )
    facts = {"how": "em", "file": source.name, "sha256": sha256(source), "texts": len(table)}
    return _told(calibration, shifts, facts), shifts


def shifted_by_nothing(
    calibration: Calibration, odds: Mapping[str, float]
) -> tuple[Calibration, tuple[LabelShift, ...]]:
    """Moved so that texts which say nothing get the prior: what the guard says of them is its bias (Zhao et al., 2021).

    odds  what `content_free_log_odds` says

    Theirs takes such texts to even odds, where each answer is as frequent as the others; a guard's are not. A category
    without a question of its own moves as the verdict does. Raises CalibrationError for a calibration without priors.
    """
    _check_priors(calibration)
    by = {
        label: float(logit(calibration.priors[label]) - logit(_mapped(calibration, label, odds[label])))
        for label in calibration.priors
        if label in odds
    }
    shifts = tuple(LabelShift(label, p, None, by.get(label, by["unsafe"])) for label, p in calibration.priors.items())
    return _told(calibration, shifts, {"how": "contextual", "texts": list(CONTENT_FREE)}), shifts


def _mapped(calibration: Calibration, label: str, odds: float) -> float:
    map_ = calibration.maps.get(label)
    return float(sigmoid(odds) if map_ is None else map_(odds))


def _check_priors(calibration: Calibration) -> None:
    if not 0 < calibration.priors.get("unsafe", 0) < 1:
        raise CalibrationError(
            f"{calibration.source or 'the calibration'} does not say what share of its records was unsafe, which a "
            "shift begins with; fit it again on its labelled records"
        )


def _shift(label: str, y_prob: Floats, prior: float) -> LabelShift:
    if not 0 < prior < 1:
        return LabelShift(label, prior, None, 0.0, "it has no prior")
    after = fit_prior(y_prob, prior)
    if not 0 < after.value < 1:
        end = "none" if after.value == 0 else "all"
        return LabelShift(label, prior, after, 0.0, f"no share of it is likelier than {end}")
    return LabelShift(label, prior, after, float(logit(after.value) - logit(prior)))


def _told(calibration: Calibration, shifts: Sequence[LabelShift], facts: Mapping[str, object]) -> Calibration:
    """The moved calibration, which says on which one it stands."""
    by = {one.label: one.by for one in shifts if not one.reason}
    priors = {one.label: float(f"{one.after.value:.6g}") for one in shifts if one.after and not one.reason}
    found = moved(calibration, by, priors)
    left = {one.label: one.reason for one in shifts if one.reason}
    said = {"moved": {**facts, **({"left_alone": left} if left else {})}}
    if calibration.source:
        said["moved"] |= {"from": Path(calibration.source).name, "from_sha256": sha256(Path(calibration.source))}
    return replace(found, fitted={**calibration.fitted, **said})
