"""Several processes, one output: the same bytes for any number of them, whatever dies."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import Run, RunProcess
from hypothesis import given
from hypothesis import strategies as st
from processes import SECONDS, children, gone, until
from stub_worker import score_or_break, score_or_die, score_slowly
from tiny_gguf import write_tiny_llama

from edgeguard import (
    Failure,
    Guard,
    ModelError,
    RuntimeOptions,
    Score,
    Search,
    WorkerDied,
    Workers,
    isolated,
    score_many,
)
from edgeguard.builtin import ADAPTER, DEFAULT
from edgeguard.calibration.maps import Calibration, Map
from edgeguard.convert import convert
from edgeguard.pool import Pool
from edgeguard.workers import AHEAD, EACH, SMALL, Plan, plan, size_of

Tiny = tuple[str, ...]
Command = Callable[..., list[str]]


# ------------------------------------------------------------ how many


def planned(**given: object) -> Plan:
    usual = {"workers": None, "threads": None, "device": "cpu", "model_bytes": 1 << 27, "records": None, "cores": 8}
    return plan(**{**usual, "memory": None, **given})  # type: ignore[arg-type]


def test_the_rule_for_the_number_of_processes() -> None:
    assert planned() == Plan(8, 1)
    assert planned(cores=1) == Plan(1, 1)
    assert planned(records=5) == planned(records=0) == Plan(1, 1)
    assert planned(records=EACH + 1) == Plan(2, 1)
    assert planned(model_bytes=SMALL + 1) == planned(device="cuda") == planned(device="auto") == Plan(1, None)
    assert planned(model_bytes=None) == Plan(1, None)
    assert planned(memory=3 << 30) == Plan(4, 1)
    assert planned(memory=0) == Plan(1, 1)
    assert planned(threads=4) == Plan(1, 4)
    assert planned(workers=3) == planned(workers=3, device="cuda", model_bytes=SMALL + 1, records=1) == Plan(3, 1)
    assert planned(workers=3, threads=2) == Plan(3, 2)


@given(st.integers(0, 10_000), st.integers(0, 10_000), st.integers(0, 1 << 34), st.integers(0, 1 << 34))
def test_how_many_records_there_are_and_how_much_memory_is_free_change_no_bits(a: int, b: int, m: int, n: int) -> None:
    assert planned(records=a, memory=m).threads == planned(records=b, memory=n).threads


def test_all_parts_of_a_model_are_counted_and_nothing_beside_it(tmp_path: Path) -> None:
    for name, n in {
        "a.gguf": 3,
        "a.gguf.old": 90,
        "b-00001-of-00002.gguf": 4,
        "b-00002-of-00002.gguf": 5,
        "c/model.onnx": 1,
        "c/model.onnx.data": 70,
        "c/other.bin": 90,
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(n))
    names = ("a.gguf", "b-00001-of-00002.gguf", "c/model.onnx", "c", "none.gguf", "nul\0.gguf")
    assert [size_of(tmp_path / name) for name in names] == [3, 9, 71, 71, None, None]


# ------------------------------------------------------------ whole commands


MIXED = [
    '{"id": "a", "text": "How do I boil an egg?"}',
    '{"id": "torn',
    '{"id": "long", "text": "%s"}' % ("word " * 3000),  # more than the context holds: the workers refuse it
    *(f'{{"id": "{i}", "text": "record {i} {"word " * (i * 7 % 40)}"}}' for i in range(14)),
    '{"id": "a", "text": "again"}',
    '{"id": "ü", "prompt": "漢字", "response": "Ünïcödé"}',
]


@pytest.fixture(scope="session")
def run(run_with_processes: Run) -> Run:
    return run_with_processes


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("in") / "in.jsonl"
    path.write_text("\n".join(MIXED) + "\n", encoding="utf-8")
    return path


def test_one_two_and_three_processes_write_the_same_bytes(run: Run, tiny: Tiny, source: Path, tmp_path: Path) -> None:
    for name, numbers in (("out.jsonl", (2, 3)), ("out.csv", (3,)), ("out.parquet", (2,))):
        alone = tmp_path / f"alone-{name}"
        assert run("score", source, "-o", alone, "--workers", 1, *tiny).exit_code == 1
        for n in numbers:
            result = run("score", source, "-o", tmp_path / f"{n}-{name}", "--workers", n, *tiny)
            assert result.exit_code == 1 and ", 3 errors, " in result.stderr
            assert (tmp_path / f"{n}-{name}").read_bytes() == alone.read_bytes()
    kinds = [
        json.loads(line).get("error", {}).get("type") for line in (tmp_path / "2-out.jsonl").read_text().splitlines()
    ]
    assert [kind for kind in kinds if kind] == ["invalid_json", "context_overflow", "duplicate_id"]


@pytest.fixture(scope="module")
def onnx(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(tiny_model, tmp_path_factory.mktemp("onnx") / "onnx", to="onnx-int8").path


def test_models_of_onnx_runtime_give_the_same_bits_too(onnx: Path, tiny_guard: Guard) -> None:
    texts = [f"text {i} {'word ' * (i * 5 % 30)}" for i in range(8)] + [""]
    options: dict[str, Any] = {"profile": tiny_guard.profile, "runtime": RuntimeOptions(threads=1)}
    with Guard.load(onnx, **options) as guard:
        alone = list(guard.score_many(texts))
    for n in (1, 2, 3):
        assert list(score_many(texts, onnx, workers=n, profile=tiny_guard.profile)) == alone


@pytest.mark.parametrize("n", [5, 19])
def test_the_number_that_is_chosen_changes_no_bits(
    run: Run, tiny: Tiny, source: Path, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    """Without a word about workers and threads: one process for a few lines, several for more."""
    started: list[int] = []
    monkeypatch.setattr("edgeguard.workers.available_cores", lambda: 2)
    monkeypatch.setattr("edgeguard.workers.free_memory", lambda: None)
    monkeypatch.setattr(
        "edgeguard.workers.Pool", lambda *args, n, **options: started.append(n) or Pool(*args, n=n, **options)
    )
    chosen = run("score", source, "-n", n, *tiny[:4])
    assert started == [1 if n < EACH else 2]
    assert chosen.stdout == run("score", source, "-n", n, "--workers", 3, *tiny[:4]).stdout
    assert chosen.stdout == run("score", source, "-n", n, "--threads", 1, *tiny[:4]).stdout


def test_stdin_limit_and_table_are_as_with_one_process(run_process: RunProcess, tiny: Tiny, source: Path) -> None:
    for options in (("-n", 7), ("--table", "-n", 3)):
        alone, several = (
            run_process("score", "-", *options, "--workers", n, *tiny, input=source.read_bytes()) for n in (1, 2)
        )
        assert (several.stdout, several.returncode) == (alone.stdout, alone.returncode)


@pytest.fixture(scope="module")
def pool(tiny_model: Path, tiny_guard: Guard) -> Iterator[Workers]:
    """Two processes, for tests that leave them as they were."""
    runtime = RuntimeOptions(threads=1)
    with Workers(tiny_model, profile=tiny_guard.profile, workers=2, runtime=runtime) as workers:
        yield workers


def test_results_come_in_order_whatever_each_costs(pool: Workers, tiny_guard: Guard) -> None:
    texts = ["wait 0.3", "a", "b", "wait 0.1", "", "c", "d"]
    results = [result for _, result in pool.judged(texts, score_slowly)]
    assert results == list(tiny_guard.score_many(texts))


def test_several_streams_are_scored_at_once(pool: Workers, tiny_guard: Guard) -> None:
    streams = [[f"stream {k}, text {i}" for i in range(6)] for k in range(3)]
    results: list[list[Any]] = [[] for _ in streams]
    threads = [threading.Thread(target=lambda k=k: results[k].extend(pool.score_many(streams[k]))) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert results == [list(tiny_guard.score_many(texts)) for texts in streams]


def test_records_are_not_read_ahead_without_bound(pool: Workers) -> None:
    read = 0

    def endless() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield f"text {read}"

    results = pool.score_many(endless())
    for _ in range(3):
        next(results)
    time.sleep(0.2)
    assert read <= 3 + 2 * AHEAD + 2
    results.close()  # type: ignore[attr-defined]
    assert len(list(pool.score_many(["what comes after"]))) == 1


def test_a_record_of_megabytes_goes_through_the_pipes(pool: Workers) -> None:
    (result,) = pool.score_many([{"id": "big", "text": "word " * 1_000_000}])
    assert isinstance(result, Failure) and (result.id, result.kind) == ("big", "context_overflow")


def test_an_error_of_the_source_or_of_the_model_is_raised_after_the_rows_before_it(pool: Workers) -> None:
    def torn() -> Iterator[str]:
        yield from ("one", "two")
        raise OSError("the source broke off")

    results = pool.score_many(torn())
    assert isinstance(next(results), Score) and isinstance(next(results), Score)
    with pytest.raises(OSError, match="broke off"):
        next(results)
    broken = (result for _, result in pool.judged(["one", "broken", "two"], score_or_break))
    assert isinstance(next(broken), Score)
    with pytest.raises(ModelError, match="its weights are broken") as error:
        next(broken)
    assert (error.value.kind, error.value.data) == ("odd", {"number": 7})


def test_closed_workers_say_so(tiny_model: Path, tiny_guard: Guard) -> None:
    workers = Workers(tiny_model, profile=tiny_guard.profile, workers=1)
    results = workers.score_many(["one", "two"])
    next(results)
    workers.close()
    workers.close()
    with pytest.raises(ValueError, match="closed"):
        list(workers.score_many(["three"]))
    with pytest.raises(ValueError, match="closed"):
        workers.score("four")
    with pytest.raises(ValueError, match="0 processes were asked for, expected at least 1"):
        Workers(tiny_model, profile=tiny_guard.profile, workers=0)


def test_a_worker_s_guard_is_what_was_asked_for(tiny_model: Path, tiny_guard: Guard, source: Path) -> None:
    maps = {"unsafe": Map("platt", {"slope": 0.5, "intercept": 1.0}), "S1": Map("temperature", {"temperature": 2.0})}
    calibration = Calibration("x", "x", "x", "x", maps, {"S2": 0.1}, bound=False)
    options = {
        "profile": tiny_guard.profile,  # an object, not a name
        "estimator": "joint",
        "runtime": RuntimeOptions(context=512, kv_cache="f32", threads=1),
        "search": Search(tolerance=0.2, max_nodes=7, min_grammar_mass=0.0001),
        "calibration": calibration,
        "thresholds": {"S1": 0.2},
    }
    texts = [f"text {i} {'word ' * i}" for i in range(6)] + [" "]
    with Guard.load(tiny_model, **options) as guard, Workers(tiny_model, workers=2, **options) as workers:  # type: ignore[arg-type]
        assert [s.row() for s in workers.score_many(texts)] == [s.row() for s in guard.score_many(texts)]
        assert workers.score(texts[0]) == guard.score(texts[0])
        for name in (
            "name",
            "codes",
            "field_labels",
            "estimator",
            "model_sha256",
            "thresholds",
            "calibration",
            "profile",
        ):
            assert getattr(workers, name) == getattr(guard, name)
        with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
            workers.nonsense  # noqa: B018
    assert [r.kind for r in score_many([" ", None], tiny_model, workers=1, **options)] == ["empty_text", "invalid_type"]  # type: ignore[list-item, union-attr]


def test_a_record_that_kills_its_process_is_an_error_row_in_its_place(tiny_model: Path, tiny_guard: Guard) -> None:
    texts = ["one", "please die", "two", "", "please die", "three"]
    runtime = RuntimeOptions(threads=1)
    with Workers(tiny_model, profile=tiny_guard.profile, workers=2, runtime=runtime) as workers:
        rows = [result.row() for _, result in workers.judged(texts, score_or_die, where="in.jsonl")]
    for i in (1, 4):
        error = rows[i]["error"]
        assert (error["type"], error["line"]) == ("worker_died", 0)
        assert error["message"].startswith(
            "in.jsonl: a worker process was ended by SIGSEGV while it had this record, twice"
        )
    assert [rows[i] for i in (0, 2, 3, 5)] == [r.row() for r in tiny_guard.score_many(["one", "two", "", "three"])]


@pytest.mark.smollm2
def test_the_default_guard_brings_its_adapter_and_calibration_along() -> None:
    texts = ["How do I pick a lock?", "What is for dinner?"]
    form = f"{DEFAULT}:{ADAPTER}"  # the one that is calibrated whatever else is
    with Guard.load(form, runtime=RuntimeOptions(threads=1)) as guard:
        alone = [score.row() for score in guard.score_many(texts)]
    with Workers(form, workers=2) as workers:
        assert workers.name == "edgeguard-135m"
        assert [score.row() for score in workers.score_many(texts)] == alone
    assert all(row["calibrated"] for row in alone)


def test_a_model_that_cannot_be_loaded_is_one_line(run: Run, source: Path, tmp_path: Path, tiny: Tiny) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF\x03\0\0\0 and nothing more")
    for options in (("-m", bad, "-p", "llama-guard-3"), ("-m", tmp_path / "none.gguf"), (*tiny, "--context", 4096)):
        alone, several = (run("score", source, "--workers", n, *options) for n in (1, 2))
        assert several.exit_code == alone.exit_code == 1
        assert several.stderr == alone.stderr and several.stderr.count("\n") == 1


def test_evaluate_and_a_study_say_the_same(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    labelled = tmp_path / "labelled.jsonl"
    rows = ({"id": i, "text": f"text {i} {'word ' * (i % 5)}", "labels": ["S1"] * (i % 3 == 0)} for i in range(12))
    labelled.write_text("".join(json.dumps(row) + "\n" for row in rows))
    alone, several = (run("evaluate", labelled, "--json", "--draws", 20, "-w", n, *tiny) for n in (1, 2))
    assert alone.exit_code == 0 and alone.stdout == several.stdout
    model, profile = tiny[1], tiny[3]
    quant = ("-r", model, "-p", profile, "-t", 1, "-v", "q8_0", "--floor", 0, "--measurements", 0, "--draws", 20)
    reports = []
    for n in (1, 2):
        out = tmp_path / f"study-{n}"
        assert run("bench", "quant", labelled, "--out", out, "--workers", n, *quant).exit_code == 0
        reports.append(json.loads((out / "report.json").read_text()))
        reports[-1]["setting"]["command"] = ""
        assert reports[-1].pop("machine")["workers"] == n
        reports[-1].pop("plan")  # it has times
    assert reports[0] == reports[1]


# ------------------------------------------------------------ signals and pipes


def lines(n: int) -> bytes:
    return b"".join(b'{"id": "%d", "text": "record %d %s"}\n' % (i, i, b"word " * (i % 50)) for i in range(n))


@pytest.fixture(scope="module")
def whole(run: Run, tiny: Tiny) -> bytes:
    return run("score", "-", *tiny, input=lines(60)).stdout_bytes


def test_killed_workers_and_a_killed_parent_lose_no_row(
    run: Run, tiny: Tiny, edgeguard_command: Command, whole: bytes, tmp_path: Path
) -> None:
    out, rng = tmp_path / "out.jsonl", random.Random(5)
    options = ("-o", out, "--workers", 2, *tiny)
    with subprocess.Popen(
        edgeguard_command("score", "-", *options), stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        process.stdin.write(b"".join(lines(60).splitlines(keepends=True)[:40]))
        process.stdin.flush()  # and stays open
        until(lambda: out.exists() and out.read_bytes().count(b"\n") >= rng.randrange(1, 10))
        workers = children(process.pid)
        assert len(workers) == 2
        os.kill(rng.choice(workers), signal.SIGKILL)
        until(lambda: out.read_bytes().count(b"\n") == 40)
        assert out.read_bytes() == b"".join(whole.splitlines(keepends=True)[:40])
        workers = children(process.pid)
        process.kill()
    until(lambda: all(map(gone, workers)), 10)
    result = run("score", "-", "--resume", *options, input=lines(60))
    assert result.stderr.startswith("20 records (and 40 resumed)")
    assert out.read_bytes() == whole


def test_ctrl_c_of_a_terminal_ends_all_and_says_how_to_go_on(
    tiny: Tiny, edgeguard_command: Command, whole: bytes, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    with subprocess.Popen(
        edgeguard_command("score", "-", "-o", out, "--workers", 2, *tiny),
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        process_group=0,
    ) as process:
        assert process.stdin is not None and process.stderr is not None
        process.stdin.write(lines(20))
        process.stdin.flush()
        until(lambda: out.exists() and out.read_bytes().count(b"\n") == 20)
        workers = children(process.pid)
        os.killpg(process.pid, signal.SIGINT)  # to all of them, as a terminal does
        assert process.wait(SECONDS) == 130
        assert all(map(gone, workers)) and len(workers) == 2
        message = process.stderr.read().decode()
    assert message == "edgeguard: interrupted after 20 records; run again with --resume to go on from row 20\n"
    assert out.read_bytes() == b"".join(whole.splitlines(keepends=True)[:20])


def test_a_reader_that_stops_stops_the_reading_and_one_that_goes_ends_it(
    tiny: Tiny, edgeguard_command: Command
) -> None:
    """An endless input through a pipe: what is taken of it is bounded by what is taken of the output."""
    with subprocess.Popen(
        edgeguard_command("score", "-", "--workers", 2, *tiny),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        fed = 0

        def feed() -> None:
            nonlocal fed
            assert process.stdin is not None
            with suppress(BrokenPipeError), process.stdin:
                for i in itertools.count():
                    process.stdin.write(b'{"id": "%d", "text": "%s"}\n' % (i, b"word " * 100))
                    fed = i + 1

        feeder = threading.Thread(target=feed, daemon=True)
        feeder.start()
        assert json.loads(process.stdout.readline())["id"] == "0"
        seen = -1
        while seen != fed:  # until nothing moves any more
            seen = fed
            time.sleep(0.7)
        # Of the output two pipes' worth may stand unread, of the input as much; neither grows with the input.
        assert fed < 1500
        process.stdout.close()
        assert process.wait(SECONDS) == 1
        message = process.stderr.read().decode()
        feeder.join(5)
    assert message.startswith("edgeguard: the output was closed after ") and message.count("\n") == 1


def test_rows_come_out_while_the_input_stands_still(tiny: Tiny, edgeguard_command: Command) -> None:
    with subprocess.Popen(
        edgeguard_command("score", "-", "--workers", 2, *tiny),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        for i, line in enumerate(lines(3).splitlines(keepends=True)):
            process.stdin.write(line)
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["id"] == str(i)
        process.stdin.close()
        assert process.wait(SECONDS) == 0


def test_a_small_input_is_scored_by_one_process(run: Run, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeguard.workers.available_cores", lambda: 8)
    started: list[int] = []
    monkeypatch.setattr(
        "edgeguard.workers.Pool", lambda *args, n, **options: started.append(n) or Pool(*args, n=n, **options)
    )
    without_threads = tiny[:4]
    expected = run("score", "-", *tiny, input=lines(5)).stdout
    assert run("score", "-", *without_threads, input=lines(5)).stdout == expected
    assert run("score", "-", "-n", 5, *without_threads, input=lines(100)).stdout == expected
    assert started == [1, 1, 1]


@pytest.fixture(scope="module")
def recursive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose pre-tokenizer runs through llama.cpp's recursive regex: long runs of a letter overflow it."""
    return write_tiny_llama(tmp_path_factory.mktemp("recursive") / "tiny.gguf", pre="gpt-4o")


KILLER = "a" * 40_000


@pytest.mark.parametrize("options", [(), ("--threads", 1), ("--workers", 1), ("--workers", 2)])
def test_a_text_that_ends_the_process_of_a_model_is_an_error_row_however_it_is_scored(
    run: Run, recursive: Path, tiny_profile: Path, options: tuple[str | int, ...]
) -> None:
    texts = ["before", KILLER, "behind"]
    given = "".join(json.dumps({"id": str(i), "text": text}) + "\n" for i, text in enumerate(texts))
    done = run("score", "-", "-m", recursive, "-p", tiny_profile, *options, input=given)
    before, killer, behind = map(json.loads, done.stdout.splitlines())
    assert done.exit_code == 1
    assert before["unsafe"] >= 0 and behind["unsafe"] >= 0
    assert (killer["id"], killer["error"]["type"]) == ("1", "worker_died")
    assert "SIGSEGV" in killer["error"]["message"]


def test_explain_says_what_ended_the_process_of_its_model(run: Run, recursive: Path, tiny_profile: Path) -> None:
    done = run("explain", KILLER, "-m", recursive, "-p", tiny_profile)
    assert done.exit_code == 1
    assert "SIGSEGV" in done.stderr and "Traceback" not in done.stderr


def test_an_isolated_guard_scores_as_the_one_in_this_process_and_outlives_a_crash(
    tiny_model: Path, recursive: Path, tiny_profile: Path
) -> None:
    options: dict[str, Any] = {"profile": tiny_profile, "runtime": RuntimeOptions(threads=1)}
    with Guard.load(tiny_model, **options) as here, isolated(tiny_model, **options) as there:
        assert there.score("a text") == here.score("a text")
        assert [*there.score_many(["a", "b"])] == [*here.score_many(["a", "b"])]
    with isolated(recursive, **options) as guard:
        with pytest.raises(WorkerDied, match="SIGSEGV"):
            guard.score(KILLER)
        assert guard.score("a text").unsafe >= 0


@pytest.mark.smollm2
def test_a_form_is_made_and_told_of_once_for_all_processes(run_process: RunProcess, tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    options = ("-m", f"{DEFAULT}:q8_0", "--context", 512, "-e", "conditional")
    outputs = []
    for n in (2, 1):
        result = run_process("score", "-", "-w", n, *options, input=lines(4), env=environment)
        assert result.returncode == 0
        told = result.stderr.decode().splitlines()
        assert len(set(told)) == len(told)
        assert [line.count(" making ") for line in told[:1]] == [n - 1]  # it is there the second time
        outputs.append(result.stdout)
    assert outputs[0] == outputs[1]
