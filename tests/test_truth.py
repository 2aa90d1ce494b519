"""Ground truth as published sets have it: every shape of labels, maps of names, joins to scores."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeguard.calibration.files import read_calibration
from edgeguard.errors import InputError
from edgeguard.evaluation.label_map import LabelMap, read_label_map
from edgeguard.evaluation.truth import Truth, described, join, read_truth
from edgeguard.profile import load_profile

LABELS = ("unsafe", "S1", "S10", "S2")
EXAMPLES = Path(__file__).parents[1] / "examples" / "labels"


def read(*rows: Mapping[str, Any] | None, label_map: LabelMap | None = None, labels: tuple[str, ...] = LABELS) -> Truth:
    truth = read_truth(rows, labels, label_map=label_map, where="file")
    assert truth is not None
    return truth


def y_true(truth: Truth) -> np.ndarray:
    n = len(truth)
    return join(truth, [None] * n, range(n), n, same_file=True)


@pytest.mark.parametrize(
    "value",
    [
        ["S1", "S2"],
        ["S2", "S1", "S1"],
        "S1,S2",
        " S2 ; S1 ",
        "S1|S2",
        '["S1", "S2"]',
        '{"S1": true, "S2": 1, "S10": false}',
        {"S1": True, "S10": False, "S2": True},
        {"S1": 1, "S10": 0, "S2": 1.0},
        ["unsafe", "S1", "S2"],
    ],
)
def test_every_shape_of_a_labels_field_says_the_same(value):
    truth = read({"labels": value}, {"labels": []})
    np.testing.assert_array_equal(y_true(truth), [[True, True, False, True], [False] * 4])


@pytest.mark.parametrize("value", [[], "safe", ["safe"], "[]", {}, {"S1": False}, '{"S1": 0}'])
def test_safe_is_said_in_many_ways(value):
    np.testing.assert_array_equal(y_true(read({"labels": value})), [[False] * 4])


@given(st.lists(st.sets(st.sampled_from(LABELS[1:])), min_size=1, max_size=8))
def test_columns_objects_lists_and_texts_carry_the_same_truth(rows):
    """Law: the shape in which a set is published changes nothing, nor do its names."""
    expected = np.array([[bool(row), *(code in row for code in LABELS[1:])] for row in rows])
    theirs = {f"their {code}": (code,) for code in LABELS[1:]}
    shapes = [
        [{"labels": sorted(row)} for row in rows],
        [{"labels": ";".join(row) or "safe"} for row in rows],
        [{"labels": {code: code in row for code in LABELS[1:]}} for row in rows],
    ]
    for shape in shapes:
        np.testing.assert_array_equal(y_true(read(*shape)), expected)
    columns = [{name: str(int(code in row)) for name, (code,) in theirs.items()} for row in rows]
    np.testing.assert_array_equal(y_true(read(*columns, label_map=LabelMap(None, theirs))), expected)
    renamed = [{"tags": [f"their {code}" for code in row]} for row in rows]
    np.testing.assert_array_equal(y_true(read(*renamed, label_map=LabelMap("tags", theirs))), expected)


@pytest.mark.parametrize(
    ("field", "unsafe", "safe"),
    [
        ("labels", ["unsafe"], []),
        ("labels", "unsafe", "safe"),
        ("label", 1, 0),
        ("label", "1", "0"),
        ("label", 1.0, 0.0),
        ("label", "1.0", "0.0"),
        ("label", True, False),
        ("label", "unsafe", "safe"),
        ("is_safe", False, True),
        ("is_safe", "False", "True"),
        ("is_safe", 0, 1),
    ],
)
def test_a_verdict_alone_says_nothing_of_categories(field, unsafe, safe):
    """Taken for "no category holds", every category a guard names would be a false alarm."""
    truth = read({field: unsafe}, {field: safe})
    np.testing.assert_array_equal(y_true(truth), [[True], [False]])
    assert "safe or unsafe alone" in described(truth)[0]


def test_records_that_are_all_safe_have_no_category_and_a_verdict_that_is_always_safe_tells_none():
    assert y_true(read({"labels": []}, {"labels": []})).shape == (2, 4)
    assert y_true(read({"is_safe": True}, {"is_safe": True})).shape == (2, 1)


def test_a_class_column_may_name_categories():
    np.testing.assert_array_equal(y_true(read({"label": "S10"}, {"label": "safe"})), [[1, 0, 1, 0], [0, 0, 0, 0]])


def test_verdicts_and_categories_do_not_mix():
    rows = [{"labels": []}, {"labels": ["S1"]}, {"labels": ["unsafe"]}]
    with pytest.raises(InputError, match='record 3 says "unsafe" and no category, record 2 says S1'):
        read(*rows)
    # A map that tells categories has to say which this one is.
    with pytest.raises(InputError, match="has the label 'unsafe'"):
        y_true(read({"labels": ["unsafe"]}, label_map=LabelMap("labels", {"violence": ("S1",)})))


def test_a_harm_outside_of_the_taxonomy_is_unsafe_and_none_of_its_categories():
    label_map = LabelMap("tags", {"violence": ("S1",), "politics": ("unsafe",), "spam": ()})
    truth = read({"tags": ["politics"]}, {"tags": ["violence", "spam"]}, {"tags": ["spam"]}, label_map=label_map)
    np.testing.assert_array_equal(y_true(truth), [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]])
    assert described(truth) == [
        "file: mapped: violence → S1 (1)",
        "file: left out of the categories: politics → unsafe (1); spam → safe (2)",
    ]


def test_a_name_with_a_comma_is_one_name():
    label_map = LabelMap("tags", {"drugs,weapons": ("S2",), "hate": ("S10",)})
    np.testing.assert_array_equal(y_true(read({"tags": "drugs,weapons"}, label_map=label_map)), [[1, 0, 0, 1]])


@pytest.mark.parametrize("nothing", [None, "", float("nan")])
def test_a_missing_flag_is_unknown_unless_the_map_says_otherwise(nothing):
    rows = [{"V": 1, "H": nothing}, {"V": 0, "H": 1}]
    names = {"V": ("S1",), "H": ("S10",)}
    with pytest.raises(InputError, match=r"record 1 \(id None\) does not say 'H'"):
        y_true(read(*rows, label_map=LabelMap(None, names)))
    told = read(*rows, label_map=LabelMap(None, names, missing=False))
    np.testing.assert_array_equal(y_true(told), [[1, 1, 0, 0], [1, 0, 1, 0]])
    with pytest.raises(InputError, match="has no labels, and 1 of 2 like it"):  # nothing at all is not "no"
        y_true(read({"V": nothing}, rows[1], label_map=LabelMap(None, names, missing=False)))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"labels": ["S99"]}, r"record 2 \(id 'b'\) has the label 'S99'; the taxonomy has S1, S10, S2"),
        ({"labels": ["safe", "S1"]}, 'expected "safe" alone'),
        ({"labels": [""]}, 'expected "safe" alone, or names'),
        ({"labels": [1]}, r"has \[1\] for labels"),
        ({"labels": {"S1": 0.7}}, "has 0.7 for 'S1'; expected true or false"),
        ({"labels": "[S1"}, "has labels that are no JSON"),
        ({"labels": None}, r"record 2 \(id 'b'\) has no labels, and 1 of 2 like it"),
        ({}, "has no labels, and 1 of 2 like it"),
    ],
)
def test_a_record_that_is_unclear_is_named_where_it_is_needed(row, message):
    truth = read({"labels": ["S1"]}, {"id": "b", **row})
    with pytest.raises(InputError, match=message):
        y_true(truth)
    assert join(truth, [None], [0], 2, same_file=True).shape == (1, 4)  # and nowhere else


def test_a_file_without_a_truth_has_none():
    assert read_truth([{"text": "a"}, {"labels": None}, None], LABELS) is None
    with pytest.raises(InputError, match="no record has 'tags', which the map names"):
        read({"labels": ["S1"]}, label_map=LabelMap("tags", {"x": ("S1",)}))
    with pytest.raises(InputError, match="no record has 'V2', which the map names as a column"):
        read({"V": 1}, label_map=LabelMap(None, {"V": ("S1",), "V2": ("S1",)}))
    with pytest.raises(InputError, match="the map has 'x' for 'S99'"):
        read({"labels": ["S1"]}, label_map=LabelMap("labels", {"x": ("S99",)}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"\[labels\] is missing"),
        ("x", "is not TOML"),
        ("filed = 'a'\n[labels]\na = 'S1'", "filed is no key"),
        ("field = 1\n[labels]\na = 'S1'", "field is 1"),
        ("missing = true\n[labels]\na = 'S1'", "missing is True; it is false, or left out"),
        ("[labels]\na = 1", "a is 1; expected a code"),
        ("[labels]\na = ['safe', 'S1']", "what is safe is nothing else"),
    ],
)
def test_a_map_with_a_mistake_is_refused(tmp_path: Path, text: str, message: str):
    path = tmp_path / "map.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_label_map(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_label_map(tmp_path / "none.toml")


# The maps that edgeguard brings

BEAVERTAILS = {
    "animal_abuse": False,
    "child_abuse": False,
    "controversial_topics,politics": False,
    "discrimination,stereotype,injustice": False,
    "drug_abuse,weapons,banned_substance": False,
    "financial_crime,property_crime,theft": False,
    "hate_speech,offensive_language": False,
    "misinformation_regarding_ethics,laws_and_safety": False,
    "non_violent_unethical_behavior": False,
    "privacy_violation": False,
    "self_harm": False,
    "sexually_explicit,adult_content": False,
    "terrorism,organized_crime": False,
    "violence,aiding_and_abetting,incitement": False,
}


def hazards() -> tuple[str, ...]:
    return ("unsafe", *(category.code for category in load_profile("edgeguard-135m").categories))


def held(truth: Truth) -> list[list[str]]:
    return [[label for label, holds in zip(truth.labels, row, strict=True) if holds] for row in y_true(truth)]


def test_beavertails_is_read_by_its_map():
    rows = [
        {"prompt": "a", "is_safe": True, "category": BEAVERTAILS},
        {"prompt": "b", "is_safe": False, "category": BEAVERTAILS | {"self_harm": True, "animal_abuse": True}},
        {"prompt": "c", "is_safe": False, "category": BEAVERTAILS | {"controversial_topics,politics": True}},
        {"prompt": "d", "is_safe": False, "category": json.dumps(BEAVERTAILS | {"privacy_violation": True})},
    ]
    label_map = read_label_map(EXAMPLES / "beavertails.toml")
    assert set(label_map.names) == set(BEAVERTAILS)
    truth = read(*rows, label_map=label_map, labels=hazards())
    assert held(truth) == [[], ["unsafe", "S2", "S11"], ["unsafe"], ["unsafe", "S7"]]
    assert y_true(read(*rows, labels=hazards())).tolist() == [[False], [True], [True], [True]]  # is_safe, without it


def test_openai_s_moderation_set_is_read_by_its_map():
    rows = [
        {"prompt": "a", "S": 0, "H": 0, "V": 0, "HR": 0, "SH": 0, "S3": 0, "H2": 0, "V2": 0},
        {"prompt": "b", "S": 1, "H": None, "V": None, "HR": None, "SH": None, "S3": 1, "H2": None, "V2": None},
        {"prompt": "c", "HR": 1, "H2": "1", "V": 0},
    ]
    truth = read(*rows, label_map=read_label_map(EXAMPLES / "openai-moderation.toml"), labels=hazards())
    assert held(truth) == [[], ["unsafe", "S4", "S12"], ["unsafe", "S10"]]


# Commands


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


VERDICTS = [
    {"id": i, "text": text, "label": i % 2} for i, text in enumerate(["Boil", "Rob", "Sing", "Hurt", "a", "Go"])
]


def test_a_verdict_alone_is_evaluated_and_calibrated_alone(run, tiny, tmp_path: Path):
    source = write(tmp_path / "verdicts.jsonl", VERDICTS)
    result = run("evaluate", source, *tiny, "--draws", 0, "--json")
    assert "safe or unsafe alone" in result.stderr
    figures = json.loads(result.stdout)
    assert (figures["unsafe"], figures["baselines"]) == (3, {})
    for estimator in figures["estimators"].values():
        assert (list(estimator["labels"]), estimator["overall"]) == (["unsafe"], {})
    shown = run("evaluate", source, *tiny, "--draws", 0).stdout
    assert "safe or unsafe" in shown and "categor" not in shown
    out = tmp_path / "c.json"
    assert run("calibrate", source, *tiny, "-o", out, "--method", "platt").exit_code == 0
    assert (set(read_calibration(out).maps), set(read_calibration(out).thresholds)) <= ({"unsafe"}, {"unsafe"})
    apart = run("calibrate", source, *tiny, "-o", tmp_path / "d.json", "--threshold-for", "S1:f1")
    assert (apart.exit_code, "nothing of S1" in apart.stderr) == (2, True)


def test_an_object_of_flags_is_read_from_the_records_themselves(run, tiny, tmp_path: Path):
    flags = [{"S1": i % 2 == 1, "S2": 0, "S10": False} for i in range(len(VERDICTS))]
    rows = [{"text": row["text"], "labels": labels} for row, labels in zip(VERDICTS, flags, strict=True)]
    source = write(tmp_path / "flags.jsonl", rows)
    found = json.loads(run("evaluate", source, *tiny, "--draws", 0, "--json").stdout)
    assert (found["records"], found["unsafe"], found["failed"]) == (6, 3, [])
    assert found["estimators"]["marginal"]["labels"]["S1"]["n_true"] == 3


def test_a_file_of_labels_with_more_records_is_joined_and_what_was_mapped_is_said(run, tiny, tmp_path: Path):
    source = write(tmp_path / "texts.jsonl", [{"id": row["id"], "text": row["text"]} for row in VERDICTS])
    tags = [{"key": i, "tags": ["theft"] if i % 2 else []} for i in range(9)]
    labels = write(tmp_path / "labels.jsonl", tags)
    label_map = tmp_path / "map.toml"
    label_map.write_text('field = "tags"\nid = "key"\n[labels]\ntheft = "S2"\n')
    given_ = ["--labels", labels, "--labels-map", label_map]
    result = run("evaluate", source, *tiny, *given_, "--draws", 0, "--json")
    assert "mapped: theft → S2 (4)" in result.stderr
    assert "3 of 9 records were not scored; left out" in result.stderr
    figures = json.loads(result.stdout)["estimators"]["marginal"]["labels"]
    assert (figures["S2"]["n_true"], figures["S1"]["n_true"]) == (3, 0)
    missing = run("evaluate", source, *tiny, "--labels", labels)
    assert (missing.exit_code, "--labels FILE" in missing.stderr) == (1, True)
    unknown = write(tmp_path / "unknown.jsonl", [row | {"labels": ["theft"]} for row in VERDICTS])
    refused = run("evaluate", unknown, *tiny)
    assert (refused.exit_code, "--labels-map" in refused.stderr) == (1, True)


def test_a_study_takes_a_truth_from_another_file(run, tiny_model, tiny_profile, tmp_path: Path):
    source = write(tmp_path / "texts.jsonl", [{"id": row["id"], "text": row["text"]} for row in VERDICTS])
    labels = write(tmp_path / "labels.jsonl", [{"id": row["id"], "is_safe": not row["label"]} for row in VERDICTS])
    options = ["-r", tiny_model, "-p", tiny_profile, "-t", 1, "-v", "q4_0", "--floor", 0, "--measurements", 0]
    result = run("bench", "quant", source, "-o", tmp_path / "study", *options, "--labels", labels, "--draws", 0)
    assert result.exit_code == 0, result.stderr
    report = json.loads((tmp_path / "study" / "report.json").read_text())
    assert report["unsafe"] == 3
    truth = report["variants"][0]["estimators"]["marginal"]["truth"]
    assert (list(truth["labels"]), truth["overall"]) == (["unsafe"], {})
