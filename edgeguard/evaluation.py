"""A guard's scores on labelled records as arrays, all three estimators from one exploration of each record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgeguard.errors import InputError
from edgeguard.estimators import ESTIMATORS, log_odds, marginal
from edgeguard.guard import Guard
from edgeguard.records import BadRecord, Record

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """n records and what a guard made of them, before any calibration.

    labels  the taxonomy's codes, in order: the columns of `truth` and of each of `scores`
    truth   (n, n_labels) whether a label holds; a row without any is safe
    margin  (n,) log P(unsafe) - log P(safe), nats
    unsafe  (n,) P(the answer says unsafe)
    scores  estimator → (n, n_labels) probabilities
    """

    labels: tuple[str, ...]
    truth: Bools
    margin: Floats
    unsafe: Floats
    scores: Mapping[str, Floats]

    def __len__(self) -> int:
        return len(self.margin)


def score_table(
    guard: Guard, records: Iterable[Record | BadRecord], *, advance: Callable[[], None] = lambda: None
) -> ScoreTable:
    """Score labelled records. Raises InputError for one that cannot be scored or has no or unknown labels."""
    truth, margins, unsafe = [], [], []
    scores: dict[str, list[Floats]] = {name: [] for name in ESTIMATORS}
    for record in records:
        if isinstance(record, BadRecord):
            raise InputError(str(record.error))
        truth.append(_truth(record, guard.labels))
        tree = guard.explore(record)
        found = {name: estimate(tree) for name, estimate in ESTIMATORS.items()}
        margins.append(log_odds(tree))
        unsafe.append(float(marginal(tree)[tree.labels.index("unsafe")]))
        for name, p in found.items():
            scores[name].append(p[: len(guard.labels)])
        advance()
    if not truth:
        raise InputError("there are no records to score")
    return ScoreTable(
        guard.labels, np.array(truth), np.array(margins), np.array(unsafe), {k: np.array(v) for k, v in scores.items()}
    )


def _truth(record: Record, labels: tuple[str, ...]) -> Bools:
    if record.labels is None:
        raise InputError(f"line {record.line}: the record has no labels; give [] or \"safe\" where none holds")
    if unknown := set(record.labels) - set(labels):
        raise InputError(
            f"line {record.line}: label {sorted(unknown)[0]!r} is not of this taxonomy: {', '.join(labels)}"
        )
    return np.array([label in record.labels for label in labels])


def save_table(table: ScoreTable, path: Path) -> None:
    """As an npz file."""
    arrays = {f"scores_{name}": array for name, array in table.scores.items()}
    np.savez_compressed(
        path, labels=table.labels, truth=table.truth, margin=table.margin, unsafe=table.unsafe, **arrays
    )


def load_table(path: Path) -> ScoreTable:
    """What `save_table` wrote."""
    with np.load(path, allow_pickle=False) as found:
        return ScoreTable(
            tuple(map(str, found["labels"])),
            found["truth"],
            found["margin"],
            found["unsafe"],
            {name: found[f"scores_{name}"] for name in ESTIMATORS},
        )
