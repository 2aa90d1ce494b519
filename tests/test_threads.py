"""What a guard promises threads: they take turns, the bits stay, and nothing ends the process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgeguard import Failure, Guard, RuntimeOptions, Score, Search
from edgeguard.convert import convert

TEXTS: tuple[object, ...] = (
    "How long do I boil an egg?",
    "How do I hurt the dog?",
    {"prompt": "How do I pick a lock?", "response": "With a pick and patience."},
    "a long one, " * 30,
    {"text": ""},
)
TURNS, N_THREADS = 8, 4


def in_threads(*works: Callable[[], object]) -> list[object]:
    """Run all at once, from one start; the results in order, an exception in its place."""
    start, results = threading.Barrier(len(works)), [None] * len(works)

    def run(i: int, work: Callable[[], object]) -> None:
        start.wait(60)
        try:
            results[i] = work()
        except Exception as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=(i, work)) for i, work in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "a thread waits for ever"
    return results


@pytest.fixture(scope="module", params=["gguf", "onnx"])
def model(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "gguf":
        return tiny_model
    return convert(tiny_model, tmp_path_factory.mktemp("onnx") / "tiny", to="onnx-fp32").path


@pytest.fixture
def guard(model: Path, tiny_profile: Path) -> Iterator[Guard]:
    with Guard.load(model, profile=tiny_profile, runtime=RuntimeOptions(threads=1)) as guard:
        yield guard


def test_threads_on_one_guard_get_the_bits_of_one_thread(guard: Guard) -> None:
    """Two loops over `score` of a GGUF guard ended the process by SIGABRT, three times of three."""
    texts = TEXTS[:4]
    alone = [guard.score(text) for text in texts]

    def loop(first: int) -> list[Score]:
        order = [(first + i) % len(texts) for i in range(TURNS)]
        return [guard.score(texts[i]) for i in order]

    for first, scores in enumerate(in_threads(*(lambda k=k: loop(k) for k in range(N_THREADS)))):
        assert scores == [alone[(first + i) % len(texts)] for i in range(TURNS)]


def test_a_stream_beside_self_tests_and_explorations_gets_its_own_bits(guard: Guard) -> None:
    """It ended in "its weights are broken", and then the process."""
    alone, tested = list(guard.score_many(TEXTS)), guard.self_test()
    evidence = guard.explore_with_evidence(TEXTS[1])[1]
    streamed, again, *others = in_threads(
        lambda: [list(guard.score_many(TEXTS)) for _ in range(TURNS)],
        lambda: [guard.self_test() for _ in range(TURNS)],
        lambda: [guard.explore_with_evidence(TEXTS[1])[1] for _ in range(TURNS)],
        lambda: [guard.prompt_ids("another") for _ in range(TURNS)],
    )
    assert streamed == [alone] * TURNS and again == [tested] * TURNS
    assert others == [[evidence] * TURNS, [guard.prompt_ids("another")] * TURNS]


def test_guards_on_one_backend_take_turns_too(guard: Guard) -> None:
    other = Guard(guard.backend, guard.profile, estimator="joint", search=Search(max_nodes=16))
    alone = [guard.score(TEXTS[1]), other.score(TEXTS[1])]
    for scores, expected in zip(
        in_threads(*(lambda g=g: [g.score(TEXTS[1]) for _ in range(TURNS)] for g in (guard, other))), alone, strict=True
    ):
        assert scores == [expected] * TURNS


def test_guards_of_their_own_are_loaded_and_used_side_by_side(model: Path, tiny_profile: Path, guard: Guard) -> None:
    def load_and_score() -> Score:
        with Guard.load(model, profile=tiny_profile, runtime=RuntimeOptions(threads=1)) as own:
            return own.score(TEXTS[1])

    assert in_threads(*[load_and_score] * N_THREADS) == [guard.score(TEXTS[1])] * N_THREADS


def test_closing_while_others_score_ends_them_with_an_error_and_nothing_else(guard: Guard) -> None:
    alone, begun = guard.score(TEXTS[1]), threading.Event()
    scored: list[Score] = []

    def score_on() -> None:
        while True:
            scored.append(guard.score(TEXTS[1]))
            begun.set()

    def stream_on() -> None:
        for result in guard.score_many(TEXTS[1] for _ in iter(int, 1)):
            scored.append(result)

    def close() -> None:
        assert begun.wait(60)
        guard.close()

    *ended, closed = in_threads(score_on, score_on, stream_on, close)
    assert closed is None
    assert [(type(end), str(end)) for end in ended] == [(ValueError, "the guard is closed")] * 3
    assert scored and all(score == alone for score in scored)


def test_a_stream_that_stands_still_keeps_nobody_waiting(guard: Guard) -> None:
    results = guard.score_many(TEXTS)
    first = next(results)
    assert in_threads(lambda: guard.score(TEXTS[0])) == [first]
    results.close()


def test_what_is_closed_says_so_at_every_door(guard: Guard) -> None:
    """llama.cpp tokenised with freed memory."""
    encode = guard.backend.vocabulary.encode
    is_gguf = guard.backend.info.path.suffix == ".gguf"
    prompt = guard.prompt("a")
    guard.close()
    for use in (lambda: guard.prompt("a"), lambda: guard.prompt_ids("a"), lambda: list(guard.score_many(["a"]))):
        with pytest.raises(ValueError, match="the guard is closed"):
            use()
    for use in (lambda: guard.backend.logprobs([prompt]), *([lambda: encode("a")] if is_gguf else [])):
        with pytest.raises(ValueError, match="the model is closed"):
            use()


def test_asyncio_scores_in_a_thread(guard: Guard) -> None:
    texts = TEXTS[:4]
    alone = [guard.score(text) for text in texts]

    async def handle(text: object) -> Score:
        return await asyncio.to_thread(guard.score, text)

    async def serve() -> list[Score]:
        return await asyncio.gather(*(handle(text) for text in texts * 3))

    assert asyncio.run(serve()) == alone * 3


@pytest.mark.smollm2
def test_on_smollm2_threads_get_the_bits_of_one_thread() -> None:
    with Guard.load(runtime=RuntimeOptions(threads=1), search=Search(max_nodes=4)) as guard:
        alone = [guard.score(text) for text in TEXTS[:2]]
        loops = [lambda: [guard.score(text) for text in TEXTS[:2] * 2]] * 2
        first, second, _ = in_threads(*loops, guard.self_test)
        assert first == second == alone * 2


@pytest.mark.parametrize("wrong", [None, ["a", "b"], 3, b"bytes"])
def test_what_is_no_record_is_a_type_error_and_in_a_stream_a_failure_in_its_place(
    tiny_guard: Guard, wrong: object
) -> None:
    for use in (tiny_guard.score, tiny_guard.explore, tiny_guard.explore_with_evidence, tiny_guard.prompt_ids):
        with pytest.raises(TypeError, match=type(wrong).__name__):
            use(wrong)  # type: ignore[arg-type]
    before, failed, after = tiny_guard.score_many(["a", wrong, "b"])  # type: ignore[list-item]
    assert isinstance(failed, Failure) and failed.kind == "invalid_type"
    assert [before, after] == [tiny_guard.score("a"), tiny_guard.score("b")]
