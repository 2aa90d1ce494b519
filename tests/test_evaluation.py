"""Scores of many records, from a guard or from a file, against the truth; the paper's baselines; both commands."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import digamma
from sklearn.metrics import f1_score, roc_auc_score

from edgeguard.backend import Prefix, RuntimeOptions
from edgeguard.calibration.files import read_calibration
from edgeguard.calibration.thresholds import Thresholds
from edgeguard.errors import InputError
from edgeguard.evaluation.baselines import (
    _digamma,
    by_uncertainty,
    entropy_uncertainty,
    logtoku,
    probability_uncertainty,
)
from edgeguard.evaluation.table import ScoreTable, decisions, read_scores, score_records
from edgeguard.evaluation.table_file import load_table, save_table
from edgeguard.evaluation.truth import Truth, find_truth, with_truth
from edgeguard.guard import Guard, Search
from edgeguard.rows.readers import read_records
from edgeguard.rows.record import Failure
from edgeguard.rows.results import holds_results, read_rows

TEXTS = ["Boil an egg", "Hurt the dog", "Steal", "Hi", "a", "b c", "Take the money", "Rob", "Kick", "Sing", "x y", "Go"]
LABELS: list[list[str]] = [[], ["S1"], ["S2"], [], [], ["S1", "S2"], ["S2"], ["S2"], ["S1"], [], [], ["S10"]]


def write(path: Path, labels: Sequence[object] | None = None, *, texts: bool = True, ids: bool = True) -> Path:
    rows = []
    for i, text in enumerate(TEXTS):
        row: dict[str, object] = {"id": f"r{i}"} if ids else {}
        row |= {"text": text} if texts else {"text": "-"}
        rows.append(row if labels is None else row | {"labels": labels[i]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    return write(tmp_path / "labelled.jsonl", LABELS)


@pytest.fixture(scope="session")
def table(tiny_guard: Guard, tmp_path_factory: pytest.TempPathFactory) -> ScoreTable:
    path = write(tmp_path_factory.mktemp("table") / "labelled.jsonl", LABELS)
    table = score_records(tiny_guard, read_records(path), evidence=True)
    return with_truth(table, truth_in(path), same_file=True)


def truth_in(path: Path) -> Truth:
    truth = find_truth(path, ("unsafe", "S1", "S10", "S2"))
    assert truth is not None
    return truth


def test_a_table_holds_what_score_says(table: ScoreTable, tiny_guard: Guard):
    for i, text in enumerate(TEXTS):
        score = tiny_guard.score(text)
        assert table.margin[i] == score.margin
        assert table.unsafe[i] == score.unsafe
        assert dict(zip(table.codes, table.scores["marginal"][i, 1:], strict=True)) == score.category_scores
    assert table.truth is not None
    assert [[c for c, t in zip(table.labels, row, strict=True) if t] for row in table.truth] == [
        ["unsafe", *sorted(row, key=table.labels.index)] if row else [] for row in LABELS
    ]


@pytest.mark.parametrize("together", [None, 5])
def test_records_that_score_refuses_are_in_no_table(table: ScoreTable, tiny_model, tiny_profile, tmp_path, together):
    least = 1 - float(np.median(table.off))
    options = {"runtime": RuntimeOptions(threads=1, together=together), "search": Search(min_grammar_mass=least)}
    with Guard.load(tiny_model, profile=tiny_profile, **options) as guard:
        found = score_records(guard, read_records(write(tmp_path / "texts.jsonl")))
        rows = [result.row() for result in guard.score_many(TEXTS)]
    refused = [f"r{i}" for i, row in enumerate(rows) if "error" in row]
    assert len(refused) == len(TEXTS) // 2
    assert [one.id for one in found.failed] == refused
    assert {one.kind for one in found.failed} == {"off_grammar"}
    assert found.ids == tuple(id_ for id_ in table.ids if id_ not in refused)
    assert (found.off <= 1 - least).all()


def test_commands_leave_out_what_score_refuses_and_say_so(run, tiny_model, tiny_profile, labelled, table, tmp_path):
    """From texts as from the rows that `score` writes."""
    least = 1 - float(np.median(table.off))
    profile = tmp_path / "strict.toml"
    profile.write_text(tiny_profile.read_text().replace("min_grammar_mass = 0.0", f"min_grammar_mass = {least!r}"))
    model = ["--model", tiny_model, "--profile", profile]
    assert run("score", labelled, *model, "-o", tmp_path / "rows.jsonl").exit_code == 1
    from_texts = run("evaluate", labelled, *model, "--json")
    from_rows = run("evaluate", tmp_path / "rows.jsonl", "--labels", labelled, "--json")
    assert from_texts.stderr == from_rows.stderr
    assert f"{labelled}:1: 0." in from_texts.stderr and "6 records were not scored" in from_texts.stderr
    first, second = (json.loads(one.stdout) for one in (from_texts, from_rows))
    assert first["records"] == second["records"] == 6 and first["failed"] == second["failed"]
    assert [one["id"] for one in first["failed"]] == [
        id_ for id_, off in zip(table.ids, table.off, strict=True) if off > 1 - least
    ]
    profile.write_text(profile.read_text().replace(repr(least), "1"))
    nothing = run("evaluate", labelled, *model)
    assert nothing.exit_code == 1
    assert f"no record could be scored; the first of them: {labelled}:1: 0." in nothing.stderr


def test_a_table_comes_back_as_it_was_saved(table: ScoreTable, tmp_path: Path):
    path = tmp_path / "table.npz"
    failed = (Failure("x", "too_long", "too long", 4), Failure(None, "bad", "bad"), Failure(7, "", ""))
    save_table(replace(table, failed=failed), path)
    found = load_table(path)
    assert found.ids == table.ids
    assert found.failed == failed
    for name in ("places", "truth", "margin", "unsafe", "first", "off", "evidence"):
        np.testing.assert_array_equal(getattr(found, name), getattr(table, name))
    assert found.scores.keys() == table.scores.keys()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="no table of scores"):
        load_table(path)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_scores_are_read_back_from_every_format(
    run, tiny, labelled: Path, table: ScoreTable, tmp_path: Path, ending: str
):
    out = tmp_path / f"scores.{ending}"
    assert run("score", labelled, *tiny, "-o", out).exit_code == 0
    assert holds_results(out) and not holds_results(labelled)
    found, identity = read_scores(out)
    assert identity["estimator"] == "marginal" and identity["profile"] == "tiny"
    assert found.ids == table.ids
    np.testing.assert_allclose(found.margin, table.margin, rtol=1e-6)
    np.testing.assert_allclose(found.scores["marginal"], table.scores["marginal"], rtol=1e-6)
    joined = with_truth(found, truth_in(labelled))
    np.testing.assert_array_equal(joined.truth, table.truth)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"unsafe": 1.5}, "unsafe is 1.5; expected a probability"),
        ({"unsafe": None}, "has no unsafe"),
        ({"margin": float("inf")}, "margin is inf"),
        ({"category_scores": {"S1": 0.1}}, "scores S1, the first row S1, S10, S2"),
        ({"category_scores": [1]}, "is no result row"),
        ({"calibrated": True}, "is calibrated; give the model's own scores"),
        ({"model_sha256": "f" * 64}, "has model_sha256 ffff"),
        ({"estimator": "joint"}, "has estimator joint, the first row marginal"),
    ],
)
def test_a_bad_row_is_named(run, tiny, labelled: Path, tmp_path: Path, change: dict, said: str):
    lines = run("score", labelled, *tiny).stdout.splitlines()
    lines[3] = json.dumps(json.loads(lines[3]) | change)
    path = tmp_path / "scores.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(InputError) as error:
        read_scores(path)
    assert said in str(error.value) and any(place in str(error.value) for place in (":4: ", "row 4 "))


@pytest.mark.parametrize("text", ["", "{", "[]\n", "a,b\n1,2\n", '{"id": 1}\n', "\xff\xfe", "PAR1"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str):
    path = tmp_path / "other"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(InputError):
        read_scores(path)
    with pytest.raises(InputError, match="there is no such file"):
        list(read_rows(tmp_path / "none"))


def test_labels_are_joined_by_id_whatever_their_order(table: ScoreTable, labelled: Path, tmp_path: Path):
    lines = labelled.read_text().splitlines()
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join([*reversed(lines), '{"id": "new", "labels": ["S99"]}']))
    bare = replace(table, truth=None)
    np.testing.assert_array_equal(with_truth(bare, truth_in(other)).truth, table.truth)  # more than was scored
    other.write_text("\n".join(lines[1:]))
    with pytest.raises(InputError, match=r"has no record of id 'r0' \(1 of 12 are missing\)"):
        with_truth(bare, truth_in(other))
    other.write_text("\n".join([*lines, '{"id": "r3", "labels": ["S1"]}']))
    with pytest.raises(InputError, match="records 4 and 13 have the id 'r3' and other labels"):
        with_truth(bare, truth_in(other))
    shorter = write(tmp_path / "no-ids.jsonl", LABELS, ids=False)
    np.testing.assert_array_equal(with_truth(bare, truth_in(shorter)).truth, table.truth)
    shorter.write_text("\n".join(shorter.read_text().splitlines()[:-1]))
    with pytest.raises(InputError, match="has 11 records, 12 were read to be scored"):
        with_truth(bare, truth_in(shorter))


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([["S99"], *LABELS[1:]], "record 1 (id 'r0') has the label 'S99'; the taxonomy has S1, S10, S2"),
        ([None, *LABELS[1:]], "record 1 (id 'r0') has no labels, and 1 of 12 like it"),
    ],
)
def test_labels_that_cannot_be_used_are_named(run, tiny, tmp_path: Path, labels: list, said: str):
    path = write(tmp_path / "labelled.jsonl", labels)
    for command in (["evaluate", path], ["calibrate", path, "-o", tmp_path / "c.json"]):
        result = run(*command, *tiny)
        assert result.exit_code == 1
        assert said in result.stderr


def test_decisions_are_those_of_score(table: ScoreTable, tiny_guard: Guard):
    found = decisions(table, "marginal", thresholds=Thresholds(0.3))
    for i, text in enumerate(TEXTS):
        score = tiny_guard.score(text)
        named = [c for c, p in score.category_scores.items() if p >= 0.3]
        assert [c for c, s in zip(table.codes, found.y_pred[i, 1:], strict=True) if s] == named
        assert found.y_pred[i, 0] == (score.unsafe >= 0.3 or bool(named))


# Baselines


def test_the_digamma_function_is_scipy_s():
    x = np.concatenate([np.linspace(1, 30, 500), [1e3, 1e6]])
    np.testing.assert_allclose(_digamma(x), digamma(x), rtol=1e-10, atol=1e-12)


@given(st.integers(0, 2**32 - 1), st.floats(-20, 40))
def test_logtoku_is_the_published_formula_on_the_labels_logits(seed, shift):
    """With one-token labels and nothing else in the vocabulary."""
    logits = np.random.default_rng(seed).normal(0, 5, (6, 4)) + shift
    evidence = np.logaddexp.reduce(logits, axis=1)
    first = np.exp(logits - evidence[:, None])
    for row, found in zip(logits, logtoku(first, evidence), strict=True):
        alpha = np.maximum(0, np.sort(row)[-2:])
        if alpha.sum() == 0:
            assert found == pytest.approx(0, abs=1e-9)
            continue
        aleatoric = -sum(a / alpha.sum() * (digamma(a + 1) - digamma(alpha.sum() + 1)) for a in alpha)
        assert found == pytest.approx(aleatoric * 2 / (alpha.sum() + 2), rel=1e-6, abs=1e-9)


def test_uncertainties_are_least_where_one_label_has_all():
    first = np.array([[0.7, 0.0, 0.0], [0.3, 0.2, 0.2]])
    np.testing.assert_allclose(probability_uncertainty(first), [1 / 2, 1 / (3 / 7 + 1)])
    sure, torn = entropy_uncertainty(first)
    assert sure == 0 < torn < np.log(3)


@given(st.integers(0, 2**32 - 1))
def test_the_threshold_of_a_baseline_is_the_best_there_is(seed):
    rng = np.random.default_rng(seed)
    first, truth = rng.random((12, 4)), rng.random((12, 4)) < 0.4
    truth[0, 0] = True
    uncertainty = np.round(rng.random(12), 1)
    said, _ = by_uncertainty(first, uncertainty, truth)
    order = np.argsort(-first, axis=1)

    def taken(two: np.ndarray) -> np.ndarray:
        chosen = np.zeros_like(truth)
        for i, row in enumerate(order):
            chosen[i, row[: 2 if two[i] else 1]] = True
        return chosen

    best = max(
        f1_score(truth, taken(uncertainty >= t), average="micro", zero_division=0)
        for t in (*np.unique(uncertainty), np.inf)
    )
    assert f1_score(truth, said, average="micro", zero_division=0) == pytest.approx(best)


def test_evidence_turns_label_probabilities_into_logits(tiny_guard: Guard):
    """At the place where the first label is chosen, for labels of one token: log P + evidence is the raw logit."""
    trees, evidence = tiny_guard.explore_with_evidence("Hurt the dog")
    tree = trees[None]
    way = tiny_guard.answers.way_to_label
    place = 0
    for token in way:
        place = next(int(c) for c in tree.children(place) if tree.token[c] == token)
    (row,) = tiny_guard.backend.logits([Prefix(way, tiny_guard.prompt("Hurt the dog"))])
    for child in tree.children(place):
        if tree.token[child] >= 0:
            assert tree.logp[child] - tree.logp[place] + evidence == pytest.approx(row[tree.token[child]], abs=1e-3)
    plain = tiny_guard.explore("Hurt the dog")
    np.testing.assert_array_equal(tree.logp, plain.logp)  # asking for it changes no score


# Commands


def test_evaluate_says_what_scikit_learn_says(run, tiny, labelled: Path, table: ScoreTable):
    result = run("evaluate", labelled, *tiny, "--draws", 50, "--json")
    found = json.loads(result.stdout)
    assert (found["records"], found["unsafe"], found["profile"]) == (12, 7, "tiny")
    assert set(found["estimators"]) == {"conditional", "joint", "marginal"}
    assert set(found["baselines"]) == {"greedy", "probability", "entropy", "logtoku"}
    verdict = found["estimators"]["marginal"]["labels"]["unsafe"]
    assert table.truth is not None
    expected = roc_auc_score(table.truth[:, 0], table.unsafe)
    assert verdict["auroc"]["value"] == pytest.approx(expected, rel=1e-6)
    assert verdict["auroc"]["why"] == "7 with it, 5 without; an interval takes 10 of each"
    assert verdict["recall"]["low"] <= verdict["recall"]["value"] <= verdict["recall"]["high"]
    answer = table.scores["conditional"][:, 1:] > 0
    micro = f1_score(table.truth[:, 1:], answer, average="micro")
    assert found["greedy"]["categories"]["micro_f1"]["value"] == pytest.approx(micro, rel=1e-6)
    over, overall = found["greedy"]["decision_over_it"], found["estimators"]["marginal"]["overall"]
    assert over["micro_f1"]["value"] == pytest.approx(overall["micro_f1"]["value"] - micro, abs=1e-6)
    assert over["recall"]["value"] == pytest.approx(
        verdict["recall"]["value"] - found["greedy"]["verdict"]["recall"]["value"], abs=1e-6
    )
    for name in ("conditional", "joint"):
        assert found["estimators"][name]["labels"]["unsafe"]["auroc"] == verdict["auroc"]
    again = run("evaluate", labelled, *tiny, "--draws", 50, "--json")
    assert again.stdout == result.stdout


def test_evaluate_reads_scores_too(run, tiny, labelled: Path, tmp_path: Path):
    scores = tmp_path / "scores.jsonl"
    run("score", labelled, *tiny, "-o", scores)
    whole = json.loads(run("evaluate", labelled, *tiny, "--draws", 0, "--json").stdout)
    found = json.loads(run("evaluate", scores, "--labels", labelled, "--draws", 0, "--json").stdout)
    assert list(found["estimators"]) == ["marginal"]
    ours, theirs = (w["estimators"]["marginal"]["overall"]["micro_auprc"]["value"] for w in (found, whole))
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert found["model_sha256"] == whole["model_sha256"]
    bare = run("evaluate", scores)
    assert (bare.exit_code, "has no labels" in bare.stderr) == (1, True)


@pytest.mark.parametrize(
    ("rows", "labels", "said"),
    [
        ([{}, {}], None, "has no labels; give records"),
        ([{"labels": []}, {}], None, "record 2 (id 'r1') has no labels"),
        ([{"labels": []}, {"labels": ["S99"]}], None, "has the label 'S99'"),
        ([{}, {}], [{"id": "r0", "labels": []}], "has no record of id 'r1'"),
        ([{}, {}], [{"id": "r0"}, {"id": "r1"}], "has no labels; give records"),
    ],
)
def test_a_truth_that_is_missing_is_said_before_anything_is_scored(
    run, tiny, tmp_path: Path, monkeypatch, rows, labels, said
):
    def scored(*_: object) -> None:
        raise AssertionError("a record was scored")

    monkeypatch.setattr(Guard, "explore", scored)
    monkeypatch.setattr(Guard, "explore_with_evidence", scored)
    source, truth = tmp_path / "records.jsonl", tmp_path / "labels.jsonl"
    source.write_text(
        "".join(json.dumps({"id": f"r{i}", "text": "boil an egg"} | r) + "\n" for i, r in enumerate(rows))
    )
    given = []
    if labels is not None:
        truth.write_text("".join(json.dumps({"text": "boil an egg"} | r) + "\n" for r in labels))
        given = ["--labels", truth]
    for command in (["evaluate", source], ["calibrate", source, "-o", tmp_path / "c.json"]):
        result = run(*command, *given, *tiny)
        assert (result.exit_code, said in result.stderr) == (1, True), result.stderr


def test_evaluate_shows_tables_that_fit(run, tiny, labelled: Path, monkeypatch):
    for width in (80, 140):
        monkeypatch.setenv("COLUMNS", str(width))
        result = run("evaluate", labelled, *tiny, "--draws", 20)
        assert result.exit_code == 0
        assert max(map(len, result.stdout.splitlines())) <= width
        for word in ("AUROC", "marginal", "logtoku", "greedy answer", "best threshold for f1"):
            assert word in result.stdout
        assert "…" not in result.stdout  # no number is cut
        assert ("No room here for" in result.stdout) == (width == 80)
    monkeypatch.delenv("COLUMNS")
    whole = run("evaluate", labelled, *tiny, "--draws", 20).stdout  # a pipe
    assert "No room here for" not in whole and "macro AUPRC" in whole


def test_categories_stand_in_the_order_asked_for(run, tiny, labelled: Path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")

    def order(*given: str) -> list[str]:
        result = run("evaluate", labelled, *tiny, "--draws", 0, *given)
        assert result.exit_code == 0, result.stderr
        rows = result.stdout.partition("each category")[2].splitlines()
        return [row.split()[0] for row in rows if row.startswith("S")]

    assert order() == ["S1", "S10", "S2"]
    assert order("--sort", "records") == ["S2", "S1", "S10"]
    assert order("--sort", "-label") == ["S2", "S10", "S1"]
    assert order("--sort", "-auroc") == order("--sort", "auroc")[::-1]
    wrong = run("evaluate", labelled, *tiny, "--sort", "speed")
    assert (wrong.exit_code, "is none of label, records" in wrong.stderr) == (2, True)


def test_the_page_has_curves_and_needs_no_network(run, tiny, labelled: Path, tmp_path: Path):
    page = tmp_path / "figures.html"
    result = run("evaluate", labelled, *tiny, "--draws", 0, "--plot", page, "--plot-labels", "unsafe,S2", "--json")
    assert result.exit_code == 0, result.stderr
    html = page.read_text(encoding="utf-8")
    assert html.count('<svg class="chart"') == 4  # precision and recall, thresholds; 12 records fill no two bins
    for part in ("threshold 0.5", "No reliability curve: 12 records", "greedy: precision", 'role="img"'):
        assert part in html
    assert "<script" not in html and "http://" not in html and "https://" not in html
    assert "exists already" in run("evaluate", labelled, *tiny, "--plot", page).stderr
    assert run("evaluate", labelled, *tiny, "--plot", tmp_path / "q.html", "--plot-labels", "S9").exit_code == 2
    assert run("evaluate", labelled, *tiny, "--plot-labels", "S1").exit_code == 2
    assert run("evaluate", labelled, *tiny, "--plot", labelled).exit_code == 2  # a file that is read


def test_a_page_of_one_class_says_why_it_has_no_curves(run, tiny, tmp_path: Path):
    path, page = write(tmp_path / "safe.jsonl", [[]] * len(TEXTS)), tmp_path / "p.html"
    result = run("evaluate", path, *tiny, "--draws", 0, "--plot", page)
    assert result.exit_code == 0, result.stderr
    assert "All 12 records are safe" in result.stdout
    assert "No record has it: there are no curves" in page.read_text(encoding="utf-8")
    out = run("calibrate", path, *tiny, "-o", tmp_path / "c.json")
    assert (out.exit_code, "all its records are safe" in out.stderr) == (1, True)


def test_a_model_card_takes_the_figures(run, tiny, labelled: Path, tmp_path: Path):
    card = pytest.importorskip("huggingface_hub").ModelCard
    to_results = pytest.importorskip("huggingface_hub.repocard_data").model_index_to_eval_results
    odd = labelled.rename(tmp_path / "odd 'name': \x07é.jsonl")
    result = run("evaluate", odd, *tiny, "--draws", 0, "--model-index", tmp_path / "m.yml", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    text = (tmp_path / "m.yml").read_text(encoding="utf-8")
    read = card(f"---\n{text}---\n# A guard\n").data
    name, results = to_results(found["model-index"])
    assert (read.model_name, len(read.eval_results)) == (name, len(results)) == (found["guard"], len(results))
    assert [(r.metric_type, r.metric_value, r.dataset_name) for r in read.eval_results] == [
        (r.metric_type, r.metric_value, odd.name) for r in results
    ]
    f1 = found["estimators"]["marginal"]["labels"]["unsafe"]["f1"]["value"]
    assert {r.metric_type: r.metric_value for r in results}["f1"] == pytest.approx(f1, abs=1e-4)
    assert found["results"]["odd-name_verdict"]["f1,none"] == pytest.approx(f1, abs=1e-4)
    run("evaluate", odd, *tiny, "--draws", 0, "--model-index", tmp_path / "m.json")
    assert json.loads((tmp_path / "m.json").read_text())["model-index"] == found["model-index"]


def test_records_of_one_class_have_no_ranking_and_no_made_up_number(run, tiny, tmp_path: Path):
    path = write(tmp_path / "unsafe.jsonl", [["S1"]] * len(TEXTS))
    found = json.loads(run("evaluate", path, *tiny, "--draws", 20, "--json").stdout)
    verdict = found["estimators"]["marginal"]["labels"]["unsafe"]
    assert verdict["auroc"] == {"value": None, "low": None, "high": None, "why": "every record has it"}
    greedy = found["greedy"]  # it is told all the same, but where its curve would be
    assert greedy["scores_at_its_recall"] is None and greedy["verdict"]["false_positive_rate"]["value"] is None
    assert greedy["verdict"]["recall"]["value"] is not None
    (line, *_) = found["notices"]
    assert line.startswith("All 12 records are unsafe, so there is no AUROC") and "add safe records" in line
    assert verdict["best"] is None
    assert "NaN" not in json.dumps(found)


def test_too_few_records_get_figures_and_no_interval(run, tiny, tmp_path: Path):
    path = tmp_path / "few.jsonl"
    path.write_text('{"text": "Rob", "labels": ["S2"]}\n{"text": "Hi", "labels": []}\n')
    found = json.loads(run("evaluate", path, *tiny, "--draws", 20, "--json").stdout)
    assert found["estimators"]["marginal"]["overall"]["hamming_loss"]["low"] is None


def test_records_that_cannot_be_scored_are_said_and_left_out(run, tiny, labelled: Path):
    with labelled.open("a") as file:
        file.write('{"id": "bad"}\n')
    result = run("evaluate", labelled, *tiny, "--draws", 0, "--json")
    assert "left out, not scored (id 'bad')" in result.stderr
    assert json.loads(result.stdout)["failed"][0]["id"] == "bad"


def test_calibrate_writes_what_score_takes(run, tiny, labelled: Path, tmp_path: Path):
    out = tmp_path / "c.json"
    goals = ["--threshold-for", "recall=1", "--threshold-for", "unsafe:fpr=0"]
    result = run("calibrate", labelled, *tiny, "-o", out, "--method", "platt", *goals, "--json")
    assert result.exit_code == 0
    calibration = read_calibration(out)
    fits = {fit["label"]: fit for fit in json.loads(result.stdout)}
    assert fits["S2"]["n_true"] == 4 and calibration.maps["S2"].method == "platt"
    assert fits["unsafe"]["threshold"]["fpr"] == 0 and fits["S2"]["threshold"]["recall"] == 1
    rows = [json.loads(line) for line in run("score", labelled, *tiny, "--calibration", out).stdout.splitlines()]
    assert all(row["calibrated"] for row in rows)
    hits = [("S2" in row["categories"]) for row, labels in zip(rows, LABELS, strict=True) if "S2" in labels]
    assert all(hits)
    assert "exists already" in run("calibrate", labelled, *tiny, "-o", out).stderr
    figures = json.loads(run("evaluate", labelled, *tiny, "--calibration", out, "--draws", 0, "--json").stdout)
    assert {n: e["calibrated"] for n, e in figures["estimators"].items()} == {
        "conditional": False, "joint": False, "marginal": True,
    }  # fmt: skip


def test_calibrate_in_two_stages_is_what_score_and_evaluate_decide_by(run, tiny, labelled: Path, tmp_path: Path):
    out = tmp_path / "c.json"
    goals = ["--threshold-for", "f1", "--threshold-for", "unsafe:fpr=0.4"]
    result = run("calibrate", labelled, *tiny, "-o", out, "--two-stage", "--method", "platt", *goals)
    assert result.exit_code == 0, result.stderr
    assert read_calibration(out).two_stage and read_calibration(out).fitted["stages"] == 2
    from_ = read_calibration(out).thresholds["unsafe"]
    rows = [json.loads(line) for line in run("score", labelled, *tiny, "--calibration", out).stdout.splitlines()]
    for row in rows:
        assert row["flagged"] == (row["unsafe"] >= from_)
        assert row["flagged"] or row["categories"] == []
    found = json.loads(run("evaluate", labelled, *tiny, "--calibration", out, "--draws", 0, "--json").stdout)
    predicted = {code: one["n_pred"] for code, one in found["estimators"]["marginal"]["labels"].items()}
    assert predicted == {"unsafe": sum(row["flagged"] for row in rows)} | {
        code: sum(code in row["categories"] for row in rows) for code in ("S1", "S10", "S2")
    }
    assert "in two stages" in run("explain", "Rob", *tiny, "--calibration", out).stdout
    for wrong in (["--safe-rate", "0.5"], ["--method", "contextual"]):
        given = [] if "contextual" in wrong else [labelled]
        again = run("calibrate", *given, *tiny, "-o", tmp_path / "d.json", "--two-stage", *wrong)
        assert (again.exit_code, "--two-stage" in again.stderr) == (2, True)


def test_a_label_without_records_is_left_alone_and_said(run, tiny, tmp_path: Path):
    path = write(tmp_path / "labelled.jsonl", [[label for label in row if label != "S10"] for row in LABELS])
    out = tmp_path / "c.json"
    result = run("calibrate", path, *tiny, "-o", out, "--method", "platt")
    assert "S10 has no map: no record has it" in result.stdout
    assert "S10" not in read_calibration(out).maps
    assert read_calibration(out).fitted["left_alone"] == {"S10": "no record has it"}


def test_contextual_calibration_needs_no_records(run, tiny, tmp_path: Path, labelled: Path):
    out = tmp_path / "c.json"
    assert run("calibrate", *tiny, "-o", out, "--method", "contextual").exit_code == 0
    row = json.loads(run("score", "-", *tiny, "--calibration", out, input='{"text": "N/A"}').stdout)
    assert 0.2 < row["unsafe"] < 0.8  # one of the texts that even odds are the mean of
    assert run("calibrate", *tiny, "-o", out).exit_code == 2
    assert run("calibrate", labelled, *tiny, "-o", out, "--method", "contextual").exit_code == 2


@pytest.mark.parametrize("goal", ["f2", "f1=1", "precision", "recall=2", "fpr=x", "cost=0", "S99:f1"])
def test_a_goal_that_makes_no_sense_is_misuse(run, tiny, labelled: Path, tmp_path: Path, goal: str):
    result = run("calibrate", labelled, *tiny, "-o", tmp_path / "c.json", "--threshold-for", goal)
    assert result.exit_code == 2
    assert "--threshold-for" in result.stderr


def test_every_combination_of_labels_is_counted(table: ScoreTable):
    """The truth's columns are the taxonomy's, whatever the order of a record's labels."""
    assert table.truth is not None
    for i, j in itertools.combinations(range(1, 4), 2):
        expected = sum(table.labels[i] in row and table.labels[j] in row for row in LABELS)
        assert (table.truth[:, i] & table.truth[:, j]).sum() == expected
