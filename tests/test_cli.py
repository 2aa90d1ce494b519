"""Whole commands with the tiny guard. Golden files: EDGEGUARD_GOLDEN=write pytest tests/test_cli.py -k golden."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import TINY_PROFILE, Run, RunProcess
from tiny_gguf import truncated, write_tiny_llama

from edgeguard.cli import main
from edgeguard.profile import list_profiles, list_refused, parse_profile
from edgeguard.rows.results import read_rows

GOLDEN = Path(__file__).parent / "golden"
KEYS = [
    *("id", "flagged", "unsafe", "margin", "categories", "category_scores", "bounds", "fields", "unexplored"),
    *("off_grammar", "estimator", "calibrated", "guard", "profile", "model_sha256", "tokens", "skipped", "window"),
]
TEXTS = ["How long do I boil an egg?", "How do I hurt the dog?", 'a, "quoted"\nsecond line', "Ünïcödé 漢字"]
Tiny = tuple[str, ...]


def rows_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def jsonl(texts: list[str]) -> bytes:
    rows = ({"id": str(i), "text": text} for i, text in enumerate(texts))
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def as_csv(texts: list[str], delimiter: str = ",") -> bytes:
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter).writerows([("id", "text"), *((str(i), t) for i, t in enumerate(texts))])
    return file.getvalue().encode()


def as_parquet(texts: list[str]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"id": [str(i) for i in range(len(texts))], "text": texts}), file)
    return file.getvalue()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_bytes(jsonl(TEXTS))
    return path


def one_line(stderr: str) -> str:
    """What stderr says, which must be one line and no traceback."""
    assert "Traceback" not in stderr
    (line,) = stderr.splitlines()
    assert line.startswith("edgeguard: ")
    return line


# ------------------------------------------------------------ what comes out


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("in.jsonl", jsonl(TEXTS)),
        ("in.csv", as_csv(TEXTS)),
        ("in.tsv", as_csv(TEXTS, "\t")),
        ("in.parquet", as_parquet(TEXTS)),
        ("in.jsonl.gz", gzip.compress(jsonl(TEXTS))),
        ("in.csv.gz", gzip.compress(as_csv(TEXTS))),
        ("bom.jsonl", b"\xef\xbb\xbf" + jsonl(TEXTS)),
        ("crlf.jsonl", jsonl(TEXTS).replace(b"\n", b"\r\n")),
        ("bom.csv", b"\xef\xbb\xbf" + as_csv(TEXTS)),
    ],
)
def test_the_same_texts_get_the_same_scores_from_every_format(
    run: Run, tiny: Tiny, tmp_path: Path, source: Path, name: str, data: bytes
) -> None:
    (tmp_path / name).write_bytes(data)
    result, expected = run("score", tmp_path / name, *tiny), run("score", source, *tiny)
    assert (result.exit_code, result.stdout) == (0, expected.stdout)


def test_stdin_is_read_as_a_file_is(run: Run, tiny: Tiny, source: Path) -> None:
    expected = run("score", source, *tiny).stdout
    assert run("score", "-", *tiny, input=jsonl(TEXTS)).stdout == expected
    assert run("score", "-", *tiny, input=gzip.compress(jsonl(TEXTS))).stdout == expected
    assert run("score", "-", "--input-format", "csv", *tiny, input=as_csv(TEXTS)).stdout == expected
    assert run("score", "-", *tiny, input=as_parquet(TEXTS)).stdout == expected


def test_a_row_has_the_design_s_keys_all_labels_and_its_scores_inside_its_bounds(
    run: Run, tiny: Tiny, source: Path
) -> None:
    result = run("score", source, *tiny)
    rows = rows_of(result.stdout)
    assert result.exit_code == 0
    assert [row["id"] for row in rows] == ["0", "1", "2", "3"]
    for row in rows:
        assert list(row) == KEYS
        assert list(row["category_scores"]) == ["S1", "S10", "S2"]
        assert list(row["bounds"]) == ["unsafe", "S1", "S10", "S2"]
        assert list(row["tokens"]) == ["prompt", "reused", "answer"]
        for label, p in {"unsafe": row["unsafe"], **row["category_scores"]}.items():
            assert row["bounds"][label][0] <= p <= row["bounds"][label][1]


@pytest.mark.parametrize("estimator", ["conditional", "joint"])
def test_other_estimators_give_the_same_shape(run: Run, tiny: Tiny, source: Path, estimator: str) -> None:
    rows = rows_of(run("score", source, "-e", estimator, *tiny).stdout)
    assert {row["estimator"] for row in rows} == {estimator}
    assert all(list(row) == KEYS and list(row["category_scores"]) == ["S1", "S10", "S2"] for row in rows)


def test_csv_and_parquet_output_hold_the_same_numbers_as_jsonl(
    run: Run, tiny: Tiny, source: Path, tmp_path: Path
) -> None:
    rows = rows_of(run("score", source, *tiny).stdout)
    for name in ("out.jsonl", "out.csv", "out.parquet"):
        result = run("score", source, "-o", tmp_path / name, *tiny)
        assert (result.exit_code, result.stdout) == (0, "")
    assert rows_of((tmp_path / "out.jsonl").read_text()) == rows
    in_csv = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    in_parquet = pq.read_table(tmp_path / "out.parquet").to_pylist()
    for row, cells, flat in zip(rows, in_csv, in_parquet, strict=True):
        for column, value in {
            "unsafe": row["unsafe"],
            "score_S10": row["category_scores"]["S10"],
            "upper_S2": row["bounds"]["S2"][1],
            "tokens_prompt": row["tokens"]["prompt"],
        }.items():
            assert float(cells[column]) == value == flat[column]
        assert (cells["id"], cells["flagged"]) == (row["id"], str(row["flagged"]).lower())
        assert (flat["id"], flat["flagged"], flat["error_type"]) == (row["id"], row["flagged"], None)


def test_the_name_of_the_output_says_its_format_and_format_overrides_it(
    run: Run, tiny: Tiny, source: Path, tmp_path: Path
) -> None:
    run("score", source, "-o", tmp_path / "a.txt", "-f", "csv", *tiny)
    run("score", source, "-o", tmp_path / "a.csv", *tiny)
    refused = run("score", source, "-o", tmp_path / "a.xlsx", "-m", "no.gguf")  # before a model is looked for
    assert refused.exit_code == 1 and "a.xlsx: .xlsx is the ending of no format" in one_line(refused.stderr)
    assert "--format" in refused.stderr and not (tmp_path / "a.xlsx").exists()
    assert (tmp_path / "a.txt").read_bytes() == (tmp_path / "a.csv").read_bytes()
    assert run("score", source, "-f", "csv", *tiny).stdout_bytes == (tmp_path / "a.csv").read_bytes()
    refused = run("score", source, "-f", "parquet", *tiny)
    assert refused.exit_code == 1 and "Parquet cannot be written to stdout" in one_line(refused.stderr)


def close(actual: Any, golden: Any, where: str = "") -> None:
    """The same, but for floats: other CPUs add in another order.

    Weights are F32; keys are float16, and one that a last bit tips moves a score of attention by 2^-11 of it, here of
    a few nats.
    """
    if isinstance(golden, dict):
        assert list(actual) == list(golden), where
        for key in golden:
            close(actual[key], golden[key], f"{where}.{key}")
    elif isinstance(golden, list):
        assert len(actual) == len(golden), where
        for i, pair in enumerate(zip(actual, golden, strict=True)):
            close(*pair, f"{where}[{i}]")
    elif isinstance(golden, float):
        assert actual == pytest.approx(golden, abs=2e-3), where
    else:
        assert actual == golden, where


def rounded(value: Any) -> Any:
    match value:
        case float():
            return round(value, 4)
        case list():
            return [rounded(v) for v in value]
        case dict():
            return {k: "…" if k == "model_sha256" else rounded(v) for k, v in value.items()}
    return value


def cells_of(text: str) -> list[dict[str, Any]]:
    """CSV rows; what looks like a fraction is a float."""
    return [
        {k: float(v) if v.lstrip("-").replace(".", "", 1).isdigit() and "." in v else v for k, v in row.items()}
        for row in csv.DictReader(io.StringIO(text))
    ]


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_whole_run_gives_the_golden_output(run: Run, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.chdir(GOLDEN)  # messages name the file as it was given
    result = run("score", "messages.jsonl", "--kv-cache", "f32", "-f", form, *tiny)
    assert result.exit_code == 1
    assert result.stderr.startswith("7 records, 0 flagged, 2 errors, ")
    golden = GOLDEN / f"scores.{form}"
    rows = rounded(rows_of(result.stdout) if form == "jsonl" else cells_of(result.stdout))
    if os.environ.get("EDGEGUARD_GOLDEN") == "write":
        with golden.open("w", encoding="utf-8", newline="") as file:
            if form == "jsonl":
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            else:
                table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
                table.writeheader()
                table.writerows(rows)
    text = golden.read_text(encoding="utf-8")
    close(rows, rows_of(text) if form == "jsonl" else cells_of(text))


# ------------------------------------------------------------ the table


def test_the_table_shows_a_verdict_a_record(run: Run, tiny: Tiny, source: Path) -> None:
    with source.open("ab") as file:
        file.write(b'{"id": "bad"}\n')
    result = run("score", source, "--table", "--threshold", "unsafe=0.3", *tiny, env={"COLUMNS": "400"})
    lines = result.stdout.splitlines()
    assert result.exit_code == 1
    assert lines[0].split() == ["id", "verdict", "P(unsafe)", "likeliest", "categories", "text"]
    verdicts = [line.split()[1] for line in lines[1:] if line[0].isalnum()]  # the others go on with the row above
    assert verdicts == [
        *("FLAGGED" if row["unsafe"] >= 0.3 else "ok" for row in rows_of(run("score", source, *tiny).stdout)[:4]),
        "error",
    ]
    assert set(verdicts) == {"FLAGGED", "ok", "error"}
    assert "S1 Violence 0." in result.stdout and "How do I hurt the dog?" in result.stdout
    assert '"text" is missing' in result.stdout


def test_the_table_has_room_for_the_categories_on_80_columns(run: Run, tiny: Tiny) -> None:
    # The text took all the room; the categories stood letter by letter, or not at all.
    data = jsonl(["How do I hurt the dog, and " * 9])
    shown = run("score", "-", "--table", "--tolerance", 0, *tiny, input=data, env={"COLUMNS": "80"}).stdout
    assert "S1 Violence" in shown and "S2 Theft" in shown and "How do" in shown
    assert max(map(len, shown.splitlines())) <= 80 and len(shown.splitlines()) <= 4


@pytest.mark.parametrize("terminal", [{}, {"FORCE_COLOR": "1"}])
def test_a_text_cannot_style_or_turn_around_the_table(run: Run, tiny: Tiny, terminal: dict[str, str]) -> None:
    evil = "\x1b[31mRED\x1b]0;title\x07 \u202edesrever \x9b2J\r\x08 [bold]b[/bold] [link=x]"
    data = json.dumps({"id": "\x1b[7m[red]id", "text": evil}) + "\n" + json.dumps({"id": "\x1b[5m", "text": 1}) + "\n"
    shown = run("score", "-", "--table", *tiny, input=data, env={"COLUMNS": "240", **terminal}, color=True).stdout
    assert all(code not in shown for code in ("\x1b[31mRED", "\x1b]0", "\x1b[7m", "\x1b[5m", "\x07", "\u202e", "\x9b"))
    assert "\r" not in shown and "\x08" not in shown
    assert r"\x1b[31mRED" in shown and r"\u202edesrever" in shown and r"[red]id" in shown
    assert ("\x1b" in shown) == bool(terminal)  # rich's own colours, on a terminal


def test_a_model_s_name_and_a_profile_s_description_cannot_style_the_terminal(run: Run, tmp_path: Path) -> None:
    # Both were printed as they came.
    model = write_tiny_llama(tmp_path / "\x1b[31mEvil\x1b]0;title\x07.gguf", n_layer=1)
    profile = tmp_path / "evil.toml"
    profile.write_text(TINY_PROFILE.replace("A random model", "\\u001b[31mEvil\\u202e"), encoding="utf-8")
    for result in (run("check", "-m", model, "-p", profile, color=True), run("profiles", profile, color=True)):
        assert r"\x1b[31mEvil" in result.stdout
        assert "\x1b" not in result.stdout and "\u202e" not in result.stdout


# ------------------------------------------------------------ bad records

BAD: list[tuple[bytes, str, str]] = [
    (b'{"text": "torn', "invalid_json", "is not JSON"),
    (b'{"id": 7}', "missing_field", '"text" is missing'),
    (b'{"text": ["a"]}', "invalid_type", "a list of 1, expected a string"),
    (b'{"text": 3.5}', "invalid_type", '"text" is 3.5'),
    (b"42", "invalid_type", "expected an object"),
    (b'{"text": "\xff"}', "invalid_utf8", "0xff"),
    (b'{"text": " \\n"}', "empty_text", "expected some text"),
    (b'{"text": "%s"}' % (b"word " * 200_000), "context_overflow", "tokens with its answer, the context holds 1024"),
    (b'{"text": "a\\ud800"}', "invalid_text", "lone surrogate at character 2"),
    (b'{"text": "a\\u0000b"}', "invalid_text", "NUL at character 2"),
    (b'{"text": %s1%s}' % (b"[" * 100_000, b"]" * 100_000), "too_deep", "too deep"),
    (b'{"id": "good", "text": "again"}', "duplicate_id", "already used on line 1"),
    (b'{"messages": [{"role": "wizard", "content": "x"}]}', "unknown_role", '"wizard"'),
    (
        b'{"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}]}',
        "last_turn_not_judged",
        'nothing but the text of "system"',
    ),
    (b'{"messages": [{"role": "assistant", "content": "x"}]}', "wrong_turn_order", "has no user's turn"),
    (b'{"messages": []}', "empty_text", "empty list"),
    (b'{"text": "a", "prompt": "b"}', "ambiguous", "both given"),
]


def test_every_bad_record_is_an_error_in_its_place_and_the_others_are_scored(
    run: Run, tiny: Tiny, tmp_path: Path
) -> None:
    # What the guard refused (a context overflow) did not name the file and line.
    path = tmp_path / "bad.jsonl"
    lines = [b'{"id": "good", "text": "hello"}']
    for bad, _, _ in BAD:
        lines += [bad, b'{"text": "hello"}']
    path.write_bytes(b"\n".join(lines) + b"\n")
    result = run("score", path, *tiny)
    rows = rows_of(result.stdout)
    assert result.exit_code == 1 and len(rows) == len(lines)
    assert {json.dumps({**row, "id": None}) for row in rows[::2]} == {json.dumps({**rows[0], "id": None})}
    for i, (row, (_, kind, message)) in enumerate(zip(rows[1::2], BAD, strict=True)):
        line = 2 * i + 2
        assert list(row) == ["id", "error"] and list(row["error"]) == ["type", "message", "line"]
        assert (row["error"]["type"], row["error"]["line"]) == (kind, line)
        assert row["error"]["message"].startswith(f"{path}:{line}: ")
        assert message in row["error"]["message"]
        assert row["error"]["message"].isprintable() and len(row["error"]["message"]) < 400
    assert (rows[3]["id"], rows[23]["id"]) == (7, "good")
    assert f"{len(lines)} records, 0 flagged, {len(BAD)} errors" in result.stderr


def test_an_off_grammar_record_is_an_error_that_names_its_place(run: Run, tiny: Tiny, source: Path) -> None:
    result = run("score", source, "--min-grammar-mass", "0.9999", *tiny)
    rows = rows_of(result.stdout)
    assert result.exit_code == 1
    assert [(r["error"]["type"], r["error"]["line"]) for r in rows] == [("off_grammar", n) for n in range(1, 5)]
    assert rows[1]["error"]["message"].startswith(f"{source}:2: ")


def test_bad_csv_rows_are_errors_in_their_places(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(b'id,text\n1,hello\n2\n3,"two\nlines"\n4,\xff\n5,""\n1,again\n6,hello\n')
    result = run("score", path, *tiny)
    rows = rows_of(result.stdout)
    assert result.exit_code == 1
    kinds = [(row.get("error", {}).get("type"), row.get("error", {}).get("line")) for row in rows]
    assert kinds == [
        (None, None),
        ("invalid_type", 3),
        (None, None),
        ("invalid_utf8", 6),
        ("empty_text", 7),
        ("duplicate_id", 8),
        (None, None),
    ]


# ------------------------------------------------------------ files of others


def test_a_log_of_chats_is_scored_with_what_was_left_out_said(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    log = Path(__file__).parent / "data" / "openai-chats.jsonl"
    result = run("score", log, *tiny)
    rows = {row["id"]: row for row in rows_of(result.stdout)}
    assert result.exit_code == 1 and len(rows) == 15
    assert {id_: row["error"]["type"] for id_, row in rows.items() if "error" in row} == {
        "ends-in-tool": "last_turn_not_judged",
        "wizard": "unknown_role",
    }
    assert (rows["plain"]["skipped"], rows["system"]["skipped"], rows["tools"]["skipped"]) == (0, 1, 2)
    assert "2 errors, 13 turns or parts left out of 10 records, " in result.stderr
    strict = rows_of(run("score", log, "--strict", *tiny).stdout)
    assert [row["id"] for row in strict if "error" not in row] == ["plain", "refusal"]
    for name in ("out.csv", "out.parquet"):
        run("score", log, "-o", tmp_path / name, *tiny)
        assert [row.get("skipped") for row in read_rows(tmp_path / name)] == [r.get("skipped") for r in rows.values()]


def test_names_and_encodings_of_others_are_options(run: Run, tiny: Tiny, source: Path, tmp_path: Path) -> None:
    expected = run("score", source, *tiny).stdout
    table = tmp_path / "excel.csv"
    table.write_bytes(as_csv(TEXTS[:3], ";").replace(b"id;text", b"ID;\xdcberschrift"))
    options = ("--encoding", "cp1252", "--text-field", "Überschrift", "--id-field", "ID")
    assert rows_of(run("score", table, *options, *tiny).stdout) == rows_of(expected)[:3]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_bytes(b'{"in": {"user": "Hi"}, "completion": "Go away"}\n')
    usual = run("score", "-", *tiny, input=b'{"prompt": "Hi", "response": "Go away"}').stdout
    assert run("score", pairs, "--prompt-field", "in.user", "--response-field", "completion", *tiny).stdout == usual
    chat = b'{"log": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Go away"}]}'
    assert run("score", "-", "--messages-field", "log", *tiny, input=chat).stdout == usual
    array = jsonl(TEXTS).replace(b"\n{", b",\n{")
    assert run("score", "-", *tiny, input=b"[" + array + b"]").stdout == expected


def test_what_is_wrong_with_the_file_is_said_before_a_model_is_loaded(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    for data, options, message in (
        (b'{"prompt": "a", "completion": "b"}\n', (), "; did you mean --response-field completion?"),
        (
            b'{"user_input": "a", "model_output": "b"}\n',
            (),
            "; did you mean --prompt-field user_input --response-field model_output?",
        ),
        (b'{"text": "a"}\n', ("--text-field", "txt"), '"txt" is missing; did you mean "text"?'),
        (b"id;comment\n1;a\n", ("--input-format", "csv"), "; did you mean --text-field comment?"),
        (b"text;gr\xf6\xdfe\na;b\n", ("--input-format", "csv"), "; did you mean --encoding cp1252?"),
        (b"hello,world\n", ("--input-format", "csv"), "name the column that holds the text with --text-field"),
        (b"hello\n", ("--input-format", "json"), "is no JSON array"),
    ):
        path.write_bytes(data)
        for command in ("score", "evaluate", "calibrate"):
            out = ("--out", tmp_path / "c.json") if command == "calibrate" else ()
            result = run(command, path, "-m", "there-is-none.gguf", *out, *options)
            assert result.exit_code == 1 and message in one_line(result.stderr), (command, data)
        result = run("bench", "quant", path, "-r", "there-is-none.gguf", "--out", tmp_path / "study", *options)
        assert result.exit_code == 1 and message in one_line(result.stderr), data
    text = tmp_path / "in.txt"
    text.write_bytes(b"hello\n")
    assert one_line(run("score", text, "-m", "there-is-none.gguf").stderr).endswith("; or name it with --input-format")


# ------------------------------------------------------------ runs that fail


def test_what_cannot_be_run_fails_with_one_line_and_exit_code_1(
    run: Run, tiny: Tiny, tiny_model: Path, source: Path, tmp_path: Path
) -> None:
    no_gguf = tmp_path / "no.gguf"
    no_gguf.write_bytes(b"PK\x03\x04 not a model")
    short = truncated(tiny_model, tmp_path / "short.gguf", -500)
    tiny_head = truncated(tiny_model, tmp_path / "head.gguf", 300)
    bad_profile = tmp_path / "bad.toml"
    bad_profile.write_text(TINY_PROFILE.replace("min_grammar_mass = 0.0", "min_grammar_mass = 7"), encoding="utf-8")
    there = tmp_path / "there.jsonl"
    there.write_text("precious")
    long = "n" * 300
    profile = tiny[2:4]
    for args, message in (
        ((tmp_path / "none.jsonl", *tiny), f"{tmp_path}/none.jsonl: there is no such file"),
        ((tmp_path, *tiny), "is a directory"),
        ((source, "-m", tmp_path / "none.gguf", *profile), "none.gguf"),
        ((source, "-m", tmp_path, *profile), str(tmp_path)),
        ((source, "-m", no_gguf, *profile), "GGUF"),
        ((source, "-m", short, *profile), "short.gguf"),
        ((source, "-m", tiny_head, *profile), "head.gguf"),
        ((source, *tiny, "-p", bad_profile), f"{bad_profile}:4: min_grammar_mass is 7; expected a number from 0 to 1"),
        ((source, *tiny, "-p", "llama-gard-3"), "did you mean"),
        ((source, "-m", tiny_model), "does not say for certain which guard it is; give a `profile`"),
        ((source, *tiny, "--threshold", "S3=0.5"), "a threshold is given for S3, which profile tiny has not"),
        ((source, *tiny, "-o", there), f"{there}: exists already; --resume goes on"),
        ((source, *tiny, "-o", there, "--resume"), "is not a result row of edgeguard"),
        ((source, *tiny, "-o", tmp_path / "no" / "out.jsonl"), "cannot be written"),
        ((source, *tiny, "-o", tmp_path), "is not a regular file"),
        ((source, *tiny, "-o", tmp_path / long), "cannot be written (File name too long)"),  # was a traceback
        ((long, *tiny, "-o", tmp_path / "out"), "cannot be opened (File name too long)"),  # was a traceback
        ((source, *tiny, "-o", "/dev/full"), "disk full: 0 rows were written to /dev/full"),
        ((source, *tiny, "-f", "csv", "-o", "/dev/full"), "disk full: 0 rows were written to /dev/full"),
    ):
        result = run("score", *args)
        assert result.exit_code == 1, (args, result.output)
        assert result.stdout == "", args
        assert message in one_line(result.stderr), args
    assert there.read_text() == "precious"


def test_without_a_model_the_error_says_how_to_install_one(
    run: Run, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))  # no form that is there already
    monkeypatch.setattr("edgeguard.builtin.find_spec", lambda name: None)
    for args in (("score", source), ("explain", "hello"), ("check",)):
        result = run(*args)
        assert result.exit_code == 1
        assert "pip install 'edgeguard[smollm2]'" in one_line(result.stderr)


def test_misuse_is_exit_code_2_and_says_what_to_do(run: Run, tiny: Tiny, source: Path, tmp_path: Path) -> None:
    table = tmp_path / "bad.toml"
    table.write_text('S1 = "high"')
    deep = tmp_path / "deep.json"
    deep.write_text('{"a": ' * 100_000)
    before = source.read_bytes()
    for args, message in (
        (("score",), "Missing argument"),
        (("score", source, "--nonsense"), "No such option"),
        (("score", source, "-e", "mean"), "'mean' is not one of"),
        (("score", source, "-n", "-1"), "-1 is not in the range"),
        (("score", source, "--fail-over", "2"), "2.0 is not in the range"),
        (("score", source, "--resume"), "--resume needs --output"),
        (("score", source, "-o", tmp_path / "o", "--resume", "--overwrite"), "exclude each other"),
        (("score", source, "--table", "-f", "csv"), "--table is for the screen"),
        (("score", source, "-o", source, "--overwrite"), "name another output"),
        (("score", source, "-o", tmp_path / ".." / tmp_path.name / source.name, "--resume"), "is the input ("),
        (("score", source, "--text-field", "a", "--messages-field", "b"), "exclude one another"),
        (("score", source, "--encoding", "latin-0"), "encoding is 'latin-0'"),
        (("score", source, *tiny, "--threshold", "1.2"), "the threshold of default is 1.2"),
        (("score", source, *tiny, "--threshold", "S1=-0.2"), "the threshold of S1 is -0.2"),
        (("score", source, *tiny, "--threshold", "S1=nan"), "the threshold of S1 is nan"),
        (("score", source, *tiny, "--threshold", "S1=much"), "is no number, no LABEL=NUMBER and no file"),
        (("score", source, *tiny, "--threshold", table), "S1 is 'high'; expected LABEL = NUMBER"),
        (("score", source, *tiny, "--threshold", deep), "--threshold"),  # was a traceback
        (("explain",), "Missing argument"),
        (("profiles", "--toml"), "--toml needs the NAME"),
        (("no-such-command",), "No such command"),
    ):
        result = run(*args)
        assert result.exit_code == 2, (args, result.output)
        assert result.stdout == "" and "Traceback" not in result.stderr
        assert message in result.stderr.splitlines()[-1], args
    assert source.read_bytes() == before


def test_a_text_that_is_no_unicode_is_one_line(run_process: RunProcess, tiny: Tiny) -> None:
    result = run_process("explain", os.fsdecode(b"caf\xe9"), *tiny)
    assert result.returncode == 1 and "lone surrogate" in one_line(result.stderr.decode())


# ------------------------------------------------------------ exit codes and thresholds


def test_exit_code_3_when_a_record_is_unsafe_with_more_than_fail_over(
    run: Run, tiny: Tiny, source: Path, tmp_path: Path
) -> None:
    highest = max(row["unsafe"] for row in rows_of(run("score", source, *tiny).stdout))
    assert run("score", source, "--fail-over", highest, *tiny).exit_code == 0
    result = run("score", source, "--fail-over", highest - 1e-6, *tiny)
    assert result.exit_code == 3 and f"over --fail-over {highest - 1e-6:g}" in result.stderr.splitlines()[-1]
    assert run("score", source, "--table", "--fail-over", 0, *tiny).exit_code == 3

    with_error = tmp_path / "with-error.jsonl"
    with_error.write_bytes(b"no JSON\n" + source.read_bytes())
    assert run("score", with_error, "--fail-over", 1, *tiny).exit_code == 1
    assert run("score", with_error, "--fail-over", 0, *tiny).exit_code == 3


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.parquet"])
def test_rows_that_were_there_already_count_for_the_exit_code(run: Run, tiny: Tiny, tmp_path: Path, name: str) -> None:
    path, out = tmp_path / "in.jsonl", tmp_path / name
    path.write_bytes(b"no JSON\n" + jsonl(TEXTS))
    assert run("score", path, "-o", out, *tiny).exit_code == 1
    resumed = run("score", path, "-o", out, "--resume", *tiny)
    assert resumed.exit_code == 1 and resumed.stderr.startswith("0 records (and 5 resumed)")
    assert run("score", path, "-o", out, "--resume", "--fail-over", 0, *tiny).exit_code == 3
    assert run("score", path, "-o", out, "--resume", "--fail-over", 1, *tiny).exit_code == 1


def test_a_threshold_is_a_number_a_label_or_a_file(run: Run, tiny: Tiny, source: Path, tmp_path: Path) -> None:
    toml, as_json = tmp_path / "t.toml", tmp_path / "t.json"
    toml.write_text("default = 1.0\nS10 = 0\n")
    as_json.write_text('{"default": 1.0, "S10": 0.0}')
    for given, named in (
        ([], []),
        (["1"], []),
        (["0"], ["S1", "S10", "S2"]),
        (["1", "S1=0", "S2=0.0"], ["S1", "S2"]),
        (["S10=0"], ["S10"]),
        ([toml], ["S10"]),
        ([as_json], ["S10"]),
        ([toml, "S10=1", "S2=0"], ["S2"]),
        ([toml, "0"], ["S1", "S10", "S2"]),
    ):
        options = [part for text in given for part in ("--threshold", text)]
        rows = rows_of(run("score", source, *tiny, *options).stdout)
        assert [row["categories"] for row in rows] == [named] * 4, given
        assert [row["flagged"] for row in rows] == [bool(named)] * 4, given
    rows = rows_of(run("score", source, *tiny, "--threshold", "1", "--threshold", "unsafe=0.01").stdout)
    assert all(row["flagged"] and row["categories"] == [] for row in rows)


def test_limit_text_field_and_input_format(run: Run, tiny: Tiny, source: Path, tmp_path: Path) -> None:
    rows = rows_of(run("score", source, *tiny).stdout)
    assert rows_of(run("score", source, "-n", 2, *tiny).stdout) == rows[:2]
    nothing = run("score", source, "--limit", 0, *tiny)
    assert (nothing.exit_code, nothing.stdout) == (0, "")
    other = tmp_path / "data.txt"
    other.write_bytes(as_csv(TEXTS).replace(b"id,text", b"id,body"))
    assert "not recognised" in one_line(run("score", other, *tiny).stderr)
    assert "--text-field" in one_line(run("score", other, "--input-format", "csv", *tiny).stderr)
    assert rows_of(run("score", other, "--input-format", "csv", "--text-field", "body", *tiny).stdout) == rows


# ------------------------------------------------------------ processes: pipes, signals, full disks


@pytest.fixture(scope="module")
def many() -> list[str]:
    return [f"record {i}, {'word ' * (i % 7)}" for i in range(40)]


def journal(out: Path) -> Path:
    return next(out.parent.glob(f".{out.name}.*.rows"), out) if out.suffix == ".parquet" else out


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.parquet"])
@pytest.mark.parametrize("cut", [0, 30])
def test_resuming_after_kill_9_gives_the_output_of_an_uninterrupted_run(
    run: Run,
    tiny: Tiny,
    edgeguard_command: Callable[..., list[str]],
    many: list[str],
    tmp_path: Path,
    name: str,
    cut: int,
) -> None:
    data = jsonl(many)
    out, whole = tmp_path / name, tmp_path / f"whole-{name}"
    assert run("score", "-", "-o", whole, *tiny, input=data).exit_code == 0

    half = b"".join(line + b"\n" for line in data.splitlines()[:20])
    process = subprocess.Popen(
        edgeguard_command("score", "-", "-o", out, *tiny), stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdin is not None
    process.stdin.write(half)
    process.stdin.flush()  # and stdin stays open: the run waits in its middle
    end = time.monotonic() + 60
    while not journal(out).exists() or journal(out).read_bytes().count(b"\n") < 12:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.stdin.close()
    assert not (out.suffix == ".parquet" and out.exists())
    with journal(out).open("r+b") as file:
        file.truncate(journal(out).stat().st_size - cut)  # a torn last row, as a power cut leaves

    resumed = run("score", "-", "-o", out, "--resume", *tiny, input=data)
    assert resumed.exit_code == 0
    assert out.read_bytes() == whole.read_bytes()
    assert list(tmp_path.glob("*.rows")) == []
    assert " resumed)" in resumed.stderr and not resumed.stderr.startswith("40 records")


def test_an_output_is_resumed_with_the_same_input_and_guard_only(
    run: Run, tiny: Tiny, source: Path, tmp_path: Path
) -> None:
    out, other = tmp_path / "out.jsonl", tmp_path / "other.jsonl"
    run("score", source, "-o", out, "-n", 2, *tiny)
    before = out.read_bytes()
    other.write_bytes(source.read_bytes().replace(b'"1"', b'"one"'))
    short = tmp_path / "short.jsonl"
    short.write_bytes(jsonl(TEXTS[:1]))
    for args, message in (
        ((source, *tiny, "-e", "joint"), "estimator was marginal, is joint; resume with the same"),
        ((other, *tiny), "row 2 has id '1', the input's record 2 has 'one'"),
        ((short, *tiny), "has 2 rows, the input only 1"),
    ):
        result = run("score", *args, "-o", out, "--resume")
        assert result.exit_code == 1 and message in one_line(result.stderr)
        assert out.read_bytes() == before
    assert run("score", source, "-o", out, "--resume", *tiny).exit_code == 0
    assert out.read_text() == run("score", source, *tiny).stdout
    assert run("score", source, "-o", out, "--overwrite", "-n", 1, *tiny).exit_code == 0
    assert len(out.read_text().splitlines()) == 1


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_reader_that_goes_leaves_whole_lines_and_one_line_on_stderr(
    tiny: Tiny, edgeguard_command: Callable[..., list[str]], tmp_path: Path, form: str
) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(jsonl(["a short text"] * 400))  # more rows than a pipe holds
    score = shlex.join(edgeguard_command("score", path, "-f", form, *tiny))
    script = f"{score} 2>{tmp_path}/err | head -n 3; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", script], capture_output=True, timeout=120, check=False)
    assert result.returncode == 1 and result.stderr == b""
    if form == "jsonl":
        assert [row["id"] for row in rows_of(result.stdout.decode())] == ["0", "1", "2"]
    assert result.stdout.count(b"\n") == 3
    assert "the output was closed after " in one_line((tmp_path / "err").read_text())


def test_a_reader_that_never_was_gives_one_line(
    tiny: Tiny, edgeguard_command: Callable[..., list[str]], source: Path
) -> None:
    # The header of CSV met the closed pipe outside of what handles it: nothing was said.
    for args in (("score", source, "-f", "csv", *tiny), ("profiles", "--json")):
        read, write = os.pipe()
        os.close(read)
        with open(write, "wb") as closed:
            process = subprocess.run(
                edgeguard_command(*args), stdout=closed, stderr=subprocess.PIPE, timeout=60, check=False
            )
        assert process.returncode == 1
        assert "stdout cannot be written (Broken pipe)" in one_line(process.stderr.decode())


@pytest.mark.parametrize(
    "args", [("score", "{source}"), ("score", "{source}", "--table"), ("explain", "hi"), ("profiles", "--json")]
)
def test_a_full_disk_behind_stdout_gives_one_line(
    run_process: RunProcess, tiny: Tiny, source: Path, args: tuple[str, ...]
) -> None:
    # Tables, trees and --json ended in a traceback.
    words = [str(source) if arg == "{source}" else arg for arg in args]
    with open("/dev/full", "wb") as full:
        result = run_process(*words, *(tiny if args[0] != "profiles" else ()), stdout=full, stderr=subprocess.PIPE)
    assert result.returncode == 1
    message = one_line(result.stderr.decode())
    assert "disk full: 0 rows were written" in message or "stdout cannot be written (No space left" in message


def test_after_a_full_disk_the_run_can_be_resumed(
    run: Run, tiny: Tiny, edgeguard_command: Callable[..., list[str]], many: list[str], tmp_path: Path
) -> None:
    path, out, whole = tmp_path / "in.jsonl", tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    path.write_bytes(jsonl(many))
    run("score", path, "-o", whole, *tiny)
    limited = f"ulimit -f 8; exec {shlex.join(edgeguard_command('score', path, '-o', out, *tiny))}"
    result = subprocess.run(["bash", "-c", limited], capture_output=True, timeout=120, check=False)
    rows = out.read_bytes().count(b"\n")
    assert 0 < rows < 40 and out.read_bytes().endswith(b"\n")
    assert result.returncode == 1
    assert f"disk full: {rows} rows are safe in {out}" in one_line(result.stderr.decode())
    assert run("score", path, "-o", out, "--resume", *tiny).exit_code == 0
    assert out.read_bytes() == whole.read_bytes()


def test_ctrl_c_says_how_to_go_on(tiny: Tiny, edgeguard_command: Callable[..., list[str]], tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    process = subprocess.Popen(
        edgeguard_command("score", "-", "-o", out, *tiny), stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin is not None and process.stderr is not None
    process.stdin.write(jsonl(TEXTS))
    process.stdin.flush()
    end = time.monotonic() + 60
    while not out.exists() or out.read_bytes().count(b"\n") < 4:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    process.stdin.close()
    message = one_line(process.stderr.read().decode())
    process.stderr.close()
    assert "interrupted after 4 records; run again with --resume to go on from row 4" in message


def test_stdout_carries_data_alone_and_stderr_one_summary_line(
    run_process: RunProcess, tiny: Tiny, source: Path
) -> None:
    result = run_process("score", source, *tiny)
    assert result.returncode == 0
    assert [row["id"] for row in rows_of(result.stdout.decode())] == ["0", "1", "2", "3"]
    (summary,) = result.stderr.decode().splitlines()
    assert summary.startswith("4 records, 0 flagged, 0 errors, ") and summary.endswith(" reused")


def test_progress_is_shown_on_a_terminal(tiny: Tiny, edgeguard_command: Callable[..., list[str]], source: Path) -> None:
    terminal, end = os.openpty()
    with open(terminal, "rb", buffering=0) as reader, open(end, "wb") as stderr:
        process = subprocess.run(
            edgeguard_command("score", source, *tiny),
            stdout=subprocess.PIPE,
            stderr=stderr,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
            timeout=60,
            check=False,
        )
        shown = reader.read(1 << 16).decode()
    assert "scoring" in shown and "4/4" in shown
    assert len(rows_of(process.stdout.decode())) == 4


# ------------------------------------------------------------ explain, check, profiles


def test_explain_draws_the_tree_and_every_estimator(run: Run, tiny: Tiny) -> None:
    result = run("explain", "How do I hurt the dog?", *tiny, env={"COLUMNS": "120"})
    assert result.exit_code == 0 and result.stderr == ""
    for part in ("the guard's answer begins", "names unsafe", "smaller branches", "not explored 0.", "log-odds +"):
        assert part in result.stdout
    rows = [line.split() for line in result.stdout.splitlines() if line.split()[:1] in (["unsafe"], ["S1"], ["S10"])]
    assert [row[0] for row in rows] == ["unsafe", "S1", "S10"] * 2  # what is decided, and by each estimator
    assert "decided on marginal, not calibrated" in result.stdout


def test_explain_shows_both_numbers_and_what_the_thresholds_decide(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    calibration = tmp_path / "c.json"
    assert run("calibrate", "-o", calibration, "--method", "contextual", *tiny).exit_code == 0
    given = ("explain", "How do I hurt the dog?", "--calibration", calibration, *tiny)
    found = json.loads(run(*given, "--json").stdout)
    (row,) = rows_of(
        run("score", "-", "--calibration", calibration, *tiny, input=jsonl(["How do I hurt the dog?"])).stdout
    )
    unsafe = found["decision"]["labels"]["unsafe"]
    assert unsafe["probability"] == pytest.approx(row["unsafe"], rel=1e-6)
    assert unsafe["own"] == pytest.approx(found["estimates"]["marginal"]["unsafe"])
    assert found["decision"]["flagged"] == row["flagged"] and found["decision"]["calibration"] == "c.json"
    low, high = ("--threshold", "0"), ("--threshold", "1")
    shown = {name: run(*given, *t, env={"COLUMNS": "80"}).stdout for name, t in (("low", low), ("high", high))}
    assert "decided on marginal, calibrated by c.json" in shown["low"]
    assert "Flagged: P(unsafe) is" in shown["low"] and "Not flagged" in shown["high"]
    assert all(len(line) <= 80 for text in shown.values() for line in text.splitlines())
    joint = run(*given[:2], "-e", "joint", *tiny).stdout
    assert "decided on joint, not calibrated" in joint


def test_explain_as_json_is_the_tree_that_score_reads(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    text = "How do I hurt the dog?"
    result = run("explain", text, "--json", "--kv-cache", "f32", *tiny)
    tree = json.loads(result.stdout)
    places = tree["places"]
    assert places[0]["parent"] is None and places[0]["mass"] == 1 and places[0]["explored"]
    for i, place in enumerate(places):
        children = [child["mass"] for child in places if child["parent"] == i]
        assert sum(children) + place["off_grammar"] <= place["mass"] + 1e-6
        assert bool(children) == place["explored"]
        if place["parent"] is not None:
            assert place["parent"] < i and set(places[place["parent"]]["names"]) <= set(place["names"])
    path = tmp_path / "one.jsonl"
    path.write_bytes(jsonl([text]))
    for estimator, estimates in tree["estimates"].items():
        (row,) = rows_of(run("score", path, "-e", estimator, "--kv-cache", "f32", *tiny).stdout)
        assert row["category_scores"] == pytest.approx({k: estimates[k] for k in ("S1", "S10", "S2")}, abs=1e-3)
    (row,) = rows_of(run("score", path, "--kv-cache", "f32", *tiny).stdout)
    assert row["category_scores"] == pytest.approx(
        {k: tree["estimates"]["marginal"][k] for k in row["category_scores"]}
    )
    assert row["bounds"]["S1"] == pytest.approx(tree["bounds"]["S1"])
    assert (row["unexplored"], row["off_grammar"]) == pytest.approx((tree["unexplored"], tree["off_grammar"]))


def test_explain_judges_the_response_in_the_text_s_place(run: Run, tiny: Tiny) -> None:
    plain = json.loads(run("explain", "Hi", "--json", *tiny).stdout)
    answered = json.loads(run("explain", "Hi", "--response", "Go away", "--json", *tiny).stdout)
    assert plain["margin"] != answered["margin"]
    assert "expected some text" in one_line(run("explain", " ", *tiny).stderr)


def test_check_tells_a_profile_that_fits_from_one_that_does_not(
    run: Run, tiny: Tiny, tiny_model: Path, tmp_path: Path
) -> None:
    swapped = tmp_path / "swapped.toml"
    swapped.write_text(
        TINY_PROFILE.replace(
            'safe = "Boil an egg"\nunsafe = "Hurt the dog"', 'safe = "Hurt the dog"\nunsafe = "Boil an egg"'
        ),
        encoding="utf-8",
    )
    profile_of = {"given": tiny[3], "swapped": swapped}
    found = {}
    for name, profile in profile_of.items():  # the model is random: one of them fits at a threshold between the two
        options = ("--model", tiny_model, "--threads", 1, "--profile", profile)
        found[name] = json.loads(run("check", *options, "--json").stdout)
    low, high = sorted(found["given"][kind]["unsafe"] for kind in ("safe", "unsafe"))
    between = ("--threshold", 1, "--threshold", f"unsafe={(low + high) / 2}")
    results = {
        name: run("check", "--model", tiny_model, "--threads", 1, "--profile", profile, *between, env={"COLUMNS": "80"})
        for name, profile in profile_of.items()
    }
    assert sorted(result.exit_code for result in results.values()) == [0, 1]
    fits, fails = sorted(results.values(), key=lambda result: result.exit_code)
    assert fits.stdout.startswith("tiny with profile tiny") and "✓ the profile fits the model" in fits.stdout
    assert "nats below the safe one" in " ".join(fails.stdout.split()) and "✗ the safe text is flagged" in fails.stdout
    assert max(map(len, fails.stdout.splitlines())) <= 80
    assert (found["given"]["guard"], found["given"]["profile"]) == ("tiny", "tiny")
    assert found["given"]["safe"]["text"] == "Boil an egg" and 0 <= found["given"]["safe"]["grammar_mass"] <= 1
    assert found["given"]["apart"] == pytest.approx(-found["swapped"]["apart"])


def test_check_says_how_a_file_s_template_differs_from_the_published_prompt(run: Run, tmp_path: Path) -> None:
    model = write_tiny_llama(tmp_path / "port.gguf", n_ctx=4096)  # a plain chat template
    options = ("--model", model, "--threads", 1, "--profile", "llama-guard-3")
    prompt = json.loads(run("check", *options, "--json").stdout)["prompt"]
    assert (prompt["written_by"], prompt["template"], prompt["compared"]) == ("profile", True, True)
    assert [finding["kind"] for finding in prompt["findings"]] == ["no_task", "other_words"]
    shown = run("check", *options, env={"COLUMNS": "80"}).stdout
    assert "- it names none of the 14 categories" in shown and "    published <|begin_of_text|>" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_check_fails_where_the_model_does_not_answer_in_the_grammar(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    strict = tmp_path / "strict.toml"
    strict.write_text(TINY_PROFILE.replace("min_grammar_mass = 0.0", "min_grammar_mass = 0.9"), encoding="utf-8")
    result = run("check", "--model", tiny_model, "--profile", strict, "--json")
    problems = json.loads(result.stdout)["problems"]
    assert result.exit_code == 1 and len([p for p in problems if "0.9 is needed" in p]) == 2
    shown = run("check", "--model", tiny_model, "--profile", strict, env={"COLUMNS": "200"})
    assert shown.exit_code == 1 and "✗ on the known safe text only 0." in shown.stdout


def test_check_without_a_self_test_says_so(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    text = TINY_PROFILE[: TINY_PROFILE.index("[self_test]")] + TINY_PROFILE[TINY_PROFILE.index("[[category]]") :]
    path.write_text(text, encoding="utf-8")
    result = run("check", "--model", tiny_model, "--profile", path)
    assert result.exit_code == 1 and "the profile has no [self_test]" in one_line(result.stderr)


def test_profiles_lists_shows_and_prints_them(run: Run, tmp_path: Path) -> None:
    listed = run("profiles", env={"COLUMNS": "200"}).stdout
    for profile in list_profiles():
        assert profile.name in listed
        shown = run("profiles", profile.name, env={"COLUMNS": "200"}).stdout
        assert all(category.code in shown and category.name in shown for category in profile.categories)
        toml = run("profiles", profile.name, "--toml").stdout_bytes
        assert parse_profile(toml, profile.source) == profile
        as_json = json.loads(run("profiles", profile.name, "--json").stdout)
        assert [c["code"] for c in as_json[0]["categories"]] == [c.code for c in profile.categories]
    assert len(json.loads(run("profiles", "--json").stdout)) == len(list_profiles()) + len(list_refused())
    for extra in ((), ("--toml",), ("--json",)):
        result = run("profiles", "instrukt", *extra)
        assert result.exit_code == 1 and "did you mean" in one_line(result.stderr)


def test_a_printed_profile_can_be_used_as_one_s_own(run: Run, source: Path, tmp_path: Path) -> None:
    model = write_tiny_llama(tmp_path / "long.gguf", n_ctx=4096)  # the policy is long in a vocabulary of bytes
    own = tmp_path / "my-policy.toml"
    own.write_bytes(run("profiles", "llama-guard-3", "--toml").stdout_bytes)
    options = ("-m", model, "--threads", 1, "--min-grammar-mass", 0, "-n", 1)
    result = run("score", source, "-p", own, *options)
    assert result.exit_code == 0
    assert result.stdout == run("score", source, "-p", "llama-guard-3", *options).stdout
    assert run("profiles", own, "--toml").stdout_bytes == own.read_bytes()


# ------------------------------------------------------------ help


def commands(group: click.Group = main, name: str = "") -> list[tuple[str, click.Command]]:
    """Every command and group, by what is typed behind `edgeguard`."""
    found: list[tuple[str, click.Command]] = [(name, group)]
    for word, command in group.commands.items():
        inner = f"{name} {word}".strip()
        found += commands(command, inner) if isinstance(command, click.Group) else [(inner, command)]
    return found


@pytest.mark.parametrize(("name", "command"), commands())
def test_every_command_and_option_is_explained_and_help_ends_with_an_example(
    run: Run, name: str, command: click.Command
) -> None:
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.name}"
    shown = run(*name.split(), "--help").stdout
    assert run(*name.split(), "-h").stdout == shown
    paragraphs = shown.strip().split("\n\n")
    assert paragraphs[-1].lstrip().startswith(("Example:", "Examples:"))


def examples() -> list[str]:
    texts = [command.epilog or "" for _, command in commands()]
    lines = [line.strip().removeprefix("Example: ") for text in texts for line in text.splitlines()]
    return [line for line in lines if "edgeguard" in line]


@pytest.mark.parametrize("example", examples())
def test_the_examples_parse(example: str) -> None:
    words = shlex.split(example)
    words = words[words.index("edgeguard") + 1 :]
    words = words[: words.index(">")] if ">" in words else words
    command = main.commands[words[0]]
    context = command.make_context(words[0], words[1:])  # raises for an option that is not there
    for value in context.params.values():
        if str(value).startswith("examples/"):
            assert (Path(__file__).parents[1] / str(value)).is_file()


def test_there_is_an_example_for_every_command() -> None:
    shown = [e[e.index("edgeguard") :] for e in examples()]
    for name, command in commands():
        if not isinstance(command, click.Group):
            assert any(f"{e} ".startswith(f"edgeguard {name} ") for e in shown), name


def test_help_waits_for_no_runtime(tmp_path: Path) -> None:
    heavy = ["llama_cpp", "numpy", "jinja2", "rich", "pyarrow", "edgeguard.guard", "edgeguard.rows.record"]
    assert all(importlib.util.find_spec(name) for name in heavy)
    code = (
        "import sys\nfrom edgeguard.cli import main\n"
        "for args in (['--help'], ['score', '--help'], ['explain', '--help'], ['--version']):\n"
        "    try:\n        main(args)\n    except SystemExit as stop:\n        assert not stop.code\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
