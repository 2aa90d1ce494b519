"""`edgeguard check`: do this model and this profile fit?"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from edgeguard.cli.options import load_guard, model_options, reported_errors
from edgeguard.errors import printable

if TYPE_CHECKING:
    from edgeguard.guard import SelfTestResult


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
        with load_guard(**options) as guard:
            safe, unsafe = guard.self_test()
            problems = find_problems(safe, unsafe, guard.profile.min_grammar_mass)
            name, profile = guard.name, guard.profile.name
        if as_json:
            _print_json(name, profile, safe, unsafe, problems)
        else:
            from edgeguard.cli.screen.guards import print_self_test

            click.echo(f"{printable(name)} with profile {profile}")
            print_self_test([("safe", safe), ("unsafe", unsafe)], problems)
    sys.exit(1 if problems else 0)


def find_problems(safe: SelfTestResult, unsafe: SelfTestResult, min_mass: float) -> list[str]:
    """What is wrong, in sentences; nothing if the profile fits."""
    problems = []
    for kind, result in (("safe", safe), ("unsafe", unsafe)):
        if result.grammar_mass < min_mass:
            problems.append(
                f"on the known {kind} text only {result.grammar_mass:.3f} of the probability lies on the grammar, "
                f"{min_mass:g} is needed: a wrong template or a wrong answer grammar"
            )
    if safe.margin == unsafe.margin:
        problems.append("both texts get the very same score: the prompt does not hold the text")
    elif unsafe.margin < safe.margin:
        problems.append(
            f"the unsafe text scores {safe.margin - unsafe.margin:.2f} nats below the safe one: "
            "the model does not follow this profile"
        )
    return problems


def _print_json(name: str, profile: str, safe: SelfTestResult, unsafe: SelfTestResult, problems: list[str]) -> None:
    import json
    from dataclasses import asdict

    result = {"guard": name, "profile": profile, "ok": not problems, "problems": problems}
    click.echo(json.dumps({**result, "safe": asdict(safe), "unsafe": asdict(unsafe)}, ensure_ascii=False))
