"""A GGUF file: a model, or an adapter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgeguard.errors import ModelError
from edgeguard.formats import gguf
from edgeguard.formats.manifest import beside
from edgeguard.formats.tokenizer import read_tokens
from edgeguard.inspection.files import Hashes
from edgeguard.inspection.provenance import find_provenance
from edgeguard.inspection.types import (
    Adapter,
    Inspection,
    ModelShape,
    Numbers,
    Quantization,
    Tensor,
    Token,
    Tokenizer,
    kv_bytes,
    type_shares,
)


def inspect_gguf(path: Path, hashes: Hashes) -> Inspection:
    """What the header says. Raises ModelError where it is no GGUF."""
    header = gguf.read_header(path)
    metadata = header.metadata
    tensors = tuple(Tensor(t.name, t.shape, t.type_name, t.n_bytes) for t in header.tensors)
    tokenizer = _tokenizer(header)
    files = hashes.files(_parts(path, metadata))
    own = {key: value for key, value in metadata.items() if isinstance(value, str)}
    provenance, notices = find_provenance(beside(path), own, files, hashes)
    if len(files) > 1:
        notices = (f"it is the first of {len(files)} parts, whose tensors alone are shown", *notices)
    return Inspection(
        path=path,
        kind="adapter" if metadata.get("general.type") == "adapter" else "gguf",
        format=f"GGUF v{header.version}",
        files=files,
        beside=(),
        sha256=files[0].sha256,  # as the backend has it, which opens a model in parts by its first
        architecture=header.architecture,
        name=str(metadata.get("general.name", "") or metadata.get("general.basename", "")),
        shape=_shape(header, tensors, tokenizer),
        quantization=Quantization(
            gguf.quantization(header), type_shares((t.type_name, math.prod(t.shape), t.n_bytes) for t in tensors)
        ),
        tokenizer=tokenizer,
        chat_template=gguf.chat_template(header),
        tensors=tensors,
        problems=_problems(header),
        notices=notices,
        adapter=_adapter(header) if metadata.get("general.type") == "adapter" else None,
        provenance=provenance,
    )


def _parts(path: Path, metadata: Mapping[str, gguf.MetadataValue]) -> list[Path]:
    """The file, or all the parts that it is the first of; the reader has seen that they are there."""
    count = metadata.get("split.count", 1)
    if not isinstance(count, int) or count < 2:
        return [path]
    return [path.with_name(f"{path.name[:-20]}-{i + 1:05d}-of-{count:05d}.gguf") for i in range(count)]


def _problems(header: gguf.Header) -> tuple[str, ...]:
    try:
        gguf.check_model(header)
        gguf.check_memory(header)
    except ModelError as error:
        return (str(error),)
    return ()


def _shape(header: gguf.Header, tensors: Sequence[Tensor], tokenizer: Tokenizer | None) -> ModelShape:
    """From numbers that nothing has held against each other yet."""
    n_weights = sum(math.prod(t.shape) for t in tensors)
    if header.metadata.get("general.type", "model") != "model":
        return ModelShape(n_weights=n_weights)
    arch = header.architecture
    n_layer, width = (_number(header, f"{arch}.{key}") for key in ("block_count", "embedding_length"))
    n_head = _numbers(header, f"{arch}.attention.head_count")
    n_head_kv = _numbers(header, f"{arch}.attention.head_count_kv") or n_head
    most = max(n_head) if isinstance(n_head, tuple) else n_head
    head = _number(header, f"{arch}.attention.key_length") or (width // most if width and most else None)
    value = _number(header, f"{arch}.attention.value_length") or head
    return ModelShape(
        n_weights=n_weights,
        n_layer=n_layer,
        width=width,
        n_head=n_head,
        n_head_kv=n_head_kv,
        head=head,
        n_vocab=tokenizer.n_tokens if tokenizer else _number(header, f"{arch}.vocab_size"),
        n_ctx_train=_number(header, f"{arch}.context_length"),
        memory=gguf.memory_kind(header),
        kv_type="float16" if head else None,
        kv_bytes_per_token=kv_bytes(n_layer, n_head_kv, (head or 0) + (value or 0), 2),
    )


def _number(header: gguf.Header, key: str) -> int | None:
    value = header.metadata.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _numbers(header: gguf.Header, key: str) -> Numbers | None:
    """A number for all layers, or one for each where they differ."""
    value = header.metadata.get(key)
    if not isinstance(value, gguf.Array):
        return _number(header, key)
    if value.type_name not in ("i32", "u32") or not 0 < value.length <= gguf.MAX_LAYERS:
        return None
    found = tuple(int(n) for n in value.numbers().tolist())
    if min(found) < 0 or not max(found):
        return None
    return found


def _tokenizer(header: gguf.Header) -> Tokenizer | None:
    metadata = header.metadata
    model, tokens = (metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "tokens"))
    if not isinstance(model, str) or not isinstance(tokens, gguf.Array) or tokens.type_name != "str":
        return None
    texts = tokens.strings()
    try:
        known = read_tokens(header)
        ends, n_control = sorted(known.eog), len(known.control)
    except ModelError:  # llama.cpp reads some that tokenizer.json cannot spell
        named = (metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom"))
        ends, n_control = sorted({i for i in named if isinstance(i, int) and 0 <= i < len(texts)}), None
    bos, adds_bos = (metadata.get(f"tokenizer.ggml.{key}") for key in ("bos_token_id", "add_bos_token"))

    def token(i: int) -> Token:
        return Token(i, texts[i].decode(errors="replace"))

    return Tokenizer(
        model=model,
        pre=str(metadata.get("tokenizer.ggml.pre", "")),
        n_tokens=tokens.length,
        bos=token(bos) if isinstance(bos, int) and 0 <= bos < len(texts) else None,
        adds_bos=adds_bos if isinstance(adds_bos, bool) else None,
        ends=tuple(token(i) for i in ends),
        n_control=n_control,
    )


def _adapter(header: gguf.Header) -> Adapter:
    alpha = header.metadata.get("adapter.lora.alpha")
    return Adapter(
        base=header.architecture,
        ranks=tuple(sorted({t.shape[0] for t in header.tensors if t.name.endswith(".lora_b") and t.shape})),
        alpha=float(alpha) if isinstance(alpha, int | float) and math.isfinite(alpha) else None,
        changes=tuple(t.name.removesuffix(".lora_b") for t in header.tensors if t.name.endswith(".lora_b")),
    )
