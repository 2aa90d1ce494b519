"""`edgeguard explain`: the answers a guard considered for one text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from edgeguard.cli.options import load_guard, model_options, reported_errors, search_options

if TYPE_CHECKING:
    from edgeguard.guard import Guard
    from edgeguard.tree import Tree


@click.command(epilog='Example: edgeguard explain "How do I pick a lock?" --tolerance 0.05')
@click.argument("text")
@click.option("--response", help="An assistant's answer to TEXT, to be judged in its place")
@model_options
@search_options
@click.option(
    "--least",
    type=click.FloatRange(0, 1),
    default=0.01,
    show_default=True,
    help="Smallest mass of a branch to draw",
)
@click.option("--json", "as_json", is_flag=True, help="The whole tree as JSON")
def explain(text: str, response: str | None, least: float, as_json: bool, **options: Any) -> None:
    """Draw the answers that the guard considered for TEXT, and how the three estimators read them."""
    with reported_errors():
        record = {"prompt": text} if response is None else {"prompt": text, "response": response}
        with load_guard(**options) as guard:
            tree = guard.explore(record)
            if as_json:
                import json

                click.echo(json.dumps(_as_json(guard, tree), ensure_ascii=False))
            else:
                from edgeguard.cli.screen.tree import print_tree

                print_tree(guard, tree, least=least)


def _as_json(guard: Guard, tree: Tree) -> dict[str, Any]:
    """The tree in the order it was explored; `parent` is an index into `places`."""
    import numpy as np

    from edgeguard.estimators import ESTIMATORS, bounds, log_odds
    from edgeguard.tree import STOP

    labels = np.array(tree.labels)
    places = [
        {
            "parent": None if i == 0 else int(tree.parent[i]),
            "token": None if i == 0 or tree.token[i] == STOP else int(tree.token[i]),
            "text": "" if i == 0 or tree.token[i] == STOP else guard.piece(int(tree.token[i])),
            "stop": bool(i > 0 and tree.token[i] == STOP),
            "mass": float(np.exp(tree.logp[i])),
            "logp": None if np.isneginf(tree.logp[i]) else float(tree.logp[i]),
            "names": labels[tree.named[i]].tolist(),
            "explored": bool(tree.expanded[i]),
            "off_grammar": float(tree.off[i]),
        }
        for i in range(len(tree.logp))
    ]
    return {
        "profile": guard.profile.name,
        "guard": guard.name,
        "unexplored": tree.unexplored,
        "off_grammar": tree.off_grammar,
        "margin": log_odds(tree),
        "estimates": {
            name: dict(zip(tree.labels, estimate(tree).tolist(), strict=True)) for name, estimate in ESTIMATORS.items()
        },
        "bounds": dict(zip(tree.labels, bounds(tree).tolist(), strict=True)),
        "places": places,
    }
