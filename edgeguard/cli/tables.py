"""Scores with their truth, from the files and options that `evaluate` and `calibrate` share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeguard.cli.options import F, load_guard
from edgeguard.errors import printable

if TYPE_CHECKING:
    from edgeguard.evaluation.table import ScoreTable
    from edgeguard.evaluation.truth import Truth


def truth_options(command: F) -> F:
    """Where the truth is, and what its names stand for."""
    for option in (
        click.option(
            "--labels-map",
            type=click.Path(path_type=Path),
            help="TOML file from the truth's own names to the taxonomy [default: `labels`, `label` or `is_safe`]",
        ),
        click.option(
            "--labels",
            type=click.Path(path_type=Path),
            help="Records with the ground truth, joined by id, else in order [default: the records' own]",
        ),
    ):
        command = option(command)
    return command


@dataclass(frozen=True)
class Labelled:
    """A table with its truth; `estimator` is the one that was asked for, `identity` what a calibration names."""

    table: ScoreTable
    estimator: str
    identity: dict[str, str]


def labelled_table(
    source: Path,
    *,
    labels: Path | None,
    labels_map: Path | None,
    estimator: str | None,
    evidence: bool = False,
    **options: Any,
) -> Labelled:
    """The scores in `source`, or the scores of the records in it, with their truth. Raises InputError."""
    from edgeguard.errors import InputError
    from edgeguard.evaluation.table import read_scores, score_records
    from edgeguard.evaluation.truth import with_truth
    from edgeguard.rows.readers import count_records, read_records
    from edgeguard.rows.results import holds_results

    if holds_results(source):
        table, identity = read_scores(source)
        chosen = identity["estimator"]
        if estimator not in (None, chosen):
            raise InputError(f"{source} was scored with {chosen}, --estimator is {estimator}; score it again")
        truth = _truth(source, table.labels, labels, labels_map)
    else:
        chosen = estimator or "marginal"
        total = count_records(source)
        with load_guard(**options, no_calibration=True) as guard, _progress(total) as advance:
            truth = _truth(source, ("unsafe", *guard.codes), labels, labels_map)
            table = score_records(guard, read_records(source), evidence=evidence, advance=advance)
            identity = {
                "guard": guard.name,
                "profile": guard.profile.name,
                "estimator": chosen,
                "model_sha256": guard.backend.info.sha256,
            }
    if not len(table):
        raise InputError(f"{source}: no record could be scored")
    _say_what_is_left_out(table, truth)
    return Labelled(with_truth(table, truth, same_file=labels is None), chosen, identity)


def _truth(source: Path, taxonomy: Sequence[str], labels: Path | None, labels_map: Path | None) -> Truth:
    """The truth of a file's records, and on stderr how it was read. Raises InputError where there is none."""
    from edgeguard.errors import InputError
    from edgeguard.evaluation.label_map import read_label_map
    from edgeguard.evaluation.truth import described, find_truth

    label_map = None if labels_map is None else read_label_map(labels_map)
    truth = find_truth(source, taxonomy, file=labels, label_map=label_map)
    if truth is None:
        raise InputError(f"{labels or source} has no labels; give records with `labels`", kind="no_truth")
    for line in described(truth):
        click.echo(f"edgeguard: {printable(line)}", err=True)
    return truth


def _say_what_is_left_out(table: ScoreTable, truth: Truth) -> None:
    for one in table.failed[:3]:
        click.echo(f"edgeguard: left out, not scored (id {one.id!r}): {printable(one.message)}", err=True)
    if len(table.failed) > 3:
        click.echo(f"edgeguard: {len(table.failed)} records were not scored and are left out", err=True)
    unscored = len(truth) - len(table) - len(table.failed)
    if unscored > 0:
        click.echo(f"edgeguard: {truth.where}: {unscored} of {len(truth)} records were not scored; left out", err=True)


def _progress(total: int | None) -> Any:
    import sys
    from contextlib import nullcontext

    if not sys.stderr.isatty():
        return nullcontext(lambda: None)
    from edgeguard.cli.screen.progress import progress

    return progress(total, 0)
