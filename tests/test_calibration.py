"""Calibration: maps are increasing and bounded, files come back as they were written, mistakes are named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeguard.backend import RuntimeOptions
from edgeguard.calibration.files import read_calibration, write_calibration
from edgeguard.calibration.maps import Calibration, Map, logit, sigmoid
from edgeguard.calibration.thresholds import Thresholds
from edgeguard.errors import CalibrationError, ProfileError
from edgeguard.estimators import bounds, log_odds, marginal
from edgeguard.guard import Guard

positive = st.floats(1e-3, 50)
any_number = st.floats(-50, 50)
maps = st.one_of(
    st.builds(lambda t: Map("temperature", {"temperature": t}), positive),
    st.builds(lambda a, b: Map("platt", {"slope": a, "intercept": b}), positive, any_number),
    st.builds(lambda a, b, c: Map("beta", {"a": a, "b": b, "c": c}), positive, positive, any_number),
    st.builds(lambda a, c: Map("beta", {"a": a, "b": 0.0, "c": c}), positive, any_number),
)


@given(maps, st.lists(st.floats(-1e4, 1e4), min_size=2, max_size=20))
def test_a_map_is_increasing_and_stays_in_the_unit_interval(map_, odds):
    """A map that falls anywhere would turn a guard's ranking, and its bounds, around."""
    p = map_(np.sort(odds))
    assert ((p >= 0) & (p <= 1)).all()
    assert (np.diff(p) >= 0).all()


@given(maps)
def test_a_map_takes_scores_of_nought_and_one(map_):
    low, high = map_([-np.inf, np.inf])
    assert 0 <= low <= high <= 1


@given(st.floats(-700, 700))
def test_beta_and_platt_at_one_and_nought_change_nothing(x):
    same = float(sigmoid(x))
    assert float(Map("platt", {"slope": 1.0, "intercept": 0.0})(x)) == same
    assert float(Map("temperature", {"temperature": 1.0})(x)) == same
    assert float(Map("beta", {"a": 1.0, "b": 1.0, "c": 0.0})(x)) == pytest.approx(same, abs=1e-12)


@given(st.floats(1e-6, 1 - 1e-6))
def test_logit_undoes_sigmoid(p):
    assert float(sigmoid(logit(p))) == pytest.approx(p, rel=1e-9)


@pytest.fixture
def calibration() -> Calibration:
    return Calibration(
        guard="tiny",
        profile="tiny",
        estimator="marginal",
        model_sha256="ab" * 32,
        maps={
            "unsafe": Map("platt", {"slope": 0.5, "intercept": -1.0}),
            "S1": Map("temperature", {"temperature": 2.0}),
        },
        thresholds={"unsafe": 0.25, "S2": 0.75},
        fitted={"records": 3},
    )


def test_a_file_comes_back_as_it_was_written(tmp_path: Path, calibration: Calibration):
    path = tmp_path / "calibration.json"
    write_calibration(calibration, path)
    assert read_calibration(path) == replace(calibration, source=str(path))
    first = path.read_bytes()
    write_calibration(read_calibration(path), path)
    assert path.read_bytes() == first


def test_stages_are_told_in_the_file_and_files_of_one_stage_are_as_they_were(tmp_path: Path, calibration: Calibration):
    path = tmp_path / "calibration.json"
    write_calibration(calibration, path)
    assert '"format": "edgeguard-calibration-1"' in path.read_text() and "stages" not in path.read_text()
    two = replace(calibration, two_stage=True)
    write_calibration(two, path)
    assert '"format": "edgeguard-calibration-2"' in path.read_text()
    assert read_calibration(path) == replace(two, source=str(path))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"stages": 2}, "stages is 2; expected 2, or 1 with format 'edgeguard-calibration-1'"),
        ({"format": "edgeguard-calibration-2"}, "stages is None; expected 2"),
        ({"format": "edgeguard-calibration-2", "stages": True}, "stages is True; expected 2"),
        ({"format": "other"}, "format is 'other'; expected 'edgeguard-calibration-1'"),
        ({"guard": 3}, "guard is 3; expected a text"),
        ({"labels": []}, "labels and fitted must be objects"),
        ({"labels": {"S1": 3}}, "'S1' is 3; expected an object"),
        ({"labels": {"S1": {"method": "magic"}}}, "method is 'magic'; expected one of temperature"),
        ({"labels": {"S1": {"method": ["platt"]}}}, "method is ['platt']"),
        ({"labels": {"S1": {"method": "platt", "slope": 1}}}, "intercept is None; expected a finite number"),
        ({"labels": {"S1": {"method": "platt", "slope": float("nan"), "intercept": 0}}}, "slope is nan"),
        ({"labels": {"S1": {"method": "platt", "slope": -1, "intercept": 0}}}, "the map must be increasing"),
        ({"labels": {"S1": {"method": "temperature", "temperature": 0}}}, "the map must be increasing"),
        ({"labels": {"S1": {"method": "beta", "a": 0, "b": 0, "c": 1}}}, "the map must be increasing"),
        ({"labels": {"S1": {"threshold": 2}}}, "threshold is 2.0; expected a number in [0, 1]"),
        ({"labels": {"S1": {"threshold": True}}}, "threshold is True"),
    ],
)
def test_a_mistake_in_a_file_is_named(tmp_path: Path, calibration: Calibration, change: dict, said: str):
    path = tmp_path / "calibration.json"
    write_calibration(calibration, path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CalibrationError) as error:
        read_calibration(path)
    assert said in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "\x00\xff"])
def test_a_file_that_is_no_calibration_is_refused(tmp_path: Path, text: str):
    path = tmp_path / "calibration.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(CalibrationError):
        read_calibration(path)
    with pytest.raises(CalibrationError, match="cannot be read"):
        read_calibration(tmp_path / "none.json")


def load(tiny_model: Path, tiny_profile: Path, calibration: Calibration, **options) -> Guard:
    return Guard.load(
        tiny_model, profile=tiny_profile, runtime=RuntimeOptions(threads=1), calibration=calibration, **options
    )


def test_a_calibrated_guard_maps_its_scores_and_bounds(tiny_model, tiny_profile, tiny_guard, calibration):
    own = replace(calibration, model_sha256=tiny_guard.backend.info.sha256)
    with load(tiny_model, tiny_profile, own) as guard:
        for text in ("Boil an egg", "Hurt the dog", "a b c"):
            tree = guard.explore(text)
            score = guard.score(text)
            raw, limits = marginal(tree), bounds(tree)
            assert score.calibrated
            assert score.unsafe == own.maps["unsafe"](log_odds(tree))
            assert score.margin == log_odds(tree)
            assert score.category_scores["S1"] == own.maps["S1"](logit(raw[1]))
            assert score.bounds["S1"] == tuple(own.maps["S1"](logit(limits[1])))
            assert score.category_scores["S2"] == raw[tree.labels.index("S2")]  # no map: left alone
            for label, p in {"unsafe": score.unsafe, **score.category_scores}.items():
                assert score.bounds[label][0] <= p <= score.bounds[label][1]
            assert score.flagged == (score.unsafe >= 0.25 or bool(score.categories))


def test_thresholds_come_from_the_calibration_unless_they_are_given(tiny_model, tiny_profile, tiny_guard, calibration):
    own = replace(calibration, model_sha256=tiny_guard.backend.info.sha256)
    for given_, expected in (
        (None, {"unsafe": 0.25, "S2": 0.75, "S1": 0.5}),
        ({"S1": 0.1}, {"unsafe": 0.25, "S2": 0.75, "S1": 0.1}),
        ({"default": 0.9, "S1": 0.1}, {"unsafe": 0.9, "S2": 0.9, "S1": 0.1}),
        (Thresholds(0.3), {"unsafe": 0.3, "S2": 0.3, "S1": 0.3}),
    ):
        with load(tiny_model, tiny_profile, own, thresholds=given_) as guard:
            assert {label: guard.thresholds.of(label) for label in expected} == expected


def test_a_calibration_of_another_guard_is_refused_unless_forced(tiny_model, tiny_profile, tiny_guard, calibration):
    own = replace(calibration, model_sha256=tiny_guard.backend.info.sha256, source="c.json")
    for change, said in (
        ({"model_sha256": "cd" * 32}, "c.json was fitted on model cdcd"),
        ({"profile": "other"}, "was fitted on profile other, this is profile tiny"),
        ({"estimator": "joint"}, "was fitted on estimator joint"),
    ):
        with pytest.raises(CalibrationError, match=said):
            load(tiny_model, tiny_profile, replace(own, **change))
        load(tiny_model, tiny_profile, replace(own, **change).unbound()).close()
    with pytest.raises(ProfileError, match="has a map for S77"):
        load(tiny_model, tiny_profile, replace(own, maps={"S77": Map("temperature", {"temperature": 1.0})}))


def test_the_command_line_takes_a_calibration(run, tiny, tiny_guard, tmp_path, calibration):
    path = tmp_path / "calibration.json"
    own = replace(calibration, model_sha256=tiny_guard.backend.info.sha256)
    write_calibration(own, path)
    text = '{"text": "Hurt the dog"}'
    raw = json.loads(run("score", "-", *tiny, input=text).stdout)
    row = json.loads(run("score", "-", *tiny, "--calibration", path, input=text).stdout)
    assert (raw["calibrated"], row["calibrated"]) == (False, True)
    assert row["unsafe"] == pytest.approx(float(own.maps["unsafe"](raw["margin"])), rel=1e-6)
    assert row["margin"] == raw["margin"]
    same = json.loads(run("score", "-", *tiny, "--no-calibration", input=text).stdout)
    assert same == raw
    both = run("score", "-", *tiny, "--calibration", path, "--no-calibration", input=text)
    assert (both.exit_code, "excludes" in both.stderr) == (2, True)
    write_calibration(replace(own, model_sha256="0" * 64), path)
    refused = run("score", "-", *tiny, "--calibration", path, input=text)
    assert (refused.exit_code, "--force-calibration" in refused.stderr) == (1, True)
    forced = run("score", "-", *tiny, "--calibration", path, "--force-calibration", input=text)
    assert json.loads(forced.stdout) == row
    alone = run("score", "-", *tiny, "--force-calibration", input=text)
    assert (alone.exit_code, "needs a --calibration" in alone.stderr) == (2, True)
