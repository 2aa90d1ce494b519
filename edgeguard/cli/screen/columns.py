"""Tables for the width there is: columns are left out, numbers are never cut; in a pipe all of them stand."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeguard.errors import printable

_ANY = 10_000  # characters: wider than any line
_GAP = 2


def sized_console() -> Console:
    """Stdout; what has no width of its own, a pipe or a file, is as wide as the lines are, unless COLUMNS says less."""
    console = Console(markup=False, emoji=False)
    if not console.is_terminal and not os.environ.get("COLUMNS", "").isdigit():
        console.width = _ANY
    return console


@dataclass(frozen=True)
class Fitted:
    """A table, and the names of the columns that there was no room for."""

    table: Table
    left_out: tuple[str, ...]


def fitted(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]], *, kept: int = 1) -> Fitted:
    """The columns from the left on that fit, those after the first `kept` right-aligned; a cell may have two lines.

    The first `kept` are always there: names, which a very narrow terminal breaks.
    """
    widths = [
        max(len(line) for cell in (name, *(row[i] for row in rows)) for line in printable_lines(cell))
        for i, name in enumerate(columns)
    ]
    room, n = console.width, 0
    for i, width in enumerate(widths):
        room -= width + (_GAP if i else 0)
        if room < 0 and i >= kept:
            break
        n = i + 1
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for i, name in enumerate(columns[:n]):
        numbers = i >= kept
        table.add_column(name, justify="right" if numbers else "left", no_wrap=numbers, overflow="fold")
    for row in rows:
        table.add_row(*(Text("\n".join(printable_lines(cell))) for cell in row[:n]))
    return Fitted(table, tuple(columns[n:]))


def printable_lines(cell: str) -> list[str]:
    """The lines of a cell, without control characters."""
    return [printable(line) for line in cell.split("\n")]


def told_left_out(names: Sequence[str]) -> Text:
    """What a narrow terminal left out, and where it stands."""
    return Text(f"No room here for {', '.join(names)}: a wider terminal, a pipe and --json have them.", "dim")
