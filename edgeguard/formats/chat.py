"""What a model file says of chats: its chat template, and the tokens that template may write. No weights are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgeguard.backend import Vocabulary
from edgeguard.formats import gguf
from edgeguard.formats.model_file import find_model
from edgeguard.formats.tokenizer import begins_with, read_chat_template, read_tokens, read_vocabulary


@dataclass(frozen=True)
class Chat:
    """A model file's chat template, Jinja from a stranger; None where it has none.

    bos, eos  what the template sees as bos_token and eos_token; "" where the file has none
    """

    template: str | None
    bos: str
    eos: str


def read_chat(path: str | Path) -> Chat:
    """From a GGUF's header, or the tokenizer's files beside an ONNX graph or in a checkpoint. Raises ModelError."""
    model = find_model(path)
    if model.kind == "gguf":
        header = gguf.read_header(model.path)
        tokens = read_tokens(header)
        name = {i: text for text, i in tokens.ids.items()}
        bos = begins_with(header)
        return Chat(gguf.chat_template(header), name.get(bos, "") if bos is not None else "", _first(tokens.eog, name))
    folder = model.path if model.path.is_dir() else model.path.parent
    vocabulary = read_vocabulary(folder)
    name = _names(vocabulary)
    return Chat(
        read_chat_template(folder),
        name.get(vocabulary.bos, "") if vocabulary.bos is not None else "",
        _first(vocabulary.eog, name),
    )


def _names(vocabulary: Vocabulary) -> dict[int, str]:
    pieces = {i: piece.decode(errors="replace") for i, piece in enumerate(vocabulary.pieces) if piece}
    return pieces | {i: name for name, i in vocabulary.control.items()}


def _first(ends: frozenset[int], name: dict[int, str]) -> str:
    return name.get(min(ends), "") if ends else ""
