"""`edgeguard calibrate`: a calibration file from labelled records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeguard.cli.options import (
    load_guard,
    model_options,
    record_options,
    refuse_read,
    reported_errors,
    search_options,
    take_reading,
    together_option,
    workers_option,
)
from edgeguard.cli.say import say
from edgeguard.cli.tables import labelled_table, truth_options

if TYPE_CHECKING:
    from edgeguard.calibration.fitting import LabelFit
    from edgeguard.calibration.maps import Calibration
    from edgeguard.calibration.thresholds import Goal


_OF_RECORDS = ("labels", "labels_map", "workers", "together")  # options that mean nothing where there are no records


@click.command(
    epilog="""\b
Examples:
  edgeguard calibrate labelled.jsonl --out calibration.json
  edgeguard calibrate labelled.jsonl --out c.json --two-stage --threshold-for f1 --threshold-for unsafe:fpr=0.02
  edgeguard score texts.jsonl --no-calibration -o scores.jsonl
  edgeguard calibrate scores.jsonl --labels labelled.jsonl --out c.json --method platt
  edgeguard calibrate --method contextual --out c.json -m guard.gguf"""
)
@click.argument("source", metavar="[LABELLED]", required=False, type=click.Path(path_type=Path))
@click.option("--out", "-o", required=True, type=click.Path(path_type=Path), help="Calibration file to write")
@click.option("--overwrite", is_flag=True, help="Replace an existing --out")
@click.option(
    "--method",
    type=click.Choice(["auto", "temperature", "platt", "beta", "isotonic", "contextual", "none"]),
    default="auto",
    show_default=True,
    help="The map; auto: the simplest that cross-validation finds as good as the best; none: thresholds only",
)
@click.option(
    "--threshold-for",
    "targets",
    multiple=True,
    metavar="[LABEL:]GOAL",
    help="f1, precision=P, recall=P, fpr=P or cost=N (of a miss, in false alarms), for one label or all [default: f1]",
)
@click.option(
    "--two-stage",
    is_flag=True,
    help="The verdict by its threshold alone; categories where that says unsafe, by thresholds chosen for those",
)
@click.option(
    "--safe-rate",
    type=click.FloatRange(0, 1),
    default=1.0,
    help="No category's threshold lets more than this share of the safe records over it  [default: any]",
)
@truth_options
@model_options
@workers_option
@together_option
@click.option(
    "--estimator",
    "-e",
    type=click.Choice(["conditional", "joint", "marginal"]),
    help="Whose scores to calibrate [default: marginal, or the file's]",
)
@search_options
@record_options
@click.option("--json", "as_json", is_flag=True, help="What was fitted, as JSON")
def calibrate(
    source: Path | None,
    out: Path,
    overwrite: bool,
    method: str,
    targets: tuple[str, ...],
    two_stage: bool,
    safe_rate: float,
    as_json: bool,
    estimator: str | None,
    **options: Any,
) -> None:
    """Fit a map and a threshold for `unsafe` and each category on LABELLED records.

    LABELLED is a file of records with `labels`, which are scored, or what `edgeguard score --no-calibration` wrote,
    with --labels. A label that no record has is left alone, and so is every category where the truth says only safe
    or unsafe. The file names the guard, profile, estimator and model it
    was fitted on, and `edgeguard score --calibration` refuses it elsewhere. `--method contextual` needs no records: it
    takes the bias that the guard shows on texts that say nothing.
    """
    if (source is None) != (method == "contextual"):
        raise click.UsageError("give LABELLED records, or --method contextual and none")
    if options["threshold"]:
        raise click.UsageError("--threshold is for decisions; --threshold-for says what thresholds are to reach")
    if two_stage and (safe_rate < 1 or method == "contextual"):
        why = (
            "needs labelled records"
            if method == "contextual"
            else "lets no category flag a record: --safe-rate has no use"
        )
        raise click.UsageError(f"--two-stage {why}")
    goals = read_goals(targets)
    with reported_errors():
        from edgeguard.calibration.files import write_calibration
        from edgeguard.errors import CalibrationError, OutputError
        from edgeguard.evaluation.calibrate import contextual

        refuse_read([out], {"input": source, **options})
        if out.exists() and not overwrite:
            raise OutputError(f"{out} exists already; pass --overwrite to replace it, or name another --out")
        if method == "contextual":
            fits: list[LabelFit] = []
            take_reading(options)  # there are no records
            guard_options = {key: value for key, value in options.items() if key not in _OF_RECORDS}
            with load_guard(**guard_options, no_calibration=True) as guard:
                calibration = guard.ask(contextual, estimator or "marginal")
        else:
            assert source is not None
            rule = {"method": method, "goals": goals, "safe_rate": safe_rate, "two_stage": two_stage}
            calibration, fits = _fit(source, estimator, options, rule)
            if not calibration.maps and not calibration.thresholds:
                raise CalibrationError(_nothing_to_fit(source, fits))
        try:
            write_calibration(calibration, out)
        except OSError as error:
            raise OutputError(f"{out} cannot be written: {error.strerror or error}") from None
        if as_json:
            import json

            click.echo(json.dumps([_row(fit) for fit in fits]))
        elif fits:
            from edgeguard.cli.screen.evaluation import print_fits

            print_fits(fits, two_stage=two_stage)
        say(f"wrote {out}")


def _fit(
    source: Path,
    estimator: str | None,
    options: dict[str, Any],
    rule: dict[str, Any],
) -> tuple[Calibration, list[LabelFit]]:
    from edgeguard.evaluation.calibrate import calibrate

    goals = set(rule["goals"]) - {""}
    labelled = labelled_table(source, estimator=estimator, named={"--threshold-for": goals}, **options)
    table, labels = labelled.table, labelled.table.labels
    assert table.truth is not None
    if apart := goals & set(labels[table.truth.shape[1] :]):
        raise click.BadParameter(
            f"the truth says safe or unsafe alone, and nothing of {sorted(apart)[0]}", param_hint="--threshold-for"
        )
    return calibrate(
        table,
        estimator or ("marginal" if "marginal" in table.scores else next(iter(table.scores))),
        identity=labelled.identity,
        source=source,
        **rule,
    )


def _nothing_to_fit(source: Path, fits: Sequence[LabelFit]) -> str:
    """Why no label of a file could be fitted, and what would do."""
    verdict = next((fit.reason for fit in fits if fit.label == "unsafe"), "")
    one = {"no record has it": "are safe", "every record has it": "are unsafe"}.get(verdict)
    why = f": all its records {one}" if one else f": unsafe: {verdict}" if verdict else ""
    return (
        f"{source} has no label that a calibration could be fitted for{why}; it takes records with a label and without"
    )


def read_goals(given: Sequence[str]) -> dict[str, Goal]:
    """`f1`, `unsafe:fpr=0.02` → label → Goal; "" is every label without one of its own."""
    from edgeguard.calibration.thresholds import Goal

    goals = {}
    for text in given:
        label, _, goal = text.rpartition(":")
        name, equals, number = goal.partition("=")
        try:
            if (name == "f1") == bool(equals):
                raise ValueError("expected f1, precision=P, recall=P, fpr=P or cost=N")
            goals[label.strip()] = Goal(name.strip(), float(number) if equals else 0.0)  # type: ignore[arg-type]
        except ValueError as error:
            raise click.BadParameter(f"{text!r}: {error}", param_hint="--threshold-for") from None
    return goals


def _row(fit: LabelFit) -> dict[str, Any]:
    import math
    from dataclasses import asdict

    row = asdict(fit)
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
