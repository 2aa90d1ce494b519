"""A report's data as people read it: in the terminal, on the page, in the docs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def floor_of(variant: Mapping[str, Any], estimator: str) -> float | None:
    """The largest RMS change of the verdict's log-odds under another condition; None where none was measured."""
    found = [f[estimator]["labels"]["unsafe"]["odds_rms"] for f in variant["floor"].values() if estimator in f]
    return max(found) if found else None


VERDICTS = {"keeps": "keeps inside", "breaks": "does not", "too_few": "too few records to say"}


def verdict(decision: Mapping[str, Any]) -> str:
    """`keeps inside`, `does not`, `too few records to say: about 387 would do`; "" where no limit was given."""
    said = VERDICTS.get(decision["verdict"], "")
    if decision["verdict"] != "too_few":
        return said
    n = decision["records_needed"]
    return said + (f": about {n:,} would do" if n is not None else ": so near to the limit, no number would do")


def repaired(variant: Mapping[str, Any], estimator: str) -> float | None:
    """Share of the drift of P(unsafe), as RMS, that a map fitted without labels removes; None where nothing drifted.

    Negative where it adds some.
    """
    fix = variant["repair"][estimator]["labels"]["unsafe"]
    return 1 - fix["rms_after"] / fix["rms_before"] if fix["rms_before"] else None


def duration(seconds: float) -> str:
    """`40 s`, `3 min`, `2 h 10 min`: no more is known of an estimate."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def plan_lines(plan: Mapping[str, Any]) -> list[str]:
    """A plan as sentences."""
    scores, disk = plan["scores"], plan["disk"]
    unreadable = f"; {plan['unreadable']} more cannot be read" if plan["unreadable"] else ""
    lines = [
        f"{plan['records']:,} records, {plan['models']} models: the reference first, then {', '.join(plan['order'])}, "
        f"the smallest file first{unreadable}",
        f"{scores['at_least']:,} to {scores['at_most']:,} records to score over all models, noise and speed included"
        if scores["at_least"] < scores["at_most"]
        else f"{scores['at_most']:,} records to score over all models, noise and speed included",
    ]
    if plan["seconds"]:
        least, most = (duration(plan["seconds"][key]) for key in ("at_least", "at_most"))
        span = most if least == most else f"{least} to {most}"
        lines.append(
            f"about {span}: an estimate from the reference's first {plan['timed_on']} records, "
            f"{plan['seconds_a_record']:.2g} s each; making models is left out"
        )
    wanted = disk["models"] + disk["scores"]
    free = "" if disk["free"] is None else f" of {disk['free'] / 1e6:,.0f} MB that are free"
    awhile = f", and {disk['for_a_while'] / 1e6:,.0f} MB for a while" if disk["for_a_while"] else ""
    lines.append(f"disk: about {wanted / 1e6:,.0f} MB{awhile}{free}")
    lines += [f"{name}: {said}" for name, said in plan.get("misfits", {}).items()]
    if plan["limit"] is not None:
        lines.append(_decidable(plan))
    return lines


def _decidable(plan: Mapping[str, Any]) -> str:
    wanted, limit = plan["records_for_limit"], f"the limit of {100 * plan['limit']:g} % changed decisions"
    if plan["decides_from"] is None:
        said = "no number decides" if wanted is None else f"it takes {wanted:,} of which none changes"
        return f"{limit} cannot be decided by {plan['records']:,} records: {said}"
    return (
        f"{limit} can be decided: after {plan['decides_from']:,} records at the earliest, where none changes; "
        f"it takes at least {wanted:,}"
    )


def limits(report: Mapping[str, Any]) -> str:
    """`flip rate 2 %, AUPRC loss 0.01`, "" where none was given."""
    said, r = [], report["recommendation"]
    if r["max_flip_rate"] is not None:
        said.append(f"flip rate {percent(r['max_flip_rate'])}")
    if r["max_auprc_loss"] is not None:
        said.append(f"AUPRC loss {r['max_auprc_loss']:g}")
    return ", ".join(said)


def percent(x: float | None) -> str:
    """0.0123 → 1.2 %."""
    return "" if x is None else f"{100 * x:.3g} %" if abs(x) < 0.1 else f"{100 * x:.0f} %"


def number(x: float | None) -> str:
    """To two significant digits."""
    return "" if x is None else f"{x:.2g}"


def interval(found: Mapping[str, Any], factor: float = 1.0, digits: int = 3) -> str:
    """`-0.012 (-0.020 … -0.004)`."""
    if found["value"] is None:
        return ""
    value = f"{found['value'] * factor:+.{digits}f}"
    if found["low"] is None:
        return value
    return f"{value} ({found['low'] * factor:+.{digits}f} … {found['high'] * factor:+.{digits}f})"
