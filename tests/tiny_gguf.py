"""Tiny random GGUF models that llama.cpp loads, and ways to damage them. Deterministic by seed.

The models are untrained. Their output weights are scaled so that logits have a standard deviation near
`logit_std`: probabilities are far from uniform, and depend on the whole prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CONTROL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
SPM_CONTROL = ("<start_of_turn>", "<end_of_turn>")
WORDS = ("safe", "unsafe", " safe", " unsafe", "\n\n", "yes", "no", " the", "S1", "S2")
PIECES = ("▁safe", "▁unsafe", "safe", "unsafe", "▁", "▁the", "S", "un", "yes", "no", "\n")

_NORMAL, _UNKNOWN, _CONTROL, _USER, _BYTE = 1, 2, 3, 4, 6  # tokenizer.ggml.token_type
_TYPES = {"F32": (0, 0), "F16": (1, 1), "Q4_0": (2, 2), "Q4_1": (3, 3), "Q8_0": (8, 7)}  # ggml type, general.file_type

Vocab = Literal["bpe", "spm"]


def write_tiny_llama(
    path: str | Path,
    *,
    seed: int = 0,
    vocab: Vocab = "bpe",
    pre: str = "smollm",
    ftype: str = "F32",
    n_layer: int = 2,
    n_embd: int = 32,
    n_head: int = 4,
    n_head_kv: int = 2,
    head: int | None = None,
    n_ff: int = 64,
    n_ctx: int = 2048,
    chat_template: str | None = CHATML,
    merge_words: Sequence[str] = WORDS,
    extra_pieces: Sequence[str] = (),
    control: Sequence[str] | None = None,
    user: Sequence[str] = (),
    add_bos: bool = False,
    name: str = "Tiny Guard",
    logit_std: float = 3.0,
    bias: Mapping[str, float] | None = None,
    arch: str | None = None,
    tied: bool = False,
    rope_factors: Sequence[float] = (),
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """A llama of a few thousand weights. Returns `path`.

    vocab         "bpe" (GPT-2 bytes; `merge_words` become whole tokens) or "spm" (bytes, pieces, scores)
    pre           BPE pre-tokenizer: "smollm" splits digits, "llama-bpe" takes them in threes
    extra_pieces  further whole tokens, written as text for "bpe", with ▁ for spaces for "spm"
    control       names of control tokens, None for the usual ones
    user          user-defined tokens of an "spm" vocabulary, as a converter writes them: with spaces
    head          length of a head where it is not n_embd / n_head
    logit_std     standard deviation of logits, nats
    bias          nats to add to tokens' logits, by the token's text: {"safe": 4.0}. The model is a qwen2 then,
                  a llama with a bias on its output
    arch          "llama"; "qwen2" with biases, "qwen3" with norms of each head, "granite" with scales; "gemma2" (every
                  second layer) and "gemma3" (five layers of six) with a sliding window of 16 tokens, GeGLU and norms
    tied          the output layer is the embedding
    rope_factors  of Llama 3.1, one for each pair of a head's elements
    metadata      keys that replace or join the header's, u32 for ints; None leaves a key out
    """
    path = Path(path)
    tokens, types, scores, merges = (
        _bpe(merge_words, extra_pieces, CONTROL if control is None else control)
        if vocab == "bpe"
        else _spm(extra_pieces, SPM_CONTROL if control is None else control, user)
    )
    n_rot = head or n_embd // n_head
    keys: dict[str, Any] = {
        "general.type": "model",
        "general.name": name,
        "general.file_type": _TYPES[ftype][1],
        "general.quantization_version": 2,
        "llama.block_count": n_layer,
        "llama.context_length": n_ctx,
        "llama.embedding_length": n_embd,
        "llama.feed_forward_length": n_ff,
        "llama.attention.head_count": n_head,
        "llama.attention.head_count_kv": n_head_kv,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": n_rot,
        "llama.vocab_size": len(tokens),
        "tokenizer.ggml.model": "gpt2" if vocab == "bpe" else "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.add_bos_token": add_bos,
        "tokenizer.ggml.add_space_prefix": vocab == "spm",
        **_special(vocab, tokens),
    }
    if vocab == "bpe":
        keys |= {"tokenizer.ggml.pre": pre, "tokenizer.ggml.merges": merges}
    else:
        keys |= {"tokenizer.ggml.scores": scores}
    if chat_template is not None:
        keys["tokenizer.chat_template"] = chat_template
    if head is not None:
        keys |= {"llama.attention.key_length": head, "llama.attention.value_length": head}
    keys |= metadata or {}
    shape = (n_layer, n_embd, n_rot * n_head, n_rot * n_head_kv, n_ff)
    weights = _weights(np.random.default_rng(seed), shape, len(tokens), logit_std)
    if bias is not None:
        by_id = np.zeros(len(tokens), dtype=np.float32)
        for text, nats in bias.items():
            by_id[tokens.index(text if text in tokens else _to_gpt2(text))] += nats
        weights["output.bias"] = by_id
    weights |= _more_weights(np.random.default_rng(seed + 1), arch, shape, n_rot)
    arch = arch or ("llama" if bias is None else "qwen2")
    if tied:
        weights["token_embd.weight"] = weights.pop("output.weight")
    if rope_factors:
        weights["rope_freqs.weight"] = np.array(rope_factors, dtype=np.float32)
    keys |= {f"llama.{key}": value for key, value in _MORE_KEYS.get(arch, {}).items() if f"llama.{key}" not in keys}
    keys = {key.replace("llama.", f"{arch}.", 1) if key.startswith("llama.") else key: v for key, v in keys.items()}
    return write(path, arch, keys, weights, ftype=ftype)


def write_tiny_recurrent(path: str | Path, *, arch: str = "mamba") -> Path:
    """A header that says it is a state-space model; its tensors do not make a whole model."""
    ssm = {"ssm.conv_kernel": 4, "ssm.inner_size": 64, "ssm.state_size": 16, "ssm.time_step_rank": 4}
    return _write_header(path, arch, {f"{arch}.{key}": value for key, value in ssm.items()})


def write_tiny_swa(path: str | Path, *, arch: str = "gemma3", window: int = 512) -> Path:
    """A header that says it attends within a window; its tensors do not make a whole model."""
    head = {"attention.head_count": 4, "attention.head_count_kv": 2, "attention.sliding_window": window}
    return _write_header(path, arch, {f"{arch}.{key}": value for key, value in head.items()})


def write(
    path: str | Path,
    arch: str,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    *,
    ftype: str = "F32",
) -> Path:
    """A GGUF file of these keys and tensors; matrices are stored as `ftype`, vectors as F32.

    ints become u32, floats f32, lists of ints i32 arrays; a key whose value is None is left out.
    """
    writer = gguf.GGUFWriter(path, arch)
    for key, value in metadata.items():
        _add(writer, key, value)
    for name, array in tensors.items():
        if array.ndim < 2 or ftype == "F32":
            writer.add_tensor(name, array)
            continue
        kind = gguf.GGMLQuantizationType(_TYPES[ftype][0])
        writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)


# Damage


def truncated(path: Path, out: Path, n_bytes: int) -> Path:
    """The first `n_bytes` of a file; negative counts from its end."""
    out.write_bytes(path.read_bytes()[:n_bytes])
    return out


def patched(path: Path, out: Path, at: int, new: bytes) -> Path:
    """A file with `new` in the place of as many bytes at `at`."""
    data = bytearray(path.read_bytes())
    data[at : at + len(new)] = new
    out.write_bytes(data)
    return out


def replaced(path: Path, out: Path, old: bytes, new: bytes) -> Path:
    """A file with the first `old` replaced by `new`, of any length."""
    data = path.read_bytes()
    assert old in data, old
    out.write_bytes(data.replace(old, new, 1))
    return out


def after(path: Path, what: bytes) -> int:
    """Offset of the byte after the first `what`: after a key's name comes its value's type, u32."""
    return path.read_bytes().index(what) + len(what)


# How it is done


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    add: dict[type, Callable[[str, Any], None]] = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    if value is not None:
        add[type(value)](key, value)


def _bpe(
    words: Sequence[str], extra: Sequence[str], control: Sequence[str]
) -> tuple[list[str], list[int], list[float], list[str]]:
    """Control tokens, 256 bytes, and each word with the merges that build it left to right."""
    tokens = [*control, *(_to_gpt2(bytes([b])) for b in range(256))]
    merges: list[str] = []
    for word in (*words, *extra):
        parts = _merged(list(_to_gpt2(word)), merges)
        for i in range(1, len(parts)):  # what earlier words left apart, left to right
            merges.append(f"{''.join(parts[:i])} {parts[i]}")
            tokens.append("".join(parts[: i + 1]))
    tokens = list(dict.fromkeys(tokens))
    types = [_CONTROL if t in control else _NORMAL for t in tokens]
    return tokens, types, [], merges


def _merged(parts: list[str], merges: Sequence[str]) -> list[str]:
    """Apply `merges` as byte-pair encoding does: the earliest of them first."""
    for left, right in (merge.split(" ") for merge in merges):
        i = 0
        while i < len(parts) - 1:
            if (parts[i], parts[i + 1]) == (left, right):
                parts[i : i + 2] = [left + right]
            i += 1
    return parts


def _spm(
    extra: Sequence[str], control: Sequence[str], user: Sequence[str]
) -> tuple[list[str], list[int], list[float], list[str]]:
    """<unk>, <s>, </s>, control and user-defined tokens, 256 bytes, and pieces; all prefixes of one are pieces too."""
    special = ["<unk>", "<s>", "</s>", *control]
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    pieces: list[str] = []
    for piece in (*PIECES, *extra):
        pieces += [p for i in range(len(piece)) if (p := piece[: i + 1]) not in pieces]
        pieces += [c for c in piece if c not in pieces]  # merging goes pair by pair, from single characters
    pieces = [piece for piece in pieces if piece not in user]
    tokens = [*special, *user, *bytes_, *pieces]
    types = [_UNKNOWN, *[_CONTROL] * (len(special) - 1), *[_USER] * len(user), *[_BYTE] * 256, *[_NORMAL] * len(pieces)]
    scores = (
        [0.0] * len(special)
        + [-1000.0] * len(user)
        + [0.0] * 256
        + [-1.0 / len(p) - 0.001 * i for i, p in enumerate(pieces)]
    )
    return tokens, types, scores, []


def _special(vocab: Vocab, tokens: Sequence[str]) -> dict[str, int]:
    """The ids that begin and end an answer, as far as the vocabulary has them."""
    if vocab == "spm":
        names = {"bos": ["<s>"], "eos": ["</s>"], "unknown": ["<unk>"], "eot": ["<end_of_turn>"]}
    else:
        names = {"bos": ["<|begin_of_text|>", "<|im_start|>"], "eos": ["<|im_end|>", "<|eot_id|>"]}
    found = {key: next((tokens.index(t) for t in choice if t in tokens), 0) for key, choice in names.items()}
    return {f"tokenizer.ggml.{key}_token_id": id for key, id in found.items()}


def _weights(
    rng: np.random.Generator,
    shape: tuple[int, int, int, int, int],
    n_vocab: int,
    logit_std: float,
) -> dict[str, np.ndarray]:
    """Random weights by name. A layer writes about as much into the residual stream as it found there."""
    n_layer, n_embd, n_q, n_kv, n_ff = shape

    def normal(*size: int, std: float) -> np.ndarray:
        return rng.normal(0, std, size).astype(np.float32)

    w = {"token_embd.weight": normal(n_vocab, n_embd, std=1.0)}
    for i in range(n_layer):
        w |= {
            f"blk.{i}.attn_norm.weight": np.ones(n_embd, np.float32),
            f"blk.{i}.attn_q.weight": normal(n_q, n_embd, std=1.5 / n_embd**0.5),
            f"blk.{i}.attn_k.weight": normal(n_kv, n_embd, std=1.5 / n_embd**0.5),
            f"blk.{i}.attn_v.weight": normal(n_kv, n_embd, std=2 / n_embd**0.5),
            f"blk.{i}.attn_output.weight": normal(n_embd, n_q, std=1 / n_q**0.5),
            f"blk.{i}.ffn_norm.weight": np.ones(n_embd, np.float32),
            f"blk.{i}.ffn_gate.weight": normal(n_ff, n_embd, std=1 / n_embd**0.5),
            f"blk.{i}.ffn_up.weight": normal(n_ff, n_embd, std=1 / n_embd**0.5),
            f"blk.{i}.ffn_down.weight": normal(n_embd, n_ff, std=2 / n_ff**0.5),
        }
    return w | {
        "output_norm.weight": np.ones(n_embd, np.float32),
        "output.weight": normal(n_vocab, n_embd, std=logit_std / n_embd**0.5),
    }


_MORE_KEYS: dict[str, dict[str, int | float]] = {
    "granite": {"embedding_scale": 1.5, "residual_scale": 0.8, "attention.scale": 0.25, "logit_scale": 0.7},
    "gemma2": {"attention.sliding_window": 16, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    "gemma3": {"attention.sliding_window": 16},
}


def _more_weights(
    rng: np.random.Generator, arch: str | None, shape: tuple[int, int, int, int, int], n_rot: int
) -> dict[str, np.ndarray]:
    """What an architecture has beside a llama's weights."""
    n_layer, n_embd, n_q, n_kv, _ = shape
    more: dict[str, np.ndarray] = {}
    for i in range(n_layer):
        if arch == "qwen2":
            sizes = {"q": n_q, "k": n_kv, "v": n_kv}
            more |= {f"blk.{i}.attn_{p}.bias": rng.normal(0, 0.5, n).astype(np.float32) for p, n in sizes.items()}
        if arch in ("gemma2", "gemma3"):
            names = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
            more |= {f"blk.{i}.{name}.weight": rng.uniform(0.5, 2, n_embd).astype(np.float32) for name in names}
        if arch in ("qwen3", "gemma3"):
            more |= {f"blk.{i}.attn_{p}_norm.weight": rng.uniform(0.5, 2, n_rot).astype(np.float32) for p in "qk"}
    return more


def _write_header(path: str | Path, arch: str, more: Mapping[str, Any]) -> Path:
    tokens, types, _, merges = _bpe((), (), CONTROL)
    keys = {
        f"{arch}.block_count": 1,
        f"{arch}.context_length": 512,
        f"{arch}.embedding_length": 32,
        f"{arch}.feed_forward_length": 64,
        **more,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges or ["a b"],
    }
    return write(path, arch, keys, {"token_embd.weight": np.zeros((len(tokens), 32), np.float32)})


def _to_gpt2(text: str | bytes) -> str:
    """Bytes as GPT-2's vocabulary spells them: printable Latin-1 as itself, the rest from U+0100 on."""
    return "".join(_BYTE_LETTERS[b] for b in (text.encode() if isinstance(text, str) else text))


def _byte_letters() -> list[str]:
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    rest = [b for b in range(256) if b not in printable]
    return [chr(b) if b in printable else chr(256 + rest.index(b)) for b in range(256)]


_BYTE_LETTERS = _byte_letters()
