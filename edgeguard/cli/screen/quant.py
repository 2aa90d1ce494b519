"""What `bench quant` found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeguard.cli.screen.console import plain_console
from edgeguard.errors import printable
from edgeguard.quant.reading import floor_of, interval, limits, number, percent
from edgeguard.quant.report import HEADLINE


def print_quant(report: Mapping[str, Any]) -> None:
    """A line a variant, and what to ship."""
    console, truth = plain_console(), report["unsafe"] is not None
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("variant", no_wrap=True)
    names = ["MB", "flipped", "at most", "RMS", "floor", *(["ΔAUPRC"] if truth else []), "repaired", "speed"]
    for name in names:
        table.add_column(name, justify="right", no_wrap=name != "ΔAUPRC")
    for variant in report["variants"]:
        figures = variant["estimators"][HEADLINE]
        unsafe, fix = figures["labels"]["unsafe"], variant["repair"][HEADLINE]["labels"]["unsafe"]
        row = [
            f"{variant['n_bytes'] / 1e6:.0f}",
            percent(unsafe["flips"]["rate"]),
            percent(unsafe["flips"]["high"]),
            number(unsafe["shift"]["odds_rms"]),
            number(floor_of(variant, HEADLINE)),
        ]
        if truth:
            changes = figures["truth"]["labels"]["unsafe"]["changes"]
            row.append(interval(changes["auprc"]))
        gone = 1 - fix["rms_after"] / fix["rms_before"] if fix["rms_before"] else None
        speed = variant["cost"].get("rate_ratio")
        row += [percent(gone), "" if speed is None else f"{speed:.2f}×"]
        table.add_row(Text(printable(variant["name"])), *row)
    console.print(f"{report['records']} records; the reference {printable(report['reference']['name'])}")
    console.print(table)
    said = (
        "flipped: verdicts that changed, and the end of the rate's 95 % interval; RMS: change of the verdict's "
        "log-odds, nats; floor: what the model moves by when only threads, batches, attention kernel or neighbours "
        "change; repaired: how much of the drift of P(unsafe) a map fitted without labels removes"
    )
    console.print(Text(said, "dim"))
    _print_parts(console, report)
    if within := limits(report):
        ship = report["recommendation"]["ship"]
        line = f"ship {ship} ({within})" if ship else f"no variant keeps inside {within}"
        console.print(Text(line, "bold green" if ship else "bold red"))


def _print_parts(console: Console, report: Mapping[str, Any]) -> None:
    """What the weights and what the rounded activations did, where that was measured."""
    measured = [v for v in report["variants"] if v["weights_or_runtime"]]
    if not measured:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("weights or runtime?", no_wrap=True)
    for name in ("RMS", "weights alone", "activations alone"):
        table.add_column(name, justify="right")
    for variant in measured:
        parts = variant["weights_or_runtime"][HEADLINE]
        figures = [number(parts[name]["odds_rms"]) for name in ("total", "weights", "runtime")]
        table.add_row(Text(printable(variant["name"])), *figures)
    console.print()
    console.print(table)
    console.print(
        Text(f"of the first {measured[0]['weights_or_runtime']['records']} records, with float activations", "dim")
    )
