"""Pages around charts: one file of HTML that asks the network for nothing and runs nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources

from markupsafe import Markup

from edgeguard.charts.svg import element, joined

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def document(title: str, *parts: str | Markup, heading: Markup | None = None, style: str = "") -> str:
    """A whole page, its title as the heading too where no other is given. style: CSS of this page alone."""
    css = (resources.files("edgeguard") / "charts" / "page.css").read_text(encoding="utf-8")
    head = joined(
        Markup('<meta charset="utf-8">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        element("title", title),
        element("style", Markup(css + style)),
    )
    body = element("main", element("h1", title) if heading is None else heading, *parts)
    return f"<!doctype html>\n{element('html', element('head', head), element('body', body), lang='en')}\n"


def section(title: str, *parts: str | Markup, id_: str | None = None) -> Markup:
    """A heading and what stands under it."""
    return element("section", element("h2", title), *parts, id=id_)


def contents(entries: Iterable[tuple[str, str]]) -> Markup:
    """Links to sections, (id, title) each."""
    links = (element("li", element("a", title, href=f"#{id_}")) for id_, title in entries)
    return element("nav", element("ul", *links), aria_label="on this page")


def paragraph(*parts: str | Markup, class_: str | None = None) -> Markup:
    """Text."""
    return element("p", *parts, class_=class_)


def figure(title: str, *parts: str | Markup, caption: str | Markup = "") -> Markup:
    """A chart with its title above and what it says below."""
    said = element("figcaption", caption) if caption else Markup("")
    return element("figure", element("h3", title), *parts, said)


def figures(*found: Markup) -> Markup:
    """Figures side by side, as many as fit."""
    return element("div", *found, class_="figures")


def details(summary: str, *parts: str | Markup) -> Markup:
    """What is shown when it is asked for, and always in print."""
    return element("details", element("summary", summary), *parts)


@dataclass(frozen=True)
class Column:
    """A column's name, and whether numbers stand in it."""

    name: str
    number: bool = True


def table(
    columns: Sequence[Column],
    rows: Sequence[Sequence[str | Markup]],
    *,
    caption: str = "",
    classes: Sequence[str] = (),
) -> Markup:
    """A table whose rows become blocks on a narrow screen; the first cell of a row is its heading.

    classes  of rows, "" for none: "chosen", "no-finding"
    """
    if any(len(row) != len(columns) for row in rows):
        raise ValueError(f"a row has other than {len(columns)} cells")
    # A row that is a block is no row any more to some who hear the page: roles say that it is.
    head = (element("th", c.name, scope="col", role="columnheader", class_="n" if c.number else None) for c in columns)
    body = []
    for i, row in enumerate(rows):
        first = element("th", row[0], scope="row", role="rowheader")
        cells = (
            element("td", cell, role="cell", data_label=c.name, class_="n" if c.number else None)
            for c, cell in zip(columns[1:], row[1:], strict=True)
        )
        body.append(element("tr", first, *cells, role="row", class_=(classes[i] or None) if classes else None))
    said = element("caption", caption) if caption else Markup("")
    top = element("thead", element("tr", *head, role="row"), role="rowgroup")
    return element("table", said, top, element("tbody", *body, role="rowgroup"), role="table", class_="reflow")
