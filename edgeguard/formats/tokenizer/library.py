"""Texts → token ids, by the tokenizers package, with no text ever becoming a control token."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from edgeguard.errors import ModelError, RecordError, printable, shortened, shown
from edgeguard.formats.bounded_json import DOWNLOAD
from edgeguard.formats.tokenizer.tokenizer_json import TokenizerJson


@dataclass(frozen=True, repr=False)  # the library's own repr writes warnings to stdout
class Encoder:
    """A tokenizer as the tokenizers package runs it. `source` is the file it is of."""

    source: Path
    library: Any

    def ids(self, text: str) -> list[int]:
        """Plain text → token ids; the spelling of a control token stays text.

        Raises RecordError where the package gives up on this very text: others may go on.
        """
        try:
            return list(self._encoding(text, special=False).ids)
        except ModelError as error:
            raise RecordError(f"a text of {len(text)} characters: {error}", kind="not_tokenised") from None

    def put_in_front(self, n: int) -> int | None:
        """The token that the post-processor begins prompts with, one of `n`. Raises ModelError."""
        encoding = self._encoding("a", special=True)
        if not encoding.ids or not encoding.special_tokens_mask[0]:
            return None
        first = int(encoding.ids[0])
        if first >= n:
            raise ModelError(f"{self.source} begins prompts with token {first} of {n}; {DOWNLOAD}")
        return first

    def _encoding(self, text: str, *, special: bool) -> Any:
        text.encode()  # half of a surrogate pair is the caller's error, not the file's
        return _guarded(self.source, lambda: self.library.encode(text, add_special_tokens=special))


def load_encoder(tokenizer: TokenizerJson, control: Mapping[str, int]) -> Encoder:
    """The tokenizer without its control tokens. Raises ModelError where the package is missing or refuses the file."""
    source = tokenizer.source
    values = json.dumps(_without_control(tokenizer, control), ensure_ascii=False)
    try:
        package = import_module("tokenizers")  # on demand: only models in folders need it
    except ModuleNotFoundError as error:
        if error.name != "tokenizers":
            raise
        raise ModelError(
            f"{source} needs the tokenizers package, which is not installed; pip install 'edgeguard[onnx]'"
        ) from None
    return Encoder(source, _guarded(source, lambda: package.Tokenizer.from_str(values)))


def _without_control(tokenizer: TokenizerJson, control: Mapping[str, int]) -> dict[str, Any]:
    """The same tokenizer, but no text becomes a control token, nothing is cut off or padded, and none is by chance."""
    values, model = tokenizer.values, dict(tokenizer.values["model"])
    text = {token.name: token.id for token in tokenizer.added if token.name not in control}
    # In the model's own vocabulary too, since the library numbers added tokens by itself otherwise.
    model["vocab"] = {name: i for name, i in tokenizer.vocab.items() if name not in control} | text
    model["merges"] = [
        (left, right)
        for left, right in _merge_pairs(tokenizer.source, model.get("merges"))
        if left not in control and right not in control and left + right not in control
    ]
    model |= {"type": "BPE", "unk_token": None, "dropout": None}
    entries = [entry for entry in values.get("added_tokens") or [] if entry["content"] in text]
    return {**values, "model": model, "added_tokens": entries, "truncation": None, "padding": None}


def _merge_pairs(source: Path, merges: object) -> list[tuple[str, str]]:
    """Merges as pairs; older files write each as one string."""
    if not isinstance(merges, list):
        raise ModelError(f"{source}: merges is {shown(merges)}, a list is needed; {DOWNLOAD}")
    pairs = [m.split(" ") if isinstance(m, str) else m for m in merges]
    wrong = [p for p in pairs if not (isinstance(p, list) and len(p) == 2 and type(p[0]) is type(p[1]) is str)]
    if wrong:
        raise ModelError(f"{source}: {shown(wrong[0])} is no merge of two tokens; {DOWNLOAD}")
    return [(left, right) for left, right in pairs]


def _guarded(source: Path, call: Callable[[], Any]) -> Any:
    """What the library gives, its errors as ours: a panic in it is no Exception."""
    try:
        return call()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        reason = shortened(printable(str(error)), 200)
        raise ModelError(f"{source} cannot be used by the tokenizers package: {reason}; {DOWNLOAD}") from error
