"""Intervals of figures of few records, where the percentile bootstrap fails: without an error it gives 1.000–1.000.

Each is in closed form. Level 95 %. `python bench/intervals.py` simulates how often they hold the true value.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

Z = 1.959963984540054  # the normal distribution's 97.5 % quantile
ENOUGH = 10  # records of a class, fewer give no interval to a ranking: see `auroc_interval`


def wilson(hits: float, n: float) -> tuple[float, float]:
    """Of a proportion, hits of n independent records (Wilson, 1927; Brown, Cai & DasGupta, 2001). nan for n = 0."""
    if n <= 0:
        return np.nan, np.nan
    p, z2 = hits / n, Z * Z
    middle, half = (p + z2 / (2 * n)), Z * np.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low, high = (float((middle + side * half) / (1 + z2 / n)) for side in (-1, 1))
    return 0.0 if hits <= 0 else low, 1.0 if hits >= n else high  # exact at the ends, where rounding is not


def f1_interval(tps: float, others: float) -> tuple[float, float]:
    """Of F1 = 2 J / (1 + J), where J = tps / (tps + others) is a proportion of the records that are true or predicted.

    others  false positives and false negatives together
    """
    low, high = wilson(tps, tps + others)
    return 2 * low / (1 + low), 2 * high / (1 + high)


def auprc_interval(value: float, n_true: int) -> tuple[float, float]:
    """Of average precision, as if it were a proportion of the true records (Boyd, Eng & Page, 2013: the binomial one).

    In Wilson's form, which has a width at 1 too. Rather too wide than too narrow.
    """
    return wilson(value * n_true, n_true)


def auroc_interval(y_true: Bools, y_score: Floats) -> tuple[float, float]:
    """Of the area under the ROC curve, the wider of two: y_true, y_score are (n,), both classes are there.

    Newcombe's fifth (2006) holds for few records and for an area of 1, and is too narrow where the true vary more than
    the false; DeLong's (1988) on the scale of log-odds is right there, and too narrow near 1 and of few records.
    From 10 records of each class on the two together hold the true value in 92 to 100 of 100 cases.
    """
    ahead, behind = _placements(y_true, y_score)
    area, m, n = float(ahead.mean()), len(ahead), len(behind)
    low, high = _newcombe(area, m, n)
    if 0 < area < 1 and min(m, n) > 1:
        error = np.sqrt(ahead.var(ddof=1) / m + behind.var(ddof=1) / n) / (area * (1 - area))
        odds = np.log(area / (1 - area))
        low = min(low, float(1 / (1 + np.exp(Z * error - odds))))
        high = max(high, float(1 / (1 + np.exp(-Z * error - odds))))
    return low, high


def _placements(y_true: Bools, y_score: Floats) -> tuple[Floats, Floats]:
    """Of each true record the share of the false that it is over, of each false one that of the true over it."""
    true, false = np.sort(y_score[y_true]), np.sort(y_score[~y_true])

    def share_under(values: Floats, others: Floats) -> Floats:
        places = np.searchsorted(others, values, "left") + np.searchsorted(others, values, "right")
        return np.asarray(places / (2 * len(others)))

    return share_under(true, false), 1 - share_under(false, true)


def _newcombe(area: float, m: int, n: int) -> tuple[float, float]:
    """Where the distance from the area found is Z standard errors of the area assumed."""

    def too_far(assumed: float) -> bool:
        more = (m + n) / 2 - 1
        spread = 1 + more * ((1 - assumed) / (2 - assumed) + assumed / (1 + assumed))
        return bool(abs(assumed - area) > Z * np.sqrt(assumed * (1 - assumed) * spread / (m * n)))

    return _edge(too_far, 0.0, area), _edge(too_far, 1.0, area)


def _edge(too_far: Callable[[float], bool], outside: float, inside: float) -> float:
    """Between one that is too far and one that is not, by halving."""
    for _ in range(60):
        middle = (outside + inside) / 2
        outside, inside = (middle, inside) if too_far(middle) else (outside, middle)
    return inside


def student(alpha: float, df: float) -> float:
    """The 1 - alpha quantile of Student's law, by its expansion in 1/df (Abramowitz & Stegun, 26.7.5); df ≥ 9."""
    z = NormalDist().inv_cdf(1 - alpha)
    return z + (z**3 + z) / (4 * df) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2)


def expanded(alpha: float, m: int) -> float:
    """The tail of a percentile bootstrap of m records that holds what a t interval's would (Hesterberg, 2015).

    Percentiles alone are too near: the draws spread less than the figure does, and as a normal law. Where records are
    of two classes the rarer one counts; of fewer than ENOUGH nobody knows the tail, and they are taken for as many.
    """
    m = max(m, ENOUGH)
    return NormalDist().cdf(-student(alpha, m - 1) * math.sqrt(m / (m - 1)))
