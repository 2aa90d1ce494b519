"""A built-in guard as one model: its adapter merged into its base, as F32 weights or in one of its forms.

A form's bytes are the same on every machine, so `guard.toml` knows their hashes: the weights are computed number by
number (lora.py, weights.py, turns.py), and no version of a tool stands in the files.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from edgeguard.builtin import BuiltIn, Form
from edgeguard.cache import cache_folder
from edgeguard.convert import ONNX_TYPES, Options, convert
from edgeguard.convert.adapters import read_adapter
from edgeguard.convert.artifact import locked, put, staged
from edgeguard.convert.folder import write_folder
from edgeguard.convert.merged import MERGED_TYPES, write_merged
from edgeguard.convert.weights import Weights
from edgeguard.errors import EdgeguardError, ModelError, OutputError
from edgeguard.formats import gguf
from edgeguard.formats.hashes import sha256
from edgeguard.formats.manifest import Origin, Source, as_metadata, beside, read_manifest

FORM_TYPES = (*MERGED_TYPES, *ONNX_TYPES)
_ROOM = 2  # bytes a base's byte: eight bits for its five, and what lies beside


def make_form(guard: BuiltIn, form: Form, *, tell: Callable[[str], None] = lambda line: None) -> Path:
    """Put a form into the cache folder, whole or not at all, and give its folder; what is there already is left.

    Of several processes one makes it, and the others wait. Raises ModelError, also for a form that came out otherwise
    than on the machine that it was released on, and OutputError where there is no room or no leave to write.
    """
    folder = guard.form_folder(form)
    _make_cache(folder.parent)
    with locked(folder.with_name(f"{folder.name}.lock")):
        if not form.is_whole(folder):
            tell(f"making {guard.called}:{form.name} in {folder}, once; this takes seconds, of a large guard a minute")
            shutil.rmtree(folder, ignore_errors=True)
            base = guard.base_path
            n_bytes = base.stat().st_size * _ROOM
            with staged(folder, model=base, folder=True, overwrite=False, n_bytes=n_bytes) as stage:
                made = stage / folder.name
                made.mkdir()
                write_form(guard, form.name, made)
                _refuse_other(guard, form, made)
                put(made, folder)
    return folder


def write_form(guard: BuiltIn, name: str, folder: Path) -> None:
    """Write the form `name` into a folder that is there and empty: a type of `convert`, one of FORM_TYPES.

    Raises ModelError, OutputError.
    """
    header = gguf.read_header(guard.base_path)
    gguf.check_model(header)
    weights = Weights(header, read_adapter(guard.adapter_path, header))
    sources = (Source("model", guard.sha256[guard.base]), Source("lora", guard.sha256[guard.adapter]))
    metadata = as_metadata(Origin(name, sources, options={}, tools={}))
    if name in ONNX_TYPES:
        write_folder(weights, folder, precision=ONNX_TYPES[name], activations="int8", metadata=metadata)
    else:
        path = folder / f"{guard.name}.{name}.gguf"
        write_merged(weights, path, metadata={**metadata, "general.name": guard.name}, to=name)


def _make_cache(folder: Path) -> None:
    if not folder.is_absolute():  # "~" stays as it is where nobody knows the user's home
        raise OutputError(f"{folder} cannot be written: there is no home folder", kind="cache_not_writable")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be made: {error.strerror or error}; make it writable, or set XDG_CACHE_HOME to another",
            kind="cache_not_writable",
        ) from None


def _refuse_other(guard: BuiltIn, form: Form, made: Path) -> None:
    """Raises ModelError for files that are not those that were released, with the reason where the sources have it."""
    for name, expected in form.sha256.items():
        found = sha256(made / name)
        if found != expected:
            guard.check_files()
            raise ModelError(
                f"{guard.called}:{form.name} came out otherwise here: {name} has sha256 {found}, expected {expected}, "
                "so it is not used; tell its makers which versions of numpy, gguf and onnx are installed",
                kind="form_differs",
            )


# As F32, for conversions and as a reference


def merge_built_in(guard: BuiltIn, path: Path, *, overwrite: bool = False) -> Path:
    """Write the guard to `path`, a GGUF file; the same bytes each time. Raises ModelError, OutputError."""
    options = Options(lora=guard.adapter_path, name=guard.name, overwrite=overwrite)
    return convert(guard.base_path, path, to="f32", options=options).path


def merged_built_in(guard: BuiltIn, path: Path | None = None) -> Path:
    """The merged guard at `path`, None for the cache folder; a file that is there already and whole is taken as it is.

    Raises ModelError, OutputError.
    """
    if path is None:
        path = cache_path(guard)
        _make_cache(path.parent)
    if not is_merged(guard, path):
        merge_built_in(guard, path, overwrite=True)
    return path


def cache_path(guard: BuiltIn) -> Path:
    """Where the merged guard is kept on this machine."""
    return cache_folder() / f"{guard.name}-{guard.version}.F32.gguf"


def is_merged(guard: BuiltIn, path: Path) -> bool:
    """Is this the merged guard? By the manifest beside it: its sources are the guard's, and the file is whole."""
    manifest = beside(path)
    try:
        found = read_manifest(manifest)
        if found is None or {source.sha256 for source in found[0].sources} != set(guard.sha256.values()):
            return False
        # A name of a manifest, which anybody may have written, is a name beside it.
        files = [(entry["sha256"], manifest.with_name(Path(entry["file"]).name)) for entry in found[1]]
        return bool(files) and all(digest == sha256(path) for digest, path in files)
    except (OSError, ValueError, KeyError, TypeError, EdgeguardError):
        return False
