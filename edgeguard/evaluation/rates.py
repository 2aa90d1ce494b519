"""Bounds of a rate from k of n: for a number of records that was fixed before, and for looking as often as one likes.

All bounds are one-sided: `high` is under the true rate with a probability of at most alpha, and `low` over it. Records
are taken for independent draws, in an order that says nothing of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

ALPHA = 0.05
_STEPS = 60  # halvings: a bound to 2^-60
# How strongly the alternatives lean away from the rate in question, in log-odds, and what each weighs. The first says
# that nothing ever happens: it decides soonest where nothing does.
_TILTS = np.array([-np.inf, -2.0, -1.2, -0.7, -0.4, -0.2])
_LOG_WEIGHTS = np.log([0.25, 0.3, 0.2, 0.15, 0.07, 0.03])


@lru_cache(maxsize=1 << 14)  # simulations and studies ask for the same again and again
def exact_high(k: int, n: int, alpha: float = ALPHA) -> float:
    """Where k of n or fewer have the probability alpha (Clopper and Pearson, 1934); 1 - alpha^(1/n) for none of n."""
    if k >= n:
        return 1.0
    ways = _log_ways(k, n)
    return _least(lambda p: _log_tail(k, n, p, ways) <= math.log(alpha))


def exact_low(k: int, n: int, alpha: float = ALPHA) -> float:
    """Where k of n or more have the probability alpha."""
    return 1.0 - exact_high(n - k, n, alpha)


def _log_ways(k: int, n: int) -> Floats:
    """(k + 1,) log of n over i for i up to k."""
    i = np.arange(1, k + 1)
    return np.concatenate([[0.0], np.cumsum(np.log((n - i + 1) / i))])


def _log_tail(k: int, n: int, p: float, ways: Floats | None = None) -> float:
    """log P(at most k of n) at the rate p."""
    if k >= n or p <= 0:
        return 0.0
    if p >= 1:
        return -math.inf
    i = np.arange(k + 1)
    given = _log_ways(k, n) if ways is None else ways
    return float(np.logaddexp.reduce(given + i * math.log(p) + (n - i) * math.log1p(-p)))


def evidence_below(k: int, n: int, rate: float) -> float:
    """log of a wager against "the rate is at least this": at most 1 in 20 such wagers ever passes log 20 if it is true.

    A mixture of exp(tilt · k) / (1 - rate + rate · exp(tilt))^n over tilts under 0: each is a nonnegative
    supermartingale that begins at 1, for every true rate from `rate` on (Robbins, 1970; Howard et al., 2021, for the
    mixture). By Ville's inequality it may be looked at after every record. It grows with `rate`.
    """
    if rate <= 0:
        return 0.0
    if rate >= 1:
        return math.inf if k < n else 0.0
    with np.errstate(invalid="ignore"):
        gained = np.where(np.isneginf(_TILTS), 0.0 if k == 0 else -np.inf, _TILTS * k)
    paid = n * np.log1p(rate * np.expm1(_TILTS))
    return float(np.logaddexp.reduce(_LOG_WEIGHTS + gained - paid))


@lru_cache(maxsize=1 << 14)
def watched_high(k: int, n: int, alpha: float = ALPHA) -> float:
    """`high` that holds at all n at once: what may be looked at after each record. 1 for none of none."""
    return _least(lambda p: evidence_below(k, n, p) >= -math.log(alpha))


def watched_low(k: int, n: int, alpha: float = ALPHA) -> float:
    """`low` that holds at all n at once; 0 for none of none."""
    return 1.0 - watched_high(n - k, n, alpha)


def _least(holds: Callable[[float], bool]) -> float:
    """The least rate from which on something holds that holds at all larger ones; 1 where it nowhere does."""
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


# A decision on a limit


@dataclass(frozen=True)
class Design:
    """How the 5 % that a decision may err by are spent: fixed before the first record is seen.

    n         records at the end
    watching  on looks on the way, all together; 0: none is taken
    at_end    on the look at all n
    """

    n: int
    watching: float
    at_end: float


def design(n: int, limit: float | None, alpha: float = ALPHA) -> Design:
    """Half on the way and half at the end, where the way can save something; else all at the end.

    It can where a rate of nought would be told on the way from half of the records.
    """
    if limit is not None and evidence_below(0, n // 2, limit) >= -math.log(alpha / 2):
        return Design(n, alpha / 2, alpha / 2)
    return Design(n, 0.0, alpha)


@dataclass(frozen=True)
class Bounds:
    """One-sided bounds of a rate, each at the level of its design, whenever one stopped."""

    low: float
    high: float


def bounds(looks: Sequence[tuple[int, int]], made: Design) -> Bounds:
    """From all (k, n) that were looked at, in order; the last may be the end. [0, 1] where nothing is known yet."""
    low, high = 0.0, 1.0
    for k, n in looks:
        if n >= made.n and n:
            low, high = max(low, exact_low(k, n, made.at_end)), min(high, exact_high(k, n, made.at_end))
        elif made.watching and n:
            low, high = max(low, watched_low(k, n, made.watching)), min(high, watched_high(k, n, made.watching))
    return Bounds(low, high)


def decided_at_end(k: int, n: int, limit: float, made: Design) -> bool | None:
    """Whether k of all n keep a limit; None where that is not certain. By two tails, and no bound is searched."""
    if _log_tail(k, n, limit) <= math.log(made.at_end):
        return True
    # k or more at the limit's rate are as likely as n - k or fewer at the rest's.
    return False if _log_tail(n - k, n, 1 - limit) <= math.log(made.at_end) else None


@lru_cache(maxsize=256)
def ends(n: int, limit: float, made: Design) -> tuple[int, int]:
    """(most, least): at the end up to `most` of n keep a limit surely, -1: not even none; from `least` on none does."""

    def first(holds: Callable[[int], bool]) -> int:
        low, high = -1, n + 1  # it does not hold at `low`, and does at `high`
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if holds(middle) else (middle, high)
        return high

    most = first(lambda k: decided_at_end(k, n, limit, made) is not True) - 1
    return most, first(lambda k: decided_at_end(k, n, limit, made) is False)


def foreseen(k: int, n: int, more: int, upto: int) -> float:
    """Probability of at most `upto` of `more` to come where k of n were seen: beta-binomial, Jeffreys' prior.

    What a study may still become is judged by it (predictive probability: Spiegelhalter, Freedman, Blackburn 1986). No
    verdict rests on it.
    """
    if upto < 0:
        return 0.0
    if upto >= more:
        return 1.0
    a, b = k + 0.5, n - k + 0.5
    start = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) - math.lgamma(a + b + more) + math.lgamma(more + 1)
    terms = [
        math.lgamma(a + i) + math.lgamma(b + more - i) - math.lgamma(i + 1) - math.lgamma(more - i + 1)
        for i in range(upto + 1)
    ]
    return min(1.0, sum(math.exp(start + term) for term in terms))


def fewest(limit: float, alpha: float = ALPHA) -> int | None:
    """Records that keep a limit surely if none changes: 1 - alpha^(1/n) ≤ limit. None: no number does."""
    if limit <= 0:
        return None
    return 1 if limit >= 1 else math.ceil(math.log(alpha) / math.log1p(-limit) - 1e-9)


MOST = 1_000_000  # records that anybody may have


def needed(k: int, n: int, limit: float) -> int | None:
    """About how many records would decide on a limit if changes came on at the rate k of n. None: not even MOST."""

    def decides(m: int) -> bool:
        here = round(k * m / n)
        return decided_at_end(here, m, limit, design(m, limit)) is not None

    m = n
    while m <= MOST and not decides(m):
        m *= 2
    if m > MOST:
        return None
    low, high = m // 2, m
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if decides(middle) else (middle, high)
    step = 10 ** max(0, len(str(high)) - 2) if high >= 1000 else 1
    return -(-high // step) * step  # no more is known of it than two digits
