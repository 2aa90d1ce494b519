"""Tiny random Hugging Face checkpoints, adapters for them, and onnxruntime-genai's graphs of them.

Deterministic by seed. The models are untrained; their logits have a standard deviation near `logit_std`.

What onnxruntime-genai 0.18.0 builds of one for the CPU, opset 22, with V tokens and 2 heads of keys:

    Inputs   input_ids                      int64 (batch_size, sequence_length)
             attention_mask                 int64 (batch_size, total_sequence_length)
             past_key_values.{i}.key|value  float32 (batch_size, 2, past_sequence_length, "kv_cache_dim")
    Outputs  logits                         float32 (batch_size, sequence_length, V)
             present.{i}.key|value          float32 (batch_size, 2, total_sequence_length, "kv_cache_dim")

    prune_lm_head=true     logits (batch_size, 1, V), of the last column: of padding where a row is padded
    exclude_lm_head=true   hidden_states float32 (batch_size, sequence_length, width) instead of logits
    int4                   the same ports; MatMulNBits in the place of MatMul

There are no position_ids. The size of a head is a name in the graph; genai_config.json has it as
model.decoder.head_size. It must be a multiple of 16 for GroupQueryAttention to run (n_embd=64 for four heads).
Several rows go only without a past, padded on the right. All keys come before all values among the ports.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tiny_gguf import CHATML, WORDS, _bpe

FAMILIES = ("llama", "qwen2", "qwen3", "mistral")
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

# The builder imports two model classes of transformers 5 by name; optimum-onnx wants transformers 4. No model
# written here is of these classes, so a name is enough.
_BUILDER = """
import runpy, transformers
for name in ("Qwen3_5ForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration"):
    if not hasattr(transformers, name):
        setattr(transformers, name, type(name, (), {}))
runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__", alter_sys=True)
"""


def write_tiny_checkpoint(
    path: str | Path,
    *,
    family: str = "llama",
    seed: int = 0,
    n_layer: int = 2,
    n_embd: int = 32,
    n_head: int = 4,
    n_head_kv: int = 2,
    n_ff: int = 64,
    n_ctx: int = 512,
    tied: bool = False,
    logit_std: float = 2.0,
    dtype: str = "float32",
    merge_words: Sequence[str] = (*WORDS, "S10"),
    chat_template: str | None = CHATML,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """config.json, model.safetensors, and a byte-level tokenizer with ChatML. Returns `path`.

    family   any of transformers' model types that takes these sizes; FAMILIES are the usual ones
    tied     the output layer is the embedding
    dtype    of the stored weights: "float32", "float16", "bfloat16"
    config   further keys of the configuration, which may replace others
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    n_vocab = _write_tokenizer(path, merge_words, chat_template)
    said = {
        "hidden_size": n_embd,
        "intermediate_size": n_ff,
        "num_hidden_layers": n_layer,
        "num_attention_heads": n_head,
        "num_key_value_heads": n_head_kv,
        "head_dim": n_embd // n_head,
        "max_position_embeddings": n_ctx,
        "vocab_size": n_vocab,
        "tie_word_embeddings": tied,
        "bos_token_id": None,
        "eos_token_id": CONTROL.index("<|im_end|>"),
        "pad_token_id": CONTROL.index("<|endoftext|>"),
        **({"sliding_window": None} if family == "mistral" else {}),
        **(config or {}),
    }
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **said))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(_scaled(name, noise, logit_std, tied))
    model.to(getattr(torch, dtype)).save_pretrained(path, safe_serialization=True)
    return path


def write_tiny_lora(path: str | Path, checkpoint: Path, *, seed: int = 1, rank: int = 4) -> Path:
    """A PEFT adapter that changes attention and the feed-forward layer noticeably. Returns `path`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    layers = ["q_proj", "v_proj", "o_proj", "down_proj"]
    model = get_peft_model(model, LoraConfig(r=rank, target_modules=layers, task_type="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) / weight.shape[-1] ** 0.5)
    model.save_pretrained(path)
    return Path(path)


def build_genai(folder: Path, out: Path, *, precision: Literal["fp32", "int4"] = "fp32", **options: str) -> Path:
    """What onnxruntime-genai's model builder makes of a checkpoint for the CPU. Returns `out`.

    options   the builder's extra options, as in build_genai(f, o, prune_lm_head="true")
    """
    extra = [f"{key}={value}" for key, value in {"hf_token": "false", **options}.items()]
    with tempfile.TemporaryDirectory() as place:
        shutil.copytree(folder, place, dirs_exist_ok=True)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if config.get("rope_scaling") is None:  # transformers 5 writes what 4 leaves out
            config["rope_scaling"] = {"rope_type": "default", "rope_theta": config["rope_theta"]}
        (Path(place) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        command = [sys.executable, "-c", _BUILDER, "-i", place, "-o", str(out), "-p", precision, "-e", "cpu"]
        command += ["-c", str(Path(place) / "cache"), "--extra_options", *extra]
        offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
        ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=offline)
    if ran.returncode:
        raise RuntimeError(f"onnxruntime-genai's builder failed:\n{ran.stdout[-2000:]}\n{ran.stderr[-4000:]}")
    return out


def _write_tokenizer(path: Path, words: Sequence[str], chat_template: str | None) -> int:
    """tokenizer.json and its configuration; returns how many tokens there are."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    tokens, _, _, merges = _bpe(words, (), CONTROL)
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=pairs))
    pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in CONTROL])
    tokenizer.save(str(path / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {
            str(i): {
                "content": t,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for i, t in enumerate(CONTROL)
        },
        **({} if chat_template is None else {"chat_template": chat_template}),
    }
    (path / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return len(tokens)


def _scaled(name: str, noise: Any, logit_std: float, tied: bool) -> Any:
    """Random numbers at the size at which a layer writes about as much as it reads."""
    n_in = noise.shape[-1]
    if "norm" in name:
        return 1 + 0.1 * noise
    if name.endswith("bias"):
        return 0.3 * noise
    if "embed_tokens" in name:
        return noise * (logit_std / n_in**0.5 if tied else 1)
    size = {"lm_head": logit_std, "q_proj": 1.5, "k_proj": 1.5, "v_proj": 2.0, "down_proj": 2.0}
    return noise * next((v for k, v in size.items() if k in name), 1.0) / n_in**0.5
