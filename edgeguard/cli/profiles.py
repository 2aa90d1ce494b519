"""`edgeguard profiles`: which guards edgeguard knows how to ask."""

from __future__ import annotations

import click

from edgeguard.cli.options import reported_errors


@click.command(epilog="Example: edgeguard profiles instruct --toml > my-policy.toml")
@click.argument("name", required=False)
@click.option("--toml", is_flag=True, help="Print the profile's file, to make your own from")
@click.option("--json", "as_json", is_flag=True, help="The list as JSON")
def profiles(name: str | None, toml: bool, as_json: bool) -> None:
    """List the guard profiles, or show the categories of one."""
    with reported_errors():
        from edgeguard.profile import list_profiles, load_profile, profile_text

        if toml and not name:
            raise click.UsageError("--toml needs the NAME of a profile")
        if name and toml:
            click.echo(profile_text(name), nl=False)
        elif as_json:
            import json
            from dataclasses import asdict

            found = [load_profile(name)] if name else list_profiles()
            rows = [{**asdict(profile), "answer": profile.answer.row()} for profile in found]
            click.echo(json.dumps(rows, ensure_ascii=False))
        elif name:
            from edgeguard.cli.screen.guards import print_categories

            print_categories(load_profile(name))
        else:
            from edgeguard.cli.screen.guards import print_profiles

            print_profiles(list_profiles())
