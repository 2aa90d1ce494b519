"""`bench/guard.py`: a guard's figures say what is true of made-up scores, whoever stands beside it."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, recall_score, roc_auc_score

from edgeguard.backend import RuntimeOptions
from edgeguard.builtin import built_in
from edgeguard.calibration.maps import logit
from edgeguard.evaluation.baselines import greedy
from edgeguard.evaluation.table import ScoreTable, take
from edgeguard.evaluation.truth import find_truth, with_truth
from edgeguard.rows.record import Record

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "models" / "recipe")]
import calibrate  # noqa: E402
import guard as bench  # noqa: E402
import guard_measures as measures  # noqa: E402
import guard_page as page  # noqa: E402
import guard_records as records  # noqa: E402
import guard_targets as goals  # noqa: E402

LABELS = ("unsafe", *(f"S{i}" for i in range(1, 15)))


def made_rows(n: int, rng: np.random.Generator) -> list[dict[str, object]]:
    """Records of two sources and a third that is left out, half of them unsafe, of all lengths."""
    sources = ["forum", "news", "measuring-hate-speech"]
    return [
        {
            "id": f"r{i}",
            "text": " ".join(rng.choice(["a", "day", "in", "town"], size=int(rng.integers(1, 200)))),
            "labels": [] if i % 2 else [f"S{1 + i % 14}"],
            "source": sources[int(rng.integers(0, 3))],
        }
        for i in range(n)
    ]


def made_table(path: Path, noise: float = 0.3) -> ScoreTable:
    """Scores that are right but for noise."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    n, rng = len(rows), np.random.default_rng(len(path.name))
    bare = ScoreTable(LABELS, tuple(r["id"] for r in rows), np.arange(n), np.zeros(n), {}, None, np.zeros(n))
    truth = find_truth(path, LABELS)
    assert truth is not None
    table = with_truth(bare, truth, same_file=True)
    assert table.truth is not None
    p = np.clip(0.5 + 0.3 * (2 * table.truth - 1) + rng.normal(0, noise, (n, 15)), 0.001, 0.999)
    one_answer = np.where(p > 0.5, p, 0)
    scores = {"marginal": p, "joint": one_answer, "conditional": one_answer}
    return replace(table, margin=logit(p[:, 0]), scores=scores)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data pack of small files."""
    rng = np.random.default_rng(0)
    for name, n in {
        "val": 120, "val2": 120, "eval_public/xstest": 60, "eval_public/jailbreakbench": 40,
        "eval_public/restricted/strangers": 30, "train": 200,
    }.items():  # fmt: skip
        path = tmp_path / "data" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in made_rows(n, rng)))
    return tmp_path / "data"


def predictions(n: int, rng: np.random.Generator) -> tuple[measures.Predictions, np.ndarray]:
    """Of random scores, and a random truth."""
    y_true = rng.random((n, 4)) < 0.4
    y_prob = np.clip(y_true * 0.3 + rng.random((n, 4)) * 0.7, 0, 1)
    return measures.Predictions(y_prob >= 0.5, y_prob, y_prob[:, 0]), y_true


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_figures_of_a_file_are_those_of_scikit_learn(seed):
    said, y_true = predictions(40, np.random.default_rng(seed))
    y_true[0], y_true[1] = True, False
    assert said.y_prob is not None
    found = {k: float(v[0]) for k, v in measures.figures_of(said, y_true, np.ones((1, 40))).items()}
    verdict, codes = y_true[:, 0], y_true[:, 1:]
    assert found["AUROC"] == pytest.approx(roc_auc_score(verdict, said.y_prob[:, 0]))
    assert found["F1"] == pytest.approx(f1_score(verdict, said.y_pred[:, 0]))
    assert found["misses"] == pytest.approx(1 - recall_score(verdict, said.y_pred[:, 0]))
    assert found["false positives"] == pytest.approx(said.y_pred[~verdict, 0].mean())
    assert found["micro F1"] == pytest.approx(f1_score(codes, said.y_pred[:, 1:], average="micro"))
    assert found["micro AUPRC"] == pytest.approx(average_precision_score(codes.ravel(), said.y_prob[:, 1:].ravel()))
    some = codes.any(axis=0)
    apart = average_precision_score(codes[:, some], said.y_prob[:, 1:][:, some], average="macro")
    assert found["macro AUPRC"] == pytest.approx(apart)


def test_differences_are_paired_a_system_never_differs_from_itself():
    rng = np.random.default_rng(1)
    said, y_true = predictions(50, rng)
    one, two = measures.draw(said, y_true), measures.draw(said, y_true)
    for key, values in one.items():
        assert len(values) == 1 + measures.DRAWS
        np.testing.assert_array_equal(values, two[key])
    value, low, high = measures.interval(one["AUROC"])
    assert low < value < high


def test_what_no_record_can_say_is_no_figure():
    y_true = np.ones((20, 3), bool)
    drawn = measures.draw(measures.Predictions(y_true, np.full((20, 3), 0.9), np.full(20, 0.9)), y_true)
    assert all(np.isnan(drawn[key]).all() for key in ("AUROC", "AUPRC", "false positives"))
    assert page.show(measures.interval(drawn["AUROC"])) == "–"
    assert page.show(measures.interval(drawn["misses"])) == "0.000 [0.000, 0.000]"


def test_groups_count_false_alarms_and_misses_each_of_its_own_kind():
    names = np.array(["short"] * 4 + ["long"] * 3)
    unsafe = np.array([0, 0, 0, 1, 1, 1, 0], bool)
    flagged = np.array([1, 0, 0, 1, 0, 1, 0], bool)
    said = measures.Predictions(flagged[:, None], flagged[:, None] * 0.8, flagged * 0.8)
    short, long = measures.groups(said, unsafe[:, None], names)
    assert (short.name, short.false_alarms, short.misses) == ("short", measures.Share(1, 3), measures.Share(0, 1))
    assert (long.name, long.false_alarms, long.misses) == ("long", measures.Share(0, 1), measures.Share(1, 2))
    assert [one.name for one in measures.groups(said, unsafe[:, None], names, least=4)] == ["short"]
    assert [one.name for one in measures.groups(said, unsafe[:, None], names, order=["long", "none"])] == ["long"]
    assert np.isnan(short.auroc.value)  # of one unsafe record
    assert short.ece.value == pytest.approx(abs(0.8 * 2 / 4 - 1 / 4))  # in one bin
    assert measures.worst_calibrated([short, long]) == max(short, long, key=lambda group: group.ece.value)


@pytest.mark.parametrize(
    ("words", "name"),
    [(1, "up to 20 words"), (20, "up to 20 words"), (21, "21 to 60"), (60, "21 to 60"), (61, "61 to 150"),
     (150, "61 to 150"), (151, "over 150"), (9000, "over 150")],
)  # fmt: skip
def test_a_length_includes_its_upper_end(words, name):
    assert records.Records(Path("x.jsonl"), np.array([words]), np.array([""])).lengths == [name]


def test_records_of_sources_that_are_left_out_do_not_count(data: Path):
    path = data / "val2.jsonl"
    one, table = records.read(path), made_table(path)
    kept = records.counted(one, table)
    assert 0 < len(kept) < len(table)
    assert "measuring-hate-speech" not in one.sources[kept.places]
    assert set(one.sources[kept.places]) == {"forum", "news"}


def test_guards_are_compared_on_the_records_that_all_of_them_scored(data: Path):
    table = made_table(data / "val.jsonl")
    fewer = take(table, np.array([0, 2, 3, 7]))
    others = take(table, np.array([2, 3, 4, 7]))
    for one in records.on_the_same([table, fewer, others]):
        assert one.places.tolist() == [2, 3, 7]


def test_targets_are_reached_or_missed_by_what_was_found():
    def drawn(value: float) -> dict[str, np.ndarray]:
        values = np.concatenate([[value], np.linspace(value - 0.02, value + 0.02, measures.DRAWS)])
        return dict.fromkeys(("F1", "false positives", "AUROC", "ECE", "micro F1"), values)

    own = {"xstest": drawn(0.83), "val2": drawn(0.9)}
    others = {"greedy": {"val2": drawn(0.85)}}
    found = goals.outcomes("edgeguard-135m", "edgeguard-135m@2", own, others)
    said = {(one.target.file, one.target.figure, one.target.over): one for one in found}
    f1 = said["xstest", "F1", ""]
    assert (f1.by, f1.open) == (pytest.approx(0.83 - 0.821), True)
    alarms = said["xstest", "false positives", ""]
    assert (alarms.by, alarms.open) == (pytest.approx(0.068 - 0.83), False)
    assert said["val2", "micro F1", "greedy"].by == pytest.approx(0.05)
    assert said["val2", "AUROC", "edgeguard-135m@1"].found is None
    first = goals.outcomes("edgeguard-135m", "edgeguard-135m@1", own, others)
    assert all(one.target.over != "edgeguard-135m@1" for one in first)
    larger = goals.outcomes("edgeguard-500m", "edgeguard-500m@1", own, others)
    assert [one.target.limit for one in larger if one.target.figure == "F1"] == [0.88]


def test_the_pages_have_every_file_and_every_guard(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """From the command line, with made-up scores in place of hours of scoring."""
    asked: list[tuple[str, RuntimeOptions]] = []

    def scores_of(guard: object, form: str, path: Path, folder: Path, runtime: RuntimeOptions) -> ScoreTable:
        asked.append((form, runtime))
        return made_table(path, 0.3 if form == "q8_0" else 0.6)

    monkeypatch.setattr(bench, "scores_of", scores_of)
    monkeypatch.setattr(bench.baselines, "zero_shot", lambda guard, path, folder, runtime: made_table(path, 0.9))
    monkeypatch.setattr(measures, "DRAWS", 100)
    out = tmp_path / "out"
    out.mkdir()
    argv = [data, "--scores", tmp_path / "scores", "--guard", "edgeguard-135m", "--guard", "edgeguard-135m@1:q4_0"]
    argv += ["--option", "device=cuda", "--threads", 1, "--tf-idf", "train.jsonl", "--zero-shot", 25]
    argv += ["--out", out, "--json", tmp_path / "x.json"]
    monkeypatch.setattr(sys, "argv", ["guard.py", *map(str, argv)])
    bench.main()
    assert {form for form, _ in asked} == {"q8_0", "q4_0"}
    card = (out / "guard-edgeguard-135m.md").read_text()
    details = (out / "guard-edgeguard-135m-details.md").read_text()
    version = built_in("edgeguard-135m").version
    assert f"\nedgeguard-135m@{version}, form q8_0; scores made with device=cuda. " in card
    for name in ("val", "val2", "xstest", "jailbreakbench"):
        assert f"\n| {name} | " in card and f"\n## {name}.jsonl: " in details
    assert "strangers.jsonl (non-commercial licence: for evaluation only)" in details and "\n| strangers\\* |" in card
    assert "| val2 | edgeguard-135m@1 | +" in card and "| val2 | tf-idf | " in card
    assert "| xstest | zero-shot, 25 records | +" in card
    assert "\nFalse alarms in val2, most of all: `" in card
    assert "val2: decision over greedy" in details and "| news | " in details
    assert "measuring-hate-speech" not in details
    assert "over 150" in (out / "guard-edgeguard-135m-length.md").read_text()
    whole = json.loads((tmp_path / "x.json").read_text())
    assert whole["val"]["greedy"]["micro F1"][0] <= 1 and "tf-idf" in whole["xstest"]
    assert len(list((tmp_path / "scores").glob("tf-idf-*.npz"))) == 5  # a second run trains nothing


def test_a_guard_may_stand_beside_another_as_far_as_it_was_scored(data: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(bench, "scores_of", lambda guard, form, path, folder, runtime: made_table(path, 0.3))
    monkeypatch.setattr(bench, "TRAINING", ())
    monkeypatch.setattr(measures, "DRAWS", 100)
    old, out, scores = built_in("edgeguard-135m@1"), tmp_path / "out", tmp_path / "scores"
    out.mkdir()
    scores.mkdir()
    bench.kept_at(old, "q8_0", data / "val.jsonl", scores, RuntimeOptions()).write_bytes(b"here")
    argv = ["guard.py", data, "--scores", scores, "--guard", "edgeguard-135m", "--guard", "edgeguard-135m@1"]
    argv += ["--as-far-as-scored", "--tf-idf", "--out", out]
    monkeypatch.setattr(sys, "argv", [*map(str, argv)])
    bench.main()
    card = (out / "guard-edgeguard-135m.md").read_text()
    assert "| val | edgeguard-135m@1 | " in card and "| val2 | edgeguard-135m@1 | " not in card


def test_an_option_of_the_runtime_is_one_that_there_is():
    assert dict(map(bench.option, ["device=cuda", "batch=64"])) == {"device": "cuda", "batch": 64}
    with pytest.raises(SystemExit, match="--option devise=cuda: expected NAME=VALUE, of context, device"):
        bench.option("devise=cuda")


def test_a_guard_is_named_once():
    with pytest.raises(SystemExit, match="asked for twice"):
        bench.titled([bench.ask("edgeguard-135m", None), bench.ask("edgeguard-135m:q8_0", None)])


def test_the_greedy_answer_is_at_no_threshold(data: Path):
    table = made_table(data / "val.jsonl")
    said = measures.answer(table)
    np.testing.assert_array_equal(said.y_pred[:, 1:], greedy(table))
    assert said.y_prob is None and said.y_pred[greedy(table).any(axis=1), 0].all()


class Loaded(SimpleNamespace):
    """A guard that is open."""

    def __enter__(self) -> Loaded:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def recipe(data: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The recipe's calibrate.py, with made-up scores for those of the built-in guard's Q8_0."""
    model = built_in("edgeguard-135m").form("q8_0").model_sha256
    table = made_table(data / "val.jsonl")

    def score_records(guard: object, part: list[Record]) -> ScoreTable:
        places = np.array([table.ids.index(record.id) for record in part])
        return replace(take(table, places), places=np.arange(len(part)), truth=None)

    monkeypatch.setattr(calibrate.Guard, "load", lambda *_, **__: Loaded(model_sha256=model, name="made"))
    monkeypatch.setattr(calibrate, "score_records", score_records)
    monkeypatch.setattr(calibrate, "PART", 50)
    return calibrate


def test_scores_say_how_they_were_made_and_are_found_by_the_same_options(
    recipe: ModuleType, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    guard, path, folder = built_in("edgeguard-135m"), data / "val.jsonl", tmp_path / "kept"
    plain, cuda = RuntimeOptions(threads=1), RuntimeOptions(device="cuda")
    for runtime in (plain, cuda):
        recipe.scores_of(guard, "q8_0", path, folder, runtime)
    there, other = sorted(one.name for one in folder.iterdir())
    assert there.startswith("q8_0-cuda-val-") and other.startswith("q8_0-val-")
    assert (recipe.how_made(plain), recipe.how_made(cuda)) == ("on the CPU", "with device=cuda")
    monkeypatch.setattr(recipe.Guard, "load", refuse)
    for runtime in (plain, replace(plain, threads=None), cuda):
        assert len(recipe.scores_of(guard, "q8_0", path, folder, runtime)) == 120


def test_scoring_that_was_stopped_goes_on_and_comes_to_the_same(
    recipe: ModuleType, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    guard, path, whole = built_in("edgeguard-135m"), data / "val.jsonl", recipe.score_records
    at_once, asked = recipe.scores_of(guard, "q8_0", path, None), []

    def stopped(loaded: object, part: list[Record]) -> ScoreTable:
        asked.append(part[0].id)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return whole(loaded, part)

    monkeypatch.setattr(recipe, "score_records", stopped)
    with pytest.raises(KeyboardInterrupt):
        recipe.scores_of(guard, "q8_0", path, tmp_path / "kept")
    after = recipe.scores_of(guard, "q8_0", path, tmp_path / "kept")
    assert asked == ["r0", "r50", "r100", "r100"]
    assert after.ids == at_once.ids and after.places.tolist() == list(range(120))
    np.testing.assert_array_equal(after.scores["marginal"], at_once.scores["marginal"])
    np.testing.assert_array_equal(after.truth, at_once.truth)
    assert [one.suffix for one in (tmp_path / "kept").iterdir()] == [".npz"]  # and no parts


def test_scores_of_another_model_than_the_form_s_are_refused(
    recipe: ModuleType, data: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(recipe.Guard, "load", lambda *_, **__: Loaded(model_sha256="other"))
    with pytest.raises(SystemExit, match="opened a model of sha256 other; expected"):
        recipe.scores_of(built_in("edgeguard-135m"), "q8_0", data / "val.jsonl", None)


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("it is scored again")
