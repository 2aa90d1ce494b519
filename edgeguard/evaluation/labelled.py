"""Scores with their truth, from a file of records or of scores: what an evaluation and a calibration begin with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeguard.errors import InputError
from edgeguard.evaluation.label_map import LabelMap
from edgeguard.evaluation.table import ScoreTable, read_scores, score_records
from edgeguard.evaluation.truth import Truth, described, find_truth, with_truth
from edgeguard.guard import Guard
from edgeguard.rows.readers import AS_IT_IS, Reading
from edgeguard.workers import Workers

Say = Callable[[str], None]
TOLD_ONE_BY_ONE = 3  # records that could not be scored


@dataclass(frozen=True)
class Labelled:
    """A table with its truth; `identity` is the guard, profile and model_sha256 of its scores."""

    table: ScoreTable
    identity: Mapping[str, str]


def score_labelled(
    guard: Guard | Workers,
    source: Path,
    *,
    labels: Path | None = None,
    label_map: LabelMap | None = None,
    reading: Reading = AS_IT_IS,
    evidence: bool = False,
    advance: Callable[[], None] = lambda: None,
    say: Say = lambda line: None,
) -> Labelled:
    """Score the records of a file, whose truth is in them or in the file `labels`.

    reading   how the records are read
    evidence  whether to ask for what some baselines need, where the guard's answers list codes
    advance   is called for each record
    say       hears how the truth was read, and what is left out

    Raises InputError for a truth that is missing or cannot be joined, before anything is scored.
    """
    found = find_truth(source, ("unsafe", *guard.codes), file=labels, label_map=label_map, reading=reading)
    truth = _stated(found, labels or source, say)
    if evidence and not guard.lists_codes:
        say("the paper's baselines are for answers that list codes; this guard's do not, so there are none")
    evidence = evidence and guard.lists_codes
    table = score_records(guard, reading.records(source), evidence=evidence, advance=advance, where=str(source))
    check_scored(table, source)
    identity = {"guard": guard.name, "profile": guard.profile.name, "model_sha256": guard.model_sha256}
    return _joined(table, truth, identity, labels, say)


def read_labelled(
    source: Path, *, labels: Path | None = None, label_map: LabelMap | None = None, say: Say = lambda line: None
) -> Labelled:
    """The scores that `edgeguard score` wrote, of the one estimator it had; else as `score_labelled`."""
    table, identity = read_scores(source)
    found = find_truth(source, table.labels, file=labels, label_map=label_map)
    return _joined(table, _stated(found, labels or source, say), identity, labels, say)


def _stated(truth: Truth | None, where: Path, say: Say) -> Truth:
    """The truth, said; InputError where there is none."""
    if truth is None:
        raise InputError(f"{where} has no labels; give records with `labels`", kind="no_truth")
    for line in described(truth):
        say(line)
    return truth


def check_scored(table: ScoreTable, source: Path) -> None:
    """Raises InputError for a table without a score, which says why the first record has none."""
    if not len(table):
        why = f"; the first of them: {table.failed[0].message}" if table.failed else ""
        raise InputError(f"{source}: no record could be scored{why}")


def tell_failed(table: ScoreTable, say: Say) -> None:
    """Say which records have no score, the first few each with its reason."""
    for one in table.failed[:TOLD_ONE_BY_ONE]:
        say(f"left out, not scored (id {one.id!r}): {one.message}")
    if len(table.failed) > TOLD_ONE_BY_ONE:
        say(f"{len(table.failed)} records were not scored and are left out")


def _joined(table: ScoreTable, truth: Truth, identity: Mapping[str, str], labels: Path | None, say: Say) -> Labelled:
    tell_failed(table, say)
    unscored = len(truth) - len(table) - len(table.failed)
    if unscored > 0:
        say(f"{truth.where}: {unscored} of {len(truth)} records were not scored; left out")
    return Labelled(with_truth(table, truth, same_file=labels is None), identity)
