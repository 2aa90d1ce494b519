"""A tree of answers as data: what a guard considered, and how the three estimators read it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgeguard.estimates import Trees, estimate
from edgeguard.estimators import ESTIMATORS, bounds, log_odds
from edgeguard.guard import Guard
from edgeguard.tree import ROOT, STOP, Tree


def explanation(guard: Guard, trees: Trees) -> dict[str, Any]:
    """As one JSON object; masses in [0, 1], the margin in nats, bounds as [lower, upper].

    Where each category has a question of its own, `questions` has what was answered to each, and what that says of the
    record stands beside them. `places` stand in the order in which they were explored.
    """
    about = {"profile": guard.profile.name, "guard": guard.name}
    if None in trees:
        return {**about, **_answers(trees[None], guard)}
    found = estimate(trees, "marginal", umbrella=guard.umbrella)
    return {
        **about,
        "unexplored": found.unexplored,
        "off_grammar": found.off_grammar,
        "margin": found.margin,
        "umbrella": guard.umbrella,
        "estimates": {"marginal": dict(zip(found.labels, found.scores.tolist(), strict=True))},
        "bounds": dict(zip(found.labels, found.bounds.tolist(), strict=True)),
        "questions": {code: _answers(tree, guard) for code, tree in trees.items()},
    }


def _answers(tree: Tree, guard: Guard) -> dict[str, Any]:
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
        "places": [_place(tree, i, guard.piece) for i in range(len(tree.logp))],
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
