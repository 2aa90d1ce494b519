"""`edgeguard evaluate`: what a guard's scores are worth against the truth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeguard.cli.calibrate import read_goals
from edgeguard.cli.options import (
    calibration_options,
    model_options,
    read_thresholds,
    record_options,
    reported_errors,
    search_options,
    workers_option,
)
from edgeguard.cli.tables import labelled_table, truth_options

if TYPE_CHECKING:
    from edgeguard.calibration.maps import Calibration
    from edgeguard.evaluation.figures import Evaluation
    from edgeguard.evaluation.labelled import Labelled
    from edgeguard.evaluation.metrics import Interval


@click.command(
    epilog="""\b
Examples:
  edgeguard evaluate labelled.jsonl
  edgeguard evaluate labelled.jsonl -m guard.gguf --best-for fpr=0.01 --json > figures.json
  edgeguard score texts.jsonl --no-calibration -o scores.jsonl
  edgeguard evaluate scores.jsonl --labels labelled.jsonl --calibration c.json"""
)
@click.argument("source", metavar="PREDICTIONS|INPUT", type=click.Path(path_type=Path))
@truth_options
@click.option(
    "--best-for",
    default="f1",
    show_default=True,
    metavar="GOAL",
    help="The rule for each label's best threshold: f1, precision=P, recall=P, fpr=P or cost=N",
)
@click.option("--draws", type=click.IntRange(0, 100_000), default=1000, show_default=True, help="Of the bootstrap")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the bootstrap")
@model_options
@workers_option
@search_options
@calibration_options
@record_options
@click.option("--json", "as_json", is_flag=True, help="All figures as one JSON object")
def evaluate(
    source: Path,
    best_for: str,
    draws: int,
    seed: int,
    threshold: tuple[str, ...],
    calibration: Path | None,
    no_calibration: bool,
    force_calibration: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Evaluate a guard against ground truth: ranking, decisions, calibration, with bootstrap 95 % intervals.

    INPUT is a file of labelled records: they are scored, and the three estimators and the baselines of their paper
    stand side by side. PREDICTIONS is what `edgeguard score --no-calibration` wrote: then it is the one estimator that
    it was scored with. The truth is in the records, or in --labels; --labels-map reads published data sets. Where it
    says only safe or unsafe, only the verdict has figures. A figure that the records cannot have, such as an
    AUROC where all are unsafe, is left blank, null in JSON.
    """
    goals = read_goals((best_for,))
    if set(goals) != {""}:
        raise click.BadParameter("it is one rule for all labels", param_hint="--best-for")
    if no_calibration and (calibration or force_calibration):
        raise click.UsageError("--no-calibration excludes --calibration and --force-calibration")
    numbers = read_thresholds(threshold)
    with reported_errors():
        from edgeguard.evaluation.baselines import baselines
        from edgeguard.evaluation.figures import evaluate as figures
        from edgeguard.evaluation.table import decisions

        labelled = labelled_table(source, evidence=True, threshold=(), **options)
        table, evaluations, calibrated = labelled.table, {}, {}
        assert table.truth is not None
        for estimator in table.scores:
            maps = None if no_calibration else _calibration(labelled, estimator, calibration, force_calibration)
            decided = decisions(table, estimator, calibration=maps, thresholds=numbers)
            evaluations[estimator] = figures(decided, table.truth, goal=goals[""], draws=draws, seed=seed)
            calibrated[estimator] = maps is not None
        others = baselines(table, draws=draws, seed=seed)
        if as_json:
            import json

            click.echo(json.dumps(_as_json(labelled, evaluations, others, calibrated, best_for)))
        else:
            from edgeguard.cli.screen.evaluation import print_evaluation

            print_evaluation(table, evaluations, others, calibrated, best_for)


def _calibration(labelled: Labelled, estimator: str, given: Path | None, force: bool) -> Calibration | None:
    """The file that was given, where it is for this estimator; else the one that a built-in guard brings."""
    from edgeguard.builtin import fitted_for
    from edgeguard.calibration.files import read_calibration

    if given is None:
        own = fitted_for(labelled.identity["model_sha256"], estimator)
        return None if own is None else read_calibration(own)
    calibration = read_calibration(given)
    if calibration.estimator != estimator and not force:
        return None  # the others stand beside it as they are
    if not force:
        calibration.check(
            profile=labelled.identity["profile"], estimator=estimator, model_sha256=labelled.identity["model_sha256"]
        )
    return calibration


def _as_json(
    labelled: Labelled,
    evaluations: Mapping[str, Evaluation],
    others: Mapping[str, Mapping[str, Interval]],
    calibrated: Mapping[str, bool],
    goal: str,
) -> dict[str, Any]:
    table = labelled.table
    assert table.truth is not None
    return {
        "records": len(table),
        "unsafe": int(table.truth[:, 0].sum()),
        "failed": [{"id": one.id, "message": one.message} for one in table.failed],
        **{key: labelled.identity[key] for key in ("guard", "profile", "model_sha256")},
        "goal": goal,
        "estimators": {
            name: {
                "calibrated": calibrated[name],
                "overall": _figures(e.overall),
                "labels": {
                    label: {
                        "n_true": one.n_true,
                        "n_distinct": one.n_distinct,
                        **_figures(one.figures),
                        "best": None if one.best is None else asdict(one.best),
                    }
                    for label, one in e.labels.items()
                },
            }
            for name, e in evaluations.items()
        },
        "baselines": {name: _figures(figures) for name, figures in others.items()},
    }


def _figures(figures: Mapping[str, Interval]) -> dict[str, Any]:
    def number(x: float) -> float | None:
        return None if math.isnan(x) else float(f"{x:.7g}")

    return {
        name: {"value": number(one.value), "low": number(one.low), "high": number(one.high)}
        for name, one in figures.items()
    }
