"""GGUF models through llama.cpp, on the ctypes layer of llama-cpp-python.

How a record is evaluated, and why so:

- A prompt's root prefix (the policy preamble) stays in sequence 0. A record's tokens are appended to
  it, in one batch with the first forced tokens of the answer, and cut off again when the next record
  comes. So a record always meets the same cells, the same batches and the same company: its own. With
  flash attention off that makes its scores bit-identical, whatever was scored before.
- Of a record that begins like the one before it, the full batches that both begin with stay: from nothing the very same
  tokens would be evaluated in the very same batches, into the same cells. So a conversation that grows costs what is
  new of it and what was in the last batch, and its bits are those of a record of its own. One that is said to grow is
  put aside into host memory when another comes, bytes unchanged.
- Where a record is asked several questions behind its text, the text is evaluated once, alone, and each question
  begins in the cell after it, the others cut off: its scores do not depend on which others are asked.
- Branches of one record's answer share its cells: each gets a sequence of its own that begins as a
  copy of its parent's (a label on cells, no data moves), and all branches of a call are one batch.
- Another root (a policy about the other role) swaps its KV with host memory, bytes unchanged.
- The context begins small and is replaced by a larger one, bytes unchanged, when a record needs it: its keys, values
  and scores of attention are most of what a process takes where the model is small, and few texts fill it.
"""

from __future__ import annotations

import ctypes
import itertools
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np

from edgeguard import llama_library
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
    room_for,
)
from edgeguard.errors import ContextOverflow, ModelError
from edgeguard.formats import gguf
from edgeguard.formats.hashes import Digest
from edgeguard.machine import available_cores

lc = llama_library.load()

N_BATCH = 512  # tokens a decode; longer prompts go in chunks
N_SEQ = 64  # sequences: one record's branches alive at once; llama.cpp allows 256, its output buffer grows with them
ROOT_BYTES = (
    1 << 30
)  # of preambles kept in host memory besides the current one; a policy may have one for each question
ASIDE_BYTES = 256 << 20  # of records that grow, kept in host memory while others are scored
FIRST_ROOM = 1024  # tokens a context begins with; it doubles
_COMPANY = 24  # tokens of a stranger in a batch, where noise is measured
GGML_TYPE = {"f32": 0, "f16": 1}
MOST_SEQ = 256  # sequences that llama.cpp knows
_UNKNOWN, _UNUSED, _CONTROL = 1, 2, 8  # enum llama_token_attr


@dataclass(frozen=True)
class _Held:
    """Where a prefix's tokens stand in the KV memory: sequence `seq`, positions up to `end`."""

    seq: int
    end: int


@dataclass
class BatchToken:
    """One token of a batch. `row` is where its next-token row goes, or -1."""

    token: int
    pos: int
    seqs: list[int]
    row: int = -1


class LlamaCpp:
    """A GGUF model. Construct once, close once; for one thread at a time: whoever asks holds `lock`.

    Tolerance of the seam's law against plain recomputation of each path: for F32 weights 1e-3 nats with F32 KV,
    1e-2 where a norm behind each layer carries a last bit on (Gemma 2 and 3), 0.02 with F16 KV, where a sum's last bit
    may tip a key to its next float16. For quantized weights llama.cpp rounds activations to 8 bits, and the company in
    a batch (a record's own branches, always the same) may tip a rounding. How far that moves a probability depends on
    the model and the processor's kernels: no further than twice what rounding moves it by, which the tests measure
    where they run, against the same weights as F32.
    """

    def __init__(self, path: str | Path, options: RuntimeOptions = RuntimeOptions()) -> None:
        """Load a model. Raises ModelError.

        A LoRA is a GGUF file too, applied beside the weights; the model's sha256 is then that of both files.
        """
        self._path = Path(path)
        header = gguf.read_header(self._path)
        gguf.check_model(header)
        gguf.check_memory(header)
        lora = None if options.lora is None else Path(options.lora)
        if lora is not None:
            gguf.check_adapter(gguf.read_header(lora), header)
        self._digest = Digest([self._path] if lora is None else [self._path, lora])
        self._condition, self._asked_batch = options.condition or Condition(), options.batch
        self._n_together, self._sequences = options.together, sequences_for(options.together)
        self._lock = RLock()
        self._model: Any = None
        self._ctx: Any = None  # of `_room` tokens, at most `_n_ctx`
        self._batch: Any = None
        try:
            layers = _gpu_layers(options.device, options.gpu_layers)
            self._on_gpu = layers != 0
            self._load(layers)
            trained = int(lc.llama_model_n_ctx_train(self._model))
            self._n_ctx = context_for(self._path, trained=trained, asked=options.context)
            self._threads, self._kv_cache = options.threads or available_cores(), options.kv_cache or "f16"
            self._lora = None if lora is None else self._load_adapter(lora)
            # Some models turn positions by other factors in a long context. And behind a sliding window llama.cpp
            # writes over the cells of a memory that was taken over. Both have all their room from the beginning.
            by_length = any(tensor.name.startswith("rope_factors_") for tensor in header.tensors)
            whole = by_length or self._window > 0
            self._most = self._n_ctx if by_length else room_for(self._n_ctx, options.together)
            self._room = self._most if whole else min(self._most, FIRST_ROOM)
            n_vocab = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(self._model))
            self._company = [7 * i % n_vocab for i in range(_COMPANY if self._condition.company else 0)]
            self._ctx = self._context(self._room)
            self._memory = lc.llama_get_memory(self._ctx)
            self._batch = lc.llama_batch_init(self._longest_batch, 0, self._sequences)
        except BaseException:
            self.close()
            raise
        self._vocabulary = _read_vocabulary(lc.llama_model_get_vocab(self._model), self._encode)
        self._header, self._n_ctx_train = header, trained
        self._root: Prefix | None = None  # in sequence 0 from position 0
        self._stem: Stem | None = None  # what the other held prefixes stand on
        self._held: dict[Prefix, _Held] = {}
        self._tip: dict[int, int] = {}  # sequence → positions taken
        self._cells = 0
        # Tokens of the record whose keys and values stand in the cells behind the root, those or none.
        self._record: tuple[int, ...] = ()
        self._kept = 0  # of the record that is evaluated next: tokens that are there already
        self._growing = False  # whether that record is said to grow
        # (root, tokens of the record) → both, as `_save` has them
        self._aside: OrderedDict[tuple[Prefix, tuple[int, ...]], ctypes.Array[ctypes.c_uint8]] = OrderedDict()
        self._saved_roots: OrderedDict[Prefix, ctypes.Array[ctypes.c_uint8]] = OrderedDict()

    @property
    def vocabulary(self) -> Vocabulary:
        """The model's tokens."""
        return self._vocabulary

    @property
    def n_ctx(self) -> int:
        """Tokens a prompt and its answer may have together."""
        return self._n_ctx

    @property
    def room(self) -> int:
        """Tokens that all that is in the memory at once may have together."""
        return self._most

    @property
    def lock(self) -> AbstractContextManager[Any]:
        """Held by whoever asks for a record's rows."""
        return self._lock

    @property
    def info(self) -> ModelInfo:
        """What the file says of itself. The first call may wait for the file's hash."""
        metadata = self._header.metadata
        return ModelInfo(
            path=self._path,
            sha256=self._digest.hex(),
            architecture=str(metadata.get("general.architecture", "")),
            name=str(metadata.get("general.name", "") or metadata.get("general.basename", "")),
            quantization=gguf.quantization(self._header),
            n_ctx_train=self._n_ctx_train,
            chat_template=gguf.chat_template(self._header),
        )

    def logprobs(self, prefixes: Sequence[Prefix]) -> Rows:
        """Next-token log-probabilities after each prefix: (n, n_vocab) float32, nats."""
        return log_softmax(self.logits(prefixes))

    def logits(self, prefixes: Sequence[Prefix]) -> Rows:
        """What they are the log-softmax of: (n, n_vocab) float32."""
        self._check_open()
        rows = np.empty((len(prefixes), len(self._vocabulary)), dtype=np.float32)
        for stem, wanted in by_record(prefixes):
            self._evaluate(stem, wanted, rows)
        return rows

    def close(self) -> None:
        """Free the model's memory. Calling it twice is fine."""
        if self._batch is not None:
            lc.llama_batch_free(self._batch)
        if self._ctx is not None:
            lc.llama_free(self._ctx)
        if self._model is not None:
            lc.llama_model_free(self._model)
        self._batch = self._ctx = self._model = None

    # Loading

    def _load(self, gpu_layers: int) -> None:
        _quiet()
        lc.llama_backend_init()
        params = model_params()
        params.n_gpu_layers = gpu_layers
        if (
            not gpu_layers
        ):  # a build for a GPU would multiply large batches there, and keep its memory there, all the same
            self._no_devices = (ctypes.c_void_p * 1)(None)
            params.devices = ctypes.cast(self._no_devices, ctypes.c_void_p)
        _last_words.clear()
        self._model = lc.llama_model_load_from_file(str(self._path).encode(), params)
        if not self._model:
            self._model = None
            said, full = _said(), self._on_gpu and "memory" in _said()
            more = "; the GPU has too little memory free for the layers that are put on it" if full else ""
            raise ModelError(
                f"{self._path} cannot be loaded by llama.cpp: {said}{more}", kind="no_room_on_gpu" if full else None
            )
        if lc.llama_model_is_recurrent(self._model) or lc.llama_model_is_hybrid(self._model):
            raise gguf.uncuttable(self._path)
        self._window = int(lc.llama_model_n_swa(self._model))  # tokens; 0 for full attention
        if lc.llama_model_has_encoder(self._model) or not lc.llama_model_has_decoder(self._model):
            raise ModelError(f"{self._path} is not a decoder-only model; edgeguard scores generative guard models")

    def _context(self, room: int) -> Any:
        """A context of so many tokens, the adapter applied. Raises ModelError."""
        params = lc.llama_context_default_params()
        # A batch smaller than the number of sequences aborts the process, and so does a context: ours may be smaller.
        params.n_ctx = max(room, self._sequences)
        params.n_batch = params.n_ubatch = min(self._longest_batch, max(self._most, self._sequences))
        params.n_seq_max = self._sequences
        params.n_threads = params.n_threads_batch = self._threads
        # One pool of cells for all sequences: seq_cp of a part of a sequence aborts the process otherwise.
        params.kv_unified = True
        # All tokens are kept, those that a sliding window has passed too: cutting a record off again needs them.
        params.swa_full = True
        # Flash attention changes the order of float sums with the company in the batch: bits would differ.
        flash = self._condition.attention == "flash"
        params.flash_attn_type = lc.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash else lc.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.type_k = params.type_v = GGML_TYPE[self._kv_cache]
        params.no_perf = True
        _last_words.clear()
        context = lc.llama_init_from_model(self._model, params)
        if not context:
            raise ModelError(
                f"{self._path}: no context of {room} tokens: {_said()}; give a smaller `context`"
                + ("" if self._n_together is None else ", or have fewer records `together`"),
                kind="no_room_for_context",
            )
        if self._lora is not None:
            given, scales = (lc.llama_adapter_lora_p_ctypes * 1)(self._lora), (ctypes.c_float * 1)(1.0)
            if lc.llama_set_adapters_lora(context, given, 1, scales) != 0:
                lc.llama_free(context)
                raise ModelError(f"{self._path}: llama.cpp cannot apply the adapter: {_said()}")
        return context

    def _load_adapter(self, path: Path) -> Any:
        """A LoRA beside the model. It is freed with the model."""
        _last_words.clear()
        loaded = lc.llama_adapter_lora_init(self._model, str(path).encode())
        if not loaded:
            raise ModelError(f"{path} cannot be applied to {self._path} by llama.cpp: {_said()}")
        return loaded

    def _make_room(self, n_tokens: int) -> None:
        """Have cells for so many more tokens, at most `_most` in all. What is in the memory stays, bit for bit."""
        needed = min(self._most, self._cells + n_tokens + len(self._company))
        if needed <= self._room:
            return
        room = self._room
        while room < needed:
            room *= 2
        room = min(self._most, room)
        larger = self._context(room)
        size = lc.llama_state_get_size(self._ctx)
        state = (ctypes.c_uint8 * size)()
        # All cells are in use from the first on, without a gap, so they are put back where they were.
        taken = lc.llama_state_set_data(larger, state, lc.llama_state_get_data(self._ctx, state, size))
        if not taken:
            lc.llama_free(larger)
            raise ModelError(f"{self._path}: llama.cpp did not take its memory over into a larger context")
        lc.llama_free(self._ctx)
        self._ctx, self._memory, self._room = larger, lc.llama_get_memory(larger), room

    def _encode(self, text: str) -> list[int]:
        """Plain text → token ids; the spelling of a control token stays text."""
        self._check_open()
        data = text.encode()
        room = len(data) + 8  # no token is shorter than a byte, but for a space that some vocabularies put first
        ids = (lc.llama_token * room)()
        n = lc.llama_tokenize(lc.llama_model_get_vocab(self._model), data, len(data), ids, room, False, False)
        if n < 0:
            raise ModelError(f"llama.cpp could not tokenise a text of {len(data)} bytes (code {n})")
        return list(ids[:n])

    def _check_open(self) -> None:
        if self._model is None:  # llama.cpp would read freed memory, and end the process
            raise ValueError("the model is closed")

    @property
    def _n_seq(self) -> int:
        """Sequences for a record's branches; the last one is the stranger's."""
        return self._sequences - bool(self._company)

    @property
    def _n_batch(self) -> int:
        """Tokens a decode."""
        asked = self._condition.batch or self._asked_batch or self._longest_batch
        return min(asked, min(self._longest_batch, self._most) - len(self._company))

    @property
    def _longest_batch(self) -> int:
        """Tokens a decode at most, where nobody says less."""
        return N_BATCH

    # Evaluation

    def _evaluate(self, stem: Stem, wanted: dict[Prefix, int], rows: Rows) -> None:
        """Write the rows of `wanted` prefixes, all on one stem, to rows[wanted[prefix]]."""
        longest = max(sum(len(p.tokens) for p in prefix.lineage()) for prefix in wanted)
        if longest > self._n_ctx:
            raise ContextOverflow(longest, self._n_ctx)
        if stem.record is None:
            self._clear()
            self._decode([stem.root], wanted, rows)
            self._root = stem.root
            return
        if self._stem is None or self._stem.record is not stem.record:
            self._put_aside(stem)
            self._bring_root(stem.root)
            self._take_up(stem.record)
        base = stem.root
        if stem.question is not None:
            base = stem.record
            if self._stem is None or self._stem.record is not base or self._stem.question is None:
                self._cut_to(stem.root, before=base)
                self._decode([base], {}, rows)
        if self._stem != stem or any(prefix in self._held for prefix in wanted):
            self._cut_to(base, before=stem.record)
            self._stem = stem
        new = self._missing(wanted)
        if not self._fits(new):
            self._cut_to(base, before=stem.record)
            new = self._missing(wanted)
        if self._fits(new):
            self._decode(new, wanted, rows)
            return
        for prefix, row in wanted.items():  # more branches than there is room for: one after the other
            self._cut_to(base, before=stem.record)
            self._decode(self._missing([prefix]), {prefix: row}, rows)

    def _bring_root(self, root: Prefix) -> None:
        """Make `root` the content of sequence 0, from host memory where it was there before."""
        if self._root is root:
            return
        if self._root is not None and self._can_be_saved(self._root):
            self._cut_to(self._root)
            self._saved_roots[self._root] = self._save()
            while sum(map(len, self._saved_roots.values())) > ROOT_BYTES:
                self._saved_roots.popitem(last=False)
        self._clear()
        if root in self._saved_roots:
            saved = self._saved_roots.pop(root)
            self._make_room(len(root.tokens))
            if not lc.llama_state_seq_set_data(self._ctx, saved, len(saved), 0):
                raise ModelError(f"{self._path}: llama.cpp did not take back a saved preamble")
            self._hold(root, 0, 0)
        else:
            self._decode([root], {}, np.empty((0, 0), dtype=np.float32))
        self._root = root

    def _can_be_saved(self, root: Prefix) -> bool:
        """Whether what is taken back stands in the same cells as before.

        A state leaves out the tokens that a sliding window has passed: no later token sees them, but sums over the
        cells that are left are rounded otherwise. A longer preamble is evaluated again.
        """
        return bool(root.tokens) and (self._window == 0 or len(root.tokens) <= self._window)

    def _save(self) -> ctypes.Array[ctypes.c_uint8]:
        size = lc.llama_state_seq_get_size(self._ctx, 0)
        saved: ctypes.Array[ctypes.c_uint8] = (ctypes.c_uint8 * size)()
        lc.llama_state_seq_get_data(self._ctx, saved, size, 0)
        return saved

    def _clear(self) -> None:
        lc.llama_memory_clear(self._memory, False)
        self._root = self._stem = None
        self._held, self._tip, self._cells = {}, {}, 0
        self._record, self._kept, self._growing = (), 0, False

    def _put_aside(self, stem: Stem) -> None:
        """Copy the record that stands here, where it grows and the one to come is not what it has grown to."""
        n = len(self._record) - len(self._record) % self._n_batch
        if not self._growing or self._root is None or self._window or not n:
            return
        assert stem.record is not None
        if stem.root is self._root and self._in_common(stem.record.tokens) + self._n_batch >= n:
            return
        record = self._record[:n]
        self._stand(self._root, record)
        for key in [key for key in self._aside if key[0] is self._root and key[1] == record[: len(key[1])]]:
            del self._aside[key]  # what it was before
        self._aside[self._root, record] = self._save()
        while sum(map(len, self._aside.values())) > ASIDE_BYTES:
            self._aside.popitem(last=False)

    def _take_up(self, record: Prefix) -> None:
        """Bring back a record that was put aside, where this one begins with more of it than of what stands here."""
        assert self._root is not None
        best, most = None, self._in_common(record.tokens)
        for key in self._aside:
            if key[0] is self._root and (same := self._whole_in_common(key[1], record.tokens)) > most:
                best, most = key, same
        if best is None:
            return
        self._aside.move_to_end(best)
        saved, (root, tokens) = self._aside[best], best
        self._clear()
        self._make_room(len(root.tokens) + len(tokens))
        if not lc.llama_state_seq_set_data(self._ctx, saved, len(saved), 0):
            raise ModelError(f"{self._path}: llama.cpp did not take back a record that was put aside")
        self._hold(root, 0, 0)
        self._root, self._record = root, tokens

    def _stand(self, root: Prefix, record: tuple[int, ...]) -> None:
        """Have the root and so much of the record that stands behind it in the memory, and nothing else."""
        end = self._held[root].end
        lc.llama_memory_seq_keep(self._memory, 0)
        if not lc.llama_memory_seq_rm(self._memory, 0, end + len(record), -1):
            raise ModelError(f"{self._path}: llama.cpp cannot cut this model's memory; edgeguard needs that")
        self._held, self._tip, self._cells = {root: self._held[root]}, {0: end}, end
        self._stem, self._record, self._growing = None, record, False

    def _cut_to(self, base: Prefix, *, before: Prefix | None = None) -> None:
        """Drop all but the root, or the root and the record. Always the same cells are free after it.

        before  the record that is evaluated next: what it begins with stays too
        """
        kept = {prefix: self._held[prefix] for prefix in base.lineage()}
        end = kept[base].end
        self._kept = 0
        if before is not base:
            self._kept = 0 if before is None else self._in_common(before.tokens)
            self._record = self._record[: self._kept]
        lc.llama_memory_seq_keep(self._memory, 0)
        if not lc.llama_memory_seq_rm(self._memory, 0, end + self._kept, -1):
            raise ModelError(f"{self._path}: llama.cpp cannot cut this model's memory; edgeguard needs that")
        self._held, self._tip, self._cells = kept, {0: end}, end

    def _in_common(self, tokens: Sequence[int]) -> int:
        """Of a record: tokens in full batches that stand there. A last token's batch is none: its row is wanted."""
        # With company a batch holds others too. With a sliding window, a larger context leaves out cells that it takes
        # over (see `_can_be_saved`): what stays would lie otherwise than from nothing.
        if self._company or self._window:
            return 0
        return self._whole_in_common(self._record, tokens)

    def _whole_in_common(self, before: Sequence[int], tokens: Sequence[int]) -> int:
        most = max(0, min(len(before), len(tokens)) - 1)
        same = next((i for i in range(most) if before[i] != tokens[i]), most)
        return same - same % self._n_batch

    def _missing(self, prefixes: Iterable[Prefix]) -> list[Prefix]:
        """Prefixes not held, parents first: those given, and those they stand on."""
        need: dict[Prefix, None] = {}
        for prefix in prefixes:
            chain = list(itertools.takewhile(lambda p: p not in self._held, prefix.lineage()))
            need.update(dict.fromkeys(reversed(chain)))
        return list(need)

    def _fits(self, new: Sequence[Prefix]) -> bool:
        n_tokens = sum(len(p.tokens) for p in new)
        return self._cells + n_tokens + len(self._company) <= self._most and len(self._tip) + len(new) <= self._n_seq

    def _hold(self, prefix: Prefix, seq: int, begin: int) -> None:
        end = begin + len(prefix.tokens)
        self._held[prefix] = _Held(seq, end)
        self._tip[seq] = end
        self._cells += len(prefix.tokens)

    def _decode(self, new: Sequence[Prefix], wanted: Mapping[Prefix, int], rows: Rows) -> None:
        """Evaluate prefixes, parents first, and write the rows of those wanted."""
        self._make_room(sum(len(prefix.tokens) for prefix in new))
        entries: dict[Prefix, list[BatchToken]] = {}
        for prefix in new:
            seq, begin = self._place(prefix, entries)
            there = self._kept if self._is_record(prefix) else 0
            entries[prefix] = [BatchToken(t, begin + i, [seq]) for i, t in enumerate(prefix.tokens) if i >= there]
            self._hold(prefix, seq, begin)
            if prefix in wanted:
                if not prefix.tokens:
                    raise ValueError("an empty prefix has no next-token row")
                entries[prefix][-1].row = wanted[prefix]
        batch = [entry for run in entries.values() for entry in run]
        for at in range(0, len(batch), self._n_batch):
            self._decode_batch(batch[at : at + self._n_batch], rows)
        self._kept = 0
        for prefix in new:
            if self._is_record(prefix):
                self._record, self._growing = prefix.tokens, prefix.grows

    def _is_record(self, prefix: Prefix) -> bool:
        return prefix.parent is not None and prefix.parent is self._root

    def _place(self, prefix: Prefix, entries: Mapping[Prefix, list[BatchToken]]) -> tuple[int, int]:
        """The sequence and first position of a prefix: behind its parent, or on a copy of its path."""
        if prefix.parent is None:
            return 0, 0
        parent = self._held[prefix.parent]
        if self._tip[parent.seq] == parent.end:
            return parent.seq, parent.end
        seq = self._free_sequence()
        for step in itertools.islice(prefix.lineage(), 1, None):
            if step not in entries:  # in the memory already: a copy of the label on its cells
                held = self._held[step]
                lc.llama_memory_seq_cp(self._memory, held.seq, seq, 0, held.end)
                break
            for entry in entries[step]:  # in this very batch: its cells will carry both
                entry.seqs.append(seq)
            if self._kept and self._is_record(step):
                begin = self._held[step].end - len(step.tokens)
                lc.llama_memory_seq_cp(self._memory, 0, seq, begin, begin + self._kept)
        return seq, parent.end

    def _free_sequence(self) -> int:
        return len(self._tip)  # they are given out in order and freed all at once

    def _decode_batch(self, entries: Sequence[BatchToken], rows: Rows) -> None:
        batch = self._batch
        stranger = [BatchToken(token, i, [self._sequences - 1]) for i, token in enumerate(self._company)]
        entries = [*entries, *stranger]
        batch.n_tokens = len(entries)
        for i, entry in enumerate(entries):
            batch.token[i], batch.pos[i] = entry.token, entry.pos
            batch.n_seq_id[i] = len(entry.seqs)
            for j, seq in enumerate(entry.seqs):
                batch.seq_id[i][j] = seq
            batch.logits[i] = entry.row >= 0
        _last_words.clear()
        code = lc.llama_decode(self._ctx, batch)
        if code != 0:
            self._clear()
            raise ModelError(f"{self._path}: llama_decode failed with code {code}: {_said()}")
        if stranger:
            lc.llama_memory_seq_rm(self._memory, self._sequences - 1, -1, -1)
        where = [entry.row for entry in entries if entry.row >= 0]
        if where:
            logits = np.ctypeslib.as_array(lc.llama_get_logits(self._ctx), shape=(len(where), rows.shape[1]))
            rows[where] = logits
            highest = logits.max(axis=1)  # NaN where one is NaN; one look at the numbers, of which there are many
            if np.isnan(highest).any() or np.isposinf(highest).any():
                raise ModelError(f"{self._path} computes no numbers: its weights are broken, download it again")


def sequences_for(together: int | None) -> int:
    """How many a context has: one for each branch, of one record or of all that are in a batch, four each."""
    return N_SEQ if together is None else min(MOST_SEQ, max(N_SEQ, 4 * together))


def _gpu_layers(device: Device, asked: int | None) -> int:
    """Layers for the GPU, -1 for all. Raises ModelError where a GPU is asked for and llama.cpp knows none."""
    wanted = asked if asked is not None else {"cpu": 0, "cuda": -1, "auto": -1}[device]
    if not wanted or lc.llama_supports_gpu_offload():
        return wanted
    if (device == "cuda" or asked) and b"CUDA" in lc.llama_print_system_info():
        raise ModelError(
            "llama.cpp was built with CUDA and finds no GPU: is the driver there, and new enough for that CUDA "
            "(nvidia-smi), and is CUDA_VISIBLE_DEVICES not empty?",
            kind="cuda_not_started",
        )
    if device == "cuda" or asked:
        raise ModelError(
            "this llama-cpp-python was built without GPU support; reinstall it: "
            "CMAKE_ARGS=-DGGML_CUDA=on pip install --force-reinstall --no-cache-dir llama-cpp-python"
        )
    return 0


def model_params() -> Any:
    """llama.cpp's own parameters for loading a model, but that it multiplies no matrix in AMX tiles.

    GCC up to 12 drops stores to the tile configuration that only `_tile_loadconfig` reads, so a llama.cpp compiled
    with it on such a processor ends by SIGSEGV at its first product. The tiles live in the extra buffer types;
    without those the same weights are multiplied with AVX-512. Whoever opens a model by llama.cpp, opens it with these.
    """
    params = lc.llama_model_default_params()
    params.use_extra_bufts = b"AMX_INT8 = 1" not in lc.llama_print_system_info()
    return params


def _read_vocabulary(vocab: Any, encode: Callable[[str], list[int]]) -> Vocabulary:
    n = lc.llama_vocab_n_tokens(vocab)
    pieces: list[bytes] = []
    control: dict[str, int] = {}
    room = 1 << 16
    buffer: Any = ctypes.create_string_buffer(room)
    for i in range(n):
        attributes = lc.llama_vocab_get_attr(vocab, i)
        if attributes & (_CONTROL | _UNKNOWN | _UNUSED):
            pieces.append(b"")
            if not attributes & _UNUSED:
                control[lc.llama_vocab_get_text(vocab, i).decode(errors="replace")] = i
            continue
        length = lc.llama_token_to_piece(vocab, i, buffer, room, 0, False)
        pieces.append(buffer[: max(0, length)])  # a slice is half of what `string_at` takes; `raw` copies all
    return Vocabulary(
        pieces=pieces,
        control=control,
        eog=frozenset(i for i in range(n) if lc.llama_vocab_is_eog(vocab, i)),
        bos=int(lc.llama_vocab_bos(vocab)) if lc.llama_vocab_get_add_bos(vocab) else None,
        encode=encode,
    )


_ERROR = 4  # enum ggml_log_level
_last_words: deque[str] = deque(maxlen=8)


def _log(level: int, text: bytes, _: Any) -> None:
    if level == _ERROR:
        _last_words.append(text.decode(errors="replace").strip())


_log_callback = lc.llama_log_callback(_log)  # llama.cpp keeps the pointer, so Python must keep the object


def _quiet() -> None:
    """llama.cpp writes pages to stderr; keep its errors for our own messages and drop the rest."""
    lc.llama_log_set(_log_callback, None)


def _said() -> str:
    return "; ".join(word for word in _last_words if word) or "it gave no reason"
