"""What `bench quant` found, and how two of its reports differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeguard.cli.screen.console import plain_console
from edgeguard.errors import printable
from edgeguard.quant.answer import answer, mending
from edgeguard.quant.reading import VERDICTS, floor_of, interval, limits, number, percent, repaired, verdict
from edgeguard.quant.report import HEADLINE

_IN_A_PIPE = 200  # columns: nothing is cut there, and nothing broken that need not be


def print_quant(report: Mapping[str, Any]) -> None:
    """What to ship, a line a variant, and what it did to the scores."""
    console = _console()
    console.print(f"{report['records']:,} records; the reference {printable(report['reference']['name'])}")
    _print_answer(console, report)
    console.print()
    _print_decisions(console, report)
    console.print()
    _print_scores(console, report)
    _print_parts(console, report)
    _print_mending(console, report)
    for one in report["not_told"]:
        console.print(Text(printable(f"not told: {one['what']}: {one['why']}"), "dim"))


def _console() -> Console:
    console = plain_console()
    if not console.is_terminal:
        console.width = _IN_A_PIPE
    return console


def _print_answer(console: Console, report: Mapping[str, Any]) -> None:
    """In the words that the page begins with."""
    said = answer(report)
    colour = {"ship": "green", "reference": "red", "too_few": "yellow"}[said.kind]
    console.print(Text(printable(said.first), f"bold {colour}"))
    for line in said.further:
        console.print(Text(printable(line)))


def _print_decisions(console: Console, report: Mapping[str, Any]) -> None:
    table = _table("variant", "MB", "changed", "at most", "to safe", "to unsafe", "speed")
    limited = bool(limits(report))
    if limited:
        table.add_column("inside?", no_wrap=False)
    for variant in report["variants"]:
        decision, speed = variant["decision"], variant["cost"].get("rate_ratio")
        row = [
            f"{variant['bytes'] / 1e6:,.0f}",
            f"{decision['changed']:,} of {decision['of']:,}",
            f"{decision['at_most']:,}",
            f"{decision['toward_safe']:,}",
            f"{decision['toward_unsafe']:,}",
            "" if speed is None else f"{speed:.2f}×",
        ]
        table.add_row(Text(printable(variant["name"])), *row, *([verdict(decision)] if limited else []))
    console.print(table)
    console.print(Text("changed: verdicts, and how many at most (95 %); speed: over the reference's", "dim"))


def _print_scores(console: Console, report: Mapping[str, Any]) -> None:
    truth = report["unsafe"] is not None
    table = _table("variant", "RMS", "floor", "beyond it?", *(["ΔAUPRC (95 %)"] if truth else []), "repaired")
    for variant in report["variants"]:
        figures = variant["estimators"][HEADLINE]
        row = [
            number(figures["labels"]["unsafe"]["shift"]["odds_rms"]),
            number(floor_of(variant, HEADLINE)),
            (variant["noise"] or {}).get("verdict", ""),
        ]
        if truth:
            row.append(interval(figures["truth"]["labels"]["unsafe"]["changes"]["auprc"]))
        table.add_row(Text(printable(variant["name"])), *row, percent(repaired(variant, HEADLINE)))
    console.print(table)
    said = (
        "RMS: change of the verdict's log-odds, nats; floor: what the model moves by when only threads, batches, "
        "attention kernel or neighbours change; repaired: how much of the drift of P(unsafe) a map fitted without "
        "labels removes"
    )
    console.print(Text(said, "dim"))


def _print_parts(console: Console, report: Mapping[str, Any]) -> None:
    """What the weights and what the rounded activations did, where that was measured."""
    measured = [v for v in report["variants"] if v["weights_or_runtime"]]
    if not measured:
        return
    table = _table("weights or runtime?", "records", "RMS", "weights alone", "activations alone")
    for variant in measured:
        found = variant["weights_or_runtime"]
        figures = [number(found[HEADLINE][name]["odds_rms"]) for name in ("total", "weights", "runtime")]
        table.add_row(Text(printable(variant["name"])), str(found["records"]), *figures)
    console.print()
    console.print(table)


def _print_mending(console: Console, report: Mapping[str, Any]) -> None:
    """What no repair undoes, in the words of the page."""
    lines = [line for variant in report["variants"] if (line := mending(variant, HEADLINE))]
    if not lines:
        return
    console.print()
    for line in lines:
        console.print(Text(printable(line)))
    said = "on the half that repairs are not fitted on, by the best threshold for these very records: an upper limit"
    console.print(Text(said, "dim"))


def _table(first: str, *names: str) -> Table:
    """A table whose numbers are never cut: where the line is too short a name is broken."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, overflow="fold")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    return table


# Two studies

_NAMES = {"changed": "changed", "odds_rms": "RMS", "auprc_change": "ΔAUPRC", "rate": "records/s", "peak": "MiB"}


def print_comparison(found: Mapping[str, Any]) -> None:
    """A line a variant, A → B in each column, marked where it is beyond chance; then those in words."""
    console = _console()
    for one in found["conditions"]:
        console.print(Text(printable(f"{one['what']}: {one['a']} → {one['b']}")))
    if not found["conditions"]:
        console.print("the same machine, versions, records and settings")
    console.print()
    shown = [name for name in _NAMES if any(_by_name(v).get(name) for v in found["variants"])]
    for part in _parts(shown, console):
        table = _table("A → B", *(_NAMES[name] for name in part))
        for variant in found["variants"]:
            figures = _by_name(variant)
            table.add_row(Text(printable(variant["name"])), *(_cell(figures.get(name)) for name in part))
        console.print(table)
        console.print()
    lines = [line for variant in found["variants"] for line in _beyond(variant)]
    console.print(Text("beyond chance and noise (*):" if lines else "nothing is beyond chance and noise", "bold"))
    for line in lines:
        console.print(Text(printable(f"  {line}")))
    for side in ("a", "b"):
        if only := found[f"only_{side}"]:
            console.print(Text(printable(f"only in {side.upper()}: {', '.join(only)}")))
    ship = found["ship"]
    if ship["a"] != ship["b"]:
        console.print(Text(printable(f"ship: {ship['a'] or 'none'} → {ship['b'] or 'none'}"), "bold"))


def _parts(names: Sequence[str], console: Console) -> list[Sequence[str]]:
    """All columns at once where there is room, else three at a time."""
    return [names] if console.width >= 100 else [names[i : i + 3] for i in range(0, len(names), 3)]


def _by_name(variant: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {one["what"]: one for one in variant["figures"]}


def _cell(figure: Mapping[str, Any] | None) -> str:
    if figure is None or (figure["a"] is None and figure["b"] is None):
        return ""
    a, b = (_shown(figure["what"], figure[side]) for side in ("a", "b"))
    return f"{a} → {b} {'*' if figure['beyond'] else ' '}"


def _shown(what: str, value: Any) -> str:
    if value is None:
        return "–"
    if what == "changed":
        return percent(value)
    if what == "verdict":
        return VERDICTS[value]
    return (
        f"{value:+.4f}" if what == "auprc_change" else f"{value:,.0f}" if what in ("peak", "bytes") else number(value)
    )


def _beyond(variant: Mapping[str, Any]) -> list[str]:
    names = {**_NAMES, "bytes": "bytes"}
    lines = [] if variant["same_file"] else [f"{variant['name']}: another file"]
    for one in variant["figures"]:
        a, b = (_shown(one["what"], one[side]) for side in ("a", "b"))
        if one["what"] == "verdict" and one["a"] != one["b"]:
            lines.append(f"{variant['name']}: {a} → {b}")
        elif one["beyond"]:
            lines.append(f"{variant['name']}: {names[one['what']]} {a} → {b}: {one['why']}")
    return lines
