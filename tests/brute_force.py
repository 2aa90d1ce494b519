"""The slow truth for small answer languages: all answers enumerated, labels read off their text by hand.

Nothing here uses edgeguard's automaton or tree: it is what they are tested against.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

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
    """One answer text of a grammar; `ends` are the labels it names, each with the byte its spelling ends at."""

    text: bytes
    ends: tuple[tuple[int, int], ...]

    def named_within(self, n_bytes: int) -> frozenset[int]:
        return frozenset(label for label, end in self.ends if end <= n_bytes)


def texts_of(grammar, forms: Sequence[Sequence[str]], longest: int) -> list[Text]:
    """All answer texts of a grammar up to `longest` bytes. Labels: unsafe 0, the n categories, safe n + 1."""
    named_unsafe, named_safe = 0, 1 + len(forms)
    variants = [(form, i) for i, fs in enumerate(forms, 1) for form in fs]
    found: list[Text] = []

    def add(head: Text) -> None:
        found.extend(Text(head.text + end.encode(), head.ends) for end in grammar.end or ("",))

    def spell(head: Text, text: str, *labels: int) -> Text:
        end = len(head.text) + len(text.encode())
        return Text(head.text + text.encode(), (*head.ends, *((label, end) for label in labels)))

    for lead in grammar.lead or ("",):
        start = Text(lead.encode(), ())
        for safe in grammar.safe:
            add(spell(start, safe, named_safe))
        if grammar.labels == "verdict":
            for form, i in variants:
                add(spell(start, form, i, named_unsafe))
            continue
        for unsafe in grammar.unsafe:
            judged = spell(start, unsafe, named_unsafe)
            add(judged)
            if grammar.labels == "none":
                continue
            lists = [spell(spell(judged, b), f, i) for b in grammar.before_labels or ("",) for f, i in variants]
            while lists:
                head = lists.pop()
                if len(head.text) > longest:
                    continue
                add(head)
                if grammar.labels == "list":
                    lists += [spell(spell(head, sep), f, i) for sep in grammar.separator for f, i in variants]
    return [t for t in found if len(t.text) <= longest]


def truth(
    logprobs: Model, pieces: Sequence[bytes], *, stops: set[int], depth: int, texts: Sequence[Text], n: int
) -> tuple[np.ndarray, float]:
    """(n + 2,) probability that the answer names each label, and the mass of answers outside the grammar.

    An answer of the grammar names what it spells. Another one names what its longest beginning in the
    grammar spells for certain: in every way to go on.
    """
    whole: dict[bytes, list[frozenset[int]]] = {}
    for t in texts:
        whole.setdefault(t.text, []).append(t.named_within(len(t.text)))

    @functools.cache
    def certain(read: bytes) -> frozenset[int] | None:
        ways = [t.named_within(len(read)) for t in texts if t.text.startswith(read)]
        return frozenset.intersection(*ways) if ways else None

    p, off = np.zeros(n + 2), 0.0
    for path, mass in answers(logprobs, stops=stops, depth=depth):
        read = b"".join(pieces[t] for t in path)
        if read in whole:
            labels = frozenset.intersection(*whole[read])
        else:
            off += mass
            heads = itertools.accumulate((pieces[t] for t in path), initial=b"")
            labels = frozenset()
            for head in heads:
                if (named := certain(head)) is None:
                    break
                labels = named
        p[list(labels)] += mass
    return p, off


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
    whole = {t.text for t in texts}
    heads = {t[:i] for t in whole for i in range(len(t) + 1)}

    def logprobs(path: tuple[int, ...]) -> np.ndarray:
        row = base(path)
        if len(path) >= depth:
            return row
        read = b"".join(pieces[t] for t in path)
        fits = np.array([read in whole if i in stops else read + piece in heads for i, piece in enumerate(pieces)])
        if fits.any() and not fits.all():
            inside, outside = np.logaddexp.reduce(row[fits]), np.logaddexp.reduce(row[~fits])
            with np.errstate(divide="ignore"):
                row = np.where(fits, row - inside + np.log1p(-leak), row - outside + np.log(leak))
        return row

    return logprobs
