"""A calibration moved to other texts without their labels: by the prior that the texts themselves show.

Calibrated probabilities hold for texts of which a share has the label that is the prior of the fit. Where another share
has it, and texts with the label, and those without it, are otherwise alike (prior shift), Bayes' rule says what the
probabilities become: log-odds move by logit(new prior) - logit(old prior), the same for every text. The new prior is
the one under which the texts' scores are likeliest (Saerens, Latinne & Decaestecker, 2002, Neural Computation 14).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from edgeguard.calibration.maps import Calibration, logit, shifted, sigmoid
from edgeguard.calibration.thresholds import read_goal

Floats = npt.NDArray[np.float64]

_STEPS = 60  # halvings: a prior to 2^-60
_HALF_CHI2 = 1.920729410347062  # half of chi-square's 95 % quantile, one degree of freedom


@dataclass(frozen=True)
class PriorFit:
    """The likeliest share of texts that have a label, in [0, 1], and its 95 % interval by the likelihood ratio.

    0 and 1 are what EM runs to where it never settles: no share is likelier than none, or than all.
    """

    value: float
    low: float
    high: float


def fit_prior(y_prob: Floats, prior: float) -> PriorFit:
    """The fixed point of EM, found by halving: the log-likelihood of the share is concave.

    y_prob  (n,) calibrated probabilities of texts whose truth is unknown
    prior   mean probability on what the map was fitted on, in (0, 1): by it texts like those give this share again
    """
    with_it, without = y_prob / prior, (1 - y_prob) / (1 - prior)  # likelihoods, but for a factor of each text

    def slope(share: float) -> float:
        return float(np.sum((with_it - without) / (share * with_it + (1 - share) * without)))

    def log_likelihood(share: float) -> float:
        return float(np.sum(np.log(np.maximum(share * with_it + (1 - share) * without, np.finfo(float).tiny))))

    value = _where(lambda share: slope(share) <= 0)
    least = log_likelihood(value) - _HALF_CHI2
    low = _where(lambda share: log_likelihood(share) >= least, high=value)
    high = _where(lambda share: log_likelihood(share) < least, low=value)
    return PriorFit(value, low, high)


def _where(holds: Callable[[float], bool], low: float = 0.0, high: float = 1.0) -> float:
    """From where on something holds that holds at all larger shares: the ends where it always or never does."""
    if holds(low):
        return low
    if not holds(high):
        return high
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def moved(calibration: Calibration, by: Mapping[str, float], priors: Mapping[str, float]) -> Calibration:
    """The calibration with the log-odds of labels moved, label → nats, and the priors that these then have.

    A threshold follows the map or keeps its number, by what it was chosen for. The false-positive rate and the recall
    of a cut between scores are the same whatever share has the label: such a threshold moves with the map, and the same
    records are over it. So does a category's in two stages, chosen among unsafe records whatever share they are, and
    one of which the file does not say what it is for. Precision, F1 and cost depend on the share: such a threshold is a
    probability that means the same as before, and keeps its number.
    """
    thresholds = dict(calibration.thresholds)
    for label, nats in by.items():
        if label in thresholds and _follows(calibration, label):
            thresholds[label] = float(f"{float(sigmoid(logit(thresholds[label]) + nats)):.6g}")
    maps = dict(calibration.maps) | {label: shifted(calibration.maps.get(label), nats) for label, nats in by.items()}
    return replace(calibration, maps=maps, thresholds=thresholds, priors={**calibration.priors, **priors}, source="")


def _follows(calibration: Calibration, label: str) -> bool:
    goal = calibration.goals.get(label)
    if goal is None or (calibration.two_stage and label != "unsafe"):
        return True
    return read_goal(goal).name in ("fpr", "recall")
