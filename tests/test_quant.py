"""`edgeguard bench quant` on a tiny model: no drift against itself, nothing scored twice, a page that stands alone."""

from __future__ import annotations

import json
import math
import random
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_studies import NINE, Made, made_study
from test_drift import table
from tiny_gguf import write_tiny_llama

from edgeguard.backend import Condition, RuntimeOptions
from edgeguard.calibration.files import read_calibration
from edgeguard.calibration.maps import sigmoid
from edgeguard.calibration.thresholds import Thresholds
from edgeguard.convert import Options, convert
from edgeguard.errors import ModelError
from edgeguard.evaluation.drift import kl_divergence
from edgeguard.evaluation.table import ScoreTable, decisions, score_records
from edgeguard.formats.onnx_graph import read_graph
from edgeguard.guard import Guard, Search
from edgeguard.quant import scoring
from edgeguard.quant.choices import Choices
from edgeguard.quant.decision import looks_of
from edgeguard.quant.files import write_report
from edgeguard.quant.page import page
from edgeguard.quant.recommendation import recommend
from edgeguard.quant.repair import repair, reproducing
from edgeguard.quant.report import Measured, as_json, build_report
from edgeguard.quant.scoring import Setting, joined, score
from edgeguard.quant.study import StudyOptions, open_reference
from edgeguard.quant.study import study as make_study
from edgeguard.quant.variants import as_float, made_float, make_variants, open_variant
from edgeguard.rows.readers import Reading, read_records
from edgeguard.rows.shapes import Fields

WORDS = [
    "boil",
    "an",
    "egg",
    "hurt",
    "the",
    "dog",
    "steal",
    "money",
    "sing",
    "a",
    "song",
    "kick",
    "rob",
    "take",
    "go",
    "home",
    "now",
    "please",
    "tell",
    "me",
]


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> Path:
    dice, path = random.Random(0), tmp_path_factory.mktemp("records") / "records.jsonl"
    rows = []
    for i in range(24):
        text = " ".join(dice.choice(WORDS) for _ in range(dice.randint(2, 8)))
        labels = [] if i % 2 else dice.sample(["S1", "S10", "S2"], dice.randint(1, 2))
        rows.append(json.dumps({"id": f"q{i}", "text": text, "labels": labels}) + "\n")
    path.write_text("".join(rows))
    return path


@pytest.fixture(scope="module")
def study(run, tiny_model, tiny_profile, records, tmp_path_factory) -> tuple[Path, list]:
    """One whole study of a copy of the reference, a quantized GGUF and an ONNX model."""
    out = tmp_path_factory.mktemp("study")
    copy = out / "copy.gguf"
    copy.write_bytes(tiny_model.read_bytes())
    options = ["-r", tiny_model, "-p", tiny_profile, "-t", 1, "--draws", 30, "--measurements", 1, "--floor", 8]
    args = ["bench", "quant", records, "-o", out, *options, "-v", f"{copy},q4_0", "-v", "onnx-int8"]
    result = run(*args)
    assert result.exit_code == 0, result.stderr
    return out, args


@pytest.fixture(scope="module")
def report(study) -> dict:
    return json.loads((study[0] / "report.json").read_text())


def named(report: dict, name: str) -> dict:
    return next(v for v in report["variants"] if v["name"] == name)


def test_the_reference_against_itself_has_exactly_no_drift(report):
    copy = next(v for v in report["variants"] if v["name"] == "copy")
    for estimator in copy["estimators"].values():
        for label in estimator["labels"].values():
            shift = label["shift"]
            assert [shift[k] for k in ("mean", "rms", "p50", "p90", "p99", "max", "odds_mean", "odds_rms")] == [0] * 8
            assert shift["distinct"] == 1
            assert label["flips"]["rate"] == 0
        assert estimator["label_sets"] == {"same": 1, "jaccard": 1}
        for interval in estimator["truth"]["overall"].values():
            assert interval["value"] in (0, None)
        for part in estimator["truth"]["labels"]["unsafe"]["harm"].values():
            assert (part["value"], part["low"], part["high"]) == (0, 0, 0)
    assert copy["verdict"]["kl"]["max"] == copy["first_label"]["total_variation"]["max"] == 0


def test_a_quantized_model_drifts_beyond_its_noise(report):
    q4 = next(v for v in report["variants"] if v["name"] == "q4_0")
    shift = q4["estimators"]["marginal"]["labels"]["unsafe"]["shift"]
    floor = max(f["marginal"]["labels"]["unsafe"]["odds_rms"] for f in q4["floor"].values())
    assert shift["odds_rms"] > 2 * floor > 0
    assert set(q4["floor"]) == {"threads", "batch", "attention", "neighbours"}
    assert set(named(report, "onnx-int8")["floor"]) == {"threads", "batch"}
    assert (q4["noise"]["verdict"], q4["noise"]["records"]) == ("beyond", 10)  # a file of scores is whole
    assert named(report, "copy")["noise"]["verdict"] == "within"  # nothing moved: ties are no drift
    assert q4["n_bytes"] < report["reference"]["n_bytes"]
    assert q4["cost"]["rate"]["median"] > 0


def test_figures_are_those_of_scoring_by_hand(report, records, tiny_guard, study, tiny_profile):
    path = next((study[0] / "models").glob("*/q4_0.gguf"))
    options = {"profile": tiny_profile, "runtime": RuntimeOptions(threads=1, kv_cache="f32")}
    with Guard.load(path, **options) as guard:
        variant = score_records(guard, read_records(records))
    with Guard.load(tiny_guard.backend.info.path, **options) as guard:
        reference = score_records(guard, read_records(records))
    shift = named(report, "q4_0")["estimators"]["marginal"]["labels"]["unsafe"]["shift"]
    assert shift["odds_mean"] == pytest.approx(np.mean(variant.margin - reference.margin), rel=1e-5)
    assert shift["mean"] == pytest.approx(np.mean(variant.unsafe - reference.unsafe), rel=1e-4, abs=1e-9)


def test_weights_and_rounded_activations_are_told_apart(report, records, study, tiny_guard, tiny_profile, tmp_path):
    copy, q4, int8 = (named(report, name)["weights_or_runtime"] for name in ("copy", "q4_0", "onnx-int8"))
    assert copy is None  # nothing of F32 is rounded
    for parts in (q4["marginal"], int8["joint"]):
        assert parts["total"]["odds_mean"] == pytest.approx(
            parts["weights"]["odds_mean"] + parts["runtime"]["odds_mean"], rel=1e-4, abs=1e-9
        )
        assert parts["weights"]["odds_rms"] > 0 and parts["runtime"]["odds_rms"] > 0
    path = next((study[0] / "models").glob("*/q4_0.gguf"))
    convert(path, tmp_path / "floats.gguf", to="f32")
    rows = list(read_records(records))
    first = [rows[place] for place in scoring.order_of(len(rows))[: q4["records"]]]
    with Guard.load(
        tmp_path / "floats.gguf", profile=tiny_profile, runtime=RuntimeOptions(threads=1, kv_cache="f32")
    ) as guard:
        in_floats = score_records(guard, first)
    with Guard.load(
        tiny_guard.backend.info.path, profile=tiny_profile, runtime=RuntimeOptions(threads=1, kv_cache="f32")
    ) as guard:
        reference = score_records(guard, first)
    by_hand = np.mean(in_floats.margin - reference.margin)
    assert q4["marginal"]["weights"]["odds_mean"] == pytest.approx(by_hand, rel=1e-5)


def test_onnx_in_floats_is_what_convert_makes_with_float_activations(study, tiny_model, tmp_path):
    int8 = open_variant(next((study[0] / "models").glob("*/onnx-int8")))
    convert(tiny_model, tmp_path / "made", to="onnx-int8", options=Options(activations="float"))
    with made_float(int8, tmp_path / "here") as ours:
        assert {b.accuracy_level for b in read_graph(ours.path).blocked.values()} <= {None, 1}
        assert as_float(replace(int8, path=ours.path)) is None
        with Guard.load(ours.path, profile=tiny_profile_of(study), runtime=RuntimeOptions(threads=1)) as guard:
            one = guard.score("boil an egg now")
    assert not any((tmp_path / "here").iterdir())
    with Guard.load(tmp_path / "made", profile=tiny_profile_of(study), runtime=RuntimeOptions(threads=1)) as guard:
        assert guard.score("boil an egg now").categories == one.categories


def tiny_profile_of(study) -> Path:
    args = study[1]
    return args[args.index("-p") + 1]


def test_the_same_weights_give_the_same_report_in_both_runtimes(run, tiny_model, tiny_profile, records, tmp_path):
    """Tolerance, as docs/quantization.md states it: 0.001 nats, no flip, the same label sets."""
    options = ["-r", tiny_model, "-p", tiny_profile, "-t", 1, "--draws", 30, "--floor", 0, "--measurements", 0]
    assert run("bench", "quant", records, "-o", tmp_path, *options, "-v", "onnx-fp32").exit_code == 0
    (found,) = json.loads((tmp_path / "report.json").read_text())["variants"]
    assert found["runtime"] == "onnx"
    for estimator in found["estimators"].values():
        for label in estimator["labels"].values():
            assert label["shift"]["odds_rms"] < 0.001 and label["shift"]["max"] < 0.001
            assert label["flips"]["rate"] == 0
        assert estimator["label_sets"]["same"] == 1
        for change in estimator["truth"]["overall"].values():
            assert change["value"] == pytest.approx(0, abs=0.001)


def test_a_study_from_python_finds_what_the_command_found(report, study, records, tiny_model, tiny_profile, tmp_path):
    heard = []
    options = StudyOptions(
        records=records,
        folder=tmp_path / "own",
        reference=tiny_model,
        variants=["q4_0"],
        profile=str(tiny_profile),
        choices=Choices(draws=30),
        floor=0,
        measurements=1,
        runtime=RuntimeOptions(threads=1, kv_cache="f32"),
    )
    found = make_study(options, tell=heard.append)
    steps = {(step.what, step.done, step.total) for step in heard}
    assert {"making q4_0", "scoring tiny", "scoring q4_0", "measuring q4_0"} <= {what for what, _, _ in steps}
    assert ("scoring q4_0", 24, 24) in steps and ("measuring q4_0", 1, 1) in steps
    last = heard[-1]
    assert (last.stage, last.stages) == (5, 5) and last.left is not None
    (mine,), its = found.data["variants"], named(report, "q4_0")
    for key in ("name", "sha256", "records", "estimators", "repair", "verdict", "first_label", "off_grammar", "points"):
        assert mine[key] == its[key], key
    assert mine["cost"].keys() == its["cost"].keys()
    assert found.data["setting"] == report["setting"] | {"command": "", "floor_records": 0}
    assert found.recommended is None
    write_report(found, tmp_path / "elsewhere")
    assert json.loads((tmp_path / "elsewhere" / "report.json").read_text()) == found.data
    for estimator in found.repairs["q4_0"]:
        written = (tmp_path / "elsewhere" / "repair" / f"q4_0-{estimator}.json").read_bytes()
        assert written == (study[0] / "repair" / f"q4_0-{estimator}.json").read_bytes()


def test_a_study_takes_no_lora_and_no_condition(records, tmp_path):
    """Scores are kept by the hash of a model file: an adapter beside it would go unseen."""
    for runtime in (RuntimeOptions(lora="adapter.gguf"), RuntimeOptions(condition=Condition(batch=1))):
        with pytest.raises(ValueError, match="no lora and no condition"):
            StudyOptions(records=records, folder=tmp_path, runtime=runtime)


def test_a_folder_that_cannot_be_written_is_said_before_models_are_made(run, records, tmp_path):
    (tmp_path / "file").touch()
    result = run("bench", "quant", records, "-o", tmp_path / "file", "-r", tmp_path / "none.gguf")
    assert result.exit_code == 1
    assert "file cannot be written" in result.stderr and "name another --out" in result.stderr


def test_a_reference_that_does_not_say_its_profile_needs_one(run, records, tiny_model, tmp_path):
    result = run("bench", "quant", records, "-o", tmp_path / "s", "-r", tiny_model)
    assert result.exit_code == 1
    assert (
        "does not say for certain which guard it is" in result.stderr
        and "; pass --profile with a name" in result.stderr
    )


def test_nothing_is_scored_twice(run, study, report, monkeypatch):
    out, args = study
    before = {p: p.stat().st_mtime_ns for p in (out / "scores").rglob("*.npz")}
    assert before
    monkeypatch.setattr(scoring, "_START", "raise SystemExit('scored again')")
    again = run(*args, "--measurements", 0)
    assert again.exit_code == 0, again.stderr
    assert {p: p.stat().st_mtime_ns for p in (out / "scores").rglob("*.npz")} == before
    other = json.loads((out / "report.json").read_text())
    assert named(other, "q4_0")["estimators"] == named(report, "q4_0")["estimators"]
    assert [v["cost"] for v in other["variants"]] == [v["cost"] for v in report["variants"]]  # kept, not lost


def test_an_interrupted_run_goes_on_with_the_chunk_it_was_at(records, tiny_model, tiny_profile, tmp_path):
    setting = Setting(records=records, profile=str(tiny_profile), runtime=RuntimeOptions(threads=1, kv_cache="f32"))
    model = open_variant(tiny_model)
    whole = score(model, setting, tmp_path / "one")
    kept = next((tmp_path / "one").iterdir())
    (kept / "chunk-000010.npz").unlink()
    touched = (kept / "chunk-000000.npz").stat().st_mtime_ns
    heard = []
    again = score(model, setting, tmp_path / "one", tell=lambda *step: heard.append(step))
    assert heard == [(14, 24), (20, 24), (24, 24)]
    assert (kept / "chunk-000000.npz").stat().st_mtime_ns == touched
    np.testing.assert_array_equal(again.table.margin, whole.table.margin)
    assert (again.n, again.table.ids) == (24, tuple(f"q{i}" for i in range(24)))


def test_the_first_records_are_scored_alone_and_are_those_of_all(records, tiny_model, tiny_profile, tmp_path):
    setting = Setting(records=records, profile=str(tiny_profile), runtime=RuntimeOptions(threads=1, kv_cache="f32"))
    model = open_variant(tiny_model)
    opened = score(model, setting, tmp_path, upto=0)
    assert (len(opened.table), opened.n, opened.seconds, opened.n_vocab > 0) == (0, 24, None, True)
    few = score(model, setting, tmp_path, upto=5)
    assert few.table.places.tolist() == sorted(scoring.order_of(24)[:10])  # files of scores are whole
    assert few.seconds > 0 and scoring.kept_records(model, setting, tmp_path) == 10
    whole = score(model, setting, tmp_path)
    np.testing.assert_array_equal(few.table.margin, whole.table.margin[few.table.places])


@settings(deadline=None)
@given(st.integers(1, 2000))
def test_files_of_scores_hold_every_record_once(n):
    ends = scoring.edges(n)
    assert ends[0] == 0 and ends[-1] == n and all(a < b for a, b in pairwise(ends))
    assert set(looks_of(n)) <= set(ends)  # what is looked at is scored, and no more
    assert sorted(scoring.order_of(n)) == list(range(n))


def test_other_records_models_or_settings_are_scored_anew(records, tiny_model, tiny_profile, tmp_path):
    setting = Setting(records=records, profile=str(tiny_profile), runtime=RuntimeOptions(threads=1, kv_cache="f32"))
    model = open_variant(tiny_model)
    other = tmp_path / "records.jsonl"
    other.write_text(records.read_text() + '{"id": "new", "text": "go"}\n')
    keys = {
        scoring.key_of(m, s)
        for m, s in (
            (model, setting),
            (replace(model, sha256="0" * 64), setting),
            (model, replace(setting, records=other)),
            (model, replace(setting, search=Search(tolerance=0.1))),
            (model, replace(setting, runtime=RuntimeOptions(threads=2, kv_cache="f32"))),
            (model, replace(setting, runtime=RuntimeOptions(threads=1, kv_cache="f16"))),
            (model, replace(setting, limit=5)),
            (model, replace(setting, reading=Reading(fields=Fields(text="text")))),
            (model, replace(setting, reading=Reading(strict=True))),
        )
    }
    assert len(keys) == 9


def test_chunks_join_to_the_table_of_all(tiny_guard, records):
    rows, order = list(read_records(records)), scoring.order_of(24)
    whole = score_records(tiny_guard, rows)
    begins = [0, 10, 20]
    parts = [score_records(tiny_guard, [rows[place] for place in order[i : i + 10]]) for i in begins]
    together = joined(parts, begins, order)
    assert together.ids == whole.ids
    for name in ("places", "margin", "unsafe", "off", "first"):
        np.testing.assert_array_equal(getattr(together, name), getattr(whole, name))


def test_the_repair_is_a_calibration_that_score_takes(run, study, records, tiny_profile):
    out, _ = study
    path = next((out / "models").glob("*/q4_0.gguf"))
    calibration = read_calibration(out / "repair" / "q4_0-marginal.json")
    assert calibration.fitted["to"] == "tiny"
    options = ["-m", path, "-p", tiny_profile, "-t", 1, "--calibration", out / "repair" / "q4_0-marginal.json"]
    assert run("score", records, *options).exit_code == 0
    onnx = next((out / "models").glob("*/onnx-int8"))
    options = ["-m", onnx, "-p", tiny_profile, "-t", 1, "--calibration", out / "repair" / "onnx-int8-marginal.json"]
    assert run("score", records, *options).exit_code == 0


def as_llama_cpp_keeps_it(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities as `llama-perplexity --kl-divergence-base` writes them: 16 bits over the uppermost 16 nats."""
    logp = logits - np.logaddexp.reduce(logits)
    least = max(logp.min(), logp.max() - 16)
    scale = (logp.max() - least) / 65535
    return least + scale * np.rint(np.maximum(0, logp - least) / scale)


def test_the_divergence_is_that_of_llama_cpp_s_own_tool(study, tiny_guard, records):
    """At each record's verdict: its sum is over 16-bit log-probabilities, and over tokens of more than e^-16."""
    path = next((study[0] / "models").glob("*/q4_0.gguf"))
    ours, theirs = [], []
    with Guard.load(path, profile=tiny_guard.profile, runtime=RuntimeOptions(threads=1)) as guard:
        for record in read_records(records):
            prompt = [tiny_guard.prompt(record)]
            base, now = (g.backend.logits(prompt)[0].astype(np.float64) for g in (tiny_guard, guard))
            kept, logp = as_llama_cpp_keeps_it(base), now - np.logaddexp.reduce(now)
            seen = kept > -16
            theirs.append(np.sum(np.exp(kept[seen]) * (kept[seen] - logp[seen])))
            rows = [np.exp(x - np.logaddexp.reduce(x))[None] for x in (base, now)]
            ours.append(kl_divergence(*rows)[0])
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=16 / 65535 / 2)  # half a step of its 16 bits
    assert np.mean(ours) > 1e-2


def test_the_page_stands_alone_and_escapes_what_comes_from_files(study, report):
    html = (study[0] / "report.html").read_text()
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#)""", html)
    assert "url(" not in re.sub(r"url\(#[\w.-]+\)", "", html) and "@import" not in html
    for name in ("copy", "q4_0", "onnx-int8"):
        assert name in html
    assert html.count('class="chart') == 1  # too few records for the others
    evil = json.loads(json.dumps(report).replace("q4_0", "<script>x</script>"))
    shown = page(evil)
    assert "<script>" not in shown


def test_a_page_can_be_written_without_labels(run, tiny_model, tiny_profile, records, tmp_path):
    bare = tmp_path / "bare.jsonl"
    rows = [json.loads(line) for line in records.read_text().splitlines()]
    bare.write_text("".join(json.dumps({"id": r["id"], "text": r["text"]}) + "\n" for r in rows))
    options = ["-r", tiny_model, "-p", tiny_profile, "-t", 1, "-v", "q4_0", "--floor", 0, "--measurements", 0]
    refused = run("bench", "quant", bare, "-o", tmp_path / "study", *options, "--max-auprc-loss", 0.5)
    assert (refused.exit_code, "needs labels, and the records have none" in refused.stderr) == (1, True)
    assert not list((tmp_path / "study").rglob("*.npz"))
    loss = ["--max-auprc-loss", 0.5, "--anyway"]
    result = run("bench", "quant", bare, "-o", tmp_path / "study", *options, *loss)
    assert result.exit_code == 5, result.stderr  # a loss that cannot be told is not inside a limit, and not outside
    found = json.loads((tmp_path / "study" / "report.json").read_text())
    assert found["unsafe"] is None and "truth" not in found["variants"][0]["estimators"]["marginal"]
    assert "Against the labels" not in (tmp_path / "study" / "report.html").read_text()


@pytest.mark.parametrize(
    ("variants", "said"),
    [
        ("q9_9", "'q9_9' is no file, and none of"),
        ("q8_0-float", "'q8_0-float' is no file"),
        ("{other}", "is no variant of"),
        ("{reference}", "two models are called tiny"),
        ("{missing}", "is no file"),
    ],
)
def test_what_is_no_variant_is_refused(run, tiny_model, tiny_profile, records, tmp_path, variants, said):
    other = write_tiny_llama(tmp_path / "other.gguf", n_ctx=1024, extra_pieces=["zz"])
    names = {"other": other, "reference": tiny_model, "missing": tmp_path / "none.gguf"}
    options = ["-r", tiny_model, "-p", tiny_profile, "-t", 1, "--floor", 0, "--measurements", 0]
    result = run("bench", "quant", records, "-o", tmp_path / "s", *options, "-v", variants.format(**names))
    assert result.exit_code == 1
    assert said in result.stderr
    assert not list((tmp_path / "s").rglob("*.npz"))  # before the first score


def test_an_onnx_reference_makes_no_gguf(study, records, tiny_profile, tmp_path):
    onnx = open_variant(next((study[0] / "models").glob("*/onnx-int8")))
    with pytest.raises(ModelError, match="give the GGUF file it was made from"):
        make_variants(onnx, ["q8_0"], tmp_path)


def test_a_missing_reference_and_a_foreign_calibration_are_said(
    run, records, tiny_model, tiny_profile, tmp_path, study
):
    missing = run("bench", "quant", records, "-o", tmp_path / "s", "-r", tmp_path / "none.gguf", "-p", tiny_profile)
    assert missing.exit_code == 1 and "none.gguf" in missing.stderr
    foreign = study[0] / "repair" / "q4_0-marginal.json"
    options = ["-r", tiny_model, "-p", tiny_profile, "--calibration", foreign]
    result = run("bench", "quant", records, "-o", tmp_path / "s", *options)
    assert result.exit_code == 1 and "was fitted on model" in result.stderr


def choices(**limits) -> Choices:
    given_ = {"max_flip_rate": None, "max_auprc_loss": None} | limits
    return Choices(calibrations={}, thresholds=Thresholds(0.3), draws=50, seed=0, **given_)


def measured(tiny_model: Path, name: str, found: ScoreTable, n_bytes: int, tmp_path: Path) -> Measured:
    file = tmp_path / f"{name}.bin"
    file.write_bytes(bytes(n_bytes))
    return Measured(replace(open_variant(tiny_model), name=name, files=(file,)), found, None, [])


Q8, Q4 = Made("q8_0", 145, 1, 1), Made("q4_0", 92, 2, 2)
TWO_PERCENT = {"max_flip_rate": 0.02}
STUDIES = {  # name → what is compared, on how many records, with which limits; what to ship, the verdict, a word of why
    "the smaller of two that keep": ([Q8, Q4], 1000, TWO_PERCENT, "q4_0", "keeps", "smallest"),
    "the larger where the smaller breaks": ([Q8, Made("q4_0", 92, 30, 30)], 1000, TWO_PERCENT, "q8_0", "keeps", ""),
    "the larger where the smaller is undecided": (
        [Q8, Made("q4_0", 92, 9, 6)],
        1000,
        TWO_PERCENT,
        "q8_0",
        "keeps",
        "too few records to say of q4_0",
    ),
    "none where all break": ([Made("q8_0", 145, 25, 25)], 1000, TWO_PERCENT, None, "breaks", "no variant keeps inside"),
    "none where none is certain": (
        [Made("q8_0", 145, 9, 6), Made("q4_0", 92, 30, 30)],
        1000,
        TWO_PERCENT,
        None,
        "too_few",
        "too few records to say of q8_0: about",
    ),
    "59 records at 5 %": ([Made("q8_0", 145)], 59, {"max_flip_rate": 0.05}, "q8_0", "keeps", ""),
    "58 records at 5 %": ([Made("q8_0", 145)], 58, {"max_flip_rate": 0.05}, None, "too_few", "about 59 would do"),
    "ranking lost, decisions kept": (
        [Q8, Made("q4_0", 92, shuffled=True)],
        1000,
        TWO_PERCENT | {"max_auprc_loss": 0.01},
        "q8_0",
        "keeps",
        "",
    ),
    "nine variants": (NINE, 1000, TWO_PERCENT, "q5_0", "keeps", ""),
    "one that is not smaller": ([Made("onnx-fp32", 541)], 1000, TWO_PERCENT, "onnx-fp32", "keeps", "not smaller"),
}


@pytest.mark.parametrize("name", STUDIES)
def test_of_made_up_studies_the_right_file_is_shipped(name, tmp_path):
    variants, n, limits, ship, verdict, why = STUDIES[name]
    report = made_study(tmp_path, variants, n=n, choices=limits)
    found = report.data["recommendation"]
    assert (report.recommended, found["verdict"]) == (ship, verdict)
    assert why in found["why"] and found["without_limits"] is None
    for one in report.data["variants"]:
        made, decision = next(v for v in variants if v.name == one["name"]), one["decision"]
        assert (decision["toward_safe"], decision["toward_unsafe"]) == (made.to_safe, made.to_unsafe)
        assert decision["changed"] == len(one["changed_records"]) <= decision["at_most"] <= decision["of"] == n
        assert (decision["records_needed"] is None) == (decision["verdict"] != "too_few")
        if decision["verdict"] == "keeps":
            assert decision["at_most"] <= math.ceil(limits["max_flip_rate"] * n)


@pytest.mark.parametrize(("n", "ship", "why"), [(1000, "q4_0", "smallest"), (40, None, "about 149 would do")])
def test_without_limits_a_stated_rule_names_a_file_or_says_why_not(n, ship, why, tmp_path):
    variants = [Made("q8_0", 145), Made("q4_0", 92)]
    report = made_study(tmp_path, variants, n=n)
    found = report.data["recommendation"]
    assert (report.recommended, found["verdict"]) == (None, None)  # nobody set a limit
    rule = found["without_limits"]
    assert rule["ship"] == ship and why in rule["why"] and "at most 2 %" in rule["rule"]
    assert all(v["decision"]["verdict"] is None for v in report.data["variants"])


@pytest.mark.parametrize(("n", "share", "labels"), [(12, 1.0, True), (12, 0.0, True), (1, 0.0, True), (2, 0.5, False)])
def test_what_few_records_or_one_class_can_say_is_said(n, share, labels, tmp_path):
    report = made_study(tmp_path, [Made("q8_0", 145)], n=n, unsafe=share, labels=labels)
    json.dumps(report.data, allow_nan=False)
    said = " ".join(one["what"] + ": " + one["why"] for one in report.data["not_told"])
    assert ("no labels" in said) == (not labels)
    assert ("it takes both" in said) == (labels and share in (0.0, 1.0))
    assert page(report.data).count("<svg") >= 3


def test_changed_records_say_which_and_how_and_texts_only_where_asked(tmp_path):
    made = [Made("q8_0", 145, 3, 2)]
    bare = made_study(tmp_path, made, n=200).data["variants"][0]["changed_records"]
    assert [row["line"] for row in bare] == sorted(row["line"] for row in bare)
    assert [(row["from"], row["to"]) for row in bare].count(("unsafe", "safe")) == 3
    for row in bare:
        assert row["id"] == f"r{row['line'] - 1}"
        assert (row["before"] >= 0.5, row["after"] >= 0.5) == (row["from"] == "unsafe", row["to"] == "unsafe")
        assert "text" not in row
    shown = made_study(tmp_path, made, n=200, texts={i: f"text {i}" for i in range(200)}).data
    assert [row["text"] for row in shown["variants"][0]["changed_records"]] == [f"text {r['line'] - 1}" for r in bare]


def test_the_smallest_variant_inside_the_limits_is_recommended(tiny_model, tmp_path):
    one = table(n=400)
    reference = measured(tiny_model, "reference", one, 1000, tmp_path)
    variants = [
        measured(tiny_model, name, table(n=400, noise=noise), size, tmp_path)
        for name, noise, size in (("big", 0.01, 500), ("small", 0.05, 300), ("tiny", 3.0, 100))
    ]
    report = build_report(reference, variants, choices(max_flip_rate=0.05), {"profile": "tiny", "measurements": 0})
    assert report.recommended == "small"
    assert [v["inside"] for v in report.data["recommendation"]["variants"]] == [True, True, False]
    strict = build_report(reference, variants, choices(max_flip_rate=0.0), {"profile": "tiny", "measurements": 0})
    assert strict.recommended is None  # no number of records proves a rate of nought
    free = build_report(reference, variants, choices(), {"profile": "tiny", "measurements": 0})
    assert free.recommended is None
    assert recommend(1000, [], choices(max_flip_rate=1.0))["ship"] is None


def test_a_repair_removes_a_shift_and_not_noise():
    one = table(n=2000)
    margin = 2 * one.margin + 1.5
    scores = np.column_stack([sigmoid(margin), one.scores["marginal"][:, 1:]])
    tilted = replace(one, margin=margin, scores={"marginal": scores})
    found, calibration = repair(one, tilted, "marginal", choices())
    unsafe = found["labels"]["unsafe"]
    assert unsafe["rms_after"] < 0.15 * unsafe["rms_before"]
    assert unsafe["flips_after"]["rate"] < 0.2 * unsafe["flips_before"]["rate"]
    assert "unsafe" in calibration.maps
    noisy = repair(one, table(n=2000, noise=2.0), "marginal", choices())[0]["labels"]["unsafe"]
    assert noisy["rms_after"] > 0.5 * noisy["rms_before"]


def test_what_has_not_moved_is_not_repaired():
    one = table(n=300)
    named = np.arange(300)[:, None] < 50  # so some are said to be unsafe for a category alone
    codes = np.where(named, 0.9, one.scores["marginal"][:, 1:])
    one = replace(one, scores={"marginal": np.column_stack([one.unsafe, codes])})
    found, calibration = repair(one, one, "marginal", choices())
    assert not calibration.maps
    assert set(calibration.thresholds.values()) == {0.3}
    assert (decisions(one, "marginal", thresholds=Thresholds(0.3)).y_pred[:, 0] > (one.unsafe >= 0.3)).any()
    assert all(label["flips_after"]["rate"] == label["rms_after"] == 0 for label in found["labels"].values())


@given(st.integers(0, 2**32 - 1), st.integers(20, 200), st.floats(0.1, 0.9))
def test_the_reproducing_threshold_agrees_best_or_stays(seed, n, shift):
    rng = np.random.default_rng(seed)
    p = np.round(rng.random(n), 2)
    said = p + rng.normal(0, 0.1, n) > shift
    chosen = reproducing(said, p, 0.37)

    def wrong(t: float) -> int:
        return int(((p >= t) != said).sum())

    best = min(wrong(t) for t in (*np.unique(p), 2.0))
    if chosen == 0.37:
        bests = [t for t in (*np.unique(p), 2.0) if wrong(t) == best]
        between = max(((p >= min(t, 0.37)) & (p < max(t, 0.37))).sum() for t in bests)
        assert wrong(0.37) - best <= 2 * np.sqrt(between) + 1e-9
    else:
        assert wrong(chosen) == best < wrong(0.37)


def test_a_threshold_that_decides_many_otherwise_is_moved():
    p = np.linspace(0.01, 0.99, 99)
    assert 0.55 < reproducing(p > 0.6, p, 0.37) < 0.62


def test_json_has_no_number_that_json_has_not():
    found = as_json({"a": np.float64("nan"), "b": [np.inf, np.int64(3), True], "c": np.arange(2.0), 4: None})
    assert found == {"a": None, "b": [None, 3, True], "c": [0.0, 1.0], "4": None}


# ------------------------------------------------------------ before the first score, and as far as it takes


@pytest.fixture
def bench_quant(run, tiny_model, tiny_profile, tmp_path):
    """Run the command on a file of rows, with tiny variants and nothing measured."""

    def quant(rows: list[dict], *options, variants="q4_0"):
        source = tmp_path / "rows.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        common = ["-r", tiny_model, "-p", tiny_profile, "-t", 1, "-w", 1, "--draws", 20]
        measure = [] if "--measurements" in options else ["--floor", 0, "--measurements", 0]
        return run("bench", "quant", source, "-o", tmp_path / "s", *common, *measure, "-v", variants, *options)

    return quant


def texts(n: int, labels=lambda i: ["S1"] if i % 2 else []) -> list[dict]:
    dice = random.Random(1)
    return [
        {"id": f"q{i}", "text": " ".join(dice.choice(WORDS) for _ in range(4)), "labels": labels(i)} for i in range(n)
    ]


def scores_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.npz"))


@pytest.mark.parametrize(
    ("n", "options", "code", "said"),
    [
        (40, ("--max-flip-rate", 0.05), 5, "40 records cannot decide on a limit of 5 %: if none of their decisions "
         "changes, still up to 7.22 % might (95 %); it takes 59 records, or a limit of 7.22 %; --anyway goes on"),
        (40, ("--max-flip-rate", 0), 5, "no number of records decides on a limit of 0"),
        (5, ("--max-auprc-loss", 0.1), 5, "takes 10 records, and there are 5"),
        (1, (), 1, "the only record there is: a comparison takes at least 2"),
    ],
)  # fmt: skip
def test_what_so_few_records_cannot_decide_is_said_before_the_first_score(
    bench_quant, tmp_path, n, options, code, said
):
    result = bench_quant(texts(n), *options)
    assert result.exit_code == code, result.stderr
    assert said in result.stderr
    assert not scores_in(tmp_path)


@pytest.mark.parametrize("unsafe", [True, False])
def test_records_of_one_class_get_a_page_and_hear_what_it_lacks(bench_quant, tmp_path, unsafe):
    rows = texts(12, lambda i: ["S1"] if unsafe else [])
    refused = bench_quant(rows, "--max-auprc-loss", 0.01)
    kind = "unsafe" if unsafe else "safe"
    assert refused.exit_code == 1 and f"needs unsafe and safe records, and all 12 are {kind}" in refused.stderr
    assert not scores_in(tmp_path)
    result = bench_quant(rows)
    assert result.exit_code == 0, result.stderr
    assert f"all 12 records are {kind}: AUROC" in result.stderr
    assert "not told: AUROC, AUPRC" in result.stdout
    assert (tmp_path / "s" / "report.html").exists()


def test_a_wrong_label_is_said_before_the_first_score(bench_quant, tmp_path):
    result = bench_quant([*texts(11), {"id": "x", "text": "go", "labels": ["S99"]}])
    assert result.exit_code == 1 and "S99" in result.stderr
    assert not scores_in(tmp_path)


def test_a_plan_says_what_will_be_done_and_scores_ten_records(bench_quant, tmp_path):
    result = bench_quant(texts(160), "--max-flip-rate", 0.1, "--plan", variants="q8_0,q4_0")
    assert result.exit_code == 0, result.stderr
    assert "160 records, 3 models: the reference first, then q4_0, q8_0, the smallest file first" in result.stdout
    assert "290 to 470 records to score" in result.stdout  # ten of the reference are there
    assert "an estimate from the reference's first 10 records" in result.stdout
    assert "the limit of 10 % changed decisions can be decided: after 100 records at the earliest" in result.stdout
    assert len(scores_in(tmp_path)) == 1 and not list(tmp_path.rglob("q4_0.gguf"))
    assert not (tmp_path / "s" / "report.json").exists()


def test_a_variant_is_scored_until_its_decision_is_certain(bench_quant, tiny_model, tmp_path):
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(tiny_model.read_bytes())
    rows = texts(160)
    result = bench_quant(rows, "--max-flip-rate", 0.1, variants=f"{copy}")
    assert result.exit_code == 0, result.stderr
    assert "copy: keeps inside after 100 records" in result.stderr
    report = json.loads((tmp_path / "s" / "report.json").read_text())
    (found,) = report["variants"]
    assert (found["decision"]["verdict"], found["decision"]["scored"], report["records"]) == ("keeps", 100, 100)
    assert (report["planned"], found["decision"]["all_records"]) == (160, False)
    assert (report["recommendation"]["ship"], found["decision"]["high"] <= 0.1) == ("copy", True)
    whole = bench_quant(rows, "--max-flip-rate", 0.1, "--all-records", variants=f"{copy}")
    assert whole.exit_code == 0, whole.stderr
    (every,) = json.loads((tmp_path / "s" / "report.json").read_text())["variants"]
    assert (every["decision"]["scored"], every["decision"]["all_records"]) == (160, True)
    assert every["decision"]["high"] < found["decision"]["high"]


@pytest.mark.parametrize(("limit", "code"), [(0.06, (5, 4)), (0.9, (0,))])
def test_the_exit_code_says_which_of_three_it_is(bench_quant, tmp_path, limit, code):
    result = bench_quant(texts(60), "--max-flip-rate", limit)
    report = json.loads((tmp_path / "s" / "report.json").read_text())
    verdict = report["recommendation"]["verdict"]
    assert result.exit_code in code and result.exit_code == {"keeps": 0, "breaks": 4, "too_few": 5}[verdict]
    words = {"keeps": "keeps inside", "breaks": "does not", "too_few": "too few records to say"}
    assert words[report["variants"][0]["decision"]["verdict"]] in result.stdout


def test_too_few_records_may_be_scored_anyway(bench_quant, tiny_model, tmp_path):
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(tiny_model.read_bytes())
    result = bench_quant(texts(20), "--max-flip-rate", 0.05, "--anyway", "--texts", variants=f"{copy}")
    assert result.exit_code == 5, result.stderr
    assert "cannot be decided by 20 records: it takes 59 of which none changes" in result.stderr
    assert "too few records to say of copy: about 59 would do" in result.stderr
    assert "too few records to say: about 59 would do" in result.stdout


def test_the_reference_that_the_cache_holds_is_not_copied(tmp_path, monkeypatch):
    made = []

    def merged(guard, path=None):
        made.append(path)
        if path is None:
            path = tmp_path / "cache" / "guard.gguf"
        path.parent.mkdir(exist_ok=True)
        return write_tiny_llama(path, n_ctx=1024)

    monkeypatch.setattr("edgeguard.quant.study.merged_built_in", merged)
    options = StudyOptions(records=tmp_path / "r.jsonl", folder=tmp_path / "s")
    options.models.mkdir(parents=True)
    reference = open_reference(options)
    assert made == [None] and reference.name == "edgeguard-135m.F32"
    link = options.models / "edgeguard-135m.F32.gguf"
    assert link.is_symlink() and link.resolve() == tmp_path / "cache" / "guard.gguf"
    assert open_reference(options) == reference


# ------------------------------------------------------------ two studies


@pytest.fixture
def two(tmp_path) -> tuple[Path, Path]:
    """Reports of one study on two machines: the second is twice as fast, and decides otherwise on one variant."""
    before = made_study(tmp_path, [Q8, Made("q5_0", 105), Made("q4_0", 92)], choices=TWO_PERCENT).data
    after = json.loads(json.dumps(before))
    changed = made_study(tmp_path, [Q8, Made("q4_0", 92, 40, 40, 2.0)], choices=TWO_PERCENT).data
    after["variants"] = [after["variants"][0], changed["variants"][1]]
    after["machine"]["runtimes"]["onnxruntime"] = "1.30.0"
    after["recommendation"] = changed["recommendation"]
    paths = tmp_path / "a.json", tmp_path / "b.json"
    for path, data in zip(paths, (before, after), strict=True):
        path.write_text(json.dumps(data))
    return paths


def test_two_studies_side_by_side_say_what_changed_beyond_chance(run, two):
    same = run("bench", "compare", two[0], two[0])
    assert same.exit_code == 0 and "nothing is beyond chance and noise" in same.stdout
    assert "the same machine, versions, records and settings" in same.stdout
    found = json.loads(run("bench", "compare", *two, "--json").stdout)
    assert found["conditions"] == [{"what": "onnxruntime", "a": "1.23.2", "b": "1.30.0"}]
    assert (found["only_a"], found["only_b"], found["ship"]) == (["q5_0"], [], {"a": "q4_0", "b": "q8_0"})
    _, q8, q4 = (
        {one["what"]: (one["a"], one["b"], one["beyond"]) for one in variant["figures"]}
        for variant in found["variants"]
    )
    assert not any(beyond for _, _, beyond in q8.values())
    assert q4["changed"] == (0, 0.08, True) and q4["verdict"] == ("keeps", "breaks", None)
    assert q4["rate"] == (10, 20, True) and q4["odds_rms"][2] is True


@pytest.mark.parametrize("columns", ["80", None])
def test_a_comparison_is_cut_nowhere(run, two, columns, monkeypatch):
    if columns:
        monkeypatch.setattr("rich.console.Console.is_terminal", True)
        monkeypatch.setenv("COLUMNS", columns)
    shown = re.sub(r"\x1b\[[\d;]*m", "", run("bench", "compare", *two).stdout)
    assert "…" not in shown and "10 → 20 *" in shown and "0 % → 8 % *" in shown
    assert "q4_0: keeps inside → does not" in shown and "ship: q4_0 → q8_0" in shown
    assert max(map(len, shown.splitlines())) <= int(columns or 200)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"schema": "edgeguard-quant-1"}', "schema edgeguard-quant-1, this edgeguard compares edgeguard-quant-2; "
         "run the study's command again"),
        ("{}", "is no report of a study"),
        ("[1]", "is no report of a study"),
        ("nothing", "is no JSON"),
    ],
)  # fmt: skip
def test_a_report_that_cannot_be_compared_says_what_to_do(run, two, tmp_path, text, said):
    other = tmp_path / "other.json"
    other.write_text(text)
    result = run("bench", "compare", two[0], other)
    assert result.exit_code == 1 and said in result.stderr
