"""A tree of answers as a page for people: what is decided, from which numbers, and what the guard might have said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np
from markupsafe import Markup

from edgeguard.charts.page import Column, details, document, paragraph, section, table
from edgeguard.charts.svg import element, joined
from edgeguard.errors import printable
from edgeguard.estimates import Estimates, estimate, fields_of
from edgeguard.estimators import ESTIMATORS, log_odds
from edgeguard.explanation import Considered, Explained, counted, verdict
from edgeguard.tree import ROOT, STOP, Tree


def page(it: Explained, *, least: float = 0.01) -> str:
    """HTML that needs nothing from the network. least: smallest mass of a branch to draw, in [0, 1]."""
    style = (resources.files("edgeguard") / "explanation_page.css").read_text(encoding="utf-8")
    about = it.considered
    names = {c.code: c.name for c in about.profile.categories}
    flagged = bool(it.decided.y_pred[0, 0])
    heading = element("h1", verdict(it), class_=f"answer {'no' if flagged else 'yes'}")
    read = f"decided on {it.estimator}, {f'calibrated by {it.calibration}' if it.calibrated else 'not calibrated'}"
    texts = (element("blockquote", element("b", f"{role}: "), str(text)) for role, text in it.record.items())
    parts = [
        paragraph(f"{about.guard}, profile {about.profile.name}; {read}.", class_="small"),
        *texts,
        section("What is decided", *decisions(it, names, least), *_besides(it.found)),
        section("What the guard might answer", _key(), *_trees(about, names, least)),
    ]
    if None in about.trees:
        parts.append(details("As the three estimators read it", estimators(about, names)))
    return document(f"{about.guard}: why", *parts, heading=heading, style=style)


# What is decided


def decisions(it: Explained, names: Mapping[str, str], least: float) -> Iterator[Markup]:
    """Tables with a line a label: the model's own number, the calibrated one, its threshold, whether it counts.

    Labels of less than `least` that do not count stand in a table of their own, that is shown when it is asked for.
    """
    columns = [Column("label", number=False), Column("model's own")]
    columns += [Column("calibrated")] if it.calibrated else []
    columns += [Column("threshold"), Column("counts", number=False), Column("certified bounds", number=False)]
    shown: list[int] = []
    small: list[int] = []
    for i in range(len(it.decided.labels)):
        large = i == 0 or it.decided.y_pred[0, i] or max(it.found.scores[i], it.decided.y_prob[0, i]) >= least
        (shown if large else small).append(i)
    for rows in filter(None, (shown, small)):
        classes = ["chosen" if it.decided.y_pred[0, i] else "" for i in rows]
        drawn = table(columns, [_decision(it, names, i) for i in rows], classes=classes)
        more = f"{len(small)} more, each under {least:g}" if len(small) > 1 else f"one more, under {least:g}"
        yield drawn if rows is shown else details(more, drawn)
    if it.calibrated:
        yield paragraph("The bounds are of what decides, the calibrated number.", class_="small")


def _decision(it: Explained, names: Mapping[str, str], i: int) -> list[str]:
    label = it.decided.labels[i]
    low, high = (it.found.bounds[i] if it.decided.bounds is None else it.decided.bounds[0, i]).tolist()
    row = [named(label, names), f"{it.found.scores[i]:.4f}"]
    calibrated = [f"{it.decided.y_prob[0, i]:.4f}"] if it.calibrated else []
    return [*row, *calibrated, f"{it.thresholds.of(label):.3g}", counted(it, label), f"{low:.4f} to {high:.4f}"]


def named(label: str, names: Mapping[str, str]) -> str:
    """`S2, Theft`; the label alone where it has no other name."""
    name = names.get(label, label)
    return label if name == label else f"{label}, {name}"


def _besides(found: Estimates) -> Iterator[Markup]:
    """What the answers say besides: no threshold decides on it."""
    rows = [
        [f"{field}: {name}", f"{found.scores[i]:.4f}", f"{found.bounds[i, 0]:.4f} to {found.bounds[i, 1]:.4f}"]
        for field, places in fields_of(found.labels).items()
        for name, i in places.items()
    ]
    if rows:
        columns = [Column("what the answers say besides", number=False), Column("probability")]
        yield table([*columns, Column("certified bounds", number=False)], rows)


def estimators(about: Considered, names: Mapping[str, str]) -> Markup:
    """A line a label, by each estimator, before any calibration."""
    each = [estimate(about.trees, name) for name in ESTIMATORS]
    first = each[0]
    rows = [
        [named(label, names), *(f"{one.scores[i]:.4f}" for one in each)]
        for i, label in enumerate(first.labels)
        if i != first.safe
    ]
    return table([Column("label", number=False), *map(Column, ESTIMATORS)], rows)


# The tree


@dataclass(frozen=True)
class Branch:
    """Tokens that follow one another with nothing beside them, and what follows behind them.

    places  of the tree, in order
    hidden  how many branches behind them are too small to draw, and their mass together
    """

    places: tuple[int, ...]
    branches: tuple[Branch, ...]
    hidden: tuple[int, float]


def branches(tree: Tree, least: float, place: int = ROOT) -> tuple[tuple[Branch, ...], tuple[int, float]]:
    """What follows a place, heaviest first, and what of it is too small to draw."""
    children = tree.children(place)
    mass = np.exp(tree.logp[children])
    shown = [int(c) for c in children[np.argsort(-mass, kind="stable")] if np.exp(tree.logp[c]) >= least]
    found = tuple(_branch(tree, least, child) for child in shown)
    return found, (len(children) - len(shown), float(mass.sum() - np.exp(tree.logp[shown]).sum()))


def _branch(tree: Tree, least: float, place: int) -> Branch:
    run = [place]
    while tree.off[run[-1]] < least:
        children = tree.children(run[-1])
        only = children[np.exp(tree.logp[children]) >= least]
        if len(only) != 1:
            break
        run.append(int(only[0]))
    behind, hidden = branches(tree, least, run[-1])
    return Branch(tuple(run), behind, hidden)


def _key() -> Markup:
    return paragraph(
        "A line is what the guard might write next, with its probability given what stands before it; the bar and ",
        "“mass” are the probability of all from the beginning. ■ is the end of the answer, ␣ a space.",
        class_="small",
    )


def _trees(about: Considered, names: Mapping[str, str], least: float) -> Iterator[Markup]:
    """A drawing for each question; of several the one that says unsafe the most surely is open."""
    first = max(about.trees, key=lambda code: log_odds(about.trees[code]))
    for code, tree in about.trees.items():
        found, hidden = branches(tree, least)
        odds = f"log-odds of unsafe {log_odds(tree):+.2f}"
        rest = f"Not explored {tree.unexplored:.4f}, off the grammar {tree.off_grammar:.4f}, {odds}."
        drawn = joined(_list(about, tree, found, hidden, ROOT, least), paragraph(rest, class_="small"))
        asked = element("summary", f"Asked about {named(code or '', names)}")
        yield drawn if code is None else element("details", asked, drawn, open=code == first)


def _list(
    about: Considered, tree: Tree, found: Sequence[Branch], hidden: tuple[int, float], place: int, least: float
) -> Markup:
    """The branches behind a place, and what leaves the grammar there."""
    items = [_item(about, tree, branch, least) for branch in found]
    if hidden[0] and hidden[1] >= least / 10:
        items.append(element("li", _mass(hidden[1]), f"{hidden[0]} smaller, {hidden[1]:.4f} together", class_="small"))
    if tree.off[place] >= least:
        off = float(tree.off[place])
        items.append(element("li", _mass(off), f"leaves the grammar, {off:.4f}", class_="small"))
    return element("ul", *items, class_="tree") if items else Markup()


def _item(about: Considered, tree: Tree, branch: Branch, least: float) -> Markup:
    before, last = int(tree.parent[branch.places[0]]), branch.places[-1]
    mass = float(np.exp(tree.logp[last]))
    tokens = [element("kbd", _shown(about, int(tree.token[place]))) for place in branch.places]
    labels = np.array(tree.labels)[tree.named[last] & ~tree.named[before]].tolist()
    parts = [
        _mass(mass),
        joined(*tokens),
        element("span", f" {np.exp(tree.logp[last] - tree.logp[before]):.3f}", class_="p"),
        element("span", f" mass {mass:.4f}", class_="small"),
        *(element("span", f"names {label}", class_="names") for label in labels),
    ]
    if tree.open[last]:
        parts.append(element("span", " not explored further", class_="small"))
    behind = _list(about, tree, branch.branches, branch.hidden, last, least)
    if not behind:
        return element("li", *parts)
    return element("li", element("details", element("summary", *parts), behind, open=True))


def _shown(about: Considered, token: int) -> str:
    """A token as text: a space and a line's end can be seen."""
    return "■" if token == STOP else printable(repr(about.piece(token))[1:-1]).replace(" ", "␣")


def _mass(mass: float) -> Markup:
    """A bar: what is read beside it says the same."""
    bar = element("rect", width=f"{100 * min(1.0, mass):.2f}%", height="100%")
    return element("svg", bar, class_="mass", width="100%", height=4, aria_hidden="true")
