"""Everything that can change a row, as one flat mapping: two runs with the same one write the same rows of a record.

It is built here alone. An option of RuntimeOptions, of Search or of how records are read joins by itself; what a file
says joins by its content, whatever its name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path

from edgeguard.backends import runtimes
from edgeguard.guard import Guard
from edgeguard.machine import available_cores
from edgeguard.version import __version__
from edgeguard.workers import Workers

Value = str | int | float | bool | None

_IN_HASH = {"lora"}  # of RuntimeOptions: the model's hash is over the adapter too
_CHANGE_NO_ROW = {"max_ratio"}  # of how records are read


def fingerprint(guard: Guard | Workers, reading: object) -> dict[str, Value]:
    """The mapping of a run. `reading`: how records are read, a dataclass."""
    said = guard.ask(contents) if isinstance(guard, Workers) else contents(guard)
    return {"edgeguard": __version__, **said, **_without(_CHANGE_NO_ROW, _flat(reading, "input"))}


def contents(guard: Guard, _: None = None) -> dict[str, Value]:
    """What a loaded guard is: hashes of its model, profile and calibration, its thresholds, search and runtime.

    Threads may change last digits, so their number is part of it.
    """
    calibration, runtime = guard.calibration, guard.runtime
    known: dict[str, Value] = {
        "guard": guard.name,
        "model_sha256": guard.model_sha256,
        "runtime": _runtime(guard),
        "profile": guard.profile.name,
        "profile_sha256": _digest(dataclasses.replace(guard.profile, source="")),
        "estimator": guard.estimator,
        "window": guard.window,
        **_flat(guard.search),
        "calibration_sha256": None if calibration is None else _digest((calibration.maps, calibration.thresholds)),
        "threshold": guard.thresholds.default,
        **({"stages": 2} if guard.thresholds.two_stage else {}),
        **{f"threshold of {label}": value for label, value in sorted(guard.thresholds.labels.items())},
        "context": guard.backend.n_ctx,
        "threads": runtime.threads or available_cores(),
    }
    return {**_without(_IN_HASH, _flat(runtime)), **known}


def _without(names: set[str], values: Mapping[str, Value]) -> dict[str, Value]:
    return {name: value for name, value in values.items() if name.rpartition(".")[2] not in names}


def _flat(value: object, name: str = "") -> dict[str, Value]:
    """A dataclass as its fields by name, those of one inside by theirs too; anything else under the name given."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        prefix = f"{name}." if name else ""
        return {key: one for field, inner in fields for key, one in _flat(inner, prefix + field).items()}
    return {name: value if value is None or isinstance(value, str | int | float | bool) else str(value)}


def _runtime(guard: Guard) -> str:
    """The runtime's name and version, as far as it is one of ours."""
    home = type(guard.backend).__module__
    found = next((one for one in runtimes() if home.startswith(one.open.__module__)), None)
    if found is None:
        return home
    return f"{found.name} {getattr(sys.modules.get(found.module), '__version__', '')}".strip()


def _digest(value: object) -> str:
    return hashlib.sha256(_canonical(value).encode()).hexdigest()[:16]


def _canonical(value: object) -> str:
    """A text that is the same for the same value in every process: sets and mappings have an order."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        inner = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return f"{type(value).__name__}{_canonical(inner)}"
    if isinstance(value, Mapping):
        return "{" + ",".join(sorted(f"{_canonical(k)}:{_canonical(v)}" for k, v in value.items())) + "}"
    if isinstance(value, set | frozenset):
        return "{" + ",".join(sorted(map(_canonical, value))) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_canonical, value)) + "]"
    if value is None or isinstance(value, str | int | float | bool | bytes | Path):
        return repr(value)
    raise TypeError(f"{type(value).__name__} has no text that is the same in every process")
