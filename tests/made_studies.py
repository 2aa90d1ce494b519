"""Studies from made-up score tables: report data of the current schema, with an answer that is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgeguard.calibration.thresholds import Thresholds
from edgeguard.evaluation.table import ScoreTable
from edgeguard.quant.choices import Choices
from edgeguard.quant.report import Measured, Report, build_report
from edgeguard.quant.rounds import Asked
from edgeguard.quant.scoring import Cost
from edgeguard.quant.variants import Variant

MACHINE = {
    "processor": "A processor",
    "cores": 2,
    "system": "Linux",
    "threads": 1,
    "workers": 2,
    "threads_for_speed": 2,
    "runtimes": {"llama-cpp-python": "0.3.36", "onnxruntime": "1.23.2"},
    "edgeguard": "0.1.0",
}
SETTING = {
    "edgeguard": "0.1.0",
    "command": "edgeguard bench quant labelled.jsonl --out study",
    "records": "labelled.jsonl",
    "records_sha256": "0" * 64,
    "profile": "made",
    "threads": 1,
    "threads_for_speed": 2,
    "tolerance": 0.01,
    "max_nodes": 64,
    "kv_cache": "f32",
    "first": None,
    "order": "shuffled",
    "seed": 0,
    "floor_records": 10,
    "measurements": 3,
}
REFERENCE_BYTES = 540


@dataclass(frozen=True)
class Made:
    """A variant that is made up: its size in MB, which of n records change toward safe and unsafe, speed over the
    reference's, nats of noise on all scores that changes nothing, whether its scores rank no more within a side."""

    name: str
    megabytes: int
    to_safe: int = 0
    to_unsafe: int = 0
    speed: float = 1.0
    noise: float = 0.0
    shuffled: bool = False


def made_study(
    folder: Path,
    variants: Sequence[Made],
    *,
    n: int = 1000,
    n_labels: int = 3,
    unsafe: float | None = 0.5,
    labels: bool = True,
    floor: bool = True,
    costs: bool = True,
    choices: Mapping[str, object] | None = None,
    texts: Mapping[int, object] | None = None,
) -> Report:
    """A report of `n` records, a share `unsafe` of which is; `choices`: of `Choices`, such as max_flip_rate=0.02.

    folder  where sparse files of the sizes go
    """
    one = made_table(n, n_labels, share=unsafe, labels=labels)
    chosen = Choices(thresholds=Thresholds(0.5), draws=50, **(choices or {}))  # type: ignore[arg-type]
    reference = _measured(folder, Made("reference", REFERENCE_BYTES), one, one, floor, costs)
    measured = [_measured(folder, v, one, moved(one, v, seed=i), floor, costs) for i, v in enumerate(variants, 1)]
    return build_report(reference, measured, chosen, SETTING, machine=MACHINE, texts=texts)


def made_table(
    n: int, n_labels: int = 3, *, share: float | None = 0.5, labels: bool = True, seed: int = 0
) -> ScoreTable:
    """Scores of a guard that is mostly right, no record within 0.2 nats of the threshold."""
    rng = np.random.default_rng(seed)
    unsafe = np.arange(n) < round(n * (share or 0))
    rng.shuffle(unsafe)
    codes = rng.random((n, n_labels)) < 0.3
    codes[:, 0] |= ~codes.any(axis=1)
    codes &= unsafe[:, None]
    margin = np.where(unsafe, 2.0, -2.0) + rng.normal(0, 1.5, n)
    margin += np.where(margin >= 0, 0.2, -0.2)
    code_odds = np.where(codes, 1.5, -4.0) + rng.normal(0, 1, (n, n_labels))
    truth = np.column_stack([unsafe, codes])
    return _table(margin, code_odds, truth if labels else None)


def _table(margin: np.ndarray, code_odds: np.ndarray, truth: np.ndarray | None) -> ScoreTable:
    n, n_labels = code_odds.shape
    off = np.full(n, 1e-4)
    unsafe = (1 - off) / (1 + np.exp(-margin))
    # No code alone makes a record unsafe: they stay under 0.5.
    codes = unsafe[:, None] * 0.49 / (1 + np.exp(-code_odds))
    first = codes / np.maximum(1, codes.sum(axis=1) / unsafe)[:, None]
    return ScoreTable(
        labels=("unsafe", *(f"S{i + 1}" for i in range(n_labels))),
        ids=tuple(f"r{i}" for i in range(n)),
        places=np.arange(n),
        truth=truth,
        margin=margin,
        scores=dict.fromkeys(("conditional", "joint", "marginal"), np.column_stack([unsafe, codes])),
        first=first,
        off=off,
    )


def moved(one: ScoreTable, made: Made, *, seed: int = 1) -> ScoreTable:
    """The scores with exactly so many verdicts changed, and noise that changes none."""
    rng = np.random.default_rng(seed)
    margin = one.margin + np.clip(rng.normal(0, 1, len(one)) * made.noise, -0.15, 0.15)
    for side in (one.margin > 0, one.margin < 0) if made.shuffled else ():
        margin[side] = rng.permutation(margin[side])
    for n, side in ((made.to_safe, one.margin > 0), (made.to_unsafe, one.margin < 0)):
        rows = rng.permutation(np.flatnonzero(side))[:n]
        assert len(rows) == n, f"{len(rows)} records can change so, {n} were asked for"
        margin[rows] = -one.margin[rows]
    odds = np.log(one.scores["marginal"][:, 1:] / one.unsafe[:, None] / 0.49)
    odds = odds - np.log1p(-np.exp(odds))
    return replace(_table(margin, odds, one.truth), ids=one.ids)


def _measured(folder: Path, made: Made, one: ScoreTable, table: ScoreTable, floor: bool, costs: bool) -> Measured:
    file = folder / f"{made.name}.bin"
    with file.open("wb") as stream:
        stream.truncate(made.megabytes * 1_000_000)  # sparse: it takes no room
    runtime = "onnx" if made.name.startswith("onnx") else "gguf"
    variant = Variant(made.name, file, (file,), f"{made.name:0<64}", runtime, made.name.upper())
    rate = 10.0 * made.speed
    cost = [Cost(0.5, made.megabytes + 50.0, x * rate) for x in (0.98, 1.0, 1.03)] if costs else []
    few = min(len(one), 10)
    noisy = replace(_first(table, few), margin=table.margin[:few] + 0.01 * np.random.default_rng(3).normal(0, 1, few))
    asked = Asked({"threads": noisy, "batch": noisy}, few if made.noise > 0.02 else few // 2, few)
    return Measured(variant, table, asked if floor else None, cost)


def _first(table: ScoreTable, n: int) -> ScoreTable:
    from edgeguard.evaluation.table import take

    return take(table, np.arange(n))


NINE = (
    Made("q8_0", 145, 1, 1, 2.1, 0.03),
    Made("q5_1", 112, 4, 3, 1.2, 0.05),
    Made("q5_0", 105, 6, 1, 1.4, 0.05),
    Made("q4_1", 98, 20, 3, 0.9, 0.1),
    Made("q4_0", 92, 9, 10, 1.9, 0.1),
    Made("iq4_nl", 92, 14, 4, 1.8, 0.1),
    Made("onnx-fp32", 541, 0, 0, 1.1),
    Made("onnx-int8", 154, 2, 1, 2.3, 0.03),
    Made("onnx-int4", 101, 10, 11, 2.0, 0.1),
)


def example(folder: Path) -> Report:
    """Nine variants on 1,000 records: what a page is tried on."""
    texts = {i: f"The text of record {i + 1}" for i in range(1000)}
    return made_study(folder, NINE, choices={"max_flip_rate": 0.02}, texts=texts)
