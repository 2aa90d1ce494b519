"""What the configurations of an ONNX model's or a checkpoint's folder say of the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgeguard.errors import ModelError
from edgeguard.formats.bounded_json import find_object, table

MAX_CONTEXT = 1 << 27  # tokens
MAX_HEAD = 1 << 16  # numbers of a key


@dataclass(frozen=True)
class Settings:
    """What a model folder says of its model.

    n_ctx  tokens it was trained to read at once; head: length of a key; 0 if not said
    """

    architecture: str
    name: str
    n_ctx: int
    head: int = 0


def read_settings(folder: Path) -> Settings:
    """From config.json, genai_config.json and edgeguard.json, as far as they are there. Raises ModelError."""
    config, genai, own = (find_object(folder / f"{n}.json") or {} for n in ("config", "genai_config", "edgeguard"))
    inner = table(genai.get("model"))
    n_ctx = config.get("max_position_embeddings", inner.get("context_length", 0))
    if isinstance(n_ctx, bool) or not isinstance(n_ctx, int) or not 0 <= n_ctx <= MAX_CONTEXT:
        raise ModelError(f"{folder}: its context length is {n_ctx!r}, a number of tokens is needed; convert it again")
    name = own.get("name") or Path(str(config.get("_name_or_path", ""))).name
    head = table(inner.get("decoder")).get("head_size", 0)
    head = head if isinstance(head, int) and 0 <= head <= MAX_HEAD else 0
    return Settings(str(config.get("model_type", inner.get("type", ""))), str(name), n_ctx, head)
