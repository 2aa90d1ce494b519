"""Guards that come with edgeguard: an adapter in this package, on a base model that comes in a Python package's wheel.

Each is a folder with a `guard.toml`: what it is, what it is made of, the forms that are made of that on a user's
machine, and the sha256 of every file. So scoring works offline, and what is scored with is what the model card's
figures were made with, or an error.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgeguard.errors import ModelError, did_you_mean
from edgeguard.formats.hashes import combined, sha256
from edgeguard.formats.model_file import Kind

DEFAULT = "edgeguard-135m"
ADAPTER = "adapter"  # the form that is not made: the adapter beside the base model
_PACKAGE = Path(__file__).parent
# In the wheel, and in a checkout, where pip's editable install finds the package.
_FOLDERS = (_PACKAGE / "guards", _PACKAGE.parent / "models")


_MODEL = (".gguf", ".onnx", ".onnx.data")  # endings of the files that a score's model_sha256 is over


@dataclass(frozen=True)
class Form:
    """A guard as a runtime opens it. The same guard, other bits: each has its own calibrations.

    name    what it is asked for by; of a form that is made, the type that `convert` calls so
    kind    what opens it, as `formats.model_file` tells models apart
    sha256  name → hash of each file, the same on every machine
    """

    name: str
    kind: Kind
    sha256: Mapping[str, str]

    @property
    def model_sha256(self) -> str:
        """What a score's model_sha256 is."""
        hashes = {name: digest for name, digest in self.sha256.items() if name.endswith(_MODEL)}
        return combined(hashes) if len(hashes) > 1 else next(iter(hashes.values()))

    @property
    def beside(self) -> Mapping[str, str]:
        """The files that no model_sha256 is over: a tokenizer, a configuration."""
        return {name: digest for name, digest in self.sha256.items() if not name.endswith(_MODEL)}

    def is_whole(self, folder: Path) -> bool:
        """Are its files in this folder, every byte of them?"""
        try:
            return all(sha256(folder / name) == digest for name, digest in self.sha256.items())
        except ModelError:
            return False


@dataclass(frozen=True)
class BuiltIn:
    """A guard that comes with edgeguard.

    folder    where its files are
    profile   name of its profile
    base      file name of the base model; the wheel of `base_package` at `base_version` brings it
    n_bytes   of the base model
    sha256    file name → hash, of the base model and of the adapter
    made      the forms that are made of both
    default   names of forms, the first whose runtime is installed is what the guard's name stands for
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
    base_version: str
    n_bytes: int
    adapter: str
    sha256: Mapping[str, str]
    made: tuple[Form, ...]
    default: tuple[str, ...]

    @property
    def adapter_path(self) -> Path:
        """The LoRA adapter, a GGUF file."""
        return self.folder / self.adapter

    @property
    def base_path(self) -> Path:
        """The base model's GGUF file: of the installed package, or as `pull` left it. Raises ModelError for none."""
        path = self.find_base()
        if path is None:
            raise ModelError(
                f"{self.name} needs {self.base_name}, {self.n_bytes / 1e6:.0f} MB, which is not on this machine; "
                "run `edgeguard models pull`, which fetches it once",
                kind="base_not_there",
                package=self.base_package,
            )
        return path

    def find_base(self) -> Path | None:
        """Where the base model's GGUF file is, if it is on this machine."""
        installed = _in_package(self.base_package, self.base)
        if installed is not None:
            return installed
        pulled = self.pulled
        return pulled if pulled is not None and pulled.is_file() else None

    @property
    def pulled(self) -> Path | None:
        """Where `pull` puts the base model; None on a machine without a cache folder."""
        cache = cache_folder()
        return None if cache is None else cache / f"{self.base_package}-{self.base_version}" / self.base

    @property
    def card(self) -> Path:
        """The model card, Markdown."""
        return self.folder / "README.md"

    @property
    def forms(self) -> tuple[Form, ...]:
        """All there are: base and adapter as they come, and what is made of them."""
        return (Form(ADAPTER, "gguf", self.sha256), *self.made)

    def form(self, name: str) -> Form:
        """The form of that name. Raises ModelError."""
        found = {form.name: form for form in self.forms}
        if name not in found:
            raise ModelError(
                f"{self.name} has no form {name!r}{did_you_mean(name, found)}; it has {', '.join(found)}",
                kind="unknown_form",
            )
        return found[name]

    def made_form(self, name: str) -> Form:
        """The form of that name, one that is made. Raises ModelError."""
        form = self.form(name)
        if form.name == ADAPTER:
            raise ModelError(f"{self.name}:{ADAPTER} is base model and adapter as they come; there is nothing to make")
        return form

    def form_folder(self, form: Form) -> Path | None:
        """Where a form that is made is kept; None on a machine without a cache folder.

        The name has the hash in it: two versions of edgeguard do not take turns at making it.
        """
        cache = cache_folder()
        return None if cache is None else cache / f"{self.name}-{self.version}-{form.name}-{form.model_sha256[:8]}"

    def calibration(self, form: Form, estimator: str) -> Path | None:
        """The calibration file of a form for one estimator; None where none was fitted."""
        folder = self.folder if form.name == ADAPTER else self.folder / form.name
        path = folder / f"calibration-{estimator}.json"
        return path if path.is_file() else None

    def row(self, files: Sequence[BuiltInFile]) -> dict[str, Any]:
        """As one JSON object, with what `state` says of its files."""
        return {
            "name": self.name,
            "version": self.version,
            "description": self.description,
            "profile": self.profile,
            "license": self.license,
            "card": str(self.card),
            "files": [{**asdict(file), "path": None if file.path is None else str(file.path)} for file in files],
            "default": list(self.default),
            "forms": [self._form_row(form) for form in self.forms],
        }

    def _form_row(self, form: Form) -> dict[str, Any]:
        folder = None if form.name == ADAPTER else self.form_folder(form)
        return {
            "name": form.name,
            "kind": form.kind,
            "model_sha256": form.model_sha256,
            "folder": None if folder is None else str(folder),
            "made": folder is not None and folder.is_dir(),
            "calibrated": self.calibration(form, "marginal") is not None,
        }

    def check_sources(self) -> None:
        """Hold base model and adapter against their hashes. Raises ModelError."""
        for path in (self.base_path, self.adapter_path):
            if (there := sha256(path)) != self.sha256[path.name]:
                raise ModelError(
                    f"{path} has sha256 {there}, {self.name} was made with {self.sha256[path.name]}; "
                    f"reinstall edgeguard and {self.base_package}, or run `edgeguard models pull` once more",
                    kind="built_in_altered",
                    path=path,
                )


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
    """Base model and adapter, each read and hashed."""
    adapter = guard.adapter_path if guard.adapter_path.is_file() else None
    missing = {"base": "run `edgeguard models pull`", "adapter": "reinstall edgeguard"}
    found = []
    for role, file, license, path in (
        ("base", guard.base, guard.base_license, guard.find_base()),
        ("adapter", guard.adapter, guard.license, adapter),
    ):
        problem = None
        if path is None:
            problem = f"not there: {missing[role]}"
        elif sha256(path) != guard.sha256[file]:
            problem = f"another file of that name: {missing[role]}"
        n_bytes = 0 if path is None else path.stat().st_size
        found.append(BuiltInFile(role, file, license, guard.sha256[file], path, n_bytes, problem))
    return found


def cache_folder() -> Path | None:
    """Where what is made or fetched is kept: the user's cache folder, of this platform; None where there is no home."""
    from platformdirs import user_cache_path

    path = user_cache_path("edgeguard", appauthor=False)
    return path if path.is_absolute() else None  # "~" stays as it is where nobody knows the user's home


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
    found = find_form(model)
    return None if found is None or found[1] is not None else found[0]


def find_form(model: str | Path | None) -> tuple[BuiltIn, str | None] | None:
    """The built-in guard that `model` asks for, and the form: "NAME", "NAME:FORM". None where it asks for none.

    Raises ModelError for a form that the guard has not.
    """
    if model is None:
        return built_in(DEFAULT), None
    if len(Path(model).parts) != 1 or Path(model).exists():
        return None
    name, colon, form = str(model).partition(":")
    found = next((guard for guard in built_in_guards() if guard.name == name), None)
    if found is None:
        return None
    return found, found.form(form).name if colon else None


def fitted_for(model_sha256: str, estimator: str) -> Path | None:
    """The calibration that a built-in guard brings for scores of this model, whichever form that is; None for none."""
    for guard in built_in_guards():
        for form in guard.forms:
            if form.model_sha256 == model_sha256:
                return guard.calibration(form, estimator)
    return None


def base_model() -> Path:
    """The GGUF file that the default guard stands on, SmolLM2-135M-Instruct. Raises ModelError if not there."""
    return built_in(DEFAULT).base_path


def _in_package(package: str, file: str) -> Path | None:
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
        base_version=base["version"],
        n_bytes=base["n_bytes"],
        adapter=adapter["file"],
        sha256={base["file"]: base["sha256"], adapter["file"]: adapter["sha256"]},
        made=tuple(Form(name, form["kind"], form["sha256"]) for name, form in found.get("form", {}).items()),
        default=tuple(found.get("forms", {}).get("default", [ADAPTER])),
    )
