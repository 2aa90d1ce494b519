"""The page's files, read once: no path of a request ever reaches the disk."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
_FIRST = "index.html"


@cache
def page_files() -> Mapping[str, tuple[bytes, str]]:
    """URL path → what is sent there, and its type."""
    folder = files("edgeguard.serve") / "page"
    found = {
        "/" if one.name == _FIRST else f"/{one.name}": (one.read_bytes(), _TYPES[ending])
        for one in sorted(folder.iterdir(), key=lambda one: one.name)
        if (ending := one.name[one.name.rfind(".") :]) in _TYPES
    }
    return MappingProxyType(found)
