"""Guards that come with edgeguard: an adapter in this package, on a base model from a Python package or from a hub.

Each is a folder with a `guard.toml`: what it is, what it is made of, the forms that are made of that on a user's
machine, and the sha256 of every file. The base is that of the installed package, else the one that `edgeguard.pull` put
into the cache folder. So scoring works offline, and what is scored with is what the model card's figures were made
with, or an error.

A guard may be there in several versions, a folder each. Its name alone is the newest, NAME@VERSION is that one ever
after.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from edgeguard.cache import cache_folder
from edgeguard.errors import ModelError, did_you_mean, printable
from edgeguard.formats.hashes import combined, sha256
from edgeguard.formats.model_file import Kind

DEFAULT = "edgeguard-135m"
ADAPTER = "adapter"  # the form that is not made: the adapter beside the base model
_PACKAGE = Path(__file__).parent
# In the wheel, and in a checkout, where pip's editable install finds the package.
_FOLDERS = (_PACKAGE / "guards", _PACKAGE.parent / "models")


Origin = Literal["package", "cache"]
SPELLING = "NAME, NAME@VERSION, and perhaps :FORM behind it"
_MODEL = (".gguf", ".onnx", ".onnx.data")  # endings of the files that a score's model_sha256 is over


@dataclass(frozen=True)
class Base:
    """A base model's file, and whether the installed package or the cache folder has it. Its hash is not checked."""

    path: Path
    origin: Origin


@dataclass(frozen=True)
class FromPackage:
    """A base model that comes as a file of a Python package, in version `version` ("": any)."""

    package: str
    version: str = ""

    @property
    def requirement(self) -> str:
        """As pip is asked for it."""
        return f"{self.package}=={self.version}" if self.version else self.package

    @property
    def said(self) -> str:
        """Where it is from, in a message."""
        return self.requirement


@dataclass(frozen=True)
class FromHub:
    """A base model that is a file of a hub's repository, at one commit."""

    repo: str
    revision: str

    @property
    def said(self) -> str:
        """Where it is from, in a message."""
        return f"hf:{self.repo}@{self.revision}"


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

    folder     where its files are
    profile    name of its profile
    base       file name of the base model
    base_from  what brings it
    sha256     file name → hash, of the base model and of the adapter
    made       the forms that are made of both
    default    names of forms: the first whose runtime is installed is what the guard's name stands for
    newest     of the versions that there are of it
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
    base_from: FromPackage | FromHub
    adapter: str
    sha256: Mapping[str, str]
    made: tuple[Form, ...] = ()
    default: tuple[str, ...] = (ADAPTER,)
    newest: bool = True

    @property
    def called(self) -> str:
        """What it is asked for by, and what its scores say: of the newest version the name, of an older NAME@VERSION.

        What is written as a file's name or into one is `name` and `version`, which no newer version changes.
        """
        return self.name if self.newest else f"{self.name}@{self.version}"

    @property
    def stem(self) -> str:
        """What a user's file that is made of it is called."""
        return self.name if self.newest else f"{self.name}-{self.version}"

    @property
    def release(self) -> str:
        """Which of its versions it is, for people."""
        return f"version {self.version}" if self.newest else f"version {self.version}, an older one"

    @property
    def is_default(self) -> bool:
        """Is it the guard that is meant where none is named?"""
        return self.name == DEFAULT and self.newest

    @property
    def pull_command(self) -> str:
        """What to type for the base model alone."""
        return "edgeguard models pull" + ("" if self.is_default else f" {self.called}")

    @property
    def adapter_path(self) -> Path:
        """The LoRA adapter, a GGUF file."""
        return self.folder / self.adapter

    @property
    def base_path(self) -> Path:
        """The base model's GGUF file. Raises ModelError where neither its package nor the cache folder has it."""
        found = find_base(self)
        if found is None:
            raise self._no_base()
        return found.path

    def _no_base(self) -> ModelError:
        needs = f"{self.called} needs {self.base_name}, which is not on this machine; run `{self.pull_command}`, which "
        match self.base_from:
            case FromPackage(package):
                return ModelError(
                    f"{needs}takes that one file out of {package} and needs no compiler, or "
                    f"pip install 'edgeguard[smollm2]', which brings {package} and all that it depends on",
                    kind="base_not_installed",
                    package=package,
                )
            case FromHub(repo):
                return ModelError(
                    f"{needs}fetches {self.base} of hf:{repo}, once, and needs pip install 'edgeguard[hub]'",
                    kind="base_not_pulled",
                    command=self.pull_command,
                )

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
            others = [g.called for g in built_in_guards() if g.name == self.name and name in (f.name for f in g.forms)]
            older = f"; {', '.join(f'{other}:{name}' for other in others)} is there" if others else ""
            raise ModelError(
                f"{self.called} has no form {name!r}{did_you_mean(name, found)}; it has {', '.join(found)}{older}",
                kind="unknown_form",
            )
        return found[name]

    def made_form(self, name: str) -> Form:
        """The form of that name, one that is made. Raises ModelError."""
        form = self.form(name)
        if form.name == ADAPTER:
            raise ModelError(
                f"{self.called}:{ADAPTER} is base model and adapter as they come; there is nothing to make"
            )
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
            "newest": self.newest,
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
                package = self.base_from.package if isinstance(self.base_from, FromPackage) else ""
                cure = f"reinstall edgeguard and {package}" if package else "reinstall edgeguard"
                raise ModelError(
                    f"{path} has sha256 {there}, {self.called} was made with {self.sha256[path.name]}; "
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
    pull, source = guard.pull_command, guard.base_from
    install = f"pip install {source.package}" if isinstance(source, FromPackage) else pull
    missing = {"base": pull if install == pull else f"{pull}, or {install}", "adapter": "reinstall edgeguard"}
    again = {"base": pull if base and base.origin == "cache" else install}
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


def amiss(guard: BuiltIn, file: BuiltInFile) -> bool:
    """Is there something to be put right? A base that was never fetched is not, but for the default guard's."""
    return file.problem is not None and (file.path is not None or file.role != "base" or guard.is_default)


def built_in_guards() -> list[BuiltIn]:
    """All of them, by name; of several versions the newest first."""
    read = [_read(path) for folder in reversed(_FOLDERS) for path in sorted(folder.glob("*/guard.toml"))]
    found = {(guard.name, guard.version): guard for guard in read}
    newest = {guard.name: guard.version for guard in sorted(found.values(), key=_age)}
    ordered = sorted(sorted(found.values(), key=_age, reverse=True), key=lambda guard: guard.name)
    return [replace(guard, newest=guard.version == newest[guard.name]) for guard in ordered]


def _age(guard: BuiltIn) -> tuple[int, ...]:
    """A version's numbers: 10 is newer than 9."""
    return tuple(int(part) for part in guard.version.split("."))


def built_in(name: str) -> BuiltIn:
    """The guard of that name, NAME or NAME@VERSION. Raises ModelError."""
    guard, form = built_in_form(name)
    if form is not None:
        raise ModelError(f"{printable(name)} names a form; expected the guard alone, {guard.called}")
    return guard


def built_in_form(text: str) -> tuple[BuiltIn, str | None]:
    """The guard and the form that NAME, NAME@VERSION, NAME:FORM or NAME@VERSION:FORM names. Raises ModelError."""
    named, colon, form = text.partition(":")
    name, at, version = named.partition("@")
    versions = {guard.version: guard for guard in built_in_guards() if guard.name == name}
    if not versions:
        names = list(dict.fromkeys(guard.name for guard in built_in_guards()))
        raise ModelError(
            f"there is no built-in guard {name!r}{did_you_mean(name, names)}; there are {', '.join(names) or 'none'}",
            kind="unknown_built_in",
        )
    if "@" in form:
        raise ModelError(f"{printable(text)} has its version behind its form; expected {SPELLING}", kind="unknown_form")
    if at and version not in versions:
        near = did_you_mean(version, versions)
        there = ", ".join(f"{name}@{known}" for known in versions)
        raise ModelError(f"{name} has no version {version!r} here{near}; there are {there}", kind="unknown_version")
    guard = versions[version] if at else next(guard for guard in versions.values() if guard.newest)
    return guard, guard.form(form).name if colon else None


def find_built_in(model: str | Path | None) -> BuiltIn | None:
    """The built-in guard that `model` asks for: the default for None, or by name where no file has it; else None."""
    found = find_form(model)
    return None if found is None or found[1] is not None else found[0]


def find_form(model: str | Path | None) -> tuple[BuiltIn, str | None] | None:
    """The built-in guard that `model` asks for, and the form, as `built_in_form`. None where it asks for none.

    Raises ModelError for a version or a form that there is not, and for what is no file and nearly a guard's name.
    """
    if model is None:
        return built_in(DEFAULT), None
    if len(Path(model).parts) != 1 or Path(model).exists():
        return None
    name = str(model).partition(":")[0].partition("@")[0]
    names = {guard.name for guard in built_in_guards()}
    if name in names:
        return built_in_form(str(model))
    is_name = str(Path(model)) == str(model) and not name.endswith(_MODEL)  # "./x" is a path
    if is_name and (near := did_you_mean(name, names)):
        raise ModelError(
            f"{printable(str(model))} is no file and no built-in guard{near}; give the path of a model file, of a "
            "folder with one, or a name from `edgeguard models`",
            kind="unknown_built_in",
        )
    return None


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
    if isinstance(guard.base_from, FromPackage):
        path = _find_base(guard.base_from.package, guard.base)
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
        base_from=_source(base),
        adapter=adapter["file"],
        sha256={base["file"]: base["sha256"], adapter["file"]: adapter["sha256"]},
        made=tuple(Form(name, form["kind"], form["sha256"]) for name, form in found.get("form", {}).items()),
        default=tuple(found.get("forms", {}).get("default", [ADAPTER])),
    )


def _source(base: Mapping[str, str]) -> FromPackage | FromHub:
    if "package" in base:
        return FromPackage(base["package"], base.get("version", ""))
    return FromHub(base["repo"], base["revision"])
