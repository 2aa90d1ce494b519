"""A tokenizer.json as it stands: a byte-level or SentencePiece BPE, no two tokens of one name or id."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeguard.errors import ModelError, shown
from edgeguard.formats.bounded_json import DOWNLOAD, MAX_TOKENIZER, member, read_object
from edgeguard.formats.tokenizer.bounds import check_bounds
from edgeguard.formats.tokenizer.spelling import from_letters, from_sentencepiece

MAX_TOKENS = 1 << 22  # an id above would cost memory before the lie shows


@dataclass(frozen=True)
class AddedToken:
    """An added token: found in a text before all else."""

    name: str
    id: int
    special: bool


@dataclass(frozen=True)
class TokenizerJson:
    """The file's content, and its tokens.

    vocab  names → ids of the BPE model itself, without the added tokens
    ids    names → ids of all tokens
    """

    source: Path
    values: Mapping[str, Any]
    vocab: Mapping[str, int]
    added: tuple[AddedToken, ...]
    ids: Mapping[str, int]


def read_tokenizer_json(source: Path) -> TokenizerJson:
    """The file, its tokens held against each other. Raises ModelError for one that is broken, or is no BPE."""
    values = read_object(source, max_bytes=MAX_TOKENIZER)
    check_bounds(source, values)
    vocab, added = _read_vocab(source, values), _read_added(source, values)
    return TokenizerJson(source, values, vocab, added, _all_ids(source, vocab, added))


def pieces(tokenizer: TokenizerJson, control: Mapping[str, int], n: int) -> list[bytes]:
    """The bytes that each of `n` tokens writes, by id; b"" for control and unused tokens. Raises ModelError."""
    found = [b""] * n
    written = from_letters if _is_byte_level(tokenizer) else from_sentencepiece
    try:
        for name, i in tokenizer.vocab.items():
            found[i] = written(name)
        for token in tokenizer.added:
            found[token.id] = token.name.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
        raise ModelError(f"{tokenizer.source}: {shown(error.object)} is no Unicode text; {DOWNLOAD}") from None
    for i in control.values():
        found[i] = b""
    return found


def kinds_of(step: object) -> list[str]:
    """The types of a decoder or pre-tokenizer of tokenizer.json, or of the parts of a sequence of them."""
    return [str(part.get("type")) for part in _steps(step)]


def _read_vocab(source: Path, values: Mapping[str, Any]) -> dict[str, int]:
    model = member(source, values, "model", dict)
    if model.get("type", "BPE") != "BPE":
        raise ModelError(
            f"{source}: the tokenizer's model is {shown(model['type'])}; BPE is supported, which generative guard "
            "models have, take one of these"
        )
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise ModelError(
            f"{source} marks begins or ends of words in its tokens; byte-level and SentencePiece BPE are supported, "
            "take a model with one of these"
        )
    vocab: dict[str, int] = member(source, model, "vocab", dict)
    wrong = next((name for name, i in vocab.items() if type(i) is not int or not 0 <= i < MAX_TOKENS), None)
    if wrong is not None:
        raise ModelError(f"{source}: the id of {shown(wrong)} is {shown(vocab[wrong])}, no token's id; {DOWNLOAD}")
    return vocab


def _read_added(source: Path, values: Mapping[str, Any]) -> tuple[AddedToken, ...]:
    added: list[AddedToken] = []
    for entry in member(source, values, "added_tokens", list, []):
        fields = entry if isinstance(entry, dict) else {}
        name, i, special = fields.get("content"), fields.get("id"), fields.get("special", False)
        if not (isinstance(name, str) and name and type(i) is int and 0 <= i < MAX_TOKENS and type(special) is bool):
            raise ModelError(f"{source}: {shown(entry)} is no added token; {DOWNLOAD}")
        added.append(AddedToken(name, i, special))
    return tuple(added)


def _all_ids(source: Path, vocab: Mapping[str, int], added: Iterable[AddedToken]) -> dict[str, int]:
    ids = dict(vocab)
    for token in added:
        if ids.setdefault(token.name, token.id) != token.id:
            raise ModelError(f"{source}: {shown(token.name)} is both {ids[token.name]} and {token.id}; {DOWNLOAD}")
    if not ids:
        raise ModelError(f"{source} has no tokens; {DOWNLOAD}")
    if len(set(ids.values())) < len(ids):
        name_of: dict[int, str] = {}
        again, i = next((name, i) for name, i in ids.items() if name_of.setdefault(i, name) != name)
        raise ModelError(f"{source}: {shown(name_of[i])} and {shown(again)} are both token {i}; {DOWNLOAD}")
    return ids


def _is_byte_level(tokenizer: TokenizerJson) -> bool:
    """Whether tokens are spelled in GPT-2's letters; if not, with ▁ for a space and <0xXX> for a byte."""
    decoder, pre_tokenizer = (tokenizer.values.get(key) for key in ("decoder", "pre_tokenizer"))
    kinds = {*kinds_of(decoder), *kinds_of(pre_tokenizer)}
    if "ByteLevel" in kinds:
        return True
    if kinds & {"Metaspace", "ByteFallback"} or any(map(_writes_spaces, _steps(decoder))):
        return False
    raise ModelError(
        f"{tokenizer.source}: its decoder, {shown(sorted(kinds))}, is neither that of byte-level nor of SentencePiece "
        "tokens, so it is not known what the tokens write; take a model with one of these"
    )


def _writes_spaces(step: Mapping[str, Any]) -> bool:
    return step.get("type") == "Replace" and step.get("pattern") == {"String": "▁"}


def _steps(step: object) -> list[dict[str, Any]]:
    """A decoder or pre-tokenizer, or the parts of a sequence of them. One level: no tokenizer nests them."""
    if not isinstance(step, dict):
        return []
    parts = step.get("decoders") or step.get("pretokenizers")
    return [part for part in (parts if isinstance(parts, list) else [step]) if isinstance(part, dict)]
