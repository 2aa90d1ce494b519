"""What people look at: tables, the token tree, progress. Built on rich; imported when there is something to show."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from rich.tree import Tree as Drawing

from edgeguard.errors import printable
from edgeguard.estimators import ESTIMATORS, bounds, log_odds
from edgeguard.guard import Failure, Guard, Score, SelfTestResult
from edgeguard.profile import Profile
from edgeguard.tree import ROOT, STOP, Tree

if TYPE_CHECKING:
    from edgeguard.answers import Ints
    from edgeguard.builtin import BuiltIn, ModelFile
    from edgeguard.calibration.fitting import LabelFit
    from edgeguard.evaluation.figures import Evaluation
    from edgeguard.evaluation.metrics import Interval
    from edgeguard.evaluation.table import ScoreTable


@contextmanager
def progress(total: int | None, done: int) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr; yields a function that counts one record."""
    bar = Progress(
        TextColumn("scoring"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task("scoring", total=total, completed=done, rate="")

        def advance() -> None:
            speed = bar.tasks[0].finished_speed or bar.tasks[0].speed
            bar.update(task, advance=1, rate=f"{speed:.1f}/s" if speed else "")

        yield advance


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
    Console().print(table)


def _likeliest(score: Score, names: Mapping[str, str]) -> Text:
    top = sorted(score.category_scores.items(), key=lambda pair: -pair[1])[:2]
    parts = []
    for code, p in top:
        if p >= 0.005:
            width = score.bounds[code][1] - score.bounds[code][0]
            name = "" if names.get(code, code) == code else f" {names[code]}"
            parts.append(f"{code}{name} {p:.3f} (+{width:.3f})")
    return Text("; ".join(parts) or "none over 0.005")


def print_tree(guard: Guard, tree: Tree, *, least: float) -> None:
    """The answers the model considered, a branch each, heaviest first; then what each estimator makes of them."""
    console = Console()
    drawing = Drawing(Text("the guard's answer begins", "bold"))
    _grow(drawing, guard, tree, ROOT, least)
    console.print(drawing)
    rest = f"not explored {tree.unexplored:.4f}, off the grammar {tree.off_grammar:.4f}, log-odds {log_odds(tree):+.2f}"
    console.print(Text(rest, "dim"))
    console.print()
    console.print(_estimates(guard, tree))


def _grow(drawing: Drawing, guard: Guard, tree: Tree, place: int, least: float) -> None:
    children = tree.children(place)
    children = children[np.argsort(-tree.logp[children], kind="stable")]
    shown = [int(c) for c in children if np.exp(tree.logp[c]) >= least]
    for child in shown:
        run = [child]
        while len(only := _visible(tree, run[-1], least)) == 1 and tree.off[run[-1]] < least:
            run.append(int(only[0]))
        _grow(drawing.add(_line(guard, tree, run)), guard, tree, run[-1], least)
    hidden = float(np.exp(tree.logp[children]).sum() - np.exp(tree.logp[shown]).sum())
    if hidden >= least / 10:
        drawing.add(Text(f"{len(children) - len(shown)} smaller branches, {hidden:.4f} together", "dim"))
    if tree.off[place] >= least:
        drawing.add(Text(f"leaves the grammar {tree.off[place]:.4f}", "yellow"))


def _visible(tree: Tree, place: int, least: float) -> Ints:
    children = tree.children(place)
    return children[np.exp(tree.logp[children]) >= least]


def _line(guard: Guard, tree: Tree, run: Sequence[int]) -> Text:
    """Tokens in quotes, their probability given what comes before, the mass so far, and what they name."""
    before, last = int(tree.parent[run[0]]), run[-1]
    line = Text()
    for place in run:
        token = int(tree.token[place])
        line.append("⏹" if token == STOP else printable(repr(guard.piece(token))[1:-1]).replace(" ", "␣"), "bold cyan")
        line.append(" ")
    line.append(f" {np.exp(tree.logp[last] - tree.logp[before]):.3f}")
    line.append(f"  mass {np.exp(tree.logp[last]):.4f}", "dim")
    named = tree.named[last] & ~tree.named[before]
    if named.any():
        line.append("  names " + ", ".join(np.array(tree.labels)[named]), "bold green")
    if tree.open[last]:
        line.append("  not explored further", "dim italic")
    return line


def _estimates(guard: Guard, tree: Tree) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, side in (
        ("label", "left"),
        ("", "left"),
        *((e, "right") for e in ESTIMATORS),
        ("certified bounds", "left"),
    ):
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    names = {c.code: c.name for c in guard.profile.categories}
    columns = [estimate(tree) for estimate in ESTIMATORS.values()]
    limits = bounds(tree)
    for i, code in enumerate(tree.labels[:-1]):
        name = names.get(code, "")
        table.add_row(
            Text(printable(code)),
            Text(printable("" if name == code else name)),
            *(f"{column[i]:.4f}" for column in columns),
            f"[{limits[i, 0]:.4f}, {limits[i, 1]:.4f}]".replace("[", "\\["),
        )
    return table


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


def print_models(guards: Sequence[tuple[BuiltIn, Sequence[ModelFile]]]) -> None:
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


def print_quant(report: Mapping[str, Any]) -> None:
    """A line a variant, and what to ship."""
    from edgeguard.quant.report import HEADLINE, floor_of, interval, limits, number, percent

    console, truth = Console(), report["unsafe"] is not None
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
    from edgeguard.quant.report import HEADLINE, number

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


def print_evaluation(
    table: ScoreTable,
    evaluations: Mapping[str, Evaluation],
    others: Mapping[str, Mapping[str, Interval]],
    calibrated: Mapping[str, bool],
    goal: str,
) -> None:
    """Three tables: the verdict, the categories together for every estimator and baseline, and each category."""
    assert table.truth is not None
    console = Console()
    unsafe = int(table.truth.any(axis=1).sum())
    console.print(f"{len(table)} records, {unsafe} unsafe. In brackets: bootstrap 95 % intervals over records.")
    first = "marginal" if "marginal" in evaluations else next(iter(evaluations))
    verdict = evaluations[first].labels["unsafe"]
    console.print()
    console.print(Text("safe or unsafe" + (" (calibrated)" if calibrated[first] else ""), "bold"))
    console.print(_grid([("", verdict.figures)], _VERDICT, name=""))
    if verdict.best is not None:
        b = verdict.best
        console.print(
            f"best threshold for {goal}: {b.value:.4g} (F1 {b.f1:.3f}, precision {b.precision:.3f}, "
            f"recall {b.recall:.3f}, false positives {b.fpr:.3f}); {verdict.n_distinct} distinct scores"
        )
    console.print()
    console.print(Text("the categories together", "bold"))
    rows = [(f"{n} (calibrated)" if calibrated[n] else n, e.overall) for n, e in evaluations.items()]
    console.print(_grid([*rows, *others.items()], _OVERALL, name="estimator"))
    console.print()
    console.print(Text(f"each category, {first}", "bold"))
    labels = [(f"{label} ({one.n_true})", one.figures) for label, one in evaluations[first].labels.items()]
    console.print(_grid(labels[1:], _LABEL, name="label (records)"))


_VERDICT = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "partial_auroc_1": "AUROC to 1 %",
    "partial_auroc_5": "AUROC to 5 %",
    "f1": "F1",
    "precision": "precision",
    "recall": "recall",
    "false_positive_rate": "false positives",
    "ece": "ECE",
    "brier": "Brier",
    "brier_reliability": "Brier: reliability",
    "brier_resolution": "Brier: resolution",
    "log_loss": "log loss",
}
_OVERALL = {
    "micro_f1": "micro F1",
    "macro_f1": "macro F1",
    "hamming_loss": "Hamming",
    "micro_auroc": "micro AUROC",
    "micro_auprc": "micro AUPRC",
    "macro_auprc": "macro AUPRC",
    "classwise_ece": "class ECE",
    "brier": "Brier",
}
_LABEL = {"auroc": "AUROC", "auprc": "AUPRC", "f1": "F1", "precision": "precision", "recall": "recall", "ece": "ECE"}


def _grid(rows: Sequence[tuple[str, Mapping[str, Interval]]], columns: Mapping[str, str], *, name: str) -> Table:
    """A row each; a lone row stands upright, a figure a line, so that it fits any terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    if len(rows) == 1:
        table.show_header = False
        for key, title in columns.items():
            table.add_row(title, *_interval(rows[0][1].get(key)))
        return table
    table.add_column(name, no_wrap=True)
    for title in columns.values():
        table.add_column(title, justify="right")
    for row, figures in rows:
        table.add_row(Text(printable(row)), *("\n".join(_interval(figures.get(key))) for key in columns))
    return table


def _interval(found: Interval | None) -> tuple[str, str]:
    if found is None or np.isnan(found.value):
        return "", ""
    return f"{found.value:.3f}", "" if np.isnan(found.low) else f"{found.low:.3f}–{found.high:.3f}"


def print_fits(fits: Sequence[LabelFit]) -> None:
    """What a calibration does to each label, and what its threshold gave; then what was left alone, and why."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("label", no_wrap=True)
    table.add_column("records", justify="right", no_wrap=True)
    table.add_column("map", no_wrap=True)
    for name in ("log loss", "mapped", "threshold", "prec.", "recall", "FPR", "F1"):
        table.add_column(name, justify="right", no_wrap=True)
    console, notes = Console(), []
    for fit in fits:
        t = fit.threshold
        numbers = [fit.loss_before, fit.loss_after]
        numbers += [t.value, t.precision, t.recall, t.fpr, t.f1] if t and t.met else [np.nan] * 5
        shown = ("" if np.isnan(x) else f"{x:.3f}" for x in numbers)
        table.add_row(printable(fit.label), str(fit.n_true), fit.map.method if fit.map else "none", *shown)
        if fit.map is None:
            notes.append(f"{fit.label} has no map: {fit.reason}")
        if t and not t.met:
            notes.append(f"{fit.label}: no threshold reaches the goal")
    console.print(table)
    for note in notes:
        console.print(Text(printable(note), "yellow"))


def print_categories(profile: Profile) -> None:
    """The taxonomy of one profile."""
    table = Table(box=None, pad_edge=False, header_style="bold", title=None)
    for name in ("code", "name", "description"):
        table.add_column(name)
    for category in profile.categories:
        table.add_row(*(Text(printable(t)) for t in (category.code, category.name, category.description)))
    Console().print(Text(printable(f"{profile.name}: {profile.description}")))
    Console().print(table)


def print_self_test(results: Sequence[tuple[str, SelfTestResult]], problems: Sequence[str]) -> None:
    """The self-test pair side by side, and what is wrong."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, side in (
        ("text", "left"),
        ("on the grammar", "right"),
        ("P(unsafe)", "right"),
        ("log-odds", "right"),
    ):
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    table.add_column("likeliest first tokens")
    for kind, result in results:
        first = "  ".join(f"{printable(repr(t)[1:-1])} {p:.2f}" for t, p in result.first_tokens[:4])
        table.add_row(
            f"known {kind}",
            f"{result.grammar_mass:.4f}",
            f"{result.unsafe:.4f}",
            f"{result.margin:+.2f}",
            Text(first),
        )
    console = Console()
    console.print(table)
    for problem in problems:
        console.print(Text(f"✗ {problem}", "bold red"))
    if not problems:
        console.print(Text("✓ the profile fits the model", "bold green"))
