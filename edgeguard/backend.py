"""The seam between edgeguard and a model runtime: token prefixes in, log-probabilities out.

The caller builds a trie of plain values. The policy preamble is one `Prefix` that every prompt
extends; a record's prompt extends the preamble; a branch of the answer extends the prompt. An
adapter keeps the KV of living prefixes and may forget it: that costs time, never correctness.

Beside it, what an adapter declares (`Runtime`) and what it is opened with (`RuntimeOptions`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from edgeguard.errors import ModelError

Device = Literal["cpu", "cuda", "auto"]
KvCache = Literal["f16", "f32"]
RuntimeName = Literal["llama", "onnx"]
Rows = npt.NDArray[np.float32]

MOST_TOGETHER = 128  # records of one batch: llama.cpp knows 256 sequences, and their answers need some too
_SOME = 8  # rows for which float64 numbers are in memory at once
EACH_TOGETHER = 256  # tokens for which there is room in a batch, a record; longer ones are fewer


@dataclass(frozen=True, eq=False)
class Prefix:
    """A place in a token trie. Identity, not value: two equal runs are two places.

    ask  whether it is the rest of one of several prompts about the record that it stands on: what is asked of one of
         them is evaluated as if the others were not there
    grows  whether later records are expected to begin like this one: an adapter may keep its keys and values for them
    """

    tokens: tuple[int, ...]
    parent: Prefix | None = None
    ask: bool = False
    grows: bool = False

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


@dataclass(frozen=True)
class Stem:
    """What the prefixes of one call stand on.

    root      the first prefix of their paths: the preamble
    record    the second; None for the root itself
    question  the third where a record is asked several, else None
    """

    root: Prefix
    record: Prefix | None = None
    question: Prefix | None = None


def by_record(prefixes: Sequence[Prefix]) -> list[tuple[Stem, dict[Prefix, int]]]:
    """The prefixes on each stem, each with its place in `prefixes`, in order.

    Raises ValueError for a prefix that is there twice.
    """
    if len(set(prefixes)) < len(prefixes):
        raise ValueError("the same prefix was passed twice in one call")
    groups: dict[tuple[Prefix | None, ...], dict[Prefix, int]] = {}
    for i, prefix in enumerate(prefixes):
        root, *after = reversed(list(prefix.lineage()))
        question = after[1] if len(after) > 1 and after[1].ask else None
        groups.setdefault((root, after[0] if after else None, question), {})[prefix] = i
    return [(Stem(root, *rest), wanted) for (root, *rest), wanted in groups.items() if root is not None]


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
    attention  "flash": the fused kernel, whose sums have another order
    company    a stranger's tokens in every batch
    """

    batch: int | None = None
    attention: Literal["plain", "flash"] = "plain"
    company: bool = False


@dataclass(frozen=True)
class RuntimeOptions:
    """How to open a model: the same names from the command line to the adapter.

    context     tokens a prompt and its answer may have together; None: the model's own, up to 8192
    threads     CPU threads; None: all cores this process may use
    device      "cuda" or an error; "auto": CUDA where the runtime was built with it
    gpu_layers  layers to put on the GPU, -1 for all; None: as `device` says
    kv_cache    precision of the keys and values; None: the runtime's own
    lora        an adapter's file, to apply beside the weights
    batch       tokens a call at most, and the step in which a record that begins like the one before is gone on with;
                None: the runtime's own, 512. Another number may change bits, as another number of threads may
    condition   another way to compute the same, to measure noise with
    runtime     `Runtime.short` of the one to compute with; None: the one that opens the file. A built-in guard has
                forms for each; None is there the first of its defaults whose runtime is installed
    together    records that go through the model in one batch, 2 to 128; None: each alone. A mode of its own: last
                digits depend on the records beside one. The same records in the same order have the same bits

    A runtime may not have all of them (`Runtime.takes`); one that it has not is refused, never passed over.
    """

    context: int | None = None
    threads: int | None = None
    device: Device = "cpu"
    gpu_layers: int | None = None
    kv_cache: KvCache | None = None
    lora: str | Path | None = None
    batch: int | None = None
    condition: Condition | None = None
    runtime: RuntimeName | None = None
    together: int | None = None

    def given(self) -> dict[str, Any]:
        """Those that are not at their default, by name."""
        return _changed(self)


@dataclass(frozen=True)
class Runtime:
    """What an adapter says of itself before its runtime is imported: a module in backends/ has one as `RUNTIME`.

    name        what people call it
    opens       what it opens: kinds that `formats.model_file` tells ("gguf", "onnx", "checkpoint"), and endings of a
                path (".pte")
    module      the Python module that `open` imports; package: what brings it, as pip knows it
    open        the model's path, options → the open model. Imports the runtime. Raises ModelError
    takes       the names of RuntimeOptions that mean something to it; "condition" and "runtime" go without saying
    conditions  ways it can compute the same in, for noise floors: a name for reports → the condition
    short       what `RuntimeOptions.runtime` calls it; "" for one that is asked for by its files alone
    """

    name: str
    opens: frozenset[str]
    module: str
    package: str
    open: Callable[[Path, RuntimeOptions], Backend]
    takes: frozenset[str]
    conditions: Mapping[str, Condition] = field(default_factory=dict)
    short: str = ""

    @property
    def is_installed(self) -> bool:
        """Whether its module can be found; it is not imported."""
        return find_spec(self.module) is not None

    def takes_all(self, options: RuntimeOptions) -> bool:
        """Whether all options given mean something to it, and it is the runtime that they name, if they name one."""
        return options.runtime in (None, self.short) and options.given().keys() <= {"condition", "runtime", *self.takes}

    def check(self, options: RuntimeOptions) -> None:
        """Refuse what this runtime has not: ModelError for an option, ValueError for a condition."""
        if options.together is not None and not 2 <= options.together <= MOST_TOGETHER:
            raise ModelError(
                f"{options.together} records together were asked for; expected 2 to {MOST_TOGETHER}, or None for each "
                "alone"
            )
        for name, value in options.given().items():
            if name == "runtime" and value != self.short:
                raise ModelError(
                    f"{self.name} was to open the model, runtime {value!r} was asked for; each opens files of its own "
                    "kind: leave it out, or convert the model",
                    kind="other_runtime",
                    value=value,
                )
            if name not in {"condition", "runtime", *self.takes}:
                raise ModelError(
                    f"{self.name} takes no {name}, {value} was given; leave it out",
                    kind=f"{name}_not_taken",
                    value=value,
                )
        can = {name for condition in self.conditions.values() for name in _changed(condition)}
        if options.condition is not None and (missing := _changed(options.condition).keys() - can):
            raise ValueError(f"{self.name} cannot be measured under another {', '.join(sorted(missing))}")


def _changed(value: RuntimeOptions | Condition) -> dict[str, Any]:
    """The fields of a dataclass that are not at their default."""
    return {f.name: getattr(value, f.name) for f in fields(value) if getattr(value, f.name) != f.default}


class Backend(Protocol):
    """A model that can be asked for next-token log-probabilities, by one thread at a time."""

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

    @property
    def lock(self) -> AbstractContextManager[Any]:
        """A lock of this model, reentrant. Whoever asks for a record's rows holds it from the first to the last.

        `Guard` does. An adapter makes one and never takes it.
        """
        ...

    def logprobs(self, prefixes: Sequence[Prefix]) -> Rows:
        """Next-token log-probabilities after each prefix: (n, n_vocab) float32, nats.

        The prefixes may be of several records. An adapter that was opened for records `together` evaluates those of a
        call in one batch, and row i depends, in its last digits, on the call and on those since its records came.
        Of any other, row i depends on `prefixes[i].path()` alone, up to the adapter's stated tolerance; the same
        calls give the same bits. Raises ContextOverflow when a path does not fit.
        """
        ...

    def logits(self, prefixes: Sequence[Prefix]) -> Rows:
        """What `logprobs` is the log-softmax of: (n, n_vocab) float32, the same law.

        Scores never need it. A baseline does that takes the size of logits for evidence (`evaluation.logtoku`).
        """
        ...

    def close(self) -> None:
        """Free the model. Calling it twice is fine; asking for rows after it is a ValueError."""
        ...


def log_softmax(logits: npt.NDArray[np.float32]) -> Rows:
    """(n, n_vocab) logits → (n, n_vocab) float32 log-probabilities, normalised in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide.astype(np.float32)


def log_softmax_by(threads: int, logits: npt.NDArray[np.float32]) -> Rows:
    """As `log_softmax`, bit for bit, of many rows in several threads and a few rows at a time."""
    result = np.empty(logits.shape, dtype=np.float32)

    def some(begin: int) -> None:
        result[begin : begin + _SOME] = log_softmax(logits[begin : begin + _SOME])

    begins = range(0, len(logits), _SOME)
    if threads == 1 or len(begins) == 1:
        for begin in begins:
            some(begin)
        return result
    with ThreadPoolExecutor(min(threads, len(begins))) as pool:
        for _ in pool.map(some, begins):
            pass
    return result


def room_of(backend: Backend) -> int:
    """Tokens that the records of one batch may have together, with their preambles and answers."""
    return int(getattr(backend, "room", backend.n_ctx))


def room_for(n_ctx: int, together: int | None) -> int:
    """The `room` of an adapter: the context's tokens, or more for many records. It bounds the memory of a batch."""
    return max(n_ctx, EACH_TOGETHER * (together or 0))


def context_for(path: Path, *, trained: int, asked: int | None) -> int:
    """Tokens of context to open a model with. `trained`: what it was trained for, 0 where it does not say.

    Raises ModelError for more than that: scores beyond it mean nothing.
    """
    if not trained and asked is None:
        raise ModelError(
            f"{path} does not say how long a context it was trained for; give a `context`", kind="no_context_length"
        )
    if asked is not None and asked < 1:
        raise ModelError(f"a context of {asked} tokens was asked for; it needs at least 1")
    if trained and asked is not None and asked > trained:
        raise ModelError(
            f"{path} was trained for {trained} tokens of context, {asked} were asked for; give a smaller `context`",
            kind="context_too_long",
            trained=trained,
        )
    return min(trained, 8192) if asked is None else asked
