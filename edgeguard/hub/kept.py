"""What was pulled from a hub, and the hash that each file had then: a small file for each in the cache folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeguard.cache import cache_folder
from edgeguard.errors import ModelError, OutputError
from edgeguard.formats.bounded_json import loose_object
from edgeguard.formats.hashes import known_sha256
from edgeguard.hub.names import HubName, parse_hub_name


@dataclass(frozen=True)
class HubFile:
    """A file of a repository, as it was when it was pulled: where it is on this machine, its hash and length."""

    name: str
    path: Path
    sha256: str
    n_bytes: int


@dataclass(frozen=True)
class HubModel:
    """A model that was pulled.

    commit    of the repository
    endpoint  the hub's address
    path      what is opened: a file or a folder
    files     all that it needs
    """

    wanted: HubName
    commit: str
    endpoint: str
    path: Path
    files: tuple[HubFile, ...]

    def row(self, problem: str | None) -> dict[str, Any]:
        """As one JSON object, with the keys of a built-in guard's row, and what is wrong with its files."""
        files = [
            {
                "role": "model",
                "file": file.name,
                "license": None,
                "sha256": file.sha256,
                "path": str(file.path),
                "n_bytes": file.n_bytes,
                "problem": problem,
                "origin": "hub",
            }
            for file in self.files
        ]
        about = f"from {self.endpoint}, commit {self.commit}"
        no = dict.fromkeys(("profile", "license", "card"))
        name = {"name": str(self.wanted), "version": self.commit, "newest": True, "description": about}
        return {**name, **no, "files": files, "default": [], "forms": []}


def problem(model: HubModel) -> str | None:
    """What is wrong with a pulled model's files, if anything."""
    for file in model.files:
        if not file.path.is_file():
            return f"{file.name} is no longer there; edgeguard models pull {model.wanted}"
        if (there := known_sha256(file.path)) != file.sha256:
            return f"{file.name} has sha256 {there} now; edgeguard models pull {model.wanted} replaces it"
    return None if model.path.exists() else f"{model.path} is no longer there; edgeguard models pull {model.wanted}"


def pulled_models() -> list[HubModel]:
    """All that were pulled, by name. One whose file cannot be read is passed over: it is pulled again."""
    found = [model for path in sorted(_folder().glob("*.json")) if (model := _read(path)) is not None]
    return sorted(found, key=lambda model: str(model.wanted))


def find_pulled(wanted: HubName) -> HubModel | None:
    """What was pulled under this name."""
    found = _read(_entry(wanted))
    return found if found is not None and found.wanted == wanted else None


def keep(model: HubModel) -> None:
    """Write down what was pulled, in one step. Raises OutputError."""
    entry = _entry(model.wanted)
    values = {
        "model": str(model.wanted),
        "commit": model.commit,
        "endpoint": model.endpoint,
        "path": str(model.path),
        "files": [[f.name, str(f.path), f.sha256, f.n_bytes] for f in model.files],
    }
    part = entry.with_name(f"{entry.name}.{os.getpid()}")
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_text(json.dumps(values), encoding="utf-8")
            part.replace(entry)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"{entry.parent} cannot be written: {error.strerror or error}; make it writable, or set XDG_CACHE_HOME to "
            "another folder",
            kind="cache_not_writable",
        ) from None


def forget(wanted: HubName) -> None:
    """Forget the hash under this name, so that another file is taken for it. The hub's own cache is left alone.

    Raises ModelError where nothing was pulled under it.
    """
    if find_pulled(wanted) is None:
        names = ", ".join(str(model.wanted) for model in pulled_models()) or "nothing"
        raise ModelError(f"{wanted} was not pulled; pulled were {names}", kind="not_kept")
    with suppress(FileNotFoundError):
        _entry(wanted).unlink()


def _folder() -> Path:
    return cache_folder() / "hub"


def _entry(wanted: HubName) -> Path:
    return _folder() / f"{hashlib.sha256(str(wanted).encode()).hexdigest()[:32]}.json"


def _read(path: Path) -> HubModel | None:
    """Our own file; None where it is not there or is damaged."""
    values = loose_object(path)
    if values is None:
        return None
    try:
        wanted = parse_hub_name(values["model"])
        files = tuple(HubFile(str(name), Path(at), str(digest), int(n)) for name, at, digest, n in values["files"])
        whole = files and all(re.fullmatch("[0-9a-f]{64}", file.sha256) for file in files)
        if wanted is None or not whole:
            return None
        return HubModel(wanted, str(values["commit"]), str(values["endpoint"]), Path(values["path"]), files)
    except (ModelError, KeyError, TypeError, ValueError):
        return None
