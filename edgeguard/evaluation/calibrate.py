"""A calibration: of a table of scores with its truth, or of what a guard says of texts that say nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgeguard.calibration.fitting import LabelFit, Method, contextual_map, fit_labels
from edgeguard.calibration.maps import Calibration
from edgeguard.calibration.thresholds import Goal
from edgeguard.errors import InputError
from edgeguard.estimates import estimate
from edgeguard.estimators import log_odds
from edgeguard.evaluation.baselines import greedy_answers, tells_greedy
from edgeguard.evaluation.sources import Methods, even_weights, pooled
from edgeguard.evaluation.table import ScoreTable
from edgeguard.formats.hashes import sha256
from edgeguard.guard import Guard

Bools = npt.NDArray[np.bool_]

CONTENT_FREE = ("N/A", "[MASK]", "...")  # texts that say nothing, as the papers have them


def calibrate(
    table: ScoreTable,
    estimator: str,
    *,
    identity: Mapping[str, str],
    source: Path | Sequence[Path],
    method: Method | Literal["auto", "none"] | Methods = "auto",
    goals: Mapping[str, Goal] = MappingProxyType({}),
    safe_rate: float = 1.0,
    two_stage: bool = False,
    sources: Sequence[str] | None = None,
) -> tuple[Calibration, list[LabelFit]]:
    """A map and a threshold for each label that the truth speaks of: "unsafe" alone where it names no categories.

    identity   guard, profile and model_sha256 of the scores
    source     the file that the records were read from, or the files; names and hashes are kept
    goals      what thresholds are for, by label; "" is for those without one of their own
    safe_rate  the share of safe records that may be over a category's threshold
    two_stage  thresholds of categories are for records that are unsafe, and chosen on those
    sources    (n,) where each record is from: each source, small ones pooled, weighs the same

    Thresholds have six digits, as records lie apart. Raises InputError for a goal of "greedy" where the table does not
    tell the greedy answer.
    """
    assert table.truth is not None
    fits = fit_labels(
        table.labels[: table.truth.shape[1]],
        table.log_odds(estimator),
        table.scores[estimator],
        table.truth,
        method=method,
        goals=goals,
        safe_rate=safe_rate,
        two_stage=two_stage,
        weight=None if sources is None else even_weights(pooled(sources)),
        y_greedy=_greedy_answers(table, goals),
    )
    kept = {fit.label: fit for fit in fits if fit.map is not None or fit.threshold is not None}
    calibration = Calibration(
        guard=identity["guard"],
        profile=identity["profile"],
        estimator=estimator,
        model_sha256=identity["model_sha256"],
        maps={fit.label: fit.map for fit in fits if fit.map is not None},
        thresholds={fit.label: float(f"{fit.threshold.value:.6g}") for fit in fits if fit.threshold is not None},
        fitted={
            **_named(source),
            "records": len(table),
            "thresholds_for": {label or "all": str(goal) for label, goal in goals.items()} or {"all": "f1"},
            "safe_rate": safe_rate,
            **({"stages": 2} if two_stage else {}),
            **({} if sources is None else {"sources": dict(sorted(Counter(pooled(sources)).items()))}),
            "left_alone": {fit.label: fit.reason for fit in fits if fit.map is None},
        },
        two_stage=two_stage,
        priors={label: float(f"{fit.prior:.6g}") for label, fit in kept.items()},
        goals={fit.label: fit.goal for fit in fits if fit.threshold is not None},
    )
    return calibration, fits


def _greedy_answers(table: ScoreTable, goals: Mapping[str, Goal]) -> Bools | None:
    """(n, n_labels) what "greedy" among the goals refers to; None where no goal does. Raises InputError."""
    if all(goal.name != "greedy" for goal in goals.values()):
        return None
    if not tells_greedy(table):
        raise InputError(
            f"scores by {', '.join(table.scores)} do not say what the greedy answer was; give the records, which are "
            "then scored"
        )
    return greedy_answers(table)


def _named(source: Path | Sequence[Path]) -> dict[str, object]:
    if isinstance(source, Path):
        return {"file": source.name, "sha256": sha256(source)}
    return {"files": {path.name: sha256(path) for path in source}}


def contextual(guard: Guard, estimator: str) -> Calibration:
    """A calibration without records: every label is shifted by the bias that the guard shows on CONTENT_FREE texts.

    Where each code has a question of its own, by the bias of that.
    """
    odds = content_free_log_odds(guard)
    return Calibration(
        guard=guard.name,
        profile=guard.profile.name,
        estimator=estimator,
        model_sha256=guard.backend.info.sha256,
        maps={label: contextual_map(odds.get(label, odds["unsafe"])) for label in ("unsafe", *guard.codes)},
        fitted={"texts": list(CONTENT_FREE), "log_odds": odds["unsafe"]},
    )


def content_free_log_odds(guard: Guard, _: None = None) -> dict[str, float]:
    """Mean log-odds that the guard gives CONTENT_FREE texts: "unsafe", and each code with a question of its own."""
    asked = [guard.explore_all(text) for text in CONTENT_FREE]
    verdict = float(np.mean([estimate(trees, "marginal", umbrella=guard.umbrella).margin for trees in asked]))
    by_code = {code: float(np.mean([log_odds(trees[code]) for trees in asked])) for code in guard.questions if code}
    return {"unsafe": verdict, **by_code}
