"""What is asked of a hub, and which of a repository's files that is. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgeguard.errors import ModelError, did_you_mean, printable, shown

PREFIX = "hf:"
SPELLING = "hf:ORG/REPO, and perhaps :FILE and @REVISION behind it"
MOST_LISTED = 40  # files that an error names
# The name of a part of a model: `guard-00002-of-00003.gguf`.
_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<of>\d{5})\.gguf")
# GGUF files that are no model: a projector of images, an importance matrix.
_NO_MODEL = re.compile(r"(mmproj|imatrix)|.*[.-]imatrix\.gguf", re.IGNORECASE)
# What is read beside an ONNX graph, and beside a checkpoint's weights.
_BESIDE = (
    *(
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "chat_template.json",
    ),
    *("config.json", "generation_config.json", "genai_config.json", "edgeguard.json"),
)
_CHECKPOINT = (*_BESIDE, "tokenizer.model", "model.safetensors.index.json")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class HubName:
    """A model of a hub.

    file      of the repository, or a folder in it; None: the one that there is
    revision  a commit, a tag or a branch; None: the main branch
    """

    repo: str
    file: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        file = "" if self.file is None else f":{self.file}"
        return f"{PREFIX}{self.repo}{file}" + ("" if self.revision is None else f"@{self.revision}")


def parse_hub_name(model: object) -> HubName | None:
    """What a model's name asks of a hub; None where it asks for a path, or a built-in guard.

    Raises ModelError for a name that begins so and is none.
    """
    text = model.as_posix() if isinstance(model, Path) else str(model)
    if not text.startswith(PREFIX):
        return None
    rest, at, revision = text.removeprefix(PREFIX).partition("@")
    repo, colon, file = rest.partition(":")
    if not _REPO.fullmatch(repo) or ".." in repo or (colon and not is_inside(file)) or (at and not _is_name(revision)):
        raise ModelError(f"{shown(text, 200)} names no model of a hub; expected {SPELLING}", kind="no_hub_name")
    return HubName(repo, file.rstrip("/") if colon else None, revision if at else None)


def is_inside(file: str) -> bool:
    """Whether a file's name stays in the folder that it is put into, on every system."""
    parts = file.rstrip("/").split("/")
    return _is_name(file) and not any(part in ("", ".", "..") for part in parts) and not set(file) & set('\\:*?"<>|')


def _is_name(text: str) -> bool:
    return (
        text.isprintable() and text == text.strip() and ".." not in text.split("/") and text[:1] not in ("", "-", "/")
    )


@dataclass(frozen=True)
class Choice:
    """Which files of a repository are meant.

    main   the one that is opened; "" for the whole folder, a checkpoint
    files  all that it needs, `main` among them
    """

    main: str
    files: tuple[str, ...]


def choose(sizes: Mapping[str, int], wanted: HubName, *, checkpoint: bool = False) -> Choice:
    """The files of a repository, name → bytes, that `wanted` means.

    checkpoint  take a Hugging Face checkpoint too, where there is no other model

    Raises ModelError where there is none, or several: then it lists them with their sizes.
    """
    names = sorted(name for name in sizes if is_inside(name))
    found = models_of(names)
    if wanted.file is not None:
        found = [name for name in found if name == wanted.file or _folder(name) == wanted.file]
        if wanted.file in names and not found:
            found = _as_part(wanted, names)
    if len(found) == 1:
        return Choice(found[0], _files_of(found[0], names, wanted))
    if len(found) > 1:
        where = f"{wanted} holds" if wanted.file is None else f"{wanted.file} of {PREFIX}{wanted.repo} holds"
        raise ModelError(
            f"{where} {len(found)} models, name one as {PREFIX}{wanted.repo}:FILE: {_listed(found, sizes, names)}",
            kind="several_in_repo",
        )
    if wanted.file is None and any(name.endswith(".safetensors") and "/" not in name for name in names):
        if checkpoint:
            weights = [name for name in names if name.endswith(".safetensors") and "/" not in name]
            return Choice("", (*weights, *(name for name in _CHECKPOINT if name in names)))
        raise ModelError(
            f"{wanted} is a checkpoint of safetensors, and holds no GGUF and no ONNX file; convert it first: "
            f"edgeguard convert {wanted} --to onnx-fp32",
            kind="checkpoint_in_repo",
        )
    raise _none(wanted, models_of(names), sizes, names)


def _none(wanted: HubName, models: list[str], sizes: Mapping[str, int], names: list[str]) -> ModelError:
    if wanted.file is None:
        return ModelError(f"{wanted} holds no GGUF and no ONNX file; name another repository", kind="not_in_repo")
    near = did_you_mean(wanted.file, models)
    listed = f"its models are {_listed(models, sizes, names)}" if models else "it holds no GGUF and no ONNX file"
    return ModelError(f"{PREFIX}{wanted.repo} has no model {wanted.file!r}{near}; {listed}", kind="not_in_repo")


def models_of(names: Iterable[str]) -> list[str]:
    """The files that can be opened: GGUF files, of one in parts the first, and ONNX graphs."""
    return [
        name
        for name in names
        if name.endswith(".onnx")
        or (name.endswith(".gguf") and not _NO_MODEL.match(_base(name)) and _number_of(name) in (None, 1))
    ]


def _number_of(name: str) -> int | None:
    part = _PART.fullmatch(name)
    return None if part is None else int(part["number"])


def _as_part(wanted: HubName, names: list[str]) -> list[str]:
    """The first part, where another one is named. Raises ModelError for a file that is no model."""
    part = _PART.fullmatch(str(wanted.file))
    first = None if part is None else f"{part['stem']}-00001-of-{part['of']}.gguf"
    if first not in names:
        raise ModelError(
            f"{wanted.file} of {PREFIX}{wanted.repo} is no model; name a GGUF or an ONNX file", kind="not_in_repo"
        )
    return [first]


def _files_of(main: str, names: list[str], wanted: HubName) -> tuple[str, ...]:
    """All that a model needs. Raises ModelError where a part is missing."""
    part = _PART.fullmatch(main)
    if part is not None:
        parts = [f"{part['stem']}-{n:05}-of-{part['of']}.gguf" for n in range(1, int(part["of"]) + 1)]
        if missing := [name for name in parts if name not in names]:
            raise ModelError(
                f"{PREFIX}{wanted.repo} has not all parts of {main}: {missing[0]} is missing", kind="not_in_repo"
            )
        return tuple(parts)
    if main.endswith(".gguf"):
        return (main,)
    weights = [name for name in names if _folder(name) == _folder(main) and _is_weights(_base(name), _base(main))]
    beside = (_nearest(name, main, names) for name in _BESIDE)
    return (main, *weights, *(name for name in beside if name is not None))


def _is_weights(name: str, graph: str) -> bool:
    """`model.onnx_data`, `model.onnx.data`, `model.onnx_data_1`: what exporters call weights outside of the graph."""
    return name.startswith((f"{graph}_", f"{graph}."))


def _nearest(name: str, main: str, names: list[str]) -> str | None:
    """A file beside the graph, or in the nearest folder above it: of hubs, repositories have graphs in a folder."""
    above = (parent / name for parent in PurePosixPath(main).parents)
    return next((str(path) for path in above if str(path) in names), None)


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _listed(models: list[str], sizes: Mapping[str, int], names: list[str]) -> str:
    """`a.gguf (1.2 GB), b.gguf (800 MB)`."""

    def size(name: str) -> str:
        part = _PART.fullmatch(name)
        parts = [n for n in names if part and n.startswith(f"{part['stem']}-") and n.endswith(f"-of-{part['of']}.gguf")]
        weights = [n for n in names if _folder(n) == _folder(name) and _is_weights(_base(n), _base(name))]
        return in_bytes(sum(sizes[n] for n in {name, *parts, *weights}))

    listed = ", ".join(f"{printable(name)} ({size(name)})" for name in models[:MOST_LISTED])
    return listed if len(models) <= MOST_LISTED else f"{listed} and {len(models) - MOST_LISTED} more"


def in_bytes(n: int) -> str:
    """`1.2 GB`, `98.4 MB`, `512 bytes`."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return f"{n} bytes"
