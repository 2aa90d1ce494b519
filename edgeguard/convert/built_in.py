"""A built-in guard as one model: its adapter merged into its base, F32 weights to convert and to quantize, or ONNX."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from edgeguard.builtin import BuiltIn, cache_folder
from edgeguard.convert import Options, convert
from edgeguard.errors import EdgeguardError, ModelError, OutputError
from edgeguard.formats.hashes import sha256
from edgeguard.formats.manifest import IN_FOLDER, beside, read_manifest

# Of the ONNX types the one that keeps the verdicts (docs/quantization-study.md: at most 0.35 % flip) at 154 MB.
ONNX_TYPE = "onnx-int8"
_NEEDS = ("gguf", "onnx", "tokenizers")  # packages that conversion and the ONNX adapter import


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
    return cache_folder() / f"{guard.name}-{guard.version}.F32.gguf"


def is_merged(guard: BuiltIn, path: Path) -> bool:
    """Is this the merged guard? By the manifest beside it: its sources are the guard's, and the file is whole."""
    return _is_whole(guard, beside(path))


def onnx_path(guard: BuiltIn) -> Path:
    """Where the guard's ONNX form is kept on this machine, a folder."""
    return cache_folder() / f"{guard.name}-{guard.version}-{ONNX_TYPE}"


def is_onnx(guard: BuiltIn, folder: Path) -> bool:
    """Is this the guard's ONNX form? By its manifest: its sources are the guard's, and every file is whole."""
    return _is_whole(guard, folder / IN_FOLDER)


def onnx_built_in(guard: BuiltIn, *, tell: Callable[[str], None] = lambda line: None) -> Path:
    """The guard for ONNX Runtime, made once and kept in the cache folder; `tell` hears that it is made.

    Any number of processes may make it at once: each has a folder of its own, and the first whole one is taken by all.
    Raises ModelError where the base model or a package is missing, OutputError for a cache that cannot be written.
    """
    folder = onnx_path(guard)
    if is_onnx(guard, folder):
        return folder
    base = guard.base_path
    if missing := [package for package in _NEEDS if find_spec(package) is None]:
        raise ModelError(
            f"{guard.name} has to be converted for ONNX Runtime, which needs {' and '.join(missing)}, not installed; "
            "pip install 'edgeguard[onnx]'",
            kind="cannot_convert",
        )
    tell(f"{guard.name} is converted for ONNX Runtime, once, in some seconds: {folder}")
    guard.check_files()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written: {error.strerror or error}; make the cache folder writable, or set "
            "XDG_CACHE_HOME to another",
            kind="cache_not_writable",
        ) from None
    try:
        made = convert(base, stage / folder.name, to=ONNX_TYPE, options=Options(lora=guard.adapter_path)).path
        _put_folder(guard, made, folder)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return folder


def _put_folder(guard: BuiltIn, made: Path, folder: Path) -> None:
    """Move the folder to its place, which another process may have taken with the same; a damaged one gives way."""
    for attempt in range(3):
        with suppress(OSError):  # a folder that is not empty is in the way
            made.rename(folder)
            return
        if is_onnx(guard, folder):
            return
        with suppress(OSError):  # another process has moved it
            folder.rename(made.with_name(f"damaged-{attempt}"))
    raise OutputError(f"{folder} cannot be replaced; remove it, and try again", kind="cache_not_writable")


def _is_whole(guard: BuiltIn, manifest: Path) -> bool:
    """Are the sources of a conversion in the cache the guard's files, and its outputs those that were written?"""
    try:
        found = read_manifest(manifest)
        if found is None or {source.sha256 for source in found[0].sources} != set(guard.sha256.values()):
            return False
        # A name of a manifest, which anybody may have written, is a name beside it.
        files = [(entry["sha256"], manifest.with_name(Path(entry["file"]).name)) for entry in found[1]]
        return bool(files) and all(digest == sha256(path) for digest, path in files)
    except (OSError, ValueError, KeyError, TypeError, EdgeguardError):
        return False
