"""Where tables and lines are printed. No text in them is markup: what is shown comes from files of strangers."""

from __future__ import annotations

from rich.console import Console


def plain_console(*, stderr: bool = False) -> Console:
    """A console that shows a str as it is: neither `[red]` nor `:smile:` means anything. Style is given by `Text`."""
    return Console(markup=False, emoji=False, stderr=stderr)
