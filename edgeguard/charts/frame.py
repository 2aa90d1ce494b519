"""A chart: axes, grid, titles, and what they hold; read aloud by its title and description."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from markupsafe import Markup

from edgeguard.charts.marks import CHARACTER
from edgeguard.charts.scale import Scale, tick_text
from edgeguard.charts.svg import element, joined

SMALL, WIDE = 340, 680  # widths in pixels: one column of a phone, two of a screen


@dataclass(frozen=True)
class Frame:
    """Axes of a chart.

    x, y            as given, over any pixels: `fitted` puts them in place
    title           for who cannot see it, and in the figure; description says what it shows, in numbers where it can
    x_name, y_name  what the axes say; that of y stands above it, level: it is cut by no narrow screen
    x_text, y_text  how ticks are written
    y_names         ticks of y as names, one at each whole number, in place of numbers
    """

    title: str
    description: str
    x: Scale
    y: Scale
    x_name: str
    y_name: str
    width: int = SMALL
    height: int = 260
    x_text: Callable[[float], str] = tick_text
    y_text: Callable[[float], str] = tick_text
    y_names: tuple[str, ...] = ()

    def fitted(self) -> Frame:
        """With scales over the pixels between the axes' texts."""
        texts = self.y_names or tuple(map(self.y_text, self.y.ticks()))
        left = 10 + CHARACTER * max(map(len, texts), default=1)
        x = self.x.between(round(left), self.width - 12)
        return replace(self, x=x, y=self.y.between(self.height - 38, 30))


def chart(frame: Frame, draw: Callable[[Scale, Scale], Markup]) -> Markup:
    """The whole picture; `draw` gets the scales in pixels and gives the marks."""
    frame = frame.fitted()
    x, y = frame.x, frame.y
    inside = draw(x, y)
    # The same page has one chart at several widths; what labels it must be its own.
    name = "c" + hashlib.sha256(f"{frame}{inside}".encode()).hexdigest()[:10]
    said = element("title", frame.title, id=f"{name}t"), element("desc", frame.description, id=f"{name}d")
    return element(
        "svg",
        *said,
        _grid(frame),
        element("g", inside, class_="marks"),
        class_="chart",
        viewBox=f"0 0 {frame.width} {frame.height}",
        width=frame.width,
        height=frame.height,
        role="img",
        aria_labelledby=f"{name}t {name}d",
    )


def at_widths(frame: Frame, draw: Callable[[Scale, Scale], Markup], *, wide: int = WIDE, height: int = 340) -> Markup:
    """The chart twice, for narrow screens and for others; the page shows one of them, its letters as large."""
    narrow = chart(replace(frame, width=SMALL), draw)
    large = chart(replace(frame, width=wide, height=height), draw)
    return joined(element("div", narrow, class_="narrow"), element("div", large, class_="wide"))


def _grid(frame: Frame) -> Markup:
    x, y, parts = frame.x, frame.y, []
    for tick in x.ticks(max(2, int((x.end - x.start) / 45))):
        at = x(tick)
        parts.append(element("path", d=f"M{at:.1f} {y.start:.1f}V{y.end:.1f}"))
        parts.append(element("text", frame.x_text(tick), x=at, y=y.start + 15, text_anchor="middle"))
    ticks = [float(i) for i in range(len(frame.y_names))] if frame.y_names else y.ticks()
    for i, tick in enumerate(ticks):
        at = y(tick)
        said = frame.y_names[i] if frame.y_names else frame.y_text(tick)
        parts.append(element("path", d=f"M{x.start:.1f} {at:.1f}H{x.end:.1f}"))
        parts.append(element("text", said, x=x.start - 5, y=at + 4, text_anchor="end"))
    parts.append(element("text", frame.x_name, x=x.end, y=y.start + 31, text_anchor="end", class_="axis"))
    parts.append(element("text", frame.y_name, x=2, y=12, class_="axis"))
    return element("g", *parts, class_="grid", aria_hidden="true")
