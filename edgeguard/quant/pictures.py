"""The report's pictures as SVG, drawn by matplotlib. Imported only where a page is written.

Colours are placeholders that become the page's CSS variables, so that one picture serves a light page and a dark one.
Every series also has a marker or a line style of its own.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from edgeguard.quant.reading import floor_of
from edgeguard.quant.report import ReportData

INK, MUTED, FIRST = "#010101", "#020202", "#0b0b01"
SERIES = [FIRST, "#0b0b02", "#0b0b03", "#0b0b04", "#0b0b05", "#0b0b06", "#0b0b07", "#0b0b08"]
VARIABLES = {INK: "--ink", MUTED: "--muted", **{color: f"--series-{i}" for i, color in enumerate(SERIES, 1)}}
MARKERS, LINES = "osD^vPX*<>h", ["-", "--", "-.", ":"]  # 11 and 8 colours: 88 variants before two look alike
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be found, read aloud and set in the page's font
    "svg.hashsalt": "edgeguard",  # the same picture, the same bytes
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.labelcolor": INK,
}


def size_against_drift(report: ReportData, estimator: str) -> str:
    """File size against the RMS change of the verdict's log-odds, each variant with its own noise floor."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 4.4), layout="constrained")
        axes = figure.add_subplot()
        for i, variant in enumerate(report["variants"]):
            size, drift = variant["n_bytes"] / 1e6, _odds_rms(variant, estimator)
            axes.plot(
                [size], [drift], color=_color(i), marker=MARKERS[i % len(MARKERS)], markersize=8, linestyle="none"
            )
            floor = floor_of(variant, estimator)
            if floor:
                axes.plot([size], [floor], color=_color(i), marker="_", markersize=14, linestyle="none")
                axes.plot([size, size], [floor, drift], color=MUTED, linewidth=0.8, linestyle=":")
        axes.set_xlabel(f"file size, MB (the reference: {report['reference']['n_bytes'] / 1e6:.0f})")
        axes.set_ylabel("RMS change of the verdict's log-odds, nats")
        sizes = [v["n_bytes"] for v in report["variants"]]
        axes.set_xscale("log" if sizes and max(sizes) > 3 * min(sizes) else "linear")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        if axes.get_xscale() == "log":
            axes.xaxis.set_minor_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.margins(x=0.15, y=0.15)
        axes.set_ylim(bottom=-0.04 * axes.get_ylim()[1])  # a point at nought stays whole
        _name_points(
            axes,
            [(v["name"], v["n_bytes"] / 1e6, _odds_rms(v, estimator)) for v in report["variants"]],
        )
        return svg(figure, "File size against drift. A dash is the variant's own noise floor.")


def _name_points(axes: Axes, points: Sequence[tuple[str, float, float]], *, size: float = 9) -> None:
    """Write each point's name beside it, where it covers no other point or name: boxes in points of the page."""
    figure = axes.get_figure()
    assert figure is not None
    figure.draw_without_rendering()  # type: ignore[union-attr]  # the layout is known from here on
    scale = 72 / figure.dpi
    at = {name: tuple(scale * x for x in axes.transData.transform((a, b))) for name, a, b in points}
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in at.values()]
    for name, a, b in sorted(points, key=lambda point: -point[2]):
        x, y = at[name]
        width, best = 0.62 * size * len(name), None
        for dy in (0, 9, -9, 18, -18, 27, -27, 36, -36):
            for dx in (8, -8 - width):
                box = (x + dx, y + dy - size / 2, x + dx + width, y + dy + size / 2)
                covered = sum(_overlap(box, t) for t in taken)
                if best is None or covered < best[0]:
                    best = (covered, dx, dy, box)
        assert best is not None
        _, dx, dy, box = best
        taken.append(box)
        line = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.5} if abs(dy) > 9 else None
        place: dict[str, Any] = {"xytext": (dx, dy), "textcoords": "offset points", "va": "center"}
        axes.annotate(name, (a, b), fontsize=size, arrowprops=line, **place)


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Area that two boxes share: left, bottom, right, top."""
    width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    return max(0.0, width) * max(0.0, height)


def _odds_rms(variant: ReportData, estimator: str) -> float:
    return max(1e-9, float(variant["estimators"][estimator]["labels"]["unsafe"]["shift"]["odds_rms"]))


def flips_by_margin(report: ReportData, estimator: str) -> str:
    """Share of decisions that flipped, by the reference's distance from the threshold."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        axes = figure.add_subplot()
        names: list[str] = []
        for i, variant in enumerate(report["variants"]):
            bins = variant["estimators"][estimator]["labels"]["unsafe"]["flips_by_margin"]
            names = [_bin(b["from"], b["to"]) for b in bins]
            rates = [math.nan if not b["n"] else b["rate"] for b in bins]
            axes.plot(names, rates, color=_color(i), marker=MARKERS[i % len(MARKERS)], linestyle=LINES[i % 4],
                      label=variant["name"], markersize=5, linewidth=1.4)  # fmt: skip
        axes.set_xlabel("the reference's distance from the threshold, nats of log-odds")
        axes.set_ylabel("verdicts flipped")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:g} %"))
        axes.set_ylim(bottom=0)
        axes.legend(ncols=2, fontsize=9)
        return svg(figure, "Flip rate by margin")


def _bin(low: float, high: float | None) -> str:
    return f"≥ {low:g}" if high is None else f"{low:g}–{high:g}"


def densities(report: ReportData) -> str:
    """The reference's log-odds against each variant's, a cell the darker the more records are in it."""
    with rc_context(_STYLE):
        figure, grid = _grid(len(report["variants"]))
        for axes, variant in zip(grid, report["variants"], strict=False):
            edges, counts = variant["points"]["edges"], variant["points"]["counts"]
            most = max(max(row) for row in counts) or 1
            width = edges[1] - edges[0]
            for i, row in enumerate(counts):
                for j, n in enumerate(row):
                    if n:
                        alpha = 0.15 + 0.85 * math.log1p(n) / math.log1p(most)
                        axes.add_patch(_square(edges[i], edges[j], width, alpha))
            axes.plot([edges[0], edges[-1]], [edges[0], edges[-1]], color=MUTED, linewidth=0.8)
            axes.set_xlim(edges[0], edges[-1])
            axes.set_ylim(edges[0], edges[-1])
            axes.set_aspect("equal")
            axes.set_title(variant["name"])
        figure.supxlabel("log-odds, reference", fontsize=10, color=INK)
        figure.supylabel("log-odds, variant", fontsize=10, color=INK)
        return svg(figure, "Scores of the reference against scores of each variant")


def _square(x: float, y: float, width: float, alpha: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), width, width, facecolor=FIRST, alpha=alpha, linewidth=0)


def reliability(report: ReportData, estimator: str) -> str:
    """Reliability diagrams: reference, variant as it is, variant repaired."""
    with rc_context(_STYLE):
        figure, grid = _grid(len(report["variants"]))
        for axes, variant in zip(grid, report["variants"], strict=False):
            found = variant["estimators"][estimator]["truth"]["reliability"]
            lines = [
                ("reference", found["reference"], INK, "o", "-"),
                ("variant", found["variant"], SERIES[0], "s", "--"),
                ("repaired", variant["repair"][estimator]["reliability"], SERIES[1], "^", ":"),
            ]
            axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8)
            for name, bins, color, marker, style in lines:
                axes.plot(bins["mean_p"], bins["frequency"], color=color, marker=marker, linestyle=style, label=name,
                          markersize=3.5, linewidth=1.2)  # fmt: skip
            axes.set_title(variant["name"])
            axes.set_aspect("equal")
        figure.supxlabel("probability of unsafe", fontsize=10, color=INK)
        figure.supylabel("share that is unsafe", fontsize=10, color=INK)
        if grid:
            grid[0].legend(fontsize=8, loc="upper left")
        return svg(figure, "Reliability diagrams before and after repair")


def _grid(n: int) -> tuple[Figure, Sequence[Axes]]:
    columns = min(4, max(1, n))
    rows = -(-n // columns)
    figure = Figure(figsize=(7.6, 0.4 + 2.1 * max(1, rows) * min(1, 4 / columns)), layout="constrained")
    grid = figure.subplots(max(1, rows), columns, sharex=True, sharey=True, squeeze=False).ravel()
    for i, axes in enumerate(grid):
        axes.set_visible(i < n)
        if i < n <= i + columns:
            axes.tick_params(labelbottom=True)  # nothing is drawn below it
    return figure, list(grid[:n])


def _color(i: int) -> str:
    return SERIES[i % len(SERIES)]


def svg(figure: Figure, title: str) -> str:
    """The figure as an SVG element with the page's colours, and a title for those who hear it."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    for color, name in VARIABLES.items():
        text = text.replace(color, f"var({name})")
    text = re.sub(
        r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', rf'<svg viewBox="\1" role="img" aria-label="{title}">', text, count=1
    )
    return re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
