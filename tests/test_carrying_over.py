"""Calibrations for other texts: sources weigh alike and are left out, and a prior is told from texts without labels."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeguard.calibration.decide import decide
from edgeguard.calibration.files import read_calibration
from edgeguard.calibration.fitting import fit_labels
from edgeguard.calibration.maps import Calibration, Map, logit, shifted, sigmoid
from edgeguard.calibration.shift import fit_prior, moved
from edgeguard.calibration.thresholds import Goal, thresholds_for
from edgeguard.errors import CalibrationError, InputError
from edgeguard.evaluation.calibrate import calibrate
from edgeguard.evaluation.sources import (
    FEWEST,
    REST,
    choose_methods,
    even_weights,
    leave_out,
    pooled,
    sources_of,
)
from edgeguard.evaluation.table import ScoreTable
from edgeguard.evaluation.unlabelled import FEWEST_TEXTS, shifted_by_nothing, shifted_to_texts

sys.path.insert(0, str(Path(__file__).parents[1] / "models" / "recipe"))
import rule

BOTH = {"unsafe": "platt", "": "platt"}


def made(share: float, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Truth of which a share is true, and margins from two normal distributions that no share changes."""
    rng = np.random.default_rng(seed)
    truth = rng.random(n) < share
    return truth, np.where(truth, rng.normal(2, 2, n), rng.normal(-2, 2, n))


def posterior(x: np.ndarray, share: float) -> np.ndarray:
    """P(true | x) for these distributions: the log-likelihood ratio is x."""
    return sigmoid(x + logit(share))


def table_of(truth: np.ndarray, x: np.ndarray, path: Path) -> ScoreTable:
    """One code, which holds where the record is unsafe, in the file of these records."""
    path.write_text("".join(json.dumps({"id": i, "text": "t", "source": f"s{i % 2}"}) + "\n" for i in range(len(x))))
    return ScoreTable(
        labels=("unsafe", "S1"),
        ids=tuple(range(len(x))),
        places=np.arange(len(x)),
        margin=x,
        scores={"marginal": np.column_stack([sigmoid(x), 0.9 * sigmoid(x)])},
        first=None,
        off=np.zeros(len(x)),
        truth=np.column_stack([truth, truth]),
    )


IDENTITY = {"guard": "g", "profile": "p", "model_sha256": "0" * 64}


def fitted(tmp_path: Path, share: float = 0.5, n: int = 4000) -> tuple[Calibration, ScoreTable]:
    table = table_of(*made(share, n), tmp_path / "labelled.jsonl")
    found, _ = calibrate(table, "marginal", identity=IDENTITY, source=tmp_path / "labelled.jsonl", method="platt")
    return found, table


# Prior shift


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.95), st.floats(0.1, 0.9))
def test_the_likeliest_share_is_where_em_settles(seed, before, now):
    _, x = made(now, 200, seed)
    y_prob = posterior(x, before)
    found, share = fit_prior(y_prob, before).value, 0.5
    for _ in range(3000):
        odds = sigmoid(logit(y_prob) + logit(share) - logit(before))
        share = float(odds.mean())
    assert found == pytest.approx(share, abs=1e-4)


@pytest.mark.parametrize("now", [0.02, 0.1, 0.5, 0.9])
def test_the_share_is_told_without_labels(now):
    truth, x = made(now, 20_000)
    found = fit_prior(posterior(x, 0.5), 0.5)
    assert found.low < truth.mean() < found.high
    assert found.high - found.low < 0.03


def test_the_interval_holds_the_share_about_as_often_as_it_says():
    held = 0
    for seed in range(200):
        _, x = made(0.2, 150, seed)
        found = fit_prior(posterior(x, 0.5), 0.5)
        held += found.low <= 0.2 <= found.high
    assert 180 <= held <= 199  # 95 % of 200, within 3 standard deviations


def test_scores_of_one_side_run_to_nought_and_one():
    _, x = made(0.5, 300)
    assert fit_prior(posterior(-np.abs(x) - 3, 0.5), 0.5).value == 0
    high = fit_prior(posterior(np.abs(x) + 3, 0.5), 0.5)
    assert (high.value, high.high) == (1, 1) and high.low > 0.9


maps = st.one_of(
    st.none(),
    st.builds(lambda t: Map("temperature", {"temperature": t}), st.floats(0.2, 5)),
    st.builds(lambda a, b: Map("platt", {"slope": a, "intercept": b}), st.floats(0.2, 5), st.floats(-3, 3)),
    st.builds(lambda a, b: Map("beta", {"a": a, "b": b, "c": 0.5}), st.floats(0.2, 5), st.floats(0.2, 5)),
)


@given(maps, st.floats(-3, 3), st.floats(-2, 2))
def test_a_shift_moves_the_log_odds_and_nothing_else(map_, by, x):
    before = sigmoid(x) if map_ is None else map_(x)
    assert float(shifted(map_, by)(x)) == pytest.approx(float(sigmoid(logit(before) + by)), abs=1e-5)


def test_an_isotonic_map_is_shifted_at_its_knots():
    map_ = Map("isotonic", {"x": (-1.0, 0.0, 2.0), "y": (0.1, 0.5, 0.9)})
    np.testing.assert_allclose(shifted(map_, 1.0)([-1, 0, 2]), sigmoid(logit([0.1, 0.5, 0.9]) + 1))


@pytest.mark.parametrize(
    ("goal", "two_stage", "follows"),
    [("fpr=0.02", False, True), ("recall=0.9", False, True), ("f1", False, False), ("precision=0.9", False, False),
     ("cost=5", False, False), (None, False, True), ("f1", True, False), ("fpr=0.02", True, True)],
)  # fmt: skip
def test_a_threshold_of_a_rate_moves_with_its_map_and_one_of_probabilities_stays(goal, two_stage, follows):
    _, x = made(0.5, 500)
    calibration = Calibration(
        "g", "p", "marginal", "0" * 64,
        maps={"unsafe": Map("platt", {"slope": 0.8, "intercept": 0.3})},
        thresholds={"unsafe": 0.3},
        two_stage=two_stage, priors={"unsafe": 0.5}, goals={} if goal is None else {"unsafe": goal},
    )  # fmt: skip
    after = moved(calibration, {"unsafe": -1.5}, {"unsafe": 0.2})
    assert after.priors == {"unsafe": 0.2}
    flagged = [
        decide(x, sigmoid(x)[:, None], labels=["unsafe"], calibration=c, thresholds=thresholds_for(c)).y_pred
        for c in (calibration, after)
    ]
    assert (flagged[0] == flagged[1]).all() == follows
    assert (after.thresholds["unsafe"] == 0.3) != follows


def test_a_category_s_threshold_in_two_stages_moves_with_its_map():
    both = Calibration("g", "p", "marginal", "0" * 64, {}, {"S1": 0.4}, two_stage=True, goals={"S1": "f1"})
    assert moved(both, {"S1": 1.0}, {}).thresholds["S1"] == pytest.approx(float(sigmoid(logit(0.4) + 1)), rel=1e-5)


def test_a_moved_calibration_is_as_good_as_one_fitted_there(tmp_path: Path):
    calibration, _ = fitted(tmp_path)
    assert calibration.priors["unsafe"] == pytest.approx(0.5, abs=0.03) and calibration.goals["unsafe"] == "f1"
    truth, x = made(0.1, 4000, 1)
    texts = table_of(truth, x, tmp_path / "texts.jsonl")
    found, shifts = shifted_to_texts(calibration, replace(texts, truth=None), source=tmp_path / "texts.jsonl")
    assert shifts[0].after is not None and shifts[0].after.value == pytest.approx(0.1, abs=0.02)
    np.testing.assert_allclose(found.maps["unsafe"](x), posterior(x, 0.1), atol=0.1)
    assert found.fitted["moved"]["texts"] == 4000 and found.priors["unsafe"] == pytest.approx(0.1, abs=0.02)
    assert found.fitted["records"] == 4000  # what it stands on is told still


def test_what_no_shift_can_begin_with_is_said(tmp_path: Path):
    calibration, _ = fitted(tmp_path, n=400)
    path = tmp_path / "texts.jsonl"
    few = table_of(*made(0.5, FEWEST_TEXTS - 1), path)
    with pytest.raises(CalibrationError, match=f"has {FEWEST_TEXTS - 1} texts that could be scored"):
        shifted_to_texts(calibration, few, source=path)
    truth, x = made(0.5, 300)
    with pytest.raises(CalibrationError, match="no share of unsafe ones is likelier than none"):
        shifted_to_texts(calibration, table_of(truth, -np.abs(x) - 3, path), source=path)
    with pytest.raises(CalibrationError, match="no share of safe ones is likelier than none"):
        shifted_to_texts(calibration, table_of(truth, np.abs(x) + 3, path), source=path)
    old = replace(calibration, priors={})
    for move in (lambda: shifted_to_texts(old, table_of(truth, x, path), source=path),
                 lambda: shifted_by_nothing(old, {"unsafe": 0.0})):  # fmt: skip
        with pytest.raises(CalibrationError, match="does not say what share of its records was unsafe"):
            move()


def test_a_text_that_says_nothing_gets_the_prior(tmp_path: Path):
    calibration, _ = fitted(tmp_path)
    found, shifts = shifted_by_nothing(calibration, {"unsafe": 1.7})
    assert float(found.maps["unsafe"](1.7)) == pytest.approx(calibration.priors["unsafe"], abs=1e-6)
    assert {one.by for one in shifts} == {shifts[0].by}  # a category without a question of its own moves likewise


# Sources


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=300))
def test_each_source_weighs_the_same_and_few_records_weigh_no_more_each(sources):
    names = pooled(sources)
    weight = even_weights(names)
    assert weight.sum() == pytest.approx(len(sources))
    totals = {name: weight[[i for i, one in enumerate(names) if one == name]].sum() for name in set(names)}
    large = [total for name, total in totals.items() if names.count(name) >= FEWEST]
    assert np.ptp(large) < 1e-9 if large else True
    assert all(total <= max([*large, totals.get(REST, 0)]) + 1e-9 for total in totals.values())
    assert all(sources.count(name) >= FEWEST for name in totals if name != REST)


def test_a_source_left_out_says_nothing_of_its_own_probabilities(tmp_path: Path):
    truth, x = made(0.5, 300)
    sources = np.where(np.arange(300) % 3 == 0, "odd", np.where(np.arange(300) % 3 == 1, "a", "b")).tolist()
    table = table_of(truth, x, tmp_path / "x.jsonl")
    turned = np.where(np.array(sources) == "odd", ~truth, truth)
    other = replace(table, truth=np.column_stack([turned, turned]))
    ours, theirs = (leave_out(t, "marginal", sources, BOTH, draws=20) for t in (table, other))
    assert ours.sources[-1].name == theirs.sources[-1].name == "odd"
    assert ours.sources[-1].mean == theirs.sources[-1].mean  # what its records are called changes nothing
    assert theirs.worst_source == "odd" and theirs.worst.value > 0.5 > ours.worst.value
    for one in ours.sources:
        assert one.ece.low <= one.ece.high and one.n == 100
    assert ours.worst.value == max(one.ece.value for one in ours.sources)


def test_the_method_is_the_one_with_the_lowest_worst_error(tmp_path: Path):
    truth, x = made(0.5, 600)
    table = table_of(truth, 3 * x - 2, tmp_path / "x.jsonl")  # far too sure, and to one side
    chosen, tries = choose_methods(table, "marginal", ["a", "b", "c"] * 200)
    assert tries[chosen["unsafe"]].worst.value == min(one.worst.value for one in tries.values())
    assert chosen["unsafe"] not in ("none", "temperature")


def test_what_leaves_nothing_to_fit_on_is_said(tmp_path: Path):
    truth, x = made(0.5, 100)
    table = table_of(truth, x, tmp_path / "x.jsonl")
    with pytest.raises(CalibrationError, match="all records are of one source"):
        leave_out(table, "marginal", ["a"] * 100, BOTH)
    with pytest.raises(CalibrationError, match="without the source 'a' all records are safe"):
        leave_out(table, "marginal", np.where(truth, "a", "b").tolist(), BOTH)


def test_sources_are_read_by_place_or_by_id(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    table = table_of(*made(0.5, 10), path)
    assert sources_of(path, "source", table, same_file=True) == ("s0", "s1") * 5
    lines = path.read_text().splitlines(keepends=True)
    random.Random(0).shuffle(lines)
    path.write_text("".join(lines))
    assert sources_of(path, "source", table, same_file=False) == ("s0", "s1") * 5
    with pytest.raises(InputError, match="no record has 'origin'"):
        sources_of(path, "origin", table, same_file=True)
    path.write_text('{"id": 0, "source": "s"}\n' + '{"id": 1}\n' * 9)
    with pytest.raises(InputError, match="record 2 has None in 'source'"):
        sources_of(path, "source", table, same_file=True)


# The greedy answer as a goal


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_thresholds_for_greedy_flag_no_more_and_name_as_precisely_or_find_as_often(seed, two_stage):
    rng, n = np.random.default_rng(seed), 120
    truth = rng.random((n, 3)) < 0.4
    truth[:, 0] = truth[:, 1:].any(axis=1)
    truth[:4, :] = [[False] * 3, [False] * 3, [True] * 3, [True] * 3]
    odds = rng.normal(0, 2, (n, 3)) + 2 * truth
    y_greedy = odds + rng.normal(0, 1, (n, 3)) > 0
    weight = rng.integers(1, 5, n).astype(float)
    rule = {"method": "none", "goals": {"": Goal("greedy")}, "two_stage": two_stage, "weight": weight}
    fits = fit_labels(["unsafe", "S1", "S2"], odds, sigmoid(odds), truth, y_greedy=y_greedy, **rule)
    for i, fit in enumerate(fits):
        assert fit.threshold is not None and fit.threshold.met
        over, said, y = sigmoid(odds[:, i]) >= fit.threshold.value, y_greedy[:, i], truth[:, i]
        kept = truth[:, 0] if two_stage and i else np.ones(n, dtype=bool)
        if i == 0:
            assert weight @ (over & ~y) <= weight @ (said & ~y) + 1e-6 and fit.goal.startswith("fpr=")
        elif not (said & y & kept).any():
            assert fit.goal == "f1"
        elif fit.goal.startswith("precision="):
            precision = [weight @ (w & y & kept) / (weight @ (w & kept)) for w in (over, said)]
            assert precision[0] >= precision[1] - 1e-6
        else:
            assert fit.goal.startswith("recall=") and weight @ (over & y) >= weight @ (said & y & kept) - 1e-6


def test_scores_of_the_marginal_alone_do_not_tell_the_greedy_answer(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    table = table_of(*made(0.5, 100), path)
    with pytest.raises(InputError, match="do not say what the greedy answer was; give the records"):
        calibrate(table, "marginal", identity=IDENTITY, source=path, goals={"": Goal("greedy")})
    both = replace(table, scores={**table.scores, "joint": table.scores["marginal"]})
    found, _ = calibrate(both, "joint", identity=IDENTITY, source=path, goals={"": Goal("greedy")}, two_stage=True)
    assert found.goals["unsafe"].startswith("fpr=") and found.fitted["thresholds_for"] == {"all": "greedy"}


def test_the_recipe_fits_both_files_and_leaves_out_what_has_no_sure_licence(tmp_path: Path, capsys):
    tables = {}
    for seed, name in enumerate(("val.jsonl", "val2.jsonl")):
        path = tmp_path / name
        table = table_of(*made(0.5, 150, seed), path)
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for i, row in enumerate(rows):
            row["source"] = rule.UNSURE[0] if i < 20 else f"{name} {i % 2}"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        along = table.scores["marginal"] * (sigmoid(table.margin) > 0.4)[:, None]
        tables[path] = replace(table, scores={**table.scores, "conditional": along})
    kept, sources = rule.to_fit(tables)
    assert len(kept) == len(sources) == 260 and rule.UNSURE[0] not in sources
    first, second = tables.values()
    np.testing.assert_array_equal(kept.truth, np.concatenate([first.truth[20:], second.truth[20:]]))
    np.testing.assert_array_equal(kept.margin, np.concatenate([first.margin[20:], second.margin[20:]]))
    found = rule.fit_rule(tables, IDENTITY, report=True)
    assert set(found) == {"marginal", "conditional"}
    for calibration in found.values():
        assert calibration.two_stage and calibration.goals["unsafe"].startswith("fpr=")
        assert list(calibration.fitted["files"]) == ["val.jsonl", "val2.jsonl"]
    said = capsys.readouterr().out
    for part in ("| the worst of them |", "Out of fold", "| val2.jsonl | greedy |", "| val.jsonl | f1 |"):
        assert part in said


# The command


@pytest.fixture
def scored(run, tiny, tmp_path: Path) -> tuple[Path, Path]:
    """Scores of 150 records, and the records with labels that mostly follow the margin; two sources and a few more."""
    words, dice = ["boil", "hurt", "the", "dog", "egg", "take", "rob", "sing", "go", "a"], random.Random(1)
    rows = [{"id": i, "text": " ".join(dice.choices(words, k=4))} for i in range(150)]
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run("score", texts, *tiny, "-o", tmp_path / "scores.jsonl").exit_code == 0
    margins = [json.loads(line)["margin"] for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    middle = sorted(margins)[75]
    for i, (row, margin) in enumerate(zip(rows, margins, strict=True)):
        unsafe = (margin > middle) != (dice.random() < 0.15)
        row |= {"labels": ["S1"] if unsafe else [], "source": "few" if i < 5 else f"s{i % 2}"}
    labelled = tmp_path / "labelled.jsonl"
    labelled.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "scores.jsonl", labelled


def test_calibrate_balances_sources_and_leaves_each_out(run, scored, tmp_path: Path):
    scores, labelled = scored
    given = ("calibrate", scores, "--labels", labelled, "--balance-by", "source")
    shown = run(*given, "-o", tmp_path / "c.json")
    assert shown.exit_code == 0, shown.stderr
    for word in ("each source, by maps (", "fitted on the others", "s0", "s1", REST, "worst: "):
        assert word in shown.stdout
    found = json.loads(run(*given, "-o", tmp_path / "d.json", "--json").stdout)
    assert [row["name"] for row in found["left_out"]["sources"]] == ["s0", "s1", REST]
    assert found["left_out"]["worst"]["value"] == max(row["ece"]["value"] for row in found["left_out"]["sources"])
    assert [row["label"] for row in found["labels"]] == ["unsafe", "S1", "S10", "S2"]
    assert read_calibration(tmp_path / "c.json").fitted["sources"] == {"s0": 72, "s1": 73, REST: 5}
    shown = run(*given, "-o", tmp_path / "f.json", "--plot", tmp_path / "f.html")
    assert f"wrote {tmp_path / 'f.html'}" in shown.stderr
    page = (tmp_path / "f.html").read_text()
    for part in ("fitted and the thresholds chosen on these very records", "Sources left out", "Reliability", "<svg"):
        assert part in page
    again = run(*given, "-o", tmp_path / "g.json", "--plot", tmp_path / "f.html")
    assert "name another --plot" in again.stderr and not (tmp_path / "g.json").exists()
    other = run("calibrate", scores, "--labels", labelled, "--balance-by", "origin", "-o", tmp_path / "e.json")
    assert "no record has 'origin'" in other.stderr


def test_calibrate_moves_a_calibration_to_texts_without_labels(run, tiny, scored, tmp_path: Path):
    scores, labelled = scored
    fit = ("calibrate", scores, "--labels", labelled, "--method", "platt", "-o", tmp_path / "c.json")
    result = run(*fit, "--threshold-for", "unsafe:fpr=0.1")
    assert result.exit_code == 0, result.stderr
    before = read_calibration(tmp_path / "c.json")
    move = ("calibrate", scores, "--unlabelled", "em", "--calibration", tmp_path / "c.json")
    shown = run(*move, "-o", tmp_path / "d.json")
    assert shown.exit_code == 0, shown.stderr
    assert "share now" in shown.stdout
    after = read_calibration(tmp_path / "d.json")
    assert after.fitted["moved"]["from"] == "c.json" and after.fitted["moved"]["texts"] == 150
    assert after.priors["unsafe"] == pytest.approx(before.priors["unsafe"], abs=0.02)  # the same texts: the same share
    (verdict, *_) = json.loads(run(*move, "-o", tmp_path / "e.json", "--json").stdout)
    assert verdict["label"] == "unsafe" and verdict["after"]["low"] < verdict["before"] < verdict["after"]["high"]
    alone = ("calibrate", "--unlabelled", "contextual", "--calibration", tmp_path / "c.json", *tiny)
    assert run(*alone, "-o", tmp_path / "f.json").exit_code == 0
    assert read_calibration(tmp_path / "f.json").fitted["moved"]["how"] == "contextual"
    lines = scores.read_text().splitlines()
    lines[0] = json.dumps({"id": "one", "error": {"type": "off_grammar", "message": "x.jsonl:1: no answer", "line": 1}})
    scores.write_text("\n".join(lines))
    assert "left out, not scored (id 'one'): x.jsonl:1: no answer" in run(*move, "-o", tmp_path / "h.json").stderr
    assert read_calibration(tmp_path / "h.json").fitted["moved"]["texts"] == 149
    missing = run("calibrate", scores, "--unlabelled", "em", "-o", tmp_path / "g.json")
    assert "this guard brings no calibration" in missing.stderr and "--calibration" in missing.stderr


def test_calibrate_for_greedy_is_at_its_operating_point(run, tiny, scored, tmp_path: Path):
    scores, labelled = scored
    given = ("--two-stage", "--threshold-for", "greedy", "--method", "platt", "-o")
    result = run("calibrate", labelled, *tiny, *given, tmp_path / "c.json")
    assert result.exit_code == 0, result.stderr
    shown = run("evaluate", labelled, *tiny, "--calibration", tmp_path / "c.json", "--draws", 20, "--json")
    over = json.loads(shown.stdout)["greedy"]["decision_over_it"]
    assert over["false_positive_rate"]["value"] <= 0
    shown = run("evaluate", labelled, *tiny, "--calibration", tmp_path / "c.json", "--draws", 20)
    assert "as decided, beside the greedy answer: " in shown.stdout and "micro recall" in shown.stdout
    without = run("calibrate", scores, "--labels", labelled, *given, tmp_path / "d.json")
    assert without.exit_code == 1 and "do not say what the greedy answer was" in without.stderr
    assert run("evaluate", labelled, *tiny, "--best-for", "greedy").exit_code == 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["x", "--unlabelled", "em", "--two-stage"], "--two-stage has no use"),
        (["x", "--unlabelled", "em", "--method", "platt"], "--method has no use"),
        (["x", "--unlabelled", "em", "--labels", "y"], "--labels has no use"),
        (["--unlabelled", "em"], "give TEXTS for --unlabelled em"),
        (["x", "--unlabelled", "contextual"], "none for --unlabelled contextual"),
        (["x", "--unlabelled", "em", "--plot", "p.html"], "--plot shows curves of LABELLED records"),
        (["x", "--calibration", "c.json"], "--calibration is what --unlabelled moves"),
        (["--method", "contextual", "--balance-by", "source"], "--balance-by needs labelled records"),
    ],
)
def test_options_that_contradict_one_another_are_misuse(run, tmp_path: Path, given: list[str], said: str):
    result = run("calibrate", *given, "-o", tmp_path / "c.json")
    assert result.exit_code == 2 and said in result.stderr
