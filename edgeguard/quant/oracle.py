"""How much of what changed a repair could undo at all, and how much of it is noise. From score tables, no model.

The oracle knows the reference's decisions on the very records that it is asked of: no repair can do better, and with
few records it flatters, since it fits their noise too.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeguard.calibration.decide import Decisions
from edgeguard.calibration.fitting import FOLDS

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

FEWEST = 40  # records that a map of all scores, or the noise of single records, is told from
_RIDGE = 1e-2  # on scores of unit spread: decisions that a plane parts have a plane all the same
_STEPS = 25  # of Newton's
_KNOTS = 8  # of the function of the reference's score that a drift may follow, at most
_EACH = 25  # records between two of them, at least


@dataclass(frozen=True)
class Oracle:
    """Of the decisions that changed, how many a map could undo at most.

    of, changed  records that it was told on, and those whose verdict changed
    threshold    that one new threshold of P(unsafe) undoes, the best of all: no monotone map undoes more. Exact
    linear       that a linear map of all the scores of a record undoes, fitted to these very records; and of records
                 that it was not fitted to (`linear_out_of_fold`). None where they are too few
    any_map      that any function of all the scores undoes: all but those of records that agree in every score
    """

    of: int
    changed: int
    threshold: int
    linear: int | None
    linear_out_of_fold: int | None
    any_map: int


def oracle(reference: Bools, variant: Decisions, odds: Floats, *, two_stage: bool) -> Oracle:
    """From (n,) verdicts of the reference, and the variant's decisions and (n, n_labels) log-odds.

    A category that counts alone makes a verdict unsafe, whatever P(unsafe) is: such stay as they are.
    """
    flagged = np.zeros(len(reference), dtype=bool) if two_stage else variant.y_pred[:, 1:].any(axis=1)
    changed = int((reference != variant.y_pred[:, 0]).sum())
    free, always = ~flagged, int((flagged & ~reference).sum())
    scores = (variant.y_prob[:, 0], odds[:, 0])
    left = min(changed, *(always + fewest_changed(reference[free], score[free]) for score in scores))
    fitted = held_out = None
    if len(reference) >= FEWEST:
        fitted, held_out = _linear(reference, odds)
        fitted, held_out = max(0, changed - min(left, fitted)), max(0, changed - held_out)
    any_map = changed - min(changed, _tied(reference, odds))
    return Oracle(len(reference), changed, changed - left, fitted, held_out, any_map)


def fewest_changed(y_pred: Bools, score: Floats) -> int:
    """Decisions that differ from `score >= t` at the best t of all; those that tie in score are decided alike.

    By one sort: O(n log n).
    """
    order = np.argsort(score, kind="stable")
    sorted_score, sorted_pred = score[order], y_pred[order]
    # With the threshold before place k, the wrong ones are the positives before it and the negatives from it on.
    positives = np.append(0, np.cumsum(sorted_pred))
    wrong = 2 * positives - np.arange(len(score) + 1) + (len(score) - positives[-1])
    parts = np.append(True, np.append(sorted_score[1:] != sorted_score[:-1], True)) if len(score) else [True]
    return int(wrong[parts].min())


def _tied(y_pred: Bools, rows: Floats) -> int:
    """Decisions that no function of the rows gives: the fewer of two kinds among those whose rows are the same."""
    _, group = np.unique(rows, axis=0, return_inverse=True)
    n = np.bincount(group.ravel())
    positive = np.bincount(group.ravel(), y_pred).astype(int)
    return int(np.minimum(positive, n - positive).sum())


def _linear(y_pred: Bools, odds: Floats) -> tuple[int, int]:
    """Decisions that differ from those of a linear map: fitted to all with its best threshold, and out of fold."""
    spread = odds.std(axis=0)
    x = (odds - odds.mean(axis=0)) / np.where(spread > 0, spread, 1)
    x = np.column_stack([np.ones(len(x)), x])
    fitted = fewest_changed(y_pred, x @ _logistic(x, y_pred))
    folds, wrong = np.arange(len(x)) % FOLDS, 0
    for fold in range(FOLDS):
        out = folds == fold
        wrong += int(((x[out] @ _logistic(x[~out], y_pred[~out]) >= 0) != y_pred[out]).sum())
    return fitted, wrong


def _logistic(x: Floats, y: Bools) -> Floats:
    """(k,) weights of a logistic regression with a small penalty on all but the first. Newton's steps."""
    weights = np.zeros(x.shape[1])
    penalty = np.full(x.shape[1], _RIDGE)
    penalty[0] = 1e-9
    for _ in range(_STEPS):
        p = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
        slope = x.T @ (y - p) - penalty * weights
        curve = (x * (p * (1 - p))[:, None]).T @ x + np.diag(penalty)
        step = np.linalg.solve(curve, slope)
        weights = weights + step * min(1.0, 5.0 / max(float(np.abs(step).max()), 1e-12))  # far steps overshoot
        if np.abs(step).max() < 1e-6:
            break
    return weights


# Noise against bias


@dataclass(frozen=True)
class NoiseAndBias:
    """What the change of the verdict's log-odds (variant minus reference) is made of, in nats.

    rms        root mean square of the change
    bias       that of a smooth function of the reference's log-odds, fitted to the change: what a map may mend
    noise      that of the rest, told out of fold: each record's own
    changed    decisions that changed
    by_noise   that would change, on average, if nothing but the rest were added to the reference's log-odds
    """

    records: int
    rms: float
    bias: float
    noise: float
    changed: int
    by_noise: float


def noise_or_bias(before: Floats, after: Floats, at: float, changed: int) -> NoiseAndBias | None:
    """Of (n,) log-odds of reference and variant, with the threshold `at`; None for fewer than FEWEST records.

    The bias's mean square is what the noise leaves of the whole: a function that explains nothing has none.
    """
    n = len(before)
    if n < FEWEST:
        return None
    moved = after - before
    basis, folds = _hats(before), np.arange(n) % FOLDS
    rest = np.empty(n)
    for fold in range(FOLDS):
        out = folds == fold
        fitted, *_ = np.linalg.lstsq(basis[~out], moved[~out], rcond=None)
        rest[out] = moved[out] - basis[out] @ fitted
    whole, noise = float(np.mean(moved**2)), float(np.mean(rest**2))
    bias = max(0.0, whole - noise)
    return NoiseAndBias(n, whole**0.5, bias**0.5, noise**0.5, changed, _would_change(before - at, rest))


def _hats(x: Floats) -> Floats:
    """(n, k) values of the k tent functions whose sums are all lines from knot to knot, at quantiles of x."""
    k = min(_KNOTS, max(2, len(x) // _EACH))
    knots = np.unique(np.quantile(x, np.linspace(0, 1, k)))
    if len(knots) < 2:
        return np.ones((len(x), 1))
    return np.column_stack([np.interp(x, knots, one) for one in np.eye(len(knots))])


def _would_change(distance: Floats, rest: Floats) -> float:
    """Expected changes if each record's log-odds moved by a `rest` of the half that is nearest to the threshold: there
    it counts, and its spread need not be that of sure records.
    """
    near = np.argsort(np.abs(distance), kind="stable")[: max(1, len(distance) // 2)]
    drawn = np.sort(rest[near] - rest[near].mean())
    # From d >= 0 to under 0: a draw under -d; from d < 0 up: a draw of at least -d.
    under = np.searchsorted(drawn, -distance, side="left") / len(drawn)
    return float(np.where(distance >= 0, under, 1 - under).sum())


def as_data(found: Oracle | NoiseAndBias | None) -> dict[str, Any] | None:
    """As the report has it."""
    return None if found is None else asdict(found)
