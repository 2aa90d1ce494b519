"""A guard's scores on many records as arrays, all three estimators from one exploration of each record.

From records and a guard (`score_records`), or from what `edgeguard score` wrote (`read_scores`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from edgeguard.calibration.maps import Calibration, logit
from edgeguard.errors import InputError, RecordError
from edgeguard.estimators import ESTIMATORS, first_label, log_odds, marginal
from edgeguard.guard import Guard, Thresholds
from edgeguard.rows.record import Failure, Record
from edgeguard.rows.results import read_rows

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Id = str | int | None


@dataclass(frozen=True)
class Failed:
    """A record that could not be scored: its 0-based place in the input, and why."""

    place: int
    id: Id
    reason: str


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """n records and what a guard made of them, before any calibration.

    labels  the taxonomy's codes, in order: the columns of the arrays
    ids     (n,) as the input has them
    places  (n,) 0-based place of each record in the input, failed ones counted too
    truth   (n, n_labels) whether a label holds, None where not known; a row without any is safe
    margin  (n,) log P(unsafe) - log P(safe), nats
    unsafe  (n,) P(the answer says unsafe)
    scores  estimator → (n, n_labels) probabilities
    first   (n, n_labels) P(a label is the first one named); None where the scores came from a file
    off     (n,) mass off the grammar
    evidence  (n,) log-sum-exp of the logits where the first label is written; None where it was not asked for
    failed  records that could not be scored; they are in none of the arrays
    """

    labels: tuple[str, ...]
    ids: tuple[Id, ...]
    places: npt.NDArray[np.int64]
    truth: Bools | None
    margin: Floats
    unsafe: Floats
    scores: Mapping[str, Floats]
    first: Floats | None
    off: Floats
    evidence: Floats | None = None
    failed: tuple[Failed, ...] = ()

    def __len__(self) -> int:
        return len(self.margin)


def score_records(
    guard: Guard,
    records: Iterable[Record | Failure],
    *,
    evidence: bool = False,
    advance: Callable[[], None] = lambda: None,
) -> ScoreTable:
    """Score records; `truth` is there if all of them have labels. `evidence` costs one call more a record.

    A table of no records where none could be scored. Raises InputError for a label that is not of the taxonomy.
    """
    ids: list[Id] = []
    places: list[int] = []
    given: list[tuple[str, ...] | None] = []
    rows: list[tuple[float, float, float]] = []
    first: list[Floats] = []
    found_evidence: list[float] = []
    scores: dict[str, list[Floats]] = {name: [] for name in ESTIMATORS}
    failed: list[Failed] = []
    n = len(guard.labels)
    for place, record in enumerate(records):
        advance()
        if isinstance(record, Failure):
            failed.append(Failed(place, record.id, record.message))
            continue
        try:
            if evidence:
                tree, size = guard.explore_with_evidence(record)
                found_evidence.append(size)
            else:
                tree = guard.explore(record)
        except RecordError as error:
            failed.append(Failed(place, record.id, str(error)))
            continue
        ids.append(record.id)
        places.append(place)
        given.append(record.labels)
        rows.append((log_odds(tree), float(marginal(tree)[tree.labels.index("unsafe")]), tree.off_grammar))
        first.append(first_label(tree)[:n])
        for name, estimate in ESTIMATORS.items():
            scores[name].append(estimate(tree)[:n])
    margin, unsafe, off = np.array(rows, dtype=np.float64).reshape(-1, 3).T
    return ScoreTable(
        labels=guard.labels,
        ids=tuple(ids),
        places=np.array(places, dtype=np.int64),
        truth=truth_of(given, guard.labels, ids),
        margin=margin,
        unsafe=unsafe,
        scores={name: np.array(found, dtype=np.float64).reshape(-1, n) for name, found in scores.items()},
        first=np.array(first, dtype=np.float64).reshape(-1, n),
        off=off,
        evidence=np.array(found_evidence) if evidence else None,
        failed=tuple(failed),
    )


def truth_of(given: Sequence[tuple[str, ...] | None], labels: Sequence[str], ids: Sequence[Id]) -> Bools | None:
    """(n, n_labels) ground truth; None where no record has labels. Raises InputError where some have none."""
    without = [i for i, found in enumerate(given) if found is None]
    if len(without) == len(given):
        return None
    if without:
        i = without[0]
        raise InputError(
            f"record {i + 1} (id {ids[i]!r}) has no labels, and {len(without)} of {len(given)} like it; "
            'give each its labels, [] or "safe" where none holds'
        )
    truth = np.zeros((len(given), len(labels)), dtype=np.bool_)
    column = {label: i for i, label in enumerate(labels)}
    for i, found in enumerate(given):
        for label in found or ():
            if label not in column:
                raise InputError(
                    f"record {i + 1} (id {ids[i]!r}) has the label {label!r}; the taxonomy has {', '.join(labels)}"
                )
            truth[i, column[label]] = True
    return truth


def read_scores(path: Path) -> tuple[ScoreTable, dict[str, str]]:
    """The rows of `edgeguard score`, and what all of them say of their guard, profile, estimator and model.

    Raises InputError: rows of two guards, calibrated scores, no rows.
    """
    ids: list[Id] = []
    places: list[int] = []
    rows: list[Mapping[str, Any]] = []
    failed: list[Failed] = []
    said: dict[str, str] = {}
    for number, row in enumerate(read_rows(path), 1):
        if "error" in row:
            failed.append(Failed(number - 1, row.get("id"), str(row["error"].get("message"))))
            continue
        if row["calibrated"]:
            raise InputError(f"{path}: row {number} is calibrated; score again with --no-calibration")
        here = {key: str(row[key]) for key in ("guard", "profile", "estimator", "model_sha256")}
        if said and here != said:
            key = next(k for k in here if here[k] != said[k])
            raise InputError(f"{path}: row {number} has {key} {here[key]}, the first row {said[key]}; score them alike")
        said = here
        ids.append(row.get("id"))
        places.append(number - 1)
        rows.append(row)
    if not rows:
        raise InputError(f"{path} holds no scored record")
    labels = tuple(rows[0]["category_scores"])
    scores = np.array([[row["category_scores"][label] for label in labels] for row in rows])
    table = ScoreTable(
        labels=labels,
        ids=tuple(ids),
        places=np.array(places),
        truth=None,
        margin=np.array([row["margin"] for row in rows], dtype=np.float64),
        unsafe=np.array([row["unsafe"] for row in rows], dtype=np.float64),
        scores={said["estimator"]: scores},
        first=None,
        off=np.array([row["off_grammar"] for row in rows], dtype=np.float64),
        failed=tuple(failed),
    )
    return table, said


def with_truth(table: ScoreTable, records: Iterable[Record | Failure], where: str) -> ScoreTable:
    """The table with the labels of `records`: joined by id where all have one, else in order.

    Raises InputError that names the record: an id that is not there or is there twice, other lengths, no labels.
    """
    failed = [one.id for one in table.failed]
    return replace(table, truth=joined_truth(table.ids, failed, records, where, labels=table.labels))


def joined_truth(
    ids: Sequence[Id], failed: Sequence[Id], records: Iterable[Record | Failure], where: str, *, labels: Sequence[str]
) -> Bools:
    """(len(ids), n_labels) the labels of `records` for these ids; `failed` are those of records without a score.

    Raises InputError as `with_truth` does.
    """
    truths: list[Record] = []
    for record in records:
        if isinstance(record, Failure):
            raise InputError(record.message)
        truths.append(record)
    if all(r.id is not None for r in truths) and all(id_ is not None for id_ in ids):
        by_id = {str(r.id): r for r in truths}
        missing = [id_ for id_ in ids if str(id_) not in by_id]
        extra = sorted(set(by_id) - {str(id_) for id_ in (*ids, *failed)})
        if missing or extra:
            what = f"has no record of id {missing[0]!r}" if missing else f"has {extra[0]!r}, which was not scored"
            raise InputError(
                f"{where} {what} ({len(missing)} missing, {len(extra)} extra); give the labels of these scores"
            )
        given = [by_id[str(id_)].labels for id_ in ids]
    else:
        if len(truths) != len(ids) or failed:
            raise InputError(
                f"{where} has {len(truths)} records, {len(ids)} were scored and {len(failed)} failed; "
                "without ids they are joined in order, which these numbers forbid"
            )
        given = [r.labels for r in truths]
    truth = truth_of(given, labels, ids)
    if truth is None:
        raise InputError(f'{where} has no labels; each record needs a list, [] or "safe" where none holds')
    return truth


# What a guard says of the records of a table


@dataclass(frozen=True, eq=False)
class Predictions:
    """Probabilities and decisions, "unsafe" in the first column and the taxonomy's codes behind it.

    p     (n, 1 + n_labels)
    said  (n, 1 + n_labels) at or over the threshold; "unsafe" too where only a category is, as `flagged` is
    """

    labels: tuple[str, ...]
    p: Floats
    said: Bools


def log_odds_of(table: ScoreTable, estimator: str) -> Floats:
    """(n, 1 + n_labels) what calibrations take: the margin of "unsafe", the log-odds of the codes' scores."""
    return np.column_stack([table.margin, logit(table.scores[estimator])])


def predictions(
    table: ScoreTable, estimator: str, *, calibration: Calibration | None = None, thresholds: Thresholds | None = None
) -> Predictions:
    """As `edgeguard score` would say. `thresholds` None: the calibration's, 0.5 without."""
    labels = ("unsafe", *table.labels)
    own = Thresholds(labels=calibration.thresholds if calibration else {})
    thresholds = own if thresholds is None else thresholds
    if calibration is None:
        p = np.column_stack([table.unsafe, table.scores[estimator]])
    else:
        odds = log_odds_of(table, estimator)
        columns = [table.unsafe, *table.scores[estimator].T]  # of labels without a map
        for i, label in enumerate(labels):
            if label in calibration.maps:
                columns[i] = calibration.maps[label](odds[:, i])
        p = np.column_stack(columns)
    said = p >= np.array([thresholds.of(label) for label in labels])
    said[:, 0] |= said[:, 1:].any(axis=1)
    return Predictions(labels, p, said)


def truth_with_unsafe(truth: Bools) -> Bools:
    """(n, 1 + n_labels): unsafe in front, where any label holds."""
    return np.column_stack([truth.any(axis=1), truth])


# Tables as files


def save_table(table: ScoreTable, path: Path) -> None:
    """As an npz file, which `load_table` reads. Only a whole file ever has the name."""
    arrays: dict[str, Any] = {
        "labels": np.array(table.labels),
        "ids": _as_texts(table.ids),
        "margin": table.margin,
        "unsafe": table.unsafe,
        "off": table.off,
        "places": table.places,
        "failed_places": np.array([one.place for one in table.failed], dtype=np.int64),
        "failed_ids": _as_texts([one.id for one in table.failed]),
        "failed_reasons": np.array([one.reason for one in table.failed], dtype=np.str_),
        **{f"scores_{name}": array for name, array in table.scores.items()},
    }
    arrays |= {} if table.truth is None else {"truth": table.truth}
    arrays |= {} if table.first is None else {"first": table.first}
    arrays |= {} if table.evidence is None else {"evidence": table.evidence}
    half = path.with_name(f".{path.name}.partial")
    with half.open("wb") as file:
        np.savez_compressed(file, **arrays)
    half.replace(path)


def load_table(path: Path) -> ScoreTable:
    """What `save_table` wrote. Raises InputError."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            return ScoreTable(
                labels=tuple(map(str, found["labels"])),
                ids=tuple(_ids(found["ids"])),
                truth=found.get("truth"),
                margin=found["margin"],
                unsafe=found["unsafe"],
                scores={n.removeprefix("scores_"): found[n] for n in found.files if n.startswith("scores_")},
                first=found.get("first"),
                off=found["off"],
                evidence=found.get("evidence"),
                places=found["places"],
                failed=tuple(
                    Failed(int(place), id_, str(why))
                    for place, id_, why in zip(
                        found["failed_places"], _ids(found["failed_ids"]), found["failed_reasons"], strict=True
                    )
                ),
            )
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise InputError(f"{path} is no table of scores: {error}; remove it, and score again") from error


def _as_texts(ids: Sequence[Id]) -> npt.NDArray[np.str_]:
    """Ids with a letter that says what they are."""
    texts = ["" if i is None else f"{'i' if isinstance(i, int) else 's'}{i}" for i in ids]
    return np.array(texts, dtype=np.str_)


def _ids(found: npt.NDArray[np.str_]) -> Iterator[Id]:
    for text in map(str, found):
        yield None if not text else int(text[1:]) if text[0] == "i" else text[1:]
