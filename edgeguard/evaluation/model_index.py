"""Figures in forms that others read: a model card's `model-index`, as Hugging Face has it, and lm-eval's results."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeguard.evaluation.figures import Figures
from edgeguard.evaluation.summary import Summary
from edgeguard.formats.hashes import sha256

# Ours → the type that Hugging Face and scikit-learn name it by
_VERDICT = {
    "auroc": "roc_auc",
    "auprc": "average_precision",
    "f1": "f1",
    "precision": "precision",
    "recall": "recall",
    "false_positive_rate": "false_positive_rate",
    "ece": "expected_calibration_error",
    "brier": "brier_score",
}
_TOGETHER = {
    "micro_f1": "f1_micro",
    "macro_f1": "f1_macro",
    "micro_precision": "precision_micro",
    "micro_recall": "recall_micro",
    "micro_auprc": "average_precision_micro",
}


def model_index_entry(summary: Summary, source: Path) -> list[dict[str, Any]]:
    """`model-index` of the first estimator: the verdict's figures, and those of the categories together.

    source  the file that was evaluated: its name, hash and number of records tell which data that was
    """
    found = summary.evaluations[summary.main]
    tasks = [("safe or unsafe", _VERDICT, found.labels["unsafe"].figures), ("categories", _TOGETHER, found.overall)]
    results = [
        {
            "task": {"type": "text-classification", "name": name},
            "dataset": {
                "type": _slug(source),
                "name": source.name,
                "args": {"records": len(summary.table), "sha256": sha256(source)},
            },
            "metrics": list(_metrics(name, types, figures)),
        }
        for name, types, figures in tasks
    ]
    return [{"name": summary.identity["guard"], "results": [result for result in results if result["metrics"]]}]


def _slug(source: Path) -> str:
    return re.sub(r"[^a-z0-9]+", "-", source.stem.lower()).strip("-") or "data"


def _metrics(task: str, types: Mapping[str, str], figures: Figures) -> Iterator[dict[str, Any]]:
    """Those that there are; an interval stands in `args`, as the schema leaves these free."""
    for key, type_ in types.items():
        figure = figures.get(key)
        if figure is None or math.isnan(figure.value):
            continue
        metric: dict[str, Any] = {"type": type_, "value": round(figure.value, 4), "name": f"{type_}, {task}"}
        if not math.isnan(figure.low):
            metric["args"] = {"low": round(figure.low, 4), "high": round(figure.high, 4), "level": 0.95}
        yield metric


def harness_results(summary: Summary, source: Path) -> dict[str, Any]:
    """`results` and `n-samples` as lm-evaluation-harness writes them: "metric,filter", a task each."""
    found, name, n = summary.evaluations[summary.main], _slug(source), len(summary.table)
    tasks = {
        f"{name}_verdict": (_VERDICT, found.labels["unsafe"].figures),
        f"{name}_categories": (_TOGETHER, found.overall),
    }
    results = {
        task: {"alias": task, **{f"{metric['type']},none": metric["value"] for metric in _metrics("", types, figures)}}
        for task, (types, figures) in tasks.items()
        if figures
    }
    return {"results": results, "n-samples": {task: {"original": n, "effective": n} for task in results}}


def model_index_text(summary: Summary, source: Path, *, as_json: bool = False) -> str:
    """The metadata of a model card, to stand between its lines of `---`: YAML, or JSON, which is YAML too."""
    entry = {"model-index": model_index_entry(summary, source)}
    if as_json:
        return json.dumps(entry, indent=2) + "\n"
    return "\n".join(_yaml(entry)) + "\n"


def _yaml(value: Any) -> Iterator[str]:
    """Lines of block style; every text is quoted, so that none is taken for a number, a date or a tag."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _entry(f"{key}:", inner)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for inner in value:
            first, *rest = _yaml(inner)
            yield f"- {first}"
            yield from (f"  {line}" for line in rest)
    else:
        yield _scalar(value)


def _entry(head: str, inner: Any) -> Iterator[str]:
    if isinstance(inner, Mapping | list):
        yield head
        yield from (f"  {line}" for line in _yaml(inner))
    else:
        yield f"{head} {_scalar(inner)}"


def _scalar(value: Any) -> str:
    said = json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in said)  # YAML takes no control characters
