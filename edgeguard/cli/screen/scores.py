"""Scores of records, a line each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table
from rich.text import Text

from edgeguard.cli.screen.console import plain_console
from edgeguard.errors import printable
from edgeguard.guard import Score
from edgeguard.rows.record import Failure


def print_scores(lines: Sequence[tuple[str, Score | Failure]], names: Mapping[str, str]) -> None:
    """One line a record: verdict, P(unsafe), the likeliest categories with the width of their bounds."""
    table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
    table.add_column("id", overflow="ellipsis", no_wrap=True, max_width=16)
    table.add_column("verdict", no_wrap=True)
    table.add_column("P(unsafe)", justify="right", no_wrap=True)
    table.add_column("likeliest categories", max_width=36)
    table.add_column("text", overflow="ellipsis", no_wrap=True, ratio=1)  # what room the others leave
    for text, result in lines:
        id_ = Text(printable(str("" if result.id is None else result.id)))
        if isinstance(result, Failure):
            table.add_row(id_, Text("error", "yellow"), "", Text(printable(result.message), "yellow"), Text(text))
            continue
        verdict = Text("FLAGGED", "bold red") if result.flagged else Text("ok", "green")
        table.add_row(id_, verdict, f"{result.unsafe:.3f}", _likeliest(result, names), Text(text))
    plain_console().print(table)


def _likeliest(score: Score, names: Mapping[str, str]) -> Text:
    top = sorted(score.category_scores.items(), key=lambda pair: -pair[1])[:2]
    parts = []
    for code, p in top:
        if p >= 0.005:
            width = score.bounds[code][1] - score.bounds[code][0]
            name = "" if names.get(code, code) == code else f" {names[code]}"
            parts.append(f"{code}{name} {p:.3f} (+{width:.3f})")
    return Text("; ".join(parts) or "none over 0.005")
