"""What edgeguard writes of a conversion: a manifest beside the output, and in short in the output's own metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeguard.errors import ModelError
from edgeguard.formats.bounded_json import find_object, table
from edgeguard.formats.hashes import sha256

IN_FOLDER = "edgeguard.json"  # the manifest's name in a model folder
MAX_FILES = 1000  # outputs, and sources

_FORMAT = 1


@dataclass(frozen=True)
class Source:
    """What a conversion read. `role` is "model", "lora" or "imatrix"; metadata say no name and no size.

    sha256  of a folder, what `sha256sum` prints for its files, hashed
    """

    role: str
    sha256: str
    file: str = ""
    n_bytes: int = 0


@dataclass(frozen=True)
class Origin:
    """What an output was made from and with. No time, no path: the same conversion says the same.

    to       the type that was asked for
    options  what else was, by name
    tools    the packages that made it → their versions
    """

    to: str
    sources: tuple[Source, ...]
    options: Mapping[str, str]
    tools: Mapping[str, str]


def beside(model: Path) -> Path:
    """Where the manifest of a model file lies."""
    return model.with_name(f"{model.name}.manifest.json")


def as_manifest(origin: Origin, files: Sequence[Path], **more: Any) -> bytes:
    """The manifest: the origin, `more`, and the hashes of what came out, as JSON."""
    said = {
        "format": _FORMAT,
        "to": origin.to,
        "options": dict(origin.options),
        "sources": [{"role": s.role, "file": s.file, "sha256": s.sha256, "n_bytes": s.n_bytes} for s in origin.sources],
        "tools": dict(origin.tools),
        **more,
        "outputs": [{"file": p.name, "sha256": sha256(p), "n_bytes": p.stat().st_size} for p in sorted(files)],
    }
    return (json.dumps(said, ensure_ascii=False, indent=2) + "\n").encode()


def read_manifest(path: Path) -> tuple[Origin, list[dict[str, Any]]] | None:
    """The origin, and the entries of the outputs; None where there is no manifest.

    Raises ModelError for a file that is none.
    """
    said = find_object(path)
    if not said:
        return None
    outputs, sources = said.get("outputs"), said.get("sources")
    if said.get("format") != _FORMAT or not isinstance(outputs, list) or not isinstance(sources, list):
        raise ModelError(f"{path} is not a manifest of format {_FORMAT}")
    if max(len(outputs), len(sources)) > MAX_FILES:
        raise ModelError(f"{path} lists {len(outputs)} files, at most {MAX_FILES} make sense")
    origin = Origin(
        to=str(said.get("to", "")),
        sources=tuple(_source(table(entry)) for entry in sources),
        options=_texts(said.get("options")),
        tools=_texts(said.get("tools")),
    )
    return origin, [table(entry) for entry in outputs]


def as_metadata(origin: Origin) -> dict[str, str]:
    """The origin as short texts, for a model file's own metadata."""
    said = {"edgeguard.to": origin.to}
    said |= {f"edgeguard.{source.role}.sha256": source.sha256 for source in origin.sources}
    said |= {f"edgeguard.tools.{key}": value for key, value in origin.tools.items()}
    return said | {f"edgeguard.options.{key}": value for key, value in origin.options.items()}


def from_metadata(metadata: Mapping[str, str]) -> Origin | None:
    """The origin that a model file's own metadata tell of; None where they tell of none."""
    own = {key.removeprefix("edgeguard."): value for key, value in metadata.items() if key.startswith("edgeguard.")}
    if "to" not in own:
        return None
    parts: dict[str, dict[str, str]] = {"tools": {}, "options": {}}
    sources = []
    for key, value in own.items():
        first, _, rest = key.partition(".")
        if first in parts:
            parts[first][rest] = value
        elif rest == "sha256":
            sources.append(Source(first, value))
    return Origin(own["to"], tuple(sources), **parts)


def _source(entry: Mapping[str, Any]) -> Source:
    role, digest, file = (str(entry.get(key, "")) for key in ("role", "sha256", "file"))
    n_bytes = entry.get("n_bytes")
    return Source(role, digest, file, n_bytes if type(n_bytes) is int else 0)


def _texts(value: object) -> dict[str, str]:
    return {key: str(text) for key, text in table(value).items()}
