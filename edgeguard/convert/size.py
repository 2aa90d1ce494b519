"""How large a conversion's result will be, and of which types, from the header alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from edgeguard.convert.blocks import CARRIED, SIZE
from edgeguard.convert.decoder import read_decoder
from edgeguard.convert.quantize import main_type
from edgeguard.convert.weights import Weights
from edgeguard.errors import ModelError
from edgeguard.formats.gguf.header import Header, TensorInfo
from edgeguard.formats.gguf.tables import TENSOR_TYPES
from edgeguard.formats.safetensors import read_entries, weight_files

_BLOCKS = {name: (per_block, n_bytes) for name, per_block, n_bytes in TENSOR_TYPES.values()}
# What MatMulNBits keeps of a block of SIZE weights: packed, a float32 scale, of Q4_1 a zero point too
_ONNX_BLOCKS = {"Q8_0": 36, "Q4_0": 20, "Q4_1": 24}
_FLOATS = {"float32": 4, "float16": 2}
# What llama.cpp gives rows that are no multiple of a large block
_SMALLER = {"Q2_K": "Q4_0", "Q3_K": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
_MORE_BITS = 1.08  # a mix such as q4_k_m, over its main type alone
_ENDS = ("token_embd.weight", "output.weight")
_REST = 8 << 20  # bytes for a tokenizer, a graph, a manifest


@dataclass(frozen=True)
class Size:
    """Bytes of the weights by type."""

    types: Mapping[str, int]

    @property
    def n_bytes(self) -> int:
        """Of all weights together."""
        return sum(self.types.values())

    @property
    def room(self) -> int:
        """Bytes that the disk should have: a mix may take some more than was foreseen."""
        return self.n_bytes * 11 // 10 + _REST

    def __str__(self) -> str:
        """`2.1 GB (1.9 GB float32, 0.2 GB int4)`."""
        largest = sorted(self.types.items(), key=lambda pair: -pair[1])
        parts = [f"{in_words(n)} {name}" for name, n in largest if n >= self.n_bytes / 100]
        return f"{in_words(self.n_bytes)} ({', '.join(parts)})"


def in_words(n_bytes: int) -> str:
    """`2.1 GB`, `145 MB`, `12 kB`."""
    if n_bytes >= 10**9:
        return f"{n_bytes / 1e9:.1f} GB"
    return f"{n_bytes / 1e6:.0f} MB" if n_bytes >= 10**6 else f"{max(1, round(n_bytes / 1e3))} kB"


def onnx_size(weights: Weights, precision: str) -> Size:
    """Of an ONNX model of a precision that `graph.write_graph` knows. Raises ModelError for another model."""
    floats = "float16" if precision == "fp16" else "float32"

    def kind(tensor: TensorInfo) -> str:
        if len(tensor.shape) < 2 or tensor.shape[0] % SIZE or precision in ("fp32", "fp16"):
            return floats
        if precision == "source":
            kept = tensor.type_name in CARRIED and not weights.changed(tensor.name)
            return tensor.type_name if kept else floats
        return "Q4_0" if precision == "int4" and tensor.name not in _ENDS else "Q8_0"

    size, d = _size(weights, kind, _ONNX_BLOCKS), read_decoder(weights)
    turns = _FLOATS[floats] * d.n_ctx * d.head * (2 if d.window else 1)  # cosines and sines of every place
    return Size({**size.types, floats: size.types.get(floats, 0) + turns})


def gguf_size(weights: Weights, to: str, mixed: Mapping[str, str] = MappingProxyType({})) -> Size:
    """About that of a GGUF file of llama.cpp's file type `to`, whose mixes are its own; `mixed`: tensor → its type."""
    plain = main_type(to)
    tied = "output.weight" not in weights

    def kind(tensor: TensorInfo) -> str:
        if len(tensor.shape) < 2:
            return "F32"
        if tensor.name in mixed:
            return mixed[tensor.name]
        wanted = plain
        if tensor.name == "output.weight" or (tied and tensor.name == "token_embd.weight"):
            wanted = plain if plain in ("F32", "F16", "BF16", "Q8_0") else "Q6_K"
        if tensor.shape[0] % _BLOCKS[wanted][0]:
            wanted = _SMALLER.get(wanted, "IQ4_NL")
        return "F16" if tensor.shape[0] % _BLOCKS[wanted][0] else wanted

    size = _size(weights, kind, {})
    if to.endswith(("_m", "_l")) or to in ("q4_k", "q5_k", "q3_k"):
        return Size({name: round(n * _MORE_BITS) if name == plain else n for name, n in size.types.items()})
    return size


def misfits(header: Header, to: str, mixed: Mapping[str, str] = MappingProxyType({})) -> str:
    """What llama.cpp will do with matrices whose rows do not divide into blocks of type `to`; "" where all do.

    `mixed` tensors have a type of their own. Known from the header: a mix such as q4_k_m may give some a larger type.
    """
    plain = main_type(to)
    matrices = [t for t in header.tensors if len(t.shape) > 1 and t.name not in mixed]
    found = [t for t in matrices if t.shape[0] % _BLOCKS[plain][0]]
    if not found:
        return ""
    instead = _SMALLER.get(plain, "IQ4_NL")
    instead = "F16" if any(t.shape[0] % _BLOCKS[instead][0] for t in found) else instead
    widths = ", ".join(str(width) for width in sorted({t.shape[0] for t in found}))
    share = sum(math.prod(t.shape) for t in found) / max(1, sum(math.prod(t.shape) for t in matrices))
    return (
        f"{len(found)} of {len(matrices)} matrices, {100 * share:.0f} % of the weights, become {instead} or larger: "
        f"their rows of {widths} weights do not divide into blocks of {_BLOCKS[plain][0]}"
    )


def float_size(weights: Weights) -> Size:
    """Of the merged model in float32, which is written first where an adapter is merged."""
    return _size(weights, lambda _: "F32", {})


def checkpoint_size(folder: Path, precision: str) -> Size:
    """Of an ONNX model of a Hugging Face checkpoint; of no type where its weights cannot be read."""
    try:
        shapes = [entry.shape for file in weight_files(folder) for entry in read_entries(file)]
    except ModelError:
        shapes = []
    if not shapes:
        return Size({})
    matrices = sum(math.prod(shape) for shape in shapes if len(shape) > 1)
    name, bits = {"fp16": ("float16", 16), "int8": ("Q8_0", 9), "int4": ("Q4_0", 5)}.get(precision, ("float32", 32))
    rest = sum(math.prod(shape) for shape in shapes) - matrices
    return Size({name: matrices * bits // 8 + rest * 4})


def _size(weights: Weights, kind: Callable[[TensorInfo], str], own: Mapping[str, int]) -> Size:
    """`own`: bytes that a block of SIZE weights has where they are not ggml's."""
    types: dict[str, int] = {}
    for tensor in weights.header.tensors:
        name, n = kind(tensor), math.prod(tensor.shape)
        if name in _FLOATS:
            n_bytes = n * _FLOATS[name]
        elif name in own:
            n_bytes = n // SIZE * own[name]
        else:
            per_block, block_bytes = _BLOCKS[name]
            n_bytes = n // per_block * block_bytes
        types[name] = types.get(name, 0) + n_bytes
    return Size(types)
