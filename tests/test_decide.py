"""The one decision: a batch is its rows, bounds hold what they bound, a category's flag is a flag."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeguard.calibration.decide import decide, predict
from edgeguard.calibration.maps import Calibration, Map
from edgeguard.calibration.thresholds import Thresholds, thresholds_for

LABELS = ("unsafe", "S1", "S2")
CALIBRATION = Calibration(
    "guard",
    "profile",
    "marginal",
    "0" * 64,
    maps={"unsafe": Map("platt", {"slope": 0.7, "intercept": -0.5}), "S2": Map("beta", {"a": 0.5, "b": 2.0, "c": 0.1})},
    thresholds={"S1": 0.2},
)

IN_TWO_STAGES = replace(CALIBRATION, thresholds={"unsafe": 0.3, "S1": 0.2, "S2": 0.1}, two_stage=True)


def made(seed: int, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """margin, scores, and bounds that hold them: (n,), (n, 3), (n, 4, 2) with P(safe) behind the labels."""
    rng = np.random.default_rng(seed)
    mass = rng.dirichlet(np.ones(3), n)  # unsafe, safe, and what was not looked into
    unsafe, safe, left = mass.T
    scores = np.column_stack([unsafe, unsafe * rng.random(n), unsafe * rng.random(n)])
    lower = np.column_stack([scores, safe])
    return np.log(unsafe) - np.log(safe), scores, np.stack([lower, np.minimum(1, lower + left[:, None])], axis=2)


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.sampled_from([None, CALIBRATION, IN_TWO_STAGES]))
def test_a_batch_of_records_is_decided_as_each_of_them_alone(seed, n, calibration):
    """`score` decides one record, `evaluate` a file: they must not differ by a bit."""
    margin, scores, bounds = made(seed, n)
    rule = {"labels": LABELS, "calibration": calibration, "thresholds": thresholds_for(calibration)}
    whole = decide(margin, scores, bounds=bounds, **rule)
    for i in range(n):
        alone = decide(margin[i : i + 1], scores[i : i + 1], bounds=bounds[i : i + 1], **rule)
        np.testing.assert_array_equal(alone.y_prob[0], whole.y_prob[i])
        np.testing.assert_array_equal(alone.y_pred[0], whole.y_pred[i])
        np.testing.assert_array_equal(alone.bounds[0], whole.bounds[i])


@given(st.integers(0, 2**32 - 1), st.sampled_from([None, CALIBRATION]))
def test_bounds_hold_the_probability_before_and_behind_a_calibration(seed, calibration):
    margin, scores, bounds = made(seed, 20)
    found = decide(margin, scores, labels=LABELS, calibration=calibration, thresholds=Thresholds(), bounds=bounds)
    assert found.bounds.shape == (20, 3, 2)
    assert (found.bounds[..., 0] <= found.y_prob).all() and (found.y_prob <= found.bounds[..., 1]).all()


def test_a_record_is_unsafe_where_only_a_category_is_over_its_threshold():
    y_prob = np.array([[0.1, 0.9, 0.0], [0.1, 0.1, 0.1], [0.6, 0.1, 0.1], [0.5, 0.5, 0.2]])
    expected = [[True, True, False], [False, False, False], [True, False, False], [True, True, False]]
    np.testing.assert_array_equal(predict(y_prob, np.array([0.5, 0.5, 0.5])), expected)


@given(st.integers(0, 2**32 - 1))
def test_in_two_stages_the_verdict_decides_alone_and_a_category_only_behind_it(seed):
    margin, scores, _ = made(seed, 20)
    rule = {"labels": LABELS, "calibration": IN_TWO_STAGES}
    two = decide(margin, scores, thresholds=thresholds_for(IN_TWO_STAGES), **rule)
    one = decide(margin, scores, thresholds=Thresholds(labels=IN_TWO_STAGES.thresholds), **rule)
    np.testing.assert_array_equal(two.y_prob, one.y_prob)  # the stages are of the decision alone
    np.testing.assert_array_equal(two.y_pred[:, 0], two.y_prob[:, 0] >= 0.3)
    assert not two.y_pred[~two.y_pred[:, 0], 1:].any()
    flagged = two.y_pred[:, 0]
    np.testing.assert_array_equal(two.y_pred[flagged, 1:], one.y_pred[flagged, 1:])
    assert (two.y_pred <= one.y_pred).all()


def test_numbers_given_in_place_of_a_calibration_s_leave_its_stages():
    for given_ in ({"S1": 0.9}, {"default": 0.3}):
        assert thresholds_for(IN_TWO_STAGES, given_).two_stage
    assert not thresholds_for(IN_TWO_STAGES, Thresholds(0.4)).two_stage
    assert not thresholds_for(CALIBRATION).two_stage


@pytest.mark.parametrize(
    ("calibration", "given_", "expected"),
    [
        (None, None, [0.5, 0.5, 0.5]),
        (CALIBRATION, None, [0.5, 0.2, 0.5]),
        (CALIBRATION, {"S2": 0.9}, [0.5, 0.2, 0.9]),
        (CALIBRATION, {"default": 0.3}, [0.3, 0.3, 0.3]),
        (CALIBRATION, Thresholds(0.4), [0.4, 0.4, 0.4]),
    ],
)
def test_given_thresholds_stand_before_the_calibration_s_and_those_before_one_half(calibration, given_, expected):
    assert thresholds_for(calibration, given_).array(LABELS).tolist() == expected
