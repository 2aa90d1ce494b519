"""Texts longer than the context or the window: which windows, and what a score says of them together."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_questions import ASKS, END, PIECES, QUESTION_FIRST, TEXT_FIRST, asking, small_vocabulary

from edgeguard import Guard, Workers
from edgeguard.calibration.maps import Calibration, Map
from edgeguard.errors import ContextOverflow, OffGrammar, RecordError
from edgeguard.guard import ANSWER_ROOM, Score, Search
from edgeguard.rows.results import read_rows
from edgeguard.testing import FakeBackend

Run = Callable[..., Any]
Tiny = tuple[str, ...]
LONG = "".join(f"Sentence number {i} is of rain on the hill. " for i in range(60))
EARLIER = [{"role": "user", "content": "Tell me of it."}, {"role": "assistant", "content": "Of what? I know a lot."}]


@pytest.fixture(scope="module")
def windowed(tiny_guard: Guard) -> Guard:
    return Guard(tiny_guard.backend, tiny_guard.profile, window=128)


@pytest.fixture(scope="module")
def auto(tiny_guard: Guard) -> Guard:
    return Guard(tiny_guard.backend, tiny_guard.profile, window="auto")


def each_alone(guard: Guard, record: dict[str, Any], text: str) -> list[Score]:
    """The windows of a record, scored as records of their own by a guard that knows no windows."""
    plain = Guard(guard.backend, guard.profile, calibration=guard.calibration, estimator=guard.estimator)
    *earlier, last = record["messages"]
    return [
        plain.score({"messages": [*earlier, {**last, "content": text[w.begin : w.end]}]}) for w in guard.windows(record)
    ]


# ------------------------------------------------------------ which windows


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(str.strip))
@settings(deadline=None, max_examples=30)
def test_a_text_that_fits_is_scored_bit_for_bit_as_without_windows(windowed: Guard, tiny_guard: Guard, text: str):
    if len(tiny_guard.backend.vocabulary.encode(text)) <= 128:
        assert windowed.windows(text) == ()
        assert windowed.score(text) == tiny_guard.score(text) and windowed.score(text).window is None


def test_the_window_is_a_number_of_tokens_of_the_text_alone(windowed: Guard) -> None:
    encode = windowed.backend.vocabulary.encode
    longest = next(LONG[:n] for n in range(len(LONG), 0, -1) if len(encode(LONG[:n])) <= 128)
    longer = next(LONG[:n] for n in range(len(longest), len(LONG)) if len(encode(LONG[:n])) > 128)
    assert (len(windowed.windows(longest)), len(windowed.windows(longer))) == (0, 2)
    for w in windowed.windows(LONG):
        assert len(encode(LONG[w.begin : w.end])) <= 128
        assert LONG[w.begin : w.end].startswith("Sentence") and LONG[w.begin : w.end].endswith("hill.")


def test_auto_takes_what_the_context_leaves_and_windows_only_what_does_not_fit(auto: Guard, tiny_guard: Guard) -> None:
    fits = LONG[:600]
    assert auto.windows(fits) == () and auto.score(fits) == tiny_guard.score(fits)
    with pytest.raises(ContextOverflow):
        tiny_guard.score(LONG)
    windows = auto.windows(LONG)
    lengths = [len(auto.prompt_ids(LONG[w.begin : w.end])) + ANSWER_ROOM for w in windows]
    assert len(windows) > 1 and max(lengths) <= auto.backend.n_ctx
    next_sentence = len(auto.backend.vocabulary.encode(LONG[:45]))
    assert all(length > auto.backend.n_ctx - next_sentence - 5 for length in lengths[:-1])  # as full as can be


def test_a_window_wider_than_the_context_is_what_the_context_leaves(auto: Guard, tiny_guard: Guard) -> None:
    wide = Guard(tiny_guard.backend, tiny_guard.profile, window=10**6)
    assert wide.windows(LONG) == auto.windows(LONG)


def test_of_a_conversation_the_last_message_is_windowed_and_the_others_are_in_every_window(auto: Guard) -> None:
    record = {"messages": [*EARLIER, {"role": "user", "content": LONG}]}
    alone = each_alone(auto, record, LONG)
    assert auto.score(record).tokens["prompt"] == sum(score.tokens["prompt"] for score in alone)
    assert len(alone) > 1
    response = {"prompt": "Tell me of rain.", "response": LONG}
    assert len(auto.windows(response)) > 1 and auto.score(response).window is not None


def test_earlier_messages_that_leave_no_room_are_an_overflow_as_without_windows(auto: Guard) -> None:
    record = {"messages": [{"role": "user", "content": LONG}, EARLIER[1], {"role": "user", "content": "Well?"}]}
    with pytest.raises(
        ContextOverflow, match="the context holds 1024; all but the last text leaves 0, too few"
    ) as caught:
        auto.score(record)
    assert caught.value.kind == "no_room_for_window"


@pytest.mark.parametrize("window", [31, 0, -5, "all", 64.5, True])
def test_a_window_that_is_none_is_refused(tiny_guard: Guard, window: Any) -> None:
    with pytest.raises(ValueError, match=r"window is .*; expected 'auto', or at least 32 tokens"):
        Guard(tiny_guard.backend, tiny_guard.profile, window=window)


# ------------------------------------------------------------ what a score says


@pytest.fixture(scope="module", params=["marginal", "joint", "calibrated"])
def judging(request: pytest.FixtureRequest, tiny_guard: Guard) -> Iterator[Guard]:
    maps = {
        "unsafe": Map("platt", {"slope": 0.5, "intercept": 0.1}),
        "S10": Map("platt", {"slope": 1.5, "intercept": -0.2}),
    }
    calibration = Calibration("tiny", "tiny", "marginal", "", maps) if request.param == "calibrated" else None
    estimator = "joint" if request.param == "joint" else "marginal"
    yield Guard(
        tiny_guard.backend, tiny_guard.profile, window=128, estimator=estimator, calibration=calibration,
        thresholds={"unsafe": 0.3, "S1": 0.02},
    )  # fmt: skip


def test_a_score_is_the_largest_of_what_its_windows_alone_have(judging: Guard) -> None:
    alone = [
        replace(one, id=None) for one in each_alone(judging, {"messages": [{"role": "user", "content": LONG}]}, LONG)
    ]
    score = judging.score(LONG)
    assert score.unsafe == max(one.unsafe for one in alone) and score.margin == max(one.margin for one in alone)
    for code, p in score.category_scores.items():
        assert p == max(one.category_scores[code] for one in alone)
    for label, (low, high) in score.bounds.items():
        assert low == max(one.bounds[label][0] for one in alone) and high == max(one.bounds[label][1] for one in alone)
        said = score.unsafe if label == "unsafe" else score.category_scores[label]
        assert judging.estimator != "marginal" or low <= said <= high
    limits = judging.thresholds.array(("unsafe", *judging.codes))
    assert score.categories == tuple(
        c for c, t in zip(judging.codes, limits[1:], strict=True) if score.category_scores[c] >= t
    )
    assert score.flagged == bool(score.categories or score.unsafe >= limits[0])


def test_the_worst_window_is_named_and_scores_the_same_alone(windowed: Guard, tiny_guard: Guard) -> None:
    score, windows = windowed.score(LONG), windowed.windows(LONG)
    assert score.window in windows
    alone = [tiny_guard.score(LONG[w.begin : w.end]).margin for w in windows]
    assert score.margin == max(alone) and alone.index(score.margin) == score.window.number - 1
    assert score.row()["window"] == {
        "number": score.window.number, "of": len(windows), "begin": score.window.begin, "end": score.window.end,
    }  # fmt: skip


def by_text(path: tuple[int, ...]) -> np.ndarray:
    """yes or no by all that stands before, then perhaps a line break and how sure that is."""
    logits = np.full(len(PIECES) + 1, -np.inf)
    follow = {ASKS: (b"yes", b"no"), PIECES.index(b"\n"): (b"x", b"a")}.get(path[-1])
    if follow is not None:
        p = (zlib.crc32(bytes(path)) % 97 + 1) / 99
        logits[[PIECES.index(word) for word in follow]] = np.log([p, 1 - p])
    elif path[-2] == ASKS:
        logits[[END, PIECES.index(b"\n")]] = np.log(0.5)
    else:
        logits[END] = 0
    return logits


@pytest.mark.parametrize("prompt", [TEXT_FIRST, QUESTION_FIRST])
def test_questions_and_fields_are_the_largest_of_the_windows_too(prompt: str) -> None:
    backend = FakeBackend(small_vocabulary(), by_text, n_ctx=90)
    guard = Guard(backend, asking("{verdict}(\\n{sure})?", prompt=prompt), window="auto", search=Search(max_nodes=8))
    text = "yn oc" * 40
    windows = guard.windows(text)
    alone = [guard.score(text[w.begin : w.end]) for w in windows]
    score = guard.score(text)
    assert len(windows) > 2 and all(one.window is None for one in alone)
    assert score.unsafe == max(one.unsafe for one in alone)
    for field, said in score.fields.items():
        assert said == {label: max(one.fields[field][label] for one in alone) for label in said}
    assert score.bounds.keys() == alone[0].bounds.keys()


def test_a_window_that_cannot_be_scored_makes_the_record_an_error_that_names_it(tiny_guard: Guard) -> None:
    strict = Guard(tiny_guard.backend, tiny_guard.profile, window=128, search=Search(min_grammar_mass=0.9999))
    with pytest.raises(OffGrammar, match=r"^window 1 of \d+, characters 0 to \d+: .* of the probability lies on"):
        strict.score(LONG)
    (failure,) = strict.score_many([{"id": 7, "text": LONG}])
    assert (failure.id, failure.kind) == (7, "off_grammar")


def test_a_record_that_is_none_raises_as_ever(windowed: Guard) -> None:
    with pytest.raises(RecordError, match="expected some text"):
        windowed.score(" ")
    with pytest.raises(TypeError):
        windowed.score(None)  # type: ignore[arg-type]


def test_workers_give_the_same_bits(tiny_model: Path, tiny_profile: Path, windowed: Guard) -> None:
    with Workers(tiny_model, workers=1, profile=tiny_profile, window=128) as workers:
        assert list(workers.score_many([LONG, "short"])) == [windowed.score(LONG), windowed.score("short")]


# ------------------------------------------------------------ the command


def lines(*records: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_score_writes_the_window_and_reads_it_back(run: Run, tiny: Tiny, tmp_path: Path, ending: str) -> None:
    out = tmp_path / f"out.{ending}"
    source = lines({"id": "long", "text": LONG}, {"id": "short", "text": "hello"})
    result = run("score", "-", "--window", "auto", "-o", out, *tiny, input=source)
    assert result.exit_code == 0
    long, short = read_rows(out)
    assert short["window"] is None
    assert long["window"].keys() == {"number", "of", "begin", "end"} and long["window"]["of"] == 3
    assert " 0 errors, 1 scored in 3 windows, " in result.stderr


def test_without_window_a_long_text_is_an_error_and_the_run_says_what_can_be_done(run: Run, tiny: Tiny) -> None:
    result = run("score", "-", *tiny, input=lines({"text": LONG}, {"text": "hello"}))
    assert result.exit_code == 1
    assert json.loads(result.stdout.splitlines()[0])["error"]["type"] == "context_overflow"
    assert result.stderr.splitlines()[-1] == (
        "edgeguard: 1 × context_overflow: raise --context, or score long texts in parts with --window auto"
    )


def test_the_table_shows_the_text_of_the_worst_window(run: Run, tiny: Tiny) -> None:
    result = run("score", "-", "--window", "128", "--table", *tiny, input=lines({"text": LONG}), env={"COLUMNS": "160"})
    assert "[window " in result.stdout and "] Sentence number" in result.stdout


@pytest.mark.parametrize("value", ["31", "full", "12.5", "-1"])
def test_a_window_that_is_none_is_refused_by_the_command(run: Run, tiny: Tiny, value: str) -> None:
    result = run("score", "-", "--window", value, *tiny, input="")
    assert result.exit_code == 2 and "neither auto nor a number of at least 32 tokens" in result.stderr
