"""`edgeguard explain`: the answers a guard considered for one text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeguard.cli.options import (
    load_guard,
    model_options,
    refuse_read,
    reported_errors,
    search_options,
    waiting,
)
from edgeguard.cli.say import say


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
@click.option(
    "--html", type=click.Path(path_type=Path), metavar="FILE", help="Draw it as a page instead; needs no network"
)
def explain(text: str, response: str | None, least: float, as_json: bool, html: Path | None, **options: Any) -> None:
    """Draw the answers that the guard considered for TEXT, and how the three estimators read them.

    Where the guard is asked a question for each category, there is a drawing for each; --policies picks some.
    """
    if html is not None and as_json:
        raise click.UsageError("--html excludes --json")
    if html is not None:
        refuse_read([html], options)
    with reported_errors():
        record = {"prompt": text} if response is None else {"prompt": text, "response": response}
        if html is not None:
            _write_page(html, record, least, options)
            return
        from edgeguard.explanation import considered, explanation

        with load_guard(**options) as guard, waiting("asking the guard"):
            found = guard.ask(considered, record)
        if as_json:
            import json

            click.echo(json.dumps(explanation(found), ensure_ascii=False))
        else:
            from edgeguard.cli.screen.tree import print_trees

            print_trees(found, least=least)


def _write_page(file: Path, record: dict[str, str], least: float, options: dict[str, Any]) -> None:
    from edgeguard.errors import OutputError
    from edgeguard.explanation_page import explained, page
    from edgeguard.files import write_whole

    with load_guard(**options) as guard, waiting("asking the guard"):
        found = guard.ask(explained, record)
    try:
        write_whole(file, page(found, least=least).encode())
    except OSError as error:
        raise OutputError(f"{file} cannot be written: {error.strerror or error}") from None
    say(f"wrote {file}")
