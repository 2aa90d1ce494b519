"""How far a run has come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from edgeguard.cli.screen.console import plain_console


@contextmanager
def progress(total: int | None, done: int) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr; yields a function that counts one record."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=plain_console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task("reading the policy and a first text", total=total, completed=done, rate="")

        def advance() -> None:
            speed = bar.tasks[0].finished_speed or bar.tasks[0].speed
            bar.update(task, advance=1, description="scoring", rate=f"{speed:.1f}/s" if speed else "")

        yield advance


def spinner(what: str) -> AbstractContextManager[Any]:
    """A line on stderr that says what is waited for."""
    return plain_console(stderr=True).status(Text(what))
