"""The report as one page of HTML that needs nothing from the network: it begins with the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from edgeguard.charts.marks import legend
from edgeguard.charts.page import document
from edgeguard.charts.svg import element, joined
from edgeguard.quant import page_tables as tables
from edgeguard.quant import pictures
from edgeguard.quant.answer import answer, mending
from edgeguard.quant.choices import HEADLINE
from edgeguard.quant.reading import repaired
from edgeguard.quant.report import ReportData

LEAST_PER_POINT = 10  # records behind a point of a reliability curve; with fewer it jumps and says nothing
LEAST_FOR_POINTS = 50  # records of a picture of scores against scores
KINDS = {"ship": "yes", "reference": "no", "too_few": "open"}  # of answers → classes of the page's style


def page(report: ReportData) -> str:
    """HTML. Everything from the report is escaped: names, ids and texts come from files."""
    said = answer(report)
    first = joined(said.first).replace(" %", Markup("&nbsp;%"))
    heading = element("h1", first, class_=f"answer {KINDS[said.kind]}")
    title = f"What quantization did to {report['reference']['name']}"
    return document(title, Markup(_main(report)), heading=heading, style=pictures.style())


def _main(report: ReportData) -> str:
    """All that stands below the answer."""
    template = (resources.files("edgeguard") / "quant" / "page.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    variants = tables.by_size(report)
    truth = report["unsafe"] is not None
    curves = _curves(report) if truth else []
    return environment.from_string(template).render(
        report=report,
        answer=answer(report),
        picture=pictures.size_and_changes(report),
        files=tables.files(report),
        changed=[(v, tables.changed(v)) for v in variants if v["changed_records"]],
        unchanged=[v["name"] for v in variants if not v["changed_records"]],
        drift=tables.drift(report, HEADLINE),
        mending=tables.mending(report, HEADLINE),
        mended=[line for v in variants if (line := mending(v, HEADLINE))],
        by_distance=tables.by_distance(report, HEADLINE),
        one_class=truth and report["unsafe"] in (0, report["records"]),
        quality=tables.quality(report, HEADLINE) if truth else None,
        harm=tables.harm(report, HEADLINE) if truth else None,
        curves=curves,
        legend=legend(
            ["reference", "variant", *(["repaired"] if any(c["repaired"] for c in curves) else [])], lines=True
        ),
        densities=_densities(variants) if report["records"] >= LEAST_FOR_POINTS else [],
        by_label=tables.by_label(report, HEADLINE),
        further=tables.further(report),
        estimators=tables.estimators(report),
        n_estimators=len(variants[0]["estimators"]) if variants else 0,
        headline=HEADLINE,
        machine=machine_in_words(report["machine"]),
        models=tables.models(report),
        notices=[f"{v['name']}: {line}" for v in [report["reference"], *variants] for line in v["notices"]],
        command=report["setting"].get("command", ""),
    )


def _densities(variants: Sequence[ReportData]) -> list[dict[str, Any]]:
    drawn = ({"name": v["name"], "drawing": pictures.densities(v)} for v in variants)
    return [one for one in drawn if one["drawing"]]


def _curves(report: ReportData) -> list[dict[str, Any]]:
    """A reliability curve for each variant whose points stand for enough records, with how many these are."""
    if report["unsafe"] in (0, report["records"]):
        return []
    drawn = (_curve(v) for v in tables.by_size(report))
    return [one for one in drawn if one["each"] >= LEAST_PER_POINT]


def _curve(variant: ReportData) -> dict[str, Any]:
    """What a map repaired is shown only where there is one: without, it is the variant on half of the records."""
    bins, fix = variant["estimators"][HEADLINE]["truth"]["reliability"], variant["repair"][HEADLINE]
    mended = _per_point(fix["told_on"], fix["reliability"]) if repaired(variant, HEADLINE) else 0
    lines = [("reference", bins["reference"]), ("variant", bins["variant"])]
    if mended >= LEAST_PER_POINT:
        lines.append(("repaired", fix["reliability"]))
    return {
        "name": variant["name"],
        "drawing": pictures.reliability(variant, lines),
        "points": len(bins["variant"]["mean_p"]),
        "each": _per_point(variant["records"], bins["variant"]),
        "repaired": mended if len(lines) > 2 else 0,
    }


def _per_point(n: int, bins: ReportData) -> int:
    return n // max(1, len(bins["mean_p"]))


def machine_in_words(machine: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the study ran on: (what, value), without what is not known."""
    runtimes = ", ".join(f"{name} {version}" for name, version in machine.get("runtimes", {}).items())
    cores = machine.get("cores")
    said = [
        ("processor", f"{machine.get('processor') or ''}{f', {cores} cores' if cores else ''}"),
        ("system", machine.get("system")),
        ("processes", machine.get("workers")),
        ("threads", machine.get("threads")),
        ("threads, speed", machine.get("threads_for_speed")),
        ("runtimes", runtimes),
        ("edgeguard", machine.get("edgeguard")),
    ]
    return [(what, str(value)) for what, value in said if value]
