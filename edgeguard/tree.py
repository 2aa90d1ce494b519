"""Explore the tree of answers: which tokens the model may write, with what probability.

One exploration serves all estimators. It is best-first and carries a certificate: mass that was
looked into bounds a label's probability from below, and what was never looked into bounds it from above.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeguard.answers import START, STOPPED, Answers, Bools, Ints
from edgeguard.backend import Prefix, Rows

Floats = npt.NDArray[np.float64]
LogProbs = Callable[[Sequence[Prefix]], Rows]
STOP = -1  # the token of an edge that ends the answer, whichever stop token it was
ROOT = 0
SPECULATE = 4  # times the tolerance: the mass from which the tokens after a place will be wanted too


@dataclass(frozen=True, eq=False)
class Tree:
    """n places in the tree of answers; place 0 is the prompt's end. All masses are given the prompt.

    labels    (n_labels,) "unsafe", the codes of the taxonomy, "safe"; "field=label" of the answer's other fields
    parent    (n,) the place before, -1 for the root
    token     (n,) token id, or STOP
    logp      (n,) nats: log P(reaching this place)
    state     (n,) automaton state, or STOPPED
    named     (n, n_labels) labels this place's text names for certain
    reach     (n, n_labels) labels that may yet be named from here
    spelling  (n,) whether the text ends in the middle of what tells a label from the others
    expanded  (n,) whether the model was asked what follows
    off       (n,) probability of leaving the grammar right here; 0 where not expanded
    """

    labels: tuple[str, ...]
    parent: Ints
    token: Ints
    logp: Floats
    state: Ints
    named: Bools
    reach: Bools
    spelling: Bools
    expanded: Bools
    off: Floats

    @property
    def safe(self) -> int:
        """The place of "safe" among the labels; those before it are what a guard decides."""
        return self.labels.index("safe")

    @property
    def open(self) -> Bools:
        """(n,) places of some mass, not looked into, from which a label may still be named."""
        open_: Bools = ~self.expanded & (self.logp > -np.inf) & (self.reach & ~self.named).any(axis=1)
        return open_

    @property
    def unexplored(self) -> float:
        """Mass of the open places, in [0, 1]."""
        return float(np.exp(self.logp[self.open]).sum())

    @property
    def off_grammar(self) -> float:
        """Mass seen to leave the grammar, in [0, 1]."""
        return float(self.off.sum())

    @property
    def slack(self) -> Floats:
        """(n_labels,) mass that might yet name each label: the width of its bounds."""
        at = self.open
        width: Floats = np.exp(self.logp[at]) @ (self.reach[at] & ~self.named[at])
        return width

    @property
    def n_rows(self) -> int:
        """How many places the model was asked about."""
        return int(self.expanded.sum())

    def children(self, place: int) -> Ints:
        """Places right after `place`."""
        return np.flatnonzero(self.parent == place)

    def answer(self, place: int) -> tuple[int, ...]:
        """Token ids from the prompt's end to `place`, the stop left out."""
        tokens: list[int] = []
        while place != ROOT:
            tokens.append(int(self.token[place]))
            place = int(self.parent[place])
        return tuple(t for t in reversed(tokens) if t != STOP)

    def path(self) -> tuple[int, ...]:
        """The argmax answer inside the grammar, as places from the root on; ties go to the first."""
        places = [ROOT]
        while self.expanded[places[-1]]:
            after = self.children(places[-1])
            if not len(after):
                break
            places.append(int(after[np.argmax(self.logp[after])]))
        return tuple(places)


Exploration = Generator[Sequence[Prefix], Rows, Tree]


def explore(
    logprobs: LogProbs,
    answers: Answers,
    prompt: Prefix,
    *,
    tolerance: float | None,
    max_rows: int = 64,
    width: int = 16,
) -> Tree:
    """Look into the answers to `prompt`, heaviest first, until every bound is narrower than `tolerance`.

    About `max_rows` places are looked into for that: the plainest way through the grammar in one call with
    the prompt, then up to `width` branches a call. `tolerance` None walks the argmax answer alone. The
    argmax answer is walked to its end in any case, so that every estimator can be read off the tree
    (or for `max_rows` more places: a model may repeat itself without end).

    What is asked, and in which company, follows from the model's own answers to this prompt: so the
    same record is always evaluated in the same calls, and gets the same bits.
    """
    steps = exploring(answers, prompt, tolerance=tolerance, max_rows=max_rows, width=width)
    asked = next(steps)
    while True:
        try:
            asked = steps.send(logprobs(asked))
        except StopIteration as end:
            tree: Tree = end.value
            return tree


def exploring(
    answers: Answers, prompt: Prefix, *, tolerance: float | None, max_rows: int = 64, width: int = 16
) -> Exploration:
    """As `explore`, but whoever runs it asks the model: it yields the prefixes of a call, and is sent their rows."""
    growth = _Growth(answers, prompt)
    worth = 0.0 if tolerance is None else SPECULATE * tolerance
    yield from _look_into(growth, [ROOT], 0.0)
    tree = growth.tree()
    while tolerance is not None and tree.slack.max(initial=0.0) > tolerance and growth.n_rows < max_rows:
        yield from _look_into(growth, _heaviest(tree, tolerance, min(width, max_rows - growth.n_rows)), worth)
        tree = growth.tree()
    most = growth.n_rows + max_rows
    while tree.open[last := tree.path()[-1]] and growth.n_rows < most:
        yield from _look_into(growth, [last], 0.0)
        tree = growth.tree()
    return tree


def _heaviest(tree: Tree, tolerance: float, width: int) -> list[int]:
    """The fewest open places, heaviest first, whose expansion could leave half of `tolerance`.

    Half, because what they open is left too: aiming at all of it ends in calls with one or two places.
    """
    places = np.flatnonzero(tree.open)
    places = places[np.argsort(-tree.logp[places], kind="stable")]
    left = tree.unexplored - np.cumsum(np.exp(tree.logp[places]))
    under = left <= tolerance / 2
    enough = int(np.argmax(under)) + 1 if under.any() else len(places)
    return [int(place) for place in places[: min(enough, width)]]


def _look_into(growth: _Growth, places: Sequence[int], worth: float) -> Generator[Sequence[Prefix], Rows, None]:
    """Expand places in one call to the model; those of at least mass `worth` with the plainest runs after them."""
    nodes: dict[tuple[int, tuple[int, ...]], Prefix] = {}  # (place, tokens after it) → prefix, parents first
    for place in places:
        nodes[place, ()] = growth.prefix(place)
        for run in growth.answers.spines(growth.state(place)) if growth.mass(place) >= worth else ():
            for n, token in enumerate(run):
                if (place, run[: n + 1]) not in nodes:
                    nodes[place, run[: n + 1]] = Prefix((token,), nodes[place, run[:n]])
    rows = yield list(nodes.values())
    for (place, run), prefix, row in zip(nodes, nodes.values(), rows, strict=True):
        here = place
        for token in run:
            here = growth.child(here, token)
        growth.expand(here, prefix, row)


class _Growth:
    """The tree while it grows: a block of children for every expansion, joined to a `Tree` on demand."""

    def __init__(self, answers: Answers, prompt: Prefix) -> None:
        self.answers = answers
        start_reach = answers.reach(START)
        self._blocks: list[tuple[Ints, Ints, Floats, Ints, Bools, Bools, Bools]] = [
            (
                np.array([-1]),
                np.array([STOP]),
                np.zeros(1),
                np.array([START]),
                np.zeros((1, answers.n_labels), dtype=np.bool_),
                start_reach[None],
                np.zeros(1, dtype=np.bool_),
            )
        ]
        self._begins = [0]  # the first place of each block
        self._block_of: dict[int, int] = {}  # an expanded place → the block of its children
        self._prefixes: dict[int, Prefix] = {ROOT: prompt}
        self._off: dict[int, float] = {}
        self._size = 1

    @property
    def n_rows(self) -> int:
        return len(self._block_of)

    def state(self, place: int) -> int:
        block, i = self._find(place)
        return int(self._blocks[block][3][i])

    def mass(self, place: int) -> float:
        block, i = self._find(place)
        return float(np.exp(self._blocks[block][2][i]))

    def prefix(self, place: int) -> Prefix:
        if place not in self._prefixes:
            block, i = self._find(place)
            parent, token, *_ = self._blocks[block]
            self._prefixes[place] = Prefix((int(token[i]),), self.prefix(int(parent[i])))
        return self._prefixes[place]

    def child(self, place: int, token: int) -> int:
        """The place after `place` by `token`, which the grammar allows there."""
        block = self._block_of[place]
        tokens = self.answers.moves(self.state(place)).tokens
        return self._begins[block] + int(np.searchsorted(tokens, token))

    def expand(self, place: int, prefix: Prefix, row: npt.NDArray[np.float32]) -> None:
        """Add the children of `place` from the model's row: (n_vocab,) log-probabilities."""
        block, i = self._find(place)
        logp, named = float(self._blocks[block][2][i]), self._blocks[block][4][i]
        moves = self.answers.moves(self.state(place))
        token, state, reach, spelling = moves.tokens, moves.next, moves.reach, moves.spelling
        after = logp + row[token].astype(np.float64)
        now = named | moves.named
        if moves.stop is not None:
            stopping = np.logaddexp.reduce(row[self.answers.stops].astype(np.float64))
            token, state = np.append(token, STOP), np.append(state, STOPPED)
            after = np.append(after, logp + stopping)
            now = np.vstack([now, named | moves.stop])
            reach = np.vstack([reach, np.zeros(self.answers.n_labels, dtype=np.bool_)])
            spelling = np.append(spelling, False)
        parent = np.full(len(token), place)
        self._prefixes[place] = prefix
        self._off[place] = max(0.0, float(np.exp(logp) - np.exp(after).sum()))
        self._block_of[place] = len(self._blocks)
        self._begins.append(self._size)
        self._blocks.append((parent, token, after, state, now, reach, spelling))
        self._size += len(token)

    def tree(self) -> Tree:
        parent, token, logp, state, named, reach, spelling = (
            np.concatenate(column) for column in zip(*self._blocks, strict=True)
        )
        expanded, off = np.zeros(self._size, dtype=np.bool_), np.zeros(self._size)
        expanded[list(self._block_of)] = True
        off[list(self._off)] = list(self._off.values())
        return Tree(self.answers.labels, parent, token, logp, state, named, reach, spelling, expanded, off)

    def _find(self, place: int) -> tuple[int, int]:
        block = int(np.searchsorted(self._begins, place, side="right")) - 1
        return block, place - self._begins[block]
