"""What llama.cpp would die from: numbers of a header that contradict each other or the tensors.

llama.cpp stops the whole process at some lies in a model file, so they are refused here first. Weights are not read.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Literal

from edgeguard.errors import ModelError, shown
from edgeguard.formats.gguf.header import MAX_TEMPLATE, Array, Header

MemoryKind = Literal["attention", "recurrent", "sliding window"]

MAX_LAYERS = 512  # LLAMA_MAX_LAYERS; one more aborts
MAX_EXPERTS = 1024  # LLAMA_MAX_EXPERTS; one more aborts
MAX_WIDTH = 1 << 20  # elements of a hidden state, of a head, of a feed-forward layer
MIN_CONTEXT, MAX_CONTEXT = 64, 1 << 27  # tokens; no guard's prompt fits into fewer, and llama.cpp aborts at some

# Names of architectures, matched whole.
_RECURRENT = re.compile(
    r"mamba2?|a?rwkv\w+|jamba|falcon-h1|plamo2|granitehybrid|lfm2(moe)?|nemotron_h(_moe)?|qwen3next|qwen35(moe)?|"
    r"qwen4exp|kimi-linear|kimi-k3|bailingmoe3|glm5-next|deepseek4|minimax-01"
)
_SLIDING = re.compile(r"gemma2|gemma3n|llama4|gpt-oss|cohere2")  # always, whether or not a key says so
_WINDOW_IGNORED = re.compile(r"llama|mistral3|qwen[23](moe)?|phi3|starcoder2")  # llama.cpp does not apply it
_NOT_CAUSAL = re.compile(
    r"(\w+-)?bert(-moe|-v[23])?|eurobert|gemma-embedding|llama-embed|t5(encoder)?|dream|llada(-moe)?|rnd1"
)
# llama.cpp asserts that these rotate a whole head, and that keys are as long as values.
_WHOLE_HEAD = re.compile(
    r"llama4?|deci|qwen2(moe|vl)?|qwen3(moe|vl|vlmoe)?|mistral3|granite(moe)?|olmo2?|olmoe|smollm3|falcon|internlm2|"
    r"starcoder2|baichuan|deepseek|exaone|orion|xverse|nemotron|arcee|apertus|ernie4_5(-moe)?|seed_oss|dots1|grok|dbrx"
)
_NO_VOCABULARY = frozenset({"none", "no_vocab", "test"})
_ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
_ANSWER_TOKENS = ("bos", "eos", "eot", "eom")
_NOT_WEIGHTS = frozenset({"Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64"})  # no matrix product reads them

_CONVERT = "convert the model again, or take another file of it"


def check_model(header: Header) -> None:
    """Refuse numbers that contradict each other or the tensors: llama.cpp aborts at many of them.

    Raises ModelError. An unknown architecture passes: llama.cpp names it.
    """
    for check in _CHECKS:
        check(header)


def memory_kind(header: Header) -> MemoryKind:
    """What the model keeps of the tokens it has read, as far as the header tells.

    A "recurrent" memory (hybrid ones too) cannot be cut back to an earlier length.
    """
    arch, metadata = header.architecture, header.metadata
    recurrent = (f"{arch}.ssm.", f"{arch}.wkv.", f"{arch}.shortconv.", f"{arch}.kda.")
    if _RECURRENT.fullmatch(arch) or any(key.startswith(recurrent) for key in metadata):
        return "recurrent"
    window = metadata.get(f"{arch}.attention.sliding_window", 0)
    windowed = isinstance(window, Array) or (isinstance(window, int) and window > 0)
    if _SLIDING.fullmatch(arch) or (windowed and not _WINDOW_IGNORED.fullmatch(arch)):
        return "sliding window"
    return "attention"


def check_memory(header: Header) -> None:
    """Raises ModelError for a model whose memory cannot be cut back."""
    if memory_kind(header) == "recurrent":
        raise uncuttable(header.path)


def uncuttable(path: Path) -> ModelError:
    """The error for a model whose memory cannot be cut back."""
    return ModelError(
        f"{path} keeps a recurrent memory, which cannot be cut back to the policy after each record; "
        "edgeguard needs a model that keeps the keys and values of all tokens"
    )


def context_length(header: Header) -> int:
    """Tokens the model was trained to read at once. Raises ModelError."""
    return _whole(header, f"{header.architecture}.context_length", MIN_CONTEXT, MAX_CONTEXT)


def _check_kind(header: Header) -> None:
    path, arch = header.path, header.architecture
    kind = header.metadata.get("general.type", "model")
    if kind == "adapter":
        raise ModelError(f"{path} is a LoRA adapter, not a model; merge it into its model and convert that")
    if kind == "mmproj" or arch == "clip":
        raise ModelError(f"{path} is a vision projector, not a language model; give the model's own file")
    if not header.tensors:
        raise ModelError(f"{path} has no tensors, it is a vocabulary without a model; give the model's file")
    if _NOT_CAUSAL.fullmatch(arch) or header.metadata.get(f"{arch}.attention.causal") is False:
        raise ModelError(
            f"{path} is a {shown(arch)} model that does not write text token by token; "
            "edgeguard scores generative guard models"
        )


def _check_layers(header: Header) -> None:
    arch = header.architecture
    n_layer = _whole(header, f"{arch}.block_count", 1, MAX_LAYERS)
    _whole(header, f"{arch}.embedding_length", 1, MAX_WIDTH)
    context_length(header)
    _whole(header, f"{arch}.nextn_predict_layers", 0, n_layer, default=0)
    _per_layer(header, f"{arch}.feed_forward_length", 0, MAX_WIDTH)


def _check_experts(header: Header) -> None:
    arch = header.architecture
    n = _whole(header, f"{arch}.expert_count", 0, MAX_EXPERTS, default=0)
    used = _per_layer(header, f"{arch}.expert_used_count", 0, n) or [0]
    if n and not any(used):
        raise _contradiction(header, f"{arch}.expert_count is {n} and {arch}.expert_used_count is 0")
    groups = _whole(header, f"{arch}.expert_group_count", 0, max(0, n - 1), default=0)
    groups_used = _whole(header, f"{arch}.expert_group_used_count", 0, MAX_EXPERTS, default=0)
    if groups > 1 and (n % groups or not 0 < groups_used < groups):
        raise _contradiction(header, f"{n} experts in {groups} groups, {groups_used} of them used")


def _check_attention(header: Header) -> None:
    """Heads divide what they share: a division by zero or a mismatch stops llama.cpp's process."""
    arch = header.architecture
    width = _whole(header, f"{arch}.embedding_length", 1, MAX_WIDTH)
    heads = _per_layer(header, f"{arch}.attention.head_count", 0, MAX_WIDTH)
    shared = _per_layer(header, f"{arch}.attention.head_count_kv", 0, MAX_WIDTH) or heads
    if memory_kind(header) == "recurrent":
        return
    if not heads or not any(heads):
        raise _contradiction(header, f"{arch}.attention.head_count is missing or 0")
    n_layer = max(len(heads), len(shared))
    for n, n_kv in zip(_repeated(heads, n_layer), _repeated(shared, n_layer), strict=True):
        if (n_kv == 0 and len(shared) == 1) or (n_kv and n % n_kv):
            raise _contradiction(header, f"{n} attention heads cannot share {n_kv} key-value heads")
    for part in ("key", "value"):
        length = _whole(header, f"{arch}.attention.{part}_length", 1, MAX_WIDTH, default=0)
        if not length and heads[0] and width % heads[0]:
            raise _contradiction(header, f"{heads[0]} attention heads do not divide {width} elements")


def _check_heads_by_layer(header: Header) -> None:
    """Where layers differ in their heads, each must have the matrices for its own: llama.cpp asserts so too late."""
    arch, metadata = header.architecture, header.metadata
    heads = _per_layer(header, f"{arch}.attention.head_count", 0, MAX_WIDTH)
    shared = _per_layer(header, f"{arch}.attention.head_count_kv", 0, MAX_WIDTH) or heads
    other = (f"{arch}.attention.{key}" for key in ("kv_lora_rank", "key_length_mla", "key_length_swa"))
    if (len({*heads}) <= 1 and len({*shared}) <= 1) or any(key in metadata for key in other):
        return  # one number for all, or keys of other lengths than those read here
    width = _whole(header, f"{arch}.embedding_length", 1, MAX_WIDTH)
    n_layer = max(len(heads), len(shared))
    first = next((n for n in heads if n), 0)
    shape = {tensor.name: tensor.shape for tensor in header.tensors}
    for part, n_heads, length in (("q", heads, "key"), ("k", shared, "key"), ("v", shared, "value")):
        of_head = _whole(header, f"{arch}.attention.{length}_length", 1, MAX_WIDTH, default=width // max(1, first))
        for i, n in enumerate(_repeated(n_heads, n_layer)):
            name = f"blk.{i}.attn_{part}.weight"
            if name in shape and len(shape[name]) == 2 and shape[name][1] != n * of_head:
                raise _contradiction(
                    header,
                    f"{name} has shape {shape[name]}, {n} heads of {of_head} elements need {n * of_head}",
                )


def _check_window(header: Header) -> None:
    """A window that no layer has: llama.cpp asserts that one does."""
    key = f"{header.architecture}.attention.sliding_window_pattern"
    pattern = header.metadata.get(key)
    if isinstance(pattern, Array):
        none = pattern.type_name != "str" and not pattern.numbers().any()
    else:
        none = pattern == 1 and not isinstance(pattern, bool)  # every layer is the last of its group, which sees all
    if none and memory_kind(header) == "sliding window":
        raise _contradiction(header, f"it has a sliding window, and by {key}, {shown(pattern)}, no layer with it")


def _check_rope(header: Header) -> None:
    arch, metadata = header.architecture, header.metadata
    width = _whole(header, f"{arch}.embedding_length", 1, MAX_WIDTH)
    heads = _per_layer(header, f"{arch}.attention.head_count", 0, MAX_WIDTH)
    head = width // heads[0] if heads and heads[0] else width
    head = _whole(header, f"{arch}.attention.key_length", 1, MAX_WIDTH, default=head)
    rotated = _whole(header, f"{arch}.rope.dimension_count", 1, head, default=head)
    values = _whole(header, f"{arch}.attention.value_length", 1, MAX_WIDTH, default=head)
    if _WHOLE_HEAD.fullmatch(arch) and not rotated == values == head:
        raise _contradiction(header, f"keys of {head}, values of {values} and {rotated} rotated elements a head")
    if rotated % 2:
        raise _contradiction(header, f"{rotated} of a head's elements are to be rotated, in pairs")
    scaling = metadata.get(f"{arch}.rope.scaling.type", "linear")
    if scaling not in _ROPE_SCALINGS:
        raise _contradiction(
            header, f"{arch}.rope.scaling.type is {shown(scaling)}, known are {', '.join(_ROPE_SCALINGS)}"
        )


def _check_floats(header: Header) -> None:
    """A NaN or a negative where a norm or a scale stands turns every probability into NaN, or aborts."""
    for key, value in header.metadata.items():
        if not isinstance(value, float) or not key.startswith(f"{header.architecture}."):
            continue
        low = 0.0 if "epsilon" in key or ".rope." in key else -math.inf
        if not math.isfinite(value) or value < low or (key.endswith("freq_base") and value == 0):
            raise _contradiction(header, f"{key} is {value}")


def _check_tensors(header: Header) -> None:
    width = _whole(header, f"{header.architecture}.embedding_length", 1, MAX_WIDTH)
    for tensor in header.tensors:
        is_vector = len(tensor.shape) < 2
        if tensor.type_name in _NOT_WEIGHTS or (is_vector and tensor.type_name != "F32"):
            expected = "vectors are F32" if is_vector else "no weights are of that type"
            raise _contradiction(header, f"tensor {shown(tensor.name)} is {tensor.type_name}, {expected}")
        if tensor.name == "token_embd.weight" and (len(tensor.shape) != 2 or tensor.shape[0] != width):
            raise _contradiction(
                header,
                f"token_embd.weight has shape {tensor.shape}, embedding_length is {width}",
            )


def _check_vocabulary(header: Header) -> None:
    arch, metadata = header.architecture, header.metadata
    model = metadata.get("tokenizer.ggml.model")
    if not isinstance(model, str) or model in _NO_VOCABULARY:
        raise _contradiction(header, f"tokenizer.ggml.model is {shown(model)}, so it has no tokenizer")
    if model in ("rwkv", "bert") and memory_kind(header) != "recurrent":
        # The one never ends where a byte has no token, the other aborts at tokens that are bytes.
        raise _contradiction(header, f"tokenizer.ggml.model is {shown(model)} for {shown(arch)}")
    tokens = _array_of(header, "tokenizer.ggml.tokens", "str")
    if tokens is None or not tokens.length:
        raise _contradiction(header, "tokenizer.ggml.tokens is missing or empty")
    n = tokens.length
    for key, types in (("token_type", ("i32",)), ("scores", ("f32", "i32"))):
        values = _array_of(header, f"tokenizer.ggml.{key}", *types)
        if values is not None and values.length != n:
            raise _contradiction(header, f"it has {n} tokens and {values.length} of tokenizer.ggml.{key}")
    _array_of(header, "tokenizer.ggml.merges", "str")
    claimed = _whole(header, f"{arch}.vocab_size", 1, 1 << 31, default=n)
    rows = next((t.shape[-1] for t in header.tensors if t.name == "token_embd.weight"), n)
    if not claimed == rows == n:
        raise _contradiction(header, f"{n} tokens, {rows} embeddings and a vocab_size of {claimed}")
    _check_pieces(header, model, tokens.strings())


def _check_pieces(header: Header, model: str, tokens: list[bytes]) -> None:
    # C code ends a piece at a NUL; llama.cpp numbers the empty ones, and aborts where two are equal.
    cut = [t.partition(b"\0")[0] if b"\0" in t else t for t in tokens]
    pieces = {t or b"[EMPTY_%d]" % i: i for i, t in enumerate(cut)}
    if len(pieces) < len(cut):
        i, again = next((i, t) for i, t in enumerate(cut) if pieces[t or b"[EMPTY_%d]" % i] != i)
        raise _contradiction(header, f"tokens {i} and {pieces[again]} are the same, {shown(again)}")
    if model != "llama":
        return
    # llama.cpp throws through the tokenizer, past any handler, at a byte that has no token.
    missing = next((b for b in range(256) if b"<0x%02X>" % b not in pieces and bytes([b]) not in pieces), None)
    if missing is not None:
        raise _contradiction(header, f"no token writes the byte 0x{missing:02X}, so some texts have no tokens")


def _check_answer_tokens(header: Header) -> None:
    tokens = header.metadata["tokenizer.ggml.tokens"]
    n = tokens.length if isinstance(tokens, Array) else 0
    for name in _ANSWER_TOKENS:
        _whole(header, f"tokenizer.ggml.{name}_token_id", 0, n - 1, default=0)


def _check_template(header: Header) -> None:
    template = header.metadata.get("tokenizer.chat_template", "")
    if not isinstance(template, str) or len(template) > MAX_TEMPLATE:
        raise _contradiction(header, f"tokenizer.chat_template is not a text of at most {MAX_TEMPLATE} characters")


_CHECKS = (
    _check_kind,
    _check_layers,
    _check_experts,
    _check_attention,
    _check_heads_by_layer,
    _check_window,
    _check_rope,
    _check_floats,
    _check_tensors,
    _check_vocabulary,
    _check_answer_tokens,
    _check_template,
)


def _whole(header: Header, key: str, low: int, high: int, *, default: int | None = None) -> int:
    """A whole number of the metadata, held against low ≤ value ≤ high. Raises ModelError."""
    value = header.metadata.get(key, default)
    if value is None:
        raise ModelError(f"{header.path} has no {key}, which every model of its kind has; {_CONVERT}")
    if key in header.metadata and (isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high):
        raise ModelError(
            f"{header.path}: {key} is {shown(value)}, a whole number from {low} to {high} is needed; {_CONVERT}"
        )
    assert isinstance(value, int)
    return value


def _per_layer(header: Header, key: str, low: int, high: int) -> list[int]:
    """A number for all layers, as one element, or one for each; [] where the key is missing."""
    value = header.metadata.get(key)
    if value is None:
        return []
    if not isinstance(value, Array):
        return [_whole(header, key, low, high)]
    n_layer = _whole(header, f"{header.architecture}.block_count", 1, MAX_LAYERS)
    if value.type_name not in ("i32", "u32") or value.length != n_layer:
        raise _contradiction(header, f"{key} is {shown(value)} for {n_layer} layers")
    numbers = [int(n) for n in value.numbers().tolist()]
    wrong = next((n for n in numbers if not low <= n <= high), None)
    if wrong is not None:
        raise _contradiction(header, f"{key} holds {wrong}, outside of {low} to {high}")
    return numbers


def _repeated(numbers: list[int], n: int) -> list[int]:
    return numbers * n if len(numbers) == 1 else numbers


def _array_of(header: Header, key: str, *types: str) -> Array | None:
    value = header.metadata.get(key)
    if value is None or (isinstance(value, Array) and value.type_name in types):
        return value
    raise _contradiction(header, f"{key} is {shown(value)}, an array of {' or '.join(types)} is needed")


def _contradiction(header: Header, what: str) -> ModelError:
    return ModelError(f"{header.path} contradicts itself: {what}; {_CONVERT}")
