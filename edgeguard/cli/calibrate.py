"""`edgeguard calibrate`: a calibration file from labelled records, or from another one and texts without labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
from edgeguard.cli.tables import labelled_table, truth_options, unlabelled_table

if TYPE_CHECKING:
    from edgeguard.calibration.fitting import LabelFit
    from edgeguard.calibration.maps import Calibration
    from edgeguard.calibration.thresholds import Goal
    from edgeguard.evaluation.sources import LeftOut
    from edgeguard.workers import Workers


_OF_RECORDS = ("labels", "labels_map", "workers", "together")  # options that mean nothing where there are no records


@click.command(
    epilog="""\b
Examples:
  edgeguard calibrate labelled.jsonl --out calibration.json
  edgeguard calibrate labelled.jsonl --out c.json --two-stage --threshold-for greedy
  edgeguard calibrate labelled.jsonl --out c.json --two-stage --threshold-for f1 --threshold-for unsafe:fpr=0.02
  edgeguard score texts.jsonl --no-calibration -o scores.jsonl
  edgeguard calibrate scores.jsonl --labels labelled.jsonl --out c.json --method platt
  edgeguard calibrate labelled.jsonl --out c.json --balance-by source
  edgeguard calibrate my-texts.jsonl --unlabelled em --calibration c.json --out mine.json
  edgeguard calibrate --method contextual --out c.json -m guard.gguf"""
)
@click.argument("source", metavar="[LABELLED|TEXTS]", required=False, type=click.Path(path_type=Path))
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
    help="f1, precision=P, recall=P, fpr=P, cost=N (of a miss, in false alarms), or greedy: the greedy answer's false "
    "alarms for unsafe, its precision for a category; for one label or all  [default: f1]",
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
@click.option(
    "--balance-by",
    metavar="FIELD",
    help="Each source weighs the same, by the field of the records that names it; each is left out once, and "
    "--method auto is what does best on the worst",
)
@click.option(
    "--unlabelled",
    type=click.Choice(["em", "contextual"]),
    help="Move --calibration without labels: to the share of unsafe texts that TEXTS themselves show, or by what the "
    "guard says of texts that say nothing",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="What --unlabelled moves [default: the built-in guard's own]",
)
@click.option("--plot", type=click.Path(path_type=Path), help="Page of curves to write: HTML, one file")
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
    balance_by: str | None,
    unlabelled: str | None,
    calibration: Path | None,
    plot: Path | None,
    as_json: bool,
    estimator: str | None,
    **options: Any,
) -> None:
    """Fit a map and a threshold for `unsafe` and each category on LABELLED records.

    LABELLED is a file of records with `labels`, which are scored, or what `edgeguard score --no-calibration` wrote,
    with --labels. A label that no record has is left alone, and so is every category where the truth says only safe
    or unsafe. The file names the guard, profile, estimator and model it
    was fitted on, and `edgeguard score --calibration` refuses it elsewhere. `--method contextual` needs no records: it
    takes the bias that the guard shows on texts that say nothing. `--unlabelled` moves a calibration that is there;
    TEXTS are records, or scores, and their labels are not asked for.
    """
    rule = {"method": method, "goals": read_goals(targets), "safe_rate": safe_rate, "two_stage": two_stage}
    _refuse_misuse(source, rule, balance_by, unlabelled, calibration, options)
    if plot is not None and (source is None or unlabelled is not None):
        raise click.UsageError("--plot shows curves of LABELLED records")
    outputs = [path for path in (out, plot) if path is not None]
    with reported_errors():
        from edgeguard.errors import OutputError

        refuse_read(outputs, {"input": source, "calibration": calibration, **options})
        for path in outputs:
            if path.exists() and not overwrite:
                name = "--out" if path == out else "--plot"
                raise OutputError(f"{path} exists already; pass --overwrite to replace it, or name another {name}")
        if unlabelled is not None:
            found, told = _moved(source, calibration, estimator, options)
        elif source is None:
            found, told = _contextual(estimator, options), _Outcome([], lambda: None)
        else:
            found, told = _fitted(source, estimator, options, rule, balance_by)
        _write(found, out)
        if plot is not None:
            _write_page(told.page(), plot)
        if as_json:
            import json

            click.echo(json.dumps(told.rows))
        else:
            told.show()
        for path in outputs:
            say(f"wrote {path}")


@dataclass(frozen=True)
class _Outcome:
    """What is said of a calibration: as JSON, on the screen, as a page where there are labelled records."""

    rows: Any
    show: Callable[[], None]
    page: Callable[[], str] = lambda: ""


def _refuse_misuse(
    source: Path | None,
    rule: Mapping[str, Any],
    balance_by: str | None,
    unlabelled: str | None,
    calibration: Path | None,
    options: Mapping[str, Any],
) -> None:
    """Options that contradict one another, or mean nothing beside others."""
    method, two_stage = rule["method"], rule["two_stage"]
    if options["threshold"]:
        raise click.UsageError("--threshold is for decisions; --threshold-for says what thresholds are to reach")
    if unlabelled is not None:
        given = {
            "--method": method != "auto",
            "--threshold-for": rule["goals"],
            "--two-stage": two_stage,
            "--safe-rate": rule["safe_rate"] < 1,
            "--balance-by": balance_by,
            "--labels": options["labels"],
            "--labels-map": options["labels_map"],
        }
        if unused := [name for name, value in given.items() if value]:
            raise click.UsageError(f"--unlabelled moves a calibration that is there: {unused[0]} has no use")
        if (source is None) != (unlabelled == "contextual"):
            raise click.UsageError("give TEXTS for --unlabelled em, and none for --unlabelled contextual")
        return
    if calibration is not None:
        raise click.UsageError("--calibration is what --unlabelled moves; a fit begins anew")
    if (source is None) != (method == "contextual"):
        raise click.UsageError("give LABELLED records, or --method contextual and none")
    if balance_by is not None and method == "contextual":
        raise click.UsageError("--balance-by needs labelled records")
    if two_stage and (rule["safe_rate"] < 1 or method == "contextual"):
        why = (
            "needs labelled records"
            if method == "contextual"
            else "lets no category flag a record: --safe-rate has no use"
        )
        raise click.UsageError(f"--two-stage {why}")


def _write(calibration: Calibration, out: Path) -> None:
    from edgeguard.calibration.files import write_calibration
    from edgeguard.errors import OutputError

    try:
        write_calibration(calibration, out)
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror or error}") from None


def _write_page(text: str, path: Path) -> None:
    from edgeguard.errors import OutputError
    from edgeguard.files import write_whole

    try:
        write_whole(path, text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from None


def _contextual(estimator: str | None, options: dict[str, Any]) -> Calibration:
    from edgeguard.evaluation.calibrate import contextual

    with _guard_alone(options) as guard:
        calibration: Calibration = guard.ask(contextual, estimator or "marginal")
    return calibration


def _guard_alone(options: dict[str, Any]) -> Workers:
    """The guard, where there are no records."""
    take_reading(options)
    guard_options = {key: value for key, value in options.items() if key not in _OF_RECORDS}
    return load_guard(**guard_options, no_calibration=True)


def _moved(
    source: Path | None, given: Path | None, estimator: str | None, options: dict[str, Any]
) -> tuple[Calibration, _Outcome]:
    """A calibration for texts without labels, or none."""
    from dataclasses import asdict

    from edgeguard.evaluation.calibrate import content_free_log_odds
    from edgeguard.evaluation.unlabelled import shifted_by_nothing, shifted_to_texts

    if source is None:
        with _guard_alone(options) as guard:
            identity: Mapping[str, str] = {"profile": guard.profile.name, "model_sha256": guard.model_sha256}
            before = _existing(given, identity, estimator)
            after, shifts = shifted_by_nothing(before, guard.ask(content_free_log_odds, None))
    else:
        del options["labels"], options["labels_map"]
        table, identity = unlabelled_table(source, estimator=estimator, **options)
        scored_with = identity.get("estimator", estimator)
        before = _existing(given, identity, scored_with)
        after, shifts = shifted_to_texts(before, table, source=source)

    def show() -> None:
        from edgeguard.cli.screen.evaluation import print_shifts

        print_shifts(shifts, before.thresholds, after.thresholds)

    return after, _Outcome([asdict(shift) for shift in shifts], show)


def _existing(given: Path | None, identity: Mapping[str, str], estimator: str | None) -> Calibration:
    """The calibration to move: the given one, else that which a built-in guard brings. Raises CalibrationError."""
    from edgeguard.builtin import fitted_for
    from edgeguard.calibration.files import read_calibration
    from edgeguard.errors import CalibrationError

    own = given or fitted_for(identity["model_sha256"], estimator or "marginal")
    if own is None:
        raise CalibrationError("this guard brings no calibration; name the one to move", kind="no_calibration")
    found = read_calibration(own)
    found.check(
        profile=identity["profile"],
        estimator=estimator or found.estimator,
        model_sha256=identity["model_sha256"],
    )
    return found


def _fitted(
    source: Path, estimator: str | None, options: dict[str, Any], rule: dict[str, Any], balance_by: str | None
) -> tuple[Calibration, _Outcome]:
    """A calibration for labelled records."""
    from edgeguard.errors import CalibrationError
    from edgeguard.evaluation.calibrate import calibrate
    from edgeguard.evaluation.sources import choose_methods, leave_out, pooled, sources_of

    goals, truth_file = set(rule["goals"]) - {""}, options["labels"]
    raw = {} if truth_file else {"format": options["input_format"], "encoding": options["encoding"]}
    labelled = labelled_table(source, estimator=estimator, named={"--threshold-for": goals}, **options)
    table, labels = labelled.table, labelled.table.labels
    assert table.truth is not None
    if apart := goals & set(labels[table.truth.shape[1] :]):
        raise click.BadParameter(
            f"the truth says safe or unsafe alone, and nothing of {sorted(apart)[0]}", param_hint="--threshold-for"
        )
    name = estimator or ("marginal" if "marginal" in table.scores else next(iter(table.scores)))
    sources = left_out = None
    if balance_by is not None:
        sources = pooled(sources_of(truth_file or source, balance_by, table, same_file=truth_file is None, **raw))
        if rule["method"] == "auto":
            rule |= {"method": choose_methods(table, name, sources)[0]}
        else:
            rule |= {"method": {"unsafe": rule["method"], "": rule["method"]}}
        left_out = leave_out(table, name, sources, rule["method"])
    calibration, fits = calibrate(table, name, identity=labelled.identity, source=source, sources=sources, **rule)
    if not calibration.maps and not calibration.thresholds:
        raise CalibrationError(_nothing_to_fit(source, fits))

    def show() -> None:
        from edgeguard.cli.screen.evaluation import print_fits, print_left_out

        print_fits(fits, two_stage=rule["two_stage"])
        if left_out is not None:
            print_left_out(left_out)

    def page() -> str:
        from edgeguard.calibration.thresholds import Goal
        from edgeguard.evaluation.page import evaluation_page
        from edgeguard.evaluation.summary import summarize

        main = replace(labelled, table=replace(table, scores={name: table.scores[name]}))
        summary = summarize(main, {name: calibration}, {}, Goal("f1"))
        return evaluation_page(summary, source=source.name, notes=[_FITTED_ON_THESE], left_out=left_out)

    rows: Any = [_row(fit) for fit in fits]
    if left_out is not None:
        rows = {"labels": rows, "left_out": _left_out(left_out)}
    return calibration, _Outcome(rows, show, page)


_FITTED_ON_THESE = (
    "The maps were fitted and the thresholds chosen on these very records: on others the curves will be worse."
)


def _left_out(found: LeftOut) -> dict[str, Any]:
    from dataclasses import asdict

    return {**asdict(replace(found, methods=dict(found.methods))), "worst_source": found.worst_source}


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
    from edgeguard.calibration.thresholds import read_goal

    goals = {}
    for text in given:
        label, _, goal = text.rpartition(":")
        try:
            goals[label.strip()] = read_goal(goal)
        except ValueError as error:
            raise click.BadParameter(f"{text!r}: {error}", param_hint="--threshold-for") from None
    return goals


def _row(fit: LabelFit) -> dict[str, Any]:
    import math
    from dataclasses import asdict

    row = asdict(fit)
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
