"""Elements of SVG and HTML. What is not `Markup` already is escaped: names and ids come from files of strangers."""

from __future__ import annotations

from markupsafe import Markup, escape

from edgeguard.errors import printable

Attribute = str | float | bool | None


def element(name: str, *children: str | Markup, **attributes: Attribute) -> Markup:
    """`<name …>children</name>`; `class_` is class, `_` in a name is `-`. None and False leave an attribute out.

    Numbers have two digits behind the point: a hundredth of a pixel. Text of strangers loses its control characters.
    """
    said = "".join(_attribute(key, value) for key, value in attributes.items())
    inside = Markup("").join(text(child) for child in children)
    return Markup(f"<{name}{said}>{inside}</{name}>")


def text(value: str | Markup) -> Markup:
    """Escaped, unless it is markup."""
    return value if isinstance(value, Markup) else escape(printable(value))


def joined(*parts: str | Markup) -> Markup:
    """One after the other, escaped where they are no markup."""
    return Markup("").join(text(part) for part in parts)


def _attribute(key: str, value: Attribute) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    if value is True:
        return f" {name}"
    shown = short(value) if isinstance(value, int | float) else text(value)
    return f' {name}="{shown}"'


def short(value: float) -> str:
    """`12.5`, `3`: a length in pixels."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
