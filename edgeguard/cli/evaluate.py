"""`edgeguard evaluate`: what a guard's scores are worth against the truth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeguard.cli.calibrate import read_goals
from edgeguard.cli.options import (
    calibration_options,
    model_options,
    read_thresholds,
    record_options,
    refuse_read,
    reported_errors,
    search_options,
    split_names,
    together_option,
    workers_option,
)
from edgeguard.cli.say import say
from edgeguard.cli.tables import labelled_table, truth_options
from edgeguard.errors import printable

if TYPE_CHECKING:
    from edgeguard.calibration.maps import Calibration
    from edgeguard.evaluation.labelled import Labelled


@click.command(
    epilog="""\b
Examples:
  edgeguard evaluate labelled.jsonl --sort f1 --plot figures.html
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
@together_option
@search_options
@calibration_options
@record_options
@click.option(
    "--sort",
    metavar="COLUMN",
    help="Of the categories: label, records (most first), or auroc, auprc, f1, precision, recall, fpr, ece (worst "
    "first); with - before it the other way round  [default: the taxonomy's order]",
)
@click.option("--plot", type=click.Path(path_type=Path), help="Page of curves to write: HTML, one file")
@click.option(
    "--plot-labels",
    metavar="LABEL,…",
    help="Which labels' curves, unsafe too [default: unsafe, and the categories that some record has]",
)
@click.option(
    "--model-index",
    type=click.Path(path_type=Path),
    help="File to write for a model card's metadata: .json, else YAML",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing --plot or --model-index")
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
    sort: str | None,
    plot: Path | None,
    plot_labels: str | None,
    model_index: Path | None,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Evaluate a guard against ground truth: ranking, decisions, calibration, with 95 % intervals.

    INPUT is a file of labelled records: they are scored, and the three estimators and the baselines of their paper
    stand side by side. PREDICTIONS is what `edgeguard score --no-calibration` wrote: then it is the one estimator that
    it was scored with. The truth is in the records, or in --labels; --labels-map reads published data sets. Where it
    says only safe or unsafe, only the verdict has figures. A figure that the records cannot have, such as an
    AUROC where all are unsafe, is left blank, null in JSON, and so is an interval that they are too few for; both say
    why.
    """
    goals = read_goals((best_for,))
    if set(goals) != {""}:
        raise click.BadParameter("it is one rule for all labels", param_hint="--best-for")
    if goals[""].name == "greedy":
        raise click.BadParameter("where the greedy answer stands is shown beside it anyway", param_hint="--best-for")
    if no_calibration and (calibration or force_calibration):
        raise click.UsageError("--no-calibration excludes --calibration and --force-calibration")
    if plot_labels is not None and plot is None:
        raise click.UsageError("--plot-labels says what is on the page: give --plot too")
    numbers, order = read_thresholds(threshold), _order(sort)
    outputs = [path for path in (plot, model_index) if path is not None]
    with reported_errors():
        from edgeguard.evaluation.summary import as_json as figures
        from edgeguard.evaluation.summary import summarize

        refuse_read(outputs, {"input": source, "calibration": calibration, **options})
        _refuse_existing(outputs, overwrite)
        shown = None if plot_labels is None else split_names(plot_labels)
        named = {"--plot-labels": shown or (), "--threshold": set(numbers) - {"default"}}
        labelled = labelled_table(source, evidence=True, threshold=(), named=named, **options)
        maps = {
            estimator: None if no_calibration else _calibration(labelled, estimator, calibration, force_calibration)
            for estimator in labelled.table.scores
        }
        _refuse_unknown(shown or [], labelled)
        summary = summarize(labelled, maps, numbers, goals[""], draws=draws, seed=seed)
        if plot is not None:
            from edgeguard.evaluation.page import evaluation_page

            _write(plot, evaluation_page(summary, source=source.name, labels=shown))
        if model_index is not None:
            from edgeguard.evaluation.model_index import model_index_text

            _write(model_index, model_index_text(summary, source, as_json=model_index.suffix.lower() == ".json"))
        if as_json:
            import json

            from edgeguard.evaluation.model_index import harness_results, model_index_entry

            found = figures(summary) | {"goal": best_for, "model-index": model_index_entry(summary, source)}
            found |= harness_results(summary, source)
            click.echo(json.dumps(found))
        else:
            from edgeguard.cli.screen.evaluation import print_evaluation

            print_evaluation(summary, sort=order)
        for path in outputs:
            say(f"wrote {printable(str(path))}")


def _order(sort: str | None) -> str | None:
    """What `--sort` asks for, as the screen knows it."""
    if sort is None:
        return None
    from edgeguard.cli.screen.evaluation import SORTED_BY

    turned, name = ("-", sort[1:]) if sort.startswith("-") else ("", sort)
    name = {"fpr": "false_positive_rate"}.get(name.lower(), name.lower())
    if name not in SORTED_BY:
        names = ", ".join(SORTED_BY).replace("false_positive_rate", "fpr")
        raise click.BadParameter(f"{sort!r} is none of {names}", param_hint="--sort")
    return turned + name


def _refuse_unknown(names: list[str], labelled: Labelled) -> None:
    """Misuse: labels that the truth says nothing of."""
    table = labelled.table
    assert table.truth is not None
    if apart := set(names) & set(table.labels[table.truth.shape[1] :]):
        raise click.BadParameter(
            f"the truth says safe or unsafe alone, and nothing of {sorted(apart)[0]}", param_hint="--plot-labels"
        )


def _refuse_existing(outputs: list[Path], overwrite: bool) -> None:
    """Raises OutputError before anything is scored."""
    from edgeguard.errors import OutputError

    for path in outputs:
        if path.exists() and not overwrite:
            raise OutputError(f"{path} exists already; pass --overwrite to replace it, or name another file")
        if not path.resolve().parent.is_dir():
            raise OutputError(f"{path} cannot be written: there is no folder {path.resolve().parent}")


def _write(path: Path, text: str) -> None:
    """The whole file, or nothing. Raises OutputError."""
    from edgeguard.errors import OutputError
    from edgeguard.files import write_whole

    try:
        write_whole(path, text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from None


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
