"""Made-up studies for the tests of their pages: tables of scores from dice, through the report's own code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeguard.calibration.maps import sigmoid
from edgeguard.evaluation.table import ScoreTable
from edgeguard.quant.choices import Choices, decided
from edgeguard.quant.report import Measured, build_report
from edgeguard.quant.scoring import Cost
from edgeguard.quant.variants import Variant

NINE = {
    "q8_0": (0.1, 145), "q5_1": (0.35, 112), "q5_0": (0.3, 105), "q4_1": (0.7, 98), "q4_0": (0.6, 92),
    "iq4_nl": (0.45, 92), "onnx-fp32": (0.0, 540), "onnx-int8": (0.11, 154), "onnx-int4": (0.62, 101),
}  # fmt: skip


@dataclass(frozen=True)
class Sized(Variant):
    """A variant without a file."""

    size: int = 1

    @property
    def n_bytes(self) -> int:
        """As made up."""
        return self.size


def table(n: int, *, codes: int = 3, noise: float = 0.0, seed: int = 0, truth: str | None = "both") -> ScoreTable:
    """Scores of n records; `noise` in nats moves them. truth: "both", "unsafe" or "safe" for one class, None."""
    rng, other = np.random.default_rng(0), np.random.default_rng(1 + seed)
    held = rng.random((n, codes)) < 0.5 / codes
    margin = np.where(held.any(axis=1), 2.0, -2.0) + rng.normal(0, 2, n) + noise * other.normal(0, 1, n)
    off = 0.01 * rng.random(n)
    odds = np.where(held, 1.0, -3.0) + rng.normal(0, 1.5, (n, codes)) + noise * other.normal(0, 1, (n, codes))
    unsafe = sigmoid(margin) * (1 - off)
    each = sigmoid(odds) * unsafe[:, None]
    holds = np.column_stack([held.any(axis=1), held])
    if truth in ("unsafe", "safe"):
        holds = np.column_stack([np.full(n, truth == "unsafe"), np.zeros((n, codes), bool)])
    return ScoreTable(
        labels=("unsafe", *(f"S{i + 1}" for i in range(codes))),
        ids=tuple(f"record-{i:04d}" for i in range(n)),
        places=np.arange(n),
        truth=None if truth is None else holds,
        margin=margin,
        scores=dict.fromkeys(("conditional", "joint", "marginal"), np.column_stack([unsafe, each])),
        first=each / np.maximum(1, each.sum(axis=1) / unsafe)[:, None],
        off=off,
    )


def _variant(name: str, megabytes: float) -> Sized:
    return Sized(name, Path(f"{name}.gguf"), (), f"{abs(hash(name)):064x}"[:64], "gguf", name, size=int(megabytes * 1e6))


def _measured(name: str, megabytes: float, found: ScoreTable, speed: float, noise: float, **options: Any) -> Measured:
    floors = {"threads": found, "batch": replace(found, margin=found.margin + 0.12 * np.sin(np.arange(len(found))))}
    costs = [Cost(load=0.4, peak=megabytes * 1.4, rate=speed * factor) for factor in (0.95, 1.0, 1.02)]
    return Measured(_variant(name, megabytes), found, floors, costs)


def made_study(
    n: int = 700,
    variants: dict[str, tuple[float, float]] | None = None,
    *,
    codes: int = 3,
    truth: str | None = "both",
    limit: float | None = 0.05,
    texts: bool = False,
) -> dict[str, Any]:
    """A report's data on n records; variants: name → (noise in nats, MB)."""
    one = table(n, codes=codes, truth=truth)
    reference = _measured("edgeguard-135m.F32", 540, one, 4.0, 0.0)
    found = [
        _measured(name, size, table(n, codes=codes, truth=truth, noise=noise, seed=i), 4.0 * (540 / size) ** 0.5, noise)
        for i, (name, (noise, size)) in enumerate((variants or NINE).items())
    ]
    choices = Choices(max_flip_rate=limit, draws=30)
    return decorate(dict(build_report(reference, found, choices, SETTING).data), reference, found, limit)


SETTING = {
    "edgeguard": "0.1.0",
    "command": "edgeguard bench quant labelled.jsonl --out study --max-flip-rate 0.05",
    "records": "labelled.jsonl",
    "records_sha256": "0" * 64,
    "profile": "edgeguard-13",
    "threads": 1,
    "threads_for_speed": 2,
    "measurements": 3,
}


def decorate(data, reference, found, limit):
    """TEMPORARY until the engine gives it."""
    from statistics import NormalDist
    from scipy.stats import beta
    choices = Choices(max_flip_rate=limit, draws=30)
    p = decided(reference.table, "marginal", choices)
    ship = None
    for v, one in zip(data["variants"], found, strict=True):
        q = decided(one.table, "marginal", choices)
        a, b = p.y_pred[:, 0], q.y_pred[:, 0]
        n, k = len(a), int((a != b).sum())
        most = n if k == n else float(beta.ppf(0.95, k + 1, n - k)) * n
        verdict = None
        if limit is not None:
            verdict = "keeps" if most / n <= limit else "breaks" if k and beta.ppf(0.05, k, n - k + 1) > limit else "too_few"
        needed = int(np.ceil(np.log(0.05) / np.log(1 - limit))) * (1 + k) if verdict == "too_few" else None
        v["decision"] = {"verdict": verdict, "changed": k, "of": n, "at_most": int(most), "toward_safe": int((a & ~b).sum()),
            "toward_unsafe": int((~a & b).sum()), "limit": limit, "records_needed": needed, "scored": n}
        v["bytes"] = v["n_bytes"]
        v["changed_records"] = [{"id": one.table.ids[i], "line": i + 1, "before": float(p.y_prob[i, 0]), "after": float(q.y_prob[i, 0]),
            "from": "unsafe" if a[i] else "safe", "to": "unsafe" if b[i] else "safe"} for i in np.flatnonzero(a != b)]
    data["reference"]["bytes"] = data["reference"]["n_bytes"]
    keeps = sorted((v["bytes"], v["name"]) for v in data["variants"] if v["decision"]["verdict"] == "keeps")
    data["recommendation"] = {"ship": keeps[0][1] if keeps else None, "why": "", "limits": {"max_flip_rate": limit, "max_auprc_loss": None}, "without_limits": None}
    data["machine"] = {"processor": "Made-up CPU @ 2.10GHz", "threads": 1, "workers": 2, "runtimes": {"llama.cpp": "0.3.36", "onnxruntime": "1.23.2"}, "edgeguard": "0.1.0"}
    return data
