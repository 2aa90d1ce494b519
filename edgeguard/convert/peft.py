"""LoRA adapters in a folder, as the PEFT library saves them: its names and orders in those of a GGUF."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeguard.convert.lora import Change, Floats, check_change
from edgeguard.errors import ModelError
from edgeguard.formats.bounded_json import find_object
from edgeguard.formats.gguf import Header, pair_halves
from edgeguard.formats.safetensors import read_floats

MAX_ADAPTER = 8 << 30  # bytes of a PEFT folder's weights, which are held in memory
MAX_ALPHA = 1e6

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


def read_peft(path: Path, base: Header, scale: float) -> dict[str, Change]:
    """The changes by the tensor's name in `base`, `scale` times as large. Raises ModelError."""
    if base.architecture not in _PEFT_BASES:
        raise ModelError(
            f"{path} is a PEFT folder, which can be merged into {', '.join(_PEFT_BASES)} models, not into "
            f"{base.architecture}; convert it with llama.cpp's convert_lora_to_gguf.py first"
        )
    config, modules = _config(path), _modules(path, _arrays(path / "adapter_model.safetensors"))
    changes = {}
    for name in pair_halves(path, [f"{name}.{half}" for name, half in modules]):
        module, a = modules[name, "lora_a"]
        _, b = modules[name, "lora_b"]
        check_change(path, base, name, left=b, right=a)
        rank, alpha = len(a), _alpha(path, config, module)
        factor = scale * alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        changes[name] = Change(_as_in_gguf(b, name, base), a, factor)
    return changes


def _config(path: Path) -> dict[str, Any]:
    source = path / "adapter_config.json"
    config = find_object(source, cure="save the adapter again")
    if config is None:
        raise ModelError(f"{path} has no adapter_config.json; give a GGUF adapter, or a folder that PEFT saved")
    if config.get("peft_type") != "LORA":
        raise ModelError(f"{source} is not of a LoRA adapter; give one with peft_type LORA")
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


def _arrays(path: Path) -> dict[str, Floats]:
    if not path.is_file():
        raise ModelError(f"{path} does not exist; save the adapter as safetensors")
    n_bytes = path.stat().st_size
    if n_bytes > MAX_ADAPTER:
        raise ModelError(f"{path} has {n_bytes} bytes, at most {MAX_ADAPTER} make sense for an adapter")
    return read_floats(path)


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
