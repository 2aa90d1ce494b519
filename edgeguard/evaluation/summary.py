"""All that an evaluation says of scores with their truth: figures, where the greedy answer stands, what is missing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeguard.calibration.decide import Decisions
from edgeguard.calibration.maps import Calibration
from edgeguard.calibration.thresholds import ChosenThreshold, Goal, Thresholds, choose_threshold, thresholds_for
from edgeguard.evaluation.baselines import baselines, greedy_answers, tells_greedy
from edgeguard.evaluation.figures import (
    DRAWS,
    Evaluation,
    Figures,
    Told,
    decision_figures,
    decision_intervals,
    evaluate,
    label_set_figures,
    together,
)
from edgeguard.evaluation.intervals import ENOUGH
from edgeguard.evaluation.labelled import Labelled
from edgeguard.evaluation.metrics import Figure, Weight, bootstrap, false_positive_rate
from edgeguard.evaluation.table import ScoreTable, decisions

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Greedy:
    """The answer that greedy decoding writes, in the terms of the decision, and the decision beside it.

    figures       of its verdict: precision, recall, F1 and false-positive rate
    categories    over the categories together: micro precision, recall and F1; empty where no truth names any
    over          the decision's figures less its own, by the same names, on the same draws of records
    at_recall     the threshold with the best precision among those that find as much; None for records of one class
    at_precision  the threshold with the best recall among those that are as precise; None likewise
    """

    figures: Figures
    categories: Figures
    over: Figures
    at_recall: ChosenThreshold | None
    at_precision: ChosenThreshold | None


@dataclass(frozen=True, eq=False)
class Summary:
    """An evaluation of every estimator that a table has.

    goal        what the best thresholds are for
    calibrated  whether an estimator's scores went through a calibration
    others      figures of the paper's baselines
    greedy      beside the decision by `main`; None where the table does not say what greedy decoding answers
    notices     what the records cannot say, and what would do: a line each
    """

    table: ScoreTable
    identity: Mapping[str, str]
    goal: Goal
    evaluations: Mapping[str, Evaluation]
    decided: Mapping[str, Decisions]
    thresholds: Mapping[str, Thresholds]
    calibrated: Mapping[str, bool]
    others: Mapping[str, Figures]
    greedy: Greedy | None
    notices: tuple[str, ...]

    @property
    def main(self) -> str:
        """The estimator that comes first: what `edgeguard score` gives unless it is asked otherwise."""
        return "marginal" if "marginal" in self.evaluations else next(iter(self.evaluations))

    @property
    def truth(self) -> Bools:
        """(n, n_labels), or (n, 1)."""
        assert self.table.truth is not None
        return self.table.truth


def summarize(
    labelled: Labelled,
    calibrations: Mapping[str, Calibration | None],
    thresholds: Mapping[str, float],
    goal: Goal,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Summary:
    """Evaluate each estimator: `calibrations` by estimator, `thresholds` in place of theirs, by label or "default"."""
    table, truth = labelled.table, labelled.table.truth
    assert truth is not None
    decided, chosen, evaluations = {}, {}, {}
    for estimator in table.scores:
        maps = calibrations.get(estimator)
        decided[estimator] = decisions(table, estimator, calibration=maps, thresholds=thresholds)
        chosen[estimator] = thresholds_for(maps, thresholds)
        evaluations[estimator] = evaluate(decided[estimator], truth, goal=goal, draws=draws, seed=seed)
    main = "marginal" if "marginal" in decided else next(iter(decided))
    return Summary(
        table,
        labelled.identity,
        goal,
        evaluations,
        decided,
        chosen,
        {estimator: calibrations.get(estimator) is not None for estimator in table.scores},
        baselines(table, draws=draws, seed=seed),
        beside_greedy(table, truth, decided[main], draws=draws, seed=seed) if tells_greedy(table) else None,
        notices(truth, table.labels),
    )


def beside_greedy(table: ScoreTable, y_true: Bools, decided: Decisions, *, draws: int = DRAWS, seed: int = 0) -> Greedy:
    """The greedy answer of a table that tells it, in the terms of a decision: `y_true` is (n, n_labels) or (n, 1)."""
    verdict, answer = y_true[:, 0], greedy_answers(table)
    values = {
        **decision_figures(verdict, answer[:, 0]),
        "false_positive_rate": false_positive_rate(verdict, answer[:, 0]),
    }
    ends = decision_intervals(verdict, answer[:, 0])
    figures = {name: Told(float(value), *ends[name]) for name, value in values.items()}

    def over(weight: Weight = None) -> dict[str, Figure]:
        ours, theirs = (_terms(y_true, y_pred, weight) for y_pred in (decided.y_pred, answer))
        return {name: ours[name] - theirs[name] for name in ours}

    drawn = bootstrap(over, len(y_true), draws=draws, seed=seed)
    categories: Figures = {}
    if y_true.shape[1] > 1:
        codes, named = y_true[:, 1:], answer[:, 1:]
        found = bootstrap(partial(_micro, codes, named), len(y_true), draws=draws, seed=seed)
        categories = together(found, codes, named)
    of_both = verdict.any() and not verdict.all()
    return Greedy(
        figures,
        categories,
        {name: Told(one.value, one.low, one.high) for name, one in drawn.items()},
        *(
            choose_threshold(verdict, decided.y_prob[:, 0], Goal(goal, figures[goal].value)) if of_both else None
            for goal in ("recall", "precision")
        ),
    )


def _terms(y_true: Bools, y_pred: Bools, weight: Weight) -> dict[str, Figure]:
    """What a decision and the greedy answer are held against each other in."""
    verdict, flagged = y_true[:, 0], y_pred[:, 0]
    found = {
        **decision_figures(verdict, flagged, weight),
        "false_positive_rate": false_positive_rate(verdict, flagged, weight),
    }
    return found if y_true.shape[1] == 1 else {**found, **_micro(y_true[:, 1:], y_pred[:, 1:], weight)}


def _micro(y_true: Bools, y_pred: Bools, weight: Weight = None) -> dict[str, Figure]:
    found = label_set_figures(y_true, y_pred, weight)
    return {name: found[name] for name in ("micro_f1", "micro_precision", "micro_recall")}


def notices(truth: Bools, labels: tuple[str, ...]) -> tuple[str, ...]:
    """What records with this truth cannot say: (n, n_labels) or (n, 1)."""
    n, unsafe = len(truth), int(truth[:, 0].sum())
    return tuple(
        line
        for line in (
            _of_the_verdict(n, unsafe),
            _of_categories(truth, labels) if unsafe and truth.shape[1] > 1 else "",
        )
        if line
    )


def _of_the_verdict(n: int, unsafe: int) -> str:
    if unsafe in (0, n):
        one, other = ("safe", "unsafe") if unsafe == 0 else ("unsafe", "safe")
        missing = "no AUROC, AUPRC, F1, precision or recall" if unsafe == 0 else "no AUROC and no false-positive rate"
        return (
            f"All {n} records are {one}, so there is {missing}, and no threshold or calibration of the verdict; add "
            f"{other} records, {ENOUGH} at least"
        )
    if min(unsafe, n - unsafe) < ENOUGH:
        which, few = ("unsafe", unsafe) if unsafe <= n - unsafe else ("safe", n - unsafe)
        return (
            f"Only {few} of {n} records {'is' if few == 1 else 'are'} {which}: rankings and losses of the verdict have "
            f"no interval; {ENOUGH} of each class give one"
        )
    return ""


def _of_categories(truth: Bools, labels: tuple[str, ...]) -> str:
    counts = dict(zip(labels[1:], truth[:, 1:].sum(axis=0).tolist(), strict=False))
    none = [label for label, n in counts.items() if n == 0]
    few = [f"{label} ({n})" for label, n in counts.items() if 0 < n < ENOUGH]
    said = []
    if none:
        said.append(f"No record has {', '.join(none)}: nothing says how well they are found")
    if few:
        said.append(f"fewer than {ENOUGH} have {', '.join(few)}: no interval of their rankings")
    line = "; ".join(said)
    return line[:1].upper() + line[1:]


# As JSON


def as_json(summary: Summary) -> dict[str, Any]:
    """All figures; null where the records cannot have one, with the reason as `why`."""
    return {
        "records": len(summary.table),
        "unsafe": int(summary.truth[:, 0].sum()),
        "failed": [{"id": one.id, "message": one.message} for one in summary.table.failed],
        **{key: summary.identity[key] for key in ("guard", "profile", "model_sha256")},
        "goal": str(summary.goal),
        "estimators": {
            name: {
                "calibrated": summary.calibrated[name],
                "overall": figures_as_json(found.overall),
                "labels": {
                    label: {
                        "n_true": one.n_true,
                        "n_pred": one.n_pred,
                        "n_distinct": one.n_distinct,
                        "threshold": summary.thresholds[name].of(label),
                        **figures_as_json(one.figures),
                        "best": None if one.best is None else asdict(one.best),
                    }
                    for label, one in found.labels.items()
                },
            }
            for name, found in summary.evaluations.items()
        },
        "baselines": {name: figures_as_json(figures) for name, figures in summary.others.items()},
        "greedy": None
        if summary.greedy is None
        else {
            "verdict": figures_as_json(summary.greedy.figures),
            "categories": figures_as_json(summary.greedy.categories),
            "decision_over_it": figures_as_json(summary.greedy.over),
            "scores_at_its_recall": summary.greedy.at_recall and asdict(summary.greedy.at_recall),
            "scores_at_its_precision": summary.greedy.at_precision and asdict(summary.greedy.at_precision),
        },
        "notices": list(summary.notices),
    }


def figures_as_json(figures: Figures) -> dict[str, Any]:
    """Name → value, low, high, null where there is none, and then `why`."""

    def number(x: float) -> float | None:
        return None if math.isnan(x) else float(f"{x:.7g}")

    return {
        name: {"value": number(one.value), "low": number(one.low), "high": number(one.high)}
        | ({"why": one.why} if one.why else {})
        for name, one in figures.items()
    }
