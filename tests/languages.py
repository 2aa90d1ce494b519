"""Small answer languages over several tokenisations, for the laws of the tree and the estimators."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from brute_force import Model, Text, guided_model, random_model, texts_of, truth
from hypothesis import strategies as st

from edgeguard.answers import Answers
from edgeguard.backend import Prefix
from edgeguard.profile import AnswerGrammar, Category
from edgeguard.testing import FakeBackend, vocabulary

# Each way writes `safe`, `unsafe`, and codes 1, 10 and 2 differently; "x" is always outside the grammar.
TOKENISATIONS: dict[str, list[bytes]] = {
    "bytes": [b"s", b"u", b"S", b"1", b"0", b"2", b",", b"\n", b"x"],
    "whole codes": [b"s", b"u", b"S", b"\nS", b"1", b"10", b"2", b",S", b"x"],
    "split digits": [b"s", b"u", b"\n", b"S", b"1", b"0", b"2", b",S", b"x"],
    "merged separators": [b"s", b"u", b"u\nS", b"1", b"0,", b"1,", b"S", b"0", b"2", b"2,S", b"x"],
    "twins": [b"s", b" s", b"u", b" u", b"\nS", b"S1", b"\n", b"1", b"1", b"0", b"S2", b",", b"x"],
}
GRAMMARS: dict[str, AnswerGrammar] = {
    "list": AnswerGrammar(("",), ("s",), ("u",), "list", ("\n",), (",",), ("",)),
    "variants": AnswerGrammar(("", " "), ("s",), ("u",), "list", ("\n", ""), (",", ",\n"), ("", "\n")),
    "one": AnswerGrammar(("",), ("s",), ("u",), "one", ("\n",), (",",), ("",)),
    "verdict": AnswerGrammar(("",), ("s",), ("u",), "verdict", (), (), ("",)),
    "none": AnswerGrammar(("", "\n"), ("s",), ("u",), "none", (), (), ("",)),
}
CODES = ("S1", "S10", "S2")


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

    def answers(self) -> Answers:
        categories = tuple(Category(code, code, "", (code,)) for code in CODES)
        return Answers(self.grammar, categories, self.vocabulary, frozenset(self.stops))

    def backend(self) -> FakeBackend:
        """The prompt is the empty answer's beginning: paths begin with one marker token, id 0."""
        return FakeBackend(self.vocabulary, lambda path: self.model(path[1:]).astype(np.float32))

    def truth(self) -> tuple[np.ndarray, float]:
        pieces = [*self.pieces, b""]
        return truth(self._rounded, pieces, stops=self.stops, depth=self.depth + 1, texts=self.texts, n=len(CODES))

    def _rounded(self, path: tuple[int, ...]) -> np.ndarray:
        return self.backend().logprobs([Prefix((0, *path))])[0]


def language(grammar: str, tokens: str, *, seed: int, depth: int, leak: float | None) -> Language:
    pieces, spec = TOKENISATIONS[tokens], GRAMMARS[grammar]
    stops = {len(pieces)}
    longest = max(map(len, pieces)) * depth
    texts = texts_of(spec, [(c,) for c in CODES], longest + 4)
    if leak is None:
        model = random_model(len(pieces) + 1, stops, seed=seed, depth=depth, sharpness=2.0)
    else:
        model = guided_model([*pieces, b""], stops, texts, seed=seed, depth=depth, leak=leak)
    return Language(spec, pieces, model, depth, texts, vocabulary(pieces))


languages = st.builds(
    language,
    st.sampled_from(sorted(GRAMMARS)),
    st.sampled_from(sorted(TOKENISATIONS)),
    seed=st.integers(0, 10**6),
    depth=st.integers(1, 4),
    leak=st.sampled_from([None, 0.0, 0.01, 0.3]),
)
