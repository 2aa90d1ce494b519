"""What a Llama-like GGUF computes, in numbers: read once, refused where something in it is not known.

An unknown key or tensor may change what a model computes, so it is an error here and not passed over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeguard.convert.turns import powers
from edgeguard.convert.weights import Weights
from edgeguard.errors import ModelError
from edgeguard.formats.gguf import Header

_SCALES = frozenset({"attention.scale", "embedding_scale", "logit_scale", "residual_scale"})
_WINDOW = frozenset(
    {
        "attention.sliding_window_pattern",
        "final_logit_softcapping",
        "rope.freq_base_swa",
    }
)


@dataclass(frozen=True)
class _Architecture:
    """What llama.cpp knows by the architecture's name alone.

    keys          metadata that it has beside those all have
    neighbours    pairs of a head's elements that rotate together: neighbours (0, 1), or one of each half
    rope_factors  takes Llama 3.1's factors of the frequencies
    head_norms    each head of a query and a key is normed before it is rotated
    gemma         embeddings scaled by the root of their length, GeGLU, norms behind attention and feed-forward layer
    tied          the output layer is always the embedding
    window        tokens a token sees in most layers, where the file does not say; 0: all
    pattern       of how many layers the last one sees all tokens, where the file does not say; 0: it has no windows
    wide          number of layers of the one model that scales attention by its width and not by its heads' length
    caps          caps of attention's and the output's logits, where the file does not say; 0: none
    """

    keys: frozenset[str] = _SCALES
    neighbours: bool = False
    rope_factors: bool = False
    head_norms: bool = False
    gemma: bool = False
    tied: bool = False
    window: int = 0
    pattern: int = 0
    wide: int = 0
    caps: tuple[float, float] = (0.0, 0.0)


_KNOWN: Mapping[str, _Architecture] = {
    "llama": _Architecture(neighbours=True, rope_factors=True),
    "granite": _Architecture(neighbours=True, rope_factors=True),
    "qwen2": _Architecture(),
    "qwen3": _Architecture(head_norms=True),
    "gemma2": _Architecture(
        keys=_WINDOW | {"attn_logit_softcapping"},
        gemma=True,
        tied=True,
        window=4096,
        pattern=2,
        wide=46,
        caps=(50.0, 30.0),
    ),
    "gemma3": _Architecture(keys=_WINDOW, head_norms=True, gemma=True, pattern=6, wide=62),
}
ARCHITECTURES = tuple(_KNOWN)

_KNOWN_KEYS = frozenset(
    {
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.layer_norm_rms_epsilon",
        "attention.value_length",
        "block_count",
        "context_length",
        "embedding_length",
        "expert_count",
        "expert_used_count",
        "feed_forward_length",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scale_linear",
        "rope.scaling.factor",
        "rope.scaling.finetuned",
        "rope.scaling.original_context_length",
        "rope.scaling.type",
        "vocab_size",
        "attention.sliding_window",  # llama.cpp applies it to those alone that have a pattern of it
        "tensor_data_layout",
    }
)


@dataclass(frozen=True, eq=False)
class Window:
    """The layers in which a token sees only the tokens before it, at most `size` with itself.

    layers       for each layer whether it is one of them
    frequencies  (n_rotated / 2,) float64 of those layers
    """

    size: int
    layers: tuple[bool, ...]
    frequencies: npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Decoder:
    """A decoder's numbers. Scales are factors, 1.0 where the architecture has none; caps are 0.0 there.

    frequencies   (n_rotated / 2,) float64: radians a position, by pair
    neighbours    whether elements (0, 1), (2, 3), … rotate together; else (0, n/2), (1, n/2 + 1), …
    rope_factors  whether the tensor of Llama 3.1's factors is among the frequencies
    head_norms    each head of a query and a key is normed
    norms_behind  what a layer adds is normed before it is added
    gelu          the gate is tanh's GELU, not SiLU
    tied          the output layer is always the embedding
    *_cap         c · tanh(x / c) of attention's logits before the mask, and of the output's
    window        None where all layers see all tokens
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
    rope_factors: bool
    head_norms: bool
    norms_behind: bool
    gelu: bool
    tied: bool
    embedding_scale: float
    residual_scale: float
    attention_scale: float
    logit_scale: float
    attention_cap: float
    logit_cap: float
    window: Window | None


def read_decoder(weights: Weights) -> Decoder:
    """The numbers of a checked model file. Raises ModelError for what the converter does not know."""
    header = weights.header
    if header.architecture not in _KNOWN:
        raise ModelError(
            f"{header.path}: ONNX files can be made from {', '.join(ARCHITECTURES)} models, this one is "
            f"{header.architecture}; convert its Hugging Face checkpoint with optimum instead"
        )
    arch = _KNOWN[header.architecture]
    _refuse_unknown(header, arch)
    numbers = _Numbers(header)
    width, n_head, n_layer = (numbers.whole(key) for key in ("embedding_length", "attention.head_count", "block_count"))
    head = numbers.whole("attention.key_length", width // n_head)
    if numbers.whole("attention.value_length", head) != head:
        raise ModelError(f"{header.path}: keys and values of different lengths cannot be converted")
    return Decoder(
        n_layer=n_layer,
        width=width,
        n_head=n_head,
        n_head_kv=numbers.whole("attention.head_count_kv", n_head),
        head=head,
        n_vocab=weights.info("token_embd.weight").shape[1],
        n_ctx=numbers.whole("context_length"),
        epsilon=numbers.real("attention.layer_norm_rms_epsilon", 1e-5),
        frequencies=_frequencies(weights, numbers, head, arch),
        neighbours=arch.neighbours,
        rope_factors=arch.rope_factors,
        head_norms=arch.head_norms,
        norms_behind=arch.gemma,
        gelu=arch.gemma,
        tied=arch.tied,
        embedding_scale=width**0.5 if arch.gemma else numbers.real("embedding_scale", 0) or 1.0,
        residual_scale=numbers.real("residual_scale", 0) or 1.0,
        attention_scale=numbers.real("attention.scale", 0)
        or (width // n_head if n_layer == arch.wide else head) ** -0.5,
        logit_scale=1 / (numbers.real("logit_scale", 0) or 1.0),
        attention_cap=_cap(numbers, "attn_logit_softcapping", arch.caps[0]),
        logit_cap=_cap(numbers, "final_logit_softcapping", arch.caps[1]),
        window=_window(numbers, n_layer, head, arch),
    )


def _refuse_unknown(header: Header, known: _Architecture) -> None:
    arch, metadata = header.architecture, header.metadata
    prefix, keys = f"{arch}.", _KNOWN_KEYS | known.keys
    unknown = [key for key in metadata if key.startswith(prefix) and key.removeprefix(prefix) not in keys]
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


def _frequencies(weights: Weights, numbers: _Numbers, head: int, arch: _Architecture) -> npt.NDArray[np.float64]:
    """(n_rotated / 2,) radians a position, in layers that see all. `rope_freqs` holds Llama 3.1's factors, by pair."""
    frequencies = _powers(numbers, head, numbers.real("rope.freq_base", 10000.0))
    if arch.rope_factors and "rope_freqs.weight" in weights:
        factors = weights.float32("rope_freqs.weight").astype(np.float64)
        if factors.shape != frequencies.shape or not (np.isfinite(factors).all() and (factors > 0).all()):
            raise ModelError(
                f"{weights.header.path}: rope_freqs.weight has shape {factors.shape}, {frequencies.shape} positive "
                "numbers are needed; convert the model again"
            )
        frequencies = frequencies / factors
    # llama.cpp takes a factor without a type for linear scaling, and none for none.
    unscaled = numbers.header.metadata.get(f"{numbers.header.architecture}.rope.scaling.type") == "none"
    return frequencies if unscaled else frequencies / _factor(numbers)


def _powers(numbers: _Numbers, head: int, base: float) -> npt.NDArray[np.float64]:
    n_rotated = numbers.whole("rope.dimension_count", head)
    if not (math.isfinite(base) and base > 0):
        raise ModelError(
            f"{numbers.header.path}: {numbers.header.architecture}.rope.freq_base is {base:g}, a positive number is "
            "needed; convert the model again"
        )
    return powers(base, n_rotated)


def _factor(numbers: _Numbers) -> float:
    """By which positions are stretched; `scale_linear` is the key's old name."""
    return numbers.real("rope.scaling.factor", numbers.real("rope.scale_linear", 0)) or 1.0


def _window(numbers: _Numbers, n_layer: int, head: int, arch: _Architecture) -> Window | None:
    """As llama.cpp's `load_swa_pattern` reads it. Raises ModelError for windows that hold no token."""
    if not arch.pattern:
        return None
    size = numbers.whole("attention.sliding_window", arch.window)
    every = numbers.whole("attention.sliding_window_pattern", arch.pattern)
    if every < 0 or size < (1 if arch.window else 0):
        raise ModelError(
            f"{numbers.header.path}: a sliding window of {size} tokens in a pattern of {every} layers is none; "
            "convert the model again"
        )
    layers = tuple(every == 0 or i % every < every - 1 for i in range(n_layer))
    if not size:
        return None
    if arch.window:  # Gemma 2: its layers differ by the window alone; llama.cpp stretches these for any scaling type
        base, factor = numbers.real("rope.freq_base", 10000.0), _factor(numbers)
    else:
        base, factor = 10000.0, 1.0
    return Window(size, layers, _powers(numbers, head, numbers.real("rope.freq_base_swa", base)) / factor)


def _cap(numbers: _Numbers, key: str, default: float) -> float:
    """A cap of logits. Raises ModelError for one that is negative, or 0 where llama.cpp divides by it."""
    cap = numbers.real(key, default)
    if cap < 0 or (cap == 0 and default):
        raise ModelError(
            f"{numbers.header.path}: {numbers.header.architecture}.{key} is {cap:g}, logits cannot be held within "
            "that; convert the model again"
        )
    return cap
