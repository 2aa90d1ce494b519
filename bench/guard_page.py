"""A guard's figures as Markdown: what its card says first, and the details behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from guard_measures import FEW, Drawn, Group, Interval, interval, worst_calibrated
from guard_records import Records
from guard_targets import PUBLISHED, Outcome

VERDICT = ("AUROC", "AUPRC", "F1", "false positives", "Brier", "Brier raw", "ECE", "ECE raw")
CODES = ("micro F1", "macro F1", "micro AUPRC", "macro AUPRC", "Hamming loss")
DECISION = ("F1", "precision", "recall", "false positives", "micro F1", "micro precision", "micro recall")
SHORT = ("AUROC", "AUPRC", "F1", "false positives", "misses", "ECE", "micro F1")
COMPARED = ("AUROC", "AUPRC", "F1", "false positives", "ECE", "micro F1", "micro AUPRC")
SAID = {  # what a reader of the card calls a figure
    "false positives": "false alarms",
    "micro F1": "codes: micro F1",
    "micro AUPRC": "codes: micro AUPRC",
}


@dataclass(frozen=True, eq=False)
class FileFigures:
    """Everything about one file.

    n, n_unsafe, failed  records that count, those of them that are unsafe, and those that could not be scored
    systems    name → figures, drawn; the guard's own first
    codes      estimator → the guard's figures by it
    greedy     of the greedy answer
    over       what the guard is compared with → differences, drawn
    lengths, sources  the verdict on groups of the records
    """

    records: Records
    n: int
    n_unsafe: int
    failed: int
    systems: Mapping[str, Drawn]
    codes: Mapping[str, Drawn]
    greedy: Drawn
    over: Mapping[str, Drawn]
    lengths: Sequence[Group]
    sources: Sequence[Group]

    @property
    def own(self) -> Drawn:
        """The guard's figures, by its default estimator."""
        return next(iter(self.systems.values()))

    @property
    def is_mixed(self) -> bool:
        """Whether it has records of several sources."""
        return bool(self.sources)

    @property
    def title(self) -> str:
        """Its name, and why it is for evaluation only if it is."""
        note = f" ({self.records.note}: for evaluation only)" if self.records.note else ""
        return f"{self.records.path.name}{note}: {self.n} records, {self.n_unsafe} unsafe"


def card(head: str, outcomes: Sequence[Outcome], files: Sequence[FileFigures]) -> str:
    """What the card shows: what it gets right and wrong, what was to be reached, beside others."""
    parts = [_short(files), head]
    parts += [
        f"Worst calibrated source, of those with {FEW} records or more: "
        + "; ".join(_worst(one) for one in files if one.is_mixed)
        + ". Few records overstate an ECE."
    ]
    parts += [_hardest(one) for one in files if one.is_mixed]
    parts += ["### What was to be reached", _targets(outcomes)]
    parts += ["### By length", lengths([one for one in files if one.is_mixed])]
    if any(one.over for one in files):
        parts += ["### Over others", _over(files)]
    return "\n\n".join(part for part in parts if part)


def details(head: str, files: Sequence[FileFigures]) -> str:
    """All figures, file by file."""
    parts = [head, "## The shipped decision and the greedy answer", _decisions(files)]
    parts += ["## By length", lengths(files), "## By source", *map(_sources, [one for one in files if one.is_mixed])]
    for one in files:
        rows = {**one.systems, **{f"over {name}": drawn for name, drawn in one.over.items()}}
        parts += [f"## {one.title}", _table("verdict", rows, VERDICT)]
        parts += [_table("codes", {**one.codes, **dict([*rows.items()][1:])}, CODES)]
    return "\n\n".join(parts)


def lengths(files: Sequence[FileFigures]) -> str:
    """False alarms and misses by the number of words."""
    rows = ["| file | length | false alarms | misses | AUROC |", "|---|---|---:|---:|---:|"]
    for one in files:
        rows += [f"| {one.records.name} | {group.name} | {_group(group)} |" for group in one.lengths]
    return "\n".join(rows)


def _targets(outcomes: Sequence[Outcome]) -> str:
    rows = ["| to reach | limit | figure | |", "|---|---:|---:|---|"]
    for outcome in outcomes:
        target, sign = outcome.target, "+" if outcome.target.over else ""
        over = " over the greedy answer" if target.over == "greedy" else f" over {target.over}" if target.over else ""
        limit = f"{'≤' if target.at_most else '≥'} {target.limit:{sign if target.limit else ''}.3g}"
        if outcome.found is None:
            shown, said = "–", f"{target.over} was not measured beside it"
        else:
            shown = show(outcome.found, sign=sign)
            said = f"{'reached' if outcome.by >= 0 else 'missed'} by {abs(outcome.by):.3f}"
            said = f"{said if outcome.by >= 0 else f'**{said}**'}{', not certainly' if outcome.open else ''}"
        rows.append(f"| {target.file}, {SAID.get(target.figure, target.figure)}{over} | {limit} | {shown} | {said} |")
    return "\n".join(rows)


def _short(files: Sequence[FileFigures]) -> str:
    names = [SAID.get(key, key) for key in SHORT]
    rows = [f"| file | records | {' | '.join(names)} |", f"|---|---:{'|---:' * len(names)}|"]
    for one in files:
        star = "\\*" if one.records.note else ""
        cells = [show(interval(one.own[key])) for key in SHORT]
        rows.append(f"| {one.records.name}{star} | {one.n}, {one.n_unsafe} unsafe | {' | '.join(cells)} |")
        for other in PUBLISHED:
            if other.file == one.records.name:
                cells = [f"{other.figures[key]:.3f}" if key in other.figures else "" for key in SHORT]
                rows.append(f"| – [{other.model}]({other.source}) | | {' | '.join(cells)} |")
    return "\n".join(rows)


def _over(files: Sequence[FileFigures]) -> str:
    names = [SAID.get(key, key) for key in COMPARED]
    rows = [f"| file | over | {' | '.join(names)} |", f"|---|---{'|---:' * len(names)}|"]
    for one in files:
        for other, drawn in one.over.items():
            cells = [show(interval(drawn[key]), sign="+") for key in COMPARED]
            rows.append(f"| {one.records.name} | {other} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _worst(one: FileFigures) -> str:
    group = worst_calibrated(one.sources)
    assert group is not None
    return f"`{group.name}` of {one.records.name} (ECE {_shown(group.ece)}, {group.n} records)"


def _hardest(one: FileFigures) -> str:
    """The sources with the largest shares of false alarms and of misses."""
    said = []
    for name, shares in {
        "False alarms": {group.name: group.false_alarms for group in one.sources},
        "Misses": {group.name: group.misses for group in one.sources},
    }.items():
        known = {source: share for source, share in shares.items() if share.n >= FEW}
        largest = sorted(known, key=lambda source: -known[source].interval.value)[:3]
        if largest:
            shown = (f"`{source}` {known[source].hits} of {known[source].n}" for source in largest)
            said.append(f"{name} in {one.records.name}, most of all: {', '.join(shown)}.")
    return " ".join(said)


def _decisions(files: Sequence[FileFigures]) -> str:
    rows = {}
    for one in files:
        name = one.records.name
        rows[f"{name}: decision"], rows[f"{name}: greedy"] = one.own, one.greedy
        rows[f"{name}: decision over greedy"] = {key: one.own[key] - one.greedy[key] for key in DECISION}
    return _table("", rows, DECISION)


def _sources(one: FileFigures) -> str:
    rows = [f"| {one.records.name} | records | false alarms | misses | AUROC | ECE |", "|---|---:|---:|---:|---:|---:|"]
    rows += [f"| {group.name} | {group.n} | {_group(group)} | {_shown(group.ece)} |" for group in one.sources]
    return "\n".join(rows)


def _group(group: Group) -> str:
    """`false alarms | misses | AUROC`, shares with what they are of."""
    shares = [
        f"{share.hits} of {share.n}: {_shown(share.interval)}" if share.n else "–"
        for share in (group.false_alarms, group.misses)
    ]
    return " | ".join([*shares, _shown(group.auroc)])


def _table(name: str, rows: Mapping[str, Drawn], keys: Sequence[str]) -> str:
    """Markdown: a row a system, a column a figure; differences with their sign."""
    shown = [f"| {name} | {' | '.join(keys)} |\n|---{'|---:' * len(keys)}|"]
    for row, drawn in rows.items():
        sign = "+" if "over " in row else ""
        cells = (show(interval(drawn[k]), sign=sign) if k in drawn else "" for k in keys)
        shown.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(shown)


def _shown(found: Interval) -> str:
    return show((found.value, found.low, found.high))


def show(found: Sequence[float], *, sign: str = "") -> str:
    """`0.903 [0.873, 0.926]`, without the ends where there are none."""
    value, low, high = found
    if np.isnan(value):
        return "–"
    return f"{value:{sign}.3f}" + ("" if np.isnan(low) else f" [{low:{sign}.3f}, {high:{sign}.3f}]")
