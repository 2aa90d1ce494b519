"""What a path given as a model is, told by content: a GGUF file, an ONNX graph, a checkpoint's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgeguard.errors import ModelError

Kind = Literal["gguf", "onnx", "checkpoint"]


@dataclass(frozen=True)
class ModelPath:
    """`path` is the GGUF or ONNX file itself, and the folder of a checkpoint."""

    kind: Kind
    path: Path


def find_model(path: str | Path) -> ModelPath:
    """The model that a file or a folder holds. Raises ModelError where it holds none, or several."""
    path = Path(path)
    try:
        if not path.exists():
            raise ModelError(f"{path} does not exist; give the path of a model file, or of a folder with one")
        return _in_folder(path) if path.is_dir() else ModelPath(_kind(path), path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ModelError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def to_be_converted(path: Path) -> ModelError:
    """The error for a checkpoint where a model is to be opened."""
    return ModelError(f"{path} is a Hugging Face checkpoint; convert it first: edgeguard convert {path} --to onnx-fp32")


def _in_folder(path: Path) -> ModelPath:
    files = sorted(p for p in path.iterdir() if p.is_file())
    graphs = [p for p in files if p.suffix == ".onnx"]
    # A model in parts is opened by its first.
    ggufs = [p for p in files if p.suffix == ".gguf" and ("-of-" not in p.stem or "-00001-of-" in p.stem)]
    usual = [p for p in graphs if p.name == "model.onnx"]
    found = usual or [*graphs, *ggufs]
    if len(found) > 1:
        raise ModelError(f"{path} holds {len(found)} models; give one of them: {', '.join(p.name for p in found)}")
    if found:
        return ModelPath("onnx" if found[0].suffix == ".onnx" else "gguf", found[0])
    if (path / "config.json").is_file():
        return ModelPath("checkpoint", path)
    raise ModelError(f"{path} holds no model: no .gguf, no .onnx, no config.json; give the path of a model")


def _kind(path: Path) -> Kind:
    """By the first bytes. What is no GGUF and no ONNX file is called GGUF, whose reader says what it is."""
    if not path.is_file():
        return "gguf"
    with path.open("rb") as file:
        head = file.read(16)
    if head.startswith(b"GGUF"):
        return "gguf"
    # Field 1 of ONNX's protobuf is its version, a small number.
    return "onnx" if path.suffix == ".onnx" or head[:1] == b"\x08" else "gguf"
