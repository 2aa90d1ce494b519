"""Two studies side by side: what is not the same, and what of that is beyond chance and noise."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgeguard.errors import InputError
from edgeguard.quant.reading import floor_of
from edgeguard.quant.report import HEADLINE, SCHEMA, ReportData

_CONDITIONS = ("profile", "records_sha256", "tolerance", "max_nodes", "kv_cache", "first")  # of `setting`


def read_report(path: Path) -> ReportData:
    """A report.json of this version's schema. Raises InputError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path} is no JSON; expected the report.json of a study") from None
    schema = found.get("schema") if isinstance(found, dict) else None
    if not str(schema).startswith("edgeguard-quant-"):
        raise InputError(f"{path} is no report of a study; expected a report.json of schema {SCHEMA}")
    if schema != SCHEMA:
        raise InputError(
            f"{path} is of schema {schema}, this edgeguard compares {SCHEMA}; run the study's command again (it stands "
            "in the report, under setting.command), with this edgeguard"
        )
    assert isinstance(found, dict)
    return found


def compare(a: ReportData, b: ReportData) -> dict[str, Any]:
    """What differs between two reports.

    conditions  what they were made on and with: `what`, `a`, `b`
    variants    of those that both have: `name`, `same_file`, and `figures`: `what`, `a`, `b`, `beyond` (whether the
                change is more than chance and noise make; None where that is not known), `why`
    only_a, only_b  names
    """
    same_records = a["setting"]["records_sha256"] == b["setting"]["records_sha256"]
    theirs = {one["name"]: one for one in b["variants"]}
    ours = {one["name"]: one for one in a["variants"]}
    reference = {
        "name": f"{a['reference']['name']} (reference)",
        "same_file": a["reference"]["sha256"] == b["reference"]["sha256"],
        "figures": list(_costs(a["reference"], b["reference"])),
    }
    return {
        "conditions": list(_conditions(a, b)),
        "same_records": same_records,
        "variants": [
            reference,
            *(
                {
                    "name": name,
                    "same_file": one["sha256"] == theirs[name]["sha256"],
                    "figures": [*_figures(one, theirs[name], same_records), *_costs(one, theirs[name])],
                }
                for name, one in ours.items()
                if name in theirs
            ),
        ],
        "only_a": [name for name in ours if name not in theirs],
        "only_b": [name for name in theirs if name not in ours],
        "ship": {"a": _shipped(a), "b": _shipped(b)},
    }


def _shipped(report: ReportData) -> str | None:
    found = report["recommendation"]
    ship: str | None = found["ship"] or (found["without_limits"] or {}).get("ship")
    return ship


def _conditions(a: ReportData, b: ReportData) -> Iterator[dict[str, Any]]:
    """Of machine, runtimes and setting, where the two are not the same."""
    one, other = ({**_flat(r["machine"]), **{k: r["setting"].get(k) for k in _CONDITIONS}} for r in (a, b))
    for report, found in ((a, one), (b, other)):
        found["reference"] = report["reference"]["sha256"]
    for what in [*one, *(k for k in other if k not in one)]:
        if one.get(what) != other.get(what):
            yield {"what": what, "a": one.get(what), "b": other.get(what)}


def _flat(machine: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in machine.items() if k != "runtimes"} | dict(machine.get("runtimes", {}))


def _figures(a: Mapping[str, Any], b: Mapping[str, Any], same_records: bool) -> Iterator[dict[str, Any]]:
    one, other = a["decision"], b["decision"]
    rate, its = (x["changed"] / x["of"] if x["of"] else None for x in (one, other))
    yield _figure(
        "changed", rate, its, _apart(one["low"], one["high"], other["low"], other["high"]), "bounds do not meet"
    )
    if one["verdict"] or other["verdict"]:
        yield {"what": "verdict", "a": one["verdict"], "b": other["verdict"], "beyond": None, "why": ""}
    moved, there = (x["estimators"][HEADLINE]["labels"]["unsafe"]["shift"]["odds_rms"] for x in (a, b))
    floors = [floor for x in (a, b) if (floor := floor_of(x, HEADLINE)) is not None]
    beyond = abs(moved - there) > max(floors) if floors and same_records else None
    yield _figure("odds_rms", moved, there, beyond, "more than both noise floors")
    changes = [_auprc(x) for x in (a, b)]
    if all(x is not None and x["low"] is not None for x in changes):
        left, right = changes
        assert left is not None
        assert right is not None
        apart = _apart(left["low"], left["high"], right["low"], right["high"])
        yield _figure("auprc_change", left["value"], right["value"], apart, "intervals do not meet")


def _auprc(variant: Mapping[str, Any]) -> Mapping[str, Any] | None:
    truth = variant["estimators"][HEADLINE].get("truth")
    found: Mapping[str, Any] | None = truth["labels"]["unsafe"]["changes"]["auprc"] if truth else None
    return found


def _costs(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Speed in records a second, peak memory in MiB, bytes."""
    for what in ("rate", "peak"):
        one, other = a["cost"].get(what), b["cost"].get(what)
        if one and other and one["median"] is not None and other["median"] is not None:
            apart = _apart(one["low"], one["high"], other["low"], other["high"])
            yield _figure(what, one["median"], other["median"], apart, "measurements do not overlap")
    yield _figure("bytes", a["bytes"], b["bytes"], a["bytes"] != b["bytes"], "they are counted")


def _figure(what: str, a: Any, b: Any, beyond: bool | None, why: str) -> dict[str, Any]:
    return {"what": what, "a": a, "b": b, "beyond": beyond, "why": why if beyond else ""}


def _apart(low: float, high: float, other_low: float, other_high: float) -> bool:
    return high < other_low or other_high < low
