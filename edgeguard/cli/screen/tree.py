"""The tree of answers that a guard considered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.text import Text
from rich.tree import Tree as Drawing

from edgeguard.cli.screen.columns import fitted, sized_console, told_left_out
from edgeguard.errors import printable
from edgeguard.estimates import Estimates, estimate
from edgeguard.estimators import ESTIMATORS, log_odds
from edgeguard.explanation import Considered, Explained, counted, verdict
from edgeguard.tree import ROOT, STOP, Tree

if TYPE_CHECKING:
    from edgeguard.answers import Ints


_NAME = 24  # characters of a category's name in a line


def print_explained(it: Explained, *, least: float) -> None:
    """The answers the model considered; what is decided on them; what each estimator makes of them."""
    console, names = sized_console(), {c.code: c.name for c in it.considered.profile.categories}
    print_trees(console, it.considered, least=least)
    by = f"calibrated by {it.calibration}" if it.calibrated else "not calibrated"
    stages = ", in two stages" if it.thresholds.two_stage else ""
    console.print(Text(printable(f"decided on {it.estimator}, {by}{stages}"), "bold"))
    columns = ["label", "", "model's own", *(["calibrated"] if it.calibrated else []), "threshold", "counts", "bounds"]
    rows = []
    for i, label in enumerate(it.decided.labels):
        own, p, threshold = float(it.found.scores[i]), float(it.decided.y_prob[0, i]), it.thresholds.of(label)
        low, high = (it.found.bounds if it.decided.bounds is None else it.decided.bounds[0])[i]
        mapped = [f"{p:.4f}"] if it.calibrated else []
        rows.append([label, _name(label, names), f"{own:.4f}", *mapped, f"{threshold:.4g}", counted(it, label)])
        rows[-1].append(f"[{low:.4f}, {high:.4f}]")
    _print_fitted(console, columns, rows)
    console.print(Text(printable(verdict(it)), "bold red" if it.decided.y_pred[0, 0] else "bold green"))
    console.print()
    _print_estimates(console, it.considered, names)


def _name(label: str, names: Mapping[str, str]) -> str:
    """A category's name, of some lines where it is long; none where it is the label."""
    name = names.get(label, label)
    return "" if name == label else "\n".join(wrap(printable(name), _NAME))


def _print_fitted(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if not any(row[1] for row in rows):  # no name but the labels
        columns, rows = [columns[0], *columns[2:]], [[row[0], *row[2:]] for row in rows]
        table = fitted(console, columns, rows)
    else:
        table = fitted(console, columns, rows, kept=2)
    console.print(table.table)
    if table.left_out:
        console.print(told_left_out(table.left_out))


def print_trees(console: Console, found: Considered, *, least: float) -> None:
    """The answers the model considered, a branch each, heaviest first."""
    names = {c.code: c.name for c in found.profile.categories}
    trees = found.trees
    for code, tree in trees.items():
        begins = "the guard's answer begins"
        if code is not None:
            begins = f"{code}: {begins}" if names[code] == code else f"{code}, {names[code]}: {begins}"
        drawing = Drawing(Text(printable(begins), "bold"))
        _grow(drawing, found, tree, ROOT, least)
        console.print(drawing)
        rest = f"not explored {tree.unexplored:.4f}, off the grammar {tree.off_grammar:.4f}"
        console.print(Text(f"{rest}, log-odds {log_odds(tree):+.2f}", "dim"))
        console.print()


def _print_estimates(console: Console, found: Considered, names: Mapping[str, str]) -> None:
    """The model's own probabilities by each estimator, what the answers say besides among them."""
    trees = found.trees
    console.print(Text("the model's own, by each estimator", "bold"))
    if None in trees:
        _estimates(console, names, ESTIMATORS, [estimate(trees, name) for name in ESTIMATORS])
        return
    _estimates(console, names, ["marginal"], [estimate(trees, "marginal", umbrella=found.umbrella)])
    said = (
        "as its own question says" if found.umbrella else "at least that of the likeliest category, at most their sum"
    )
    console.print(Text(f"unsafe: {f'{found.umbrella}, ' if found.umbrella else ''}{said}", "dim"))


def _grow(drawing: Drawing, found: Considered, tree: Tree, place: int, least: float) -> None:
    children = tree.children(place)
    children = children[np.argsort(-tree.logp[children], kind="stable")]
    shown = [int(c) for c in children if np.exp(tree.logp[c]) >= least]
    for child in shown:
        run = [child]
        while len(only := _visible(tree, run[-1], least)) == 1 and tree.off[run[-1]] < least:
            run.append(int(only[0]))
        _grow(drawing.add(_line(found, tree, run)), found, tree, run[-1], least)
    hidden = float(np.exp(tree.logp[children]).sum() - np.exp(tree.logp[shown]).sum())
    if hidden >= least / 10:
        drawing.add(Text(f"{len(children) - len(shown)} smaller branches, {hidden:.4f} together", "dim"))
    if tree.off[place] >= least:
        drawing.add(Text(f"leaves the grammar {tree.off[place]:.4f}", "yellow"))


def _visible(tree: Tree, place: int, least: float) -> Ints:
    children = tree.children(place)
    return children[np.exp(tree.logp[children]) >= least]


def _line(found: Considered, tree: Tree, run: Sequence[int]) -> Text:
    """Tokens in quotes, their probability given what comes before, the mass so far, and what they name."""
    before, last = int(tree.parent[run[0]]), run[-1]
    line = Text()
    for place in run:
        token = int(tree.token[place])
        line.append("⏹" if token == STOP else printable(repr(found.piece(token))[1:-1]).replace(" ", "␣"), "bold cyan")
        line.append(" ")
    line.append(f" {np.exp(tree.logp[last] - tree.logp[before]):.3f}")
    line.append(f"  mass {np.exp(tree.logp[last]):.4f}", "dim")
    named = tree.named[last] & ~tree.named[before]
    if named.any():
        line.append("  names " + ", ".join(np.array(tree.labels)[named]), "bold green")
    if tree.open[last]:
        line.append("  not explored further", "dim italic")
    return line


def _estimates(
    console: Console, names: Mapping[str, str], estimators: Iterable[str], found: Sequence[Estimates]
) -> None:
    """A line a label, by each estimator; what the answer says besides at the end."""
    one = found[0]
    rows = [
        [label, _name(label, names), *(f"{each.scores[i]:.4f}" for each in found), f"[{low:.4f}, {high:.4f}]"]
        for i, (label, (low, high)) in enumerate(zip(one.labels, one.bounds, strict=True))
        if i != one.safe
    ]
    _print_fitted(console, ["label", "", *estimators, "certified bounds"], rows)
