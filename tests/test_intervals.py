"""Intervals hold the true value as often as they say, by simulation, and are those of the papers."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from scipy.stats import t as t_law
from sklearn.metrics import roc_auc_score

from edgeguard.calibration.decide import Decisions
from edgeguard.evaluation.drift import label_changes
from edgeguard.evaluation.figures import evaluate
from edgeguard.evaluation.intervals import ENOUGH, auprc_interval, auroc_interval, expanded, f1_interval, wilson
from edgeguard.evaluation.metrics import bootstrap


@given(st.integers(1, 500), st.data())
def test_wilson_is_scipy_s(n, data):
    hits = data.draw(st.integers(0, n))
    expected = binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson(hits, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_no_record_says_nothing_of_a_share():
    assert all(map(math.isnan, wilson(0, 0)))


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_f1_lies_in_its_interval(tps, fps, fns):
    if tps + fps + fns:
        low, high = f1_interval(tps, fps + fns)
        assert 0 <= low <= 2 * tps / (2 * tps + fps + fns) <= high <= 1


def coverage(true: float, found: list[tuple[float, float]]) -> float:
    return sum(low <= true <= high for low, high in found) / len(found)


@pytest.mark.parametrize(("p", "n"), [(0.5, 40), (0.9, 60), (0.98, 200)])
def test_an_interval_of_f1_holds_it_in_95_of_100_cases(p, n):
    """Records that are true, predicted or both: multinomial. Within three standard errors of the simulation."""
    rng, other = np.random.default_rng(0), (1 - p) / 2
    draws = rng.multinomial(n, [p, other, other], size=4000)
    found = [f1_interval(tps, fps + fns) for tps, fps, fns in draws]
    assert 0.93 <= coverage(2 * p / (2 * p + 2 * other), found) <= 0.98


@pytest.mark.parametrize(
    ("area", "n_true", "n_false", "spread"), [(0.85, 10, 50, 1), (0.95, 20, 200, 2), (0.97, 50, 50, 1)]
)
def test_an_interval_of_auroc_holds_it(area, n_true, n_false, spread):
    """92 to 100 of 100, where the bootstrap has 65 to 90."""
    rng, shift = np.random.default_rng(1), NormalDist().inv_cdf(area) * math.hypot(1, spread)
    y_true = np.arange(n_true + n_false) < n_true
    found = []
    for _ in range(600):
        scores = np.concatenate([rng.normal(shift, spread, n_true), rng.normal(0, 1, n_false)])
        found.append(auroc_interval(y_true, scores))
    assert coverage(area, found) >= 0.92


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), min_size=2, max_size=40))
def test_an_area_lies_in_its_interval_ties_included(pairs):
    y_true, score = np.array([t for t, _ in pairs]), np.array([float(s) for _, s in pairs])
    if 0 < y_true.sum() < len(y_true):
        low, high = auroc_interval(y_true, score)
        assert 0 <= low <= roc_auc_score(y_true, score) + 1e-9
        assert roc_auc_score(y_true, score) - 1e-9 <= high <= 1


def test_a_ranking_without_a_mistake_has_an_interval_with_a_width():
    y_true = np.arange(20) < 10
    assert auroc_interval(y_true, y_true.astype(float)) == pytest.approx((0.8002, 1), abs=1e-4)  # solved by hand
    assert auprc_interval(1.0, 10) == pytest.approx((0.722, 1), abs=1e-3)


def decided(p: list[float]) -> Decisions:
    y_prob = np.array([p, p]).T
    return Decisions(("unsafe", "S1"), y_prob, y_prob >= 0.5)


@pytest.mark.parametrize("n_true", [0, 1, ENOUGH - 1, ENOUGH])
def test_a_ranking_has_an_interval_from_ten_records_of_each_class_on_and_says_why_not_before(n_true):
    y_true = np.arange(60) < n_true
    p = np.where(y_true, 0.9, 0.1) + np.arange(60) / 1000
    found = evaluate(decided(list(p)), np.stack([y_true, y_true], axis=1), draws=50).labels["S1"].figures
    for name in ("auroc", "auprc", "brier", "log_loss"):
        figure = found[name]
        assert math.isnan(figure.low) == (n_true < ENOUGH) == bool(figure.why), name
    assert found["ece"].why  # 60 records are too few for 15 bins
    if n_true == 0:
        assert found["auroc"].why == found["recall"].why == "no record has it"
    else:
        assert found["recall"].low == pytest.approx(wilson(n_true, n_true)[0])
        assert found["recall"].why == ""


def test_categories_together_without_a_mistake_are_not_certain():
    y_true = np.arange(60) < 20
    p = np.where(y_true, 0.9, 0.1)
    overall = evaluate(decided(list(p)), np.stack([y_true, y_true], axis=1), draws=50).overall
    assert (overall["micro_f1"].low, overall["micro_f1"].high) == pytest.approx(wilson(20, 20))
    assert overall["hamming_loss"].high == pytest.approx(wilson(0, 60)[1])


@pytest.mark.parametrize(("alpha", "m", "t"), [(0.025, 80, 1.9905), (0.025, 10, 2.2622), (0.005, 40, 2.7079)])
def test_the_tail_of_a_bootstrap_is_as_far_out_as_student_s(alpha, m, t):
    expected = NormalDist().cdf(-t * (m / (m - 1)) ** 0.5)
    assert expanded(alpha, m) == pytest.approx(expected, rel=0.02)
    assert expanded(alpha, 3) == expanded(alpha, 10) < expanded(alpha, 1000) < alpha


def test_a_bootstrap_reaches_as_far_as_student_s_law_where_it_is_told_to():
    rng = np.random.default_rng(0)
    y = rng.normal(size=40)

    def mean(weight):
        w = np.ones((1, len(y))) if weight is None else weight
        means = w @ y / w.sum(axis=1)
        return {"mean": float(means[0]) if weight is None else means}

    plain = bootstrap(mean, len(y), draws=20_000)["mean"]
    moved = bootstrap(mean, len(y), draws=20_000, telling=12)["mean"]
    even = bootstrap(mean, len(y), draws=20_000, symmetric=["mean"])["mean"]
    half = t_law.ppf(0.975, 39) * y.std(ddof=1) / 40**0.5
    assert moved.low < plain.low < plain.high < moved.high
    assert (even.value - even.low, even.high - even.value) == (
        pytest.approx(half, rel=0.03),
        pytest.approx(half, rel=0.03),
    )


@pytest.mark.parametrize(("n", "told"), [(149, False), (150, True)])
def test_a_change_of_what_is_binned_has_an_interval_from_ten_records_a_bin_on(n, told):
    rng = np.random.default_rng(1)
    y_true, p, q = rng.random(n) < 0.5, rng.random(n), rng.random(n)
    found = label_changes(y_true, (p, p > 0.5), (q, q > 0.5), draws=50)
    assert [not np.isnan(found[name].low) for name in ("ece", "brier_resolution", "brier")] == [told, told, True]
