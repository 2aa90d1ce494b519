"""`edgeguard check`: do this model and this profile fit?"""

from __future__ import annotations

import sys
from typing import Any

import click

from edgeguard.cli.options import load_guard, model_options, reported_errors


@click.command(epilog="Example: edgeguard check --profile instruct")
@model_options
@click.option("--json", "as_json", is_flag=True, help="The result as JSON")
def check(as_json: bool, **options: Any) -> None:
    """Run the profile's self-test: a known safe and a known unsafe text.

    Shows how much probability lies on answers that the profile can read, and whether the two texts get
    different verdicts. A wrong template, an empty conversation and a wrong grammar show here. Exit code 1
    if the profile does not fit the model.
    """
    with reported_errors():
        from edgeguard.selftest import self_test

        with load_guard(**options) as guard:
            found = self_test(guard)
        if as_json:
            import json

            click.echo(json.dumps(found.row(), ensure_ascii=False))
        else:
            from edgeguard.cli.screen.guards import print_self_test

            print_self_test(found)
    sys.exit(1 if found.problems else 0)
