"""Several records' answers explored side by side: what all of them ask of the model next is one call.

Pure bookkeeping over `tree.exploring`: which records go together, and who gets which rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgeguard.backend import Prefix
from edgeguard.errors import ContextOverflow
from edgeguard.tree import Exploration, LogProbs, Tree

ROWS = 1 << 26  # numbers that the rows of one call have together, where the call need not hold all records


def batches(lengths: Sequence[int], *, most: int, room: int) -> Iterator[range]:
    """Places in `lengths`, in order and in runs: `most` at most, together no longer than `room`, but for a lone one.

    lengths  tokens that a record takes. What is beside it follows from the records alone, never from time or memory
    """
    begin, taken = 0, 0
    for place, length in enumerate(lengths):
        if place > begin and (place - begin == most or taken + length > room):
            yield range(begin, place)
            begin, taken = place, 0
        taken += length
    if begin < len(lengths):
        yield range(begin, len(lengths))


def lockstep(
    logprobs: LogProbs, explorations: Sequence[Exploration], *, n_ctx: int, n_vocab: int
) -> list[Tree | ContextOverflow]:
    """Run explorations to their ends, each of a prompt of its own, all of them one step at a time.

    The first call has all prompts, later ones those that are not done. One whose answer leaves the context of `n_ctx`
    tokens ends with its own error. Of later calls with very many rows of `n_vocab` numbers there are several.
    """
    found: dict[int, Tree | ContextOverflow] = {}
    asked: dict[int, Sequence[Prefix]] = {i: next(steps) for i, steps in enumerate(explorations)}
    is_first = True
    while asked:
        for i in [i for i, prefixes in asked.items() if _longest(prefixes) > n_ctx]:
            found[i] = ContextOverflow(_longest(asked.pop(i)), n_ctx)
        for some in [list(asked)] if is_first else _some(asked, max(1, ROWS // n_vocab)):
            rows = logprobs([prefix for i in some for prefix in asked[i]])
            at = 0
            for i in some:
                end = at + len(asked[i])
                try:
                    asked[i] = explorations[i].send(rows[at:end])
                except StopIteration as done:
                    found[i] = done.value
                    del asked[i]
                at = end
        is_first = False
    return [found[i] for i in range(len(explorations))]


def _longest(prefixes: Sequence[Prefix]) -> int:
    return max(sum(len(step.tokens) for step in prefix.lineage()) for prefix in prefixes)


def _some(asked: dict[int, Sequence[Prefix]], most: int) -> list[list[int]]:
    """Those that ask, in order and in runs of at most so many rows, but for a lone one."""
    keys = list(asked)
    return [[keys[i] for i in run] for run in batches([len(asked[key]) for key in keys], most=len(keys), room=most)]
