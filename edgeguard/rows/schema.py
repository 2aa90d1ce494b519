"""The schema of a result row: as one JSON object, nested, and flat, as the columns of CSV and Parquet.

A row is a plain dict, `id` first: a score with the keys of a score line, or an error,
`{"id", "error": {"type", "message", "line"}}`. `flatten` and `unflatten` are inverse, but that a flat id is a string.

`labels` are what rows give probabilities for: the taxonomy's codes, and "field=label" of what answers say besides.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

ResultRow = Mapping[str, Any]

KEYS = (  # of a scored row, in order
    *("id", "flagged", "unsafe", "margin", "categories", "category_scores", "bounds", "fields", "unexplored"),
    *("off_grammar", "estimator", "calibrated", "guard", "profile", "model_sha256", "tokens", "skipped", "window"),
)
IDENTITY = ("estimator", "profile", "model_sha256")  # what all rows of one output share

_SCORE, _FIELD = "score_", "field_"
_TOKENS = ("prompt", "reused", "answer")
_WINDOW = ("number", "of", "begin", "end")
_ERROR = ("type", "message", "line")


def to_json_line(row: ResultRow) -> str:
    """The row as one line of JSON, without its end; floats as they are. ValueError for NaN and infinity."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False)


def types_of(labels: Sequence[str]) -> dict[str, str]:
    """Column → its Arrow type."""
    return {
        "id": "string",
        "flagged": "bool",
        "unsafe": "double",
        "margin": "double",
        "categories": "string",
        **{_column(label): "double" for label in labels},
        **{f"{side}_{label}": "double" for label in ("unsafe", *labels) for side in ("lower", "upper")},
        "unexplored": "double",
        "off_grammar": "double",
        "estimator": "string",
        "calibrated": "bool",
        "guard": "string",
        "profile": "string",
        "model_sha256": "string",
        **{f"tokens_{part}": "int64" for part in _TOKENS},
        "skipped": "int64",
        **{f"window_{part}": "int64" for part in _WINDOW},
        **{f"error_{part}": "int64" if part == "line" else "string" for part in _ERROR},
    }


def columns(labels: Sequence[str]) -> list[str]:
    """The columns of CSV and Parquet."""
    return [*types_of(labels)]


def _column(label: str) -> str:
    return f"{_FIELD if '=' in label else _SCORE}{label}"


def labels_of(names: Sequence[str]) -> tuple[str, ...]:
    """The labels that these columns are for, in their order."""
    codes = [name.removeprefix(_SCORE) for name in names if name.startswith(_SCORE)]
    fields = [name.removeprefix(_FIELD) for name in names if name.startswith(_FIELD) and "=" in name]
    return (*codes, *fields)


def is_flat(names: Sequence[str]) -> bool:
    """Whether these are the columns of results, and not of records."""
    return {"model_sha256", "unsafe", "off_grammar"} <= set(names)


def is_result(row: object) -> bool:
    """Whether a JSON object is a result row, and not a record."""
    return isinstance(row, Mapping) and ("category_scores" in row or {"id", "error"} == row.keys())


def flatten(row: ResultRow, labels: Sequence[str]) -> dict[str, Any]:
    """Column → value, None where the row has none. The id becomes a string, the categories `S1;S10`.

    ValueError where the row scores a label that is not among `labels`.
    """
    fields = row.get("fields") or {}
    scores = {
        **(row.get("category_scores") or {}),
        **{f"{field}={label}": p for field, said in fields.items() for label, p in said.items()},
    }
    if unknown := set(scores) - set(labels):
        raise ValueError(f"the row has scores for {sorted(unknown)}, which are not among the labels {list(labels)}")
    bounds = row.get("bounds") or {}
    tokens, window, error = (row.get(key) or {} for key in ("tokens", "window", "error"))
    flat = {name: row.get(name) for name in columns(labels)}
    flat["id"] = None if row.get("id") is None else str(row["id"])
    flat["categories"] = ";".join(row["categories"]) if "categories" in row else None
    flat |= {_column(label): scores.get(label) for label in labels}
    for label in ("unsafe", *labels):
        flat[f"lower_{label}"], flat[f"upper_{label}"] = bounds.get(label, (None, None))
    flat |= {f"tokens_{part}": tokens.get(part) for part in _TOKENS}
    flat |= {f"window_{part}": window.get(part) for part in _WINDOW}
    flat |= {f"error_{part}": error.get(part) for part in _ERROR}
    return flat


def unflatten(flat: ResultRow) -> dict[str, Any]:
    """The row that was flattened. A column that is not there is as one that is None."""
    if flat.get("error_type") is not None:
        return {"id": flat.get("id"), "error": {part: flat.get(f"error_{part}") for part in _ERROR}}
    labels = labels_of([*flat])
    bounds = {label: [flat.get(f"{side}_{label}") for side in ("lower", "upper")] for label in ("unsafe", *labels)}
    fields: dict[str, dict[str, Any]] = {}
    for label in labels:
        field, equals, name = label.partition("=")
        if equals:
            fields.setdefault(field, {})[name] = flat[_column(label)]
    window = {part: flat.get(f"window_{part}") for part in _WINDOW}
    nested: dict[str, Any] = {
        "categories": [code for code in (flat.get("categories") or "").split(";") if code],
        "category_scores": {label: flat[_column(label)] for label in labels if "=" not in label},
        "bounds": {label: pair for label, pair in bounds.items() if pair != [None, None]},
        "fields": fields,
        "tokens": {part: flat.get(f"tokens_{part}") for part in _TOKENS},
        "window": None if window["number"] is None else window,
    }
    return {key: nested[key] if key in nested else flat.get(key) for key in KEYS}


def typed(cells: Mapping[str, str]) -> dict[str, Any]:
    """The values that cells of CSV stand for, None for an empty one; columns that are not ours stay strings.

    ValueError that names the column.
    """
    types = types_of(labels_of([*cells]))
    return {name: _value(name, text, types.get(name, "string")) for name, text in cells.items()}


def _value(name: str, text: str, kind: str) -> Any:
    if text == "":
        return None
    if kind == "bool":
        if text.lower() not in ("true", "false"):  # a spreadsheet writes TRUE
            raise ValueError(f"{name} is {text!r}; expected true or false")
        return text.lower() == "true"
    try:
        return {"double": float, "int64": int, "string": str}[kind](text)
    except ValueError:
        raise ValueError(f"{name} is {text!r}; expected a number") from None
