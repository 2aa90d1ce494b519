"""What a Llama-like GGUF computes, in numbers: read once, refused where something in it is not known.

An unknown key or tensor may change what a model computes, so it is an error here and not passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeguard.convert.weights import Weights
from edgeguard.errors import ModelError
from edgeguard.formats.gguf import Header

# Pairs of a head's elements that are rotated together: neighbours (0, 1), or one of each half.
_NEIGHBOURS: Mapping[str, bool] = {"llama": True, "granite": True, "qwen2": False, "qwen3": False}
ARCHITECTURES = tuple(_NEIGHBOURS)

_KNOWN_KEYS = frozenset(
    {
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.layer_norm_rms_epsilon",
        "attention.scale",
        "attention.value_length",
        "block_count",
        "context_length",
        "embedding_length",
        "embedding_scale",
        "expert_count",
        "expert_used_count",
        "feed_forward_length",
        "logit_scale",
        "residual_scale",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scale_linear",
        "rope.scaling.factor",
        "rope.scaling.finetuned",
        "rope.scaling.original_context_length",
        "rope.scaling.type",
        "vocab_size",
        "attention.sliding_window",  # llama.cpp does not apply it to these architectures
        "tensor_data_layout",
    }
)


@dataclass(frozen=True, eq=False)
class Decoder:
    """A decoder's numbers. Scales are factors, 1.0 where the architecture has none.

    frequencies  (n_rotated / 2,) float64: radians a position, by pair
    neighbours   whether elements (0, 1), (2, 3), … rotate together; else (0, n/2), (1, n/2 + 1), …
    """

    n_layer: int
    width: int
    n_head: int
    n_head_kv: int
    head: int
    n_vocab: int
    n_ctx: int
    epsilon: float
    frequencies: npt.NDArray[np.float64]
    neighbours: bool
    embedding_scale: float
    residual_scale: float
    attention_scale: float
    logit_scale: float


def read_decoder(weights: Weights) -> Decoder:
    """The numbers of a checked model file. Raises ModelError for what the converter does not know."""
    header = weights.header
    arch = header.architecture
    if arch not in _NEIGHBOURS:
        raise ModelError(
            f"{header.path}: ONNX files can be made from {', '.join(ARCHITECTURES)} models, this one is {arch}; "
            "convert its Hugging Face checkpoint with optimum instead"
        )
    _refuse_unknown(header)
    numbers = _Numbers(header)
    width, n_head = numbers.whole("embedding_length"), numbers.whole("attention.head_count")
    head = numbers.whole("attention.key_length", width // n_head)
    if numbers.whole("attention.value_length", head) != head:
        raise ModelError(f"{header.path}: keys and values of different lengths cannot be converted")
    return Decoder(
        n_layer=numbers.whole("block_count"),
        width=width,
        n_head=n_head,
        n_head_kv=numbers.whole("attention.head_count_kv", n_head),
        head=head,
        n_vocab=weights.info("token_embd.weight").shape[1],
        n_ctx=numbers.whole("context_length"),
        epsilon=numbers.real("attention.layer_norm_rms_epsilon", 1e-5),
        frequencies=_frequencies(weights, numbers, head),
        neighbours=_NEIGHBOURS[arch],
        embedding_scale=numbers.real("embedding_scale", 0) or 1.0,
        residual_scale=numbers.real("residual_scale", 0) or 1.0,
        attention_scale=numbers.real("attention.scale", 0) or head**-0.5,
        logit_scale=1 / (numbers.real("logit_scale", 0) or 1.0),
    )


def _refuse_unknown(header: Header) -> None:
    arch, metadata = header.architecture, header.metadata
    prefix = f"{arch}."
    unknown = [key for key in metadata if key.startswith(prefix) and key.removeprefix(prefix) not in _KNOWN_KEYS]
    if unknown:
        raise ModelError(
            f"{header.path} says {unknown[0]}, which the converter to ONNX does not know and which may change what "
            "the model computes; use the GGUF file as it is, or convert the Hugging Face checkpoint"
        )
    if metadata.get(f"{arch}.expert_count", 0):
        raise ModelError(f"{header.path} is a mixture of experts, which cannot be converted to ONNX; use the GGUF file")
    scaling = metadata.get(f"{arch}.rope.scaling.type", "none")
    if scaling not in ("none", "linear"):
        raise ModelError(
            f"{header.path}: {arch}.rope.scaling.type is {scaling!r}; the converter to ONNX knows none and linear"
        )


@dataclass(frozen=True)
class _Numbers:
    """Metadata of the architecture, by the key's last part."""

    header: Header

    def real(self, key: str, default: float) -> float:
        value = self.header.metadata.get(f"{self.header.architecture}.{key}", default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ModelError(
                f"{self.header.path}: {self.header.architecture}.{key} is no single number; models whose layers differ "
                "cannot be converted to ONNX"
            )
        return float(value)

    def whole(self, key: str, default: int | None = None) -> int:
        if default is None and f"{self.header.architecture}.{key}" not in self.header.metadata:
            raise ModelError(f"{self.header.path} has no {self.header.architecture}.{key}; convert the model again")
        return int(self.real(key, default or 0))


def _frequencies(weights: Weights, numbers: _Numbers, head: int) -> npt.NDArray[np.float64]:
    """(n_rotated / 2,) radians a position. `rope_freqs` holds Llama 3.1's factors, by pair."""
    n_rotated = numbers.whole("rope.dimension_count", head)
    base = numbers.real("rope.freq_base", 10000.0)
    frequencies = base ** (-np.arange(0, n_rotated, 2, dtype=np.float64) / n_rotated)
    if "rope_freqs.weight" in weights:
        factors = weights.float32("rope_freqs.weight").astype(np.float64)
        if factors.shape != frequencies.shape or not (np.isfinite(factors).all() and (factors > 0).all()):
            raise ModelError(
                f"{weights.header.path}: rope_freqs.weight has shape {factors.shape}, {frequencies.shape} positive "
                "numbers are needed; convert the model again"
            )
        frequencies = frequencies / factors
    # scale_linear is the old name of the factor
    factor = numbers.real("rope.scaling.factor", numbers.real("rope.scale_linear", 0)) or 1.0
    scaled: npt.NDArray[np.float64] = frequencies / factor
    return scaled
