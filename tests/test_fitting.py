"""Fits find what made the data, never turn a ranking around, and are careful with few records."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from edgeguard.calibration.fitting import (
    METHODS,
    choose_method,
    cross_validated,
    fit_label,
    fit_labels,
    fit_map,
)
from edgeguard.calibration.maps import logit, sigmoid
from edgeguard.calibration.thresholds import Goal, choose_threshold
from edgeguard.errors import CalibrationError
from edgeguard.evaluation.metrics import f1, false_positive_rate, log_loss, precision, recall


def made(slope: float, intercept: float, n: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds, and truth that follows σ(slope x + intercept)."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 3, n)
    return x, rng.random(n) < sigmoid(slope * x + intercept)


def test_platt_and_temperature_find_the_map_that_made_the_data():
    x, truth = made(0.5, -1.0, 40_000)
    found = fit_map("platt", x, truth).parameters
    assert found["slope"] == pytest.approx(0.5, abs=0.03)
    assert found["intercept"] == pytest.approx(-1.0, abs=0.06)
    x, truth = made(0.5, 0.0, 40_000)
    assert fit_map("temperature", x, truth).parameters["temperature"] == pytest.approx(2.0, abs=0.1)


def test_platt_without_a_prior_is_logistic_regression():
    x, truth = made(0.7, 0.4, 500)
    found = fit_map("platt", x, truth, prior=0.0).parameters
    theirs = LogisticRegression(C=1e9, tol=1e-10).fit(x[:, None], truth)
    assert found["slope"] == pytest.approx(theirs.coef_[0, 0], rel=1e-4)
    assert found["intercept"] == pytest.approx(theirs.intercept_[0], rel=1e-3)


def test_isotonic_agrees_with_scikit_learn_between_its_ends():
    x, truth = made(0.5, 0.2, 300)
    theirs = IsotonicRegression(out_of_bounds="clip").fit(x, truth.astype(float))
    least = 1 / 302
    np.testing.assert_allclose(
        fit_map("isotonic", x, truth)(x), np.clip(theirs.predict(x), least, 1 - least), atol=1e-12
    )


@given(st.integers(0, 2**32 - 1), st.integers(12, 60), st.sampled_from(METHODS))
def test_a_fitted_map_never_turns_two_scores_around(seed, n, method):
    rng = np.random.default_rng(seed)
    x = np.round(rng.normal(0, 4, n), 1)
    truth = rng.random(n) < sigmoid(x)
    try:
        map_ = fit_map(method, x, truth.astype(float))
    except CalibrationError:
        return
    p = map_(np.sort(x))
    assert (np.diff(p) >= -1e-15).all()
    assert ((p >= 0) & (p <= 1)).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_fit_lowers_the_loss_of_overconfident_scores(method):
    x, truth = made(0.4, -0.5)
    before, after = log_loss(truth, sigmoid(x)), log_loss(truth, fit_map(method, x, truth)(x))
    assert after < before - 0.05


@pytest.mark.parametrize("method", METHODS)
def test_a_map_can_be_fitted_to_another_model_s_probabilities(method):
    """Repair without labels: the target is soft, and the map gives it back."""
    x, _ = made(1.0, 0.0, 500)
    target = sigmoid(0.5 * x) if method == "temperature" else sigmoid(0.5 * x + 0.3)
    np.testing.assert_allclose(fit_map(method, x, target)(x), target, atol=0.01)


def test_few_positives_move_a_map_little():
    x = np.array([-4.0, -3.0, -2.0, -1.0, 0.0, 2.0])
    truth = x > 1
    parameters = fit_map("platt", x, truth).parameters
    assert 0.5 < parameters["slope"] < 3
    assert abs(parameters["intercept"]) < 1.5


@pytest.mark.parametrize("method", ["temperature", "platt", "beta"])
def test_scores_that_rank_the_wrong_way_are_refused(method):
    x, truth = made(-2.0, 0.0)
    with pytest.raises(CalibrationError, match="fall where the truth rises"):
        fit_map(method, x, truth)


def test_the_simplest_method_that_does_is_chosen():
    assert choose_method(*made(1.0, 0.0)) is None
    assert choose_method(*made(0.4, 0.0)) == "temperature"
    assert choose_method(*made(0.6, -2.0)) == "platt"


def test_cross_validation_never_sees_the_record_it_judges():
    """An isotonic map remembers its records: on themselves their loss is far too small, out of fold it is not."""
    x, truth = made(0.05, 0.0, 60)
    own = log_loss(truth, fit_map("isotonic", x, truth)(x))
    assert cross_validated(x, truth)["isotonic"].mean() > own + 0.05
    with pytest.raises(CalibrationError, match="2 records are true"):
        cross_validated(x[:10], np.arange(10) < 2)


goals = st.one_of(
    st.just(Goal("f1")),
    st.builds(Goal, st.sampled_from(["precision", "recall", "fpr"]), st.floats(0, 1)),
    st.builds(Goal, st.just("cost"), st.floats(0.1, 20)),
)


@given(st.integers(0, 2**32 - 1), st.integers(2, 40), goals)
def test_a_threshold_gives_what_it_says_and_no_other_serves_better(seed, n, goal):
    """Against trying every threshold there is."""
    rng = np.random.default_rng(seed)
    y_prob, y_true = np.round(rng.random(n), 1), rng.random(n) < 0.5
    y_true[:2] = True, False
    found = choose_threshold(y_true, y_prob, goal)
    y_pred = y_prob >= found.value
    assert found.recall == pytest.approx(recall(y_true, y_pred))
    assert found.fpr == pytest.approx(false_positive_rate(y_true, y_pred))
    assert found.f1 == pytest.approx(f1(y_true, y_pred))
    if y_pred.any():
        assert found.precision == pytest.approx(precision(y_true, y_pred))
    others = [y_prob >= t for t in (*np.unique(y_prob), 1.0)]  # a threshold lies in [0, 1]
    if goal.name == "f1":
        assert found.f1 == pytest.approx(max(f1(y_true, o) for o in others))
    elif goal.name == "cost":

        def cost(o):
            return (o & ~y_true).sum() + goal.value * (y_true & ~o).sum()

        assert cost(y_pred) == pytest.approx(min(map(cost, others)))
    elif goal.name == "recall":
        assert found.recall >= goal.value
        enough = [o for o in others if recall(y_true, o) >= goal.value]
        assert y_pred.sum() == min(o.sum() for o in enough)
    else:

        def good(o):
            reached = (
                precision(y_true, o) >= goal.value
                if goal.name == "precision"
                else (false_positive_rate(y_true, o) <= goal.value)
            )
            return reached and (o & y_true).any()

        assert found.met == any(map(good, others))
        if found.met:
            assert good(y_pred)
            assert found.recall == pytest.approx(max(recall(y_true, o) for o in others if good(o)))


@pytest.mark.parametrize(
    ("name", "value"), [("magic", 0), ("precision", 1.1), ("fpr", -0.1), ("cost", 0), ("cost", np.inf)]
)
def test_a_goal_out_of_range_is_refused(name, value):
    with pytest.raises(ValueError, match=name):
        Goal(name, value)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.1, 0.5]), goals)
def test_no_threshold_reaches_down_to_more_safe_records_than_allowed(seed, rate, goal):
    rng = np.random.default_rng(seed)
    x, truth, safe = np.round(rng.normal(0, 3, 40), 1), rng.random(40) < 0.3, rng.random(40) < 0.4
    truth[:2], safe = (True, False), safe & ~truth
    p = sigmoid(x)
    found = fit_label("S1", x, p, truth, method="none", goal=goal, safe=safe, safe_rate=rate).threshold
    assert found is not None
    assert (p[safe] >= found.value).sum() <= rate * safe.sum()


@given(st.integers(0, 2**32 - 1), st.sampled_from([Goal("f1"), Goal("precision", 0.8)]))
def test_in_two_stages_safe_records_do_not_move_a_category_s_threshold(seed, goal):
    """It is chosen on the unsafe ones: which others the verdict lets through is another matter."""
    rng = np.random.default_rng(seed)
    y_true = np.column_stack([rng.random(60) < 0.6, np.zeros(60, bool)])
    y_true[:, 1] = y_true[:, 0] & (rng.random(60) < 0.5)
    y_true[:2] = [[True, True], [True, False]]
    scores = np.clip(rng.random((60, 2)) + 0.3 * y_true, 0.01, 0.99)
    moved = scores.copy()
    moved[~y_true[:, 0], 1] = rng.random((~y_true[:, 0]).sum())

    def threshold(p):
        rule = {"method": "none", "goals": {"": goal}, "two_stage": True}
        verdict, category = fit_labels(["unsafe", "S1"], logit(p), p, y_true, **rule)
        assert verdict.threshold == choose_threshold(y_true[:, 0], p[:, 0], goal)
        return category.threshold

    inside = y_true[:, 0]
    assert threshold(scores) == threshold(moved) == choose_threshold(y_true[inside, 1], scores[inside, 1], goal)


def test_in_two_stages_a_category_that_all_unsafe_records_have_gets_no_threshold():
    y_true = np.repeat([[True, True], [False, False]], 10, axis=0)
    p = np.where(y_true, 0.9, 0.1) + np.arange(20)[:, None] / 1000
    _, category = fit_labels(["unsafe", "S1"], logit(p), p, y_true, method="platt", two_stage=True)
    assert category.threshold is None and category.map is not None


def test_logit_is_what_fits_take():
    assert fit_map("platt", logit(np.array([0.0, 0.2, 0.9, 1.0])), np.array([0, 0, 1, 1.0])).method == "platt"


@given(st.integers(0, 2**32 - 1), st.sampled_from(METHODS), st.sampled_from(["f1", "fpr", "precision", "recall"]))
def test_a_weight_of_k_is_k_records(seed, method, goal):
    rng = np.random.default_rng(seed)
    x, weight = np.round(rng.normal(0, 2, 40), 1), rng.integers(1, 4, 40)
    truth = rng.random(40) < sigmoid(0.8 * x)
    truth[:2] = [False, True]
    rows = np.repeat(np.arange(40), weight)
    aim = Goal(goal, 0.0 if goal == "f1" else 0.3)
    chosen = choose_threshold(truth[rows], sigmoid(x)[rows], aim)
    assert choose_threshold(truth, sigmoid(x), aim, weight=weight.astype(float)) == chosen
    try:
        repeated = fit_map(method, x[rows], truth[rows])
    except CalibrationError:
        return
    weighted = fit_map(method, x, truth, weight=weight.astype(float))
    if method == "isotonic":  # but for its ends: weights make n records no more than they are
        inside = (repeated(x) > 0.05) & (repeated(x) < 0.95)
        np.testing.assert_allclose(weighted(x)[inside], repeated(x)[inside], atol=1e-9)
    else:
        np.testing.assert_allclose(weighted(x), repeated(x), atol=1e-7)


def test_weights_make_the_mixture_that_a_label_is_fitted_on():
    """A source of many records and one of few, other in how they are labelled: with equal weight both count."""
    x, truth = made(1.0, 0.0, 2000)
    x, truth = np.concatenate([x, x[:200]]), np.concatenate([truth, np.zeros(200, dtype=bool)])
    weight = 1100 * np.repeat([1 / 2000, 1 / 200], [2000, 200])
    kinds = {"method": "platt", "goal": Goal("f1")}
    plain, even = (fit_label("unsafe", x, sigmoid(x), truth, weight=w, **kinds) for w in (None, weight))
    assert plain.prior == pytest.approx(truth.mean(), abs=0.01)
    assert even.prior == pytest.approx(truth[:2000].mean() / 2, abs=0.01)
    assert float(weight @ even.map(x)) / 2200 == pytest.approx(even.prior, abs=0.01)


def test_a_map_of_all_records_stands_where_those_of_a_fold_would_fall():
    """Hardly rising scores: some four fifths of the records fall, and the label had no calibration at all."""
    for seed in range(40):
        x, truth = made(0.05, 0.0, 40, seed)
        fit = fit_label("S1", x, sigmoid(x), truth, method="platt", goal=Goal("f1"))
        if fit.map is not None and np.isnan(fit.loss_after):
            assert fit.threshold is not None and fit.reason == ""
            return
    raise AssertionError("no seed has such a fold: the test says nothing")
