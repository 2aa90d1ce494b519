"""Scores with their truth, from the files and options that `evaluate` and `calibrate` share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

from edgeguard.cli.options import F, open_guard, take_reading
from edgeguard.cli.say import say
from edgeguard.errors import printable

if TYPE_CHECKING:
    from edgeguard.evaluation.labelled import Labelled
    from edgeguard.evaluation.table import ScoreTable


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


def labelled_table(
    source: Path,
    *,
    labels: Path | None,
    labels_map: Path | None,
    estimator: str | None = None,
    evidence: bool = False,
    workers: int | None = None,
    named: Mapping[str, Iterable[str]] = MappingProxyType({}),
    **options: Any,
) -> Labelled:
    """The scores in `source`, or the scores of the records in it, with their truth. Raises InputError.

    named  option → labels that it names: misuse where the guard has none of that name, before anything is scored
    """
    from edgeguard.errors import InputError
    from edgeguard.evaluation.label_map import read_label_map
    from edgeguard.evaluation.labelled import read_labelled, score_labelled
    from edgeguard.rows.readers import count_records
    from edgeguard.rows.results import holds_results

    truth: dict[str, Any] = {"labels": labels, "label_map": None if labels_map is None else read_label_map(labels_map)}
    reading = take_reading(options)
    if not holds_results(source):
        reading.check(source)
        total = count_records(source, format=reading.format, encoding=reading.encoding)
        opened = open_guard(**options, workers=workers, records=total, no_calibration=True)
        with opened as guard, _progress(total) as advance:
            _check_named(named, ("unsafe", *guard.codes))
            return score_labelled(guard, source, reading=reading, evidence=evidence, advance=advance, say=_say, **truth)
    labelled = read_labelled(source, say=_say, **truth)
    _check_named(named, labelled.table.labels)
    (scored_with,) = labelled.table.scores
    if estimator not in (None, scored_with):
        raise InputError(f"{source} was scored with {scored_with}, --estimator is {estimator}; score it again")
    return labelled


def unlabelled_table(
    source: Path, *, estimator: str | None, workers: int | None = None, **options: Any
) -> tuple[ScoreTable, Mapping[str, str]]:
    """The scores in `source`, or of the records in it, whatever their labels are; and the guard they are of.

    Of scores that are read the identity has their estimator too. Raises InputError.
    """
    from edgeguard.errors import InputError
    from edgeguard.evaluation.labelled import check_scored, tell_failed
    from edgeguard.evaluation.table import read_scores, score_records
    from edgeguard.rows.readers import count_records
    from edgeguard.rows.results import holds_results

    reading = take_reading(options)
    if holds_results(source):
        table, identity = read_scores(source)
        if estimator not in (None, identity["estimator"]):
            raise InputError(f"{source} was scored with {identity['estimator']}, not with {estimator}; score it again")
        tell_failed(table, _say)
        return table, identity
    reading.check(source)
    total = count_records(source, format=reading.format, encoding=reading.encoding)
    opened = open_guard(**options, workers=workers, records=total, no_calibration=True)
    with opened as guard, _progress(total) as advance:
        table = score_records(guard, reading.records(source), advance=advance, where=str(source))
        check_scored(table, source)
        tell_failed(table, _say)
        return table, {"guard": guard.name, "profile": guard.profile.name, "model_sha256": guard.model_sha256}


def _check_named(named: Mapping[str, Iterable[str]], labels: Sequence[str]) -> None:
    for option, names in named.items():
        if unknown := sorted(set(names) - set(labels)):
            raise click.BadParameter(f"{unknown[0]!r} is none of {', '.join(labels)}", param_hint=option)


def _say(line: str) -> None:
    say(f"edgeguard: {printable(line)}")


def _progress(total: int | None) -> Any:
    import sys
    from contextlib import nullcontext

    if not sys.stderr.isatty():
        return nullcontext(lambda: None)
    from edgeguard.cli.screen.progress import progress

    return progress(total, 0)
