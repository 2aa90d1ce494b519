"""LoRA adapters, and a model with one merged into it, in float32.

W' = W + scale · (alpha / r) · B A     (Hu et al., 2021, https://arxiv.org/abs/2106.09685)

Two kinds of adapter are read: GGUF files as llama.cpp's convert_lora_to_gguf.py writes them, and folders as the
PEFT library saves them. The product is summed in float64, one rank after the other, and rounded once: its bits
depend neither on the machine nor on the number of threads, which BLAS does not promise.
"""

from __future__ import annotations

import importlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from struct import pack, unpack_from
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from edgeguard.convert.weights import Weights
from edgeguard.errors import ModelError, OutputError
from edgeguard.formats.gguf import OTHER_ADAPTER, Array, Header, TensorInfo, check_adapter, pair_halves, read_header

Floats = npt.NDArray[np.float32]

MAX_ADAPTER = 8 << 30  # bytes of a PEFT folder's weights, which are held in memory
MAX_ALPHA = 1e6
_ROWS = 16  # rows of a product at a time: their float64 sums stay in the processor's cache

_F32, _ALL_F32 = 0, 0  # ggml type, llama file type
_U32, _STRING, _ARRAY = 4, 8, 9  # GGUF value types
_NUMBER_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


@dataclass(frozen=True, eq=False)
class Change:
    """One matrix's change, factor · left @ right: left (rows, rank), right (rank, cols)."""

    left: Floats
    right: Floats
    factor: float


@dataclass(frozen=True, eq=False)
class Adapter:
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


def read_adapter(path: str | Path, base: Header, *, scale: float = 1.0) -> Adapter:
    """The adapter in a GGUF file or a PEFT folder, every name, shape and number of it held against `base`.

    `scale` is how much of it to take, 1.0 as it was trained. Raises ModelError.
    """
    if not math.isfinite(scale):
        raise ValueError(f"scale is {scale}, a finite number is needed")
    path = Path(path)
    changes = _read_peft(path, base, scale) if path.is_dir() else _read_gguf(path, base, scale)
    if not changes:
        raise ModelError(f"{path} changes no tensor; give a LoRA adapter that has been trained")
    return Adapter(path, changes)


def write_merged(weights: Weights, out: Path, *, metadata: Mapping[str, str]) -> None:
    """Write a GGUF of all of `weights` as F32, one tensor in memory at a time; the same bytes each time.

    The base's metadata is kept byte for byte, but for general.file_type; `metadata` joins it or replaces what it
    had, as strings. Raises ModelError for weights that cannot be read, OutputError; `out` is gone then.
    """
    if out.exists() and out.samefile(weights.header.path):
        raise ValueError(f"{out} is the model that is read")
    try:
        with out.open("wb") as file:
            _write(file, weights, metadata)
    except OSError as error:
        out.unlink(missing_ok=True)
        raise OutputError(f"{out} cannot be written: {error.strerror or error}") from error
    except BaseException:
        out.unlink(missing_ok=True)
        raise


# Adapters in a GGUF file


def _read_gguf(path: Path, base: Header, scale: float) -> dict[str, Change]:
    header = read_header(path)
    names = check_adapter(header, base)
    alpha = header.metadata.get("adapter.lora.alpha", 0.0)
    assert isinstance(alpha, float)  # check_adapter has refused all else
    weights, tensors = Weights(header), {tensor.name: tensor for tensor in base.tensors}
    changes = {}
    for name in names:
        a, b = weights.float32(f"{name}.lora_a"), weights.float32(f"{name}.lora_b")
        if name == "token_embd.weight":  # llama.cpp looks a token up in A, so A stands transposed, (n_vocab, rank)
            left, right = a, b.T
        else:
            left, right = b, a
        _check_shapes(path, base, tensors.get(name), name, left, right)
        # llama.cpp's rule: an alpha of zero means that the product is not scaled.
        changes[name] = Change(left, right, scale * alpha / right.shape[0] if alpha else scale)
    return changes


def _check_shapes(path: Path, base: Header, tensor: TensorInfo | None, name: str, left: Floats, right: Floats) -> None:
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


# Adapters in a PEFT folder

_NAME = re.compile(
    r"base_model\.model\.(?P<module>(?:model\.layers\.(?P<layer>\d{1,4})\.(?:self_attn|mlp)\.)?(?P<part>\w+))"
    r"\.lora_(?P<half>[AB])\.weight"
)
_PARTS = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}
_PEFT_BASES = ("llama", "qwen2", "qwen3")
# What changes more than factor · B A, or changes the base, in PEFT 0.21; each is off where its value is false.
_PEFT_EXTRAS = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "fan_in_fan_out",
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "alora_invocation_tokens",
    "megatron_config",
    "arrow_config",
    "kasa_config",
    "velora_config",
    "monteclora_config",
)
_CHANGES_BASE = re.compile(r"(pissa|olora|corda|loftq|lora_ga).*")  # init_lora_weights that subtract from the base


def _read_peft(path: Path, base: Header, scale: float) -> dict[str, Change]:
    if base.architecture not in _PEFT_BASES:
        raise ModelError(
            f"{path} is a PEFT folder, which can be merged into {', '.join(_PEFT_BASES)} models, not into "
            f"{base.architecture}; convert it with llama.cpp's convert_lora_to_gguf.py first"
        )
    config, arrays = _peft_config(path), _safetensors(path / "adapter_model.safetensors")
    tensors = {tensor.name: tensor for tensor in base.tensors}
    modules = _modules(path, arrays)
    changes = {}
    for name in pair_halves(path, [f"{name}.{half}" for name, half in modules]):
        module, a = modules[name, "lora_a"]
        _, b = modules[name, "lora_b"]
        _check_shapes(path, base, tensors.get(name), name, b, a)
        rank, alpha = len(a), _alpha(path, config, module)
        factor = scale * alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        changes[name] = Change(_as_in_gguf(b, name, base), a, factor)
    return changes


def _peft_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{path} has no adapter_config.json; give a GGUF adapter, or a folder that PEFT saved"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path / 'adapter_config.json'} cannot be read: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ModelError(f"{path / 'adapter_config.json'} is not of a LoRA adapter; give one with peft_type LORA")
    extra = next((key for key in _PEFT_EXTRAS if config.get(key)), None)
    if config.get("bias", "none") != "none":
        extra = "bias"
    if isinstance(start := config.get("init_lora_weights"), str) and _CHANGES_BASE.fullmatch(start.lower()):
        extra = "init_lora_weights"
    if extra is not None:
        raise ModelError(
            f"{path}: {extra} is {config[extra]!r}, which makes it more than a plain LoRA adapter; "
            "merge it with PEFT's merge_and_unload and convert the result to GGUF"
        )
    return config


def _alpha(path: Path, config: Mapping[str, Any], module: str) -> float:
    """A module's alpha; the rank needs no such care, the shapes tell it."""
    alpha, patterns = config.get("lora_alpha"), config.get("alpha_pattern") or {}
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        if not re.fullmatch(r"[\w.]+", pattern):  # a stranger's regular expression is not run
            raise ModelError(f"{path}: alpha_pattern {pattern!r} is not a module's name; write the names out")
        if f".{module}".endswith(f".{pattern}"):
            alpha = value
            break
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) <= MAX_ALPHA:
        raise ModelError(f"{path}: the alpha of {module} is {alpha!r}, a number up to {MAX_ALPHA:.0f} is needed")
    return float(alpha)


def _modules(path: Path, arrays: Mapping[str, Floats]) -> dict[tuple[str, str], tuple[str, Floats]]:
    """(name in the GGUF, "lora_a" or "lora_b") → the module's name in PEFT, the array."""
    found = {}
    for full, array in arrays.items():
        match = _NAME.fullmatch(full)
        name = None
        if match and match["layer"] and match["part"] in _PARTS:
            name = f"blk.{int(match['layer'])}.{_PARTS[match['part']]}.weight"
        elif match and not match["layer"] and match["part"] == "lm_head":
            name = "output.weight"
        if match is None or name is None:
            raise ModelError(
                f"{path}: {full!r} is no LoRA matrix of an attention or feed-forward layer; "
                "convert the adapter with llama.cpp's convert_lora_to_gguf.py first"
            )
        found[name, f"lora_{match['half'].lower()}"] = match["module"], array
    return found


def _as_in_gguf(b: Floats, name: str, base: Header) -> Floats:
    """B with its rows as convert_hf_to_gguf.py orders them: a llama's queries and keys rotate neighbours."""
    key = {"attn_q": "head_count", "attn_k": "head_count_kv"}.get(name.split(".")[-2])
    if base.architecture != "llama" or key is None:
        return b
    heads = base.metadata.get("llama.attention.head_count")
    n_head = base.metadata.get(f"llama.attention.{key}", heads)
    if not isinstance(n_head, int) or n_head < 1 or len(b) % (2 * n_head):
        raise ModelError(
            f"{base.path}: llama.attention.{key} is {n_head!r}, so the {len(b)} rows of {name} have no order; "
            "convert the adapter with llama.cpp's convert_lora_to_gguf.py first"
        )
    return b.reshape(n_head, 2, len(b) // n_head // 2, b.shape[1]).swapaxes(1, 2).reshape(b.shape)


def _safetensors(path: Path) -> dict[str, Floats]:
    try:
        library = importlib.import_module("safetensors")
    except ModuleNotFoundError as error:
        raise ModelError(
            "reading a PEFT adapter needs the safetensors package, which is not installed; "
            "pip install 'edgeguard[convert]'"
        ) from error
    try:
        if path.stat().st_size > MAX_ADAPTER:
            raise ModelError(f"{path} has {path.stat().st_size} bytes, at most {MAX_ADAPTER} make sense for an adapter")
        found = library.deserialize(path.read_bytes())
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist; save the adapter as safetensors") from None
    except (OSError, library.SafetensorError) as error:
        raise ModelError(f"{path} cannot be read: {error}; download it again") from error
    # The library gives them in another order each time.
    return {name: _array(path, name, entry) for name, entry in sorted(found, key=lambda item: str(item[0]))}


def _array(path: Path, name: str, entry: Mapping[str, Any]) -> Floats:
    kind, data, shape = entry["dtype"], entry["data"], entry["shape"]
    if kind == "BF16":  # the upper half of a float32; numpy has no such type
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    if kind not in ("F32", "F16"):
        raise ModelError(f"{path}: {name!r} is {kind}; F32, F16 or BF16 is needed")
    return np.frombuffer(data, "<f4" if kind == "F32" else "<f2").astype(np.float32).reshape(shape)


# Writing


def _write(file: BinaryIO, weights: Weights, metadata: Mapping[str, str]) -> None:
    header = weights.header
    new = {"general.file_type": pack("<II", _U32, _ALL_F32)}
    new |= {key: pack("<I", _STRING) + _string(value) for key, value in metadata.items()}
    entries = {key: new.pop(key, raw) for key, raw in _raw_metadata(header)} | new
    file.write(b"GGUF" + pack("<IQQ", 3, len(header.tensors), len(entries)))
    for key, raw in entries.items():
        file.write(_string(key) + raw)
    alignment = header.metadata.get("general.alignment", 32)
    assert isinstance(alignment, int)  # read_header has refused all else
    at = 0
    for tensor in header.tensors:
        shape = pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        file.write(_string(tensor.name) + shape + pack("<IQ", _F32, at))
        at += -(-4 * math.prod(tensor.shape) // alignment) * alignment
    _pad(file, alignment)
    for tensor in header.tensors:
        file.write(np.ascontiguousarray(weights.float32(tensor.name), dtype="<f4").data)
        _pad(file, alignment)


def _pad(file: BinaryIO, alignment: int) -> None:
    file.write(bytes(-file.tell() % alignment))


def _string(text: str) -> bytes:
    raw = text.encode()
    return pack("<Q", len(raw)) + raw


def _raw_metadata(header: Header) -> Iterator[tuple[str, bytes]]:
    """Each key and its value as the file has it, type first. `header` has had every length in there checked."""
    with header.path.open("rb") as file:
        file.seek(24)
        for key, value in header.metadata.items():
            file.seek(8 + len(key.encode()), 1)
            if isinstance(value, Array):
                begin, end = file.tell(), value.position + value.n_bytes
                file.seek(begin)
                yield key, file.read(end - begin)
                continue
            head = file.read(12)
            kind, length = unpack_from("<IQ", head) if head[0] == _STRING else (head[0], 0)
            n_bytes = 12 + length if kind == _STRING else 4 + _NUMBER_BYTES[kind]
            file.seek(-len(head), 1)
            yield key, file.read(n_bytes)
