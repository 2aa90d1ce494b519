"""Whether a folder is a checkpoint that can be exported: what its JSON files say, before torch starts."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgeguard.errors import ModelError, printable
from edgeguard.formats.bounded_json import find_object

# optimum's graphs of these have position_ids and full attention; a test exports one of each.
MODEL_TYPES = frozenset(
    {"arcee", "cohere", "glm", "granite", "helium", "llama", "mistral"}
    | {"olmo", "olmo2", "phi3", "qwen2", "qwen3", "smollm3", "stablelm"}
)

_SLOW_TOKENIZERS = ("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
_AGAIN = "download the checkpoint again"


def check_checkpoint(folder: Path) -> None:
    """Whether the folder is one that `export` takes, as far as its JSON files say. Raises ModelError."""
    config = find_object(folder / "config.json", cure=_AGAIN)
    if config is None:
        if (folder / "adapter_config.json").is_file():
            raise ModelError(f"{folder} is a LoRA adapter; give its base model's checkpoint, and the adapter as `lora`")
        raise ModelError(f"{folder} has no config.json; give the folder of a Hugging Face checkpoint")
    tokenizer = find_object(folder / "tokenizer_config.json", cure=_AGAIN) or {}
    for said, name in ((config, "config.json"), (tokenizer, "tokenizer_config.json")):
        if said.get("auto_map"):
            raise ModelError(
                f"{folder / name} asks for Python code of its own (auto_map), which edgeguard does not run; "
                "take a checkpoint of a standard architecture"
            )
    if config.get("quantization_config"):
        raise ModelError(f"{folder} is quantized already (quantization_config); take the checkpoint it was made from")
    _check_architecture(folder, config)
    _check_weights(folder)
    if not any((folder / name).is_file() for name in ("tokenizer.json", *_SLOW_TOKENIZERS)):
        raise ModelError(f"{folder} has no tokenizer.json; download the checkpoint's tokenizer too")


def _check_architecture(folder: Path, config: Mapping[str, Any]) -> None:
    kind, classes = config.get("model_type"), config.get("architectures")
    causal = isinstance(classes, list) and any(str(name).endswith("ForCausalLM") for name in classes)
    if not isinstance(kind, str) or kind not in MODEL_TYPES or not causal:
        raise ModelError(
            f"{folder} is a {printable(str(kind))} model ({printable(str(classes))}); a ...ForCausalLM of one of "
            f"{', '.join(sorted(MODEL_TYPES))} is needed"
        )
    if window := _window(config):
        raise ModelError(f"{folder} attends within {window}; only models of full attention can be exported")
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    rope_type = rope.get("rope_type", rope.get("type")) if isinstance(rope, dict) else rope
    if rope_type in ("dynamic", "longrope", "su"):
        raise ModelError(
            f"{folder} scales its positions by a prompt's length (rope_scaling {rope_type!r}), which a graph cannot; "
            "take a model whose scaling is fixed"
        )


def _window(config: Mapping[str, Any]) -> str:
    """What limits attention to near tokens; "" where nothing does."""
    layers, window, n_ctx = (config.get(k) for k in ("layer_types", "sliding_window", "max_position_embeddings"))
    if isinstance(layers, list):
        return next((str(kind) for kind in layers if kind != "full_attention"), "")
    unused = window is None or config.get("use_sliding_window") is False
    if unused or (isinstance(window, int) and isinstance(n_ctx, int) and window >= n_ctx):
        return ""
    return f"a window of {window} tokens"


def _check_weights(folder: Path) -> None:
    if (folder / "model.safetensors").is_file():
        return
    index = find_object(folder / "model.safetensors.index.json", cure=_AGAIN)
    if index is not None:
        shards = index.get("weight_map")
        names = {str(name) for name in shards.values()} if isinstance(shards, dict) else set()
        missing = sorted(name for name in names if Path(name).name != name or not (folder / name).is_file())
        if missing or not names:
            raise ModelError(
                f"{folder} lacks {printable(missing[0]) if missing else 'weights'}; download all its files"
            )
        return
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
        raise ModelError(
            f"{folder} has its weights as pickles only (.bin), which can run code when they are read; "
            "take or make a model.safetensors"
        )
    raise ModelError(f"{folder} has no model.safetensors; download the checkpoint's weights too")


def check_adapter(lora: Path) -> None:
    """Whether the folder is a LoRA adapter of PEFT's, as far as its configuration says. Raises ModelError."""
    config = find_object(lora / "adapter_config.json", cure="save the adapter again")
    if config is None:
        raise ModelError(f"{lora} has no adapter_config.json; give the folder of a PEFT LoRA adapter")
    if config.get("peft_type") != "LORA":
        raise ModelError(f"{lora} is a {printable(str(config.get('peft_type')))} adapter; a LORA adapter is needed")
    if not (lora / "adapter_model.safetensors").is_file():
        raise ModelError(
            f"{lora} has no adapter_model.safetensors; pickles (.bin) are not read, save it as safetensors"
        )


def check_packages(*, with_peft: bool) -> None:
    """Whether the packages are installed that export a checkpoint. Raises ModelError."""
    names = ["onnx", "onnxruntime", "torch", "transformers", *(["peft"] if with_peft else [])]
    missing = [name for name in names if find_spec(name) is None]
    try:
        metadata.version("optimum-onnx")
    except metadata.PackageNotFoundError:
        missing.insert(0, "optimum-onnx")
    if missing:
        raise ModelError(
            "exporting a checkpoint needs optimum-onnx and torch, which are not installed "
            f"(missing: {', '.join(missing)}); pip install 'edgeguard[optimum]'"
        )
