"""Quantized blocks of 32 weights, from ggml's layout to that of ONNX Runtime's MatMulNBits, value for value.

    Q8_0  w = d · q               q in [-128, 127]   → (q + 128), zero point 128
    Q4_0  w = d · (q - 8)         q in [0, 15]       → q, zero point 8
    Q4_1  w = d · q + m           q in [0, 15]       → q, zero point -m / d, rounded to float32

The zero points 128 and 8 are MatMulNBits' own defaults, and left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Activations = Literal["int8", "float"]  # what blocks are multiplied with: rounded to 8 bits, or as it is

SIZE = 32  # weights a block
ACCURACY: Mapping[Activations, int] = {"float": 1, "int8": 4}  # MatMulNBits' accuracy_level
CARRIED = ("Q8_0", "Q4_0", "Q4_1")

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Blocks:
    """A quantized matrix of n rows and k columns: w = scale · (q - zero).

    packed  (n, k / 32, 32 · bits / 8) uint8; at 4 bits the first of two weights in the low half
    scale   (n, k / 32) float32
    zero    (n, k / 32) float32, or None for the middle of the range
    """

    bits: Literal[4, 8]
    packed: Bytes
    scale: Floats
    zero: Floats | None


def carry(raw: Bytes, type_name: str) -> Blocks:
    """The blocks of a tensor as the file holds them: raw (n, bytes a row)."""
    n = raw.shape[0]
    if type_name == "Q8_0":
        blocks = raw.reshape(n, -1, 34)
        return Blocks(8, blocks[..., 2:] ^ np.uint8(128), _half(blocks[..., :2]), None)  # q + 128, modulo 256
    if type_name == "Q4_0":
        blocks = raw.reshape(n, -1, 18)
        return Blocks(4, _paired(blocks[..., 2:]), _half(blocks[..., :2]), None)
    if type_name == "Q4_1":
        blocks = raw.reshape(n, -1, 20)
        scale, low = _half(blocks[..., :2]), _half(blocks[..., 2:4])
        packed, flat = _paired(blocks[..., 4:]), scale == 0
        packed[flat], scale[flat] = 0, -low[flat]  # one weight repeated: -m · (0 - 1)
        return Blocks(4, packed, scale, np.divide(-low, scale, out=np.zeros_like(low), where=scale != 0))
    raise ValueError(f"{type_name} blocks do not carry over; expected one of {', '.join(CARRIED)}")


def _half(two_bytes: Bytes) -> Floats:
    """(…, 2) bytes of a float16 → (…) float32."""
    values: Floats = np.ascontiguousarray(two_bytes).view("<f2")[..., 0].astype(np.float32)
    return values


def _paired(halves: Bytes) -> Bytes:
    """ggml keeps weights (i, i + 16) in a byte, MatMulNBits (2i, 2i + 1): (…, 16) → (…, 16)."""
    in_order = np.concatenate([halves & 15, halves >> 4], axis=-1)
    packed: Bytes = in_order[..., 0::2] | (in_order[..., 1::2] << 4)
    return packed
