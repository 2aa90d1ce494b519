"""Does a variant keep inside the limits? Three answers, and as soon as one is certain. From score tables, no model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgeguard.evaluation import metrics
from edgeguard.evaluation.intervals import expanded
from edgeguard.evaluation.metrics import Weight
from edgeguard.evaluation.rates import ALPHA, Bounds, Design, bounds, design, ends, foreseen, needed
from edgeguard.evaluation.table import ScoreTable
from edgeguard.quant.choices import HEADLINE, Choices, decided

Bools = npt.NDArray[np.bool_]
Verdict = Literal["keeps", "breaks", "too_few"]

FEWEST = 10  # records that an interval needs
FIRST_LOOK = 100  # records that the figures of drift and repair stand on at least, where there are so many
_STEP = 25  # records between two looks at least; a tenth of what was seen where that is more
_LOSS_STEP = 50  # records: a look whose number is a multiple may bound the loss of AUPRC
WORTHWHILE = 0.1  # probability of a verdict at the end, under which the way there is not gone
_DRAWS_BEYOND = 4  # bootstrap draws that lie outside a bound


def looks_of(n: int) -> list[int]:
    """After how many of n records a variant is looked at: fixed before the first score. The last is n."""
    found, here = [], min(n, FIRST_LOOK)
    while here < n:
        found.append(here)
        here += max(_STEP, here // (10 * _STEP) * _STEP)
    return [*found, n]


@dataclass(frozen=True)
class Look:
    """What a variant had done after n records.

    n                    records that reference and variant have both scored; `end`: there are no more
    to_safe, to_unsafe   decisions that changed
    loss_low, loss_high  one-sided bounds of the AUPRC lost, at the level of this look; None where not asked
    """

    n: int
    to_safe: int
    to_unsafe: int
    end: bool
    loss_low: float | None = None
    loss_high: float | None = None

    @property
    def changed(self) -> int:
        """Decisions."""
        return self.to_safe + self.to_unsafe


@dataclass(frozen=True)
class Decision:
    """What is certain of a variant.

    verdict  None where there is no limit
    rate     bounds of the share of decisions that change, 95 % each way, however often one has looked
    loss     the same of the AUPRC lost; None where it is not limited
    needed   records that would do, about, where they were too few; None where nobody has so many
    """

    verdict: Verdict | None
    look: Look
    rate: Bounds
    loss: Bounds | None
    needed: int | None


def next_look(
    left: ScoreTable, right: ScoreTable, seen: Sequence[Look], choices: Choices, *, planned: int, upto: int
) -> Look:
    """The look after those that were `seen`, at the first `upto` records, with the loss of AUPRC where it may decide.

    A bootstrap costs as much as some records, and each look at the loss makes its bounds wider. So it is bounded at the
    looks of `loss_looks`, but not while the rate is open and the loss as it stands is inside its limit; and at the look
    that is the last, whatever the loss is.
    """
    end, limit = upto == planned, choices.max_flip_rate
    look = look_at(left, right, choices, planned=planned, end=end, loss=False)
    if choices.max_auprc_loss is None or left.truth is None or len(left) < FEWEST:
        return look
    so_far = decide([*seen, look], planned, choices, how_many=False)
    if not end and goes_on(so_far, planned, choices):
        if upto not in loss_looks(planned):
            return look
        rate_is_open = limit is not None and so_far.rate.low <= limit < so_far.rate.high
        if rate_is_open and not _lost(left, right, choices) > choices.max_auprc_loss:
            return look
    return look_at(left, right, choices, planned=planned, end=end)


def loss_looks(n: int) -> list[int]:
    """The looks on the way to n at which the loss of AUPRC may be bounded."""
    return [look for look in looks_of(n)[:-1] if look % _LOSS_STEP == 0]


def _lost(left: ScoreTable, right: ScoreTable, choices: Choices) -> float:
    """AUPRC of the reference minus the variant's; nan for one class."""
    assert left.truth is not None
    one, other = (
        metrics.auprc(left.truth[:, 0], decided(table, HEADLINE, choices).y_prob[:, 0]) for table in (left, right)
    )
    return float(one - other)


def look_at(
    left: ScoreTable, right: ScoreTable, choices: Choices, *, planned: int, end: bool, loss: bool = True
) -> Look:
    """The reference's and a variant's scores of the same records. `planned`: records at the end; `loss`: bound it."""
    before, after = (decided(table, HEADLINE, choices) for table in (left, right))
    p, q = before.y_pred[:, 0], after.y_pred[:, 0]
    look = Look(len(left), int((p & ~q).sum()), int((~p & q).sum()), end)
    if not loss or choices.max_auprc_loss is None or left.truth is None or len(left) < FEWEST:
        return look
    y_true, made = left.truth[:, 0], design_of(planned, choices)
    # Bonferroni, since no more is known of a bootstrap: over those looks, and the one that may be the last.
    alpha = made.at_end if end else made.watching / (1 + len(loss_looks(planned)))
    if not alpha or y_true.all() or not y_true.any():
        return look
    low, high = _loss(y_true, before.y_prob[:, 0], after.y_prob[:, 0], alpha, choices)
    return Look(look.n, look.to_safe, look.to_unsafe, end, low, high)


def _loss(y_true: Bools, p: metrics.Floats, q: metrics.Floats, alpha: float, choices: Choices) -> tuple[float, float]:
    """One-sided bounds of the AUPRC lost, by a paired bootstrap with draws enough for so small a tail."""
    rarer = min(int(y_true.sum()), int((~y_true).sum()))

    def lost(weight: Weight) -> Mapping[str, metrics.Figure]:
        return {"loss": metrics.auprc(y_true, p, weight) - metrics.auprc(y_true, q, weight)}

    draws = max(choices.draws, math.ceil(_DRAWS_BEYOND / expanded(alpha, rarer)))
    n, level = len(y_true), 1 - 2 * alpha
    found = metrics.bootstrap(lost, n, draws=draws, seed=choices.seed, level=level, telling=rarer)["loss"]
    return found.low, found.high


def design_of(planned: int, choices: Choices) -> Design:
    """How the 5 % are spent on so many records."""
    if not choices.watch:
        return Design(planned, 0.0, ALPHA)
    if choices.max_flip_rate is not None:
        return design(planned, choices.max_flip_rate)
    return Design(planned, ALPHA / 2, ALPHA / 2) if choices.max_auprc_loss is not None else Design(planned, 0.0, ALPHA)


def decide(looks: Sequence[Look], planned: int, choices: Choices, *, how_many: bool = True) -> Decision:
    """From all looks so far, in order: at least one. `how_many`: say how many records would do; it takes a while."""
    last, made = looks[-1], design_of(planned, choices)
    made = Design(last.n, made.watching, made.at_end) if last.end else Design(max(planned, last.n + 1), *_spent(made))
    rate, loss = bounds([(look.changed, look.n) for look in looks], made), _loss_bounds(looks, choices)
    found = [_held(rate, choices.max_flip_rate)] if choices.max_flip_rate is not None else []
    found += [_held(loss, choices.max_auprc_loss)] if loss and choices.max_auprc_loss is not None else []
    verdict: Verdict | None = None
    if found:
        verdict = "breaks" if "breaks" in found else "too_few" if "too_few" in found else "keeps"
    wanted = _records_needed(last, loss, choices) if how_many and verdict == "too_few" else None
    return Decision(verdict, last, rate, loss, wanted)


def _spent(made: Design) -> tuple[float, float]:
    return made.watching, made.at_end


def _held(found: Bounds, limit: float) -> Verdict:
    return "keeps" if found.high <= limit else "breaks" if found.low > limit else "too_few"


def _loss_bounds(looks: Sequence[Look], choices: Choices) -> Bounds | None:
    if choices.max_auprc_loss is None:
        return None
    low, high = -1.0, 1.0
    for look in looks:
        if look.loss_low is not None and look.loss_high is not None and not math.isnan(look.loss_low):
            low, high = max(low, look.loss_low), min(high, look.loss_high)
    return Bounds(low, high)


def _records_needed(last: Look, loss: Bounds | None, choices: Choices) -> int | None:
    """The larger of what the two limits want; None where one of them wants more than anybody has."""
    wanted = [last.n + 1]
    if choices.max_flip_rate is not None:
        if not last.n:
            return None
        found = needed(last.changed, last.n, choices.max_flip_rate)
        if found is None:
            return None
        wanted.append(found)
    if loss is not None and choices.max_auprc_loss is not None and not _certain(loss, choices.max_auprc_loss):
        if loss == Bounds(-1.0, 1.0):  # nothing is known of it: where the rate ended the scoring, its number counts
            return None if choices.max_flip_rate is None else max(wanted)
        # Bounds draw in with the square root of the records, about their middle.
        middle, half = (loss.low + loss.high) / 2, (loss.high - loss.low) / 2
        gap = abs(choices.max_auprc_loss - middle)
        if gap <= 0:
            return None
        wanted.append(math.ceil(last.n * (half / gap) ** 2))
    return max(wanted)


def _certain(found: Bounds, limit: float) -> bool:
    return found.high <= limit or found.low > limit


def goes_on(decision: Decision, planned: int, choices: Choices) -> bool:
    """Whether further records are likely to change what is said of a variant.

    They are not where the verdict is certain, nor where it is foreseen that the end would find too few records too.
    """
    look, limit = decision.look, choices.max_flip_rate
    if look.end or (decision.verdict is not None and decision.verdict != "too_few"):
        return False
    if limit is None or decision.rate.high <= limit:
        return True
    most, least = ends(planned, limit, design_of(planned, choices))
    more, k = planned - look.n, look.changed
    keeps = foreseen(k, look.n, more, most - k)
    breaks = 1 - foreseen(k, look.n, more, least - 1 - k)
    return keeps >= WORTHWHILE or breaks >= WORTHWHILE
