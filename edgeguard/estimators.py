"""Three estimators of P(the answer names label l), read off one explored tree. Pure numpy.

Named as in arXiv 2511.22312. With y an answer and labels(y) what it names, the target is
p(l) = Σ_y P(y | prompt) · 1[l ∈ labels(y)].

marginal     the target, summed over the answers looked into: a lower bound, `bounds` says how far off
joint        P(the argmax answer up to the completion of l); 0 for labels the argmax answer does not name
conditional  the same, given the argmax answer up to where l's own spelling begins; 0 likewise

Always joint ≤ conditional, and joint ≤ marginal ≤ p(l).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from edgeguard.answers import UNSAFE, Bools
from edgeguard.tree import Floats, Tree

Estimator = Callable[[Tree], Floats]


def marginal(tree: Tree) -> Floats:
    """(n_labels,) probabilities in [0, 1]: the mass of all places looked into that name each label first."""
    return _mass_naming(tree)


def bounds(tree: Tree) -> Floats:
    """(n_labels, 2) certified [lower, upper] of the target; upper - lower is the mass not looked into."""
    lower = _mass_naming(tree)
    return np.stack([lower, np.minimum(1.0, lower + tree.slack)], axis=1)


def joint(tree: Tree) -> Floats:
    """(n_labels,) probability of the argmax answer up to the completion of each label it names.

    All tokens that complete the label at that place count, so its surface forms are merged there.
    """
    return _along_path(tree, given_path=False)


def conditional(tree: Tree) -> Floats:
    """(n_labels,) probability of each label of the argmax answer, given that answer before the label.

    "Before the label" is before the first token of what tells it from the other labels: in `S10`,
    before the `1`. Where a label is one token this is the paper's token probability.
    """
    return _along_path(tree, given_path=True)


ESTIMATORS: dict[str, Estimator] = {"conditional": conditional, "joint": joint, "marginal": marginal}


def label_scores(tree: Tree, estimator: str) -> Floats:
    """(1 + n_codes,) "unsafe" and the codes by the estimator of that name; P(unsafe) is the marginal by all of them."""
    scores = ESTIMATORS[estimator](tree)[: tree.safe]
    scores[UNSAFE] = marginal(tree)[UNSAFE]
    return scores


def log_odds(tree: Tree) -> float:
    """Margin in nats: log P(unsafe) - log P(safe), over the answers looked into. ±inf where one has none.

    NaN where both have none: where the verdict stands behind other fields and no answer was followed that far.
    """
    first = _first_naming(tree)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = [np.logaddexp.reduce(tree.logp[first[:, i]], initial=-np.inf) for i in (UNSAFE, tree.safe)]
        return float(logs[0] - logs[1])


def first_label(tree: Tree) -> Floats:
    """(n_labels,) P(the label is the first category that the answer names), over the answers looked into.

    0 for "unsafe", "safe" and what other fields say, which are no categories. With P(safe), and with the mass that
    names neither, it sums to 1.
    """
    before = np.atleast_1d(tree.named[tree.parent][:, 1 : tree.safe].any(axis=1))
    before[0] = False
    first = _first_naming(tree) & ~before[:, None]
    first[:, [UNSAFE, *range(tree.safe, len(tree.labels))]] = False
    mass: Floats = np.exp(tree.logp) @ first
    return mass


def names_no_code(tree: Tree) -> Floats:
    """(2,) certified [lower, upper] of P(the answer says unsafe and names no category), in [0, 1].

    Every answer ends at a place from which no category can be reached, or leaves the grammar, and has named by then
    what it will have named. What was not looked into may come to either.
    """
    codes = slice(1, tree.safe)
    unsafe, reachable = tree.named[:, UNSAFE], tree.reach[:, codes].any(axis=1)
    none_yet = ~tree.named[:, codes].any(axis=1)
    leaf = none_yet & ~tree.expanded
    ends_so = leaf & unsafe & ~reachable
    may_end_so = leaf & ~ends_so & (unsafe | tree.reach[:, UNSAFE])
    mass = np.exp(tree.logp)
    found = mass @ ends_so + tree.off @ (none_yet & unsafe)
    limits: Floats = np.minimum(1.0, np.array([found, found + mass @ may_end_so]))
    return limits


def _first_naming(tree: Tree) -> Bools:
    """(n, n_labels) whether a label is named here and was not one place before."""
    before = tree.named[tree.parent]
    before[0] = False
    first: Bools = tree.named & ~before
    return first


def _mass_naming(tree: Tree) -> Floats:
    mass: Floats = np.exp(tree.logp) @ _first_naming(tree)
    return np.minimum(1.0, mass)


def _along_path(tree: Tree, *, given_path: bool) -> Floats:
    """For each label named on the argmax path: mass completing it there, relative to where it began."""
    p = _mass_naming(tree) * 0.0
    path, first = tree.path(), _first_naming(tree)
    begin = path[0]  # the last place before the label's own spelling
    for before, place in pairwise(path):
        if not tree.spelling[before]:
            begin = before
        siblings = tree.children(before)
        for label in np.flatnonzero(first[place]):
            completing = np.exp(np.logaddexp.reduce(tree.logp[siblings[first[siblings, label]]]))
            reached = np.exp(tree.logp[begin]) if given_path else 1.0
            p[label] = completing / reached if reached else 0.0  # of a path without mass nothing is given
    return np.minimum(1.0, p)
