"""Tables of a page, as data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

NOT_TOLD = "≈"  # before a figure that is not told apart from no change: what is grey is marked without colour too


@dataclass(frozen=True)
class Cell:
    """What stands in one place. kind: a class of style.css: "grey", "text" for words, "code" for what is not read."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Row:
    """A line; its first cell is its head. strong: the one that the page is about."""

    cells: tuple[Cell, ...]
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """heads and the cells of each row are as many."""

    heads: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str = ""

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of each column: "text" where words stand in it, which begin at its left."""
        columns = zip(*(row.cells for row in self.rows), strict=True)
        words = ("text" if any(not {"text", "code"}.isdisjoint(c.kind.split()) for c in column) else "" for column in columns)
        return tuple(words) or ("",) * len(self.heads)


def table(
    heads: Sequence[str], rows: Iterable[Sequence[str | Cell]], *, strong: str | None = None, note: str = ""
) -> Table:
    """A table of texts and cells; the row whose head is `strong` stands out."""
    made = (tuple(cell if isinstance(cell, Cell) else Cell(cell) for cell in row) for row in rows)
    return Table(tuple(heads), tuple(Row(cells, cells[0].text == strong) for cells in made), note)


def grey(text: str) -> Cell:
    """A figure that says nothing: grey, and with a sign of its own."""
    return Cell(f"{NOT_TOLD}\N{NO-BREAK SPACE}{text}", "grey")
