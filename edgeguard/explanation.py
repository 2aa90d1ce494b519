"""A tree of answers as data: what a guard considered, and how the three estimators read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from edgeguard.calibration.decide import Decisions, decide
from edgeguard.calibration.thresholds import Thresholds
from edgeguard.estimates import Estimates, Trees, estimate
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


@dataclass(frozen=True)
class Explained:
    """What a guard considered for one record and made of it, without the guard.

    record      as it was given
    found       what the guard's estimator says, before any calibration
    decided     of this one record: what decisions are taken on, and the decisions
    calibration  what stands between the two: "" for nothing, else the file's name
    """

    record: Mapping[str, Any]
    considered: Considered
    estimator: str
    found: Estimates
    decided: Decisions
    thresholds: Thresholds
    calibration: str

    @property
    def calibrated(self) -> bool:
        """Whether a calibration stands between the model's own numbers and what is decided on."""
        return self.calibration != ""


def counted(it: Explained, label: str) -> str:
    """Whether a label counts, and what that depends on where its own probability does not say it."""
    i = it.decided.labels.index(label)
    over, counts = bool(it.decided.y_prob[0, i] >= it.thresholds.of(label)), bool(it.decided.y_pred[0, i])
    if counts:
        return "yes" if over else "yes, by a category"
    return "no, it is not unsafe" if over else "no"


def explained(guard: Guard, record: Mapping[str, Any]) -> Explained:
    """Have a guard consider a record and decide. Raises RecordError."""
    there = considered(guard, record)
    found = estimate(there.trees, guard.estimator, umbrella=guard.umbrella)
    decided = decide(
        np.array([found.margin]),
        found.scores[None, : found.safe],
        labels=found.labels[: found.safe],
        calibration=guard.calibration,
        thresholds=guard.thresholds,
        bounds=found.bounds[None, : found.safe + 1],
    )
    taken = guard.calibration
    name = "" if taken is None else PurePath(taken.source).name or "a calibration"
    return Explained(record, there, guard.estimator, found, decided, guard.thresholds, name)


def verdict(it: Explained) -> str:
    """`Flagged: P(unsafe) is 0.930, at or over its threshold of 0.5. Categories: S2.`."""
    p, threshold = float(it.decided.y_prob[0, 0]), it.thresholds.of("unsafe")
    codes = [label for label, counts in zip(it.decided.labels, it.decided.y_pred[0], strict=True) if counts][1:]
    side = "at or over" if p >= threshold else "under"
    said = f"P(unsafe) is {p:.3f}, {side} its threshold of {threshold:.3g}."
    if not codes:
        return f"{'Flagged' if p >= threshold else 'Not flagged'}: {said}"
    return f"Flagged{'' if p >= threshold else ' by a category'}: {said} Categories: {', '.join(codes)}."


def as_json(it: Explained) -> dict[str, Any]:
    """`explanation`, and beside it `decision`: what is decided on these answers, by which estimator and thresholds."""
    stages = {"stages": 2} if it.thresholds.two_stage else {}
    labels = {
        label: {
            "own": float(it.found.scores[i]),
            "probability": float(it.decided.y_prob[0, i]),
            "bounds": (it.found.bounds if it.decided.bounds is None else it.decided.bounds[0])[i].tolist(),
            "threshold": it.thresholds.of(label),
            "counts": bool(it.decided.y_pred[0, i]),
        }
        for i, label in enumerate(it.decided.labels)
    }
    said = {"estimator": it.estimator, "calibration": it.calibration or None, **stages, "labels": labels}
    return {**explanation(it.considered), "decision": {"flagged": bool(it.decided.y_pred[0, 0]), **said}}


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
