"""What predictions are worth against the truth: figures with bootstrap intervals. Arrays in, figures out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from edgeguard.calibration.fitting import Target, Threshold, choose_threshold
from edgeguard.evaluation import metrics
from edgeguard.evaluation.metrics import Figure, Interval, Weight, bootstrap
from edgeguard.evaluation.table import Predictions, ScoreTable

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
    best: Threshold | None


@dataclass(frozen=True)
class Evaluation:
    """Figures over the categories together, and of "unsafe" and each category."""

    overall: Figures
    labels: Mapping[str, LabelEvaluation]


def evaluate(
    predictions: Predictions, truth: Bools, *, goal: Target | None = None, draws: int = DRAWS, seed: int = 0
) -> Evaluation:
    """Figures of predictions; `truth` is (n, 1 + n_labels) like them, "unsafe" first.

    The same seed draws the same records, so that the figures of two estimators are paired.
    """
    goal, (n, _) = goal or Target("f1"), truth.shape
    overall = bootstrap(partial(overall_figures, predictions, truth), n, draws=draws, seed=seed)
    labels = {}
    for i, label in enumerate(predictions.labels):
        p, t, said = predictions.p[:, i], truth[:, i], predictions.said[:, i]
        labels[label] = LabelEvaluation(
            n_true=int(t.sum()),
            n_distinct=metrics.n_distinct(p),
            figures=bootstrap(partial(label_figures, t, p, said), n, draws=draws, seed=seed),
            best=choose_threshold(t, p, goal) if 0 < t.sum() < n else None,
        )
    return Evaluation(overall, labels)


def label_figures(truth: Bools, p: Floats, said: Bools, weight: Weight = None) -> dict[str, Figure]:
    """Figures of one label: truth, p, said are (n,)."""
    curve, bins = metrics.roc_curve(truth, p, weight), metrics.equal_mass_bins(truth, p, weight)
    reliability, resolution, uncertainty = metrics.parts_of(bins)
    found = {
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
        **{name: metrics.as_given(figure, weight) for name, figure in found.items()},
        **decision_figures(truth, said, weight),
        "false_positive_rate": metrics.false_positive_rate(truth, said, weight),
        "brier": metrics.brier_loss(truth, p, weight),
        "log_loss": metrics.log_loss(truth, p, weight),
    }


def decision_figures(truth: Bools, said: Bools, weight: Weight = None) -> dict[str, Figure]:
    """F1, precision and recall, nan where nothing is true."""
    there = truth.any() if weight is None else weight @ truth > 0
    return {
        "f1": np.where(there, metrics.f1(truth, said, weight), np.nan),
        "precision": np.where(there, metrics.precision(truth, said, weight), np.nan),
        "recall": np.where(there, metrics.recall(truth, said, weight), np.nan),
    }


def overall_figures(predictions: Predictions, truth: Bools, weight: Weight = None) -> dict[str, Figure]:
    """Figures over the categories together, "unsafe" left out, as the paper of the estimators has it."""
    p, said, truth = predictions.p[:, 1:], predictions.said[:, 1:], truth[:, 1:]
    spread = None if weight is None else np.repeat(weight, truth.shape[1], axis=-1)
    together = metrics.roc_curve(truth.ravel(), p.ravel(), spread)
    apart = [metrics.roc_curve(truth[:, i], p[:, i], weight) for i in range(truth.shape[1])]
    found = {
        "micro_auroc": metrics.area(together),
        "macro_auroc": metrics.mean_of_labels([metrics.area(curve) for curve in apart]),
        "micro_auprc": metrics.average_precision(together),
        "macro_auprc": metrics.mean_of_labels([metrics.average_precision(curve) for curve in apart]),
    }
    return {
        **label_set_figures(truth, said, weight),
        **{name: metrics.as_given(figure, weight) for name, figure in found.items()},
        "classwise_ece": metrics.classwise_ece_loss(truth, p, weight),
        "brier": metrics.micro(metrics.brier_loss, truth, p, weight),
        "log_loss": metrics.micro(metrics.log_loss, truth, p, weight),
    }


def label_set_figures(truth: Bools, said: Bools, weight: Weight = None) -> dict[str, Figure]:
    """Figures of decisions alone, which baselines without probabilities have too: (n, n_labels)."""
    return {
        "micro_f1": metrics.f1(truth, said, weight),
        "macro_f1": metrics.macro_f1(truth, said, weight),
        "micro_precision": metrics.precision(truth, said, weight),
        "micro_recall": metrics.recall(truth, said, weight),
        "hamming_loss": metrics.hamming_loss(truth, said, weight),
    }


# The baselines of arXiv 2511.22312. Each gives label sets and no probabilities.


def greedy(table: ScoreTable) -> Bools:
    """(n, n_labels) the labels of the argmax answer inside the grammar: what a user reads who lets the model write."""
    return table.scores["conditional"] > 0


def probability_uncertainty(first: Floats) -> Floats:
    """(n,) 1 / (p_max + 1), p the probabilities of the labels behind a forced `unsafe`: (n, n_labels)."""
    found: Floats = 1 / (_given_a_label(first).max(axis=1) + 1)
    return found


def entropy_uncertainty(first: Floats) -> Floats:
    """(n,) entropy of the labels behind a forced `unsafe`, nats."""
    p = _given_a_label(first)
    return np.asarray(-(p * np.log(np.where(p > 0, p, 1))).sum(axis=1))


def logtoku(first: Floats, evidence: Floats, *, k: int = 2) -> Floats:
    """(n,) product of aleatoric and epistemic uncertainty of the k likeliest labels (Ma et al., arXiv 2502.00290).

    evidence  (n,) log-sum-exp of the logits where the label is written: with it log-probabilities are logits again

    With α = max(0, logit) of the k labels and α0 their sum: AU = -Σ α / α0 (ψ(α + 1) - ψ(α0 + 1)), EU = k / (α0 + k).
    """
    with np.errstate(divide="ignore"):
        logits = np.log(_given_a_label(first)) + evidence[:, None]
    alpha = np.maximum(0, -np.sort(-logits, axis=1)[:, :k])
    total = alpha.sum(axis=1)
    share = alpha / np.maximum(total, np.finfo(float).tiny)[:, None]
    aleatoric = -(share * (_digamma(alpha + 1) - _digamma(total + 1)[:, None])).sum(axis=1)
    found: Floats = aleatoric * (k / (total + k))
    return found


def _digamma(x: Floats) -> Floats:
    """ψ(x) for x ≥ 1, to 1e-12: the recurrence up to 10, the asymptotic series there (Abramowitz & Stegun 6.3.18)."""
    x, below = np.array(x, dtype=np.float64), np.zeros_like(x, dtype=np.float64)
    for _ in range(10):
        small = x < 10
        below -= np.where(small, 1 / x, 0)
        x = np.where(small, x + 1, x)
    y = 1 / x**2
    found: Floats = below + np.log(x) - 0.5 / x - y * (1 / 12 - y * (1 / 120 - y * (1 / 252 - y * (1 / 240 - y / 132))))
    return found


def _given_a_label(first: Floats) -> Floats:
    found: Floats = first / np.maximum(first.sum(axis=1, keepdims=True), np.finfo(float).tiny)
    return found


def baselines(table: ScoreTable, truth: Bools, *, draws: int = DRAWS, seed: int = 0) -> dict[str, Figures]:
    """Figures of each baseline that the table has what it needs for; truth is (n, n_labels)."""
    said = {"greedy": greedy(table)} if "conditional" in table.scores else {}
    if table.first is not None:
        uncertain = {"probability": probability_uncertainty(table.first), "entropy": entropy_uncertainty(table.first)}
        if table.evidence is not None:
            uncertain["logtoku"] = logtoku(table.first, table.evidence)
        for name, uncertainty in uncertain.items():
            said[name] = by_uncertainty(table.first, uncertainty, truth)[0]
    return {
        name: bootstrap(partial(label_set_figures, truth, decisions), len(truth), draws=draws, seed=seed)
        for name, decisions in said.items()
    }


def by_uncertainty(first: Floats, uncertainty: Floats, truth: Bools) -> tuple[Bools, float]:
    """(n, n_labels) the likeliest label, or the two likeliest where the uncertainty is over a threshold; the threshold.

    As in the paper's code the threshold is the one with the best micro F1 *on these very records*: an upper bound of
    what the baseline can do, and it is told so. It takes every record for unsafe.
    """
    order = np.argsort(-first, axis=1, kind="stable")
    one, two = np.zeros_like(truth), np.zeros_like(truth)
    rows = np.arange(len(first))
    one[rows, order[:, 0]] = two[rows, order[:, 0]] = True
    if first.shape[1] > 1:
        two[rows, order[:, 1]] = True
    levels = np.append(np.unique(uncertainty), np.inf)
    levels = levels[np.linspace(0, len(levels) - 1, min(len(levels), 200)).astype(int)]
    best: Callable[[float], float] = lambda t: metrics.f1(truth, np.where((uncertainty >= t)[:, None], two, one))  # noqa: E731
    chosen = max(levels, key=lambda t: best(float(t)))
    return np.where((uncertainty >= chosen)[:, None], two, one), float(chosen)
