"""How far the scores of one model lie from those of another on the same records. Arrays in, figures out.

The reference stands first. p and q are the probabilities of reference and variant, odds their log-odds, all (n,) for
one label unless said otherwise. Bits that the two tables share (ids, labels, truth) are held against each other in
`aligned`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from edgeguard.calibration.decide import Decisions
from edgeguard.calibration.fitting import FOLDS, fit_map
from edgeguard.calibration.maps import logit
from edgeguard.errors import InputError
from edgeguard.evaluation import metrics
from edgeguard.evaluation.figures import PER_BIN, is_binned, label_figures, overall_figures
from edgeguard.evaluation.metrics import Figure, Interval, Weight, bootstrap
from edgeguard.evaluation.table import ScoreTable, take

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

DRAWS = 1000
MARGINS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, np.inf)  # nats from the threshold: the bins of flip rates
_TINY = np.finfo(float).tiny


def aligned(reference: ScoreTable, variant: ScoreTable) -> tuple[ScoreTable, ScoreTable]:
    """Both tables with the records that both could score, in the reference's order.

    Raises InputError where they are not of the same records or taxonomy: which, and where.
    """
    sizes = [len(table) + len(table.failed) for table in (reference, variant)]
    if sizes[0] != sizes[1] and reference.labels == variant.labels:
        raise InputError(f"the reference has {sizes[0]} records, the variant {sizes[1]}; score the same file")
    return shared(reference, variant)


def shared(reference: ScoreTable, variant: ScoreTable) -> tuple[ScoreTable, ScoreTable]:
    """The same of two tables of one file of which one, or both, may be of some of its records. Raises InputError."""
    if reference.labels != variant.labels:
        raise InputError(
            f"the taxonomies differ: {', '.join(reference.codes)} against {', '.join(variant.codes)}; "
            "compare scores of one profile"
        )
    both, ours, theirs = np.intersect1d(reference.places, variant.places, return_indices=True)
    for place, i, j in zip(both, ours, theirs, strict=True):
        if str(reference.ids[i]) != str(variant.ids[j]):
            raise InputError(
                f"record {place + 1} has id {reference.ids[i]!r} in the reference and {variant.ids[j]!r} in the "
                "variant; score the same file"
            )
    if not len(both):
        raise InputError("no record was scored by both")
    return take(reference, ours), take(variant, theirs)


# Scores


@dataclass(frozen=True)
class Shift:
    """What became of one label's scores. Differences are variant minus reference.

    mean, se        mean Δp and its standard error over the (paired) records
    rms, p50 … max  root mean square and quantiles of |Δp|
    odds_*          the same of the log-odds, nats
    spearman        rank correlation, nan where one of the two does not vary
    distinct        distinct scores of the variant over those of the reference: under 1 where scores collapse
    """

    mean: float
    se: float
    rms: float
    p50: float
    p90: float
    p99: float
    max: float
    odds_mean: float
    odds_se: float
    odds_rms: float
    spearman: float
    distinct: float


def shift(p: Floats, q: Floats, odds_p: Floats, odds_q: Floats) -> Shift:
    """From the reference's probabilities p and log-odds to the variant's q."""
    delta, odds = q - p, odds_q - odds_p
    absolute = np.abs(delta)
    p50, p90, p99 = np.quantile(absolute, [0.5, 0.9, 0.99])
    return Shift(
        mean=float(delta.mean()),
        se=_standard_error(delta),
        rms=_rms(delta),
        p50=float(p50),
        p90=float(p90),
        p99=float(p99),
        max=float(absolute.max()),
        odds_mean=float(odds.mean()),
        odds_se=_standard_error(odds),
        odds_rms=_rms(odds),
        spearman=spearman(odds_p, odds_q),
        distinct=metrics.n_distinct(q) / metrics.n_distinct(p),
    )


def _rms(x: Floats) -> float:
    return float(np.sqrt(np.mean(x**2)))


def _standard_error(x: Floats) -> float:
    return float(x.std(ddof=1) / np.sqrt(len(x))) if len(x) > 1 else np.nan


def spearman(x: Floats, y: Floats) -> float:
    """Rank correlation in [-1, 1], ties at their mean rank; nan where x or y does not vary."""
    a, b = _ranks(x), _ranks(y)
    a, b = a - a.mean(), b - b.mean()
    size = np.sqrt(np.sum(a**2) * np.sum(b**2))
    return float(np.sum(a * b) / size) if size > 0 else np.nan


def _ranks(*keys: Floats) -> Floats:
    """(n,) ranks by the first key, ties by the next; what ties in all of them shares its mean rank."""
    _, inverse, counts = np.unique(np.column_stack(keys), axis=0, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: Floats = (ends - (counts - 1) / 2)[inverse.ravel()]
    return ranks


# Distributions


def verdicts(table: ScoreTable) -> Floats:
    """(n, 3) P(safe), P(unsafe), and what is neither."""
    safe = table.unsafe * np.exp(-table.margin)
    rest = np.maximum(0, 1 - table.unsafe - safe)
    return np.column_stack([safe, table.unsafe, rest])


def first_labels(table: ScoreTable) -> Floats:
    """(n, n_codes + 1) the first code, given that there is one or the answer goes elsewhere: the rest at the end.

    Raises ValueError for a table read from a file, which does not have them.
    """
    if table.first is None:
        raise ValueError("scores from a file have no first labels")
    given_unsafe = table.first / np.maximum(table.unsafe, _TINY)[:, None]
    rest = np.maximum(0, 1 - given_unsafe.sum(axis=1))
    return np.column_stack([given_unsafe, rest])


def kl_divergence(p: Floats, q: Floats) -> Floats:
    """(n,) KL(p || q) of the rows of (n, k), nats; as llama.cpp has it, from the reference to the variant."""
    p, q = _normalised(p), _normalised(q)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * (np.log(p) - np.log(np.maximum(q, _TINY))), 0)
    return np.asarray(np.maximum(0, terms.sum(axis=1)))


def total_variation(p: Floats, q: Floats) -> Floats:
    """(n,) half the sum of the differences, in [0, 1]."""
    return np.asarray(np.abs(_normalised(p) - _normalised(q)).sum(axis=1) / 2)


def _normalised(p: Floats) -> Floats:
    return np.asarray(p / np.maximum(p.sum(axis=1, keepdims=True), _TINY))


# Decisions


@dataclass(frozen=True)
class Flips:
    """Decisions that changed, as shares of n records; `high` is the upper end of the rate's 95 % interval (Wilson)."""

    n: int
    rate: float
    high: float
    to_safe: float
    to_unsafe: float


def flips(reference: Bools, variant: Bools) -> Flips:
    """From the reference's decisions to the variant's, of one label."""
    n, changed = len(reference), reference != variant
    return Flips(
        n,
        _share(changed),
        wilson_high(int(changed.sum()), n),
        to_safe=_share(reference & ~variant),
        to_unsafe=_share(~reference & variant),
    )


def wilson_high(k: int, n: int, z: float = 1.959963984540054) -> float:
    """Upper end of Wilson's 95 % interval for k of n; 1 for none of none."""
    if n == 0:
        return 1.0
    share, spread = k / n, z * z / n
    middle = share + spread / 2
    return float(min(1.0, (middle + z * np.sqrt(share * (1 - share) / n + spread / (4 * n))) / (1 + spread)))


def _share(x: Bools) -> float:
    return float(x.mean()) if len(x) else np.nan


def flips_by_margin(
    reference: Bools, variant: Bools, odds: Floats, threshold: float
) -> list[tuple[float, float, Flips]]:
    """(least, most, flips) by how many nats the reference's log-odds lie from the threshold's: the bins of MARGINS."""
    distance = np.abs(odds - logit(threshold))
    bins = []
    for low, high in pairwise(MARGINS):
        inside = (distance >= low) & (distance < high)
        bins.append((low, high, flips(reference[inside], variant[inside])))
    return bins


@dataclass(frozen=True)
class SetAgreement:
    """How alike label sets are: the share that is the same, the mean Jaccard similarity (1 for two empty sets)."""

    same: float
    jaccard: float


def set_agreement(reference: Bools, variant: Bools) -> SetAgreement:
    """Of (n, n_codes) decisions."""
    both, either = (reference & variant).sum(axis=1), (reference | variant).sum(axis=1)
    jaccard = np.where(either > 0, both / np.maximum(1, either), 1.0)
    return SetAgreement(float((reference == variant).all(axis=1).mean()), float(jaccard.mean()))


# Against the truth


def label_changes(
    y_true: Bools, reference: tuple[Floats, Bools], variant: tuple[Floats, Bools], *, draws: int = DRAWS, seed: int = 0
) -> dict[str, Interval]:
    """Variant minus reference of every figure of a label, (y_prob, y_pred) each, with paired bootstrap intervals."""

    def figures(weight: Weight) -> Mapping[str, Figure]:
        return _minus(label_figures(y_true, *variant, weight), label_figures(y_true, *reference, weight))

    found = bootstrap(figures, len(y_true), draws=draws, seed=seed, telling=_rarer(y_true), symmetric=_OF_DECISIONS)
    too_few = len(y_true) < metrics.N_BINS * PER_BIN
    unsure = {name: replace(found[name], low=np.nan, high=np.nan) for name in found if too_few and is_binned(name)}
    return found | unsure


def overall_changes(
    y_true: Bools, reference: Decisions, variant: Decisions, *, draws: int = DRAWS, seed: int = 0
) -> dict[str, Interval]:
    """The same over the categories together; y_true is (n, n_labels)."""

    def figures(weight: Weight) -> Mapping[str, Figure]:
        return _minus(overall_figures(variant, y_true, weight), overall_figures(reference, y_true, weight))

    some = int(y_true[:, 1:].any(axis=1).sum())
    return bootstrap(figures, len(y_true), draws=draws, seed=seed, telling=some, symmetric=_OF_DECISIONS)


_OF_DECISIONS = ("f1", "precision", "recall", "false_positive_rate", "micro_f1", "micro_precision", "micro_recall")


def _rarer(y_true: Bools) -> int:
    """Records of the class that has fewer; all of them where there is but one class."""
    true = int(y_true.sum())
    return min(true, len(y_true) - true) or len(y_true)


def _minus(a: Mapping[str, Figure], b: Mapping[str, Figure]) -> dict[str, Figure]:
    return {name: a[name] - b[name] for name in a}


PARTS = ("emission", "calibration", "resolution", "discrimination")


def harm(
    y_true: Bools,
    reference: tuple[Floats, Floats],
    variant: tuple[Floats, Floats],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Interval]:
    """What the variant loses, as Brier loss, and why: "total" is the sum of the PARTS. Each of (p, off) is (n,).

    emission        mass off the grammar: gone if the rest is renormalised
    calibration     gone under a monotone map to the truth, fitted out of fold
    resolution      gone if records that tie are put into the reference's order
    discrimination  what is left: the variant knows less

    Positive where the variant is worse. The maps are isotonic and fitted once, on all records.
    """
    p, q = reference[0], variant[0]
    renormalised_p, renormalised_q = (np.clip(x / np.maximum(1 - off, _TINY), 0, 1) for x, off in (reference, variant))
    folds = _folds(len(y_true), seed)
    mapped_p = _mapped(_ranks(renormalised_p), y_true, folds)
    mapped_q = _mapped(_ranks(renormalised_q), y_true, folds)
    untied = _mapped(_ranks(renormalised_q, renormalised_p), y_true, folds)

    def figures(weight: Weight) -> Mapping[str, Figure]:
        loss = partial(metrics.brier_loss, y_true, weight=weight)
        return {
            "total": loss(q) - loss(p),
            "emission": (loss(q) - loss(renormalised_q)) - (loss(p) - loss(renormalised_p)),
            "calibration": (loss(renormalised_q) - loss(mapped_q)) - (loss(renormalised_p) - loss(mapped_p)),
            "resolution": loss(mapped_q) - loss(untied),
            "discrimination": loss(untied) - loss(mapped_p),
        }

    return bootstrap(figures, len(y_true), draws=draws, seed=seed, telling=_rarer(y_true))


def _folds(n: int, seed: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(np.arange(n) % FOLDS)


def _mapped(ranks: Floats, y_true: Bools, folds: npt.NDArray[np.int64]) -> Floats:
    """(n,) isotonic probabilities, each from a map that has not seen the record's truth."""
    p = np.empty(len(ranks))
    for fold in range(FOLDS):
        inside = folds == fold
        if inside.any():
            p[inside] = fit_map("isotonic", ranks[~inside], y_true[~inside].astype(float))(ranks[inside])
    return p


# Repair without labels


def split(n: int, *, share: float = 0.5, seed: int = 0) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Indices of the records to fit on, and of those to validate on."""
    order = np.random.default_rng(seed).permutation(n)
    cut = round(n * share)
    return np.sort(order[:cut]), np.sort(order[cut:])
