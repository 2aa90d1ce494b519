"""A pool of processes: what dies is replaced, nothing is lost or doubled, and nothing is left behind."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from processes import SECONDS, gone, until
from stub_worker import DiesUnread, OnlyThere, Opening, echo, hello, kills, logs, process_id, raises, slowly

from edgeguard import ContextOverflow, ModelError, WorkerDied
from edgeguard import pool as pool_module
from edgeguard.ahead import Ahead
from edgeguard.pool import Pool


@pytest.fixture
def opening(tmp_path: Path) -> Opening:
    return Opening(tmp_path / "opened")


def pool_of(opening: Opening, n: int = 2, start: int = 1) -> Pool:
    return Pool(opening, hello=hello, n=n, start=start, what="a worker process")


def openings(opening: Opening) -> list[str]:
    return opening.log.read_text().splitlines() if opening.log.exists() else []


def test_what_is_sent_comes_back_as_it_was_and_prints_do_not_mix_with_it(tmp_path: Path) -> None:
    items = ["x" * 3_000_000, "Ünïcödé 漢字 \0", "\udc80 alone", b"\xff" * 10, None, {"deep": [1, (2.5, "a")]}]
    with pool_of(Opening(tmp_path / "opened", "prints")) as pool:
        assert [f.result(SECONDS) for f in [pool.submit(echo, item) for item in items]] == items


def test_processes_are_started_as_tasks_wait_and_no_more_than_asked(opening: Opening) -> None:
    with pool_of(opening, n=3) as pool:
        assert pool.hello() == "opened"
        for _ in range(5):
            pool.submit(echo, 1).result(SECONDS)
        assert len(openings(opening)) == 1
        assert [f.result(SECONDS) for f in [pool.submit(slowly, (i, 0.2)) for i in range(8)]] == list(range(8))
        assert len(openings(opening)) == 3
        (pids := {*map(int, openings(opening))}).remove(pool.submit(process_id, None).result(SECONDS))
    assert len(pids) == 2 and all(map(gone, map(int, openings(opening))))


def test_a_task_that_kills_its_process_twice_is_an_error_of_its_own(opening: Opening, tmp_path: Path) -> None:
    items = ["a", "kill", "b", f"kill once {tmp_path / 'once'}", "c"]
    with pool_of(opening, n=1) as pool:
        futures = [pool.submit(kills, item) for item in items]
        with pytest.raises(WorkerDied, match=r"ended by SIGSEGV while .*twice; it said last: GGML_ASSERT\(false\)"):
            futures.pop(1).result(SECONDS)
        assert [future.result(SECONDS) for future in futures] == [items[0], *items[2:]]
    assert len(openings(opening)) == 4  # one, two for the killer, one for what died once


@pytest.mark.parametrize("stopped", [False, True])
def test_a_process_that_dies_before_it_begins_takes_no_attempt_of_the_task(
    opening: Opening, tmp_path: Path, stopped: bool
) -> None:
    """Neither idle, nor with the task in its pipe: then it may still die once with it."""
    with pool_of(opening, n=1) as pool:
        idle = pool.submit(process_id, None).result(SECONDS)
        os.kill(idle, signal.SIGSTOP if stopped else signal.SIGKILL)
        until(lambda: stopped or gone(idle))
        future = pool.submit(kills, f"kill once {tmp_path / 'once'}")
        until(future.running)
        if stopped:
            time.sleep(0.05)
            os.kill(idle, signal.SIGKILL)
        assert future.result(SECONDS) == f"kill once {tmp_path / 'once'}"
    assert len(openings(opening)) == 3


def test_a_task_that_nobody_can_begin_with_is_an_error_and_no_loop(opening: Opening) -> None:
    with pool_of(opening, n=1) as pool:
        with pytest.raises(WorkerDied, match=r"ended by SIGSEGV before it had begun with this record, 3 times"):
            pool.submit(echo, DiesUnread()).result(SECONDS)
        assert pool.submit(echo, 1).result(SECONDS) == 1


def test_after_a_rest_a_process_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server goes on where memory was short for a moment; meanwhile no processes are started in vain."""
    opening = Opening(tmp_path / "opened", "says no before", tmp_path / "ready")
    with pool_of(opening, n=1) as pool:
        for _ in range(3):
            with pytest.raises(ModelError, match="is no model"):
                pool.submit(echo, 1).result(SECONDS)
        assert len(openings(opening)) == 1
        (tmp_path / "ready").touch()
        monkeypatch.setattr("edgeguard.pool._REST", 0.0)
        assert [pool.submit(echo, i).result(SECONDS) for i in range(2)] == [0, 1]
        assert pool.hello() == "opened" and len(openings(opening)) == 2


def test_what_processes_log_is_told_once_and_is_not_their_last_word(tmp_path: Path) -> None:
    told: list[str] = []
    opening = Opening(tmp_path / "opened", "logs")
    with Pool(opening, hello=hello, n=3, start=3, what="a worker process", tell=told.append) as pool:
        until(lambda: len(openings(opening)) == 3)
        for future in [pool.submit(logs, f"line {i % 2}") for i in range(12)]:
            future.result(SECONDS)
        with pytest.raises(WorkerDied, match="it said last: GGML_ASSERT"):
            pool.submit(kills, "kill").result(SECONDS)
    assert sorted(told) == ["line 0", "line 1", "opening"]


def test_many_threads_may_submit_tasks(opening: Opening) -> None:
    found: dict[int, list[int]] = {}
    with pool_of(opening, n=2) as pool:

        def ask(i: int) -> None:
            found[i] = [pool.submit(slowly, (i * 100 + k, 0.001)).result(SECONDS) for k in range(20)]

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS)
    assert found == {i: [i * 100 + k for k in range(20)] for i in range(8)}


def test_a_process_that_cannot_open_is_one_error_and_no_loop(tmp_path: Path) -> None:
    opening = Opening(tmp_path / "no", "says no")
    with pool_of(opening) as pool:
        with pytest.raises(ModelError, match=r"^no\.gguf is no model$") as error:
            pool.hello()
        assert (error.value.kind, error.value.data) == ("no_room_for_context", {"path": Path("no.gguf")})
        for _ in range(3):
            with pytest.raises(ModelError, match=r"no\.gguf is no model"):
                pool.submit(echo, 1).result(SECONDS)
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
            pool.submit(kills, "kill").result(SECONDS)


def test_errors_are_the_same_on_this_side(opening: Opening) -> None:
    with pool_of(opening, n=1) as pool:
        with pytest.raises(ContextOverflow, match="needs 10 tokens") as overflow:
            pool.submit(raises, "overflow").result(SECONDS)
        assert overflow.value.data == {"n_tokens": 10, "n_ctx": 5}
        with pytest.raises(KeyError, match="a bug") as bug:
            pool.submit(raises, "a bug").result(SECONDS)
        assert "stub_worker.py" in bug.value.__notes__[0]  # where it is from
        with pytest.raises(RuntimeError, match="Local: <function"):
            pool.submit(raises, "unpicklable").result(SECONDS)
        with pytest.raises(TypeError, match="it lives in the other process"):
            pool.submit(echo, OnlyThere()).result(SECONDS)
    assert len(openings(opening)) == 1


def test_closing_ends_what_is_at_work_and_cancels_what_waits(opening: Opening) -> None:
    pool = pool_of(opening, n=1)
    futures = [pool.submit(slowly, (i, 60)) for i in range(3)]
    until(futures[0].running)
    began = time.monotonic()
    pool.close()
    pool.close()
    assert time.monotonic() - began < 30  # and not the minute that they take
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
        results = [future.exception(SECONDS) or future.result() for future in futures]
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
        assert parent.wait(SECONDS) == -how
    until(lambda: all(map(gone, map(int, log.read_text().splitlines()))))


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
        gate.wait(SECONDS)
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


def test_a_process_begun_ahead_is_the_first_one_of_the_next_pool(opening: Opening) -> None:
    pool_module.begin("stub_worker")
    pool_module.begin("stub_worker")  # one is enough
    ((begun, _),) = pool_module._begun
    with pool_of(opening, n=1) as pool:
        assert pool.submit(process_id, None).result(SECONDS) == begun._process.pid
    assert not pool_module._begun


@pytest.mark.parametrize("what", ["folder", "environment", "path"])
def test_a_process_begun_ahead_is_not_used_where_it_has_another_folder_or_environment(
    opening: Opening, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool_module.begin("stub_worker")
    ((begun, _),) = pool_module._begun
    if what == "folder":
        monkeypatch.chdir(tmp_path)
    elif what == "environment":
        monkeypatch.setenv("EDGEGUARD_TEST", "1")
    else:
        monkeypatch.syspath_prepend(tmp_path)
    with pool_of(opening, n=1) as pool:
        assert pool.submit(process_id, None).result(SECONDS) != begun._process.pid
    assert gone(begun._process.pid)


@pytest.mark.parametrize("module", ["no_such_module", "stub_worker"])
def test_what_a_process_begun_ahead_cannot_import_is_said_by_what_needs_it(opening: Opening, module: str) -> None:
    pool_module.begin(module)
    with pool_of(opening) as pool:
        assert pool.submit(echo, 7).result(SECONDS) == 7


def test_a_process_begun_ahead_ends_with_the_one_that_never_used_it(tmp_path: Path) -> None:
    code = "from edgeguard import pool; pool.begin('json'); print(pool._begun[0][0]._process.pid)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    until(lambda: gone(int(done.stdout)))
