"""The guards and profiles that edgeguard knows, and whether one fits a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeguard.errors import printable
from edgeguard.profile import Profile

if TYPE_CHECKING:
    from edgeguard.builtin import BuiltIn, BuiltInFile


def print_profiles(profiles: Sequence[Profile]) -> None:
    """One line a profile."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("name", no_wrap=True)
    table.add_column("taxonomy", no_wrap=True)
    table.add_column("labels", justify="right")
    table.add_column("what it is")
    for profile in profiles:
        taxonomy = f"{profile.taxonomy} v{profile.taxonomy_version}"
        table.add_row(profile.name, taxonomy, str(len(profile.categories)), Text(printable(profile.description)))
    Console().print(table)


def print_categories(profile: Profile) -> None:
    """The taxonomy of one profile."""
    table = Table(box=None, pad_edge=False, header_style="bold", title=None)
    for name in ("code", "name", "description"):
        table.add_column(name)
    for category in profile.categories:
        table.add_row(*(Text(printable(t)) for t in (category.code, category.name, category.description)))
    Console().print(Text(printable(f"{profile.name}: {profile.description}")))
    Console().print(table)


def print_models(guards: Sequence[tuple[BuiltIn, Sequence[BuiltInFile]]]) -> None:
    """What each built-in guard is and what it is made of."""
    console = Console()
    for guard, files in guards:
        facts = Table.grid(padding=(0, 2))
        facts.add_column(no_wrap=True, style="bold")
        facts.add_column(overflow="fold")
        facts.add_row(guard.name, Text(printable(f"version {guard.version}. {guard.description}")))
        facts.add_row("profile", guard.profile)
        for file in files:
            size = "" if file.path is None else f", {file.n_bytes / 1e6:.1f} MB"
            facts.add_row(file.role, Text(printable(f"{file.file}{size}, {file.license}")))
            facts.add_row("", f"sha256 {file.sha256}")
            facts.add_row("", Text(printable(file.problem), "bold red") if file.problem else Text("there, hash right"))
        facts.add_row("sha256", f"{guard.model_sha256} (of both, the model_sha256 of its scores)")
        facts.add_row("card", Text(printable(str(guard.card))))
        console.print(facts)
