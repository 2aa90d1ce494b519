"""A built-in guard as one file: its adapter merged into its base model, F32 weights to convert and to quantize."""

from __future__ import annotations

import json
from pathlib import Path

from edgeguard.builtin import BuiltIn
from edgeguard.convert import Options, convert
from edgeguard.errors import EdgeguardError
from edgeguard.formats.hashes import sha256


def merge_built_in(guard: BuiltIn, path: Path, *, overwrite: bool = False) -> Path:
    """Write the guard to `path`, a GGUF file; the same bytes each time. Raises ModelError, OutputError."""
    options = Options(lora=guard.adapter_path, name=guard.name, overwrite=overwrite)
    return convert(guard.base_path, path, to="f32", options=options).path


def merged_built_in(guard: BuiltIn, path: Path | None = None) -> Path:
    """The merged guard at `path`, None for the cache folder; a file that is there already and whole is taken as it is.

    Raises ModelError, OutputError.
    """
    path = path or cache_path(guard)
    if not is_merged(guard, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        merge_built_in(guard, path, overwrite=True)
    return path


def cache_path(guard: BuiltIn) -> Path:
    """Where the merged guard is kept on this machine."""
    from platformdirs import user_cache_path

    return user_cache_path("edgeguard", appauthor=False) / f"{guard.name}-{guard.version}.F32.gguf"


def is_merged(guard: BuiltIn, path: Path) -> bool:
    """Is this the merged guard? By the manifest beside it: its sources are the guard's, and the file is whole."""
    try:
        manifest = json.loads(path.with_name(f"{path.name}.manifest.json").read_text(encoding="utf-8"))
        sources = {source["sha256"] for source in manifest["sources"]}
        (output,) = manifest["outputs"]
        return sources == set(guard.sha256.values()) and bool(output["sha256"] == sha256(path))
    except (OSError, ValueError, KeyError, TypeError, EdgeguardError):
        return False
