"""Pages for people: one file of HTML each, with its style and its drawings in it. Nothing comes from the network."""

from __future__ import annotations

from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup


def style() -> str:
    """The CSS of every page, and of the drawings in it: light, dark, narrow, wide, printed."""
    return (resources.files("edgeguard") / "webpage" / "style.css").read_text(encoding="utf-8")


def render(folder: str, name: str, **values: Any) -> str:
    """A page from the template `name` in edgeguard's folder `folder`, a base.html.jinja of this folder around it.

    Everything is escaped but what is Markup: names, texts and ids come from files of strangers. Raises
    jinja2.UndefinedError for a value that the template asks for and does not get.
    """
    loader = jinja2.FunctionLoader(lambda asked: _template("webpage" if asked in _SHARED else folder, asked))
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(name).render(style=Markup(style()), **values)


_SHARED = ("base.html.jinja", "tables.html.jinja")


def _template(folder: str, name: str) -> str:
    return resources.files("edgeguard").joinpath(*folder.split("/"), name).read_text(encoding="utf-8")
