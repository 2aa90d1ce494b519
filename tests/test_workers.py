"""Workers: the bits of one process for any number of them, in order, and nothing is lost with a process that dies."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Run, RunProcess
from test_cli import jsonl, one_line, rows_of

from edgeguard import Failure, Guard, ModelError, ProfileError, RuntimeOptions, Score, Search, Workers
from edgeguard.convert import convert
from edgeguard.rows.record import Record
from edgeguard.workers import about

Tiny = tuple[str, ...]
Command = Callable[..., list[str]]
SECONDS = 60
# Very different costs, and records that are errors: no text, too long, not understood.
TEXTS = [f"record {i}, {'word ' * (i * 37 % 150)}" for i in range(30)]
LINES = b"".join(
    line + b"\n"
    for line in (
        *jsonl(TEXTS[:10]).splitlines(),
        b'{"id": "empty", "text": ""}',
        b'{"id": "long", "text": "' + b"too long " * 3000 + b'"}',
        *jsonl(TEXTS).splitlines()[10:20],
        b"no JSON at all",
        b'{"id": "odd", "text": 7}',
        *jsonl(TEXTS).splitlines()[20:],
    )
)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def children(pid: int) -> list[int]:
    """The processes that a process has started and that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it has ended meanwhile
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(path.parent.name))
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# ------------------------------------------------------------ what a worker's guard is made by


class Touchy:
    """A guard that ends its process at some texts; the others it scores as the one that it stands on."""

    def __init__(self, guard: Guard, marks: Path) -> None:
        self.guard, self.marks = guard, marks

    def __getattr__(self, name: str) -> Any:
        return getattr(self.guard, name)

    def score(self, record: Record) -> Score:
        text = record.messages[-1].content
        if text.startswith("print"):
            os.write(1, b"what a runtime prints\n")
            print("and Python", flush=True)
        if text.startswith("wait"):
            time.sleep(float(text.split()[1]))
        if text.startswith("die"):
            with (self.marks / f"{record.id}").open("a") as file:
                file.write("x")
            if text.startswith("die always") or len((self.marks / f"{record.id}").read_text()) == 1:
                os.kill(os.getpid(), signal.SIGKILL)
        if text.startswith("broken"):
            raise ModelError("its weights are broken", kind="odd", number=7)
        return self.guard.score(record)


def touchy(*, marks: Path, **arguments: Any) -> Touchy:
    """Called in the worker."""
    return Touchy(Guard.load(**arguments), marks)


def dies_at_load(*, marks: Path, **arguments: Any) -> Guard:
    with (marks / "loads").open("a") as file:
        file.write("x")
    os.write(2, b"out of everything\n")
    os.kill(os.getpid(), signal.SIGABRT)
    raise AssertionError


def loads_once(*, marks: Path, **arguments: Any) -> Touchy:
    with (marks / "loads").open("a") as file:
        file.write("x")
    if len((marks / "loads").read_text()) > 1:
        raise ModelError("the model file is gone")
    return touchy(marks=marks, **arguments)


@pytest.fixture(scope="module")
def make(tiny_model: Path, tiny_profile: Path) -> Callable[..., Workers]:
    def make(n: int, **arguments: Any) -> Workers:
        return Workers(n, tiny_model, profile=tiny_profile, **arguments)

    return make


@pytest.fixture(scope="module")
def marks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("marks")


@pytest.fixture(scope="module")
def pool(make: Callable[..., Workers], marks: Path) -> Iterator[Workers]:
    """Two touchy workers, for tests that leave them as they were."""
    with make(2, load=touchy, marks=marks) as workers:
        yield workers


# ------------------------------------------------------------ the same bits, in order


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_any_number_of_workers_writes_the_bytes_of_one_process(run: Run, tiny: Tiny, tmp_path: Path, form: str) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(LINES)
    alone = run("score", source, "-f", form, *tiny)
    assert alone.exit_code == 1 and alone.stdout.count("long") == 1
    for n in (1, 2, 3):
        result = run("score", source, "-f", form, "--workers", n, *tiny)
        assert result.stdout_bytes == alone.stdout_bytes
        assert result.exit_code == 1
        assert result.stderr.split(", ")[:3] == alone.stderr.split(", ")[:3]


def test_stdin_limit_and_table_are_as_with_one_process(run: Run, run_process: RunProcess, tiny: Tiny) -> None:
    for options in (("-n", 7), ("-n", 0), ("--table", "-n", 3)):
        alone = run_process("score", "-", *options, *tiny, input=LINES)
        side_by_side = run_process("score", "-", *options, "--workers", 2, *tiny, input=LINES)
        assert (side_by_side.stdout, side_by_side.returncode) == (alone.stdout, alone.returncode)


def test_one_thread_each_is_the_default(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(jsonl(TEXTS[:3]))
    expected = run("score", source, *tiny).stdout
    assert tiny[-2:] == ("--threads", "1")
    assert run("score", source, "--workers", 1, *tiny[:-2]).stdout == expected
    assert run("score", source, "--workers", 2, *tiny[:-2]).stdout == expected


def test_models_of_onnx_runtime_give_the_same_bits_too(tiny_model: Path, tiny_profile: Path, tmp_path: Path) -> None:
    model = convert(tiny_model, tmp_path / "onnx", to="onnx-fp32").path
    arguments: dict[str, Any] = {"profile": tiny_profile, "runtime": RuntimeOptions(threads=1)}
    with Guard.load(model, **arguments) as guard, Workers(2, model, **arguments) as workers:
        assert list(workers.score_many(TEXTS[:8])) == list(guard.score_many(TEXTS[:8]))


def test_results_come_in_order_whatever_each_costs(pool: Workers, tiny_guard: Guard) -> None:
    texts = ["wait 0.4", "a", "b", "wait 0.2", "", "c", "d"]
    records = [{"id": i, "text": text} for i, text in enumerate(texts)]
    assert list(pool.score_many(records)) == list(tiny_guard.score_many(records))


def test_a_pool_scores_several_streams_at_once(pool: Workers, tiny_guard: Guard) -> None:
    streams = [TEXTS[:6], TEXTS[6:12], TEXTS[12:18]]
    results: list[list[Any]] = [[] for _ in streams]
    threads = [threading.Thread(target=lambda i=i: results[i].extend(pool.score_many(streams[i]))) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert results == [list(tiny_guard.score_many(texts)) for texts in streams]


def test_a_pool_says_what_its_guards_are(pool: Workers, tiny_guard: Guard) -> None:
    assert pool.about == about(tiny_guard)


def test_what_a_worker_prints_does_not_mix_with_answers(pool: Workers, tiny_guard: Guard) -> None:
    assert list(pool.score_many(["print this", "and that"])) == list(tiny_guard.score_many(["print this", "and that"]))


def test_a_record_of_megabytes_goes_through_the_pipes(pool: Workers) -> None:
    (result,) = pool.score_many([{"id": "big", "text": "word " * 1_000_000}])
    assert isinstance(result, Failure) and (result.id, result.kind) == ("big", "context_overflow")


# ------------------------------------------------------------ bounded, and not kept waiting


def test_records_are_not_read_ahead_without_bound(pool: Workers) -> None:
    read = 0

    def endless() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield f"text {read}"

    results = pool.score_many(endless())
    for _ in range(5):
        next(results)
    time.sleep(0.3)
    assert read <= 5 + 2 * 16 + 1
    results.close()  # type: ignore[attr-defined]
    assert len(list(pool.score_many(["what comes after"]))) == 1


def test_a_row_comes_before_the_next_record_does(tiny: Tiny, edgeguard_command: Command) -> None:
    process = subprocess.Popen(
        edgeguard_command("score", "-", "--workers", 2, *tiny), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None and process.stdout is not None
    with process.stdin as stdin, process.stdout as stdout:
        for i, line in enumerate(jsonl(TEXTS[:3]).splitlines()):
            stdin.write(line + b"\n")
            stdin.flush()
            assert json.loads(stdout.readline())["id"] == str(i)
    assert process.wait(SECONDS) == 0


def test_an_error_of_the_source_is_raised_after_the_rows_before_it(pool: Workers) -> None:
    def broken() -> Iterator[str]:
        yield "one"
        yield "two"
        raise OSError("the source broke off")

    results = pool.score_many(broken())
    assert isinstance(next(results), Score) and isinstance(next(results), Score)
    with pytest.raises(OSError, match="broke off"):
        next(results)


# ------------------------------------------------------------ workers that die


def test_a_worker_that_is_killed_loses_nothing(
    run: Run, tiny: Tiny, edgeguard_command: Command, tmp_path: Path
) -> None:
    source, out, whole = tmp_path / "in.jsonl", tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    source.write_bytes(jsonl(TEXTS * 2).replace(b'"id"', b'"number"'))
    run("score", source, "-o", whole, *tiny)
    process = subprocess.Popen(
        edgeguard_command("score", source, "-o", out, "--workers", 2, *tiny), stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    for rows in (5, 25):
        wait_for(lambda n=rows: out.exists() and out.read_bytes().count(b"\n") >= n)
        os.kill(children(process.pid)[-1], signal.SIGKILL)
    said = process.stderr.read().decode()
    process.stderr.close()
    assert (process.wait(SECONDS), said.count("\n")) == (0, 1)
    assert out.read_bytes() == whole.read_bytes()


def test_a_record_is_tried_once_more_and_then_is_an_error_row(pool: Workers, marks: Path, tiny_guard: Guard) -> None:
    records = [
        {"id": "first", "text": "a"},
        {"id": "once", "text": "die once"},
        {"id": "always", "text": "die always"},
        {"id": "last", "text": "b"},
    ]
    first, once, always, last = (result for _, result in pool.judged(records, where="in.jsonl"))
    assert [first, once, last] == [tiny_guard.score(records[i]) for i in (0, 1, 3)]
    assert isinstance(always, Failure) and (always.id, always.kind) == ("always", "worker_died")
    assert "in.jsonl: the process that scored it was ended by SIGKILL, 2 times" in always.message
    assert [(marks / name).read_text() for name in ("once", "always")] == ["xx", "xx"]
    assert always.row()["error"]["type"] == "worker_died"


def test_what_ends_the_run_in_one_process_ends_it_in_its_place(pool: Workers) -> None:
    results = pool.score_many(["one", "broken", "two"])
    assert isinstance(next(results), Score)
    with pytest.raises(ModelError, match="its weights are broken") as error:
        next(results)
    assert (error.value.kind, error.value.data) == ("odd", {"number": 7})


def test_a_process_that_ends_while_loading_is_one_error_and_not_a_loop(
    make: Callable[..., Workers], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="was ended by SIGABRT before its model was loaded: out of everything"):
        make(2, load=dies_at_load, marks=tmp_path)
    assert len((tmp_path / "loads").read_text()) <= 2


def test_a_worker_that_cannot_be_started_again_ends_the_run_in_its_records_place(
    make: Callable[..., Workers], tmp_path: Path
) -> None:
    with make(1, load=loads_once, marks=tmp_path) as workers:
        results = workers.score_many(["one", {"id": "d", "text": "die always"}, *["more"] * 50])
        assert isinstance(next(results), Score)
        with pytest.raises(ModelError, match="the model file is gone"):
            next(results)
    assert len((tmp_path / "loads").read_text()) == 2


def test_errors_of_loading_are_those_of_one_process(
    run: Run, tiny: Tiny, make: Callable[..., Workers], tmp_path: Path
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(jsonl(TEXTS[:2]))
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF of a kind")
    for options in (("-m", bad), (*tiny, "--threshold", "S77=0.5"), (*tiny, "--context", "100000")):
        alone, side_by_side = (run("score", source, *more, *options) for more in ((), ("--workers", 2)))
        assert one_line(side_by_side.stderr) == one_line(alone.stderr)
        assert (side_by_side.exit_code, side_by_side.stdout) == (1, "")
    with pytest.raises(TypeError, match="thresolds"):
        make(1, thresolds={})
    with pytest.raises(ProfileError, match="S77"):
        make(1, thresholds={"S77": 0.5})
    with pytest.raises(ValueError, match="0 workers were asked for; expected at least 1"):
        make(0)


def test_a_closed_pool_says_so(make: Callable[..., Workers]) -> None:
    workers = make(1, runtime=RuntimeOptions(context=512), search=Search(max_nodes=8), calibration=False)
    results = workers.score_many(["one", "two"])
    next(results)
    workers.close()
    workers.close()
    for attempt in (lambda: list(workers.score_many(["three"])), lambda: [next(workers.score_many(iter(["four"])))]):
        with pytest.raises(ValueError, match="the workers are closed"):
            attempt()


# ------------------------------------------------------------ the command that ends, and what goes with it


def begun(command: list[str], out: Path, rows: int) -> subprocess.Popen[bytes]:
    """The command in a process group of its own, its input half given and kept open, with some rows written."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0)
    assert process.stdin is not None
    process.stdin.write(jsonl(TEXTS[:rows]))
    process.stdin.flush()
    wait_for(lambda: process.poll() is not None or (out.exists() and out.read_bytes().count(b"\n") >= rows))
    return process


def end_of(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    """Exit status, and what it said."""
    assert process.stdin is not None and process.stderr is not None
    status = process.wait(SECONDS)
    process.stdin.close()
    with process.stderr as stderr:
        return status, stderr.read().decode()


def test_after_kill_9_of_the_parent_no_worker_stays_and_the_run_is_resumed(
    run: Run, tiny: Tiny, edgeguard_command: Command, tmp_path: Path
) -> None:
    out, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    run("score", "-", "-o", whole, *tiny, input=jsonl(TEXTS))
    process = begun(edgeguard_command("score", "-", "-o", out, "--workers", 2, *tiny), out, 12)
    workers = children(process.pid)
    assert len(workers) == 2
    process.kill()
    assert end_of(process)[0] == -signal.SIGKILL
    wait_for(lambda: not any(map(is_alive, workers)))
    with out.open("r+b") as file:
        file.truncate(out.stat().st_size - 30)  # a torn last row
    resumed = run("score", "-", "-o", out, "--resume", "--workers", 3, *tiny, input=jsonl(TEXTS))
    assert resumed.exit_code == 0 and " (and 11 resumed)" in resumed.stderr
    assert out.read_bytes() == whole.read_bytes()


def test_a_worker_ends_with_its_parent_in_the_middle_of_a_record(
    tiny_model: Path, tiny_profile: Path, tmp_path: Path
) -> None:
    code = (
        "import sys; from pathlib import Path; from test_workers import Workers, touchy; "
        f"w = Workers(1, {str(tiny_model)!r}, profile={str(tiny_profile)!r}, load=touchy, marks=Path()); "
        "print('loaded', flush=True); list(w.score_many(['wait 100']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"loaded\n"
    (worker,) = children(process.pid)
    time.sleep(0.2)
    process.kill()
    process.wait()
    process.stdout.close()
    wait_for(lambda: not is_alive(worker))


def test_ctrl_c_ends_all_and_says_how_to_go_on(tiny: Tiny, edgeguard_command: Command, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    process = begun(edgeguard_command("score", "-", "-o", out, "--workers", 2, *tiny), out, 8)
    workers = children(process.pid)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers hear it too
    status, said = end_of(process)
    assert status == 130
    assert "interrupted after 8 records; run again with --resume to go on from row 8" in one_line(said)
    assert out.read_bytes().count(b"\n") == 8
    assert not any(map(is_alive, workers))


def test_a_reader_that_goes_ends_the_workers_too(tiny: Tiny, edgeguard_command: Command, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(jsonl(["a short text"] * 300))
    score = shlex.join(edgeguard_command("score", source, "--workers", 2, *tiny))
    script = f"{score} 2>{tmp_path}/err | head -n 3; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", script], capture_output=True, timeout=120, check=False)
    assert result.returncode == 1 and [row["id"] for row in rows_of(result.stdout.decode())] == ["0", "1", "2"]
    assert "the output was closed after " in one_line((tmp_path / "err").read_text())
