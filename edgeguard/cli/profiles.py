"""`edgeguard profiles`: which guards edgeguard knows how to ask."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeguard.cli.options import reported_errors

if TYPE_CHECKING:
    from edgeguard.profile import Refused


@click.command(
    epilog="""\b
Examples:
  edgeguard profiles
  edgeguard profiles llama-guard-3
  edgeguard profiles llama-guard-2 --model Llama-Guard-2-8B.gguf
  edgeguard profiles instruct --toml > my-policy.toml"""
)
@click.argument("name", required=False)
@click.option(
    "--model",
    "-m",
    type=click.Path(path_type=Path),
    help="With NAME: write the prompt as this file's chat template would; no weights are read",
)
@click.option("--toml", is_flag=True, help="Print the profile's file, to make your own from")
@click.option("--json", "as_json", is_flag=True, help="All of it as JSON: a list, of one with NAME")
def profiles(name: str | None, model: Path | None, toml: bool, as_json: bool) -> None:
    """List the guard profiles, or show one: what is asked, how it answers, its taxonomy, where its facts are from.

    NAME is one of the list, or the path of your own TOML file.
    """
    with reported_errors():
        for given, option in ((toml, "--toml"), (model is not None, "--model")):
            if given and not name:
                raise click.UsageError(f"{option} needs the NAME of a profile")
        if toml and (model is not None or as_json):
            raise click.UsageError("--toml excludes --model and --json")
        if name is None:
            _list(as_json)
        elif toml:
            from edgeguard.profile import profile_text

            click.echo(profile_text(name), nl=False)
        else:
            _show(name, model, as_json)


def _list(as_json: bool) -> None:
    from edgeguard.profile import list_profiles, list_refused

    if as_json:
        from edgeguard.description import describe, refused_row

        _echo([*(describe(profile).row() for profile in list_profiles()), *map(refused_row, list_refused())])
    else:
        from edgeguard.cli.screen.profiles import print_profiles

        print_profiles(list_profiles(), list_refused())


def _show(name: str, model: Path | None, as_json: bool) -> None:
    from edgeguard.description import describe, refused_row
    from edgeguard.profile import load_profile

    if (refused := _refused(name)) is not None:
        from edgeguard.cli.screen.profiles import print_refused

        _echo([refused_row(refused)]) if as_json else print_refused(refused)
        return
    profile = load_profile(name)
    chat = None
    if model is not None:
        from edgeguard.formats.chat import read_chat
        from edgeguard.hub import resolved

        chat = read_chat(Path(str(resolved(model))))
    found = describe(profile, chat)
    if as_json:
        _echo([found.row()])
    else:
        from edgeguard.cli.screen.profiles import print_profile

        print_profile(found)


def _refused(name: str) -> Refused | None:
    from edgeguard.profile import list_refused

    return next((guard for guard in list_refused() if guard.name == name), None)


def _echo(rows: list[dict[str, Any]]) -> None:
    import json

    click.echo(json.dumps(rows, ensure_ascii=False, allow_nan=False))
