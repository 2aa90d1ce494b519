"""Scores with their truth, from the files and options that `evaluate` and `calibrate` share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeguard.cli.options import F, load_guard
from edgeguard.errors import printable

if TYPE_CHECKING:
    from edgeguard.evaluation.table import ScoreTable


def table_options(command: F) -> F:
    """Where the truth is."""
    option: Callable[[F], F] = click.option(
        "--labels",
        type=click.Path(path_type=Path),
        help="Records with the ground truth, joined by id, else in order [default: the records' own `labels`]",
    )
    return option(command)


@dataclass(frozen=True)
class Labelled:
    """A table with its truth; `estimator` is the one that was asked for, `identity` what a calibration names."""

    table: ScoreTable
    estimator: str
    identity: dict[str, str]


def labelled_table(
    source: Path, *, labels: Path | None, estimator: str | None, evidence: bool = False, **options: Any
) -> Labelled:
    """The scores in `source`, or the scores of the records in it, with their truth. Raises InputError."""
    from edgeguard.errors import InputError
    from edgeguard.evaluation.table import read_scores, score_records, with_truth
    from edgeguard.rows.readers import count_records, read_records
    from edgeguard.rows.results import holds_results

    if holds_results(source):
        table, said = read_scores(source)
        if estimator not in (None, said["estimator"]):
            raise InputError(
                f"{source} was scored with {said['estimator']}, --estimator is {estimator}; score it again"
            )
        identity, chosen = said, said["estimator"]
    else:
        chosen = estimator or "marginal"
        total = count_records(source)
        with load_guard(**options, no_calibration=True) as guard, _progress(total) as advance:
            _check_truth(source, labels, guard.labels)
            table = score_records(guard, read_records(source), evidence=evidence, advance=advance)
            identity = {
                "guard": guard.name,
                "profile": guard.profile.name,
                "estimator": chosen,
                "model_sha256": guard.backend.info.sha256,
            }
    for one in table.failed[:3]:
        click.echo(f"edgeguard: left out, not scored (id {one.id!r}): {printable(one.reason)}", err=True)
    if len(table.failed) > 3:
        click.echo(f"edgeguard: {len(table.failed)} records were not scored and are left out", err=True)
    if not len(table):
        raise InputError(f"{source}: no record could be scored")
    if labels is not None:
        table = with_truth(table, read_records(labels), str(labels))
    if table.truth is None:
        raise InputError(_without_labels(source))
    return Labelled(table, chosen, identity)


def _check_truth(source: Path, labels: Path | None, taxonomy: Sequence[str]) -> None:
    """Raises InputError for a missing or impossible truth now, and not after hours of scoring."""
    from edgeguard.errors import InputError
    from edgeguard.evaluation.table import joined_truth, truth_of
    from edgeguard.rows.readers import read_records
    from edgeguard.rows.record import Record

    records = list(read_records(source))
    good = [r for r in records if isinstance(r, Record)]
    ids = [r.id for r in good]
    if labels is not None:
        bad = [r.id for r in records if not isinstance(r, Record)]
        joined_truth(ids, bad, read_records(labels), str(labels), labels=taxonomy)
    elif good and truth_of([r.labels for r in good], taxonomy, ids) is None:
        raise InputError(_without_labels(source))


def _without_labels(source: Path) -> str:
    return f"{source} has no labels; give records with `labels`, or --labels FILE with the ground truth"


def _progress(total: int | None) -> Any:
    import sys
    from contextlib import nullcontext

    if not sys.stderr.isatty():
        return nullcontext(lambda: None)
    from edgeguard.cli.screen.progress import progress

    return progress(total, 0)
