"""Hugging Face's folders of safetensors files: a checkpoint, and a LoRA adapter as PEFT saves it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeguard.formats.bounded_json import find_object
from edgeguard.formats.model_file import to_be_converted
from edgeguard.formats.model_folder import read_settings
from edgeguard.formats.safetensors import read_entries, weight_files
from edgeguard.formats.tokenizer import read_chat_template
from edgeguard.inspection.files import Hashes, together
from edgeguard.inspection.folder import Problems, config_shape, folder_tokenizer
from edgeguard.inspection.types import Adapter, Inspection, ModelShape, Quantization, Tensor, TypeShare, type_shares


def inspect_checkpoint(folder: Path, hashes: Hashes) -> Inspection:
    """What a checkpoint's configurations and the headers of its weights say. Raises ModelError."""
    config = find_object(folder / "config.json") or {}
    problems = Problems([str(to_be_converted(folder))])
    tensors = tuple(t for path in weight_files(folder) for t in _tensors(path))
    settings = problems.of(lambda: read_settings(folder))
    shape = config_shape(config)
    files = hashes.files(sorted(p for p in folder.iterdir() if p.is_file()))
    notices = () if tensors else ("it has no safetensors files, so nothing is known of its weights",)
    return Inspection(
        path=folder,
        kind="checkpoint",
        format="safetensors" if tensors else "no safetensors",
        files=files,
        beside=(),
        sha256=together(files),
        architecture=settings.architecture if settings else "",
        name=(settings and settings.name) or folder.resolve().name,
        shape=replace(shape, n_weights=sum(n for t in tensors if (n := _n_weights(t)))) if tensors else shape,
        quantization=Quantization(_stored_as(config, tensors), _shares(tensors)),
        tokenizer=folder_tokenizer(folder, None, problems),
        chat_template=problems.of(lambda: read_chat_template(folder)),
        tensors=tensors,
        problems=tuple(problems.texts),
        notices=notices,
    )


def inspect_peft(folder: Path, hashes: Hashes) -> Inspection:
    """What an adapter's configuration and the header of its weights say. Raises ModelError."""
    config = find_object(folder / "adapter_config.json") or {}
    weights = folder / "adapter_model.safetensors"
    tensors = tuple(_tensors(weights)) if weights.is_file() else ()
    files = hashes.files(sorted(p for p in folder.iterdir() if p.is_file()))
    alpha = config.get("lora_alpha")
    ranks = {t.shape[0] for t in tensors if ".lora_A" in t.name and t.shape}
    shares = _shares(tensors)
    return Inspection(
        path=folder,
        kind="adapter",
        format="PEFT",
        files=files,
        beside=(),
        sha256=together(files),
        architecture="",
        name="",
        shape=ModelShape(n_weights=sum(_n_weights(t) for t in tensors)),
        quantization=Quantization(shares[0].type_name if shares else "unknown", shares),
        tokenizer=None,
        chat_template=None,
        tensors=tensors,
        problems=(
            f"{folder} is a LoRA adapter, not a model; merge it into its model with `edgeguard convert MODEL --lora`",
        ),
        notices=() if tensors else ("it has no adapter_model.safetensors, so nothing is known of its weights",),
        adapter=Adapter(
            base=str(config.get("base_model_name_or_path") or ""),
            ranks=tuple(sorted(ranks)),
            alpha=float(alpha) if type(alpha) in (int, float) and math.isfinite(alpha) else None,  # type: ignore[arg-type]
            changes=tuple(
                t.name.removeprefix("base_model.model.").partition(".lora_B")[0] for t in tensors if ".lora_B" in t.name
            ),
        ),
    )


def is_peft(path: Path) -> bool:
    """Whether a path is the folder of an adapter."""
    try:
        return (path / "adapter_config.json").is_file() and not (path / "config.json").is_file()
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return False


def _tensors(path: Path) -> list[Tensor]:
    return [Tensor(entry.name, entry.shape, entry.type_name, entry.n_bytes) for entry in read_entries(path)]


def _shares(tensors: Iterable[Tensor]) -> tuple[TypeShare, ...]:
    return type_shares((t.type_name, _n_weights(t), t.n_bytes) for t in tensors)


def _n_weights(tensor: Tensor) -> int:
    """Weights of a tensor: integers in a checkpoint are packed, and how many they hold is not said."""
    return math.prod(tensor.shape) if tensor.type_name.startswith(("F", "BF")) else 0


def _stored_as(config: Mapping[str, Any], tensors: Sequence[Tensor]) -> str:
    said = config.get("quantization_config")
    if isinstance(said, dict) and isinstance(said.get("quant_method"), str):
        return " ".join(str(said[key]) for key in ("quant_method", "bits") if isinstance(said.get(key), str | int))
    shares = _shares(tensors)
    return shares[0].type_name if shares else "unknown"
