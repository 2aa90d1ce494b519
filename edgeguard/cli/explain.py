"""`edgeguard explain`: the answers a guard considered for one text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeguard.cli.options import (
    calibration_options,
    load_guard,
    model_options,
    refuse_read,
    reported_errors,
    search_options,
    waiting,
)
from edgeguard.cli.say import say

if TYPE_CHECKING:
    from edgeguard.explanation import Explained


@click.command(epilog='Example: edgeguard explain "How do I pick a lock?" --tolerance 0.05')
@click.argument("text")
@click.option("--response", help="An assistant's answer to TEXT, to be judged in its place")
@model_options
@search_options
@calibration_options
@click.option(
    "--estimator",
    "-e",
    type=click.Choice(["conditional", "joint", "marginal"]),
    default="marginal",
    show_default=True,
    help="Whose numbers are decided on, and calibrated where there is a calibration of them",
)
@click.option(
    "--least",
    type=click.FloatRange(0, 1),
    default=0.01,
    show_default=True,
    help="Smallest mass of a branch to draw",
)
@click.option("--json", "as_json", is_flag=True, help="The whole tree as JSON")
@click.option(
    "--html", type=click.Path(path_type=Path), metavar="FILE", help="Draw it as a page instead; needs no network"
)
def explain(text: str, response: str | None, least: float, as_json: bool, html: Path | None, **options: Any) -> None:
    """Draw the answers that the guard considered for TEXT, and say what it decides on them.

    For each label the model's own probability and the calibrated one, the threshold and whether it counts; then how the
    three estimators read the answers. Where the guard is asked a question for each category, there is a drawing for
    each; --policies picks some.
    """
    if html is not None and as_json:
        raise click.UsageError("--html excludes --json")
    if html is not None:
        refuse_read([html], options)
    with reported_errors():
        record = {"prompt": text} if response is None else {"prompt": text, "response": response}
        from edgeguard.explanation import as_json as explanation
        from edgeguard.explanation import explained

        with load_guard(**options) as guard, waiting("asking the guard"):
            found = guard.ask(explained, record)
        if html is not None:
            _write_page(html, found, least)
        elif as_json:
            import json

            click.echo(json.dumps(explanation(found), ensure_ascii=False))
        else:
            from edgeguard.cli.screen.tree import print_explained

            print_explained(found, least=least)


def _write_page(file: Path, found: Explained, least: float) -> None:
    from edgeguard.errors import OutputError
    from edgeguard.explanation_page import page
    from edgeguard.files import write_whole

    try:
        write_whole(file, page(found, least=least).encode())
    except OSError as error:
        raise OutputError(f"{file} cannot be written: {error.strerror or error}") from None
    say(f"wrote {file}")
