"""Drift between two models' scores: nought for the same, parts that sum to the whole, flips counted by hand."""

from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy, spearmanr

from edgeguard.calibration.maps import logit, sigmoid
from edgeguard.errors import InputError
from edgeguard.evaluation import drift
from edgeguard.evaluation.table import ScoreTable, take
from edgeguard.rows.record import Failure

LABELS = ("unsafe", "S1", "S2", "S3")


def table(seed: int = 0, n: int = 60, noise: float = 0.0) -> ScoreTable:
    """Made-up scores; `noise` in nats moves them, as another quantization would."""
    rng, other = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    codes = rng.random((n, 3)) < 0.3
    truth = np.column_stack([codes.any(axis=1), codes])
    margin = np.where(truth[:, 0], 2.0, -2.0) + rng.normal(0, 2, n) + noise * other.normal(0, 1, n)
    off = 0.01 * rng.random(n)
    unsafe = sigmoid(margin) * (1 - off)
    odds = np.where(codes, 1.0, -3.0) + rng.normal(0, 1.5, (n, 3)) + noise * other.normal(0, 1, (n, 3))
    scores = sigmoid(odds) * unsafe[:, None]
    first = scores / np.maximum(1, scores.sum(axis=1) / unsafe)[:, None]
    scores = np.column_stack([unsafe, scores])
    return ScoreTable(
        labels=LABELS,
        ids=tuple(f"r{i}" for i in range(n)),
        places=np.arange(n),
        truth=truth,
        margin=margin,
        scores=dict.fromkeys(("conditional", "joint", "marginal"), scores),
        first=first,
        off=off,
    )


def test_the_same_scores_have_no_drift_at_all():
    """Scoring the reference against itself must give exactly nought."""
    one = table()
    p, odds = one.scores["marginal"][:, 1], one.log_odds("marginal")[:, 1]
    found = drift.shift(p, p, odds, odds)
    assert found == replace(found, mean=0, se=0, rms=0, p50=0, p90=0, p99=0, max=0, odds_mean=0, odds_se=0, odds_rms=0)
    assert (found.spearman, found.distinct) == (pytest.approx(1), 1)
    for rows in (drift.verdicts(one), drift.first_labels(one)):
        assert (drift.kl_divergence(rows, rows) == 0).all()
        assert (drift.total_variation(rows, rows) == 0).all()
    said = p >= 0.3
    assert drift.flips(said, said).rate == 0
    assert one.truth is not None
    changes = drift.label_changes(one.truth[:, 1], (p, said), (p, said), draws=20)
    assert all(c.value == 0 for c in changes.values() if not np.isnan(c.value))
    assert all(c.low == c.high == 0 for c in changes.values() if not np.isnan(c.low))
    assert not np.isnan(changes["auroc"].low)
    parts = drift.harm(one.truth[:, 1], (p, one.off), (p, one.off), draws=20)
    assert all(part.value == 0 for part in parts.values())


@given(st.integers(0, 1000), st.floats(0, 3))
def test_the_parts_of_the_harm_sum_to_it(seed, noise):
    one, two = table(seed), table(seed, noise=noise)
    assert one.truth is not None
    found = drift.harm(one.truth[:, 0], (one.unsafe, one.off), (two.unsafe, two.off), draws=2)
    assert sum(found[part].value for part in drift.PARTS) == pytest.approx(found["total"].value, abs=1e-12)


def test_each_part_of_the_harm_shows_where_it_is_the_cause():
    n = 4000
    one = table(n=n)
    assert one.truth is not None
    truth, p, off = one.truth[:, 0], one.unsafe, np.zeros(n)

    def largest(q: np.ndarray, off_q: np.ndarray) -> str:
        found = drift.harm(truth, (p, off), (q, off_q), draws=2)
        return max(drift.PARTS, key=lambda part: found[part].value)

    assert largest(sigmoid(2 * logit(p) + 3), off) == "calibration"  # every order is kept
    assert largest(p * 0.5, np.full(n, 0.5)) == "emission"
    assert largest(np.where(p > 0.5, 0.9, 0.1), off) == "resolution"  # two scores are left
    assert largest(sigmoid(logit(p) + np.random.default_rng(0).normal(0, 4, n)), off) == "discrimination"


@given(st.integers(0, 1000))
def test_distances_and_rank_correlation_agree_with_scipy(seed):
    rng = np.random.default_rng(seed)
    p, q = rng.dirichlet(np.ones(4), 5), rng.dirichlet(np.ones(4), 5)
    np.testing.assert_allclose(drift.kl_divergence(p, q), entropy(p, q, axis=1), rtol=1e-9)
    x, y = np.round(rng.random((2, 30)), 1)
    assert drift.spearman(x, y) == pytest.approx(spearmanr(x, y).statistic, nan_ok=True)
    assert np.isnan(drift.spearman(x, np.ones(30)))


def test_flips_are_counted_by_side_and_by_margin():
    said = np.array([True, True, False, False, False])
    now = np.array([True, False, True, False, False])
    found = drift.flips(said, now)
    assert (found.rate, found.to_safe, found.to_unsafe) == (0.4, 0.2, 0.2)
    odds = np.array([3.0, 0.1, -0.3, -5.0, -1.5])
    bins = drift.flips_by_margin(said, now, odds, 0.5)
    assert [b.n for _, _, b in bins] == [1, 1, 0, 1, 1, 1]
    assert [b.rate for _, _, b in bins if b.n] == [1, 1, 0, 0, 0]
    assert sum(b.n for _, _, b in bins) == 5


@pytest.mark.parametrize(("k", "n"), [(0, 10), (1, 10), (5, 10), (10, 10), (3, 1000)])
def test_the_upper_bound_of_a_rate_is_where_the_rate_is_unlikely(k, n):
    """Wilson's: the share p from which k of n lies 1.96 standard errors below."""
    p = drift.wilson_high(k, n)
    z = NormalDist().inv_cdf(0.975)
    assert p == pytest.approx(1) if k == n else (p - k / n) == pytest.approx(z * np.sqrt(p * (1 - p) / n), rel=1e-9)
    assert drift.wilson_high(0, 0) == 1


def test_label_sets_agree_by_the_hand_count():
    said = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0]], dtype=bool)
    now = np.array([[1, 0, 0], [1, 0, 1], [0, 0, 0]], dtype=bool)
    found = drift.set_agreement(said, now)
    assert (found.same, found.jaccard) == (pytest.approx(2 / 3), pytest.approx((1 + 1 / 3 + 1) / 3))


def test_tables_are_aligned_by_place_and_failed_records_are_left_out_of_both():
    one, two = table(n=10), table(n=10, noise=1)
    short = take(two, np.array([i for i in range(10) if i != 4]))
    short = replace(short, failed=(Failure("r4", "context_overflow", "too long"),))
    a, b = drift.aligned(one, short)
    assert a.ids == b.ids == tuple(f"r{i}" for i in range(10) if i != 4)
    with pytest.raises(InputError, match="the reference has 10 records, the variant 9"):
        drift.aligned(one, replace(short, failed=()))
    other = replace(two, ids=(*two.ids[:3], "x", *two.ids[4:]))
    with pytest.raises(InputError, match="record 4 has id 'r3' in the reference and 'x' in the variant"):
        drift.aligned(one, other)
    with pytest.raises(InputError, match="the taxonomies differ"):
        drift.aligned(one, replace(two, labels=("unsafe", "S1", "S2", "S4")))


def test_a_split_has_every_record_once():
    left, right = drift.split(11, share=0.3)
    assert sorted([*left, *right]) == list(range(11))
    assert len(left) == 3
