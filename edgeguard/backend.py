"""The seam between edgeguard and a model runtime: token prefixes in, log-probabilities out.

The caller builds a trie of plain values. The policy preamble is one `Prefix` that every prompt
extends; a record's prompt extends the preamble; a branch of the answer extends the prompt. An
adapter keeps the KV of living prefixes and may forget it: that costs time, never correctness.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Prefix:
    """A place in a token trie. Identity, not value: two equal runs are two places."""

    tokens: tuple[int, ...]
    parent: Prefix | None = None

    def path(self) -> tuple[int, ...]:
        """All token ids from the root to here."""
        runs = [p.tokens for p in self.lineage()]
        return tuple(t for run in reversed(runs) for t in run)

    def lineage(self) -> Iterator[Prefix]:
        """This prefix, its parent, … up to the root."""
        here: Prefix | None = self
        while here is not None:
            yield here
            here = here.parent


def root_and_record(prefix: Prefix) -> tuple[Prefix, Prefix | None]:
    """The first prefix of a path, and the second where there is one."""
    *_, root = lineage = list(prefix.lineage())
    return root, lineage[-2] if len(lineage) > 1 else None


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """What edgeguard needs of a tokenizer.

    pieces   the bytes each token writes, by token id; b"" for control and unused tokens
    control  control tokens by their name in the model file: {"<|im_end|>": 2, …}
    eog      ids that end an answer, as the model file declares them
    bos      id to begin every prompt with, or None where the model wants none
    encode   plain text → ids. No text ever becomes a control token here.
    """

    pieces: Sequence[bytes]
    control: Mapping[str, int]
    eog: frozenset[int]
    bos: int | None
    encode: Callable[[str], list[int]]

    def __len__(self) -> int:
        return len(self.pieces)


@dataclass(frozen=True)
class ModelInfo:
    """What a model says of itself. `sha256` is over the whole file, or over all the files of an ONNX graph."""

    path: Path
    sha256: str
    architecture: str
    name: str
    quantization: str
    n_ctx_train: int
    chat_template: str | None


@dataclass(frozen=True)
class Condition:
    """Another way to compute what is the same in exact arithmetic: what it changes is a model's noise floor.

    Nothing to score with. Together with another number of threads, these are what a deployment may change unseen.

    batch      tokens a call, at most; None: as many as the adapter takes
    attention  "flash": the fused kernel, whose sums have another order; GGUF only
    company    a stranger's tokens in every batch; GGUF only, an ONNX graph never sees two records at once
    """

    batch: int | None = None
    attention: Literal["plain", "flash"] = "plain"
    company: bool = False


class Backend(Protocol):
    """A model that can be asked for next-token log-probabilities."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The model's tokens."""
        ...

    @property
    def info(self) -> ModelInfo:
        """What the model file says of itself."""
        ...

    @property
    def n_ctx(self) -> int:
        """Tokens a prompt and its answer may have together."""
        ...

    def logprobs(self, prefixes: Sequence[Prefix]) -> Rows:
        """Next-token log-probabilities after each prefix: (n, n_vocab) float32, nats.

        Row i depends on `prefixes[i].path()` alone, up to the adapter's stated tolerance; the same
        calls give the same bits. Raises ContextOverflow when a path does not fit.
        """
        ...

    def logits(self, prefixes: Sequence[Prefix]) -> Rows:
        """What `logprobs` is the log-softmax of: (n, n_vocab) float32, the same law.

        Scores never need it. A baseline does that takes the size of logits for evidence (`evaluation.logtoku`).
        """
        ...

    def close(self) -> None:
        """Free the model. Calling it twice is fine."""
        ...


def log_softmax(logits: npt.NDArray[np.float32]) -> Rows:
    """(n, n_vocab) logits → (n, n_vocab) float32 log-probabilities, normalised in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide.astype(np.float32)


def available_cores() -> int:
    """Cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1
