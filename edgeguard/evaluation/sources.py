"""Calibration that carries over: a fit in which each source of records counts alike, held against sources left out.

A calibration holds for texts like those it was fitted on. How far it holds elsewhere, a source says that the fit has
not seen: with each left out in turn, the worst of their calibration errors is what a stranger's texts may meet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgeguard.calibration.fitting import METHODS, Method, fit_map
from edgeguard.errors import CalibrationError, InputError
from edgeguard.evaluation.figures import PER_BIN
from edgeguard.evaluation.metrics import N_BINS, Figure, Interval, Weight, ece_loss
from edgeguard.evaluation.table import ScoreTable
from edgeguard.evaluation.truth import places_in
from edgeguard.rows.readers import read_fields

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Methods = Mapping[str, Method | Literal["none"]]  # "unsafe", and "" for each category

FEWEST = 30  # records of a source: three bins of ten, with fewer its calibration error is mostly chance
REST = "the rest"


def sources_of(path: Path, field: str, table: ScoreTable, *, same_file: bool, **raw: str | None) -> tuple[str, ...]:
    """(n,) what a field of its record says of each row of a table: where it is from.

    path       the file whose records have the field
    same_file  whether the table was scored from it: then by place, else by id as its truth is joined
    raw        its format and encoding, where they are not told by its content

    Raises InputError for a field that no record has, or that a record has nothing in.
    """
    rows = [fields if isinstance(fields, Mapping) else None for _, fields in read_fields(path, **raw)]
    if not any(fields and field in fields for fields in rows):
        raise InputError(f"{path}: no record has {field!r}, which was to say where each is from")
    n_records = len(table) + len(table.failed)
    at = table.places.tolist() if same_file else places_in(str(path), rows, table.ids, table.places.tolist(), n_records)
    found = []
    for place in at:
        value = (rows[place] or {}).get(field)
        if value is None or isinstance(value, Mapping | list) or str(value) == "":
            raise InputError(f"{path}: record {place + 1} has {value!r} in {field!r}; expected the name of its source")
        found.append(str(value))
    return tuple(found)


def pooled(sources: Sequence[str]) -> tuple[str, ...]:
    """The sources, those of fewer than FEWEST records together as REST."""
    counts = Counter(sources)
    return tuple(name if counts[name] >= FEWEST else REST for name in sources)


def even_weights(sources: Sequence[str]) -> Floats:
    """(n,) of pooled sources: each weighs the same; together n.

    Sources that are fewer than FEWEST even together weigh as much less: none of their records counts for more than one
    of a source of that size.
    """
    counts = Counter(sources)
    weight = np.array([1 / max(counts[name], FEWEST) for name in sources])
    return np.asarray(weight * (len(weight) / weight.sum()))


# Left out


@dataclass(frozen=True)
class SourceError:
    """A source, and how far the probabilities of a fit on all the others hold for it.

    ece         calibration error of P(unsafe), in bins of PER_BIN records at least, N_BINS at most
    mean        mean P(unsafe), beside `share`, that of its records that are unsafe
    categories  mean calibration error of the categories; None where the truth names none
    """

    name: str
    n: int
    share: float
    mean: float
    ece: Interval
    categories: Interval | None


@dataclass(frozen=True)
class LeftOut:
    """Each source by a fit on the others, in the order of their names, and the worst of their errors."""

    methods: Methods
    sources: tuple[SourceError, ...]
    worst: Interval
    worst_categories: Interval | None

    @property
    def worst_source(self) -> str:
        """Whose ECE of `unsafe` is the highest."""
        return max(self.sources, key=lambda one: one.ece.value).name


def leave_out(
    table: ScoreTable, estimator: str, sources: Sequence[str], methods: Methods, *, draws: int = 1000, seed: int = 0
) -> LeftOut:
    """What each of the pooled sources gets from maps fitted, with even weights, on the others.

    Raises CalibrationError for fewer than two sources, and where the others say nothing of the verdict.
    """
    y_prob = _by_the_others(table, estimator, sources, methods)
    names, where = np.unique(np.array(sources), return_inverse=True)
    truth = table.truth
    assert truth is not None
    rows = [np.flatnonzero(where == i) for i in range(len(names))]
    found = {
        kind: [_errors(y_prob[at][:, columns], truth[at][:, columns], draws, seed) for at in rows]
        for kind, columns in (("unsafe", [0]), ("categories", [*range(1, truth.shape[1])]))
        if columns
    }
    each = [
        SourceError(
            str(name),
            len(at),
            float(truth[at, 0].mean()),
            float(y_prob[at, 0].mean()),
            _interval(found["unsafe"][i]),
            _interval(found["categories"][i]) if "categories" in found else None,
        )
        for i, (name, at) in enumerate(zip(names, rows, strict=True))
    ]
    worst = {kind: _interval(np.max(drawn, axis=0)) for kind, drawn in found.items()}
    return LeftOut(methods, tuple(each), worst["unsafe"], worst.get("categories"))


def choose_methods(
    table: ScoreTable,
    estimator: str,
    sources: Sequence[str],
    among: Sequence[Method | Literal["none"]] = ("none", *METHODS),
) -> tuple[Methods, Mapping[Method | Literal["none"], LeftOut]]:
    """The method with the lowest error in the worst source left out, for the verdict and for categories; all tries."""
    tries = {name: leave_out(table, estimator, sources, {"unsafe": name, "": name}, draws=0) for name in among}
    chosen = {
        "unsafe": min(among, key=lambda name: tries[name].worst.value),
        "": min(among, key=lambda name: _categories(tries[name])),
    }
    return MappingProxyType(chosen), tries


def _categories(found: LeftOut) -> float:
    return 0.0 if found.worst_categories is None else found.worst_categories.value


def _by_the_others(table: ScoreTable, estimator: str, sources: Sequence[str], methods: Methods) -> Floats:
    """(n, n_known) probabilities of each record under maps that were fitted without its source."""
    truth, names = table.truth, np.array(sources)
    assert truth is not None
    if len(set(sources)) < 2:
        raise CalibrationError(
            f"all records are of one source ({sources[0]!r}, those under {FEWEST} records taken together); to leave "
            "one out takes two"
        )
    odds, scores = table.log_odds(estimator), table.scores[estimator]
    y_prob = scores[:, : truth.shape[1]].copy()
    for name in np.unique(names):
        out = names == name
        weight = even_weights(names[~out].tolist())
        for i in range(truth.shape[1]):
            method = methods["unsafe" if i == 0 else ""]
            y_true = truth[~out, i]
            if y_true.all() or not y_true.any():
                if i == 0:
                    which = "unsafe" if y_true.all() else "safe"
                    raise CalibrationError(
                        f"without the source {str(name)!r} all records are {which}; give more sources"
                    )
                continue
            try:
                map_ = None if method == "none" else fit_map(method, odds[~out, i], y_true, weight=weight)
            except CalibrationError:  # the scores rank the wrong way: left alone, as in a fit
                map_ = None
            if map_ is not None:
                y_prob[out, i] = map_(odds[out, i])
    return y_prob


def _errors(y_prob: Floats, y_true: Bools, draws: int, seed: int) -> Floats:
    """(1 + draws,) mean calibration error of the columns, and those of the same draws of records."""
    n_bins = max(1, min(N_BINS, len(y_true) // PER_BIN))

    def error(weight: Weight) -> Figure:
        return np.mean([ece_loss(y_true[:, i], y_prob[:, i], weight, n_bins=n_bins) for i in range(y_true.shape[1])], 0)

    rng, n = np.random.default_rng(seed), len(y_true)
    whole = np.array([error(None)])
    if not draws:
        return whole
    return np.concatenate([whole, error(rng.multinomial(n, np.full(n, 1 / n), draws).astype(float))])


def _interval(drawn: Floats) -> Interval:
    low, high = np.quantile(drawn[1:], [0.025, 0.975]) if len(drawn) > 1 else (np.nan, np.nan)
    return Interval(float(drawn[0]), float(low), float(high))
