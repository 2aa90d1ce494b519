"""`edgeguard check`: do this model and this profile fit?"""

from __future__ import annotations

import sys
from typing import Any

import click

from edgeguard.cli.options import calibration_options, load_guard, model_options, reported_errors, waiting


@click.command(
    epilog="""\b
Examples:
  edgeguard check
  edgeguard check --model guard.gguf --profile my-policy.toml --threshold 0.4"""
)
@model_options
@calibration_options
@click.option(
    "--threshold",
    multiple=True,
    metavar="P|LABEL=P|FILE",
    help="As `edgeguard score` takes it [default: the calibration's, else 0.5]",
)
@click.option("--json", "as_json", is_flag=True, help="The result as JSON, all of it")
def check(as_json: bool, **options: Any) -> None:
    """Do this model and this profile fit? Judge the profile's two texts, a known safe and a known unsafe one.

    Shows both verdicts, by how much they differ, and how much probability lies on answers that the profile can read.

    Exit code 1, each marked ✗: the safe text is flagged, or the unsafe text is not, at the thresholds by which `score`
    decides; the unsafe text scores no higher than the safe one; too much probability lies off the grammar (of several
    questions the worst counts, and is named).

    Notes, marked ·, which leave the exit code at 0: the unsafe text is judged unsafe and no category reaches its
    threshold; the chat template in the model file asks otherwise than the guard's published prompt: it drops the
    conversation, refuses its roles, does not tell a prompt from a response, has other categories, another system prompt
    or other words.
    """
    with reported_errors():
        from edgeguard.selftest import self_test

        with load_guard(**options) as guard, waiting("judging the two texts"):
            found = guard.ask(self_test)
            names = {category.code: category.name for category in guard.profile.categories}
        if as_json:
            import json

            click.echo(json.dumps(found.row(), ensure_ascii=False, allow_nan=False))
        else:
            from edgeguard.cli.screen.check import print_self_test

            print_self_test(found, names)
    sys.exit(1 if found.problems else 0)
