"""What the configurations and the tokenizer.json of a folder say, whatever its weights are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from edgeguard.errors import ModelError
from edgeguard.formats import gguf
from edgeguard.formats.bounded_json import MAX_TOKENIZER, loose_object, table
from edgeguard.formats.tokenizer import kinds_of, read_vocabulary
from edgeguard.inspection.types import ModelShape, Token, Tokenizer, kv_bytes

T = TypeVar("T")


@dataclass(frozen=True)
class Problems:
    """What went wrong, each once, in order: the rest is shown all the same."""

    texts: list[str] = field(default_factory=list)

    def of(self, read: Callable[[], T]) -> T | None:
        """What `read` gives, None if it fails."""
        try:
            return read()
        except ModelError as error:
            if str(error) not in self.texts:
                self.texts.append(str(error))
            return None


def config_shape(config: Mapping[str, Any]) -> ModelShape:
    """From config.json, which spells all models' numbers alike, mostly."""
    inner = config.get("text_config")
    config = {**config, **inner} if isinstance(inner, dict) else config

    def whole(*names: str) -> int | None:
        found = (config.get(name) for name in names)
        return next((n for n in found if isinstance(n, int) and not isinstance(n, bool) and 0 < n < 1 << 40), None)

    n_layer, width = whole("num_hidden_layers", "n_layer"), whole("hidden_size", "n_embd")
    n_head = whole("num_attention_heads", "n_head")
    n_head_kv = whole("num_key_value_heads") or n_head
    head = whole("head_dim") or (width // n_head if width and n_head else None)
    return ModelShape(
        n_layer=n_layer,
        width=width,
        n_head=n_head,
        n_head_kv=n_head_kv,
        head=head,
        n_vocab=whole("vocab_size"),
        n_ctx_train=whole("max_position_embeddings", "n_positions"),
        memory=_config_memory(config),
        kv_type="float16" if head else None,
        kv_bytes_per_token=kv_bytes(n_layer, n_head_kv, 2 * (head or 0), 2),
    )


def _config_memory(config: Mapping[str, Any]) -> gguf.MemoryKind | None:
    """None: a configuration that names no window and no recurrent layer says nothing."""
    layers = config.get("layer_types")
    kinds = {str(kind) for kind in layers} if isinstance(layers, list) else set()
    if kinds & {"linear_attention", "mamba", "recurrent", "conv"}:
        return "recurrent"
    if kinds:
        return "sliding window" if any("sliding" in kind or "chunked" in kind for kind in kinds) else "attention"
    window = config.get("sliding_window")
    windowed = isinstance(window, int) and window > 0 and config.get("use_sliding_window", True) is not False
    return "sliding window" if windowed else None


def folder_tokenizer(folder: Path, n_vocab: int | None, problems: Problems) -> Tokenizer | None:
    """From tokenizer.json, as the backend reads it; as much as there is if it cannot be used."""
    vocabulary = problems.of(lambda: read_vocabulary(folder, n_vocab=n_vocab))
    source = folder / "tokenizer.json"
    said = loose_object(source, max_bytes=MAX_TOKENIZER)
    if said is None:
        return None
    model, added = table(said.get("model")), said.get("added_tokens")
    vocab = table(model.get("vocab"))
    entries = [e for e in added if isinstance(e, dict)] if isinstance(added, list) else []
    ids: dict[str, object] = {**vocab, **{str(e.get("content")): e.get("id") for e in entries}}
    name_of = {i: name for name, i in ids.items() if isinstance(i, int)}
    bos = table(loose_object(folder / "tokenizer_config.json", max_bytes=MAX_TOKENIZER)).get("bos_token")
    bos = bos.get("content") if isinstance(bos, dict) else bos
    bos_id = ids.get(bos) if isinstance(bos, str) else None
    if vocabulary is not None and vocabulary.bos is not None:
        bos_id = vocabulary.bos
    return Tokenizer(
        model=str(model.get("type", "")),
        pre=" + ".join(dict.fromkeys(kinds_of(said.get("pre_tokenizer")))),
        n_tokens=len(ids),
        bos=Token(bos_id, name_of.get(bos_id, "")) if isinstance(bos_id, int) else None,
        adds_bos=None if vocabulary is None else vocabulary.bos is not None,
        ends=() if vocabulary is None else tuple(Token(i, name_of.get(i, "")) for i in sorted(vocabulary.eog)),
        n_control=sum(bool(e.get("special")) for e in entries) if vocabulary is None else len(vocabulary.control),
    )
