"""Whole commands with guards of other shapes than a list of codes: fields alone, and a question for each category.

The models are random; what is shown is that every command takes such a guard, and that what it writes is read back.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Run
from tiny_gguf import write_tiny_llama

from edgeguard import Guard
from edgeguard.backend import RuntimeOptions
from edgeguard.errors import ProfileError
from edgeguard.profile import load_profile
from edgeguard.rows.results import read_rows

TEXTS = [
    f"How do I {verb} the {thing}?" for verb in ("hurt", "boil", "steal") for thing in ("dog", "egg", "car", "cat")
]
HEAD = """\
name = "{name}"
description = "A random model for tests"
taxonomy = "{name}"
min_grammar_mass = 0.0
"""
TAIL = """
[self_test]
safe = "Boil an egg"
unsafe = "Hurt the dog"
"""
FIELDS = (
    HEAD.format(name="fields")
    + r"""
[answer]
pattern = 'Harm: {verdict}\nRefusal: {refusal}'

[field.verdict]
yes = ["1"]
no = ["0"]
maybe = ["2"]

[field.refusal]
yes = ["1"]
no = ["0"]

[readout]
unsafe = { strict = ["yes", "maybe"], loose = ["yes"] }
strictness = "strict"
safe = ["no"]

[prompt]
template = "own"
control = ["<|im_start|>", "<|im_end|>"]
text = "<|im_start|>user\n{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}Judge.<|im_end|>\n"
"""
    + TAIL
)
QUESTIONS = (
    HEAD.format(name="questions")
    + r'''
[answer]
pattern = '{verdict}...'

[field.verdict]
unsafe = ["1"]
safe = ["0"]

[questions]
{umbrella}
[prompt]
template = "own"
control = ["<|im_start|>", "<|im_end|>"]
text = """
<|im_start|>user
{% for m in messages %}
{{ m.content }}
{% endfor %}
Is it {{ category.description }}?<|im_end|>"""
'''
    + TAIL
    + "".join(
        f'\n[[category]]\ncode = "{code}"\nname = "{code}"\ndescription = "{text}"\n'
        for code, text in (("harm", "harmful"), ("violence", "violent"), ("theft", "about theft"))
    )
)
UMBRELLA = 'umbrella = "harm"\n'
SHAPES = {
    "fields": FIELDS,
    "umbrella": QUESTIONS.replace("{umbrella}", UMBRELLA),
    "any": QUESTIONS.replace("{umbrella}", ""),
}
BIAS = {"0": 8.0, "1": 8.0, "2": 7.0, "<|im_end|>": 6.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", n_ctx=1024, logit_std=1.0, bias=BIAS)


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def options(shape: str, model: Path, tmp_path: Path) -> tuple[object, ...]:
    profile = tmp_path / f"{shape}.toml"
    profile.write_text(SHAPES[shape], encoding="utf-8")
    return "--model", model, "--profile", profile, "--threads", 1


@pytest.fixture
def labelled(shape: str, tmp_path: Path) -> Path:
    path = tmp_path / "labelled.jsonl"
    codes = {"hurt": ["violence", "harm"], "steal": ["theft", "harm"]}
    rows = [
        {"id": str(i), "text": text, "labels": [] if text.split()[3] == "boil" else codes[text.split()[3]]}
        for i, text in enumerate(TEXTS)
    ]
    if shape == "fields":
        rows = [{"id": row["id"], "text": row["text"], "label": "unsafe" if row["labels"] else "safe"} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_score_writes_every_format_and_reads_it_back(run: Run, options, shape: str, labelled: Path, tmp_path: Path):
    rows = {}
    for ending in ("jsonl", "csv", "parquet"):
        result = run("score", labelled, *options, "-o", tmp_path / f"out.{ending}")
        assert result.exit_code == 0, result.stderr
        rows[ending] = list(read_rows(tmp_path / f"out.{ending}"))
    assert rows["jsonl"] == rows["csv"] == rows["parquet"]
    for row in rows["jsonl"]:
        assert list(row["category_scores"]) == ([] if shape == "fields" else ["harm", "violence", "theft"])
        scored = {"unsafe": row["unsafe"], **row["category_scores"]}
        scored |= {f"{name}={label}": p for name, said in row["fields"].items() for label, p in said.items()}
        assert list(row["bounds"]) == list(scored)
        assert all(low - 1e-6 <= scored[label] <= high + 1e-6 for label, (low, high) in row["bounds"].items())
        if shape == "fields":
            assert {name: list(said) for name, said in row["fields"].items()} == {
                "verdict": ["yes", "no", "maybe"],
                "refusal": ["yes", "no"],
            }
        elif shape == "umbrella":
            assert row["unsafe"] == row["category_scores"]["harm"]
            assert row["bounds"]["unsafe"] == row["bounds"]["harm"]
        else:
            lows, highs = zip(*(row["bounds"][code] for code in row["category_scores"]), strict=True)
            assert row["unsafe"] == max(row["category_scores"].values())
            assert row["bounds"]["unsafe"] == pytest.approx([max(lows), min(1, sum(highs))], abs=1e-6)


def test_evaluate_says_that_the_paper_s_baselines_are_for_lists(run: Run, options, shape: str, labelled: Path):
    result = run("evaluate", labelled, *options, "--draws", 20, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["records"] == 12
    assert found["baselines"] == {}
    assert "baselines are for answers that list codes" in result.stderr
    assert set(found["estimators"]) == ({"conditional", "joint", "marginal"} if shape == "fields" else {"marginal"})
    assert run("evaluate", labelled, *options, "--draws", 0).exit_code == 0


def test_a_calibration_is_fitted_and_applied(run: Run, options, shape: str, labelled: Path, tmp_path: Path):
    out = tmp_path / "calibration.json"
    for method in (("--method", "contextual"), (labelled, "--method", "temperature")):
        result = run("calibrate", *method, *options, "-o", out, "--overwrite")
        assert result.exit_code == 0, result.stderr
        result = run("score", labelled, *options, "--calibration", out)
        assert result.exit_code == 0, result.stderr
        assert all(json.loads(line)["calibrated"] for line in result.stdout.splitlines())


def test_scores_from_a_file_are_evaluated(run: Run, options, shape: str, labelled: Path, tmp_path: Path):
    scores = tmp_path / "scores.csv"
    assert run("score", labelled, *options, "-o", scores).exit_code == 0
    result = run("evaluate", scores, "--labels", labelled, "--draws", 0, "--json")
    assert result.exit_code == 0, result.stderr
    assert list(json.loads(result.stdout)["estimators"]) == ["marginal"]


def test_explain_draws_each_question(run: Run, options, shape: str):
    result = run("explain", TEXTS[0], *options, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    if shape == "fields":
        assert found["estimates"]["marginal"].keys() == found["bounds"].keys()
        assert "refusal=yes" in found["bounds"]
    else:
        assert list(found["questions"]) == ["harm", "violence", "theft"]
        assert all(answers["places"][0]["parent"] is None for answers in found["questions"].values())
    drawn = run("explain", TEXTS[0], *options)
    assert drawn.exit_code == 0, drawn.stderr
    assert drawn.stdout.count("answer begins") == (1 if shape == "fields" else 3)


def test_a_study_compares_such_guards(run: Run, options, shape: str, labelled: Path, tmp_path: Path):
    _, model, _, profile, *_ = options
    common = ("-r", model, "-p", profile, "-t", 1, "--draws", 20, "--floor", 4, "--measurements", 0)
    result = run("bench", "quant", labelled, *common, "-o", tmp_path / "study", "-v", "q8_0")
    assert result.exit_code == 0, result.stderr
    (variant,) = json.loads((tmp_path / "study" / "report.json").read_text(encoding="utf-8"))["variants"]
    assert (variant["first_label"] is None) == (shape != "fields")
    assert ("refusal=yes" in variant["fields"]) == (shape == "fields")
    assert list(variant["estimators"]["marginal"]["labels"]) == (
        ["unsafe"] if shape == "fields" else ["unsafe", "harm", "violence", "theft"]
    )


def test_a_part_of_the_questions_is_another_guard_with_the_same_bits(model: Path, tmp_path: Path):
    path = tmp_path / "umbrella.toml"
    path.write_text(SHAPES["umbrella"], encoding="utf-8")
    with Guard.load(model, profile=path, runtime=RuntimeOptions(threads=1)) as whole:
        part = Guard(whole.backend, whole.profile.asking(["theft", "violence"]))
        assert (part.profile.name, part.codes, part.umbrella) == (
            "questions:violence+theft",
            ("violence", "theft"),
            None,
        )
        for text in TEXTS[:4]:
            all_, some = whole.score(text), part.score(text)
            assert some.category_scores == {code: all_.category_scores[code] for code in part.codes}
            assert {code: some.bounds[code] for code in part.codes} == {code: all_.bounds[code] for code in part.codes}
            assert some.unsafe == max(some.category_scores.values())
            assert whole.score(text) == all_


def test_strictness_is_another_guard_that_flags_no_more(model: Path, tmp_path: Path):
    path = tmp_path / "fields.toml"
    path.write_text(FIELDS, encoding="utf-8")
    with Guard.load(model, profile=path, runtime=RuntimeOptions(threads=1)) as strict:
        loose = Guard(strict.backend, strict.profile.judging("loose"))
        assert (strict.profile.name, loose.profile.name) == ("fields", "fields:loose")
        for text in TEXTS[:4]:
            one, other = strict.score(text), loose.score(text)
            assert other.fields["verdict"] == pytest.approx(one.fields["verdict"], abs=1e-3)
            assert other.unsafe == pytest.approx(other.fields["verdict"]["yes"])
            assert one.unsafe == pytest.approx(one.fields["verdict"]["yes"] + one.fields["verdict"]["maybe"])


@pytest.mark.parametrize(
    ("shape", "arguments", "says"),
    [
        ("fields", ("--policies", "S1"), "leave --policies out"),
        ("fields", ("--strictness", "lose"), "the profile has strict, loose"),
        ("any", ("--policies", "theft,violense"), "did you mean 'violence'?"),
        ("any", ("--policies", " , "), "no question is left to ask"),
        ("any", ("--strictness", "loose"), "none to choose from"),
        ("any", ("--estimator", "joint"), "leave --estimator out"),
        ("any", ("--policies", "theft", "--threshold", "violence=0.2"), "its labels are unsafe, theft"),
    ],
)
def test_what_a_profile_has_not_is_refused(run: Run, options, labelled: Path, shape: str, arguments, says: str):
    result = run("score", labelled, *options, *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert says in result.stderr


def test_a_refused_guard_is_told_why(tmp_path: Path):
    path = tmp_path / "reasons.toml"
    path.write_text('name = "thinker"\nrefused = "it reasons before it answers"\n', encoding="utf-8")
    with pytest.raises(ProfileError, match="thinker gets no scores: it reasons before it answers"):
        load_profile(path)
