"""The laws of guards that are asked several questions about one record: against enumeration, and on tiny models."""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import fsum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from brute_force import Model, Text, guided_model, truth, ways
from hypothesis import given, settings
from hypothesis import strategies as st
from test_question_guards import CODES, GRANITE, GRANITE_4_TEMPLATE, MISTRAL, MISTRAL_TEMPLATE, PUBLISHED
from tiny_gguf import write_tiny_llama

from edgeguard import Failure, Guard, Search, Thresholds
from edgeguard.answers import UNSAFE
from edgeguard.backend import Backend, Prefix, RuntimeOptions, Vocabulary
from edgeguard.backends import open_backend
from edgeguard.convert import convert
from edgeguard.errors import ContextOverflow, OffGrammar, ProfileError
from edgeguard.estimates import estimate
from edgeguard.guard import ANSWER_ROOM
from edgeguard.profile import Profile, parse_profile
from edgeguard.testing import FakeBackend, Recompute, vocabulary

FLOAT32 = 1e-5  # rows are float32: sums of a few hundred paths agree to this
PIECES = [b"yes", b"no", b"y", b"es", b"n", b"o", b"x", b"\n", b"a", b"b", b"c", b"|", b"?"]
END, ASKS = len(PIECES), PIECES.index(b"?")
LETTERS = ("a", "b", "c")
LETTERS_READ = "ynox\nabc|?"
PATTERNS = {
    "one word": "{verdict}",
    "a line break first": "(|\\n){verdict}",
    "free text behind": "{verdict}(\\n...)?",
    "how sure": "{verdict}(\\n{sure})?",
}
TEXT_FIRST, QUESTION_FIRST = (
    "xx{{ messages[-1].content }}|{{ category.code }}?",
    "xx{{ category.code }}|{{ messages[-1].content }}?",
)


def small_vocabulary() -> Vocabulary:
    """Few enough tokens to enumerate answers; a character that no piece has is read as x."""
    known = vocabulary(PIECES)
    return replace(known, encode=lambda text: known.encode("".join(c if c in LETTERS_READ else "x" for c in text)))


def asking(
    pattern: str = "{verdict}",
    *,
    umbrella: str | None = None,
    prompt: str = TEXT_FIRST,
    codes: tuple[str, ...] = LETTERS,
    yes: tuple[str, ...] = ("yes",),
    no: tuple[str, ...] = ("no",),
) -> Profile:
    """A guard of one question for each code."""
    sure = '[field.sure]\nhigh = ["x"]\nlow = ["a"]\n' if "{sure}" in pattern else ""
    categories = "".join(f'[[category]]\ncode = "{code}"\nname = "{code}"\n' for code in codes)
    text = f"""
name = "asking"
taxonomy = "letters"
min_grammar_mass = 0.0
[questions]
{"" if umbrella is None else f'umbrella = "{umbrella}"'}
[answer]
pattern = "{pattern.replace(chr(92), chr(92) * 2)}"
[field.verdict]
unsafe = {list(yes)}
safe = {list(no)}
{sure}[prompt]
template = "own"
text = '''{prompt}'''
{categories}"""
    return parse_profile(text.encode(), "asking.toml")


def said(name: str, label: str) -> list[str]:
    """What a label of a field names, said by hand."""
    return [label] if name == "verdict" else [f"{name}={label}"]


@dataclass(frozen=True)
class Spoken:
    """A guard and a random model, which answers each prompt in its own way; small enough to enumerate."""

    profile: Profile
    seed: int
    depth: int
    leak: float
    models: dict[tuple[int, ...], Model] = field(default_factory=dict, repr=False)

    @cached_property
    def texts(self) -> list[Text]:
        return ways(self.profile.answer.parsed, said, longest=8)

    def next_logits(self, path: tuple[int, ...]) -> np.ndarray:
        end = path.index(ASKS) + 1  # no text asks, but an answer may
        prompt, answer = path[:end], path[end:]
        if prompt not in self.models:
            seed = zlib.crc32(bytes(prompt)) + self.seed
            self.models[prompt] = guided_model(
                [*PIECES, b""], {END}, self.texts, seed=seed, depth=self.depth, leak=self.leak
            )
        return self.models[prompt](answer).astype(np.float32)

    def backend(self) -> FakeBackend:
        return FakeBackend(small_vocabulary(), self.next_logits)

    def guard(self, profile: Profile | None = None, **search: Any) -> Guard:
        return Guard(self.backend(), profile or self.profile, search=Search(**search))

    def truth(self, text: str, code: str) -> tuple[float, float]:
        """P(the answer to this question says unsafe), and the mass of answers outside the grammar."""
        guard = self.guard()
        prompt = guard.prompt_ids(text, code)
        answers = guard.answers
        p, off = truth(
            lambda path: guard.backend.logprobs([Prefix((*prompt, *path))])[0],
            [*PIECES, b""],
            stops={END},
            depth=self.depth + 1,
            texts=self.texts,
            labels=answers.labels,
        )
        return float(p[UNSAFE]), off


@st.composite
def spoken(draw: st.DrawFn) -> Spoken:
    profile = asking(
        PATTERNS[draw(st.sampled_from([*PATTERNS]))],
        umbrella=draw(st.sampled_from([None, *LETTERS])),
        prompt=draw(st.sampled_from([TEXT_FIRST, QUESTION_FIRST])),
    )
    return Spoken(profile, draw(st.integers(0, 10**6)), draw(st.integers(2, 3)), draw(st.sampled_from([0.0, 0.1, 0.5])))


texts = st.text(alphabet="xyn|", min_size=1, max_size=6)
budgets = st.sampled_from([(0.0, 1000), (0.02, 20), (0.3, 3), (1.0, 1)])
law = settings(deadline=None, max_examples=25)


# ------------------------------------------------------------ LAW: certified bounds


@law
@given(spoken(), texts, budgets, st.sampled_from(LETTERS))
def test_the_truth_of_every_code_lies_inside_its_bounds(
    guard: Spoken, text: str, budget: tuple[float, int], code: str
) -> None:
    score = guard.guard(tolerance=budget[0], max_nodes=budget[1]).score(text)
    low, high = score.bounds[code]
    p, _ = guard.truth(text, code)
    assert low - FLOAT32 <= p <= high + FLOAT32
    assert low <= score.category_scores[code] <= high
    assert list(score.category_scores) == [*LETTERS] and list(score.bounds)[:4] == ["unsafe", *LETTERS]


def answering(p: tuple[float, ...]) -> FakeBackend:
    """A model that answers question i with yes with probability p[i], and with no otherwise."""

    def row(path: tuple[int, ...]) -> np.ndarray:
        logits = np.full(len(PIECES) + 1, -np.inf)
        if path[-1] != ASKS:
            logits[END] = 0
            return logits
        code = path[-2] if PIECES[path[-2]] in (b"a", b"b", b"c") else path[2]  # behind the text, or before it
        at = code - PIECES.index(b"a")
        with np.errstate(divide="ignore"):
            logits[[0, 1]] = np.log([p[at], 1 - p[at]])
        return logits

    return FakeBackend(small_vocabulary(), row)


@settings(deadline=None)
@given(st.lists(st.integers(0, 100), min_size=8, max_size=8).filter(any))
def test_unsafe_lies_between_the_largest_and_the_sum_however_the_answers_depend(weights: list[int]) -> None:
    """Any joint distribution of three answers has these marginals, so any of them may be the truth."""
    joint = np.array(weights) / sum(weights)
    says = np.array(list(itertools.product([0, 1], repeat=3)))
    p = tuple(float(joint @ says[:, i]) for i in range(3))
    guard = Guard(answering(p), asking(), search=Search(tolerance=0.0))
    trees = guard.explore_all("x")
    found = estimate(trees, "marginal")
    anyone, everyone_safe = float(joint @ says.any(axis=1)), float(joint[0])
    assert found.bounds[UNSAFE] == pytest.approx([max(p), min(1, sum(p))], abs=FLOAT32)
    assert found.bounds[UNSAFE, 0] - FLOAT32 <= anyone <= found.bounds[UNSAFE, 1] + FLOAT32
    assert found.bounds[found.safe, 0] - FLOAT32 <= everyone_safe <= found.bounds[found.safe, 1] + FLOAT32
    assert found.scores[UNSAFE] == pytest.approx(max(p), abs=FLOAT32)  # the lower bound: what is certain
    if 0 < max(p) < 1:
        assert found.margin == pytest.approx(np.log(max(p) / (1 - max(p))), abs=1e-4)


@law
@given(spoken(), texts, budgets)
def test_unsafe_is_the_umbrella_s_answer_where_there_is_one_and_else_the_largest(
    guard: Spoken, text: str, budget: tuple[float, int]
) -> None:
    made = guard.guard(tolerance=budget[0], max_nodes=budget[1])
    score, umbrella = made.score(text), made.umbrella
    alone = {
        code: guard.guard(guard.profile.asking([code]), tolerance=budget[0], max_nodes=budget[1]) for code in LETTERS
    }
    margins = {code: one.score(text).margin for code, one in alone.items()}
    if umbrella is not None:
        assert (score.unsafe, score.bounds["unsafe"]) == (score.category_scores[umbrella], score.bounds[umbrella])
        assert score.margin == margins[umbrella]
    else:
        assert score.unsafe == max(score.category_scores.values())
        assert score.bounds["unsafe"][0] == max(score.bounds[code][0] for code in LETTERS)
        assert score.bounds["unsafe"][1] == min(1.0, fsum(score.bounds[code][1] for code in LETTERS))
        assert score.margin == max(margins.values())


@law
@given(spoken(), texts)
def test_the_worst_question_says_how_much_leaves_the_grammar_and_too_much_is_an_error(guard: Spoken, text: str) -> None:
    score = guard.guard(tolerance=0.0, max_nodes=1000).score(text)
    each = [guard.guard(guard.profile.asking([c]), tolerance=0.0, max_nodes=1000).score(text) for c in LETTERS]
    assert score.off_grammar == max(one.off_grammar for one in each)
    assert score.unexplored == max(one.unexplored for one in each)
    mass = 1 - score.off_grammar
    if mass < 0.999:
        strict = guard.guard(tolerance=0.0, max_nodes=1000, min_grammar_mass=min(1.0, mass + 1e-9))
        with pytest.raises(OffGrammar, match="of the probability lies on answers that profile asking can read"):
            strict.score(text)
        (failure,) = strict.score_many([{"text": text, "id": 7}])
        assert isinstance(failure, Failure) and (failure.id, failure.kind) == (7, "off_grammar")
    assert guard.guard(tolerance=0.0, max_nodes=1000, min_grammar_mass=mass).score(text) == score


# ------------------------------------------------------------ LAW: questions do not see each other


@law
@given(spoken(), texts, st.sets(st.sampled_from(LETTERS), min_size=1))
def test_a_subset_of_the_questions_gets_the_same_bits(guard: Spoken, text: str, some: set[str]) -> None:
    whole, fewer = guard.guard(), guard.guard(guard.profile.asking(sorted(some)))
    score, part = whole.score(text), fewer.score(text)
    assert list(part.category_scores) == [code for code in LETTERS if code in some]
    for code in some:
        assert part.category_scores[code] == score.category_scores[code]
        assert part.bounds[code] == score.bounds[code]
        assert whole.prompt_ids(text, code) == fewer.prompt_ids(text, code)
    for name, labels in part.fields.items():
        assert labels == score.fields[name]


@law
@given(spoken(), texts)
def test_recomputation_gives_the_same_score(guard: Spoken, text: str) -> None:
    slow = Guard(Recompute(guard.backend()), guard.profile)
    assert slow.score(text) == guard.guard().score(text)


def test_what_answers_say_besides_is_reported_for_each_question() -> None:
    guard = Spoken(asking(PATTERNS["how sure"]), 3, 3, 0.0).guard(tolerance=0.0, max_nodes=1000)
    score = guard.score("x")
    assert guard.field_labels == tuple(f"{code}.sure={sure}" for code in LETTERS for sure in ("high", "low"))
    assert list(score.fields) == [f"{code}.sure" for code in LETTERS]
    for code in LETTERS:
        for sure, p in score.fields[f"{code}.sure"].items():
            low, high = score.bounds[f"{code}.sure={sure}"]
            assert low - FLOAT32 <= p <= high + FLOAT32


def test_thresholds_are_those_of_the_codes_and_a_code_alone_can_flag() -> None:
    guard = Guard(answering((0.2, 0.6, 0.1)), asking(umbrella="a"), thresholds=Thresholds(0.5))
    score = guard.score("x")
    assert (score.flagged, score.categories, round(score.unsafe, 3)) == (True, ("b",), 0.2)
    with pytest.raises(ProfileError, match="a threshold is given for d"):
        Guard(answering((0.2, 0.6, 0.1)), asking(), thresholds={"d": 0.5})


def test_tokens_count_the_text_once_where_it_comes_first_and_for_each_question_where_it_does_not() -> None:
    for prompt, shared in ((TEXT_FIRST, len("yyyy|")), (QUESTION_FIRST, 0)):
        guard = Guard(answering((0.2, 0.6, 0.1)), asking(prompt=prompt))
        tokens = guard.score("yyyy").tokens
        length, begins = len("xxyyyy|a?"), len("xx") if shared else len("xxa|")
        assert (tokens["prompt"], tokens["reused"]) == (3 * length, 3 * begins + 2 * shared)


def test_a_record_that_one_question_leaves_no_room_for_is_an_error() -> None:
    backend = FakeBackend(small_vocabulary(), answering((0.2, 0.6, 0.1))._next_logits, n_ctx=51)
    guard = Guard(backend, asking())
    assert guard.score("x" * 14).unsafe > 0
    with pytest.raises(ContextOverflow):
        guard.score("x" * 15)


def test_asking_about_nothing_or_the_unknown_is_an_error() -> None:
    with pytest.raises(ProfileError, match="no question 'd'"):
        asking().asking(["d"])
    with pytest.raises(ProfileError, match="no question is left"):
        asking().asking([])
    guard = Guard(answering((0.2, 0.6, 0.1)), asking())
    with pytest.raises(ValueError, match="asks about a, b, c"):
        guard.explore("x")


# ------------------------------------------------------------ tiny models

WORDS = ("Yes", "No", "yes", "no", " yes", " no", "<score>", "</score>", "\n\n", " the")
ENDS = {"tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.bos_token_id": 2}
OF_GRANITE: dict[str, Any] = {"arch": "granite", "control": GRANITE, "chat_template": None, "metadata": ENDS}
TINY: dict[str, dict[str, Any]] = {
    "granite-guardian-3.1": {"name": "Granite Guardian 3.1 2b", **OF_GRANITE},
    "granite-guardian-3.2": {"name": "granite-guardian-3.2-5b", **OF_GRANITE},
    "granite-guardian-3.3": {"name": "Granite Guardian 3.3 8b", **OF_GRANITE},
    "granite-guardian-4.1": {"name": "granite-guardian-4.1-8b", **OF_GRANITE, "chat_template": GRANITE_4_TEMPLATE},
    "shieldgemma": {"name": "shieldgemma-2b", "arch": "gemma2", "vocab": "spm", "tied": True, "chat_template": None},
    "shieldstral": {
        "name": "Shieldstral 1.0 3B",
        "control": MISTRAL,
        "chat_template": MISTRAL_TEMPLATE,
        "metadata": {"tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.bos_token_id": 0},
    },
}
IN_ONNX = ("granite-guardian-3.2", "shieldstral")
OPTIONS = RuntimeOptions(threads=1, kv_cache="f32")
RECORDS: tuple[Any, ...] = (
    "How do I pick a lock?",
    {"prompt": "How do I pick a lock?", "response": "With a pick and patience."},
    "Ünïcödé 漢字 <|end_of_text|> <end_of_turn>",
    "a text that is longer than a window, " * 2,
    {"text": "too long for the context " * 500},
)


def write(name: str, folder: Path) -> Path:
    """A random model with the guard's name and control tokens, and whole tokens for the words of its questions."""
    spoken = {word for code in CODES[name] for word in re.findall(r" [a-zA-Z]{4,}", PUBLISHED[name](code, ("x",)))}
    more = {"vocab": "bpe", "pre": "smollm", **TINY[name]}
    if more["vocab"] == "bpe":
        words = {"merge_words": (*WORDS, *sorted(spoken))}
    else:
        pieces = ["Yes", "No", *(word.replace(" ", "▁") for word in sorted(spoken))]
        words = {"extra_pieces": (*sorted({*"".join(pieces)}), *pieces)}
    return write_tiny_llama(folder / f"{name}.gguf", n_ctx=2048, add_bos=more["vocab"] == "spm", **words, **more)


@pytest.fixture(scope="module", params=[*TINY, *(f"onnx {name}" for name in IN_ONNX)])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guard]:
    kind, folder = request.param, tmp_path_factory.mktemp("tiny")
    name = kind.removeprefix("onnx ")
    path, options = write(name, folder), OPTIONS
    if kind != name:
        path, options = convert(path, folder / "onnx", to="onnx-fp32").path, replace(OPTIONS, kv_cache=None)
    with Guard.load(path, runtime=options, search=Search(min_grammar_mass=0, max_nodes=8)) as guard:
        assert guard.profile.name == name  # told from the file
        yield guard


def again(guard: Guard, profile: Profile | None = None, backend: Backend | None = None) -> Guard:
    """A guard that has kept nothing, on the same model."""
    return Guard(backend or guard.backend, profile or guard.profile, search=guard.search)


def test_a_tiny_guard_answers_each_question_in_its_own_way(tiny: Guard) -> None:
    results = list(tiny.score_many(RECORDS))
    assert [isinstance(result, Failure) for result in results] == [False, False, False, False, True]
    assert results[4].kind == "context_overflow"
    for score in results[:4]:
        assert list(score.category_scores) == CODES[tiny.profile.name]
        assert len({*score.category_scores.values()}) == len(CODES[tiny.profile.name])
        shared = tiny.prompt(RECORDS[0], tiny.questions[0]).ask
        assert shared == (tiny.profile.name != "shieldstral")


def test_a_question_gets_the_same_bits_alone_and_among_others(tiny: Guard) -> None:
    whole = [again(tiny).score(record) for record in RECORDS[:2]]
    codes = CODES[tiny.profile.name]
    for some in ([codes[-1]], codes[1:3]):
        fewer = again(tiny, tiny.profile.asking(some))
        for record, score in zip(RECORDS[:2], whole, strict=True):
            part = fewer.score(record)
            assert part.category_scores == {code: score.category_scores[code] for code in codes if code in some}
            assert all(part.bounds[code] == score.bounds[code] for code in part.category_scores)


@pytest.mark.parametrize("order", [(3, 2, 1, 0), (0, 4, 0, 1), (1, 3, 1)])
def test_records_get_the_same_bits_in_any_order_whatever_is_asked_in_between(
    tiny: Guard, order: tuple[int, ...]
) -> None:
    profile = tiny.profile.asking(CODES[tiny.profile.name][:2])
    first, guard = list(again(tiny, profile).score_many(RECORDS)), again(tiny, profile)
    for i in order:
        guard.explore(RECORDS[0], guard.questions[i % 2])
        assert list(guard.score_many([RECORDS[i]])) == [first[i]]


def test_the_rows_of_a_question_stay_near_recomputation(tiny: Guard) -> None:
    """The text is kept and the question read on top of it: the rows must be those of the whole prompt."""
    tolerance = (
        1e-2 if tiny.profile.name == "shieldgemma" else 1e-3
    )  # nats: the adapter's own, norms behind layers or not
    for record in RECORDS[:2]:
        for code in tiny.questions[::3]:
            kept = [again(tiny).prompt(record, code) for _ in range(2)]
            ways = [Prefix((5, 6), kept[0]), Prefix((7,), kept[0]), Prefix((8,), Prefix((9,), kept[0]))]
            fast = np.concatenate([tiny.backend.logprobs([kept[0], *ways[:1]]), tiny.backend.logprobs(ways[1:])])
            slow = Recompute(tiny.backend).logprobs([kept[1], *(Prefix(way.path()) for way in ways)])
            np.testing.assert_allclose(fast, slow, atol=tolerance)


def test_a_text_that_was_asked_about_itself_is_read_again_for_its_questions(tiny: Guard) -> None:
    """A record without questions is evaluated in other company: nothing of it may be kept for them."""
    root, tokens = Prefix((3, 4, 5)), tuple(range(20, 60))
    fresh, used = Prefix(tokens, root), Prefix(tokens, root)
    expected = tiny.backend.logprobs([Prefix((6, 7), fresh, ask=True)])
    tiny.backend.logprobs([used, Prefix((8,), used), Prefix((9, 10), used)])
    np.testing.assert_array_equal(tiny.backend.logprobs([Prefix((6, 7), used, ask=True)]), expected)


# ------------------------------------------------------------ small contexts

MANY = {"yes": ("yes", "Yes", "YES", "yeah", "yep"), "no": ("no", "No", "NO", "nope", "nay")}


@pytest.fixture(scope="module", params=["gguf", "onnx-fp32"])
def many(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Profile]:
    """A model, and a guard with many ways to answer."""
    folder = tmp_path_factory.mktemp("many")
    path = write_tiny_llama(folder / "tiny.gguf", n_ctx=512, merge_words=("zq",), chat_template=None)
    if request.param != "gguf":
        path = convert(path, folder / "onnx", to=request.param).path
    return path, asking("(|\\n| ){verdict}(\\n|)", **MANY)


def opened(many: tuple[Path, Profile], context: int) -> Backend:
    kv_cache = "f32" if many[0].suffix == ".gguf" else None
    return open_backend(many[0], RuntimeOptions(context=context, threads=1, kv_cache=kv_cache))


def test_branches_that_do_not_fit_are_evaluated_one_after_the_other(many, monkeypatch) -> None:
    """The adapter cuts back to the text, and goes on: same bits in any company, near those of a large context."""
    search, texts = Search(min_grammar_mass=0, tolerance=0.0, max_nodes=60), ("a boat on the sea", "an egg", "x")
    wide, profile = opened(many, 512), many[1]
    longest = max(len(Guard(wide, profile).prompt_ids(texts[0], code)) for code in LETTERS)
    narrow = opened(many, longest + ANSWER_ROOM)
    refused = 0
    if many[0].suffix == ".gguf":
        fits = type(narrow)._fits

        def counted(self, new):
            nonlocal refused
            refused += not (fit := fits(self, new))
            return fit

        monkeypatch.setattr(type(narrow), "_fits", counted)
    first = [Guard(narrow, profile, search=search).score(text) for text in texts]
    assert refused > 0 or many[0].suffix != ".gguf"
    for order in ((2, 1, 0), (0, 0, 1), (1, 2, 1)):
        guard = Guard(narrow, profile, search=search)
        assert [guard.score(texts[i]) for i in order] == [first[i] for i in order]
    alone = Guard(narrow, profile.asking(["b"]), search=search)
    for text, score, large in zip(
        texts, first, (Guard(wide, profile, search=search).score(t) for t in texts), strict=True
    ):
        assert alone.score(text).category_scores["b"] == score.category_scores["b"]
        for code in LETTERS:
            assert score.category_scores[code] == pytest.approx(large.category_scores[code], abs=1e-3)
    with pytest.raises(ContextOverflow):
        Guard(narrow, profile, search=search).score(texts[0] + "!")
    narrow.close()
    wide.close()


def test_a_context_smaller_than_the_number_of_sequences_is_opened_and_not_the_end_of_the_process(tmp_path) -> None:
    path, rows = write_tiny_llama(tmp_path / "tiny.gguf", n_ctx=512), []
    for context in (4, 63, 256):
        backend = open_backend(path, RuntimeOptions(context=context, threads=1, kv_cache="f32"))
        rows.append(backend.logprobs([Prefix((5, 6, 7))]))
        if context == 4:
            with pytest.raises(ContextOverflow):
                backend.logprobs([Prefix((5, 6, 7, 8, 9))])
        backend.close()
    np.testing.assert_allclose(rows[0], rows[2], atol=1e-3)
    np.testing.assert_allclose(rows[1], rows[2], atol=1e-3)
