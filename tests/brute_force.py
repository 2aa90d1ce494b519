"""The slow truth for small answer languages: all answers enumerated, labels read off their text by hand.

Nothing here uses edgeguard's automaton or tree, only the parsed pattern: it is what they are tested against.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgeguard.pattern import Choose, Either, Node, Open, Repeat, Say, Series
from edgeguard.pattern import Text as Literal

Model = Callable[[tuple[int, ...]], np.ndarray]  # token ids so far → (n_vocab,) log-probabilities


def answers(logprobs: Model, *, stops: set[int], depth: int) -> Iterator[tuple[tuple[int, ...], float]]:
    """Every answer (tokens without its stop) and its probability; the model must stop by `depth`."""
    todo: list[tuple[tuple[int, ...], float]] = [((), 1.0)]
    while todo:
        path, p = todo.pop()
        row = np.exp(logprobs(path).astype(np.float64))
        for token, q in enumerate(row):
            if token in stops:
                if q > 0:
                    yield path, p * q
            elif q > 0:
                assert len(path) < depth, "this model does not stop"
                todo.append(((*path, token), p * q))


@dataclass(frozen=True)
class Text:
    """One way through a pattern; `ends` are the labels it names, each with the byte its spelling ends at.

    open  anything may follow
    cut   the way goes on, but further than anyone looks
    """

    text: bytes
    ends: tuple[tuple[str, int], ...] = ()
    open: bool = False
    cut: bool = False

    def named_within(self, n_bytes: int) -> frozenset[str]:
        return frozenset(label for label, end in self.ends if end <= n_bytes)

    def may_become(self, read: bytes) -> bool:
        """Does this way begin with what was read, or does its free end hold the rest?"""
        return self.text.startswith(read) or (self.open and read.startswith(self.text))

    def may_be(self, read: bytes) -> bool:
        """Is this the whole answer?"""
        return not self.cut and (read.startswith(self.text) if self.open else read == self.text)


Names = Callable[[str, str], Sequence[str]]  # (field, label) → the labels that it names


class TooManyWays(Exception):
    """More than can be enumerated in a test."""


def ways(pattern: Node, names: Names, longest: int, *, most: int = 100_000) -> list[Text]:
    """All ways through a pattern, cut where they are longer than `longest` bytes. Raises TooManyWays."""

    def spell(head: Text, text: str, said: Sequence[str]) -> Text:
        spelled = head.text + text.encode()
        ends = tuple((label, len(spelled)) for label in said)
        return Text(spelled, (*head.ends, *ends), cut=len(spelled) > longest)

    def after(node: Node, heads: set[Text]) -> set[Text]:
        done, heads = {h for h in heads if h.cut}, {h for h in heads if not h.cut}
        match node:
            case Literal(text):
                found = {spell(h, text, ()) for h in heads}
            case Choose(field, labels):
                found = {
                    spell(h, form, names(field.name, la.name)) for h in heads for la in labels for form in la.forms
                }
            case Say(field, label):
                found = {spell(h, "", names(field.name, label.name)) for h in heads}
            case Open():
                found = {replace(h, open=True) for h in heads}
            case Either(parts):
                found = set().union(*(after(part, heads) for part in parts))
            case Series(parts):
                found = functools.reduce(lambda sofar, part: after(part, sofar), parts, heads)
            case Repeat(part, least, endless):
                found, new = (set() if least else set(heads)), heads
                while new := after(part, new) - found:
                    found |= new
                    if not endless or len(found) > most:
                        break
        if len(found) > most:
            raise TooManyWays
        return done | found

    return sorted(after(pattern, {Text(b"")}), key=lambda t: (t.text, t.ends))


def outcomes(
    logprobs: Model, pieces: Sequence[bytes], *, stops: set[int], depth: int, texts: Sequence[Text]
) -> Iterator[tuple[frozenset[str], float, bool]]:
    """Of every answer, what it names, its probability, and whether it is one of the grammar.

    An answer of the grammar names what it spells. Another one names what its longest beginning in the
    grammar spells for certain: in every way to go on.
    """

    @functools.cache
    def certain(read: bytes, whole: bool) -> frozenset[str] | None:
        found = [t.named_within(len(read)) for t in texts if (t.may_be(read) if whole else t.may_become(read))]
        return frozenset.intersection(*found) if found else None

    for path, mass in answers(logprobs, stops=stops, depth=depth):
        read = b"".join(pieces[t] for t in path)
        named = certain(read, True)
        inside = named is not None
        if named is None:
            named = frozenset()
            for head in itertools.accumulate((pieces[t] for t in path), initial=b""):
                if (so_far := certain(head, False)) is None:
                    break
                named = so_far
        yield named, mass, inside


def truth(
    logprobs: Model,
    pieces: Sequence[bytes],
    *,
    stops: set[int],
    depth: int,
    texts: Sequence[Text],
    labels: Sequence[str],
) -> tuple[np.ndarray, float]:
    """(n_labels,) probability that the answer names each label, and the mass of answers outside the grammar."""
    p, off = dict.fromkeys(labels, 0.0), 0.0
    for named, mass, inside in outcomes(logprobs, pieces, stops=stops, depth=depth, texts=texts):
        off += 0.0 if inside else mass
        for label in named:
            p[label] += mass
    return np.array(list(p.values())), off


def random_model(n_vocab: int, stops: set[int], *, seed: int, depth: int, sharpness: float) -> Model:
    """A model with no structure but a certain stop at `depth`: every path has its own random row."""

    def logprobs(path: tuple[int, ...]) -> np.ndarray:
        rng = np.random.default_rng([seed, *path])
        logits = rng.normal(scale=sharpness, size=n_vocab)
        if len(path) >= depth:
            logits = np.where([i in stops for i in range(n_vocab)], 0.0, -math.inf)
        with np.errstate(divide="ignore"):
            return logits - np.logaddexp.reduce(logits)

    return logprobs


def guided_model(
    pieces: Sequence[bytes], stops: set[int], texts: Sequence[Text], *, seed: int, depth: int, leak: float
) -> Model:
    """Like `random_model`, but all mass save a share `leak` goes where some text of the grammar can still follow."""
    base = random_model(len(pieces), stops, seed=seed, depth=depth, sharpness=2.0)

    @functools.cache
    def fitting(read: bytes) -> np.ndarray:
        return np.array(
            [
                any(t.may_be(read) if i in stops else t.may_become(read + piece) for t in texts)
                for i, piece in enumerate(pieces)
            ]
        )

    def logprobs(path: tuple[int, ...]) -> np.ndarray:
        row = base(path)
        if len(path) >= depth:
            return row
        fits = fitting(b"".join(pieces[t] for t in path))
        if leak == 0 and not fits.any():  # nothing but the end: beyond it there is too much to enumerate
            fits = np.array([i in stops for i in range(len(pieces))])
        if fits.any() and not fits.all():
            inside, outside = np.logaddexp.reduce(row[fits]), np.logaddexp.reduce(row[~fits])
            with np.errstate(divide="ignore"):
                row = np.where(fits, row - inside + np.log1p(-leak), row - outside + np.log(leak))
        return row

    return logprobs
