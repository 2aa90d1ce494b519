"""What `evaluate` and `calibrate` found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table
from rich.text import Text

from edgeguard.cli.screen.console import plain_console
from edgeguard.errors import printable

if TYPE_CHECKING:
    from edgeguard.calibration.fitting import LabelFit
    from edgeguard.evaluation.figures import Evaluation
    from edgeguard.evaluation.metrics import Interval
    from edgeguard.evaluation.table import ScoreTable


def print_evaluation(
    table: ScoreTable,
    evaluations: Mapping[str, Evaluation],
    others: Mapping[str, Mapping[str, Interval]],
    calibrated: Mapping[str, bool],
    goal: str,
) -> None:
    """Tables of the verdict, and, where the truth names them, of the categories together and of each."""
    assert table.truth is not None
    console = plain_console()
    unsafe = int(table.truth[:, 0].sum())
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
    if table.truth.shape[1] == 1:
        return
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
    console, notes = plain_console(), []
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
