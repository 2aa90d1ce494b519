"""The rule by which a built-in guard's calibrations are fitted, from its scores on the validation sets.

Maps: each source of the files weighs the same, and of the methods that keep a ranking the one is taken whose
calibration error is lowest in the worst source that the fit has not seen.

Thresholds: in two stages, each where the greedy answer stands. A record is flagged at the false-alarm rate that the
greedy answer has, and each category is named as precisely, given that a record is unsafe, and found as often as that
leaves. For the best F1 thresholds depend on how often records were given a second label, and out of fold are under the
greedy answer on either file.

`edgeguard calibrate --balance-by source --two-stage --threshold-for greedy` gives nearly the same for one file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np

from edgeguard.calibration.decide import Decisions
from edgeguard.calibration.fitting import Method
from edgeguard.calibration.maps import Calibration
from edgeguard.calibration.thresholds import Goal
from edgeguard.evaluation.calibrate import calibrate
from edgeguard.evaluation.metrics import Interval
from edgeguard.evaluation.sources import FEWEST, LeftOut, Methods, choose_methods, leave_out, pooled, sources_of
from edgeguard.evaluation.summary import beside_greedy
from edgeguard.evaluation.table import ScoreTable, decisions, take
from edgeguard.quant.scoring import joined

UNSURE = ("measuring-hate-speech",)  # sources whose licence is unsure: nothing that ships is fitted on them
GOALS: Mapping[str, Goal] = MappingProxyType({"": Goal("greedy")})
FOLDS = 5
TERMS = ("precision", "recall", "f1")
NOBODY = {"guard": "", "profile": "", "model_sha256": ""}  # whom a fit is for that is not kept
# An isotonic map is level between its steps: scores that rank records become ties there.
AMONG: tuple[Method | Literal["none"], ...] = ("none", "temperature", "platt", "beta")


def to_fit(tables: Mapping[Path, ScoreTable]) -> tuple[ScoreTable, tuple[str, ...]]:
    """The records of all files that a calibration may be fitted on, with their truth, and the source of each."""
    parts = [labelled_sources(table, path) for path, table in tables.items()]
    # By place: a baseline's table has not every record of its file.
    n_records = [max(len(t) + len(t.failed), int(t.places.max(initial=-1)) + 1) for t in tables.values()]
    begins = np.cumsum([0, *n_records[:-1]]).tolist()
    table = joined([part for part, _ in parts], begins, np.arange(sum(n_records)))
    truth = np.concatenate([part.truth for part, _ in parts if part.truth is not None])
    return replace(table, truth=truth), tuple(name for _, names in parts for name in names)


def labelled_sources(table: ScoreTable, path: Path) -> tuple[ScoreTable, tuple[str, ...]]:
    """The records of one file that a calibration may be fitted on, and the source of each."""
    sources = sources_of(path, "source", table, same_file=True)
    rows = np.array([name not in UNSURE for name in sources])
    return take(table, rows), tuple(name for name in sources if name not in UNSURE)


def fit_rule(
    tables: Mapping[Path, ScoreTable],
    identity: Mapping[str, str],
    *,
    goals: Mapping[str, Goal] = GOALS,
    method: Literal["none"] | None = None,
    report: bool = False,
) -> dict[str, Calibration]:
    """Estimator → calibration, of a guard's scores on the files that it is fitted on.

    method  "none": thresholds alone; None: what is best on the worst source
    report  whether to print how the methods were chosen, and each source left out, Markdown
    """
    table, sources = to_fit(tables)
    found = {}
    for estimator in table.scores:
        methods: Methods = {"unsafe": "none", "": "none"}
        if method is None:
            methods, tries = choose_methods(table, estimator, pooled(sources), AMONG)
            if report:
                print_choice(estimator, methods, tries)
        if report and estimator == "marginal":
            print_sources(leave_out(table, estimator, pooled(sources), methods))
        if report and estimator == "marginal":
            print_beside_greedy(tables, methods, goals)
        rule = {"method": methods, "goals": goals, "two_stage": True, "sources": sources}
        found[estimator] = calibrate(table, estimator, identity=identity, source=[*tables], **rule)[0]
    return found


def print_choice(estimator: str, methods: Methods, tries: Mapping[Method | Literal["none"], LeftOut]) -> None:
    """Each method by its worst source."""
    print(f"\n### {estimator}: {methods['unsafe']} for unsafe, {methods['']} for the categories\n")
    print("| method | ECE of the worst source left out | which | categories |\n|---|---:|---|---:|")
    for name, found in tries.items():
        worst = "" if found.worst_categories is None else f"{found.worst_categories.value:.3f}"
        print(f"| {name} | {found.worst.value:.3f} | {found.worst_source} | {worst} |")


def print_sources(found: LeftOut) -> None:
    """Each source by the fit on the others, the worst first."""
    print(f"\nSources of fewer than {FEWEST} records are together.\n")
    print("| source left out | records | unsafe | mean P(unsafe) | ECE |\n|---|---:|---:|---:|---:|")
    for one in sorted(found.sources, key=lambda one: -one.ece.value):
        print(f"| {one.name} | {one.n} | {one.share:.2f} | {one.mean:.2f} | {show(one.ece)} |")
    print(f"| the worst of them | | | | {show(found.worst)} |")


def print_beside_greedy(tables: Mapping[Path, ScoreTable], methods: Methods, goals: Mapping[str, Goal]) -> None:
    """The decision of each record by a fit without its fold, and the greedy answer; beside the best F1 as the goal."""
    table, sources = to_fit(tables)
    files = np.repeat(np.arange(len(tables)), [len(labelled_sources(one, path)[0]) for path, one in tables.items()])
    names = {"recall": "recall", "false_positive_rate": "false alarms", **{f"micro_{n}": f"micro {n}" for n in TERMS}}
    print(f"\nOut of fold, {FOLDS} folds, less the greedy answer's on the same draws of records:\n")
    print(f"| file | thresholds for | {' | '.join(names.values())} |\n|---|---|{'---:|' * len(names)}")
    for goal, aims in ((" and ".join(dict.fromkeys(map(str, goals.values()))), goals), ("f1", {"": Goal("f1")})):
        decided = out_of_fold(table, sources, methods, aims)
        for i, path in enumerate(tables):
            rows = files == i
            part, found = take(table, rows), replace(decided, y_prob=decided.y_prob[rows], y_pred=decided.y_pred[rows])
            assert part.truth is not None
            over = beside_greedy(part, part.truth, found).over
            print(f"| {path.name} | {goal} | {' | '.join(show(over[name], sign='+') for name in names)} |")


def out_of_fold(table: ScoreTable, sources: Sequence[str], methods: Methods, goals: Mapping[str, Goal]) -> Decisions:
    """What each record is called by the marginal's calibration that was fitted on the other folds."""
    folds, parts = np.random.default_rng(0).integers(0, FOLDS, len(table)), []
    for fold in range(FOLDS):
        inside = folds == fold
        kept = [name for name, out in zip(sources, inside, strict=True) if not out]
        rule = {"method": methods, "goals": goals, "two_stage": True, "sources": kept}
        fitted, _ = calibrate(take(table, ~inside), "marginal", identity=NOBODY, source=[], **rule)
        parts.append(decisions(take(table, inside), "marginal", calibration=fitted))
    back = np.argsort(np.concatenate([np.flatnonzero(folds == fold) for fold in range(FOLDS)]))
    y_prob, y_pred = (np.concatenate([getattr(one, name) for one in parts])[back] for name in ("y_prob", "y_pred"))
    return Decisions(table.labels, y_prob, y_pred)


def show(figure: Interval, *, sign: str = "") -> str:
    """`0.031 [0.020, 0.052]`."""
    return f"{figure.value:{sign}.3f} [{figure.low:{sign}.3f}, {figure.high:{sign}.3f}]"
