"""What decisions are worth against the truth: figures with bootstrap intervals. Arrays in, figures out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from edgeguard.calibration.decide import Decisions
from edgeguard.calibration.thresholds import ChosenThreshold, Goal, choose_threshold
from edgeguard.evaluation import metrics
from edgeguard.evaluation.metrics import Figure, Interval, Weight, bootstrap

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Figures = Mapping[str, Interval]

DRAWS = 1000


@dataclass(frozen=True)
class LabelEvaluation:
    """One label. `best` is the threshold that serves the goal best on these very records, None where there is none."""

    n_true: int
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
        overall = bootstrap(partial(overall_figures, decisions, y_true), n, draws=draws, seed=seed)
    labels = {}
    for i, label in enumerate(decisions.labels[:n_known]):
        t, y_prob, y_pred = y_true[:, i], decisions.y_prob[:, i], decisions.y_pred[:, i]
        labels[label] = LabelEvaluation(
            n_true=int(t.sum()),
            n_distinct=metrics.n_distinct(y_prob),
            figures=bootstrap(partial(label_figures, t, y_prob, y_pred), n, draws=draws, seed=seed),
            best=choose_threshold(t, y_prob, goal) if 0 < t.sum() < n else None,
        )
    return Evaluation(overall, labels)


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
