"""The guards that come with edgeguard, and models pulled from a hub."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from edgeguard.backends import opener
from edgeguard.builtin import ADAPTER, amiss
from edgeguard.cli.screen.console import plain_console
from edgeguard.errors import printable

if TYPE_CHECKING:
    from edgeguard.builtin import BuiltIn, BuiltInFile, Form
    from edgeguard.hub import HubModel

_ORIGINS = {"package": "of the installed package", "cache": "pulled into the cache folder"}


def print_models(guards: Sequence[tuple[BuiltIn, Sequence[BuiltInFile]]]) -> None:
    """What each built-in guard is and what it is made of."""
    console = plain_console()
    for guard, files in guards:
        facts = Table.grid(padding=(0, 2))
        facts.add_column(no_wrap=True, style="bold")
        facts.add_column(overflow="fold")
        facts.add_row(guard.called, Text(printable(f"{guard.release}. {guard.description}")))
        facts.add_row("profile", guard.profile)
        for file in files:
            size = "" if file.path is None else f", {file.n_bytes / 1e6:.1f} MB"
            facts.add_row(file.role, Text(printable(f"{file.file}{size}, {file.license}")))
            facts.add_row("", f"sha256 {file.sha256}")
            where = f"there, hash right; {_ORIGINS[file.origin]}: {file.path}" if file.origin else ""
            color = "bold red" if amiss(guard, file) else "yellow" if file.problem else ""
            facts.add_row("", Text(printable(file.problem or where), color))
        for form in guard.forms:
            facts.add_row("form", _form(guard, form))
            facts.add_row("", f"model_sha256 {form.model_sha256}")
        facts.add_row("card", Text(printable(str(guard.card))))
        console.print(facts)


def print_pulled(models: Sequence[tuple[HubModel, str | None]]) -> None:
    """What was pulled from a hub, and what is wrong with it, if anything."""
    console = plain_console()
    for model, problem in models:
        facts = Table.grid(padding=(0, 2))
        facts.add_column(no_wrap=True, style="bold")
        facts.add_column(overflow="fold")
        facts.add_row("pulled", Text(printable(str(model.wanted))))
        facts.add_row("commit", Text(printable(f"{model.commit}, of {model.endpoint}")))
        for file in model.files:
            facts.add_row("file", Text(printable(f"{file.name}, {file.n_bytes / 1e6:.1f} MB")))
            facts.add_row("", f"sha256 {file.sha256}")
        where = f"there, hash right: {model.path}"
        facts.add_row("", Text(printable(problem), "bold red") if problem else Text(printable(where)))
        console.print(facts)


def _form(guard: BuiltIn, form: Form) -> Text:
    """`q8_0, for llama.cpp, calibrated, made: …, default`."""
    if form.name == ADAPTER:
        where = "the files above"
    elif (folder := guard.form_folder(form)).is_dir():
        where = f"made: {folder}"
    else:
        where = "made at first use"
    fitted = "calibrated" if guard.calibration(form, "marginal") else "not calibrated"
    line = Text(printable(f"{form.name}, for {opener(form.kind).name}, {fitted}, {where}"))
    return line.append(", default" if form.name in guard.default else "", "bold")
