"""Adapters to model runtimes. Each module here declares a `RUNTIME`, and imports the runtime when it opens a model.

A new runtime is a file here: an adapter that keeps the laws of `edgeguard.backend.Backend`, and its `RUNTIME`.
`tests/test_backends.py` is the suite that it must pass.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from edgeguard.backend import Backend, Condition, Runtime, RuntimeOptions
from edgeguard.errors import ModelError
from edgeguard.formats.model_file import Kind, find_model, to_be_converted


def open_backend(path: str | Path, options: RuntimeOptions = RuntimeOptions()) -> Backend:
    """Load a model with the runtime it is for, told by content: a file, or a folder with one. Raises ModelError."""
    runtime, file = _find(path)
    runtime.check(options)
    try:
        return runtime.open(file, options)
    except ModuleNotFoundError as error:
        if error.name != runtime.module:
            raise
        raise ModelError(
            f"{path} needs {runtime.name}, which is not installed; pip install '{runtime.package}'"
        ) from None


def runtime_of(path: str | Path) -> Runtime:
    """What opens a model: its name, the options it takes, its conditions. Imports no runtime. Raises ModelError."""
    return _find(path)[0]


def conditions(path: str | Path) -> Mapping[str, Condition]:
    """The ways in which a model's noise can be measured, by name. Raises ModelError."""
    return runtime_of(path).conditions


def runtimes() -> list[Runtime]:
    """All that the modules of this folder declare, in the order of their names."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return [import_module(f"{__name__}.{name}").RUNTIME for name in names]


def opener(kind: Kind) -> Runtime:
    """What opens models of this kind, as `formats.model_file` tells them apart."""
    return next(runtime for runtime in runtimes() if kind in runtime.opens)


def _find(path: str | Path) -> tuple[Runtime, Path]:
    """A model's runtime, and what that opens: a file, or the folder of a checkpoint."""
    path, known = Path(path), runtimes()
    for runtime in known:
        if path.suffix in runtime.opens:
            return runtime, path
    model = find_model(path)
    for runtime in known:
        if model.kind in runtime.opens:
            return runtime, model.path
    raise to_be_converted(path)
