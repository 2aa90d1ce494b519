"""The baselines of arXiv 2511.22312. Each gives label sets, without "unsafe", and no probabilities.

`first` is (n, n_codes): P(a code is the first one named).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt

from edgeguard.evaluation import metrics
from edgeguard.evaluation.figures import DRAWS, Figures, label_set_figures, together
from edgeguard.evaluation.metrics import bootstrap
from edgeguard.evaluation.table import ScoreTable

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def baselines(table: ScoreTable, *, draws: int = DRAWS, seed: int = 0) -> dict[str, Figures]:
    """Figures of each baseline that the table has what it needs for; none where its truth names no categories."""
    if table.truth is None or table.truth.shape[1] == 1:
        return {}
    y_true = table.truth[:, 1:]
    return {
        name: together(
            bootstrap(partial(label_set_figures, y_true, y_pred), len(y_true), draws=draws, seed=seed), y_true, y_pred
        )
        for name, y_pred in _predictions(table, y_true).items()
    }


def _predictions(table: ScoreTable, y_true: Bools) -> dict[str, Bools]:
    """Baseline → (n, n_codes) label sets."""
    y_pred = {"greedy": greedy(table)} if tells_greedy(table) else {}
    if table.first is not None:
        uncertain = {"probability": probability_uncertainty(table.first), "entropy": entropy_uncertainty(table.first)}
        if table.evidence is not None:
            uncertain["logtoku"] = logtoku(table.first, table.evidence)
        for name, uncertainty in uncertain.items():
            y_pred[name] = by_uncertainty(table.first, uncertainty, y_true)[0]
    return y_pred


def tells_greedy(table: ScoreTable) -> bool:
    """Whether a table says what the argmax answer names: the estimators along that answer do, the marginal does not."""
    return any(name in table.scores for name in _ALONG_IT)


_ALONG_IT = ("conditional", "joint")  # 0 for what the argmax answer does not name


def greedy(table: ScoreTable) -> Bools:
    """(n, n_codes) the labels of the argmax answer inside the grammar: what a user reads who lets the model write."""
    return next(table.scores[name] for name in _ALONG_IT if name in table.scores)[:, 1:] > 0


def greedy_verdict(table: ScoreTable) -> Bools:
    """(n,) whether the argmax answer says unsafe: where it names a label, and where unsafe is the likelier verdict."""
    return np.asarray((table.margin > 0) | greedy(table).any(axis=1))


def greedy_answers(table: ScoreTable) -> Bools:
    """(n, n_labels) the argmax answer: its verdict, and the codes that it names."""
    return np.column_stack([greedy_verdict(table), greedy(table)])


def probability_uncertainty(first: Floats) -> Floats:
    """(n,) 1 / (p_max + 1), p the probabilities of the labels behind a forced `unsafe`: (n, n_codes)."""
    return np.asarray(1 / (_given_a_label(first).max(axis=1) + 1))


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
    return np.asarray(aleatoric * (k / (total + k)))


def _digamma(x: Floats) -> Floats:
    """ψ(x) for x ≥ 1, to 1e-12: the recurrence up to 10, the asymptotic series there (Abramowitz & Stegun 6.3.18)."""
    x, below = np.array(x, dtype=np.float64), np.zeros_like(x, dtype=np.float64)
    for _ in range(10):
        small = x < 10
        below -= np.where(small, 1 / x, 0)
        x = np.where(small, x + 1, x)
    y = 1 / x**2
    series = 1 / 12 - y * (1 / 120 - y * (1 / 252 - y * (1 / 240 - y / 132)))
    return np.asarray(below + np.log(x) - 0.5 / x - y * series)


def _given_a_label(first: Floats) -> Floats:
    return np.asarray(first / np.maximum(first.sum(axis=1, keepdims=True), np.finfo(float).tiny))


def by_uncertainty(first: Floats, uncertainty: Floats, y_true: Bools) -> tuple[Bools, float]:
    """(n, n_codes) the likeliest label, or the two likeliest where the uncertainty is over a threshold; the threshold.

    As in the paper's code the threshold is the one with the best micro F1 *on these very records*: an upper bound of
    what the baseline can do, and it is told so. It takes every record for unsafe.
    """
    order = np.argsort(-first, axis=1, kind="stable")
    one, two = np.zeros_like(y_true), np.zeros_like(y_true)
    rows = np.arange(len(first))
    one[rows, order[:, 0]] = two[rows, order[:, 0]] = True
    if first.shape[1] > 1:
        two[rows, order[:, 1]] = True
    levels = np.append(np.unique(uncertainty), np.inf)
    levels = levels[np.linspace(0, len(levels) - 1, min(len(levels), 200)).astype(int)]
    best: Callable[[float], float] = lambda t: metrics.f1(y_true, np.where((uncertainty >= t)[:, None], two, one))  # noqa: E731
    chosen = max(levels, key=lambda t: best(float(t)))
    return np.where((uncertainty >= chosen)[:, None], two, one), float(chosen)
