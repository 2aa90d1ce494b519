"""A tree of answers as data: what a guard considered, and how the three estimators read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeguard.estimates import Trees, estimate
from edgeguard.estimators import ESTIMATORS, bounds, log_odds
from edgeguard.guard import Guard
from edgeguard.profile import Profile
from edgeguard.rows.record import Record
from edgeguard.tree import ROOT, STOP, Tree


@dataclass(frozen=True)
class Considered:
    """What a guard considered for one record, without the guard: it may have been another process's.

    guard   its name
    pieces  token id → what it writes, of all tokens in the trees
    """

    guard: str
    profile: Profile
    umbrella: str | None
    trees: Trees
    pieces: Mapping[int, str]

    def piece(self, token: int) -> str:
        """What a token writes, as text."""
        return self.pieces[token]


def considered(guard: Guard, record: str | Mapping[str, Any] | Record) -> Considered:
    """Have a guard consider a record. Raises RecordError."""
    trees = guard.explore_all(record)
    tokens = {int(token) for tree in trees.values() for token in tree.token if token >= 0}
    pieces = {token: guard.piece(token) for token in tokens}
    return Considered(guard.name, guard.profile, guard.umbrella, trees, pieces)


def explanation(found: Considered) -> dict[str, Any]:
    """As one JSON object; masses in [0, 1], the margin in nats, bounds as [lower, upper].

    Where each category has a question of its own, `questions` has what was answered to each, and what that says of the
    record stands beside them. `places` stand in the order in which they were explored.
    """
    about = {"profile": found.profile.name, "guard": found.guard}
    if None in found.trees:
        return {**about, **_answers(found.trees[None], found.piece)}
    all_of_them = estimate(found.trees, "marginal", umbrella=found.umbrella)
    return {
        **about,
        "unexplored": all_of_them.unexplored,
        "off_grammar": all_of_them.off_grammar,
        "margin": all_of_them.margin,
        "umbrella": found.umbrella,
        "estimates": {"marginal": dict(zip(all_of_them.labels, all_of_them.scores.tolist(), strict=True))},
        "bounds": dict(zip(all_of_them.labels, all_of_them.bounds.tolist(), strict=True)),
        "questions": {code: _answers(tree, found.piece) for code, tree in found.trees.items()},
    }


def _answers(tree: Tree, piece: Callable[[int], str]) -> dict[str, Any]:
    """One tree."""
    return {
        "unexplored": tree.unexplored,
        "off_grammar": tree.off_grammar,
        "margin": log_odds(tree),
        "estimates": {
            name: dict(zip(tree.labels, estimate({None: tree}, name).scores.tolist(), strict=True))
            for name in ESTIMATORS
        },
        "bounds": dict(zip(tree.labels, bounds(tree).tolist(), strict=True)),
        "places": [_place(tree, i, piece) for i in range(len(tree.logp))],
    }


def _place(tree: Tree, i: int, piece: Callable[[int], str]) -> dict[str, Any]:
    """One place of the tree; `parent` is an index into `places`, null at the root."""
    begins, stops = i == ROOT, i != ROOT and bool(tree.token[i] == STOP)
    token = None if begins or stops else int(tree.token[i])
    return {
        "parent": None if begins else int(tree.parent[i]),
        "token": token,
        "text": "" if token is None else piece(token),
        "stop": stops,
        "mass": float(np.exp(tree.logp[i])),
        "logp": None if np.isneginf(tree.logp[i]) else float(tree.logp[i]),
        "names": [label for label, named in zip(tree.labels, tree.named[i], strict=True) if named],
        "explored": bool(tree.expanded[i]),
        "off_grammar": float(tree.off[i]),
    }
