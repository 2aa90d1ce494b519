"""What `evaluate` and `calibrate` found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeguard.cli.screen.columns import fitted, sized_console, told_left_out
from edgeguard.errors import printable

if TYPE_CHECKING:
    from edgeguard.calibration.fitting import LabelFit
    from edgeguard.calibration.thresholds import ChosenThreshold
    from edgeguard.evaluation.figures import LabelEvaluation
    from edgeguard.evaluation.metrics import Interval
    from edgeguard.evaluation.sources import LeftOut
    from edgeguard.evaluation.summary import Greedy, Summary
    from edgeguard.evaluation.unlabelled import LabelShift

SORTED_BY = ("label", "records", "auroc", "auprc", "f1", "precision", "recall", "false_positive_rate", "ece")


def print_evaluation(summary: Summary, *, sort: str | None = None) -> None:
    """Tables of the verdict, and, where the truth names them, of the categories together and of each.

    sort  one of SORTED_BY, with a "-" before it the other way round; None: the taxonomy's order
    """
    console, main = sized_console(), summary.main
    unsafe = int(summary.truth[:, 0].sum())
    console.print(f"{len(summary.table)} records, {unsafe} unsafe. Behind a figure: its 95 % interval.")
    console.print()
    console.print(Text("safe or unsafe" + (" (calibrated)" if summary.calibrated[main] else ""), "bold"))
    verdict = summary.evaluations[main].labels["unsafe"]
    _print_verdict(console, verdict)
    _print_decisions(console, summary, verdict)
    if summary.truth.shape[1] > 1:
        _print_categories(console, summary, sort)
    if summary.notices:
        console.print()
    for line in summary.notices:
        console.print(Text(printable(line) + ".", "yellow"))


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
    "micro_precision": "precision",
    "micro_recall": "recall",
    "macro_f1": "macro F1",
    "micro_auprc": "micro AUPRC",
    "micro_auroc": "micro AUROC",
    "macro_auprc": "macro AUPRC",
    "hamming_loss": "Hamming",
    "classwise_ece": "class ECE",
    "brier": "Brier",
}
_LABEL = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "f1": "F1",
    "precision": "precision",
    "recall": "recall",
    "false_positive_rate": "FPR",
    "ece": "ECE",
}


def _print_verdict(console: Console, verdict: LabelEvaluation) -> None:
    """A figure a line, with its interval, or why there is none."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, title in _VERDICT.items():
        figure = verdict.figures[key]
        ends = f"{figure.low:.3f}–{figure.high:.3f}" if not np.isnan(figure.low) else ""
        said = Text(ends) if ends else Text(printable(figure.why), "dim")
        table.add_row(title, "" if np.isnan(figure.value) else f"{figure.value:.3f}", said)
    console.print(table)
    console.print(Text(f"{verdict.n_distinct} distinct scores", "dim"))


def _print_decisions(console: Console, summary: Summary, verdict: LabelEvaluation) -> None:
    """The decision, the best threshold of the verdict, and the greedy answer in the same terms."""
    overall = summary.evaluations[summary.main].overall
    threshold = summary.thresholds[summary.main].of("unsafe")
    rows = [
        (
            "as decided",
            f"{threshold:.4g}",
            *_cells(verdict.figures, _DECISION),
            *(_cells(overall, _MICRO) if overall else ()),
        )
    ]
    blank = [""] * len(_MICRO) if overall else []
    if verdict.best is not None:
        rows.append((f"best threshold for {summary.goal}", *_chosen(verdict.best), *blank))
    if found := summary.greedy:
        micro = _cells(found.categories, _MICRO) if overall else []
        rows.append(("greedy answer (argmax)", "", *_cells(found.figures, _DECISION), *micro))
        if found.at_recall is not None and found.at_precision is not None:
            rows.append(("scores, at its recall", *_chosen(found.at_recall), *blank))
            rows.append(("scores, at its precision", *_chosen(found.at_precision), *blank))
    if len(rows) > 1:
        console.print()
        _print_fitted(
            console, ("decisions", "threshold", *_DECISION.values(), *(_MICRO.values() if overall else ())), rows
        )
    if summary.greedy is not None:
        console.print(Text(_over(summary.greedy), "dim"))


_MICRO = {"micro_precision": "micro precision", "micro_recall": "micro recall", "micro_f1": "micro F1"}


def _over(found: Greedy) -> str:
    """The decision less the greedy answer, a difference with the interval of the same draws each."""
    titles = {**_DECISION, **_MICRO}
    parts = []
    for name in ("recall", "false_positive_rate", "micro_precision", "micro_recall", "micro_f1"):
        one = found.over.get(name)
        if one is not None and not np.isnan(one.value):
            ends = "" if np.isnan(one.low) else f" ({one.low:+.3f} to {one.high:+.3f})"
            parts.append(f"{titles[name]} {one.value:+.3f}{ends}")
    return f"as decided, beside the greedy answer: {', '.join(parts)}"


_DECISION = {"precision": "precision", "recall": "recall", "f1": "F1", "false_positive_rate": "FPR"}


def _chosen(found: ChosenThreshold) -> tuple[str, ...]:
    numbers = (found.precision, found.recall, found.f1, found.fpr)
    return (f"{found.value:.4g}", *(f"{x:.3f}" for x in numbers)) if found.met else ("none", *[""] * 4)


def _print_categories(console: Console, summary: Summary, sort: str | None) -> None:
    console.print()
    console.print(Text("the categories together", "bold"))
    evaluations = summary.evaluations
    rows = [(f"{n} (calibrated)" if summary.calibrated[n] else n, e.overall) for n, e in evaluations.items()]
    told = [(name, *_cells(figures, _OVERALL, ends=True)) for name, figures in [*rows, *summary.others.items()]]
    _print_fitted(console, ("decided by", *_OVERALL.values()), told)
    found = {k: v for k, v in evaluations[summary.main].labels.items() if k != "unsafe"}
    shown = [(label, one) for label, one in in_order(found, sort) if one.n_true or one.n_pred]
    cells = [(label, str(one.n_true), *_cells(one.figures, _LABEL, ends=True)) for label, one in shown]
    if cells:
        console.print()
        console.print(Text(f"each category, {summary.main}", "bold"))
        _print_fitted(console, ("label", "records", *_LABEL.values()), cells)


def in_order(found: Mapping[str, LabelEvaluation], sort: str | None) -> list[tuple[str, LabelEvaluation]]:
    """Labels by name, by records (the most first) or by a figure (the worst first); those without it at the end."""
    pairs = list(found.items())
    if sort is None:
        return pairs
    key, turned = sort.removeprefix("-"), sort.startswith("-")
    if key == "label":
        return sorted(pairs, key=lambda pair: pair[0], reverse=turned)
    losses = ("ece", "false_positive_rate", "records")

    def value(one: LabelEvaluation) -> float:
        number = one.n_true if key == "records" else one.figures[key].value
        return number * (-1 if key in losses else 1) * (-1 if turned else 1)

    return sorted(pairs, key=lambda pair: (bool(np.isnan(value(pair[1]))), value(pair[1])))


def _print_fitted(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = fitted(console, columns, rows)
    console.print(table.table)
    if table.left_out:
        console.print(told_left_out(table.left_out))


def _cells(figures: Mapping[str, Interval], columns: Iterable[str], *, ends: bool = False) -> list[str]:
    """A figure a cell, below it its interval."""
    cells = []
    for key in columns:
        found = figures.get(key)
        if found is None or np.isnan(found.value):
            cells.append("")
        elif ends and not np.isnan(found.low):
            cells.append(f"{found.value:.3f}\n{found.low:.3f}–{found.high:.3f}")
        else:
            cells.append(f"{found.value:.3f}")
    return cells


def print_fits(fits: Sequence[LabelFit], *, two_stage: bool = False) -> None:
    """What a calibration does to each label, and what its threshold gave; then what was left alone, and why."""
    console, rows = sized_console(), []
    reasons: dict[str, list[str]] = {}
    for fit in fits:
        t = fit.threshold
        if fit.map is None:
            reasons.setdefault(f"no map: {fit.reason}", []).append(fit.label)
        if t and not t.met:
            reasons.setdefault("no threshold that reaches the goal", []).append(fit.label)
        if fit.map is None and t is None:
            continue
        numbers = [t.value, t.precision, t.recall, t.f1, t.fpr] if t and t.met else [np.nan] * 5
        numbers += [fit.loss_before, fit.loss_after]
        shown = ("" if np.isnan(x) else f"{x:.3f}" for x in numbers)
        rows.append((fit.label, str(fit.n_true), fit.map.method if fit.map else "none", *shown))
    columns = ("label", "records", "map", "threshold", "precision", "recall", "F1", "FPR", "log loss", "mapped")
    if rows:
        _print_fitted(console, columns, rows)
        chosen_on = "the records that the threshold was chosen on" + (
            ": of a category the unsafe ones" if two_stage else ""
        )
        console.print(Text(f"precision to FPR: on {chosen_on}", "dim"))
    for reason, labels in reasons.items():
        verb = "has" if len(labels) == 1 else "have"
        console.print(Text(printable(f"{', '.join(labels)} {verb} {reason}"), "yellow"))


def print_left_out(found: LeftOut) -> None:
    """Each source by the fit on the others, the worst first."""
    console = sized_console()
    console.print()
    methods = " and ".join(dict.fromkeys(found.methods[key] for key in ("unsafe", "")))
    console.print(Text(f"each source, by maps ({methods}) fitted on the others", "bold"))
    columns = ("source", "records", "unsafe", "mean P(unsafe)", "ECE", "class ECE")
    rows = [
        (
            printable(one.name),
            str(one.n),
            f"{one.share:.2f}",
            f"{one.mean:.2f}",
            _with_ends(one.ece),
            "" if one.categories is None else _with_ends(one.categories),
        )
        for one in sorted(found.sources, key=lambda one: -one.ece.value)
    ]
    _print_fitted(console, columns, rows)
    worst = found.worst_categories
    console.print(
        f"worst: {_with_ends(found.worst)} ({printable(found.worst_source)})"
        + ("" if worst is None else f"; of the categories {_with_ends(worst)}")
    )


def _with_ends(figure: Interval) -> str:
    return f"{figure.value:.3f}" + ("" if np.isnan(figure.low) else f" {figure.low:.3f}–{figure.high:.3f}")


def print_shifts(shifts: Sequence[LabelShift], before: Mapping[str, float], after: Mapping[str, float]) -> None:
    """What a move does to each label, and to its threshold."""
    console, rows = sized_console(), []
    for one in shifts:
        share = "" if one.after is None else f"{one.after.value:.3f} {one.after.low:.3f}–{one.after.high:.3f}"
        moved = f"{before[one.label]:.4g} → {after[one.label]:.4g}" if one.label in before else ""
        rows.append((one.label, f"{one.before:.3f}", share, "" if one.reason else f"{one.by:+.2f}", moved))
    _print_fitted(console, ("label", "fitted at", "share now", "moved, nats", "threshold"), rows)
    for one in shifts:
        if one.reason:
            console.print(Text(printable(f"{one.label} is left alone: {one.reason}"), "yellow"))
