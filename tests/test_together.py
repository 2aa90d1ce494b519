"""Records that go through the model together: nearly the scores of each alone, and every law but that one's bits."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from test_questions import QUESTION_FIRST, TEXT_FIRST, asking
from tiny_gguf import write_tiny_llama

from edgeguard import Guard, RuntimeOptions, Search, Workers, score_many
from edgeguard.backends import open_backend
from edgeguard.cli import main
from edgeguard.convert import convert
from edgeguard.errors import ModelError
from edgeguard.evaluation.table import score_records
from edgeguard.rows.record import Failure, Record
from edgeguard.together import batches

llama_cpp = pytest.importorskip("llama_cpp")
NEAR = 1e-3  # nats: the adapter's tolerance for F32 weights with F32 keys and values
TEXTS = [f"Tell me {'more ' * (i % 7)}about number {i}." for i in range(11)]


MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma2": {"arch": "gemma2", "tied": True},  # with a sliding window
    "onnx": {},
    "onnx gemma2": {"arch": "gemma2", "tied": True},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written("llama", tmp_path_factory.mktemp("together"))


def written(kind: str, folder: Path) -> Path:
    path = write_tiny_llama(folder / "tiny.gguf", n_ctx=512, logit_std=1.0, **MODELS[kind])
    return convert(path, folder / "onnx", to="onnx-fp32").path if kind.startswith("onnx") else path


def options_for(model: Path, **more: Any) -> RuntimeOptions:
    return RuntimeOptions(threads=1, kv_cache="f32" if model.suffix == ".gguf" else None, **more)


def opened(model: Path, profile: Any, *, together: int | None = None, **options: Any) -> Guard:
    return Guard.load(model, profile=profile, runtime=options_for(model, together=together), **options)


def rows_of(guard: Guard, records: Sequence[Any]) -> list[dict[str, Any]]:
    return [result.row() for result in guard.score_many(records)]


def assert_near(rows: Sequence[dict[str, Any]], alone: Sequence[dict[str, Any]]) -> None:
    assert [row["id"] for row in rows] == [row["id"] for row in alone]
    for row, other in zip(rows, alone, strict=True):
        assert row.keys() == other.keys()
        if "error" in row:
            assert row == other
            continue
        assert abs(row["margin"] - other["margin"]) < NEAR
        for code, p in row["category_scores"].items():
            assert abs(p - other["category_scores"][code]) < NEAR + other["unexplored"] + row["unexplored"]


@pytest.fixture(scope="module", params=MODELS)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_profile: Path
) -> Iterator[tuple[Guard, Guard]]:
    path = written(request.param, tmp_path_factory.mktemp("pair"))
    with opened(path, tiny_profile) as alone, opened(path, tiny_profile, together=4) as together:
        yield alone, together


def test_scores_are_near_those_of_each_alone_and_in_the_order_of_the_records(pair: tuple[Guard, Guard]) -> None:
    alone, together = pair
    records = [{"id": i, "text": text} for i, text in enumerate(TEXTS)]
    assert_near(rows_of(together, records), rows_of(alone, records))


def test_the_same_records_in_the_same_order_have_the_same_bits_whatever_came_before(
    pair: tuple[Guard, Guard], tiny_profile: Path
) -> None:
    _, together = pair
    expected = rows_of(together, TEXTS)
    rows_of(together, ["Something else. " * 20, {"prompt": "Well?", "response": "No."}, "And this."])
    assert rows_of(together, TEXTS) == expected
    with opened(together.backend.info.path, tiny_profile, together=4) as fresh:
        assert rows_of(fresh, TEXTS) == expected


def test_turns_of_users_and_of_assistants_go_together(pair: tuple[Guard, Guard]) -> None:
    alone, together = pair
    records = [text if i % 3 else {"prompt": "How?", "response": text} for i, text in enumerate(TEXTS)]
    expected = rows_of(together, records)
    assert_near(expected, rows_of(alone, records))
    assert rows_of(together, records) == expected


def test_a_records_error_stays_its_own(pair: tuple[Guard, Guard]) -> None:
    alone, together = pair
    records = [TEXTS[0], "Too long. " * 400, {"id": 7}, TEXTS[1], 5, Failure("x", "invalid_json", "no"), TEXTS[2]]
    rows = rows_of(together, records)
    assert_near(rows, rows_of(alone, records))
    assert ["error" in row for row in rows] == [False, True, True, False, True, True, False]


def test_more_than_the_room_holds_are_fewer_at_once(model: Path, tiny_profile: Path) -> None:
    records = ["Long and longer. " * 12, *TEXTS[:3], "Longer and long. " * 12, *TEXTS[3:6]]
    with opened(model, tiny_profile) as alone, opened(model, tiny_profile, together=2) as together:
        assert_near(rows_of(together, records), rows_of(alone, records))


def test_answers_for_which_there_are_too_few_sequences_are_read_one_after_the_other(
    model: Path, tiny_profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeguard.backends.llama_cpp import model as adapter
    from edgeguard.backends.llama_cpp.together import LlamaCppTogether

    with opened(model, tiny_profile) as alone, opened(model, tiny_profile, together=4) as together:
        monkeypatch.setattr(LlamaCppTogether, "_n_seq", 7)
        expected = rows_of(together, TEXTS)
        assert_near(expected, rows_of(alone, TEXTS))
        assert rows_of(together, TEXTS) == expected
        assert adapter.sequences_for(128) == 256


def test_batches_as_long_as_on_a_gpu_are_near_too(
    model: Path, tiny_profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeguard.backends.llama_cpp.together import N_BATCH_GPU, LlamaCppTogether

    monkeypatch.setattr(LlamaCppTogether, "_longest_batch", N_BATCH_GPU)
    texts = [text * 5 for text in TEXTS * 3]
    with opened(model, tiny_profile) as alone, opened(model, tiny_profile, together=33) as together:
        assert_near(rows_of(together, texts), rows_of(alone, texts))
        assert together.backend._room > N_BATCH_GPU  # type: ignore[attr-defined]


def test_windows_of_long_texts_go_together(model: Path, tiny_profile: Path) -> None:
    records = ["First, do this. Then do that! " * 8, "Short.", "One. Two. Three. Four. " * 9]
    with (
        opened(model, tiny_profile, window=64) as alone,
        opened(model, tiny_profile, together=3, window=64) as together,
    ):
        expected = rows_of(alone, records)
        assert any(row["window"] for row in expected)
        assert_near(rows_of(together, records), expected)


def test_tables_of_an_evaluation_are_near(pair: tuple[Guard, Guard]) -> None:
    alone, together = pair
    evidence = alone.lists_codes
    tables = [score_records(guard, list(map(_record, TEXTS)), evidence=evidence) for guard in (alone, together)]
    for name, scores in tables[0].scores.items():
        np.testing.assert_allclose(tables[1].scores[name], scores, atol=0.02)
    np.testing.assert_allclose(tables[1].margin, tables[0].margin, atol=NEAR)
    if evidence:
        assert tables[0].evidence is not None and tables[1].evidence is not None
        np.testing.assert_allclose(tables[1].evidence, tables[0].evidence, atol=NEAR)


def _record(text: str) -> Any:
    from edgeguard.rows.shapes import make_record

    return make_record(text)


def test_workers_give_the_bits_of_one_process(model: Path, tiny_profile: Path) -> None:
    with opened(model, tiny_profile, together=4) as guard:
        expected = rows_of(guard, TEXTS)
    with Workers(model, workers=2, profile=tiny_profile, runtime=options_for(model, together=4)) as workers:
        assert [result.row() for result in workers.score_many(TEXTS)] == expected
    many = score_many(TEXTS, model, workers=1, together=4, profile=tiny_profile, runtime=options_for(model))
    assert [result.row() for result in many] == expected


def die_of(guard: Guard, records: Sequence[Record]) -> list[Any]:
    if any(record.messages[-1].content == "deadly" for record in records):
        os._exit(1)
    return guard.score_together(records)


def test_a_record_that_ends_the_process_takes_none_of_its_block_along(model: Path, tiny_profile: Path) -> None:
    texts = [*TEXTS[:2], "deadly", *TEXTS[2:5]]
    with Workers(model, workers=1, profile=tiny_profile, runtime=options_for(model, together=3)) as workers:
        rows = [result.row() for _, result in workers.judged(texts, Guard.score, many=die_of)]
    assert [row.get("error", {}).get("type") for row in rows] == [None, None, "worker_died", None, None, None]


@pytest.mark.parametrize("kind", ["llama", "onnx"])
@pytest.mark.parametrize("prompt", [TEXT_FIRST, QUESTION_FIRST], ids=["text first", "question first"])
def test_guards_of_several_questions_ask_each_of_all_records_at_once(kind: str, prompt: str, tmp_path: Path) -> None:
    profile, path = asking(prompt=prompt), written(kind, tmp_path)
    search = Search(max_nodes=8)
    with (
        opened(path, profile, search=search) as alone,
        opened(path, profile, together=3, search=search) as together,
    ):
        expected = rows_of(together, TEXTS)
        assert_near(expected, rows_of(alone, TEXTS))
        rows_of(together, TEXTS[5:7])
        assert rows_of(together, TEXTS) == expected


@settings(max_examples=50)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=20))
def test_rows_hold_every_record_once_and_are_no_longer_than_the_longest(lengths: list[int]) -> None:
    pack = pytest.importorskip("edgeguard.backends.onnx_runtime.together").pack
    rows = pack(lengths)
    assert sorted(place for row in rows for place in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= max(lengths) for row in rows)


def test_a_graph_that_cannot_keep_records_of_a_row_apart_is_refused(genai: Path, tiny_profile: Path) -> None:
    with pytest.raises(ModelError, match="takes a mask of rows, and records go together in graphs"):
        opened(genai, tiny_profile, together=4)


def test_an_output_that_was_broken_off_is_gone_on_with_to_the_same_bytes_and_in_no_other_mode(
    model: Path, tiny_profile: Path, tmp_path: Path
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(TEXTS)))

    def score(out: str, *more: str) -> Any:
        given = ["-m", str(model), "-p", str(tiny_profile), "--threads", "1", "-o", str(tmp_path / out)]
        return CliRunner().invoke(main, ["score", str(source), *given, *more])

    assert score("whole.jsonl", "--together", "4").exit_code == 0
    assert score("part.jsonl", "--together", "4", "--limit", "6").exit_code == 0
    refused = score("part.jsonl", "--resume")
    assert refused.exit_code == 1
    assert "together was 4, is not given" in refused.output
    done = score("part.jsonl", "--together", "4", "--resume")
    assert done.exit_code == 0, done.output
    assert "4 together" in done.output
    whole = (tmp_path / "whole.jsonl").read_bytes().splitlines()
    part = (tmp_path / "part.jsonl").read_bytes().splitlines()
    assert part[:4] == whole[:4]
    assert part[6:] == whole[6:]  # rows 5 and 6 were a block of their own, where the records ended


def test_a_number_that_no_batch_has_is_refused(model: Path, tiny_profile: Path) -> None:
    for n in (1, 129):
        with pytest.raises(ModelError, match=f"{n} records together were asked for; expected 2 to 128"):
            opened(model, tiny_profile, together=n)


@settings(max_examples=50)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 9), st.integers(1, 120))
def test_batches_are_runs_in_order_within_both_limits(lengths: list[int], most: int, room: int) -> None:
    found = list(batches(lengths, most=most, room=room))
    assert [place for run in found for place in run] == list(range(len(lengths)))
    for run, after in zip(found, [*found[1:], None], strict=True):
        taken = sum(lengths[i] for i in run)
        assert len(run) == 1 or (len(run) <= most and taken <= room)
        assert after is None or len(run) == most or taken + lengths[after.start] > room


def test_a_build_for_cuda_that_finds_no_gpu_says_so(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp, "llama_print_system_info", lambda: b"CUDA : ARCHS = 900 | ")
    monkeypatch.setattr(llama_cpp, "llama_supports_gpu_offload", lambda: False)
    with pytest.raises(ModelError, match="built with CUDA and finds no GPU") as caught:
        open_backend(model, RuntimeOptions(device="cuda"))
    assert caught.value.kind == "cuda_not_started"
