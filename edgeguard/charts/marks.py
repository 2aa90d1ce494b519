"""What is drawn inside a chart's frame. Coordinates are data; a series has a class, whose colour page.css knows.

Series are told apart by more than colour: a shape of its own for each point, a dash for each line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from edgeguard.charts.scale import Scale
from edgeguard.charts.svg import element, joined, short

N_SERIES = 6
_SHAPES = ("circle", "square", "triangle", "diamond", "down", "cross")
_THIRD = 1 / 3
_PLUS = (
    *((-1, -_THIRD), (-_THIRD, -_THIRD), (-_THIRD, -1), (_THIRD, -1), (_THIRD, -_THIRD), (1, -_THIRD)),
    *((1, _THIRD), (_THIRD, _THIRD), (_THIRD, 1), (-_THIRD, 1), (-_THIRD, _THIRD), (-1, _THIRD)),
)
CHARACTER = 6.4  # pixels a character of the charts' text, about


def series(number: int, *, muted: bool = False) -> str:
    """The class of the n-th series; what is muted is grey: no finding."""
    return "muted" if muted else f"s{number % N_SERIES}"


@dataclass(frozen=True)
class Point:
    """A point with its interval, [low, high] along x or y; `told` is what it says to who points at it."""

    x: float
    y: float
    told: str = ""
    x_low: float = math.nan
    x_high: float = math.nan
    y_low: float = math.nan
    y_high: float = math.nan


def points(x: Scale, y: Scale, found: Sequence[Point], *, number: int = 0, muted: bool = False) -> Markup:
    """Points with their intervals."""
    return element("g", *(_point(x, y, p, number) for p in found), class_=f"points {series(number, muted=muted)}")


def _point(x: Scale, y: Scale, p: Point, number: int) -> Markup:
    at, up = x(p.x), y(p.y)
    parts = [element("title", p.told)] if p.told else []
    bars = []
    if math.isfinite(p.x_low) and math.isfinite(p.x_high):
        bars.append(_bar(x(p.x_low), up, x(p.x_high), up))
    if math.isfinite(p.y_low) and math.isfinite(p.y_high):
        bars.append(_bar(at, y(p.y_low), at, y(p.y_high)))
    parts.extend(element("path", d=d, class_="interval") for d in bars)
    parts.append(shape(at, up, number))
    return element("g", *parts)


def _bar(x0: float, y0: float, x1: float, y1: float) -> str:
    """A line with a cap at each end."""
    cap = (3.0, 0.0) if x0 == x1 else (0.0, 3.0)
    path = f"M{short(x0)} {short(y0)}L{short(x1)} {short(y1)}"
    for a, b in ((x0, y0), (x1, y1)):
        path += f"M{short(a - cap[0])} {short(b - cap[1])}L{short(a + cap[0])} {short(b + cap[1])}"
    return path


def shape(x: float, y: float, number: int = 0, size: float = 4.5) -> Markup:
    """The n-th series' own, around a pixel."""
    r, name = size, _SHAPES[number % len(_SHAPES)]
    if name == "circle":
        return element("circle", cx=x, cy=y, r=r, class_="shape")
    corners = {
        "square": ((-r, -r), (r, -r), (r, r), (-r, r)),
        "triangle": ((0, -r * 1.2), (r * 1.1, r * 0.8), (-r * 1.1, r * 0.8)),
        "diamond": ((0, -r * 1.35), (r * 1.35, 0), (0, r * 1.35), (-r * 1.35, 0)),
        "down": ((0, r * 1.2), (r * 1.1, -r * 0.8), (-r * 1.1, -r * 0.8)),
        "cross": tuple((r * a, r * b) for a, b in _PLUS),
    }[name]
    path = "M" + "L".join(f"{short(x + dx)} {short(y + dy)}" for dx, dy in corners) + "Z"
    return element("path", d=path, class_="shape")


def line(
    x: Scale, y: Scale, xs: Sequence[float], ys: Sequence[float], *, number: int = 0, muted: bool = False
) -> Markup:
    """Straight from point to point; a value that is no number breaks it. At most a point a pixel is kept."""
    return element("path", d=_path(_thinned(_pixels(x, y, xs, ys))), class_=f"line {series(number, muted=muted)}")


def steps(x: Scale, y: Scale, xs: Sequence[float], ys: Sequence[float], *, number: int = 0) -> Markup:
    """Level up to each x, then to its y: `ys[i]` holds on (xs[i-1], xs[i]]."""
    xs2 = [v for pair in pairwise(xs) for v in pair] if len(xs) > 1 else list(xs)
    ys2 = [v for v in ys[1:] for _ in (0, 1)] if len(ys) > 1 else list(ys)
    return line(x, y, xs2, ys2, number=number)


def _pixels(x: Scale, y: Scale, xs: Sequence[float], ys: Sequence[float]) -> list[tuple[float, float] | None]:
    pairs = zip(xs, ys, strict=True)
    return [(x(float(a)), y(float(b))) if math.isfinite(a) and math.isfinite(b) else None for a, b in pairs]


def _thinned(pixels: Sequence[tuple[float, float] | None]) -> list[tuple[float, float] | None]:
    """Without points that no eye tells from the one before: a curve of a million records is as small as a picture.

    Of the points in one column of pixels the first, lowest, highest and last stay.
    """
    kept: list[tuple[float, float] | None] = []
    column: list[tuple[float, float]] = []

    def flush() -> None:
        if column:
            ends = {0, len(column) - 1}
            ends |= {
                min(range(len(column)), key=lambda i: column[i][1]),
                max(range(len(column)), key=lambda i: column[i][1]),
            }
            kept.extend(column[i] for i in sorted(ends))
            column.clear()

    for pixel in pixels:
        if pixel is None:
            flush()
            kept.append(None)
            continue
        if column and int(column[-1][0]) != int(pixel[0]):
            flush()
        column.append(pixel)
    flush()
    return kept


def _path(pixels: Sequence[tuple[float, float] | None]) -> str:
    path, pen = [], "M"
    for pixel in pixels:
        if pixel is None:
            pen = "M"
            continue
        path.append(f"{pen}{round(pixel[0], 1):g} {round(pixel[1], 1):g}")
        pen = "L"
    return "".join(path)


def band(
    x: Scale, y: Scale, xs: Sequence[float], low: Sequence[float], high: Sequence[float], *, number: int = 0
) -> Markup:
    """The area between two lines over the same x."""
    there = [pixel for pixel in _thinned(_pixels(x, y, xs, high)) if pixel]
    back = [pixel for pixel in reversed(_thinned(_pixels(x, y, xs, low))) if pixel]
    return element("path", d=_path([*there, *back]) + "Z" if there else "", class_=f"band {series(number)}")


def bars(
    x: Scale, y: Scale, edges: Sequence[float], heights: Sequence[float], *, number: int = 0, told: Sequence[str] = ()
) -> Markup:
    """A histogram: `edges` has one more than `heights`."""
    base, found = y(y.low), []
    for i, height in enumerate(heights):
        left, right, top = x(edges[i]), x(edges[i + 1]), y(height)
        wide = max(0.5, right - left - 1)
        title = [element("title", told[i])] if told else []
        found.append(element("rect", *title, x=left + 0.5, y=min(top, base), width=wide, height=abs(base - top)))
    return element("g", *found, class_=f"bars {series(number)}")


def upright(x: Scale, y: Scale, at: float, label: str = "", *, class_: str = "mark") -> Markup:
    """A line across at a value of x, its label over its upper end, on the side that has room."""
    pixel, (low, high) = x(at), sorted((x.start, x.end))
    room = CHARACTER * len(label) + 8
    left = pixel + room > high and pixel - room > low
    words = element(
        "text", label, x=pixel + (2 if left else -2), y=min(y.start, y.end) - 4, text_anchor="end" if left else "start"
    )
    path = f"M{short(pixel)} {short(y.start)}V{short(y.end)}"
    return element("g", element("path", d=path), words if label else Markup(""), class_=class_)


def level(x: Scale, y: Scale, at: float, label: str = "", *, left: bool = False, class_: str = "mark") -> Markup:
    """A line across at a value of y, its label over its right end, or its left one."""
    pixel = y(at)
    over = pixel - 4 if pixel - 16 > min(y.start, y.end) else pixel + 13
    where, anchor = (min(x.start, x.end) + 3, "start") if left else (max(x.start, x.end) - 3, "end")
    words = element("text", label, x=where, y=over, text_anchor=anchor)
    path = f"M{short(x.start)} {short(pixel)}H{short(x.end)}"
    return element("g", element("path", d=path), words if label else Markup(""), class_=class_)


def diagonal(x: Scale, y: Scale) -> Markup:
    """Where both are the same."""
    low, high = max(x.low, y.low), min(x.high, y.high)
    path = f"M{short(x(low))} {short(y(low))}L{short(x(high))} {short(y(high))}"
    return element("g", element("path", d=path), class_="mark")


def labels(x: Scale, y: Scale, at: Sequence[tuple[float, float, str]]) -> Markup:
    """Names beside points: right of them or left, above or below, wherever they meet no other name and no point."""
    taken = [(x(a) - 6, y(b) - 6, x(a) + 6, y(b) + 6) for a, b, _ in at]
    low, high = sorted((x.start, x.end))
    top, bottom = sorted((y.start, y.end))
    found = []
    for a, b, name in at:
        wide, px, py = CHARACTER * len(name), x(a), y(b)
        places = [(dx, dy) for dy in (4, -9, 17, -23, 31, -37, 45) for dx in (9, -9 - wide)] + [(-wide / 2, -10)]
        boxes = [(px + dx, py + dy - 10, px + dx + wide, py + dy + 3) for dx, dy in places]
        costs = [
            sum(
                max(0.0, min(p[2], q[2]) - max(p[0], q[0])) * max(0.0, min(p[3], q[3]) - max(p[1], q[1])) for q in taken
            )
            + 1e3 * (p[0] < low or p[2] > high or p[1] < top or p[3] > bottom)
            for p in boxes
        ]
        best = costs.index(min(costs))
        taken.append(boxes[best])
        found.append(element("text", name, x=boxes[best][0], y=boxes[best][3] - 3))
    return element("g", *found, class_="names")


def legend(names: Sequence[str], *, lines: bool = False) -> Markup:
    """Which series is which, as a list above a chart."""

    def key(number: int) -> Markup:
        mark = element("path", d="M1 6H25", class_="line") if lines else shape(13, 6, number)
        return element("svg", mark, class_=f"key {series(number)}", viewBox="0 0 26 12", aria_hidden="true")

    items = (element("li", joined(key(i), " ", name)) for i, name in enumerate(names))
    return element("ul", *items, class_="legend")
