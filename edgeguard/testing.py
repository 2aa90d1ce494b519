"""A fake and a reference implementation of the seam, for our tests and for yours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import RLock

import numpy as np
import numpy.typing as npt

from edgeguard.backend import Backend, ModelInfo, Prefix, Rows, Vocabulary, log_softmax
from edgeguard.errors import ContextOverflow

NextLogits = Callable[[tuple[int, ...]], npt.NDArray[np.float32]]


class FakeBackend:
    """A language model that is a function: token ids so far → (n_vocab,) logits. Counts its calls.

    >>> model = FakeBackend(vocabulary([b"safe", b"unsafe"]), lambda path: np.zeros(3))
    >>> np.exp(model.logprobs([Prefix((0,))]).astype(float)).round(3)
    array([[0.333, 0.333, 0.333]])
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        next_logits: NextLogits,
        *,
        n_ctx: int = 4096,
        chat_template: str | None = None,
    ) -> None:
        self.vocabulary, self.n_ctx, self.lock = vocabulary, n_ctx, RLock()
        self.info = ModelInfo(Path("fake.gguf"), "0" * 64, "fake", "fake", "F32", n_ctx, chat_template)
        self.calls: list[int] = []  # rows asked for, call by call
        self._next_logits = next_logits

    def logprobs(self, prefixes: Sequence[Prefix]) -> Rows:
        """(n, n_vocab) log-probabilities, nats."""
        return log_softmax(self.logits(prefixes))

    def logits(self, prefixes: Sequence[Prefix]) -> Rows:
        """(n, n_vocab), as the function gives them."""
        self.calls.append(len(prefixes))
        paths = [prefix.path() for prefix in prefixes]
        for path in paths:
            if len(path) > self.n_ctx:
                raise ContextOverflow(len(path), self.n_ctx)
        return np.stack([self._next_logits(path) for path in paths]).astype(np.float32)

    def close(self) -> None:
        """Nothing to free."""


class Recompute:
    """The slow reference: every path is sent whole, alone, with nothing kept from before.

    Law for every adapter `fast`: `fast.logprobs(ps)` equals `Recompute(fast).logprobs(ps)` within the
    tolerance that the adapter states.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.vocabulary, self.info, self.n_ctx, self.lock = (
            backend.vocabulary,
            backend.info,
            backend.n_ctx,
            backend.lock,
        )

    def logprobs(self, prefixes: Sequence[Prefix]) -> Rows:
        """(n, n_vocab) log-probabilities, nats."""
        return np.concatenate([self._backend.logprobs([Prefix(prefix.path())]) for prefix in prefixes])

    def logits(self, prefixes: Sequence[Prefix]) -> Rows:
        """(n, n_vocab) logits."""
        return np.concatenate([self._backend.logits([Prefix(prefix.path())]) for prefix in prefixes])

    def close(self) -> None:
        """Close what it stands on."""
        self._backend.close()


def vocabulary(
    pieces: Sequence[bytes], *, control: Sequence[str] = ("<end>",), eog: Sequence[str] = ("<end>",)
) -> Vocabulary:
    """A vocabulary of the given pieces and, after them, control tokens; text is encoded longest piece first.

    `encode` raises ValueError for text that the pieces cannot spell.
    """
    ids: dict[bytes, int] = {}
    for i, piece in enumerate(pieces):
        ids.setdefault(piece, i)
    names: Mapping[str, int] = {name: len(pieces) + i for i, name in enumerate(control)}
    longest = max(map(len, ids), default=0)

    def encode(text: str) -> list[int]:
        data, tokens = text.encode(), []
        while data:
            n = next((n for n in range(min(longest, len(data)), 0, -1) if data[:n] in ids), 0)
            if n == 0:
                raise ValueError(f"no piece of the fake vocabulary begins {data[:20]!r}")
            tokens.append(ids[data[:n]])
            data = data[n:]
        return tokens

    return Vocabulary(
        pieces=[*pieces, *(b"" for _ in names)],
        control=names,
        eog=frozenset(names[name] for name in eog),
        bos=None,
        encode=encode,
    )
