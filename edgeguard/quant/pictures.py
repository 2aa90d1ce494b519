"""The pictures of a study's page: small pure functions from the report's data to inline SVG.

In the picture of all files places along the width are percent of the picture's, along the height pixels: it gets as
wide as the page lets it, and its letters stay as large as the page's. Colours are classes of the page's style.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from markupsafe import Markup

from edgeguard.charts.frame import Frame, chart
from edgeguard.charts.marks import Point, diagonal, line, points
from edgeguard.charts.scale import Scale, around
from edgeguard.charts.svg import element, joined, short
from edgeguard.quant.answer import ReportData, Rule, changes, count, megabytes, rule_of
from edgeguard.quant.reading import VERDICTS

# The picture of all files: percent of the width, pixels of the height.
_SIZE_TO, _CHANGES_FROM, _CHANGES_TO = 17.0, 46.0, 95.0
_HEAD, _FOOT, _LINE = 30.0, 58.0, 18.0
_LONGEST = 16  # letters of a name that stand beside its figures where the page is narrowest
_WHOLE = 35  # letters of a name that fit the narrowest page
_LEVELS = 5  # of how many records are in a cell of the small pictures
_WIDTH, _HEIGHT = 270, 250  # of these


@dataclass(frozen=True)
class _Row:
    """A file in the picture: rate and its interval are shares of the records."""

    variant: ReportData
    rate: float
    low: float
    high: float
    verdict: str


def size_and_changes(report: ReportData) -> Markup:
    """File size against changed decisions, a row a file, the smallest first; "" where no record was decided.

    A bar for the size; a mark for the share of decisions that change, with its 95 % interval, and the limit across all
    rows. A row of its own keeps names from covering each other, whatever the width.
    """
    rule = rule_of(report)
    scored = [v for v in report["variants"] if v["decision"]["of"]]
    rows = [_row(v, rule) for v in sorted(scored, key=lambda v: (v["bytes"], v["name"]))]
    if not rows:
        return Markup()
    limit = rule.limit
    scale = around(0.0, 1.02 * max(limit or 0.0, *(row.high for row in rows), 1e-3), zero=True)
    stacked = any(len(row.variant["name"]) > _LONGEST for row in rows)
    each = (3 if stacked else 2) * _LINE + 12
    height = _HEAD + each * len(rows) + _FOOT
    largest = max(row.variant["bytes"] for row in rows)
    parts = [_frame(scale, height, limit)]
    for i, row in enumerate(rows):
        parts.append(_drawn(row, _HEAD + each * i, scale.high, largest, stacked=stacked, ship=rule.ship))
    said = "; ".join(map(_said, rows))
    if limit is not None:
        said += f". The limit is {_percent(limit)} of the decisions"
    title = "File size against changed decisions"
    return element(
        "svg",
        element("title", title, id="size-and-changes"),
        element("desc", f"{said}.", id="size-and-changes-said"),
        *parts,
        class_="chart rows",
        width="100%",
        height=height,
        role="img",
        aria_labelledby="size-and-changes size-and-changes-said",
    )


def _row(variant: ReportData, rule: Rule) -> _Row:
    decision = variant["decision"]
    rate = decision["changed"] / decision["of"]
    return _Row(variant, rate, decision["low"], decision["high"], rule.verdicts[variant["name"]])


def _said(row: _Row) -> str:
    variant = row.variant
    figures = f"{variant['name']}, {megabytes(variant['bytes'])} MB: {changes(variant['decision'])}"
    return f"{figures}, {VERDICTS[row.verdict]}"


def _at(share: float, end: float) -> float:
    """The place of a share of the decisions along the width, %."""
    return _CHANGES_FROM + (_CHANGES_TO - _CHANGES_FROM) * share / end


def _frame(scale: Scale, height: float, limit: float | None) -> Markup:
    """What stands behind the rows: ticks, their lines, what the axes are, the limit."""
    low, end = height - _FOOT, scale.high
    parts = [
        _text(0, low + 40, "file size", class_="axis"),
        _text(_CHANGES_FROM, low + 40, "decisions that change", class_="axis"),
        _line(_CHANGES_FROM, low, _CHANGES_TO, low, "axis"),
    ]
    for tick in scale.ticks(5):
        parts.append(_line(_at(tick, end), _HEAD, _at(tick, end), low, "grid"))
        parts.append(_text(_at(tick, end), low + 18, _percent(tick), anchor="middle", class_="tick"))
    if limit is not None:
        x = _at(limit, end)
        anchor = "end" if x > (_CHANGES_FROM + _CHANGES_TO) / 2 else "start"
        parts.append(_line(x, _HEAD - 8, x, low, "limit"))
        parts.append(_text(x, _HEAD - 12, f"limit {_percent(limit)}", anchor=anchor, class_="limit"))
    return element("g", *parts)


def _drawn(row: _Row, top: float, end: float, largest: int, *, stacked: bool, ship: str | None) -> Markup:
    variant, decision = row.variant, row.variant["decision"]
    kind = "open" if row.verdict == "too_few" else row.verdict
    name = _cut(variant["name"]) + (" ✓" if variant["name"] == ship else "")
    first, second = top + _LINE - 3, top + (2 if stacked else 1) * _LINE - 3
    middle = second + _LINE - 4
    size = _SIZE_TO * variant["bytes"] / largest
    figures = f"{count(decision['changed'])} of {count(decision['of'])} (at most {count(decision['at_most'])})"
    strong = "name strong" if variant["name"] == ship else "name"
    parts = [
        _text(0, first, name, class_=strong),
        _text(_CHANGES_FROM, second, figures, class_="figure"),
        element("rect", x=0, y=middle - 5, width=_place(max(0.4, size)), height=10, class_="size"),
        _text(size, middle + 4.5, f"{megabytes(variant['bytes'])} MB", shift=6, class_="figure"),
        _line(_at(row.low, end), middle, _at(row.high, end), middle, "interval"),
        _line(_at(row.low, end), middle - 5, _at(row.low, end), middle + 5, "interval"),
        _line(_at(row.high, end), middle - 5, _at(row.high, end), middle + 5, "interval"),
        _mark(_at(row.rate, end), middle, kind),
    ]  # fmt: skip
    return element("g", element("title", _said(row)), *parts, class_=f"file {kind}")


def _cut(name: str) -> str:
    """A name that stands on one line of the narrowest page; the row's title has it whole."""
    half = (_WHOLE - 1) // 2
    return name if len(name) <= _WHOLE else f"{name[:half]}…{name[-half:]}"


def _mark(x: float, y: float, kind: str) -> Markup:
    """A full circle inside the limits, a cross outside, an empty circle where there are too few records."""
    if kind == "breaks":
        arm = element("path", d="M-5-5L5 5M-5 5L5-5", class_="cross", transform=f"translate(0 {y:g})")
        return element("svg", arm, x=_place(x), overflow="visible")
    return element("circle", cx=_place(x), cy=y, r=5.5, class_="mark")


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def standalone(drawing: Markup, *, width: int = 760) -> str:
    """A drawing of the page as a file of its own, with the page's style and ground."""
    text = str(drawing).replace(' width="100%"', f' width="{width}" xmlns="http://www.w3.org/2000/svg"', 1)
    head, rest = text.split(">", 1)
    ground = '<rect width="100%" height="100%" fill="var(--paper)"/>'
    shared = (resources.files("edgeguard") / "charts" / "page.css").read_text(encoding="utf-8")
    return f"{head}><style>{shared}\n{style()}</style>{ground}{rest}\n"


def style() -> str:
    """The CSS of these pictures and of the page around them, beside that of all pages."""
    return (resources.files("edgeguard") / "quant" / "page.css").read_text(encoding="utf-8")


# Along the width percent, along the height pixels


def _place(x: float) -> str:
    return f"{short(x)}%"


def _text(x: float, y: float, said: str, class_: str, *, shift: float = 0, anchor: str = "start") -> Markup:
    return element("text", said, x=_place(x), y=y, dx=shift or None, text_anchor=anchor, class_=class_)


def _line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    return element("line", x1=_place(x1), y1=y1, x2=_place(x2), y2=y2, class_=class_)


# Small ones, one for each variant


def densities(variant: ReportData) -> Markup:
    """The reference's log-odds across, the variant's up; a cell the stronger the more records are in it. Empty where
    all records have one score."""
    edges, counts = variant["points"]["edges"], variant["points"]["counts"]
    most = max(max(row) for row in counts)
    if not most or not edges[-1] > edges[0]:
        return Markup()
    scale = Scale(edges[0], edges[-1])
    said = "Log-odds of unsafe of each record, a cell the stronger the more records are in it"
    frame = Frame(
        variant["name"], said, scale, scale, "log-odds, reference", "log-odds, variant", width=_WIDTH, height=_HEIGHT
    )

    def draw(x: Scale, y: Scale) -> Markup:
        cells: list[list[str]] = [[] for _ in range(_LEVELS)]
        for i, row in enumerate(counts):
            for j, n in enumerate(row):
                if n:
                    left, right, low, high = x(edges[i]), x(edges[i + 1]), y(edges[j]), y(edges[j + 1])
                    level = min(_LEVELS - 1, int(_LEVELS * math.log1p(n) / math.log1p(most)))
                    path = f"M{short(left)} {short(high)}H{short(right)}V{short(low)}H{short(left)}z"
                    cells[level].append(path)
        drawn = (element("path", d="".join(found), class_=f"cell level-{i}") for i, found in enumerate(cells) if found)
        return joined(diagonal(x, y), *drawn)

    return chart(frame, draw)


def reliability(variant: ReportData, curves: Sequence[tuple[str, ReportData]]) -> Markup:
    """Reliability curves, (what it is of, its bins) each: the n-th is the n-th of a legend of these names."""
    unit = Scale(0.0, 1.0)
    said = f"Reliability curves of {', '.join(name for name, _ in curves)}"
    frame = Frame(
        variant["name"], said, unit, unit, "probability of unsafe", "share that is unsafe", width=_WIDTH, height=_HEIGHT
    )

    def draw(x: Scale, y: Scale) -> Markup:
        parts = [diagonal(x, y)]
        for number, (_, bins) in enumerate(curves):
            xs, ys = bins["mean_p"], bins["frequency"]
            told = [Point(a, b, f"{b:.2f} of those at {a:.2f}") for a, b in zip(xs, ys, strict=True)]
            parts += [line(x, y, xs, ys, number=number), points(x, y, told, number=number)]
        return joined(*parts)

    return chart(frame, draw)
