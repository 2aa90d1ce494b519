"""Metrics agree with scikit-learn where it has them, and keep their laws where it has not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from edgeguard.evaluation import metrics


@st.composite
def labelled(draw, classes=2):
    """Truth with both classes, scores with ties, integer weights as a bootstrap draws them."""
    n = draw(st.integers(4, 40))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    y_true = rng.random(n) < draw(st.floats(0.1, 0.9))
    y_true[:2] = True, False
    p = np.round(rng.random(n), draw(st.integers(1, 4)))
    weight = rng.integers(0, 4, n).astype(float) if draw(st.booleans()) else None
    if weight is not None:
        weight[:2] = 1
    return y_true, p, weight


@given(labelled())
def test_rankings_agree_with_scikit_learn(case):
    """Ties must count half, a record drawn twice twice."""
    y_true, p, weight = case
    options = {"sample_weight": weight}
    assert metrics.auroc(y_true, p, weight) == pytest.approx(sk.roc_auc_score(y_true, p, **options), abs=1e-12)
    assert metrics.auprc(y_true, p, weight) == pytest.approx(
        sk.average_precision_score(y_true, p, **options), abs=1e-12
    )
    for most in (0.05, 0.3, 1.0):
        ours = metrics.partial_auroc(y_true, p, weight, max_fpr=most)
        theirs = sk.roc_auc_score(y_true, p, max_fpr=None if most == 1 else most, **options)
        assert ours == pytest.approx(theirs, abs=1e-12)


@given(labelled())
def test_losses_agree_with_scikit_learn(case):
    y_true, p, weight = case
    options = {"sample_weight": weight}
    assert metrics.brier_loss(y_true, p, weight) == pytest.approx(sk.brier_score_loss(y_true, p, **options), abs=1e-12)
    assert metrics.log_loss(y_true, p, weight) == pytest.approx(
        sk.log_loss(y_true, p, labels=[0, 1], **options), rel=1e-6
    )


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_decisions_agree_with_scikit_learn(seed, weighted):
    rng = np.random.default_rng(seed)
    y_true, y_pred = rng.random((2, 20, 4)) < 0.3
    y_true[:4, :4] |= np.eye(4, dtype=bool)  # macro averages are over labels that are there
    weight = rng.integers(1, 4, 20).astype(float) if weighted else None
    options = {"sample_weight": weight, "zero_division": 0}
    for ours, theirs in (
        (metrics.f1, sk.f1_score),
        (metrics.precision, sk.precision_score),
        (metrics.recall, sk.recall_score),
    ):
        assert ours(y_true, y_pred, weight) == pytest.approx(theirs(y_true, y_pred, average="micro", **options))
    assert metrics.macro_f1(y_true, y_pred, weight) == pytest.approx(
        sk.f1_score(y_true, y_pred, average="macro", **options)
    )
    assert metrics.hamming_loss(y_true, y_pred, weight) == pytest.approx(
        sk.hamming_loss(y_true, y_pred, sample_weight=weight)
    )
    assert metrics.micro(metrics.auprc, y_true, y_pred.astype(float)) == pytest.approx(
        sk.average_precision_score(y_true, y_pred, average="micro")
    )
    assert metrics.macro(metrics.auroc, y_true, y_pred.astype(float), weight) == pytest.approx(
        sk.roc_auc_score(y_true, y_pred, average="macro", sample_weight=weight)
    )


@given(labelled())
def test_the_parts_of_the_brier_loss_sum_to_it(case):
    y_true, p, weight = case
    parts = metrics.brier_parts(y_true, p, weight)
    whole = parts.reliability - parts.resolution + parts.uncertainty + parts.within
    assert whole == pytest.approx(metrics.brier_loss(y_true, p, weight), abs=1e-12)
    assert min(parts.reliability, parts.resolution, parts.uncertainty) >= 0


@given(labelled())
def test_a_weight_is_a_record_that_came_up_so_often(case):
    """A bootstrap by weights must be a bootstrap by records."""
    y_true, p, weight = case
    if weight is None:
        return
    rows = np.repeat(np.arange(len(y_true)), weight.astype(int))
    for metric in (metrics.auroc, metrics.auprc, metrics.brier_loss, metrics.log_loss):
        assert metric(y_true, p, weight) == pytest.approx(metric(y_true[rows], p[rows]), abs=1e-9)


def test_calibration_error_is_nought_for_what_holds_and_the_gap_for_what_does_not():
    y_true = np.tile([True, False, False, False], 100)
    assert metrics.ece_loss(y_true, np.full(400, 0.25), n_bins=1) == pytest.approx(0)
    assert metrics.ece_loss(y_true, np.full(400, 0.75), n_bins=1) == pytest.approx(0.5)
    both, p = np.stack([y_true, ~y_true], axis=1), np.full((400, 2), 0.25)
    assert metrics.classwise_ece_loss(both, p, n_bins=1) == pytest.approx(0.25)
    bins = metrics.reliability(y_true, np.linspace(0, 1, 400), n_bins=10)
    assert bins.weight == pytest.approx(np.full(10, 0.1))


def test_what_the_records_cannot_tell_is_nan_and_never_a_number():
    y_true, p = np.ones(5, dtype=bool), np.linspace(0, 1, 5)
    assert np.isnan(metrics.auroc(y_true, p))
    assert np.isnan(metrics.partial_auroc(y_true, p, max_fpr=0.1))
    assert np.isnan(metrics.auprc(~y_true, p))
    assert np.isnan(metrics.false_positive_rate(y_true, y_true))
    assert np.isnan(metrics.macro(metrics.auroc, y_true[:, None], p[:, None]))
    assert np.isnan(metrics.macro_f1(~y_true[:, None], y_true[:, None]))


def every_figure(y_true: np.ndarray, p: np.ndarray, y_pred: np.ndarray, weight: np.ndarray | None) -> dict:
    """All metrics: y_true, p, y_pred are (n, n_labels), those of one label take the first."""
    parts = metrics.brier_parts(y_true[:, 0], p[:, 0], weight)
    ranking = (metrics.auroc, metrics.auprc, metrics.brier_loss, metrics.log_loss, metrics.ece_loss)
    decided = (metrics.f1, metrics.precision, metrics.recall, metrics.macro_f1, metrics.hamming_loss)
    return {
        **{f.__name__: f(y_true[:, 0], p[:, 0], weight) for f in ranking},
        **{f"macro {f.__name__}": metrics.macro(f, y_true, p, weight) for f in ranking},
        **{f"micro {f.__name__}": metrics.micro(f, y_true, p, weight) for f in ranking},
        **{f.__name__: f(y_true, y_pred, weight) for f in decided},
        "false positives": metrics.false_positive_rate(y_true[:, 0], y_pred[:, 0], weight),
        "partial": metrics.partial_auroc(y_true[:, 0], p[:, 0], weight, max_fpr=0.1),
        "classwise": metrics.classwise_ece_loss(y_true, p, weight),
        **{name: getattr(parts, name) for name in ("reliability", "resolution", "uncertainty", "within")},
    }


@given(st.integers(0, 2**32 - 1))
def test_many_draws_at_once_are_the_same_draws_one_by_one(seed):
    """Draws without one of the classes, or without any record of a label, are nan in both."""
    rng = np.random.default_rng(seed)
    y_true, p = rng.random((9, 3)) < 0.2, rng.integers(0, 5, (9, 3)) / 4
    weights = np.array([np.bincount(rng.integers(0, 9, 9), minlength=9) for _ in range(6)], dtype=float)
    together = every_figure(y_true, p, p > 0.5, weights)
    for i, weight in enumerate(weights):
        alone = every_figure(y_true, p, p > 0.5, weight)
        assert list(alone) == list(together)
        for name, found in alone.items():
            np.testing.assert_allclose(together[name][i], found, atol=1e-12, err_msg=name)


def mean_of(x: np.ndarray, draws: int) -> metrics.Interval:
    return metrics.bootstrap(lambda w: {"mean": x.mean() if w is None else w @ x / len(x)}, len(x), draws=draws)["mean"]


def test_intervals_hold_the_value_and_shrink_with_the_records():
    rng = np.random.default_rng(0)
    wide, narrow = (mean_of(rng.random(n), draws=200) for n in (30, 3000))
    for found in (wide, narrow):
        assert found.low < found.value < found.high
    assert narrow.high - narrow.low < (wide.high - wide.low) / 5


def test_the_same_seed_draws_the_same_records():
    x, y = np.random.default_rng(0).random((2, 50))
    ends = [mean_of(v, draws=50) for v in (x, x, y)]
    assert ends[0] == ends[1] != ends[2]


def test_too_few_records_give_no_interval():
    found = metrics.bootstrap(lambda w: {"m": 1.0}, 9, draws=20)["m"]
    assert found.value == 1 and np.isnan(found.low) and np.isnan(found.high)
