"""The report as data: what each variant did to the scores of the reference. From score tables, no model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeguard.calibration.decide import Decisions
from edgeguard.calibration.maps import Calibration, Map, logit
from edgeguard.evaluation import drift, metrics
from edgeguard.evaluation.drift import Flips
from edgeguard.evaluation.metrics import Interval
from edgeguard.evaluation.table import ScoreTable, take
from edgeguard.quant.choices import HEADLINE as HEADLINE  # others find it here
from edgeguard.quant.choices import Choices, decided, thresholds_of
from edgeguard.quant.decision import Decision, Look, decide, look_at
from edgeguard.quant.oracle import as_data, noise_or_bias
from edgeguard.quant.recommendation import recommend
from edgeguard.quant.repair import repair
from edgeguard.quant.rounds import Asked
from edgeguard.quant.scoring import Cost
from edgeguard.quant.variants import Variant

Floats = npt.NDArray[np.float64]
ReportData = Mapping[str, Any]

SCHEMA = "edgeguard-quant-2"
FEWEST = 10  # records that an interval needs


@dataclass(frozen=True)
class Measured:
    """A variant with all that was measured of it.

    noise      its own scores of the first records under other conditions; None where that was not measured
    in_floats  those of the same weights with float activations; None where nothing is rounded, or it was not measured
    looks      what was seen on the way; () for one look at all records of both tables
    planned    records that there would have been to look at; None: those of both tables
    """

    variant: Variant
    table: ScoreTable
    noise: Asked | None
    costs: Sequence[Cost]
    in_floats: Asked | None = None
    looks: Sequence[Look] = ()
    planned: int | None = None


@dataclass(frozen=True)
class Report:
    """What a study found.

    data     what report.json holds: plain dicts, lists, numbers to seven digits; None for what the records do not give
    repairs  variant → estimator → the calibration that brings its scores back to the reference's
    """

    data: ReportData
    repairs: Mapping[str, Mapping[str, Calibration]]

    @property
    def recommended(self) -> str | None:
        """The smallest variant inside the limits; None where none is, or no limit was given."""
        found: str | None = self.data["recommendation"]["ship"]
        return found


def build_report(
    reference: Measured,
    variants: Sequence[Measured],
    choices: Choices,
    setting: Mapping[str, Any],
    *,
    machine: Mapping[str, Any] | None = None,
    plan: Mapping[str, Any] | None = None,
    texts: Mapping[int, Any] | None = None,
) -> Report:
    """All comparisons.

    setting  how it all was made, with the name of the `profile`; machine, plan: on what, and what was meant to be done
    texts    place → what is shown of a record whose decision changed; None: nothing
    """
    repaired = [_repaired(reference, one, choices, setting["profile"]) for one in variants]
    decisions = [_decision(reference, one, choices) for one in variants]
    compared = [
        compare(reference, one, choices)
        | {"repair": {name: figures for name, (figures, _) in found.items()}}
        | {"decision": decision_data(decision, choices), "changed_records": changed(reference, one, choices, texts)}
        for one, found, decision in zip(variants, repaired, decisions, strict=True)
    ]
    truth = reference.table.truth
    rows = [(one.variant.name, one.variant.n_bytes, d) for one, d in zip(variants, decisions, strict=True)]
    data = {
        "schema": SCHEMA,
        "setting": setting,
        "machine": machine or {},
        "plan": plan or {},
        "records": len(reference.table),
        "planned": variants[0].planned if variants and variants[0].planned else len(reference.table),
        "failed": len(reference.table.failed),
        "unsafe": None if truth is None else int(truth[:, 0].sum()),
        "labels": reference.table.codes,
        "not_told": not_told(reference),
        "reference": {
            **_described(reference.variant),
            "cost": _cost(reference, reference),
            "floor": _floor(reference, choices),
        },
        "variants": compared,
        "recommendation": recommend(reference.variant.n_bytes, rows, choices),
    }
    repairs = {
        one.variant.name: {name: calibration for name, (_, calibration) in found.items()}
        for one, found in zip(variants, repaired, strict=True)
    }
    return Report(as_json(data), repairs)


def not_told(reference: Measured) -> list[dict[str, str]]:
    """`what` the study cannot say, and `why`."""
    n, truth, found = len(reference.table), reference.table.truth, []
    unsafe = None if truth is None else int(truth[:, 0].sum())
    if unsafe is None:
        found.append({"what": "changes against the truth", "why": "the records have no labels"})
    elif unsafe in (0, n):
        said = f"all {n} records that were scored are" if n > 1 else "the only record that was scored is"
        why = f"{said} {'unsafe' if unsafe else 'safe'}, and it takes both"
        found.append({"what": "AUROC, AUPRC and the parts of the Brier loss", "why": why})
    if unsafe is not None and n < FEWEST:
        found.append({"what": "intervals of the changes", "why": f"they take {FEWEST} records"})
    if reference.noise is None:
        found.append({"what": "the noise floor, and what the weights do alone", "why": "it was not asked for"})
    if not reference.costs:
        found.append({"what": "speed and memory", "why": "it was not asked for, and no earlier run has measured it"})
    return found


def _decision(reference: Measured, one: Measured, choices: Choices) -> Decision:
    """From the looks on the way; where there were none, from one at all records."""
    if one.looks:
        return decide(one.looks, one.planned or one.looks[-1].n, choices)
    left, right = drift.shared(reference.table, one.table)
    return decide([look_at(left, right, choices, planned=len(left), end=True)], len(left), choices)


def decision_data(decision: Decision, choices: Choices) -> dict[str, Any]:
    """A decision as the report has it; counts are of the records that were scored."""
    look, rate = decision.look, decision.rate
    loss = decision.loss
    return {
        "verdict": decision.verdict,
        "changed": look.changed,
        "of": look.n,
        "at_most": min(look.n, math.ceil(rate.high * look.n - 1e-9)),
        "toward_safe": look.to_safe,
        "toward_unsafe": look.to_unsafe,
        "low": rate.low,
        "high": rate.high,
        "limit": choices.max_flip_rate,
        "auprc_loss": None if loss is None else {"low": loss.low, "high": loss.high, "limit": choices.max_auprc_loss},
        "records_needed": decision.needed,
        "scored": look.n,
        "all_records": look.end,
    }


def changed(
    reference: Measured, one: Measured, choices: Choices, texts: Mapping[int, Any] | None = None
) -> list[dict[str, Any]]:
    """The records whose verdict changed, in the file's order; `line` is the record's number in it, from 1."""
    left, right = drift.shared(reference.table, one.table)
    before, after = (decided(table, HEADLINE, choices) for table in (left, right))
    rows = np.flatnonzero(before.y_pred[:, 0] != after.y_pred[:, 0])
    found = []
    for i in rows[np.argsort(left.places[rows])]:
        place = int(left.places[i])
        row = {
            "id": left.ids[i],
            "line": place + 1,
            "before": before.y_prob[i, 0],
            "after": after.y_prob[i, 0],
            "from": "unsafe" if before.y_pred[i, 0] else "safe",
            "to": "unsafe" if after.y_pred[i, 0] else "safe",
        }
        found.append(row if texts is None else row | {"text": texts.get(place)})
    return found


def _repaired(
    reference: Measured, one: Measured, choices: Choices, profile: str
) -> dict[str, tuple[dict[str, Any], Calibration]]:
    """Estimator → what a repair does, and the calibration that does it, as one of this variant."""
    left, right = drift.shared(reference.table, one.table)
    found = {}
    for estimator in left.scores:
        figures, calibration = repair(left, right, estimator, choices)
        own = replace(
            calibration,
            guard=one.variant.name,
            profile=profile,
            model_sha256=one.variant.sha256,
            fitted={
                "to": reference.variant.name,
                "reference_sha256": reference.variant.sha256,
                "records": figures["fitted_on"],
            },
        )
        found[estimator] = figures, own
    return found


def compare(reference: Measured, one: Measured, choices: Choices) -> dict[str, Any]:
    """One variant against the reference."""
    left, right = drift.shared(reference.table, one.table)
    estimators = {name: _estimator(left, right, name, choices) for name in left.scores}
    verdicts = (drift.verdicts(t) for t in (left, right))
    firsts = None if left.first is None else (drift.first_labels(t) for t in (left, right))
    moved = {label: np.abs(right.fields[label] - p) for label, p in left.fields.items()}
    return {
        **_described(one.variant),
        "records": len(left),
        "cost": _cost(reference, one),
        "floor": _floor(one, choices),
        "noise": _answer(one.noise, "beyond", "within"),
        "weights_or_runtime": None
        if one.in_floats is None
        else _weights_or_runtime(left, right, one.in_floats, choices),
        "verdict": _distance(*verdicts),
        "first_label": None if firsts is None else _distance(*firsts),
        "fields": {
            label: {"mean": d.mean(), "p99": np.quantile(d, 0.99), "max": d.max()} for label, d in moved.items()
        },
        "off_grammar": {"reference": float(left.off.mean()), "variant": float(right.off.mean())},
        "noise_or_bias": _noise_or_bias(left, right, choices),
        "estimators": estimators,
        "points": points(left, right),
    }


def _described(variant: Variant) -> dict[str, Any]:
    return {
        "name": variant.name,
        "file": variant.path.name,
        "sha256": variant.sha256,
        "runtime": variant.runtime,
        "quantization": variant.quantization,
        "bytes": variant.n_bytes,
        "n_bytes": variant.n_bytes,
        "notices": variant.notices,
    }


def _cost(reference: Measured, one: Measured) -> dict[str, Any]:
    """Medians over the measurements, with their range, and over the reference's."""
    found: dict[str, Any] = {"size_ratio": one.variant.n_bytes / reference.variant.n_bytes}
    for name in ("load", "peak", "rate"):
        here, there = ([getattr(c, name) for c in m.costs] for m in (one, reference))
        if here and there:
            found[name] = {"median": np.median(here), "low": min(here), "high": max(here)}
            found[f"{name}_ratio"] = np.median(here) / np.median(there)
    return found


def _distance(p: Floats, q: Floats) -> dict[str, Any]:
    kl, tv = drift.kl_divergence(p, q), drift.total_variation(p, q)
    return {
        "kl": {"mean": kl.mean(), "se": kl.std() / math.sqrt(len(kl)), "p99": np.quantile(kl, 0.99), "max": kl.max()},
        "total_variation": {"mean": tv.mean(), "p99": np.quantile(tv, 0.99), "max": tv.max()},
    }


def _floor(one: Measured, choices: Choices) -> dict[str, Any]:
    """What the model's own scores move by when only the runtime's ways change, condition by condition."""
    found = {}
    for name, table in one.noise.tables.items() if one.noise is not None else ():
        if not len(table):  # none of the first records could be scored
            continue
        left, right = drift.shared(one.table, table)
        found[name] = {
            estimator: {
                "records": len(left),
                "labels": {label: asdict(s) for label, s in _shifts(left, right, estimator, choices).items()},
                "flagged": asdict(_flagged_flips(left, right, estimator, choices)),
            }
            for estimator in left.scores
        }
    return found


def _answer(asked: Asked | None, larger: str, smaller: str) -> dict[str, Any] | None:
    """Which of two is larger on most records, "unsure" where that is not certain; and the share, with its bounds."""
    if asked is None or not asked.n:
        return None
    verdict = larger if asked.low > 0.5 else smaller if asked.high < 0.5 else "unsure"
    share = asked.first / asked.n
    return {"verdict": verdict, "records": asked.n, "share": share, "low": asked.low, "high": asked.high}


def _weights_or_runtime(
    left: ScoreTable, right: ScoreTable, in_floats: Asked, choices: Choices
) -> dict[str, Any] | None:
    """The drift on the first records: of the weights alone, of the rounded activations alone, and of both."""
    (table,) = in_floats.tables.values()
    places = np.intersect1d(np.intersect1d(left.places, right.places), table.places)
    if not len(places):
        return None
    left, right, between = (take(t, np.isin(t.places, places)) for t in (left, right, table))
    steps = {"total": (left, right), "weights": (left, between), "runtime": (between, right)}
    found = {"records": len(places), "larger": _answer(in_floats, "weights", "activations")}
    return found | {
        estimator: {name: _step(a, b, estimator, choices) for name, (a, b) in steps.items()}
        for estimator in left.scores
    }


def _step(a: ScoreTable, b: ScoreTable, estimator: str, choices: Choices) -> dict[str, Any]:
    p, q = decided(a, estimator, choices), decided(b, estimator, choices)
    odds = b.margin - a.margin
    return {
        "odds_mean": odds.mean(),
        "odds_rms": _rms(odds),
        "codes_rms": _rms(q.y_prob[:, 1:] - p.y_prob[:, 1:]),
        "flips": asdict(drift.flips(p.y_pred[:, 0], q.y_pred[:, 0])),
    }


def _shifts(left: ScoreTable, right: ScoreTable, estimator: str, choices: Choices) -> dict[str, drift.Shift]:
    """Of every label: in probability as decisions see it, in log-odds as the model gives them."""
    p, q = decided(left, estimator, choices), decided(right, estimator, choices)
    a, b = left.log_odds(estimator), right.log_odds(estimator)
    return {label: drift.shift(p.y_prob[:, i], q.y_prob[:, i], a[:, i], b[:, i]) for i, label in enumerate(p.labels)}


def _flagged_flips(left: ScoreTable, right: ScoreTable, estimator: str, choices: Choices) -> Flips:
    return drift.flips(decided(left, estimator, choices).y_pred[:, 0], decided(right, estimator, choices).y_pred[:, 0])


def _estimator(left: ScoreTable, right: ScoreTable, estimator: str, choices: Choices) -> dict[str, Any]:
    p, q = decided(left, estimator, choices), decided(right, estimator, choices)
    odds, odds_right = left.log_odds(estimator), right.log_odds(estimator)
    thresholds, labels = thresholds_of(estimator, choices), {}
    for i, label in enumerate(p.labels):
        calibration = choices.calibrations.get(estimator)
        map_ = calibration.maps.get(label) if calibration else None
        at = _raw_threshold(map_, thresholds.of(label))
        labels[label] = {
            "shift": asdict(drift.shift(p.y_prob[:, i], q.y_prob[:, i], odds[:, i], odds_right[:, i])),
            "flips": asdict(drift.flips(p.y_pred[:, i], q.y_pred[:, i])),
            "threshold": thresholds.of(label),
            "flips_by_margin": [
                {"from": low, "to": high, **asdict(found)}
                for low, high, found in drift.flips_by_margin(p.y_pred[:, i], q.y_pred[:, i], odds[:, i], at)
            ],
        }
    found: dict[str, Any] = {
        "labels": labels,
        "all_labels": {
            "rms": _rms(q.y_prob[:, 1:] - p.y_prob[:, 1:]),
            "odds_rms": _rms((odds_right - odds)[:, 1:]),
            "flips": asdict(drift.flips(p.y_pred[:, 1:].ravel(), q.y_pred[:, 1:].ravel())),
        },
        "label_sets": asdict(drift.set_agreement(p.y_pred[:, 1:], q.y_pred[:, 1:])),
    }
    if left.truth is not None:
        found |= _against_truth(left, right, p, q, choices)
    return found


def _raw_threshold(map_: Map | None, threshold: float) -> float:
    """The score whose mapped probability is the threshold: where decisions fall, before calibration."""
    if map_ is None:
        return threshold
    grid = np.linspace(-20, 20, 8001)
    at = grid[min(len(grid) - 1, int(np.searchsorted(map_(grid), threshold)))]
    return float(1 / (1 + np.exp(-at)))


def _noise_or_bias(left: ScoreTable, right: ScoreTable, choices: Choices) -> dict[str, Any] | None:
    """Of the verdict: what of its change follows the reference's score, and what is each record's own."""
    p, q = decided(left, HEADLINE, choices), decided(right, HEADLINE, choices)
    calibration = choices.calibrations.get(HEADLINE)
    map_ = calibration.maps.get("unsafe") if calibration else None
    at = float(logit(np.array(_raw_threshold(map_, thresholds_of(HEADLINE, choices).of("unsafe")))))
    changed = int((p.y_pred[:, 0] != q.y_pred[:, 0]).sum())
    return as_data(noise_or_bias(left.margin, right.margin, at, changed))


def _rms(moved: Floats) -> float:
    """0 where there is nothing that could have moved: a guard whose answers name no codes."""
    return float(np.sqrt(np.mean(moved**2))) if moved.size else 0.0


def _against_truth(left: ScoreTable, right: ScoreTable, p: Decisions, q: Decisions, choices: Choices) -> dict[str, Any]:
    assert left.truth is not None
    y_true = left.truth
    options = {"draws": choices.draws if len(left) >= FEWEST else 0, "seed": choices.seed}
    labels = {}
    for i, label in enumerate(p.labels[: y_true.shape[1]]):
        t = y_true[:, i]
        changes = drift.label_changes(t, (p.y_prob[:, i], p.y_pred[:, i]), (q.y_prob[:, i], q.y_pred[:, i]), **options)
        labels[label] = {"n_true": int(t.sum()), "changes": _intervals(changes)}
        if i == 0:
            labels[label]["harm"] = None  # records of one class have no parts
        if i == 0 and 0 < t.sum() < len(t):
            parts = drift.harm(t, (left.unsafe, left.off), (right.unsafe, right.off), **options)
            labels[label]["harm"] = _intervals(parts)
    return {
        "truth": {
            "overall": {} if y_true.shape[1] == 1 else _intervals(drift.overall_changes(y_true, p, q, **options)),
            "labels": labels,
            "reliability": {
                "reference": asdict(metrics.reliability(y_true[:, 0], p.y_prob[:, 0])),
                "variant": asdict(metrics.reliability(y_true[:, 0], q.y_prob[:, 0])),
            },
        }
    }


def _intervals(found: Mapping[str, Interval]) -> dict[str, Any]:
    return {name: asdict(interval) for name, interval in found.items()}


# For the pictures


def points(left: ScoreTable, right: ScoreTable, *, n_bins: int = 40) -> dict[str, Any]:
    """A grid of how often a margin of the reference met one of the variant, and the edges of its cells."""
    low, high = np.quantile(np.concatenate([left.margin, right.margin]), [0.002, 0.998])
    if high <= low:  # one record, or all the same: the grid needs a width
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, n_bins + 1)
    counts, _, _ = np.histogram2d(
        np.clip(left.margin, low, high), np.clip(right.margin, low, high), bins=[edges, edges]
    )
    return {"edges": edges, "counts": counts.astype(int)}


def as_json(value: Any) -> Any:
    """Plain lists, dicts and numbers to seven digits; nan and infinities become null."""
    if is_dataclass(value) and not isinstance(value, type):
        return as_json(asdict(value))
    if isinstance(value, Mapping):
        return {str(k): as_json(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return as_json(value.tolist())
    if isinstance(value, list | tuple):
        return [as_json(v) for v in value]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    return value
