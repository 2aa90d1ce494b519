"""A model's process that waits: it scores as a fresh one does, few wait at a time, and none outlives its study."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeguard import process
from edgeguard.backend import RuntimeOptions
from edgeguard.errors import ModelError
from edgeguard.evaluation.table import ScoreTable
from edgeguard.quant import scoring
from edgeguard.quant.choices import Choices
from edgeguard.quant.decision import decide, look_at, next_look
from edgeguard.quant.scoring import Running, Setting, score
from edgeguard.quant.variants import Variant, open_variant


@pytest.fixture
def setting(tmp_path: Path, tiny_profile: Path) -> Setting:
    file = tmp_path / "records.jsonl"
    file.write_text("".join(json.dumps({"id": i, "text": f"boil {i} eggs"}) + "\n" for i in range(30)))
    return Setting(records=file, profile=str(tiny_profile), runtime=RuntimeOptions(threads=1, kv_cache="f32"))


@pytest.fixture
def model(tiny_model: Path) -> Variant:
    return open_variant(tiny_model)


def processes(running: Running) -> list[int]:
    return [one._child.pid for one in running._waiting.values()]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_process_that_waits_goes_on_with_the_same_scores_as_a_fresh_one(model, setting, tmp_path):
    fresh = score(model, setting, tmp_path / "fresh")
    with Running() as running:
        first = score(model, setting, tmp_path / "kept", upto=10, running=running)
        (pid,) = processes(running)
        whole = score(model, setting, tmp_path / "kept", running=running)
        assert processes(running) == [pid]
    np.testing.assert_array_equal(whole.table.margin, fresh.table.margin)
    np.testing.assert_array_equal(first.table.margin, fresh.table.margin[first.table.places])
    assert whole.vocabulary == fresh.vocabulary
    assert not alive(pid)


def test_the_two_that_were_asked_last_wait_and_no_other(model, setting, tmp_path):
    settings = [replace(setting, search=replace(setting.search, max_nodes=n)) for n in (8, 16, 32)]
    with Running() as running:
        for one in settings:
            score(model, one, tmp_path, upto=0, running=running)
        assert len(processes(running)) == scoring.KEPT == 2
        running.end(next(iter(running._waiting)))
        assert len(processes(running)) == 1
        pids = processes(running)
    assert not any(map(alive, pids))


def test_none_waits_where_memory_is_short(model, setting, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "free_memory", lambda: scoring.ROOM - 1)
    with Running() as running:
        score(model, setting, tmp_path, upto=0, running=running)
        assert not processes(running)


def test_a_model_that_cannot_be_opened_is_told_and_does_not_wait(model, setting, tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF and nothing else")
    with Running() as running:
        with pytest.raises(ModelError, match="could not be scored"):
            score(replace(model, path=broken, sha256="other"), setting, tmp_path, running=running)
        assert not processes(running)


def test_a_process_of_jobs_ends_with_its_parent():
    jobs = process.Jobs("from edgeguard.process import serve_jobs; serve_jobs(lambda job: 0, lambda: None)")
    assert jobs.do({}) == (None, [])
    assert jobs._child.stdin is not None
    jobs._child.stdin.close()  # as where the parent is killed
    end = time.monotonic() + 20
    while jobs._child.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    assert jobs._child.poll() == 1
    jobs.close()


def table(margin: np.ndarray, truth: np.ndarray) -> ScoreTable:
    n = len(margin)
    scores = {"marginal": (1 / (1 + np.exp(-margin)))[:, None]}
    return ScoreTable(("unsafe",), range(n), np.arange(n), margin, scores, None, np.zeros(n), truth=truth[:, None])


def test_the_loss_is_bounded_where_it_may_decide_and_at_the_end():
    rng = np.random.default_rng(0)
    truth = rng.random(700) < 0.5
    margin = np.where(truth, 2.0, -2.0) + rng.normal(0, 1.5, 700)
    choices = Choices(max_flip_rate=0.02, max_auprc_loss=0.01)
    same, near = table(margin, truth), table(margin + rng.normal(0, 0.05, 700), truth)
    worse = table(margin + rng.normal(0, 1.5, 700), truth)

    def first(table_: ScoreTable, n: int) -> ScoreTable:
        from edgeguard.evaluation.table import take

        return take(table_, np.arange(n))

    def look(other: ScoreTable, n: int):
        return next_look(first(same, n), first(other, n), [], choices, planned=700, upto=n)

    assert look(near, 100).loss_high is None  # 100 records decide no rate of 2 %, and little is lost
    assert look(near, 300).loss_high is not None  # the rate is decided: now the loss is the question
    assert look(near, 325).loss_high is None  # it is bounded at every second look
    assert look(worse, 125).loss_high is not None  # so many changed that this look is the last: then it is said
    assert look(near, 700) == look_at(same, near, choices, planned=700, end=True)
    decision = decide([look(near, 100), look(near, 300)], 700, choices)
    assert decision.loss is not None
    assert decision.loss.high < 0.01
