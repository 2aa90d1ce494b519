"""LoRA adapters as GGUF files: whether one fits its base model, as far as the headers tell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from edgeguard.errors import ModelError
from edgeguard.formats.gguf.header import Header

OTHER_ADAPTER = "give the adapter that was trained for this model"  # what to do where two do not fit


def check_adapter(header: Header, base: Header) -> list[str]:
    """Hold a LoRA adapter's header against that of its base model; the names of the tensors that it changes.

    Kind, architecture, alpha, and that each change has both halves; shapes are for who uses them. Raises ModelError.
    """
    path, metadata = header.path, header.metadata
    if metadata.get("general.type") != "adapter":
        kind = metadata.get("general.type", "model")
        raise ModelError(f"{path} is no adapter, its general.type is {kind!r}; give a LoRA adapter")
    if metadata.get("adapter.type") != "lora":
        raise ModelError(f"{path} is an adapter of type {metadata.get('adapter.type')!r}; only 'lora' can be used")
    if "adapter.alora.invocation_tokens" in metadata:
        raise ModelError(
            f"{path} is an activated LoRA (aLoRA), which changes the model from a token of the prompt on; "
            "give a plain LoRA adapter"
        )
    if header.architecture != base.architecture:
        raise ModelError(
            f"{path} is for {header.architecture} models, {base.path} is {base.architecture}; {OTHER_ADAPTER}"
        )
    alpha = metadata.get("adapter.lora.alpha", 0.0)
    if not isinstance(alpha, float) or not math.isfinite(alpha):
        raise ModelError(f"{path}: adapter.lora.alpha is {alpha!r}, a finite number is needed; convert it again")
    return pair_halves(path, [tensor.name for tensor in header.tensors])


def pair_halves(path: Path, names: Sequence[str]) -> list[str]:
    """The base's tensors that an adapter changes, each with its A and its B there. Raises ModelError."""
    found: dict[str, set[str]] = {}
    for full in names:
        name, _, part = full.rpartition(".")
        if part not in ("lora_a", "lora_b"):
            raise ModelError(
                f"{path}: tensor {full} is neither lora_a nor lora_b, and would be lost; give a plain LoRA adapter"
            )
        found.setdefault(name, set()).add(part)
    for name, parts in found.items():
        if len(parts) < 2:
            missing = ({"lora_a", "lora_b"} - parts).pop()
            raise ModelError(f"{path} has no {name}.{missing} to its other half; convert the adapter again")
    return list(found)
