"""Many records in one batch of llama.cpp: the weights are read once for all their tokens.

The prefixes of all records are one tree in one memory: the preambles are its roots, the records branches of them, each
in a sequence of its own, and the branches of their answers go on from there. What a call asks for is one run of
batches. Sums over a batch's tokens have another order than alone, and rows another shape: other last digits.

The same bits for the same records in the same order:

- A block begins when a call has records that are not there. Then all but the preambles is cut off, and the preambles
  are read again where they are not just those of the block: so its records meet the same cells, whatever came before.
- In a call records come before their answers, so that what is cut off stands behind what stays: the cells in use have
  no gap, and a larger context takes them over where they were.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from edgeguard.backend import Prefix, Rows, Stem, by_record, log_softmax_by
from edgeguard.backends.llama_cpp.model import BatchToken, LlamaCpp, lc
from edgeguard.errors import ContextOverflow, ModelError

Groups = Sequence[tuple[Stem, Mapping[Prefix, int]]]
N_BATCH_GPU = 2048  # tokens a decode, where all of the model is on a GPU: it is not busy with fewer


class LlamaCppTogether(LlamaCpp):
    """A GGUF model for records `together`. Its tolerance is that of `LlamaCpp`; `bench/together.py` measures it."""

    def logprobs(self, prefixes: Sequence[Prefix]) -> Rows:
        """Next-token log-probabilities after each prefix: (n, n_vocab) float32, nats."""
        return log_softmax_by(self._threads, self.logits(prefixes))

    def logits(self, prefixes: Sequence[Prefix]) -> Rows:
        """What they are the log-softmax of: (n, n_vocab) float32."""
        self._check_open()
        groups = by_record(prefixes)
        longest = max(sum(len(p.tokens) for p in prefix.lineage()) for prefix in prefixes)
        if longest > self._n_ctx:
            raise ContextOverflow(longest, self._n_ctx)
        rows = np.empty((len(prefixes), len(self._vocabulary)), dtype=np.float32)
        lone = [(stem, wanted) for stem, wanted in groups if stem.record is None]
        for stem, wanted in lone:
            self._clear()
            self._evaluate(stem, wanted, rows)
        if some := [(stem, wanted) for stem, wanted in groups if stem.record is not None]:
            self._evaluate_all(some, rows)
        return rows

    @property
    def _longest_batch(self) -> int:
        return N_BATCH_GPU if self._on_gpu else super()._longest_batch

    def _evaluate_all(self, groups: Groups, rows: Rows) -> None:
        """Write the rows of all wanted prefixes, of records not yet there or of those of the block at hand."""
        wanted = {prefix: row for _, some in groups for prefix, row in some.items()}
        stems = {prefix for stem, _ in groups for prefix in (stem.record, stem.question) if prefix is not None}
        if any(p not in self._held for p in stems if not p.ask) or any(p in self._held for p in wanted if p in stems):
            self._begin(list(dict.fromkeys(stem.root for stem, _ in groups)))
        elif any(prefix not in self._held for prefix in stems) or any(prefix in self._held for prefix in wanted):
            self._cut(p for p in self._held if _is_record(p) or p in stems)
        new = self._missing_all(wanted)
        if not self._fits(new):
            self._cut(p for p in self._held if _is_record(p) or p.ask)
            new = self._missing_all(wanted)
        if self._fits(new):
            self._decode(new, wanted, rows)
        elif len(groups) > 1:
            for half in (groups[: len(groups) // 2], groups[len(groups) // 2 :]):
                self._evaluate_all(half, rows)
        else:
            self._one_by_one(*groups[0], rows)

    def _one_by_one(self, stem: Stem, wanted: Mapping[Prefix, int], rows: Rows) -> None:
        """The branches of one record, for which there is no room at once: the others go, and come again."""
        for prefix, row in wanted.items():
            self._cut(p for p in self._held if p in (stem.record, stem.question))
            new = self._missing_all([prefix])
            if not self._fits(new):
                self._begin([stem.root])
                new = self._missing_all([prefix])
            self._decode(new, {prefix: row}, rows)

    def _begin(self, roots: Sequence[Prefix]) -> None:
        """Have these preambles in the memory and nothing else, in the same cells whatever was there."""
        if [prefix for prefix in self._held if prefix.parent is None] == list(roots):
            self._cut(())
        elif len(roots) == 1:
            self._bring_root(roots[0])
        else:
            self._clear()
            self._decode(roots, {}, np.empty((0, 0), dtype=np.float32))

    def _cut(self, keep: Iterable[Prefix]) -> None:
        """Drop all but the preambles and the prefixes to keep, whose parents stay too."""
        kept = {p for prefix in keep for p in prefix.lineage()}
        held = {prefix: at for prefix, at in self._held.items() if prefix.parent is None or prefix in kept}
        tip: dict[int, int] = {}
        for at in held.values():
            tip[at.seq] = max(at.end, tip.get(at.seq, 0))
        for seq, end in self._tip.items():
            if tip.get(seq) != end and not lc.llama_memory_seq_rm(self._memory, seq, tip.get(seq, 0), -1):
                raise ModelError(f"{self._path}: llama.cpp cannot cut this model's memory; edgeguard needs that")
        self._held, self._tip = held, tip
        self._cells = sum(len(prefix.tokens) for prefix in held)

    def _missing_all(self, prefixes: Iterable[Prefix]) -> list[Prefix]:
        """Prefixes not held, all records first, then questions, then answers; parents before what stands on them."""
        return sorted(self._missing(prefixes), key=lambda prefix: (not _is_record(prefix)) + _answers(prefix))

    def _fits(self, new: Sequence[Prefix]) -> bool:
        n_tokens = sum(len(prefix.tokens) for prefix in new)
        if self._cells + n_tokens + len(self._company) > self._most:
            return False
        ends = {prefix for prefix, at in self._held.items() if self._tip[at.seq] == at.end}  # that can be gone on with
        n_sequences = len(self._tip)
        for prefix in new:
            if prefix.parent in ends:
                ends.discard(prefix.parent)
            else:
                n_sequences += 1
            ends.add(prefix)
        return n_sequences <= self._n_seq

    def _place(self, prefix: Prefix, entries: Mapping[Prefix, list[BatchToken]]) -> tuple[int, int]:
        return (self._free_sequence(), 0) if prefix.parent is None else super()._place(prefix, entries)

    def _free_sequence(self) -> int:
        return next(seq for seq in range(self._sequences) if seq not in self._tip)

    def _is_record(self, prefix: Prefix) -> bool:
        return False  # no record is gone on with by the next one


def _is_record(prefix: Prefix) -> bool:
    return prefix.parent is not None and prefix.parent.parent is None


def _answers(prefix: Prefix) -> bool:
    return not _is_record(prefix) and not prefix.ask
