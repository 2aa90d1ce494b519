"""Drawings as inline SVG, from small pure functions.

Places along the width are percent of the drawing's, along the height pixels: a drawing gets as wide as the page lets it,
and its letters stay as large as the page's. Colours and strokes are classes of style.css, so they follow light, dark
and print.
"""

from __future__ import annotations

import math

from markupsafe import Markup, escape


def element(tag: str, *inside: str, **attributes: object) -> Markup:
    """`element("line", x1="3%", class_="axis")`; texts inside are escaped, None is no attribute, _ becomes -."""
    given = (
        Markup(' {}="{}"').format(name.rstrip("_").replace("_", "-"), value)
        for name, value in attributes.items()
        if value is not None
    )
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(tag), Markup("").join(given), Markup("").join(map(escape, inside)))


def percent(x: float) -> str:
    """A place along the width. Raises ValueError for what is no number."""
    if not math.isfinite(x):
        raise ValueError(f"a place is {x!r}; a drawing needs a number")
    return f"{x:.2f}%"


def text(x: float, y: float, said: str, *, shift: float = 0, anchor: str = "start", class_: str = "") -> Markup:
    """One line of letters at x % and y pixels, moved by `shift` pixels. anchor: "start", "middle" or "end"."""
    return element(
        "text", said, x=percent(x), y=f"{y:g}", dx=f"{shift:g}" if shift else None, text_anchor=anchor,
        class_=class_ or None,
    )  # fmt: skip


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """From (x1 %, y1) to (x2 %, y2)."""
    return element("line", x1=percent(x1), y1=f"{y1:g}", x2=percent(x2), y2=f"{y2:g}", class_=class_)


def ticks(high: float, most: int) -> list[float]:
    """0 and up to `most` round numbers behind it, of which the last is at least `high`; [0, 1] where high is no more
    than 0."""
    if not high > 0:
        return [0.0, 1.0]
    for power in range(math.floor(math.log10(high / most)), math.ceil(math.log10(high)) + 1):
        for digit in (1.0, 2.0, 5.0):
            step = digit * 10.0**power
            n = math.ceil(high / step - 1e-9)
            if n <= most:
                return [round(i * step, 12) for i in range(n + 1)]
    raise AssertionError("a step of the size of `high` needs one")  # pragma: no cover


def drawing(*inside: Markup, height: float, title: str, description: str, name: str) -> Markup:
    """A whole drawing. name: of its title and its description in the page, unlike any other's."""
    return element(
        "svg",
        element("title", title, id=f"{name}-title"),
        element("desc", description, id=f"{name}-description"),
        *inside,
        role="img", aria_labelledby=f"{name}-title {name}-description", class_="drawing", height=f"{height:g}",
        width="100%",
    )  # fmt: skip
