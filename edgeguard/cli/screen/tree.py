"""The tree of answers that a guard considered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table
from rich.text import Text
from rich.tree import Tree as Drawing

from edgeguard.cli.screen.console import plain_console
from edgeguard.errors import printable
from edgeguard.estimates import Estimates, estimate
from edgeguard.estimators import ESTIMATORS, log_odds
from edgeguard.explanation import Considered
from edgeguard.tree import ROOT, STOP, Tree

if TYPE_CHECKING:
    from edgeguard.answers import Ints


def print_trees(found: Considered, *, least: float) -> None:
    """The answers the model considered, a branch each, heaviest first; then what each estimator makes of them."""
    console, names = plain_console(), {c.code: c.name for c in found.profile.categories}
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
    if None in trees:
        console.print(_estimates(names, ESTIMATORS, [estimate(trees, name) for name in ESTIMATORS]))
        return
    console.print(_estimates(names, ["marginal"], [estimate(trees, "marginal", umbrella=found.umbrella)]))
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


def _estimates(names: Mapping[str, str], estimators: Iterable[str], found: Sequence[Estimates]) -> Table:
    """A line a label, by each estimator; what the answer says besides at the end."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, side in (
        ("label", "left"),
        ("", "left"),
        *((e, "right") for e in estimators),
        ("certified bounds", "left"),
    ):
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    one = found[0]
    for i, label in enumerate(one.labels):
        if i == one.safe:
            continue
        name, (low, high) = names.get(label, ""), one.bounds[i]
        table.add_row(
            Text(printable(label)),
            Text(printable("" if name == label else name)),
            *(f"{each.scores[i]:.4f}" for each in found),
            f"[{low:.4f}, {high:.4f}]",
        )
    return table
