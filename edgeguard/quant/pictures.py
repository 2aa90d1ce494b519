"""The drawings of a study's page: small pure functions from the report's data to inline SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from edgeguard.quant.answer import VERDICTS, ReportData, changes, count, megabytes
from edgeguard.webpage import style, svg

# The picture of all files: percent of the width, pixels of the height.
_SIZE_TO, _CHANGES_FROM, _CHANGES_TO = 34.0, 46.0, 95.0
_HEAD, _FOOT, _LINE = 30.0, 58.0, 18.0
_LONGEST = 16  # letters of a name that stand beside its figures where the page is narrowest

# The small square ones: user units, which a page shows as pixels or a little more.
_SIDE, _LEFT, _TOP, _ROOM = 200.0, 40.0, 12.0, (250.0, 252.0)
_LEVELS = 5  # of how many records are in a cell


@dataclass(frozen=True)
class _Line:
    """A file in the picture: rate and most are shares of the records."""

    variant: ReportData
    rate: float
    most: float


def size_and_changes(report: ReportData) -> Markup:
    """File size against changed decisions, a row a file, the smallest first; "" where no record was decided.

    A bar for the size; a mark for the share of decisions that change, with a line to the end of its 95 % interval, and the
    limit across all rows. A row of its own keeps names from covering each other, whatever the width.
    """
    rows = sorted(filter(None, map(_row, report["variants"])), key=lambda row: (row.variant["bytes"], row.most))
    if not rows:
        return Markup("")
    limit = next((row.variant["decision"]["limit"] for row in rows if row.variant["decision"]["limit"] is not None), None)
    ends = svg.ticks(max([*(row.most for row in rows), limit or 0.0]) * 1.02, 4)
    stacked = any(len(row.variant["name"]) > _LONGEST for row in rows)
    each = (3 if stacked else 2) * _LINE + 12
    height = _HEAD + each * len(rows) + _FOOT
    ship = report["recommendation"]["ship"]
    largest = max(row.variant["bytes"] for row in rows)
    parts = [_frame(ends, height, limit)]
    for i, row in enumerate(rows):
        parts.append(_drawn(row, _HEAD + each * i, ends[-1], largest, stacked=stacked, ship=ship))
    said = "; ".join(_said(row.variant) for row in rows)
    if limit is not None:
        said += f". The limit is {_percent(limit)} of the decisions"
    title = "File size against changed decisions"
    return svg.drawing(*parts, height=height, title=title, description=f"{said}.", name="size-and-changes")


def _row(variant: ReportData) -> _Line | None:
    decision = variant["decision"]
    if not decision["of"]:
        return None
    rate = decision["changed"] / decision["of"]
    most = decision["at_most"]
    return _Line(variant, rate, max(rate, rate if most is None else most / decision["of"]))


def _said(variant: ReportData) -> str:
    verdict = variant["decision"]["verdict"]
    judged = f", {VERDICTS[verdict]}" if verdict else ""
    return f"{variant['name']}, {megabytes(variant['bytes'])} MB: {changes(variant['decision'])}{judged}"


def _at(share: float, end: float) -> float:
    """The place of a share of the decisions along the width, %."""
    return _CHANGES_FROM + (_CHANGES_TO - _CHANGES_FROM) * share / end


def _frame(ends: Sequence[float], height: float, limit: float | None) -> Markup:
    """What stands behind the rows: ticks, their lines, what the axes are, the limit."""
    low, end = height - _FOOT, ends[-1]
    parts = [
        svg.text(0, low + 40, "file size", class_="axis"),
        svg.text(_CHANGES_FROM, low + 40, "decisions that change", class_="axis"),
        svg.line(_CHANGES_FROM, low, _CHANGES_TO, low, "axis"),
    ]
    for tick in ends:
        parts.append(svg.line(_at(tick, end), _HEAD, _at(tick, end), low, "grid"))
        parts.append(svg.text(_at(tick, end), low + 18, _percent(tick), anchor="middle", class_="tick"))
    if limit is not None:
        x = _at(limit, end)
        anchor = "end" if x > (_CHANGES_FROM + _CHANGES_TO) / 2 else "start"
        parts.append(svg.line(x, _HEAD - 8, x, low, "limit"))
        parts.append(svg.text(x, _HEAD - 12, f"limit {_percent(limit)}", anchor=anchor, class_="limit"))
    return svg.element("g", *parts)


def _drawn(row: _Line, top: float, end: float, largest: int, *, stacked: bool, ship: str | None) -> Markup:
    variant, decision = row.variant, row.variant["decision"]
    kind = "open" if decision["verdict"] == "too_few" else decision["verdict"] or "plain"
    name = f"{variant['name']} ✓" if variant["name"] == ship else variant["name"]
    first, second = top + _LINE - 3, top + (2 if stacked else 1) * _LINE - 3
    middle = second + _LINE - 4
    verdict = VERDICTS[decision["verdict"]] if decision["verdict"] else ""
    figures = f"{count(decision['changed'])} of {count(decision['of'])}"
    if decision["at_most"] is not None:
        figures += f" (at most {count(decision['at_most'])})"
    strong = "name strong" if variant["name"] == ship else "name"
    parts = [
        svg.text(0, first, name, class_=strong),
        svg.text(_CHANGES_FROM, second, figures, class_="figure"),
        svg.element("rect", x="0", y=f"{middle - 5:g}", width=svg.percent(max(0.4, 0.5 * _SIZE_TO * variant["bytes"] / largest)), height="10", class_="size"),
        svg.text(0.5 * _SIZE_TO * variant["bytes"] / largest, middle + 4.5, f"{megabytes(variant['bytes'])} MB", shift=6, class_="figure"),
        svg.line(_at(row.rate, end), middle, _at(row.most, end), middle, f"interval {kind}"),
        svg.line(_at(row.most, end), middle - 5, _at(row.most, end), middle + 5, f"interval end {kind}"),
        _mark(_at(row.rate, end), middle, kind),
    ]  # fmt: skip
    title = svg.element("title", f"{_said(variant)}{'' if not verdict else ''}")
    return svg.element("g", title, *parts, class_=f"file {kind}")


def _mark(x: float, y: float, kind: str) -> Markup:
    """A full circle inside the limits, a cross outside, an empty circle where there are too few records, a square
    without limits: told apart without colour."""
    if kind == "breaks":
        arm = svg.element("path", d="M-5-5L5 5M-5 5L5-5", class_="cross", transform=f"translate(0 {y:g})")
        return svg.element("svg", arm, x=svg.percent(x), overflow="visible")
    if kind == "plain":
        square = svg.element("path", d="M-4.5-4.5h9v9h-9z", class_="mark", transform=f"translate(0 {y:g})")
        return svg.element("svg", square, x=svg.percent(x), overflow="visible")
    return svg.element("circle", cx=svg.percent(x), cy=f"{y:g}", r="5.5", class_="mark")


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def standalone(drawing: Markup, *, width: int = 760) -> str:
    """A drawing of the page as a file of its own, with the page's style and ground."""
    text = str(drawing).replace(' width="100%"', f' width="{width}" xmlns="http://www.w3.org/2000/svg"', 1)
    head, rest = text.split(">", 1)
    ground = '<rect width="100%" height="100%" fill="var(--paper)"/>'
    own = "svg.drawing { font: 14px system-ui, sans-serif; }"
    return f"{head}><style>{style()}\n{own}</style>{ground}{rest}\n"


# Small ones, one for each variant


def densities(variant: ReportData) -> Markup:
    """The reference's log-odds across, the variant's up; a cell the stronger the more records are in it."""
    edges, counts = variant["points"]["edges"], variant["points"]["counts"]
    low, high = edges[0], edges[-1]
    most = max(max(row) for row in counts)
    place = _places(low, high)
    if not most or place is None:
        return Markup("")
    step = _SIDE / len(counts)
    levels: list[list[str]] = [[] for _ in range(_LEVELS)]
    for i, row in enumerate(counts):
        for j, n in enumerate(row):
            if n:
                level = min(_LEVELS - 1, int(_LEVELS * math.log1p(n) / math.log1p(most)))
                x, y = _LEFT + i * step, _TOP + _SIDE - (j + 1) * step
                levels[level].append(f"M{x:.0f} {y:.0f}h{step:g}v{step:g}h-{step:g}z")
    cells = [
        svg.element("path", d="".join(found), class_=f"cell level-{level}") for level, found in enumerate(levels) if found
    ]
    odds = [tick for tick in (-20, -15, -10, -5, 0, 5, 10, 15, 20) if low <= tick <= high]
    if len(odds) < 2:
        odds = [low, high]
    frame = _square_frame(place, [(x, f"{x:.3g}") for x in odds], "log-odds, reference", "log-odds, variant")
    said = f"Log-odds of unsafe of each record: the reference's across, those of {variant['name']} up"
    return _small(variant["name"], "points", said, frame, *cells)


def reliability(variant: ReportData, lines: Sequence[tuple[str, ReportData]]) -> Markup:
    """Reliability curves: (style, its bins) each. styles: "reference", "variant", "repaired"."""
    place = _places(0.0, 1.0)
    assert place is not None
    drawn = []
    for kind, bins in lines:
        points = [(place(x), _mirrored(place(y))) for x, y in zip(bins["mean_p"], bins["frequency"], strict=True)]
        drawn.append(svg.element("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), class_=f"curve {kind}"))
        drawn += [curve_mark(x, y, kind) for x, y in points]
    frame = _square_frame(
        place, [(x, f"{x:g}") for x in (0.0, 0.5, 1.0)], "probability of unsafe", "share that is unsafe"
    )
    said = f"Reliability of {variant['name']}: {', '.join(kind for kind, _ in lines)}"
    return _small(variant["name"], "reliability", said, frame, *drawn)


def curve_mark(x: float, y: float, kind: str) -> Markup:
    """A circle for the reference, a square for the variant, a triangle for the repaired one."""
    shape = {
        "reference": "M-2.6 0a2.6 2.6 0 1 0 5.2 0a2.6 2.6 0 1 0-5.2 0z",
        "variant": "M-2.6-2.6h5.2v5.2h-5.2z",
        "repaired": "M0-3.4L3.2 2.4h-6.4z",
    }[kind]
    return svg.element("path", d=shape, transform=f"translate({x:.1f} {y:.1f})", class_=f"dot {kind}")


def key(kind: str) -> Markup:
    """A piece of a curve, for the legend beside the words."""
    stroke = svg.element("path", d="M2 7h30", class_=f"curve {kind}")
    return svg.element(
        "svg", stroke, curve_mark(17, 7, kind), viewBox="0 0 34 14", width="34", height="14", aria_hidden="true",
        class_="key",
    )  # fmt: skip


def _places(low: float, high: float) -> Callable[[float], float] | None:
    """From a value to its place along the square's lower side; None where there is no range."""
    if not high > low:
        return None
    return lambda value: _LEFT + _SIDE * (value - low) / (high - low)


def _mirrored(x: float) -> float:
    """A place along the lower side as one along the left side."""
    return _TOP + _SIDE - (x - _LEFT)


def _square_frame(
    place: Callable[[float], float], values: Sequence[tuple[float, str]], across: str, up: str
) -> Markup:
    """The square, its diagonal, ticks that are the same on both sides, and what the sides are."""
    right, low = _LEFT + _SIDE, _TOP + _SIDE
    parts = [
        svg.element("path", d=f"M{_LEFT:g} {low:g}L{right:g} {_TOP:g}", class_="grid"),
        svg.element("path", d=f"M{_LEFT:g} {_TOP:g}V{low:g}H{right:g}", class_="axis"),
        _letters(_LEFT + _SIDE / 2, _ROOM[1] - 6, across, "axis"),
        svg.element(
            "text", up, transform=f"translate(11 {_TOP + _SIDE / 2:g}) rotate(-90)", text_anchor="middle", class_="axis"
        ),
    ]
    for value, said in values:
        x = place(value)
        parts.append(_letters(x, low + 15, said, "tick"))
        parts.append(_letters(_LEFT - 5, _mirrored(x) + 4, said, "tick", anchor="end"))
    return svg.element("g", *parts)


def _letters(x: float, y: float, said: str, class_: str, anchor: str = "middle") -> Markup:
    return svg.element("text", said, x=f"{x:g}", y=f"{y:g}", text_anchor=anchor, class_=class_)


def _small(name: str, what: str, said: str, *parts: Markup) -> Markup:
    return svg.element(
        "svg", svg.element("title", said), *parts, viewBox=f"0 0 {_ROOM[0]:g} {_ROOM[1]:g}", role="img",
        aria_label=said, class_="drawing small",
    )  # fmt: skip
