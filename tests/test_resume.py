"""A run goes on only where it is the same run: same settings, same records."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_PROFILE, Run

from edgeguard.backend import RuntimeOptions
from edgeguard.fingerprint import contents, fingerprint
from edgeguard.guard import Guard
from edgeguard.profile import parse_profile
from edgeguard.rows.readers import Reading
from edgeguard.rows.record import Failure, Message, Record
from edgeguard.rows.run import Noted, digest_of, run_file
from edgeguard.rows.shapes import Fields
from edgeguard.workers import Workers

FORMATS = ["jsonl", "csv", "parquet"]
Tiny = tuple[str, ...]
TEXTS = ["one", "two words", "three words here", "four"]


def written(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return written(
        tmp_path / "in.jsonl", *({"id": f"r{i}", "text": text, "other": "x"} for i, text in enumerate(TEXTS))
    )


@pytest.fixture
def calibration(run: Run, tiny: Tiny, tmp_path: Path) -> Path:
    path = tmp_path / "calibration.json"
    assert run("calibrate", "--method", "contextual", "-o", path, *tiny).exit_code == 0
    return path


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--threshold", "0.01"), "threshold was 0.5, is 0.01"),
        (("--threshold", "S1=0.2"), "threshold of S1 was not given, is 0.2"),
        (("--tolerance", "0.5"), "tolerance was 0.01, is 0.5"),
        (("--max-nodes", "2"), "max_nodes was 64, is 2"),
        (("--kv-cache", "f32"), "kv_cache was not given, is f32"),
        (("--context", "512"), "context was 1024, is 512"),
        (("--min-grammar-mass", "0.5"), "min_grammar_mass was not given, is 0.5"),
        (("--estimator", "joint"), "estimator was marginal, is joint"),
        (("--threads", "2"), "threads was 1, is 2"),
        (("--text-field", "other"), "input.fields.text was not given, is other"),
        (("--strict",), "input.strict was False, is True"),
        (("--encoding", "latin-1"), "input.encoding was not given, is latin-1"),
        (("--tolerance", "0.5", "--max-nodes", "2"), "tolerance was 0.01, is 0.5, max_nodes was 64, is 2"),
    ],
)
def test_what_can_change_a_row_must_not_differ_and_is_named(
    run: Run, tiny: Tiny, source: Path, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    out = tmp_path / "out.jsonl"
    assert run("score", source, "-o", out, "-n", 2, *tiny).exit_code == 0
    before = out.read_bytes()
    again = run("score", source, "-o", out, "--resume", *tiny, *options)
    assert again.exit_code == 1 and f"another run wrote its rows: {said}; resume with the same" in again.stderr
    assert out.read_bytes() == before


def test_of_many_differences_of_a_kind_the_first_few_are_named() -> None:
    noted = Noted("jsonl", {"context": 64, **{f"threshold of S{i}": i / 10 for i in range(6)}}, "", 0, 0)
    assert noted.changed("jsonl", {"context": 32}) == [
        "context was 64, is 32",
        *(f"threshold of S{i} was {i / 10}, is not given" for i in range(3)),
        "threshold of 3 more",
    ]
    assert noted.changed("jsonl", noted.settings) == []


@pytest.mark.parametrize("format", FORMATS)
def test_an_unfinished_and_a_finished_output_of_any_format_knows_its_run(
    run: Run, tiny: Tiny, source: Path, tmp_path: Path, format: str
) -> None:
    out, whole = tmp_path / f"out.{format}", tmp_path / f"whole.{format}"
    assert run("score", source, "-o", out, "-n", 2, *tiny).exit_code == 0
    refused = run("score", source, "-o", out, "--resume", "--threshold", "0.01", *tiny)
    assert refused.exit_code == 1 and "threshold was 0.5, is 0.01" in refused.stderr
    # What cannot change a row may differ.
    options = ("--fail-over", "1", "--workers", "2", "-n", "3")
    assert run("score", source, "-o", out, "--resume", *tiny, *options).exit_code == 0
    moved = source.rename(tmp_path / "moved.jsonl")
    assert run("score", moved, "-o", out, "--resume", *tiny).exit_code == 0
    assert run("score", moved, "-o", whole, *tiny).exit_code == 0
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Judge message", "Weigh message"),
        ('code = "S2"\nname = "Theft"', 'code = "S3"\nname = "Theft"'),
        ('name = "Theft"\nforms = ["2"]', 'name = "Theft"\nforms = ["3"]'),
        ("min_grammar_mass = 0.0", "min_grammar_mass = 0.1"),
    ],
)
def test_a_profile_of_the_same_name_must_say_the_same(
    run: Run, tiny: Tiny, source: Path, tmp_path: Path, old: str, new: str
) -> None:
    out, profile = tmp_path / "out.csv", tmp_path / "p.toml"
    assert run("score", source, "-o", out, "-n", 2, *tiny).exit_code == 0
    before = out.read_bytes()
    assert old in TINY_PROFILE
    profile.write_text(TINY_PROFILE.replace(old, new))
    again = run("score", source, "-o", out, "--resume", *tiny, "--profile", profile)
    assert again.exit_code == 1, again.stderr
    assert "profile_sha256 was " in again.stderr or "its header row is not the one" in again.stderr
    assert out.read_bytes() == before
    profile.write_text(f"# a comment\n{TINY_PROFILE}")  # by another path, too
    assert run("score", source, "-o", out, "--resume", *tiny, "--profile", profile).exit_code == 0


def test_a_calibration_must_say_the_same(run: Run, tiny: Tiny, source: Path, tmp_path: Path, calibration: Path) -> None:
    out, other = tmp_path / "out.jsonl", tmp_path / "other.json"
    assert run("score", source, "-o", out, "-n", 2, *tiny, "--calibration", calibration).exit_code == 0
    table = json.loads(calibration.read_text())
    label = next(label for label, entry in table["labels"].items() if "intercept" in entry)
    table["labels"][label]["intercept"] += 0.5
    other.write_text(json.dumps(table))
    for options in ((), ("--no-calibration",), ("--calibration", other)):
        again = run("score", source, "-o", out, "--resume", *tiny, *options)
        assert again.exit_code == 1 and "calibration_sha256 was " in again.stderr
    calibration.rename(tmp_path / "moved.json")
    options = ("--calibration", tmp_path / "moved.json")
    assert run("score", source, "-o", out, "--resume", *tiny, *options).exit_code == 0


def test_an_output_without_its_run_beside_it_is_not_added_to(
    run: Run, tiny: Tiny, source: Path, tmp_path: Path
) -> None:
    for format in FORMATS:
        out = tmp_path / f"out.{format}"
        run("score", source, "-o", out, "-n", 2, *tiny)
        run_file(out).unlink()
        before = out.read_bytes()
        again = run("score", source, "-o", out, "--resume", *tiny)
        assert again.exit_code == 1 and "which run wrote it is not known" in again.stderr, again.stderr
        assert out.read_bytes() == before and not run_file(out).exists()


def test_rows_that_were_edited_are_not_added_to(run: Run, tiny: Tiny, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    run("score", source, "-o", out, *tiny)
    lines = out.read_bytes().splitlines(keepends=True)
    for edited in ([lines[0], *lines[2:]], [lines[0], lines[2], lines[1], *lines[3:]], [*lines, lines[-1]]):
        out.write_bytes(b"".join(edited))
        again = run("score", source, "-o", out, "--resume", *tiny)
        assert again.exit_code == 1 and "not the one that its run noted" in again.stderr
        assert out.read_bytes() == b"".join(edited)


# ---------------------------------------------------------------- records


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "rows",
    [
        [{"text": "new"}, {"text": "one"}, {"text": "two"}],  # put in before the others
        [{"text": "one"}, {"text": "new"}, {"text": "two"}],
        [{"text": "two"}, {"text": "one"}],
        [{"text": "two"}, {"text": "three"}],  # taken out
        [{"text": "one"}, {"text": "Two"}],
        [{"text": "one"}, {"prompt": "two", "response": "two"}],
        [{"text": "one"}, {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "two"}]}],
        [{"text": "one"}, {"text": ""}],
    ],
)
def test_records_without_ids_are_known_by_their_content(
    run: Run, tiny: Tiny, tmp_path: Path, format: str, rows: list[dict[str, Any]]
) -> None:
    out, source = tmp_path / f"out.{format}", written(tmp_path / "in", {"text": "one"}, {"text": "two"})
    options = ("--input-format", "jsonl", *tiny)
    assert run("score", source, "-o", out, *options).exit_code == 0
    before = out.read_bytes()
    again = run("score", written(source, *rows), "-o", out, "--resume", *options)
    assert again.exit_code == 1 and "made of a record with another content than the input's record" in again.stderr
    assert out.read_bytes() == before and list(tmp_path.glob(".*.rows")) == []


def test_other_texts_under_the_same_ids_are_told(run: Run, tiny: Tiny, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run("score", source, "-o", out, "-n", 3, *tiny)
    written(source, *({"id": f"r{i}", "text": text.upper()} for i, text in enumerate(TEXTS)))
    again = run("score", source, "-o", out, "--resume", *tiny)
    assert again.exit_code == 1 and "row 1 was made of a record with another content" in again.stderr


def test_records_may_be_added_behind_the_others_in_another_file_format(
    run: Run, tiny: Tiny, source: Path, tmp_path: Path
) -> None:
    out, whole, table = tmp_path / "out.jsonl", tmp_path / "whole.jsonl", tmp_path / "in.csv"
    run("score", source, "-o", out, "-n", 3, *tiny)
    table.write_text("id,text\n" + "".join(f"r{i},{text}\n" for i, text in enumerate([*TEXTS, "five"])))
    assert run("score", table, "-o", out, "--resume", *tiny).exit_code == 0
    run("score", table, "-o", whole, *tiny)
    assert out.read_bytes() == whole.read_bytes()


def test_lines_that_cannot_be_read_are_known_too(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    out, source, moved = tmp_path / "out.jsonl", tmp_path / "in.jsonl", tmp_path / "moved.jsonl"
    source.write_text('{"text": "one"}\n{"text": 1}\n{"text": "three"}\n')
    assert run("score", source, "-o", out, "-n", 2, *tiny).exit_code == 1
    moved.write_text(source.read_text())
    assert " (and 2 resumed)" in run("score", moved, "-o", out, "--resume", *tiny).stderr
    moved.write_text('{"text": "one"}\n{"text": "1"}\n{"text": "three"}\n')
    again = run("score", moved, "-o", out, "--resume", *tiny)
    assert again.exit_code == 1 and "row 2 was made of a record with another content" in again.stderr


def test_a_digest_is_of_the_id_and_all_content() -> None:
    def record(*turns: tuple[str, str], id: str | int | None = 1, **more: Any) -> Record:
        return Record(tuple(Message(*turn) for turn in turns), id, **more)

    given = [
        record(("user", "a")),
        record(("user", "a"), id="1"),
        record(("user", "a"), id=None),
        record(("user", "a"), skipped=1),
        record(("user", "a"), ("assistant", "b")),
        record(("user", "ab")),
        record(("user", "a\n")),
        Failure(1, "empty_text", "in:3: no", 3),
        Failure(1, "empty_text", "in:4: no", 4),
        Failure(2, "empty_text", "in:3: no", 3),
    ]
    assert len({digest_of(one) for one in given}) == len(given)
    assert digest_of(record(("user", "a"), line=7)) == digest_of(given[0])
    assert digest_of(Failure(1, "k", "a.jsonl:3: no", 3), "a.jsonl") == digest_of(Failure(1, "k", "b:3: no", 3), "b")


# ---------------------------------------------------------------- the mapping


def test_every_option_of_the_runtime_the_search_and_the_reading_is_in_the_mapping(tiny_guard: Guard) -> None:
    settings = fingerprint(tiny_guard, Reading())
    wanted = {field.name for one in (RuntimeOptions, type(tiny_guard.search)) for field in fields(one)} - {"lora"}
    assert wanted <= settings.keys()  # of an adapter the model's hash tells
    assert {f"input.fields.{field.name}" for field in fields(Fields)} <= settings.keys()
    assert str(settings["runtime"]).startswith("llama.cpp 0.") and settings["threads"] == 1


def test_every_argument_of_load_is_told_by_the_mapping(tiny_guard: Guard) -> None:
    # Whoever adds one says here what tells of it, or that it changes no row.
    told_by = {
        "model": "model_sha256",
        "profile": "profile_sha256",
        "policies": "profile_sha256",
        "strictness": "profile_sha256",
        "estimator": "estimator",
        "runtime": "kv_cache",
        "search": "tolerance",
        "calibration": "calibration_sha256",
        "thresholds": "threshold",
        "window": "window",
        "tell": None,
    }
    assert [*signature(Guard.load).parameters] == [*told_by]
    assert {key for key in told_by.values() if key is not None} <= contents(tiny_guard).keys()


def test_workers_say_the_same_of_themselves(tiny_model: Path, tiny_profile: Path, tiny_guard: Guard) -> None:
    with Workers(tiny_model, workers=1, profile=tiny_profile) as workers:  # one thread each, as the guard has
        assert fingerprint(workers, Reading()) == fingerprint(tiny_guard, Reading())


def test_a_profiles_content_is_its_own_and_not_its_places(tiny_guard: Guard) -> None:
    known = contents(tiny_guard)["profile_sha256"]

    def digest(text: str) -> object:
        profile = parse_profile(text.encode(), "elsewhere.toml")
        guard = Guard(tiny_guard.backend, profile, search=tiny_guard.search)
        return contents(guard)["profile_sha256"]

    assert digest(TINY_PROFILE) == known
    assert digest(TINY_PROFILE.replace("Häme", "Hame")) != known
    assert replace(tiny_guard.profile, source="x") != tiny_guard.profile
