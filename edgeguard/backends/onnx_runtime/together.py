"""Many records in one call of an ONNX graph: the weights are read once for all their tokens.

Records are packed into rows of about one length, several short ones behind one another: the mask says what each token
sees, its preamble, its record and its own branch. Rows are filled up behind; what fills them is seen by nothing but
itself. A preamble's keys and values stand at the head of each row. What answers add is thrown away after the call, as
it is where a record is alone. Each preamble has its own rows.

A call's rows follow from the records that are asked about and their order, and nothing else is in it: so the same
records in the same order have the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from edgeguard.backend import Prefix, Rows, RuntimeOptions, Stem, by_record, log_softmax_by, room_for
from edgeguard.backends.onnx_runtime.model import Ints, Keys, Memory, OnnxRuntime, between, depths, repeated, seen
from edgeguard.errors import ContextOverflow, ModelError
from edgeguard.machine import available_cores

Wanted = Mapping[Prefix, int]
N_TOKENS = 4096  # tokens a call, of all rows together; of one row as many as where a record is alone


@dataclass(frozen=True, eq=False)
class _Held:
    """Keys and values of rows (n_rows, …), and of each row the columns in which prefixes stand.

    depth  (n_rows, columns) positions; of what fills a row up any
    """

    keys: Keys
    columns: Sequence[Mapping[Prefix, slice]]
    depth: Ints

    @property
    def size(self) -> int:
        return int(self.depth.shape[1])


@dataclass(frozen=True, eq=False)
class _Block:
    """The records on one preamble: in which row each is, what they stand in, and so for their question at hand."""

    rows: Mapping[Prefix, int]
    texts: _Held
    asked: _Held
    questions: frozenset[Prefix]


class OnnxRuntimeTogether(OnnxRuntime):
    """An ONNX decoder for records `together`. Its tolerance is `OnnxRuntime`'s; `bench/together.py` measures it."""

    def __init__(self, path: str | Path, options: RuntimeOptions = RuntimeOptions()) -> None:
        """Load a graph. Raises ModelError, for one too that cannot keep many records of a row apart."""
        super().__init__(path, options)
        if not self._packs:
            self.close()
            raise ModelError(
                f"{path} takes a mask of rows, and records go together in graphs that take one of each token; convert "
                "the model again with edgeguard, or score each record alone",
                kind="not_together",
            )
        self._threads, self._room = options.threads or available_cores(), room_for(self._n_ctx, options.together)
        self._blocks: dict[Prefix, _Block] = {}  # by their preamble

    @property
    def room(self) -> int:
        """Tokens that the records of one batch may have together."""
        return self._room

    def logprobs(self, prefixes: Sequence[Prefix]) -> Rows:
        """Next-token log-probabilities after each prefix: (n, n_vocab) float32, nats."""
        return log_softmax_by(self._threads, self.logits(prefixes))

    def logits(self, prefixes: Sequence[Prefix]) -> Rows:
        """What they are the log-softmax of: (n, n_vocab) float32."""
        if self._session is None:
            raise ValueError("the model is closed")
        if not all(prefix.tokens for prefix in prefixes):
            raise ValueError("an empty prefix has no next-token row")
        longest = max((sum(len(p.tokens) for p in prefix.lineage()) for prefix in prefixes), default=0)
        if longest > self._n_ctx:
            raise ContextOverflow(longest, self._n_ctx)
        rows = np.empty((len(prefixes), self._interface.n_vocab), dtype=np.float32)
        on_root: dict[Prefix, list[tuple[Stem, Wanted]]] = {}
        for stem, wanted in by_record(prefixes):
            if stem.record is None:
                self._keep_root(stem.root, wanted, rows)
            else:
                on_root.setdefault(stem.root, []).append((stem, wanted))
        self._blocks = {root: block for root, block in self._blocks.items() if root in on_root}
        for root, groups in on_root.items():
            self._evaluate_all(root, groups, rows)
        return rows

    def close(self) -> None:
        """Free the model's memory. Calling it twice is fine."""
        super().close()
        self._blocks = {}

    def _evaluate_all(self, root: Prefix, groups: Sequence[tuple[Stem, Wanted]], rows: Rows) -> None:
        """Write the rows of all that is wanted of records on one preamble."""
        wanted = {prefix: row for _, some in groups for prefix, row in some.items()}
        of = {prefix: [*some] for stem, some in groups if (prefix := stem.question or stem.record) is not None}
        records = list(dict.fromkeys(stem.record for stem, _ in groups if stem.record is not None))
        block, done = self._blocks.get(root), set[Prefix]()
        if block is None or any(p not in block.rows or p in wanted for p in records):
            block, done = self._begin(root, [between(p, of.get(p, ())) for p in records], wanted, rows)
        new = [p for p in of if p.ask]
        if new and any(p not in block.questions or p in wanted for p in new):
            runs = _by_row(block, [between(p, of[p]) for p in new])
            held = self._extend_rows(block.texts, runs, wanted, rows, keep=True)
            block, done = _Block(block.rows, block.texts, held, frozenset(new)), done | {p for run in runs for p in run}
        self._blocks[root] = block
        left = {prefix: row for prefix, row in wanted.items() if prefix not in done}
        if left:
            runs = _by_row(block, [between(p, [one for one in some if one in left])[1:] for p, some in of.items()])
            self._branch_rows(block.asked, runs, left, rows)

    def _begin(
        self, root: Prefix, runs: Sequence[Sequence[Prefix]], wanted: Wanted, rows: Rows
    ) -> tuple[_Block, set[Prefix]]:
        """Evaluate runs of prefixes, each a record and what is wanted of the answer to it."""
        if root not in self._roots:
            self._keep_root(root, {}, rows)
        self._roots.move_to_end(root)
        self._blocks.pop(root, None)  # its memory goes before the next one's comes
        packed = pack([sum(len(p.tokens) for p in run) for run in runs])
        together = [[p for i in row for p in runs[i]] for row in packed]
        first = _of_root(self._roots[root], len(packed))
        held = self._extend_rows(first, together, wanted, rows, keep=True)
        where = {runs[i][0]: at for at, row in enumerate(packed) for i in row}
        return _Block(where, held, held, frozenset()), {p for run in together for p in run}

    def _branch_rows(self, held: _Held, runs: Sequence[Sequence[Prefix]], wanted: Wanted, rows: Rows) -> None:
        """Rows of answers; where memory is the computer's own, in a call without the rows that nothing is asked of."""
        used = [i for i, run in enumerate(runs) if run]
        if self._device == "cpu" and len(used) < len(runs):
            some = {name: ort.OrtValue.ortvalue_from_numpy(v.numpy()[used]) for name, v in held.keys.items()}
            held, runs = _Held(some, [held.columns[i] for i in used], held.depth[used]), [runs[i] for i in used]
        self._extend_rows(held, runs, wanted, rows, keep=False)

    def _extend_rows(
        self, held: _Held, runs: Sequence[Sequence[Prefix]], wanted: Wanted, rows: Rows, *, keep: bool
    ) -> _Held:
        """Evaluate prefixes, parents first, behind those that each row has; in chunks where they are many."""
        begin, length = held.size, max(sum(len(p.tokens) for p in run) for run in runs)
        tokens, depth = np.zeros((len(runs), length), dtype=np.int64), np.zeros((len(runs), length), dtype=np.int64)
        columns, ends = [dict(some) for some in held.columns], list[dict[int, int]]()
        for i, run in enumerate(runs):
            own = [t for p in run for t in p.tokens]
            tokens[i, : len(own)], depth[i, : len(own)] = own, depths(run)
            end = begin
            for prefix in run:
                columns[i][prefix] = slice(end, end + len(prefix.tokens))
                end += len(prefix.tokens)
            ends.append({columns[i][p].stop - 1 - begin: wanted[p] for p in run if p in wanted})
        keys, depth = held.keys, np.concatenate([held.depth, depth], axis=1)
        step = max(1, min(self._n_batch, N_TOKENS // len(runs)))
        for at in range(0, length, step):
            stop = min(at + step, length)
            here = [{place - at: row for place, row in some.items() if at <= place < stop} for some in ends]
            views = np.stack(
                [_seen(run, own, slice(begin + at, begin + stop)) for run, own in zip(runs, columns, strict=True)]
            )
            more = keep or stop < length
            keys = self._run(keys, tokens[:, at:stop], depth[:, : begin + stop], views, here, rows, keep=more)
        return _Held(keys, columns, depth)


def pack(lengths: Sequence[int]) -> list[list[int]]:
    """Places in `lengths`, in rows none of which is longer than the longest: each into the first row that has room.

    The longest come first, of equal ones the first.
    """
    most, rows, taken = max(lengths), list[list[int]](), list[int]()
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((row for row, n in enumerate(taken) if n + lengths[i] <= most), len(rows))
        if row == len(rows):
            rows.append([])
            taken.append(0)
        rows[row].append(i)
        taken[row] += lengths[i]
    return rows


def _of_root(memory: Memory, n_rows: int) -> _Held:
    depth = np.repeat(memory.depth[None], n_rows, axis=0)
    return _Held(repeated(memory.keys, n_rows), [dict(memory.columns)] * n_rows, depth)


def _by_row(block: _Block, runs: Iterable[Sequence[Prefix]]) -> list[list[Prefix]]:
    """Runs of prefixes, each in its record's row."""
    rows: list[list[Prefix]] = [[] for _ in block.asked.columns]
    for run in runs:
        if run:
            rows[block.rows[_record(run[0])]] += run
    return rows


def _record(prefix: Prefix) -> Prefix:
    *_, record, _ = prefix.lineage()
    return record


def _seen(run: Sequence[Prefix], columns: Mapping[Prefix, slice], rows: slice) -> npt.NDArray[np.bool_]:
    """As `seen`; a place that fills a row up sees itself, for of nothing at all attention is no number."""
    views = seen(run, columns, rows)
    blank = np.flatnonzero(~views.any(axis=1))
    views[blank, rows.start + blank] = True
    return views
