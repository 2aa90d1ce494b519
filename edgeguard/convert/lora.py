"""What a LoRA adapter changes, in numbers: W' = W + factor · B A   (Hu et al., 2021, https://arxiv.org/abs/2106.09685)

The product is summed in float64, one rank after the other, and rounded once: its bits depend neither on the machine nor
on the number of threads, which BLAS does not promise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgeguard.errors import ModelError
from edgeguard.formats.gguf import OTHER_ADAPTER, Header

Floats = npt.NDArray[np.float32]

_ROWS = 16  # rows of a product at a time: their float64 sums stay in the processor's cache


@dataclass(frozen=True, eq=False)
class Change:
    """One matrix's change, factor · left @ right: left (rows, rank), right (rank, cols)."""

    left: Floats
    right: Floats
    factor: float


@dataclass(frozen=True, eq=False)
class Lora:
    """What a LoRA adapter changes, by the tensor's name in the base model."""

    path: Path
    changes: Mapping[str, Change]

    def delta(self, name: str) -> Floats:
        """What is to be added to a tensor: (rows, cols). KeyError for a tensor that does not change."""
        change = self.changes[name]
        left, right = change.left.astype(np.float64) * change.factor, change.right.astype(np.float64)
        delta = np.empty((len(left), right.shape[1]), dtype=np.float32)
        for at in range(0, len(left), _ROWS):
            rows = left[at : at + _ROWS]
            total = np.zeros((len(rows), right.shape[1]))
            for k in range(len(right)):
                total += rows[:, k, None] * right[k]
            delta[at : at + _ROWS] = total
        return delta


def check_change(path: Path, base: Header, name: str, *, left: Floats, right: Floats) -> None:
    """Hold the change left @ right of tensor `name` against the base. Raises ModelError where it cannot be merged."""
    tensor = next((tensor for tensor in base.tensors if tensor.name == name), None)
    if tensor is None:
        raise ModelError(f"{path} changes {name}, which {base.path} does not have; {OTHER_ADAPTER}")
    if len(tensor.shape) != 2:
        raise ModelError(f"{path} changes {name} of shape {tensor.shape[::-1]}; only matrices can be merged")
    rows, cols = tensor.shape[::-1]
    rank = left.shape[-1]
    if (left.shape, right.shape) != ((rows, rank), (rank, cols)) or rank < 1:
        raise ModelError(
            f"{path}: {name} is a product of {left.shape} and {right.shape}; "
            f"({rows}, rank) and (rank, {cols}) are needed for {base.path}; {OTHER_ADAPTER}"
        )
    if not (np.isfinite(left).all() and np.isfinite(right).all()):
        raise ModelError(f"{path}: {name} holds numbers that are not finite; train or download the adapter again")
    _check_meaning(path, base, name)


def _check_meaning(path: Path, base: Header, name: str) -> None:
    """Refuse a change whose sum with the base would not be what llama.cpp computes with the adapter beside it."""
    names = {tensor.name for tensor in base.tensors}
    if name == "token_embd.weight" and "output.weight" not in names:
        raise ModelError(
            f"{path} changes {name}, which {base.path} also uses as its output; "
            "whether the output changes with it is not said, so it cannot be merged"
        )
    if name.removesuffix("weight") + "scale" in names:  # multiplies the product with W, but not the adapter's
        raise ModelError(
            f"{path} changes {name}, which has a scale of its own in {base.path}; take an unquantized file of the model"
        )
