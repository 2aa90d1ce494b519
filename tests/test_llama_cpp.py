"""The llama.cpp adapter alone: a context that grows has the bits of a large one, threads that wait starve nobody."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_gguf import write_tiny_llama

from edgeguard.backend import Prefix, RuntimeOptions
from edgeguard.backends.llama_cpp import model as llama

SMALL, LIMIT = 256, 2048  # llama.cpp's own context comes in steps of 256 tokens
law = settings(deadline=None, max_examples=15)


@pytest.fixture(scope="module", params=["F32", "Q8_0", "gemma2"])
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Gemma's window of 16 tokens has passed most of what is kept: its context is not one that can grow.
    gemma = {"arch": "gemma2", "tied": True, "n_layer": 7, "head": 16}
    more = gemma if request.param == "gemma2" else {"ftype": request.param}
    return write_tiny_llama(tmp_path_factory.mktemp("room") / "tiny.gguf", n_ctx=LIMIT, **more)


def opened(file: Path, first_room: int, **options: int) -> llama.LlamaCpp:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llama, "FIRST_ROOM", first_room)
        return llama.LlamaCpp(file, RuntimeOptions(threads=1, **options))


def tokens(seed: int, n: int) -> tuple[int, ...]:
    return tuple(int(t) for t in np.random.default_rng(seed).integers(5, 200, n))


def rows(model: llama.LlamaCpp, records: Sequence[tuple[int, int, int]]) -> list[np.ndarray]:
    """Each record on one of two roots: its text, then branches, then branches of one of these."""
    roots = [Prefix(tokens(1, 60)), Prefix(tokens(2, 150))]
    found = []
    for i, (which, n_text, n_branches) in enumerate(records):
        text = Prefix(tokens(10 + i, n_text), roots[which])
        children = [Prefix(tokens(100 + j, 2), text) for j in range(n_branches)]
        found.append(model.logits([text]))
        found.append(model.logits(children))
        found.append(model.logits([Prefix(tokens(200 + j, 3), children[0]) for j in range(n_branches)]))
    return found


lengths = st.sampled_from([1, 20, 180, 240, 300, 700, 1500])
records = st.lists(st.tuples(st.integers(0, 1), lengths, st.integers(1, 20)), min_size=1, max_size=4)


@law
@given(tasks=records)
def test_whatever_came_before_a_record_has_the_bits_of_a_large_context(file: Path, tasks: list[tuple[int, int, int]]):
    small, large = opened(file, SMALL), opened(file, LIMIT)
    for ours, theirs in zip(rows(small, tasks), rows(large, tasks), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert small.n_ctx == large.n_ctx == LIMIT
    small.close()
    large.close()


def test_room_is_taken_when_a_record_needs_it_and_no_more_than_the_context(file: Path):
    model = opened(file, SMALL, context=700)
    if model._window:
        assert model._room == model.n_ctx == 700
        return
    assert model._room == SMALL
    rows(model, [(0, 20, 2)])
    assert model._room == SMALL
    rows(model, [(0, 200, 2)])
    assert model._room == 2 * SMALL
    rows(model, [(0, 600, 2)])
    assert model._room == model.n_ctx == 700
    model.close()


def test_a_model_that_turns_positions_by_the_length_of_its_context_has_all_of_it_at_once(tmp_path, monkeypatch):
    file = write_tiny_llama(tmp_path / "long.gguf", n_ctx=LIMIT)
    header = llama.gguf.read_header(file)
    factors = [llama.gguf.TensorInfo("rope_factors_long.weight", (4,), "F32", 0, 16)]
    longrope = llama.gguf.Header(
        header.path, header.version, header.metadata, (*header.tensors, *factors), header.n_bytes, header.data_offset
    )
    monkeypatch.setattr(llama.gguf, "read_header", lambda path: longrope)
    model = opened(file, SMALL)
    assert model._room == LIMIT
    model.close()


@pytest.mark.parametrize(("said", "heard"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7")])
def test_threads_wait_at_barriers_as_we_say_unless_the_user_has_said(said: dict[str, str], heard: str):
    code = "import os, edgeguard.backends.llama_cpp.model; print(os.environ.get('GOMP_SPINCOUNT'))"
    clean = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, **said, "OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        check=True,
    )
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("this llama.cpp does not wait by libgomp")
    assert f"GOMP_SPINCOUNT = '{heard}'" in done.stderr
    assert done.stdout.strip() == said.get("GOMP_SPINCOUNT", "None")  # what this process starts is not told
