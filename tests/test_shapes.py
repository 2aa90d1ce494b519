"""The answers of guards that people run, each shape written as a pattern (tests/shapes), read back label by label."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from vocabularies import real

from edgeguard import Guard, Search
from edgeguard.answers import START, Answers
from edgeguard.estimates import fields_of
from edgeguard.profile import Profile, load_profile, parse_profile
from edgeguard.testing import FakeBackend, vocabulary

SHAPES = Path(__file__).parent / "shapes"
BYTES = [bytes([i]) for i in range(256)]
CONTROL = ("<end>", "<SAFE>", *(f"<UNSAFE-S{i}>" for i in range(1, 8)))


def shape(name: str) -> Profile:
    return load_profile(SHAPES / f"{name}.toml")


def answers(name: str, strictness: str | None = None, **options) -> Answers:
    grammar = shape(name).answer
    grammar = grammar if strictness is None else grammar.judging(strictness)
    return Answers(grammar, vocabulary(BYTES, control=CONTROL), frozenset({256}), **options)


def named(compiled: Answers, text: str) -> set[str] | None:
    """What a whole answer names; None where the pattern cannot read it."""
    read = compiled.run(text.encode())
    if read is None or (ending := compiled.stop_names(read[0])) is None:
        return None
    return {label for i, label in enumerate(compiled.labels) if (read[1] | ending) >> i & 1}


POLY = """\
Harmful request: yes
Request safety violations: S1, S10
Response refusal: no
Harmful response: no
Response safety violations: None"""
READ = [
    # (shape, options, answer, what it names)
    ("llama-guard", {}, "\n\nsafe", {"safe"}),
    ("llama-guard", {}, "\n\nunsafe\nS1,S10", {"unsafe", "S1", "S10"}),
    ("llama-guard", {}, "unsafe", {"unsafe"}),
    ("qwen3guard", {}, "Safety: Safe\nCategories: None", {"safe", "verdict=safe"}),
    (
        "qwen3guard",
        {},
        "Safety: Unsafe\nCategories: Violent, PII\nRefusal: No",
        {"unsafe", "Violent", "PII", "verdict=unsafe", "refusal=no"},
    ),
    ("qwen3guard", {}, "Safety: Controversial\nCategories: PII", {"unsafe", "PII", "verdict=controversial"}),
    (
        "qwen3guard",
        {"strictness": "loose"},
        "Safety: Controversial\nCategories: PII",
        {"safe", "PII", "verdict=controversial"},
    ),
    (
        "wildguard",
        {},
        "Harmful request: yes\nResponse refusal: N/A\nHarmful response: N/A",
        {"unsafe", "request_harm=yes", "refusal=n/a", "response_harm=n/a"},
    ),
    (
        "wildguard",
        {"judged": "assistant"},
        "Harmful request: yes\nResponse refusal: yes\nHarmful response: no",
        {"safe", "request_harm=yes", "refusal=yes", "response_harm=no"},
    ),
    (
        "wildguard",
        {"judged": "assistant"},
        "Harmful request: yes\nResponse refusal: N/A\nHarmful response: N/A",
        {"request_harm=yes", "refusal=n/a", "response_harm=n/a"},  # neither safe nor unsafe
    ),
    (
        "polyguard",
        {},
        POLY,
        {"unsafe", "S1", "S10", "request_harm=yes", "category=S1", "category=S10", "refusal=no", "response_harm=no"},
    ),
    (
        "polyguard",
        {"judged": "assistant"},
        POLY,
        {
            *("safe", "request_harm=yes", "category=S1", "category=S10", "refusal=no", "response_harm=no"),
        },
    ),
    ("nemotron", {}, json.dumps({"User Safety": "safe"}), {"safe", "verdict=safe"}),
    (
        "nemotron",
        {},
        json.dumps({"User Safety": "unsafe", "Safety Categories": "Sexual, Threat"}),
        {"unsafe", "S2", "S11", "verdict=unsafe"},
    ),
    (
        "nemotron",
        {"judged": "assistant"},
        json.dumps({"User Safety": "unsafe", "Response Safety": "safe", "Safety Categories": "Sexual (minor)"}),
        {"safe", "S7", "verdict=unsafe", "response=safe"},
    ),
    ("shieldgemma", {}, "Yes", {"unsafe"}),
    ("shieldgemma", {}, "No, because the text is harmless. Yes?", {"safe"}),
    ("granite-3.2", {}, "Yes\n<confidence> High </confidence>", {"unsafe", "confidence=high"}),
    ("granite-3.2", {}, "No", {"safe"}),
    ("granite-4.1", {}, "<think>\n</think>\n<score>yes</score>", {"unsafe"}),
    ("granite-4.1", {}, "<score> no </score>", {"safe"}),
    ("kanana", {}, "<UNSAFE-S3>", {"unsafe", "S3"}),
    ("kanana", {}, "<SAFE>", {"safe"}),
    ("yufeng", {}, "dw\nThe text asks for a gun.", {"unsafe", "dw"}),
    ("yufeng", {}, "sec\n", {"safe"}),
]
UNREADABLE = [
    ("llama-guard", "unsafe\nS15"),
    ("qwen3guard", "Safety: Unsafe\nCategories: Violent,"),
    ("wildguard", "Harmful request: yes"),
    ("nemotron", '{"User Safety": "unsafe"'),
    ("nemotron", '{"User Safety": "unsafe", "Safety Categories": "Sexual (min"}'),
    ("shieldgemma", "Maybe"),
    ("granite-3.2", "Yes\n<confidence> Some </confidence>"),
    ("kanana", "<UNSAFE-S8>"),
    ("yufeng", "dwarf\n"),
]


@pytest.mark.parametrize(("name", "options", "text", "labels"), READ, ids=[f"{r[0]}-{i}" for i, r in enumerate(READ)])
def test_an_answer_names_what_it_says(name, options, text, labels):
    assert named(answers(name, **options), text) == labels


@pytest.mark.parametrize(("name", "text"), UNREADABLE)
def test_what_the_guard_never_writes_is_off_the_grammar(name, text):
    assert named(answers(name), text) is None


def test_every_shape_is_read():
    assert {row[0] for row in READ} == {path.stem for path in SHAPES.glob("*.toml")}


PAGE = (Path(__file__).parents[1] / "docs" / "profiles.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("block", re.findall(r"```toml\n(\[answer\]\n.*?)```", PAGE, re.DOTALL))
def test_each_answer_in_the_docs_is_one_that_a_profile_may_have(block):
    rest = '\n[prompt]\ntemplate = "model"\n'
    codes = '[[category]]\ncode = "S1"\nname = "One"\n' if "{category}" in block else ""
    assert parse_profile(f'name = "docs"\ntaxonomy = "docs"\n{block}{rest}{codes}'.encode(), "docs/profiles.md")


def test_labels_of_the_decision_come_first_and_those_of_other_fields_after_safe():
    strict = answers("qwen3guard")
    codes = [c.code for c in shape("qwen3guard").categories]
    assert strict.labels[: strict.safe + 1] == ("unsafe", *codes, "safe")
    assert {name: [strict.labels[i] for i in places.values()] for name, places in fields_of(strict.labels).items()} == {
        "verdict": ["verdict=safe", "verdict=unsafe", "verdict=controversial"],
        "refusal": ["refusal=yes", "refusal=no"],
    }
    assert fields_of(answers("llama-guard").labels) == {}


def test_where_the_last_turn_is_the_assistant_s_its_own_field_is_the_verdict():
    """A response judged by the request's harm would be flagged for what the user said."""
    said = b"Harmful request: yes\nResponse refusal: no\nHarmful response: no"

    def row(path: tuple[int, ...]) -> np.ndarray:
        """Writes the answer, with a little doubt, wherever in the prompt it stands."""
        read = bytes(t for t in path if t < 256).rpartition(b"|")[2]
        logits = np.full(256 + len(CONTROL), -30.0)
        logits[said[len(read)] if read == said[: len(read)] and len(read) < len(said) else 256] = 0.0
        if read.endswith(b": "):
            logits[list(b"yn")] += 25.0
        return logits

    guard = Guard(
        FakeBackend(vocabulary(BYTES, control=CONTROL), row), shape("wildguard"), search=Search(max_nodes=200)
    )
    assert guard.score("How?").unsafe > 0.9
    assert guard.score({"prompt": "How?", "response": "Like this. More?"}).unsafe < 0.1


@pytest.mark.parametrize("name", [path.stem for path in SHAPES.glob("*.toml")])
def test_what_is_evaluated_together_is_a_way_through_the_grammar(name):
    """A run that the grammar does not allow would be looked up among tokens that are not there."""
    compiled = answers(name)
    states, seen = [START], {START}
    while states and len(seen) < 400:
        state = states.pop()
        for run in compiled.spines(state):
            here = state
            for token in run:
                moves = compiled.moves(here)
                assert token in moves.tokens
                here = int(moves.next[np.searchsorted(moves.tokens, token)])
        new = set(compiled.moves(state).next.tolist()) - seen
        seen |= new
        states += new


def written(compiled: Answers, tokens: tuple[int, ...]) -> str:
    return b"".join(compiled.piece(token) for token in tokens).decode()


def test_the_plain_way_is_that_of_the_guard():
    """Llama Guard 3 writes two line breaks first: without them the run is one that it never goes."""
    compiled = answers("llama-guard")
    assert [written(compiled, run) for run in compiled.spines(START)] == ["\n\nunsafe\nS", "\n\nsaf"]
    ways = {
        name: written(one, one.way_to_label)
        for name in ("llama-guard", "qwen3guard", "polyguard", "wildguard")
        if (one := answers(name))
    }
    assert ways == {
        "llama-guard": "\n\nunsafe\nS",
        "qwen3guard": "Safety: Unsafe\nCategories: ",
        "polyguard": "Harmful request: yes\nRequest safety violations: S",
        "wildguard": "",
    }


def test_runs_lead_through_each_verdict_to_the_next_choice():
    """One call is to see the heads of all verdicts, and what each is followed by for certain."""
    compiled = answers("qwen3guard")
    runs = [written(compiled, run) for run in compiled.spines(START)]
    assert runs == [
        "Safety: Unsafe\nCategories: ",
        "Safety: Controversial\nCategories: ",
        "Safety: Safe\nCategories: ",
    ]
    read = compiled.run(b"Safety: Unsafe\nCategories: Vi")
    assert read is not None
    assert [written(compiled, run) for run in compiled.spines(read[0])] == ["olent\nRefusal: "]


@pytest.mark.parametrize(
    ("vocabulary_name", "profile", "first"),
    [
        ("qwen2", "qwen3guard", [73037, 25, 73067]),  # `Safety` `:` ` Unsafe`
        ("qwen2", "granite-guardian-3.3", None),
        ("starcoder", "granite-guardian-3.1", None),
        ("llama-bpe", "llama-guard-3", [271, 39257, 198, 50]),  # "\n\n" `unsafe` "\n" `S`
        ("llama-bpe", "nemotron-safety-guard", None),
    ],
)
def test_what_is_evaluated_ahead_are_the_tokens_that_the_tokenizer_makes(vocabulary_name, profile, first):
    """The longest tokens first would write `<s` `core` `>`, which no model does: each token then cost a step."""
    real_one = real(vocabulary_name)
    compiled = Answers(load_profile(profile).answer, real_one, real_one.eog)
    runs = compiled.spines(START)
    for run in runs:
        text = written(compiled, run)
        assert list(run) == real_one.encode(text), text
    if first is not None:
        assert list(runs[0][: len(first)]) == first
