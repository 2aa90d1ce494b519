"""LoRA adapters from files, every name, shape and number of them held against the base model.

Two kinds are read: GGUF files as llama.cpp's convert_lora_to_gguf.py writes them, and folders as the PEFT library saves
them (peft.py).
"""

from __future__ import annotations

import math
from pathlib import Path

from edgeguard.convert.lora import Change, Lora, check_change
from edgeguard.convert.peft import read_peft
from edgeguard.convert.weights import Weights
from edgeguard.errors import ModelError
from edgeguard.formats.gguf import Header, check_adapter, read_header


def read_adapter(path: str | Path, base: Header, *, scale: float = 1.0) -> Lora:
    """The adapter in a GGUF file or a PEFT folder, every name, shape and number of it held against `base`.

    `scale` is how much of it to take, 1.0 as it was trained. Raises ModelError.
    """
    if not math.isfinite(scale):
        raise ValueError(f"scale is {scale}, a finite number is needed")
    path = Path(path)
    changes = read_peft(path, base, scale) if path.is_dir() else _read_gguf(path, base, scale)
    if not changes:
        raise ModelError(f"{path} changes no tensor; give a LoRA adapter that has been trained")
    return Lora(path, changes)


def _read_gguf(path: Path, base: Header, scale: float) -> dict[str, Change]:
    header = read_header(path)
    names = check_adapter(header, base)
    alpha = header.metadata.get("adapter.lora.alpha", 0.0)
    assert isinstance(alpha, float)  # check_adapter has refused all else
    weights = Weights(header)
    changes = {}
    for name in names:
        a, b = weights.float32(f"{name}.lora_a"), weights.float32(f"{name}.lora_b")
        if name == "token_embd.weight":  # llama.cpp looks a token up in A, so A stands transposed, (n_vocab, rank)
            left, right = a, b.T
        else:
            left, right = b, a
        check_change(path, base, name, left=left, right=right)
        # llama.cpp's rule: an alpha of zero means that the product is not scaled.
        changes[name] = Change(left, right, scale * alpha / right.shape[0] if alpha else scale)
    return changes
