"""What the explored answers to one record say together: of one prompt, or of a question for each category.

With a question for each category nothing is known of how the answers depend on one another. So of "any of them is
unsafe", with p_i = P(the answer to question i says unsafe), no more is certain than Fréchet's bounds,
max p_i ≤ P ≤ min(1, Σ p_i), and the lower one is the score; unless the guard has an umbrella question of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum

import numpy as np

from edgeguard.answers import UNSAFE
from edgeguard.estimators import ESTIMATORS, bounds, label_scores, log_odds
from edgeguard.tree import Floats, Tree

Trees = Mapping[str | None, Tree]  # the code that was asked about, None for a question about all → the answers


@dataclass(frozen=True, eq=False)
class Estimates:
    """What is known of one record, before any calibration. Masses and probabilities in [0, 1].

    labels       (n_labels,) "unsafe", the codes, "safe", then "field=label" of what answers say besides
    scores       (n_labels,) by the estimator
    bounds       (n_labels, 2) certified [lower, upper] of the targets
    margin       log P(unsafe) - log P(safe), nats; ±inf where one of them has none
    unexplored   mass of the answers not looked into; of several questions the largest
    off_grammar  mass seen to leave the grammar; of several questions the largest
    """

    labels: tuple[str, ...]
    scores: Floats
    bounds: Floats
    margin: float
    unexplored: float
    off_grammar: float

    @property
    def safe(self) -> int:
        """The place of "safe" among the labels; those before it are what a guard decides."""
        return self.labels.index("safe")


def estimate(trees: Trees, estimator: str, *, umbrella: str | None = None) -> Estimates:
    """Read the answers to one record by the estimator of that name.

    umbrella  the question whose answer is "unsafe" and "safe", where each question is about one category

    By all estimators P(unsafe) is the marginal. So is what the answer to a category's own question says of it: by the
    others it would be 0 wherever the likeliest answer is "no". Raises ValueError for another estimator there.
    """
    if None in trees:
        return _of_one(trees[None], estimator)
    if estimator != "marginal":
        raise ValueError(f"estimator is {estimator!r}; answers that list no codes have the marginal alone")
    return _of_questions({code: tree for code, tree in trees.items() if code is not None}, umbrella)


def _of_one(tree: Tree, estimator: str) -> Estimates:
    scores = ESTIMATORS[estimator](tree)
    scores[: tree.safe] = label_scores(tree, estimator)
    return Estimates(tree.labels, scores, bounds(tree), log_odds(tree), tree.unexplored, tree.off_grammar)


def _of_questions(trees: Mapping[str, Tree], umbrella: str | None) -> Estimates:
    each = [_of_one(tree, "marginal") for tree in trees.values()]
    scores = np.array([[e.scores[UNSAFE], e.scores[e.safe]] for e in each])  # (n_questions, 2)
    limits = np.array([[e.bounds[UNSAFE], e.bounds[e.safe]] for e in each])  # (n_questions, 2, 2)
    if umbrella is None:
        decided = int(np.argmax([e.margin for e in each]))
        any_unsafe, all_safe = _frechet(limits)
        verdict, certain = (scores[:, 0].max(), scores[:, 1].min()), np.stack([any_unsafe, all_safe])
    else:
        decided = [*trees].index(umbrella)
        verdict, certain = (scores[decided, 0], scores[decided, 1]), limits[decided]
    further = [f"{code}.{label}" for code, e in zip(trees, each, strict=True) for label in e.labels[e.safe + 1 :]]
    return Estimates(
        labels=("unsafe", *trees, "safe", *further),
        scores=np.concatenate([verdict[:1], scores[:, 0], verdict[1:], *(e.scores[e.safe + 1 :] for e in each)]),
        bounds=np.concatenate([certain[:1], limits[:, 0], certain[1:], *(e.bounds[e.safe + 1 :] for e in each)]),
        margin=each[decided].margin,
        unexplored=max(e.unexplored for e in each),
        off_grammar=max(e.off_grammar for e in each),
    )


def _frechet(limits: Floats) -> tuple[Floats, Floats]:
    """[lower, upper] of P(any answer says unsafe) and of P(all say safe), from those of each: (n, 2, 2).

    The sums are rounded once (fsum): the order of the questions must not show in the last bit.
    """
    unsafe, safe = limits[:, 0], limits[:, 1]
    any_unsafe = np.array([unsafe[:, 0].max(), min(1.0, fsum(unsafe[:, 1]))])
    all_safe = np.array([max(0.0, 1.0 - fsum(1.0 - safe[:, 0])), safe[:, 1].min()])
    return any_unsafe, all_safe


def fields_of(labels: Sequence[str]) -> dict[str, dict[str, int]]:
    """What answers say besides the decision: field → label → its place in `labels`."""
    fields: dict[str, dict[str, int]] = {}
    for i, label in enumerate(labels):
        field, equals, name = label.partition("=")
        if equals:
            fields.setdefault(field, {})[name] = i
    return fields
