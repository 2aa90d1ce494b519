"""Several processes, one output: the same bytes for any number of them, whatever dies."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import Run
from hypothesis import given
from hypothesis import strategies as st
from stub_worker import Opening, echo, hello, kills, process_id, raises, score_or_die, slowly

from edgeguard import ContextOverflow, Guard, ModelError, RuntimeOptions, Search, WorkerDied, Workers, score_many
from edgeguard.ahead import Ahead
from edgeguard.builtin import ADAPTER, DEFAULT
from edgeguard.calibration.maps import Calibration, Map
from edgeguard.pool import Pool
from edgeguard.workers import EACH, SMALL, Plan, plan

Tiny = tuple[str, ...]
Command = Callable[..., list[str]]


# ------------------------------------------------------------ processes


@pytest.fixture
def opening(tmp_path: Path) -> Opening:
    return Opening(tmp_path / "opened")


def pool_of(opening: Opening, n: int = 2, start: int = 1) -> Pool:
    return Pool(opening, hello=hello, n=n, start=start, what="a worker process")


def openings(opening: Opening) -> list[str]:
    return opening.log.read_text().splitlines()


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z"  # nobody reaps it here


def until(done: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_what_is_sent_comes_back_as_it_was_and_prints_do_not_mix_with_it(tmp_path: Path) -> None:
    items = ["x" * 3_000_000, "Ünïcödé 漢字 \0", "\udc80 alone", b"\xff" * 10, None, {"deep": [1, (2.5, "a")]}]
    with pool_of(Opening(tmp_path / "opened", "prints")) as pool:
        assert [f.result(30) for f in [pool.submit(echo, item) for item in items]] == items


def test_processes_are_started_as_tasks_wait_and_no_more_than_asked(opening: Opening) -> None:
    with pool_of(opening, n=3) as pool:
        assert pool.hello() == "opened"
        for _ in range(5):
            pool.submit(echo, 1).result(30)
        assert len(openings(opening)) == 1
        assert [f.result(30) for f in [pool.submit(slowly, (i, 0.2)) for i in range(8)]] == list(range(8))
        assert len(openings(opening)) == 3
        (pids := {*map(int, openings(opening))}).remove(pool.submit(process_id, None).result(30))
    assert len(pids) == 2 and all(map(gone, map(int, openings(opening))))


def test_a_task_that_kills_its_process_twice_is_an_error_of_its_own(opening: Opening, tmp_path: Path) -> None:
    items = ["a", "kill", "b", f"kill once {tmp_path / 'once'}", "c"]
    with pool_of(opening, n=1) as pool:
        futures = [pool.submit(kills, item) for item in items]
        with pytest.raises(WorkerDied, match=r"ended by SIGSEGV while .*twice; it said last: GGML_ASSERT\(false\)"):
            futures.pop(1).result(30)
        assert [future.result(30) for future in futures] == [items[0], *items[2:]]
    assert len(openings(opening)) == 4  # one, two for the killer, one for what died once


def test_a_process_that_cannot_open_is_one_error_and_no_loop(tmp_path: Path) -> None:
    opening = Opening(tmp_path / "no", "says no")
    with pool_of(opening) as pool:
        with pytest.raises(ModelError, match=r"^no\.gguf is no model$") as error:
            pool.hello()
        assert (error.value.kind, error.value.data) == ("no_room_for_context", {"path": Path("no.gguf")})
        for _ in range(3):
            with pytest.raises(ModelError, match=r"no\.gguf is no model"):
                pool.submit(echo, 1).result(30)
    assert len(openings(opening)) == 1
    opening = Opening(tmp_path / "dies", "dies")
    with (
        pool_of(opening, n=1) as pool,
        pytest.raises(ModelError, match=r"by SIGKILL while it started, 3 times; it said last: llama\.cpp: ran"),
    ):
        pool.hello()
    assert len(openings(opening)) == 3


def test_a_process_that_finds_other_files_than_the_first_ends_the_run(tmp_path: Path) -> None:
    with pool_of(Opening(tmp_path / "opened", "changes"), n=1) as pool:
        assert pool.hello() == "opened as 1"
        with pytest.raises(ModelError, match="found other files than those before it"):
            pool.submit(kills, "kill").result(30)


def test_errors_are_the_same_on_this_side(opening: Opening) -> None:
    with pool_of(opening, n=1) as pool:
        with pytest.raises(ContextOverflow, match="needs 10 tokens") as overflow:
            pool.submit(raises, "overflow").result(30)
        assert overflow.value.data == {"n_tokens": 10, "n_ctx": 5}
        with pytest.raises(KeyError, match="a bug") as bug:
            pool.submit(raises, "a bug").result(30)
        assert "stub_worker.py" in bug.value.__notes__[0]  # where it is from
        with pytest.raises(RuntimeError, match="Local: <function"):
            pool.submit(raises, "unpicklable").result(30)
    assert len(openings(opening)) == 1


def test_closing_ends_what_is_at_work_and_cancels_what_waits(opening: Opening) -> None:
    pool = pool_of(opening, n=1)
    futures = [pool.submit(slowly, (i, 60)) for i in range(3)]
    until(futures[0].running)
    began = time.monotonic()
    pool.close()
    pool.close()
    assert time.monotonic() - began < 5
    assert all(future.done() for future in futures) and futures[2].cancelled()
    with pytest.raises(ValueError, match="closed"):
        pool.submit(echo, 1)
    assert all(map(gone, map(int, openings(opening))))


@pytest.mark.parametrize("seed", range(3))
def test_processes_killed_at_random_lose_double_and_reorder_nothing(opening: Opening, seed: int) -> None:
    rng, stop = random.Random(seed), threading.Event()

    def kill_some() -> None:
        for _ in range(6):  # the oldest, and so few: no process is killed three times while it starts
            if stop.wait(rng.uniform(0.05, 0.2)):
                return
            if alive := [pid for pid in map(int, openings(opening)) if not gone(pid)]:
                with suppress(ProcessLookupError):
                    os.kill(alive[0], signal.SIGKILL)

    with pool_of(opening, n=3, start=3) as pool:
        pool.hello()
        futures = [pool.submit(slowly, (i, rng.uniform(0, 0.03))) for i in range(150)]
        killer = threading.Thread(target=kill_some)
        killer.start()
        results = [future.exception(60) or future.result() for future in futures]
        stop.set()
        killer.join()
    # A record may be met twice by chance: then it is an error in its place.
    assert all(found == i or isinstance(found, WorkerDied) for i, found in enumerate(results))
    assert sum(isinstance(found, WorkerDied) for found in results) <= 3


CHILD = """
import sys, time
from pathlib import Path
from stub_worker import Opening, hello, slowly
from edgeguard.pool import Pool
pool = Pool(Opening(Path(sys.argv[1])), hello=hello, n=2, start=2)
tasks = [pool.submit(slowly, (i, 60)) for i in range(2)]
while not all(task.running() for task in tasks) or len(Path(sys.argv[1]).read_text().splitlines()) < 2:
    time.sleep(0.01)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_outlives_the_one_that_started_it(tmp_path: Path, how: signal.Signals) -> None:
    log = tmp_path / "opened"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", CHILD, log], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == b"ready\n"
        parent.send_signal(how)
        assert parent.wait(10) == -how
    until(lambda: all(map(gone, map(int, log.read_text().splitlines()))), 10)


# ------------------------------------------------------------ reading ahead


@given(st.integers(1, 5), st.integers(0, 30), st.integers(1, 20), st.lists(st.integers(0, 9), max_size=40))
def test_no_more_is_read_than_there_is_room_for(most: int, taken: int, heaviest: int, weights: list[int]) -> None:
    read: list[int] = []

    def source() -> Iterator[int]:
        for weight in weights:
            read.append(weight)
            yield weight

    ahead = Ahead(source(), lambda weight: weight, most=most, weigh=lambda weight: weight, heaviest=heaviest)
    got = list(itertools.islice(ahead, taken))
    assert got == weights[:taken]
    time.sleep(0.001)
    waiting = read[len(got) : -1]  # but for the one in hand
    assert len(waiting) <= most and (len(waiting) <= 1 or sum(waiting) <= heaviest)
    ahead.close()


def test_what_was_read_is_not_kept_waiting_by_what_was_not() -> None:
    gate = threading.Event()

    def trickle() -> Iterator[int]:
        yield 1
        gate.wait(30)
        yield 2

    ahead = Ahead(trickle(), str, most=8)
    assert next(ahead) == "1" and ahead.number_within(0.01) is None
    gate.set()
    assert list(ahead) == ["2"]
    assert Ahead(range(3), str, most=8).number_within(5) == 3
    assert Ahead(itertools.count(), str, most=8).number_within(5) is None


def test_an_error_of_the_source_comes_behind_the_items_before_it() -> None:
    def torn() -> Iterator[int]:
        yield from (1, 2)
        raise ValueError("torn")

    ahead, got = Ahead(torn(), str, most=8), []
    with pytest.raises(ValueError, match="torn"):
        got.extend(iter(lambda: next(ahead), None))
    assert list(ahead) == []


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


# ------------------------------------------------------------ whole commands


MIXED = [
    '{"id": "a", "text": "How do I boil an egg?"}',
    '{"id": "torn',
    '{"id": "long", "text": "%s"}' % ("word " * 3000),  # more than the context holds: the workers refuse it
    *(f'{{"id": "{i}", "text": "record {i} {"word " * (i * 7 % 40)}"}}' for i in range(14)),
    '{"id": "a", "text": "again"}',
    '{"id": "ü", "prompt": "漢字", "response": "Ünïcödé"}',
]


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
    form = f"{DEFAULT}:{ADAPTER}"
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
    assert reports[0] == reports[1]


# ------------------------------------------------------------ signals and pipes


def lines(n: int) -> bytes:
    return b"".join(b'{"id": "%d", "text": "record %d %s"}\n' % (i, i, b"word " * (i % 50)) for i in range(n))


def children(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    return [int(one) for one, parent in map(str.split, listed.splitlines()) if int(parent) == pid]


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
        assert process.wait(20) == 1
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
        assert process.wait(20) == 1
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
        assert process.wait(20) == 0


def test_a_small_input_is_scored_in_this_process(run: Run, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeguard.workers.Workers", None)  # nobody may ask for it
    monkeypatch.setattr("edgeguard.workers.available_cores", lambda: 8)
    without_threads = tiny[:4]
    expected = run("score", "-", *tiny, input=lines(5)).stdout
    assert run("score", "-", *without_threads, input=lines(5)).stdout == expected
    assert run("score", "-", "-n", 5, *without_threads, input=lines(100)).stdout == expected
