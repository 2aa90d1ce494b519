"""What decisions are worth against the truth: figures with 95 % intervals. Arrays in, figures out.

An interval is Wilson's for what is a share of records (precision, recall, false positives, F1), for a ranking one that
`intervals` has, and the bootstrap's for the rest. Where there are too few records for one there is none: `why` says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from edgeguard.calibration.decide import Decisions
from edgeguard.calibration.thresholds import ChosenThreshold, Goal, choose_threshold
from edgeguard.evaluation import intervals, metrics
from edgeguard.evaluation.intervals import ENOUGH
from edgeguard.evaluation.metrics import N_BINS, Figure, Interval, Weight, bootstrap

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

DRAWS = 1000
PER_BIN = 10  # records that a bin of the calibration error needs before its share of true ones says something


@dataclass(frozen=True)
class Told(Interval):
    """A figure with its interval, and why it has none, or why there is no figure."""

    why: str = ""


Figures = Mapping[str, Told]


@dataclass(frozen=True)
class LabelEvaluation:
    """One label. `best` is the threshold that serves the goal best on these very records, None where there is none.

    n_true      records that have it
    n_pred      records that were said to have it
    n_distinct  how many different scores there are
    """

    n_true: int
    n_pred: int
    n_distinct: int
    figures: Figures
    best: ChosenThreshold | None


@dataclass(frozen=True)
class Evaluation:
    """Figures of "unsafe" and of each category, and over the categories together: empty where no truth names any."""

    overall: Figures
    labels: Mapping[str, LabelEvaluation]


def evaluate(
    decisions: Decisions, y_true: Bools, *, goal: Goal | None = None, draws: int = DRAWS, seed: int = 0
) -> Evaluation:
    """Figures of decisions; `y_true` is (n, n_labels) like them, or (n, 1) where only safe or unsafe is known.

    The same seed draws the same records, so that the figures of two estimators are paired.
    """
    goal, (n, n_known) = goal or Goal("f1"), y_true.shape
    overall: Figures = {}
    if n_known > 1:
        overall = together(
            bootstrap(partial(overall_figures, decisions, y_true), n, draws=draws, seed=seed),
            y_true[:, 1:],
            decisions.y_pred[:, 1:],
        )
    labels = {}
    for i, label in enumerate(decisions.labels[:n_known]):
        t, y_prob, y_pred = y_true[:, i], decisions.y_prob[:, i], decisions.y_pred[:, i]
        labels[label] = LabelEvaluation(
            n_true=int(t.sum()),
            n_pred=int(y_pred.sum()),
            n_distinct=metrics.n_distinct(y_prob),
            figures=_settled(
                bootstrap(partial(label_figures, t, y_prob, y_pred), n, draws=draws, seed=seed), t, y_prob, y_pred
            ),
            best=choose_threshold(t, y_prob, goal) if 0 < t.sum() < n else None,
        )
    return Evaluation(overall, labels)


def _settled(found: Mapping[str, Interval], y_true: Bools, y_prob: Floats, y_pred: Bools) -> Figures:
    """One label's figures with the intervals that its records allow."""
    n_true, n_false = int(y_true.sum()), int((~y_true).sum())
    closed = decision_intervals(y_true, y_pred)
    if min(n_true, n_false) >= ENOUGH:
        closed["auroc"] = intervals.auroc_interval(y_true, y_prob)
        closed["auprc"] = intervals.auprc_interval(found["auprc"].value, n_true)
    settled = {}
    for name, figure in found.items():
        low, high = closed.get(name, (figure.low, figure.high))
        why = "" if name in closed else _why_not(name, n_true, n_false)
        if np.isnan(figure.value):
            why = "no record has it" if n_true == 0 else "every record has it" if n_false == 0 else "none was predicted"
        settled[name] = Told(figure.value, *((np.nan, np.nan) if why else (low, high)), why)
    return settled


def _why_not(name: str, n_true: int, n_false: int) -> str:
    """Why a figure has no interval; "" where it has one."""
    if min(n_true, n_false) < ENOUGH:
        return f"{n_true} with it, {n_false} without; an interval takes {ENOUGH} of each"
    if name.startswith("partial_auroc_") and n_false * (rate := int(name.rpartition("_")[2]) / 100) < ENOUGH:
        return f"{100 * rate:g} % of {n_false} records without it are {n_false * rate:.2g}; an interval takes {ENOUGH}"
    if is_binned(name) and n_true + n_false < N_BINS * PER_BIN:
        return f"{n_true + n_false} records in {N_BINS} bins; an interval takes {PER_BIN} a bin"
    return ""


def is_binned(name: str) -> bool:
    """Whether a label's figure is of bins of records, and needs N_BINS * PER_BIN of them for an interval."""
    return name in ("ece", "brier_reliability", "brier_resolution")


def decision_intervals(y_true: Bools, y_pred: Bools) -> dict[str, tuple[float, float]]:
    """Intervals of one label's precision, recall, F1 and false-positive rate."""
    tps, fps = float((y_true & y_pred).sum()), float((~y_true & y_pred).sum())
    n_true, n_false = float(y_true.sum()), float((~y_true).sum())
    return {
        "precision": intervals.wilson(tps, tps + fps),
        "recall": intervals.wilson(tps, n_true),
        "false_positive_rate": intervals.wilson(fps, n_false),
        "f1": intervals.f1_interval(tps, fps + n_true - tps),
    }


def together(found: Mapping[str, Interval], y_true: Bools, y_pred: Bools) -> Figures:
    """Figures over the categories together with the intervals that the records allow: all (n, n_codes).

    A bootstrap of records among which none is wrong never draws a wrong one, however few they are: then the interval
    is Wilson's, each record that has a category or was said to have one counted once.
    """
    some = int(y_true.any(axis=1).sum())
    concerned = int((y_true | y_pred).any(axis=1).sum())
    settled = {}
    for name, figure in found.items():
        if some == 0 and name in ("micro_f1", "micro_precision", "micro_recall"):
            settled[name] = Told(np.nan, np.nan, np.nan, "no record has a category")
        elif name == "classwise_ece" and len(y_true) < N_BINS * PER_BIN:
            why = f"{len(y_true)} records in {N_BINS} bins; an interval takes {PER_BIN} a bin"
            settled[name] = Told(figure.value, np.nan, np.nan, why)
        elif some < ENOUGH and not np.isnan(figure.value):
            why = f"{some} records with a category; an interval takes {ENOUGH}"
            settled[name] = Told(figure.value, np.nan, np.nan, why)
        elif figure.low == figure.high and figure.value in (0.0, 1.0):
            n = len(y_true) if name == "hamming_loss" else concerned
            settled[name] = Told(figure.value, *intervals.wilson(figure.value * n, n))
        else:
            settled[name] = Told(figure.value, figure.low, figure.high)
    return settled


def label_figures(y_true: Bools, y_prob: Floats, y_pred: Bools, weight: Weight = None) -> dict[str, Figure]:
    """Figures of one label: y_true, y_prob, y_pred are (n,)."""
    curve, bins = metrics.roc_curve(y_true, y_prob, weight), metrics.equal_mass_bins(y_true, y_prob, weight)
    reliability, resolution, uncertainty = metrics.parts_of(bins)
    figures = {
        "auroc": metrics.area(curve),
        "auprc": metrics.average_precision(curve),
        "partial_auroc_1": metrics.partial_area(curve, 0.01),
        "partial_auroc_5": metrics.partial_area(curve, 0.05),
        "ece": metrics.ece_of(bins),
        "brier_reliability": reliability,
        "brier_resolution": resolution,
        "brier_uncertainty": uncertainty,
    }
    return {
        **{name: metrics.as_given(figure, weight) for name, figure in figures.items()},
        **decision_figures(y_true, y_pred, weight),
        "false_positive_rate": metrics.false_positive_rate(y_true, y_pred, weight),
        "brier": metrics.brier_loss(y_true, y_prob, weight),
        "log_loss": metrics.log_loss(y_true, y_prob, weight),
    }


def decision_figures(y_true: Bools, y_pred: Bools, weight: Weight = None) -> dict[str, Figure]:
    """F1, precision and recall, nan where nothing is true."""
    some = y_true.any() if weight is None else weight @ y_true > 0
    return {
        "f1": np.where(some, metrics.f1(y_true, y_pred, weight), np.nan),
        "precision": np.where(some, metrics.precision(y_true, y_pred, weight), np.nan),
        "recall": np.where(some, metrics.recall(y_true, y_pred, weight), np.nan),
    }


def overall_figures(decisions: Decisions, y_true: Bools, weight: Weight = None) -> dict[str, Figure]:
    """Figures over the categories together, "unsafe" left out, as the estimators' paper has it."""
    y_prob, y_pred, y_true = decisions.y_prob[:, 1:], decisions.y_pred[:, 1:], y_true[:, 1:]
    spread = None if weight is None else np.repeat(weight, y_true.shape[1], axis=-1)
    together = metrics.roc_curve(y_true.ravel(), y_prob.ravel(), spread)
    apart = [metrics.roc_curve(y_true[:, i], y_prob[:, i], weight) for i in range(y_true.shape[1])]
    figures = {
        "micro_auroc": metrics.area(together),
        "macro_auroc": metrics.mean_of_labels([metrics.area(curve) for curve in apart]),
        "micro_auprc": metrics.average_precision(together),
        "macro_auprc": metrics.mean_of_labels([metrics.average_precision(curve) for curve in apart]),
    }
    return {
        **label_set_figures(y_true, y_pred, weight),
        **{name: metrics.as_given(figure, weight) for name, figure in figures.items()},
        "classwise_ece": metrics.classwise_ece_loss(y_true, y_prob, weight),
        "brier": metrics.micro(metrics.brier_loss, y_true, y_prob, weight),
        "log_loss": metrics.micro(metrics.log_loss, y_true, y_prob, weight),
    }


def label_set_figures(y_true: Bools, y_pred: Bools, weight: Weight = None) -> dict[str, Figure]:
    """Figures of decisions alone, which baselines without probabilities have too: (n, n_labels)."""
    return {
        "micro_f1": metrics.f1(y_true, y_pred, weight),
        "macro_f1": metrics.macro_f1(y_true, y_pred, weight),
        "micro_precision": metrics.precision(y_true, y_pred, weight),
        "micro_recall": metrics.recall(y_true, y_pred, weight),
        "hamming_loss": metrics.hamming_loss(y_true, y_pred, weight),
    }
