"""What a repair could undo at most, and what of a drift is noise: against brute force, and made-up scores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_studies import Made, made_study, made_table

from edgeguard.calibration.decide import Decisions
from edgeguard.calibration.fitting import fit_map
from edgeguard.quant.answer import mending
from edgeguard.quant.oracle import fewest_changed, noise_or_bias, oracle


def decided(y_pred: np.ndarray, odds: np.ndarray) -> Decisions:
    codes = np.zeros((len(odds), odds.shape[1] - 1), dtype=bool)
    return Decisions(
        tuple(f"l{i}" for i in range(odds.shape[1])), 1 / (1 + np.exp(-odds)), np.column_stack([y_pred, codes])
    )


@given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.integers(1, 8))
def test_the_best_threshold_is_the_best_of_all_thresholds(seed, n, distinct):
    rng = np.random.default_rng(seed)
    score, y_pred = rng.integers(0, distinct, n) / 2, rng.random(n) < 0.5
    every = [int((y_pred != (score >= t)).sum()) for t in (*np.unique(score), np.inf)]
    assert fewest_changed(y_pred, score) == min(every)


@given(st.integers(0, 2**32 - 1), st.integers(20, 120))
def test_no_monotone_map_undoes_more_than_the_oracle_says(seed, n):
    rng = np.random.default_rng(seed)
    odds = rng.normal(0, 2, n)
    reference = odds + rng.normal(0, 1, n) + 0.5 > 0
    found = oracle(reference, decided(odds > 0, odds[:, None]), odds[:, None], two_stage=True)
    assert found.changed == (reference != (odds > 0)).sum()
    for method in ("platt", "isotonic"):
        map_ = fit_map(method, odds, reference.astype(float))  # with the very answers
        for t in (0.3, 0.5, 0.7):
            assert found.changed - int((reference != (map_(odds) >= t)).sum()) <= found.threshold
    assert 0 <= found.threshold <= found.any_map <= found.changed
    assert found.linear is None or found.threshold <= found.linear <= found.any_map


def test_a_shift_is_undone_whole_and_noise_is_not():
    rng = np.random.default_rng(0)
    before = rng.normal(0, 2, 800)
    shifted, noisy = before - 0.7, before + rng.normal(0, 0.7, 800)
    found = [oracle(before > 0, decided(x > 0, x[:, None]), x[:, None], two_stage=True) for x in (shifted, noisy)]
    assert found[0].threshold == found[0].changed > 50
    assert found[1].threshold < 0.2 * found[1].changed
    assert found[1].any_map == found[1].changed  # no two scores are the same: some function gives each its own answer


def test_what_another_score_tells_a_linear_map_undoes_and_a_threshold_does_not():
    rng = np.random.default_rng(1)
    before, other = rng.normal(0, 2, (2, 800))
    odds = np.column_stack([before + other, other])
    found = oracle(before > 0, decided(odds[:, 0] > 0, odds), odds, two_stage=True)
    assert found.linear is not None
    assert found.linear_out_of_fold is not None
    assert found.linear > 0.95 * found.changed
    assert found.linear_out_of_fold > 0.9 * found.changed
    assert found.threshold < 0.1 * found.changed


def test_records_that_agree_in_every_score_cannot_be_told_apart():
    odds = np.array([[1.0], [1.0], [1.0], [-1.0]])
    found = oracle(np.array([True, False, False, False]), decided(odds[:, 0] > 0, odds), odds, two_stage=True)
    assert (found.changed, found.any_map, found.threshold) == (2, 1, 1)


def test_a_category_that_counts_alone_stays_unsafe_whatever_the_threshold_is():
    odds = np.array([[-1.0, 2.0], [-1.0, -2.0]])
    variant = Decisions(("unsafe", "S1"), 1 / (1 + np.exp(-odds)), odds > [0.0, 0.0])
    variant.y_pred[:, 0] |= variant.y_pred[:, 1]
    assert oracle(np.array([False, False]), variant, odds, two_stage=False).threshold == 0
    assert oracle(np.array([False, True]), variant, odds, two_stage=False).threshold == 1


@pytest.mark.parametrize(("slope", "noise"), [(0.5, 0.0), (0.0, 0.6), (0.3, 0.6)])
def test_the_change_is_taken_apart_into_what_follows_the_score_and_the_rest(slope, noise):
    rng = np.random.default_rng(2)
    before = rng.normal(0, 2, 4000)
    after = before + slope * before + rng.normal(0, 1, 4000) * noise
    found = noise_or_bias(before, after, 0.0, int(((before > 0) != (after > 0)).sum()))
    assert found is not None
    assert found.noise == pytest.approx(noise, abs=0.03)
    assert found.bias == pytest.approx(2 * slope, abs=0.06)
    assert found.by_noise == pytest.approx(
        ((before > 0) != (before + (after - before - slope * before) > 0)).sum(), rel=0.2
    )


def test_few_records_tell_no_noise():
    assert noise_or_bias(np.zeros(10), np.ones(10), 0.0, 0) is None
    margin = made_table(10).margin
    assert oracle(margin > 0, decided(margin > 0, margin[:, None]), margin[:, None], two_stage=True).linear is None


def test_the_report_says_it_in_one_sentence(tmp_path):
    report = made_study(tmp_path, [Made("q4_0", 92, 30, 30), Made("q8_0", 145)]).data
    noisy, same = (next(v for v in report["variants"] if v["name"] == name) for name in ("q4_0", "q8_0"))
    found = noisy["repair"]["marginal"]["oracle"]
    assert found["of"] == noisy["repair"]["marginal"]["told_on"]
    begins = f"q4_0: of {found['changed']} changed decisions a new threshold could undo "
    assert mending(noisy, "marginal").startswith(begins)

    def said(**figures: int) -> str:
        repair = noisy["repair"]["marginal"]
        own = {"changed": 23, "threshold": 4, "linear_out_of_fold": 2, **figures}
        return mending({"name": "v", "repair": {"marginal": {**repair, "oracle": own}}}, "marginal")

    begins = "v: of 23 changed decisions a new threshold could undo"
    assert said() == f"{begins} at most 4; the rest is noise of single records"
    assert said(threshold=0, linear_out_of_fold=0) == f"{begins} none; it is noise of single records"
    assert said(linear_out_of_fold=9) == (
        f"{begins} at most 4, a linear map of all scores 9; the rest is noise of single records"
    )
    assert said(threshold=23) == f"{begins} all"
    assert said(changed=1, threshold=1) == "v: of 1 changed decision a new threshold could undo it"
    assert mending(same, "marginal") == ""
    old = {**noisy, "repair": {"marginal": {k: v for k, v in noisy["repair"]["marginal"].items() if k != "oracle"}}}
    assert mending(old, "marginal") == ""
