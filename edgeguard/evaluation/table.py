"""A guard's scores on many records as arrays, all three estimators from one exploration of each record.

From records and a guard (`score_records`), or from what `edgeguard score` wrote (`read_scores`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeguard.calibration.decide import Decisions, decide, label_log_odds
from edgeguard.calibration.maps import Calibration
from edgeguard.calibration.thresholds import Thresholds, thresholds_for
from edgeguard.errors import InputError, RecordError
from edgeguard.estimates import Trees, estimate
from edgeguard.estimators import ESTIMATORS, first_label
from edgeguard.guard import Guard
from edgeguard.rows.record import Failure, Id, Record
from edgeguard.rows.results import read_rows
from edgeguard.workers import Workers

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Explored = dict[str, Any]  # what a table keeps of a record: numbers and rows of its arrays, by name


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """n records and what a guard made of them, before any calibration.

    labels  "unsafe" and the taxonomy's codes: the columns of the arrays
    ids     (n,) as the input has them
    places  (n,) 0-based place of each record in the input, failed ones counted too
    margin  (n,) log P(unsafe) - log P(safe), nats
    scores  estimator → (n, n_labels) probabilities; P(unsafe) is the same by all of them. Where each code has a
            question of its own, the marginal alone
    first   (n, n_codes) P(a code is the first one named); None where the scores came from a file, or where each code
            has a question of its own
    off     (n,) mass off the grammar
    fields  "field=label" of what answers say besides → (n,) probabilities, by `marginal`, or by the file's estimator
    truth   (n, n_labels) whether a label holds; (n, 1) where only safe or unsafe is known; None where nothing is
    evidence  (n,) log-sum-exp of the logits where the first label is written; None where it was not asked for
    failed  records that could not be scored; they are in none of the arrays
    """

    labels: tuple[str, ...]
    ids: tuple[Id, ...]
    places: npt.NDArray[np.int64]
    margin: Floats
    scores: Mapping[str, Floats]
    first: Floats | None
    off: Floats
    fields: Mapping[str, Floats] = field(default_factory=dict)
    truth: Bools | None = None
    evidence: Floats | None = None
    failed: tuple[Failure, ...] = ()

    def __len__(self) -> int:
        return len(self.margin)

    @property
    def codes(self) -> tuple[str, ...]:
        """The taxonomy's, in order."""
        return self.labels[1:]

    @property
    def unsafe(self) -> Floats:
        """(n,) P(the answer says unsafe)."""
        scores: Floats = next(iter(self.scores.values()))[:, 0]
        return scores

    def log_odds(self, estimator: str) -> Floats:
        """(n, n_labels) what a calibration's maps take."""
        return label_log_odds(self.margin, self.scores[estimator])


def score_records(
    guard: Guard | Workers,
    records: Iterable[Record | Failure],
    *,
    evidence: bool = False,
    advance: Callable[[], None] = lambda: None,
    where: str = "",
) -> ScoreTable:
    """Score records; what holds of them is not asked. `evidence` costs one call more a record. `where` is the file
    that failures name.

    A table of no records where none could be scored.
    """
    results = explored(guard, records, evidence=evidence, where=where)
    return table_of(guard, results, evidence=evidence, advance=advance)


def explored(
    guard: Guard | Workers, records: Iterable[Record | Failure], *, evidence: bool = False, where: str = ""
) -> Iterator[tuple[Record | Failure, Explored | Failure]]:
    """Each record and what a table keeps of it, in order, as they come."""
    many = partial(_explored_together, evidence=evidence)
    return guard.judged(records, partial(_explored, evidence=evidence), many=many, where=where)


def table_of(
    guard: Guard | Workers,
    results: Iterable[tuple[Record | Failure, Explored | Failure]],
    *,
    evidence: bool = False,
    advance: Callable[[], None] = lambda: None,
) -> ScoreTable:
    """The table of what `explored` gives."""
    scored: list[tuple[int, Id, Explored]] = []
    failed: list[Failure] = []
    for place, (record, result) in enumerate(results):
        advance()
        if isinstance(result, Failure):
            failed.append(result)
        else:
            scored.append((place, record.id, result))

    def column(name: str, *shape: int) -> Floats:
        return np.array([row[name] for _, _, row in scored], dtype=np.float64).reshape(len(scored), *shape)

    n_codes, asked = len(guard.codes), guard.questions != (None,)
    fields = column("fields", len(guard.field_labels))
    return ScoreTable(
        labels=("unsafe", *guard.codes),
        ids=tuple(id_ for _, id_, _ in scored),
        places=np.array([place for place, _, _ in scored], dtype=np.int64),
        margin=column("margin"),
        scores={name: column(name, 1 + n_codes) for name in (["marginal"] if asked else ESTIMATORS)},
        first=None if asked else column("first", n_codes),
        off=column("off"),
        fields={label: fields[:, i] for i, label in enumerate(guard.field_labels)},
        evidence=column("evidence") if evidence else None,
        failed=tuple(failed),
    )


def _explored(guard: Guard, record: Record, *, evidence: bool) -> Explored:
    found = _row(guard, *(guard.explore_with_evidence(record) if evidence else (guard.explore_all(record), np.nan)))
    if isinstance(found, RecordError):
        raise found
    return found


def _explored_together(guard: Guard, records: Sequence[Record], *, evidence: bool) -> list[Explored | RecordError]:
    found = guard.explore_together(records, evidence=evidence)
    return [one if isinstance(one, RecordError) else _row(guard, *one) for one in found]


def _row(guard: Guard, trees: Trees, size: float) -> Explored | RecordError:
    """What a table keeps of a record, or why `score` would give none: figures are of what users get."""
    names = ESTIMATORS if None in trees else ["marginal"]
    read = {name: estimate(trees, name, umbrella=guard.umbrella) for name in names}
    found = read["marginal"]
    if (refused := guard.refusal(found)) is not None:
        return refused
    return {
        "evidence": size,
        "margin": found.margin,
        "first": first_label(trees[None])[1 : found.safe] if None in trees else None,
        "off": found.off_grammar,
        "fields": found.scores[found.safe + 1 :],
        **{name: one.scores[: found.safe] for name, one in read.items()},
    }


def read_scores(path: Path) -> tuple[ScoreTable, dict[str, str]]:
    """The rows of `edgeguard score`, and what all of them say of their guard, profile, estimator and model.

    Raises InputError: rows of two guards, calibrated scores, no rows.
    """
    places: list[int] = []
    rows: list[Mapping[str, Any]] = []
    failed: list[Failure] = []
    identity: dict[str, str] = {}
    for number, row in enumerate(read_rows(path), 1):
        if "error" in row:
            failed.append(_failure(row))
            continue
        identity = identity or _identity(row)
        _check_row(row, identity, f"{path}: row {number}")
        places.append(number - 1)
        rows.append(row)
    if not rows:
        raise InputError(f"{path} holds no scored record")
    labels = ("unsafe", *rows[0]["category_scores"])
    fields = [(name, label) for name, said in rows[0].get("fields", {}).items() for label in said]
    scores = [[row["unsafe"], *(row["category_scores"][code] for code in labels[1:])] for row in rows]
    table = ScoreTable(
        labels=labels,
        ids=tuple(row.get("id") for row in rows),
        places=np.array(places),
        margin=np.array([row["margin"] for row in rows], dtype=np.float64),
        scores={identity["estimator"]: np.array(scores, dtype=np.float64)},
        first=None,
        off=np.array([row["off_grammar"] for row in rows], dtype=np.float64),
        fields={f"{n}={label}": np.array([row["fields"][n][label] for row in rows]) for n, label in fields},
        failed=tuple(failed),
    )
    return table, identity


def _failure(row: Mapping[str, Any]) -> Failure:
    error = row["error"]
    return Failure(row.get("id"), str(error.get("type")), str(error.get("message")), error.get("line") or 0)


def _identity(row: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(row[key]) for key in ("guard", "profile", "estimator", "model_sha256")}


def _check_row(row: Mapping[str, Any], identity: Mapping[str, str], where: str) -> None:
    """Raises InputError for a row of calibrated scores, or of another guard than the first row's."""
    if row["calibrated"]:
        raise InputError(f"{where} is calibrated; give the model's own scores", kind="calibrated_scores")
    for key, value in _identity(row).items():
        if value != identity[key]:
            raise InputError(f"{where} has {key} {value}, the first row {identity[key]}; score them alike")


def take(table: ScoreTable, rows: Bools | npt.NDArray[np.int64]) -> ScoreTable:
    """Some of the records of a table: a mask or indices, (n,)."""
    where = np.arange(len(table))[rows]
    return replace(
        table,
        ids=tuple(table.ids[i] for i in where),
        places=table.places[where],
        margin=table.margin[where],
        scores={name: array[where] for name, array in table.scores.items()},
        first=None if table.first is None else table.first[where],
        off=table.off[where],
        fields={label: p[where] for label, p in table.fields.items()},
        truth=None if table.truth is None else table.truth[where],
        evidence=None if table.evidence is None else table.evidence[where],
    )


def decisions(
    table: ScoreTable,
    estimator: str,
    *,
    calibration: Calibration | None = None,
    thresholds: Thresholds | Mapping[str, float] | None = None,
) -> Decisions:
    """What `edgeguard score` would say of the records; `thresholds` as `thresholds_for` takes them."""
    return decide(
        table.margin,
        table.scores[estimator],
        labels=table.labels,
        calibration=calibration,
        thresholds=thresholds_for(calibration, thresholds),
    )
