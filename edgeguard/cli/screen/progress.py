"""How far a run has come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from edgeguard.cli.screen.console import plain_console


@contextmanager
def progress(total: int | None, done: int) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr; yields a function that counts one record."""
    bar = Progress(
        TextColumn("scoring"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=plain_console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task("scoring", total=total, completed=done, rate="")

        def advance() -> None:
            speed = bar.tasks[0].finished_speed or bar.tasks[0].speed
            bar.update(task, advance=1, rate=f"{speed:.1f}/s" if speed else "")

        yield advance
