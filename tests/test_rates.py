"""Bounds of a rate and decisions on a limit: against sums of binomials, and over all paths that looks can take."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeguard.evaluation import rates
from edgeguard.evaluation.rates import Design, bounds, decided_at_end, design, exact_high, exact_low, fewest
from edgeguard.quant.choices import Choices
from edgeguard.quant.decision import Decision, Look, decide, goes_on, looks_of

law = settings(deadline=None)


def cdf(k: int, n: int, p: float) -> float:
    return math.fsum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))


@law
@given(st.integers(1, 60), st.data(), st.sampled_from([0.05, 0.025, 0.2]))
def test_the_exact_bounds_are_where_a_tail_has_its_share(n, data, alpha):
    k = data.draw(st.integers(0, n))
    high, low = exact_high(k, n, alpha), exact_low(k, n, alpha)
    assert low <= k / n <= high
    assert high == 1 if k == n else cdf(k, n, high) == pytest.approx(alpha, rel=1e-9)
    assert low == 0 if k == 0 else 1 - cdf(k - 1, n, low) == pytest.approx(alpha, rel=1e-9)


@law
@given(st.integers(1, 100_000))
def test_none_of_n_has_the_bound_of_the_rule_of_three(n):
    assert exact_high(0, n) == pytest.approx(1 - 0.05 ** (1 / n), rel=1e-9)


@pytest.mark.parametrize(("limit", "n"), [(0.05, 59), (0.02, 149), (0.01, 299), (0.0, None), (1.0, 1)])
def test_as_few_records_can_decide_on_a_limit(limit, n):
    assert fewest(limit) == n
    if n and n > 1:
        assert exact_high(0, n) <= limit < exact_high(0, n - 1)


@law
@given(st.integers(0, 40), st.integers(0, 400), st.floats(0.001, 0.99))
def test_a_wager_wins_nothing_on_average_at_the_rate_and_loses_above_it(k, more, rate):
    """The martingale: what it is worth after one more record, over what it is worth now."""
    n = k + more
    now, up, down = (rates.evidence_below(a, b, rate) for a, b in ((k, n), (k + 1, n + 1), (k, n + 1)))

    def average(p: float) -> float:
        return p * math.exp(up - now) + (1 - p) * math.exp(down - now)

    assert average(rate) == pytest.approx(1, rel=1e-9)
    assert average((1 + rate) / 2) <= 1 + 1e-12
    assert rates.evidence_below(k, n, rate) <= rates.evidence_below(k, n, rate + (1 - rate) / 10) + 1e-9


@law
@given(st.integers(0, 50), st.integers(0, 500))
def test_a_watched_bound_is_wider_than_an_exact_one(k, more):
    n = k + more
    assert 0 <= rates.watched_low(k, n) <= rates.watched_high(k, n) <= 1
    if n:
        assert rates.watched_high(k, n) >= exact_high(k, n) - 1e-9
        assert rates.watched_low(k, n) <= exact_low(k, n) + 1e-9


def ever_over(rate: float, limit: float, n: int, alpha: float) -> float:
    """The probability, summed over all paths of n records, that a wager against `limit` ever passes 1/alpha."""
    alive, over = np.array([1.0]), 0.0
    for seen in range(1, n + 1):
        alive = np.append(alive * (1 - rate), 0) + np.append(0, alive * rate)
        passed = np.array([rates.evidence_below(k, seen, limit) >= -math.log(alpha) for k in range(len(alive))])
        over += alive[passed].sum()
        alive[passed] = 0
    return over


@pytest.mark.parametrize("limit", [0.05, 0.3])
def test_looking_after_every_record_errs_as_seldom_as_it_says(limit):
    assert ever_over(limit, limit, 150, 0.05) <= 0.05
    assert ever_over(limit / 4, limit, 150, 0.05) > 0.2  # and finds what is there


def outcomes(rate: float, limit: float, n: int) -> dict[str, float]:
    """Verdict → its probability in a study of n records, and "records": how many it takes on average. By all paths."""
    choices, found = Choices(max_flip_rate=limit), {"keeps": 0.0, "breaks": 0.0, "too_few": 0.0, "records": 0.0}
    alive, before = np.array([1.0]), 0
    for here in looks_of(n):
        step = np.array([math.comb(here - before, i) * rate**i * (1 - rate) ** (here - before - i)
                         for i in range(here - before + 1)])  # fmt: skip
        alive, before = np.convolve(alive, step), here
        for k in np.flatnonzero(alive > 1e-15):
            # Of the looks only this one counts: bounds that an earlier one had were not enough, or it had ended there.
            decision = decide([Look(here, int(k), 0, here == n)], n, choices, how_many=False)
            if decision.verdict != "too_few" or not goes_on(decision, n, choices):
                found[decision.verdict] += alive[k]
                found["records"] += alive[k] * here
                alive[k] = 0
    return found


@pytest.mark.parametrize(("n", "limit"), [(60, 0.05), (400, 0.05), (500, 0.02)])
def test_a_study_errs_at_most_in_one_of_twenty(n, limit):
    outside, inside = outcomes(limit * 1.0001, limit, n), outcomes(limit, limit, n)
    assert outside["keeps"] <= 0.05
    assert inside["breaks"] <= 0.05
    for found in (outside, inside):
        assert sum(found[verdict] for verdict in ("keeps", "breaks", "too_few")) == pytest.approx(1)


def test_a_study_ends_early_where_the_answer_is_plain():
    assert outcomes(0.2, 0.05, 1000)["records"] < 150
    good = outcomes(0.002, 0.05, 1000)
    assert good["keeps"] > 0.999 and good["records"] < 200


def test_simulated_studies_err_as_seldom_as_all_paths_say():
    rng, choices, limit, n = np.random.default_rng(0), Choices(max_flip_rate=0.05), 0.05, 400
    verdicts = []
    for _ in range(200):
        total = np.cumsum(rng.random(n) < limit)
        looks: list[Look] = []
        for here in looks_of(n):
            looks.append(Look(here, int(total[here - 1]), 0, here == n))
            decision = decide(looks, n, choices, how_many=False)
            if not goes_on(decision, n, choices):
                break
        verdicts.append(decision.verdict)
    expected = outcomes(limit, limit, n)
    for verdict in ("keeps", "breaks", "too_few"):
        p = expected[verdict]
        assert abs(verdicts.count(verdict) / 200 - p) <= 4 * math.sqrt(p * (1 - p) / 200) + 0.01


@law
@given(st.integers(1, 3000), st.sampled_from([0.01, 0.02, 0.05, 0.2]))
def test_a_design_spends_no_more_than_it_has_and_nothing_on_looks_that_cannot_tell(n, limit):
    made = design(n, limit)
    assert made.watching + made.at_end == pytest.approx(0.05)
    if fewest(limit) <= n:  # what the plan says can be decided, the end decides
        assert decided_at_end(0, n, limit, made) is True
    looks = looks_of(n)
    assert looks[-1] == n and all(a < b for a, b in pairwise(looks)) and looks[0] == min(n, 100)


@law
@given(st.integers(1, 300), st.data(), st.sampled_from([0.02, 0.05]), st.sampled_from([0.05, 0.025]))
def test_what_is_decided_at_the_end_is_what_the_exact_bounds_say(n, data, limit, alpha):
    k = data.draw(st.integers(0, n))
    found = decided_at_end(k, n, limit, Design(n, 0, alpha))
    high, low = exact_high(k, n, alpha), exact_low(k, n, alpha)
    if min(abs(high - limit), abs(low - limit)) > 1e-9:
        assert found is (True if high <= limit else False if low > limit else None)


@law
@given(st.integers(1, 400), st.sampled_from([0.01, 0.05, 0.3]), st.sampled_from([0.05, 0.025]))
def test_the_ends_are_where_the_verdict_turns(n, limit, alpha):
    made = Design(n, 0, alpha)
    most, least = rates.ends(n, limit, made)
    found = [decided_at_end(k, n, limit, made) for k in range(n + 1)]
    assert found == [True] * (most + 1) + [None] * (least - most - 1) + [False] * (n + 1 - least)


@law
@given(st.integers(0, 20), st.integers(0, 200), st.integers(0, 60), st.data())
def test_what_is_foreseen_is_the_average_over_what_the_rate_may_be(k, more_seen, more, data):
    """Of two steps: one record, then the others; and all that can come has the probability 1."""
    n, upto = k + more_seen, data.draw(st.integers(0, more))
    assert rates.foreseen(k, n, more, more) == 1
    p = (k + 0.5) / (n + 1)
    if more:
        stays, comes = rates.foreseen(k, n + 1, more - 1, upto), rates.foreseen(k + 1, n + 1, more - 1, upto - 1)
        assert rates.foreseen(k, n, more, upto) == pytest.approx((1 - p) * stays + p * comes, abs=1e-9)


def decision(changed: int, n: int, limit: float) -> Decision:
    return decide([Look(n, changed, 0, True)], n, Choices(max_flip_rate=limit, watch=False))


@pytest.mark.parametrize(("changed", "n", "limit"), [(0, 50, 0.05), (1, 60, 0.05), (5, 300, 0.02), (24, 400, 0.05)])
def test_the_number_of_records_that_would_do_does(changed, n, limit):
    found = decision(changed, n, limit)
    assert found.verdict == "too_few" and found.needed is not None and found.needed > n
    more = decision(round(changed * found.needed / n), found.needed, limit)
    assert more.verdict == ("keeps" if changed / n < limit else "breaks")


def test_no_number_of_records_decides_on_a_rate_that_is_the_limit():
    assert decision(5, 100, 0.05).needed is None


def test_bounds_never_widen_and_hold_one_design():
    looks = [(0, 100), (1, 200), (1, 400)]
    made = Design(1000, 0.025, 0.025)
    found = [bounds(looks[:i], made) for i in range(4)]
    assert found[0] == rates.Bounds(0, 1)
    assert all(b.high <= a.high and b.low >= a.low for a, b in pairwise(found))
    assert bounds(looks, Design(1000, 0, 0.05)) == rates.Bounds(0, 1)  # nobody looks on the way


def test_how_many_would_do_is_told_of_the_rate_where_it_ended_the_scoring_before_the_loss_was_asked():
    choices = Choices(max_flip_rate=0.02, max_auprc_loss=0.01)
    stopped = decide([Look(100, 1, 0, False)], 150, choices)
    assert stopped.verdict == "too_few"
    assert stopped.needed == decide([Look(100, 1, 0, False)], 150, Choices(max_flip_rate=0.02)).needed
    assert stopped.needed is not None
    assert decide([Look(100, 2, 0, False)], 150, choices).needed is None  # 2 % of 100: at the limit itself
