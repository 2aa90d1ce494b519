"""The report as one page of HTML that needs nothing from the network."""

from __future__ import annotations

from importlib import resources

import jinja2
from markupsafe import Markup

from edgeguard.quant import pictures
from edgeguard.quant.reading import floor_of, interval, limits, number, percent
from edgeguard.quant.report import HEADLINE, ReportData


def page(report: ReportData) -> str:
    """HTML. Everything from the report is escaped: names and ids come from files."""
    template = (resources.files("edgeguard") / "quant" / "page.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    truth = report["unsafe"] is not None
    variants = report["variants"]
    drawn = {
        "size": pictures.size_against_drift(report, HEADLINE),
        "flips": pictures.flips_by_margin(report, HEADLINE),
        "densities": pictures.densities(report),
    }
    if truth:
        drawn["reliability"] = pictures.reliability(report, HEADLINE)
    most = max((x["shift"]["rms"] for v in variants for x in v["estimators"][HEADLINE]["labels"].values()), default=0)
    return environment.from_string(template).render(
        report=report,
        truth=truth,
        estimator=HEADLINE,
        estimators=list(variants[0]["estimators"]) if variants else [],
        all_labels=["unsafe", *report["labels"]],
        variants_in_floats=[v for v in variants if v["weights_or_runtime"]],
        floors={v["name"]: floor_of(v, HEADLINE) for v in variants},
        limits=limits(report),
        measurements=report["setting"]["measurements"],
        notices=[f"{v['name']}: {line}" for v in [report["reference"], *variants] for line in v["notices"]],
        command=report["setting"]["command"],
        pictures={name: Markup(text) for name, text in drawn.items()},  # our own SVG
        percent=percent,
        number=number,
        interval=interval,
        ratio=lambda a, b: a / b if b else None,
        times=lambda x: "" if x is None or isinstance(x, jinja2.Undefined) else f"{x:.2f}×",
        heat=lambda x: f"{0.6 * x / most:.2f}" if most else "0",
    )
