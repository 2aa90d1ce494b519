"""Small answer languages over several tokenisations, for the laws of the tree and the estimators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from brute_force import Model, Text, TooManyWays, guided_model, outcomes, random_model, truth, ways
from hypothesis import assume, reject
from hypothesis import strategies as st

from edgeguard.answers import Answers
from edgeguard.automaton import ambiguity, build
from edgeguard.backend import Prefix
from edgeguard.grammar import AnswerGrammar, Readout
from edgeguard.pattern import Field, Label, parse_pattern
from edgeguard.testing import FakeBackend, vocabulary

# Each way writes `safe`, `unsafe`, and codes 1, 10 and 2 differently; "x" is always outside the grammar.
TOKENISATIONS: dict[str, list[bytes]] = {
    "bytes": [b"s", b"u", b"S", b"1", b"0", b"2", b",", b"\n", b"x"],
    "whole codes": [b"s", b"u", b"S", b"\nS", b"1", b"10", b"2", b",S", b"x"],
    "split digits": [b"s", b"u", b"\n", b"S", b"1", b"0", b"2", b",S", b"x"],
    "merged separators": [b"s", b"u", b"u\nS", b"1", b"0,", b"1,", b"S", b"0", b"2", b"2,S", b"x"],
    "twins": [b"s", b" s", b"u", b" u", b"\nS", b"S1", b"\n", b"1", b"1", b"0", b"S2", b",", b"x"],
}
CODES = ("S1", "S10", "S2")


def grammar(pattern: str, **forms: Mapping[str, tuple[str, ...]]) -> AnswerGrammar:
    """A grammar over `category` and `verdict`, and over the fields that are given: field → label → forms."""
    given: dict[str, Mapping[str, tuple[str, ...]]] = {
        "category": {code: (code,) for code in CODES},
        "verdict": {"safe": ("s",), "unsafe": ("u",)},
        **forms,
    }
    fields = tuple(Field(name, tuple(Label(label, f) for label, f in labels.items())) for name, labels in given.items())
    parsed = parse_pattern(pattern, {f.name: f for f in fields})
    readout = Readout("verdict", "category", (("strict", ("unsafe",)),), ("safe",), "strict")
    return AnswerGrammar(pattern, parsed, fields, readout, readout)


GRAMMARS: dict[str, AnswerGrammar] = {
    "list": grammar(r"{verdict=safe}|{verdict=unsafe}(\n{category}(,{category})*)?"),
    "variants": grammar(r"(| )({verdict=safe}|{verdict=unsafe}(\n?{category}(,\n?{category})*)?)\n?"),
    "one": grammar(r"{verdict=safe}|{verdict=unsafe}(\n{category})?"),
    "verdict": grammar("{verdict=safe}|{category}{verdict:=unsafe}"),
    "none": grammar(r"(|\n){verdict}"),
    "open": grammar(r"{verdict=safe}...|{verdict=unsafe}\n{category}(,...|\n)"),
}


@dataclass(frozen=True)
class Language:
    """A grammar, a tokenisation and a model, small enough to enumerate."""

    grammar: AnswerGrammar
    pieces: list[bytes]
    model: Model
    depth: int
    texts: list[Text]
    vocabulary: object = field(repr=False)

    @property
    def stops(self) -> set[int]:
        return {len(self.pieces)}

    @cached_property
    def _answers(self) -> Answers:
        return Answers(self.grammar, self.vocabulary, frozenset(self.stops))

    def answers(self) -> Answers:
        return self._answers

    def backend(self) -> FakeBackend:
        """The prompt is the empty answer's beginning: paths begin with one marker token, id 0."""
        return FakeBackend(self.vocabulary, lambda path: self.model(path[1:]).astype(np.float32))

    def truth(self) -> tuple[np.ndarray, float]:
        return truth(
            self._rounded,
            [*self.pieces, b""],
            stops=self.stops,
            depth=self.depth + 1,
            texts=self.texts,
            labels=self.answers().labels,
        )

    def probability(self, holds: Callable[[frozenset[str]], bool]) -> float:
        """Of an answer whose names are so."""
        told = outcomes(self._rounded, [*self.pieces, b""], stops=self.stops, depth=self.depth + 1, texts=self.texts)
        return sum(mass for named, mass, _ in told if holds(named))

    def _rounded(self, path: tuple[int, ...]) -> np.ndarray:
        return self.backend().logprobs([Prefix((0, *path))])[0]


def names_of(spec: AnswerGrammar):
    """What a label of a field names, said by hand."""
    unsafe = dict(spec.user.unsafe)[spec.user.default]

    def names(of: str, label: str) -> list[str]:
        if of == "category":
            return [label]
        if of != "verdict":
            return [f"{of}={label}"]
        side = ["unsafe"] if label in unsafe else ["safe"] if label in ("safe", "maybe") else []
        two = {la.name for f in spec.fields if f.name == "verdict" for la in f.labels} == {"safe", "unsafe"}
        return side if two else [*side, f"verdict={label}"]

    return names


def spoken_in(
    spec: AnswerGrammar,
    pieces: list[bytes],
    *,
    seed: int,
    depth: int,
    leak: float | None,
    longest: int | None = None,
) -> Language:
    """What a random model says in a grammar. `longest` are the bytes of its longest answer."""
    stops = {len(pieces)}
    try:
        texts = ways(spec.parsed, names_of(spec), longest or max(map(len, pieces)) * depth, most=3000)
    except TooManyWays:
        reject()
    if leak is None:
        model = random_model(len(pieces) + 1, stops, seed=seed, depth=depth, sharpness=2.0)
    else:
        model = guided_model([*pieces, b""], stops, texts, seed=seed, depth=depth, leak=leak)
    return Language(spec, pieces, model, depth, texts, vocabulary(pieces))


def language(name: str, tokens: str, *, seed: int, depth: int, leak: float | None) -> Language:
    return spoken_in(GRAMMARS[name], TOKENISATIONS[tokens], seed=seed, depth=depth, leak=leak)


# The shapes of JSON, of lines and of free text at the end, in tokens that cut across their fields.
SHAPES: dict[str, tuple[AnswerGrammar, list[bytes]]] = {
    "json": (
        grammar(
            r'\{"U": "{verdict}"(, "C": "{category}(, {category})*")?\}',
            category={"S1": ("Sex",), "S10": ("Sex (minor)",), "S2": ("Spam",)},
        ),
        [b'{"', b'U": "', b"s", b"u", b'"}', b'", "C": "', b"Sex", b" (", b"minor)", b')"}', b"Spam", b", ", b"x"],
    ),
    "lines": (
        grammar(
            r"Harm: {verdict}\nKinds:( {category}(, {category})?| None)(\nRefusal: {refusal})?",
            verdict={"safe": ("no",), "unsafe": ("yes",), "n/a": ("N/A",)},
            refusal={"yes": ("yes",), "no": ("no",)},
        ),
        [
            b"Harm:",
            b" ",
            b" yes",
            b" no",
            b" N",
            b"/A",
            b"\nKinds:",
            b" S",
            b"1",
            b"0",
            b"S2",
            b", ",
            b" None",
            b"\nRefusal:",
        ],
    ),
    "free end": (
        grammar(r"{verdict}\n...", verdict={"safe": ("No", "no"), "unsafe": ("Yes",), "n/a": ("Not",)}),
        [b"No", b"N", b"o", b"t", b"n", b"Yes", b"Yes\n", b"\n", b"\nNo", b"No\nwhy"],
    ),
}

leaks = st.sampled_from([None, 0.0, 0.01, 0.3])
languages = st.builds(
    language,
    st.sampled_from(sorted(GRAMMARS)),
    st.sampled_from(sorted(TOKENISATIONS)),
    seed=st.integers(0, 10**6),
    depth=st.integers(1, 4),
    leak=leaks,
)

# Random patterns. Their texts are short, and their fields' forms begin each other: S1 and S10, a and ab.
MOOD = {"glad": ("a", "ab"), "sad": ("b",), "n/a": ("ba",)}
VERDICT = {"safe": ("s",), "unsafe": ("u", "us"), "maybe": ("m",), "n/a": ("0",)}
LEAVES = ["a", "b", ",", r"\n", "{category}", "{category=S1|S10}", "{mood}", "{mood=glad}", "{mood:=sad}", ""]

parts = st.recursive(
    st.sampled_from(LEAVES),
    lambda inner: st.one_of(
        st.lists(inner, min_size=2, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda ps: f"({'|'.join(ps)})"),
        st.tuples(inner, st.sampled_from("?*+")).map(lambda p: f"({p[0]}){p[1]}"),
    ),
    max_leaves=4,
)
patterns = st.one_of(
    st.builds(
        "{}({{verdict=safe}}{}|{{verdict=unsafe|maybe|n/a}}{}){}".format,
        parts,
        parts,
        parts,
        st.sampled_from(["", "..."]),
    ),
    st.builds("{}{{verdict}}{}".format, parts, parts),
    st.builds("({{verdict=safe}}...|{}{{verdict=unsafe|n/a}}{}|{{verdict=maybe}},...)".format, parts, parts),
)
vocabularies = st.lists(st.text("su0m1S2ab,\n", min_size=2, max_size=3).map(str.encode), max_size=4, unique=True).map(
    lambda merged: [*(bytes([b]) for b in b"su0m1S2ab,\n"), *merged]
)


@st.composite
def random_languages(draw) -> Language:
    """A language of a random pattern over a random vocabulary."""
    spec = grammar(draw(patterns), mood=MOOD, verdict=VERDICT)
    strict = Readout(
        "verdict", "category", (("strict", ("unsafe", "maybe")), ("loose", ("unsafe",))), ("safe",), "strict"
    )
    readout = draw(st.sampled_from([strict, Readout("verdict", "category", strict.unsafe, ("safe",), "loose")]))
    spec = replace(spec, user=readout, assistant=readout)
    labels = [(f.name, la.name) for f in spec.fields for la in f.labels]
    made = build(spec.parsed, lambda of, label: 1 << labels.index((of.name, label.name)))
    found = ambiguity(made)
    assume(made.start()[1] == 0 and not (found and found.open))  # a profile may not be so
    return spoken_in(
        spec, draw(vocabularies), seed=draw(st.integers(0, 10**6)), depth=draw(st.integers(1, 3)), leak=draw(leaks)
    )


def shaped(name: str, *, seed: int, depth: int) -> Language:
    """A language of a guard's shape. All mass is on the grammar: off it there would be too much to enumerate."""
    return spoken_in(*SHAPES[name], seed=seed, depth=depth, leak=0.0, longest=40)


shapes = st.one_of(
    st.builds(shaped, st.sampled_from(["json", "lines"]), seed=st.integers(0, 10**6), depth=st.integers(4, 7)),
    st.builds(shaped, st.just("free end"), seed=st.integers(0, 10**6), depth=st.integers(1, 3)),
)
