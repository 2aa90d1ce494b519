"""ONNX decoders through ONNX Runtime, their keys and values kept outside.

How a record is evaluated, and why so:

- The policy preamble (the root prefix) is evaluated once and its keys and values are kept; so are those
  of the record at hand. A call's past is one of the two, never that of another record. Where a record is asked several
  questions behind its text, those of the text are kept too, and the question is what the answers stand on.
- A graph made by `edgeguard convert` takes a mask of what each token sees. So a record and the branches of
  its answer are one row of one call, however long each branch is: nothing is padded. Layers with a sliding
  window have a mask of their own: of what a token sees, the tokens near it on its path.
- Other graphs take rows. A record is a row of its own, then its branches are rows on a copy of its past,
  the short ones with the short ones, filled up on the right. Kernels that cannot do that get one row.
- Records are never in one call. With a kernel that scales activations over all it is given (dynamic
  quantization) a record's scores would depend on its neighbours: bench/neighbours.py shows by how much.
"""

from __future__ import annotations

import contextlib
import io
import itertools
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from edgeguard.backend import (
    Condition,
    Device,
    ModelInfo,
    Prefix,
    Rows,
    RuntimeOptions,
    Stem,
    Vocabulary,
    by_record,
    context_for,
    log_softmax,
)
from edgeguard.errors import ContextOverflow, ModelError
from edgeguard.formats import onnx_graph
from edgeguard.formats.hashes import Digest
from edgeguard.formats.model_folder import read_settings
from edgeguard.formats.tokenizer import read_chat_template, read_vocabulary
from edgeguard.machine import available_cores

Keys = Mapping[str, Any]  # input name → OrtValue (batch, n_head_kv, past, head)
Ints = npt.NDArray[np.int64]

N_BATCH = 512  # tokens a call; longer prompts go in chunks, or attention over all at once takes gigabytes
ROOT_BYTES = 1 << 30  # of keys and values of preambles; a policy may have one for each question
N_CELLS = 1 << 14  # places of keys and values that the rows of one call have together

_CUDA = "CUDAExecutionProvider"
_INSTALL = "pip uninstall onnxruntime; pip install 'edgeguard[onnx-gpu]'"


@dataclass(frozen=True, eq=False)
class Memory:
    """Keys and values, the columns of them in which each prefix's tokens stand, and each column's position."""

    keys: Keys
    columns: Mapping[Prefix, slice]
    depth: Ints

    @property
    def size(self) -> int:
        """Columns."""
        return len(self.depth)

    @property
    def n_bytes(self) -> int:
        """Of all layers' keys and values."""
        return sum(int(np.prod(value.shape())) for value in self.keys.values()) * 4


@dataclass(frozen=True)
class _Row:
    """A row of a call: tokens after the record, and at which of them which result is wanted."""

    tokens: tuple[int, ...]
    wanted: Mapping[int, int]


class OnnxRuntime:
    """An ONNX decoder and its folder. Construct once, close once; for one thread at a time: whoever asks holds `lock`.

    Tolerance of the seam's law against plain recomputation of each path: 1e-3 nats for graphs of floats, 1e-2 where a
    norm behind each layer carries a last bit on (Gemma 2 and 3), 0.02 where keys and values are float16: their rounding
    turns a sum's last bit into a thousandth.
    Where activations are rounded to 8 bits, a changed order of a sum may tip a rounding. How far that moves a
    probability depends on the model and the processor's kernels: no further than twice what rounding moves it
    by, which the tests measure where they run, against the same weights with activations in floats.
    """

    def __init__(self, path: str | Path, options: RuntimeOptions = RuntimeOptions()) -> None:
        """Load a graph; its folder holds the rest. Raises ModelError."""
        self._n_batch = (options.condition or Condition()).batch or N_BATCH
        self._lock = RLock()
        file = Path(path)
        self._graph = onnx_graph.read_graph(file)
        self._path, folder = file, file.parent
        self._settings = read_settings(folder)
        self._interface = onnx_graph.read_interface(self._graph, head=self._settings.head)
        self._digest = Digest(self._graph.files)
        self._n_ctx = context_for(file, trained=self._settings.n_ctx, asked=options.context)
        self._vocabulary = read_vocabulary(folder, n_vocab=self._interface.n_vocab)
        self._chat_template = read_chat_template(folder)
        self._session: Any = _open_session(file, options.threads or available_cores(), options.device)
        self._device = "cuda" if self._session.get_providers()[0] == _CUDA else "cpu"
        self._roots: OrderedDict[Prefix, Memory] = OrderedDict()
        self._text: tuple[Prefix, Memory] | None = None  # the record, where it is asked several questions
        self._asked: tuple[Prefix, Memory] | None = None  # what the answers at hand stand on: a record, or a question

    @property
    def vocabulary(self) -> Vocabulary:
        """The model's tokens."""
        return self._vocabulary

    @property
    def n_ctx(self) -> int:
        """Tokens a prompt and its answer may have together."""
        return self._n_ctx

    @property
    def lock(self) -> AbstractContextManager[Any]:
        """Held by whoever asks for a record's rows."""
        return self._lock

    @property
    def info(self) -> ModelInfo:
        """What the files say of themselves. The first call may wait for their hash."""
        return ModelInfo(
            path=self._path,
            sha256=self._digest.hex(),
            architecture=self._settings.architecture,
            name=self._settings.name,
            quantization=onnx_graph.quantization(self._graph),
            n_ctx_train=self._settings.n_ctx,
            chat_template=self._chat_template,
        )

    def logprobs(self, prefixes: Sequence[Prefix]) -> Rows:
        """Next-token log-probabilities after each prefix: (n, n_vocab) float32, nats."""
        return log_softmax(self.logits(prefixes))

    def logits(self, prefixes: Sequence[Prefix]) -> Rows:
        """What they are the log-softmax of: (n, n_vocab) float32."""
        if self._session is None:
            raise ValueError("the model is closed")
        rows = np.empty((len(prefixes), self._interface.n_vocab), dtype=np.float32)
        for stem, wanted in by_record(prefixes):
            self._evaluate(stem, wanted, rows)
        return rows

    def close(self) -> None:
        """Free the model's memory. Calling it twice is fine."""
        self._session = self._text = self._asked = None
        self._roots.clear()

    # Evaluation

    @property
    def _packs(self) -> bool:
        """Whether a record and its branches go into one row."""
        return self._interface.mask == "tree" and not self._interface.one_row

    def _evaluate(self, stem: Stem, wanted: Mapping[Prefix, int], rows: Rows) -> None:
        """Write the rows of `wanted` prefixes, all on one stem, to rows[wanted[prefix]]."""
        longest = max(len(prefix.path()) for prefix in wanted)
        if longest > self._n_ctx:
            raise ContextOverflow(longest, self._n_ctx)
        if not all(prefix.tokens for prefix in wanted):
            raise ValueError("an empty prefix has no next-token row")
        if stem.record is None:
            self._keep_root(stem.root, wanted, rows)
            return
        past = self._bring(stem, rows)
        asked = stem.question or stem.record
        if self._asked is None or self._asked[0] is not asked or asked in wanted:
            self._asked = None  # its memory goes before the next one's comes
            first = between(asked, wanted) if self._packs else [asked]
            self._asked = asked, self._extend(past, first, wanted, rows, keep=True)
            wanted = {prefix: row for prefix, row in wanted.items() if prefix not in first}
        memory = self._asked[1]
        if wanted and self._packs:
            self._extend(memory, between(asked, wanted)[1:], wanted, rows, keep=False)
        elif wanted:
            self._branch(memory, asked, wanted, rows)

    def _bring(self, stem: Stem, rows: Rows) -> Memory:
        """The keys and values that the record stands on; those of its text, where it is asked several questions."""
        if stem.root not in self._roots:
            self._keep_root(stem.root, {}, rows)
        self._roots.move_to_end(stem.root)
        if stem.question is None or stem.record is None:
            self._text = None
            return self._roots[stem.root]
        if self._text is None or self._text[0] is not stem.record:
            self._text = self._asked = None
            self._text = stem.record, self._extend(self._roots[stem.root], [stem.record], {}, rows, keep=True)
        return self._text[1]

    def _keep_root(self, root: Prefix, wanted: Mapping[Prefix, int], rows: Rows) -> None:
        self._roots.pop(root, None)
        self._roots[root] = self._extend(self._nothing(), [root], wanted, rows, keep=True)
        while len(self._roots) > 1 and sum(memory.n_bytes for memory in self._roots.values()) > ROOT_BYTES:
            self._roots.popitem(last=False)

    def _nothing(self) -> Memory:
        shape = (1, self._interface.n_head_kv, 0, self._interface.head)
        empty = ort.OrtValue.ortvalue_from_numpy(np.empty(shape, self._interface.kv_type))
        return Memory({past: empty for past, _ in self._interface.past}, {}, np.empty(0, dtype=np.int64))

    def _extend(
        self, memory: Memory, new: Sequence[Prefix], wanted: Mapping[Prefix, int], rows: Rows, *, keep: bool
    ) -> Memory:
        """Evaluate prefixes, parents first, as one row after `memory`; in chunks where it is long.

        Where branches are not packed, `new` is a chain.
        """
        columns, size = dict(memory.columns), memory.size
        for prefix in new:
            columns[prefix] = slice(size, size + len(prefix.tokens))
            size += len(prefix.tokens)
        tokens = np.array([t for prefix in new for t in prefix.tokens], dtype=np.int64)
        ends = {columns[prefix].stop - 1 - memory.size: row for prefix, row in wanted.items() if prefix in new}
        depth = np.concatenate([memory.depth, depths(new)])
        keys = memory.keys
        for begin in range(0, len(tokens), self._n_batch):
            end = min(begin + self._n_batch, len(tokens))
            here = {at - begin: row for at, row in ends.items() if begin <= at < end}
            columns_end = memory.size + end
            visible, stand = seen(new, columns, slice(memory.size + begin, columns_end)), depth[None, :columns_end]
            more = keep or end < len(tokens)
            keys = self._run(keys, tokens[None, begin:end], stand, visible, [here], rows, keep=more)
        return Memory(keys, columns, depth)

    def _branch(self, memory: Memory, record: Prefix, wanted: Mapping[Prefix, int], rows: Rows) -> None:
        """Rows for the branches of a record, on copies of its past."""
        chains = _chains(record, wanted, whole=not self._interface.last_only)
        past = len(record.path())
        for group in _alike(chains, 1 if self._interface.one_row else max(1, N_CELLS // (past + 1))):
            longest = max(len(row.tokens) for row in group)
            tokens = np.zeros((len(group), longest), dtype=np.int64)
            seen = np.zeros((len(group), past + longest), dtype=np.bool_)
            for i, row in enumerate(group):
                tokens[i, : len(row.tokens)] = row.tokens
                seen[i, : past + len(row.tokens)] = True
            if len(group) == 1:
                seen = np.tri(longest, past + longest, past, dtype=np.bool_)
            depth = np.broadcast_to(np.arange(past + longest), (len(group), past + longest))
            keys = repeated(memory.keys, len(group))
            self._run(keys, tokens, depth, seen, [row.wanted for row in group], rows, keep=False)

    def _run(
        self,
        keys: Keys,
        tokens: Ints,
        depth: Ints,
        seen: npt.NDArray[np.bool_],
        wanted: Sequence[Mapping[int, int]],
        rows: Rows,
        *,
        keep: bool,
    ) -> Keys:
        """One call of the graph: tokens (batch, seq) after `keys`; the keys and values after it, if kept.

        depth   (batch, past + seq): the position of each column on its path
        seen    (seq, past + seq) of the one row, or (batch, past + seq) where the graph takes rows; (batch, seq,
                past + seq) of rows of a graph that takes a mask of each token
        wanted  for each row of tokens, place → row of the result
        """
        io = self._interface
        new = depth[:, -tokens.shape[1] :]
        binding = self._session.io_binding()
        for past, _ in io.past:
            binding.bind_ortvalue_input(past, keys[past])
        binding.bind_cpu_input("input_ids", np.ascontiguousarray(tokens))
        if io.position_ids:
            binding.bind_cpu_input("position_ids", np.ascontiguousarray(new, dtype=np.int64))
        if io.mask == "tree":
            views = seen.reshape(-1, 1, *seen.shape[-2:])
            binding.bind_cpu_input("attn_mask", np.ascontiguousarray(views))
            if io.window:
                near = views & _near(new, depth, io.window)[:, None]
                binding.bind_cpu_input("attn_mask_window", np.ascontiguousarray(near))
        else:  # of a lone row, the last token's view is the row's: all before it, all of it
            mask = seen if len(tokens) > 1 else seen[-1:]
            binding.bind_cpu_input("attention_mask", np.ascontiguousarray(mask, dtype=np.int64))
        places = [(i, at, row) for i, ends in enumerate(wanted) for at, row in ends.items()]
        if io.chosen:
            flat = [i * tokens.shape[1] + at for i, at, _ in places] or [0]
            binding.bind_cpu_input("positions", np.array(flat, dtype=np.int64))
        binding.bind_output("logits", "cpu")
        for _, present in io.past if keep else ():
            binding.bind_output(present, self._device)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # the runtime's exceptions have no base of their own
            raise ModelError(f"{self._path}: ONNX Runtime failed: {_first_line(error)}") from None
        logits, *after = binding.get_outputs()
        if places:
            self._read(logits.numpy(), places, rows)
        return {past: value for (past, _), value in zip(io.past, after, strict=True)} if keep else {}

    def _read(self, logits: npt.NDArray[Any], places: Sequence[tuple[int, int, int]], rows: Rows) -> None:
        if logits.ndim != (2 if self._interface.chosen else 3) or logits.shape[-1] != self._interface.n_vocab:
            raise ModelError(
                f"{self._path} gives logits of shape {logits.shape}, its graph says {self._interface.n_vocab} for each "
                "token; convert it again"
            )
        if not self._interface.chosen:
            last = self._interface.last_only
            try:
                logits = np.stack([logits[i, -1 if last else at] for i, at, _ in places])
            except IndexError:
                raise ModelError(
                    f"{self._path} gives logits for fewer tokens than it was given; convert it again"
                ) from None
        result = logits.astype(np.float32)
        if len(result) != len(places):
            raise ModelError(f"{self._path} gives logits for {len(result)} of {len(places)} tokens; convert it again")
        if np.isnan(result).any() or np.isposinf(result).any():
            raise ModelError(f"{self._path} computes no numbers: its weights are broken, download or convert it again")
        rows[[row for _, _, row in places]] = result


# Which tokens, and what they see


def between(record: Prefix, wanted: Iterable[Prefix]) -> list[Prefix]:
    """The record and all prefixes from it to those wanted, parents first."""
    need: dict[Prefix, None] = {record: None}
    for prefix in wanted:
        chain = list(itertools.takewhile(lambda p: p is not record, prefix.lineage()))
        need.update(dict.fromkeys(reversed(chain)))
    return list(need)


def seen(new: Sequence[Prefix], columns: Mapping[Prefix, slice], rows: slice) -> npt.NDArray[np.bool_]:
    """(rows, columns up to the last of them): each token sees its path, and itself.

    For one chunk of tokens at a time: those of a whole long text would be as many as the square of its length.
    """
    seen = np.zeros((rows.stop - rows.start, rows.stop), dtype=np.bool_)
    for prefix in new:
        own = columns[prefix]
        begin, end = max(own.start, rows.start), min(own.stop, rows.stop)
        if begin >= end:
            continue
        here = slice(begin - rows.start, end - rows.start)
        for ancestor in itertools.islice(prefix.lineage(), 1, None):
            seen[here, columns[ancestor]] = True
        seen[here, own.start : end] = np.tri(end - begin, end - own.start, begin - own.start, dtype=np.bool_)
    return seen


def _near(new: Ints, depth: Ints, window: int) -> npt.NDArray[np.bool_]:
    """(…, new tokens, columns): whether a column lies within a token's last `window` positions, its own included."""
    return new[..., :, None] - depth[..., None, :] < window


def depths(new: Sequence[Prefix]) -> Ints:
    """The position of each token of the prefixes on its own path."""
    begins = [len(prefix.path()) - len(prefix.tokens) for prefix in new]
    runs = [np.arange(begin, begin + len(prefix.tokens)) for begin, prefix in zip(begins, new, strict=True)]
    return np.concatenate([np.empty(0, dtype=np.int64), *runs])


def _chains(record: Prefix, wanted: Mapping[Prefix, int], *, whole: bool) -> list[_Row]:
    """Rows that hold all wanted prefixes: with `whole`, one row serves those along it too."""
    inner = {p for prefix in wanted for p in itertools.islice(prefix.lineage(), 1, None)} if whole else set()
    rows = []
    for leaf in wanted:
        if leaf in inner:
            continue
        chain = [leaf, *itertools.takewhile(lambda p: p is not record, itertools.islice(leaf.lineage(), 1, None))]
        chain.reverse()
        tokens: list[int] = []
        ends = {}
        for prefix in chain:
            tokens += prefix.tokens
            if prefix in wanted and (whole or prefix is leaf):
                ends[len(tokens) - 1] = wanted[prefix]
        rows.append(_Row(tuple(tokens), ends))
    return rows


def _alike(rows: Sequence[_Row], most: int) -> list[list[_Row]]:
    """Rows in groups of at most `most`, none twice as long as another of its group."""
    groups: list[list[_Row]] = []
    for row in sorted(rows, key=lambda row: len(row.tokens)):
        if not groups or len(groups[-1]) == most or len(row.tokens) > 2 * len(groups[-1][0].tokens):
            groups.append([])
        groups[-1].append(row)
    return groups


def repeated(keys: Keys, n: int) -> Keys:
    """Those of one row, for n rows."""
    if n == 1:
        return keys
    return {name: ort.OrtValue.ortvalue_from_numpy(np.repeat(v.numpy(), n, axis=0)) for name, v in keys.items()}


# Loading


def _provider(device: Device) -> str:
    """The execution provider to ask for. Raises ModelError where CUDA is asked for and not there."""
    available = ort.get_available_providers()
    if device == "cpu" or (device == "auto" and _CUDA not in available):
        return "CPUExecutionProvider"
    if _CUDA not in available:
        raise ModelError(f"CUDA needs onnxruntime-gpu; this onnxruntime has none: {_INSTALL}")
    return _CUDA


def _open_session(file: Path, threads: int, device: Device) -> Any:
    provider = _provider(device)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # Threads that spin while they wait take the cores from others, and halve the speed of a busy machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.use_deterministic_compute = True
    options.log_severity_level = 4  # its log goes to stderr, in colours; errors are raised
    ort.set_default_logger_severity(4)
    providers = [provider] if provider == "CPUExecutionProvider" else [provider, "CPUExecutionProvider"]
    said = _load_cuda() if provider == _CUDA else ""
    try:
        session = ort.InferenceSession(str(file), options, providers=providers)
    except Exception as error:  # the runtime's exceptions have no base of their own
        raise ModelError(f"{file} cannot be loaded by ONNX Runtime: {_first_line(error)}") from None
    if device == "cuda" and session.get_providers()[0] != _CUDA:  # it falls back without a word
        raise ModelError(
            "CUDA was asked for and could not be started: the driver, or CUDA's or cuDNN's libraries are missing, of "
            f"CUDA {getattr(ort, 'cuda_version', '') or '(the version that it was built with)'}; "
            f"pip install 'onnxruntime-gpu[cuda,cudnn]' brings the libraries{said and f'. ONNX Runtime says: {said}'}",
            kind="cuda_not_started",
        )
    return session


def _load_cuda() -> str:
    """Load the libraries of the nvidia-* packages, and return what it prints of those missing: stdout is for scores."""
    printed = io.StringIO()
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(printed):
            ort.preload_dlls()
    return "; ".join(printed.getvalue().split("\n")[:3]).strip("; ")[:500]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:500]
