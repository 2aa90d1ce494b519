"""A record that begins like the one before it is gone on with, and gets the bits of a record of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_gguf import write_tiny_llama

from edgeguard import Guard, RuntimeOptions, Search
from edgeguard.backend import Condition

llama_cpp = pytest.importorskip("llama_cpp")
STEP = 16
MODELS: dict[str, dict[str, Any]] = {
    "F32": {},
    "Q8_0": {"ftype": "Q8_0", "n_embd": 64, "n_ff": 96, "n_head": 4},
    "gemma2": {"arch": "gemma2", "tied": True},  # with a sliding window, where nothing is gone on with
}


@contextmanager
def opened(model: Path, profile: Path, **options: Any) -> Iterator[Guard]:
    with Guard.load(model, profile=profile, runtime=RuntimeOptions(threads=1, **options)) as guard:
        yield guard


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(
        tmp_path_factory.mktemp("growing") / "tiny.gguf", n_ctx=4096, logit_std=1.0, **MODELS[request.param]
    )


@pytest.fixture(scope="module")
def pair(model: Path, tiny_profile: Path) -> Iterator[tuple[Guard, Guard]]:
    with opened(model, tiny_profile, batch=STEP) as grows, opened(model, tiny_profile, batch=STEP) as anew:
        yield grows, anew


def from_nothing(guard: Guard, record: Any) -> dict[str, Any]:
    """With nothing of it in the memory: another record has been there, and no batch of it is one of this."""
    guard.score("#")
    return guard.score(record).row()


class Decoded:
    """Tokens that a guard's model is asked for while the block lasts."""

    def __init__(self, guard: Guard, patch: pytest.MonkeyPatch) -> None:
        self.n, backend = 0, guard.backend
        decode = backend._decode_batch  # type: ignore[attr-defined]

        def counted(entries: Any, rows: Any) -> None:
            self.n += len(entries)
            decode(entries, rows)

        patch.setattr(backend, "_decode_batch", counted)


def test_each_sentence_costs_its_own_tokens_and_gets_the_same_bits(
    pair: tuple[Guard, Guard], monkeypatch: pytest.MonkeyPatch
) -> None:
    grows, anew = pair
    sentences = [f"Sentence {i} of it. " for i in range(12)]
    records = [{"prompt": "How do I do it?", "response": "".join(sentences[: i + 1]).strip()} for i in range(12)]
    expected = [from_nothing(anew, record) for record in records]
    grows.score("#")
    costs = []
    for record in records:
        with monkeypatch.context() as patch:
            decoded = Decoded(grows, patch)
            grows.score(record)
            costs.append(decoded.n)
    assert [grows.score(record).row() for record in records] == expected
    longest = len(grows.prompt(records[-1]).tokens)
    assert longest > 200
    n_sentence = len(grows.backend.vocabulary.encode(sentences[-1]))
    tail = grows.score(records[-1]).tokens["answer"] * 20 + 40  # the template's own, the tree's tokens, a step
    if "gemma2" not in grows.backend.info.architecture:
        assert max(costs[1:]) <= 2 * STEP + n_sentence + tail < longest


def test_conversations_that_take_turns_are_each_gone_on_with(
    pair: tuple[Guard, Guard], monkeypatch: pytest.MonkeyPatch
) -> None:
    grows, anew = pair
    words = [f"{name} says something of its own. " * 8 for name in ("Anna", "Bert", "Cleo")]
    records = [[{"prompt": "Well?", "response": text[: 40 * n].strip()} for n in (2, 3, 4, 5)] for text in words]
    expected = {text["response"]: from_nothing(anew, text) for chat in records for text in chat}
    costs: list[list[int]] = []
    for turn in zip(*records, strict=True):
        costs.append([])
        for record in turn:
            with monkeypatch.context() as patch:
                decoded = Decoded(grows, patch)
                assert grows.score(record, grows=True).row() == expected[record["response"]]
                costs[-1].append(decoded.n)
            assert (
                grows.score("Something else, from another root.").row()
                == anew.score("Something else, from another root.").row()
            )
    if grows.backend.info.architecture != "gemma2":
        n_first = [len(grows.prompt(chat[0]).tokens) for chat in records]
        n_last = [len(grows.prompt(chat[-1]).tokens) for chat in records]
        saved = [b - a for a, b in zip(n_first, n_last, strict=True)]
        assert all(last < first + more - STEP for first, last, more in zip(costs[0], costs[-1], saved, strict=True))


turns = st.lists(st.text("ab ", min_size=1, max_size=60).filter(str.strip), min_size=1, max_size=3)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 120), turns, st.booleans()), min_size=2, max_size=6))
def test_whatever_came_before_the_bits_are_those_of_a_record_of_its_own(
    pair: tuple[Guard, Guard], cuts: list[tuple[int, list[str], bool]]
) -> None:
    """Records that begin with any part of one text, and go on in any way, in any order, of one or more turns."""
    grows, anew = pair
    base = "the same words again and again, " * 5
    for n, texts, kept in cuts:
        texts = [base[:n] + texts[0], *texts[1:]]
        record = {"messages": [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]}
        assert grows.score(record, grows=kept).row() == from_nothing(anew, record)


def test_a_step_of_so_many_tokens_is_a_batch_of_so_many(
    model: Path, tiny_profile: Path, pair: tuple[Guard, Guard]
) -> None:
    """`batch` is the condition of that name: nothing else changes."""
    with opened(model, tiny_profile, condition=Condition(batch=STEP)) as other:
        for text in ("a", "word " * 60):
            assert other.score(text).row() == pair[0].score(text).row()


def test_where_each_category_is_asked_about_the_text_is_gone_on_with_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text stands before the questions, and is evaluated alone."""
    options: dict[str, Any] = {
        "profile": Path(__file__).parents[1] / "examples" / "house-rules.toml",
        "runtime": RuntimeOptions(threads=1, batch=STEP),
        "search": Search(min_grammar_mass=0.0),
    }
    texts = ["word " * n + "end" for n in (30, 40)]
    model = write_tiny_llama(tmp_path / "tiny.gguf", n_ctx=2048, logit_std=1.0)
    with Guard.load(model, **options) as grows, Guard.load(model, **options) as anew:
        expected = [from_nothing(anew, text) for text in texts]
        costs = []
        for text, row in zip(texts, expected, strict=True):
            with monkeypatch.context() as patch:
                decoded = Decoded(grows, patch)
                assert grows.score(text).row() == row
                costs.append(decoded.n)
        assert costs[1] < costs[0]
