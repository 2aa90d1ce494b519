"""A report's data as people read it: in the terminal, on the page, in the docs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def floor_of(variant: Mapping[str, Any], estimator: str) -> float | None:
    """The largest RMS change of the verdict's log-odds under another condition; None where none was measured."""
    found = [f[estimator]["labels"]["unsafe"]["odds_rms"] for f in variant["floor"].values() if estimator in f]
    return max(found) if found else None


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
