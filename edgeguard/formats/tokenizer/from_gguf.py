"""A Hugging Face tokenizer.json, and the configurations beside it, made from a GGUF header."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence, Set
from itertools import pairwise
from typing import Any

from edgeguard.errors import ModelError, shown
from edgeguard.formats import gguf
from edgeguard.formats.tokenizer.gguf_tokens import (
    Tokens,
    contradiction,
    flag,
    read_tokens,
    read_types,
    special_id,
    strings,
)
from edgeguard.formats.tokenizer.patterns import PRE_TOKENIZERS, PreTokenizer, split
from edgeguard.formats.tokenizer.spelling import LETTERS


def tokenizer_files(header: gguf.Header) -> dict[str, bytes]:
    """The tokenizer's files of a Hugging Face model folder, by name, from a GGUF's metadata. Deterministic.

    "tokenizer.json", "tokenizer_config.json" and "generation_config.json". Raises ModelError for a kind of
    tokenizer that is not supported, and for metadata that contradict each other.
    """
    model = header.metadata.get("tokenizer.ggml.model")
    if model not in ("gpt2", "llama"):
        raise ModelError(
            f"{header.path}: tokenizer.ggml.model is {shown(model)}; supported are gpt2 (byte-level BPE) and llama "
            "(SentencePiece BPE); use the GGUF itself, or a model folder with a tokenizer.json"
        )
    pre = _pre(header) if model == "gpt2" else None
    tokens = read_tokens(header)
    parts = _byte_level_parts(header, tokens, pre) if pre else _sentencepiece_parts(header, tokens)
    bos = special_id(header, "bos", 11 if pre else 1, len(tokens.ids))
    begins = _begins(header, pre) and bos is not None
    name_of = {i: name for name, i in tokens.ids.items()}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added_token(i, name_of[i], special=i in tokens.control) for i in sorted(tokens.control | tokens.user)
        ],
        "post_processor": _begin_with(name_of[bos], bos) if begins and bos is not None else None,
        **parts,
    }
    return {
        "tokenizer.json": json.dumps(tokenizer, ensure_ascii=False).encode(),
        "tokenizer_config.json": _tokenizer_config(header, tokens, name_of, bos if begins else None),
        "generation_config.json": _generation_config(header, tokens, bos if begins else None),
    }


def begins_with(header: gguf.Header) -> int | None:
    """The id that prompts begin with, None for none. Raises ModelError as `tokenizer_files` does."""
    pre = _pre(header) if header.metadata.get("tokenizer.ggml.model") == "gpt2" else None
    bos = special_id(header, "bos", 11 if pre else 1, len(strings(header, "tokens")))
    return bos if _begins(header, pre) else None


def _begins(header: gguf.Header, pre: PreTokenizer | None) -> bool:
    return flag(header, "add_bos_token", pre.add_bos if pre else True)


def _pre(header: gguf.Header) -> PreTokenizer:
    name = header.metadata.get("tokenizer.ggml.pre", "")
    if not isinstance(name, str) or name not in PRE_TOKENIZERS:
        known = ", ".join(filter(None, PRE_TOKENIZERS))
        raise ModelError(
            f"{header.path}: tokenizer.ggml.pre is {shown(name)}; supported are {known}; "
            "use the GGUF itself, or a model folder with a tokenizer.json"
        )
    return PRE_TOKENIZERS[name]


def _byte_level_parts(header: gguf.Header, tokens: Tokens, pre: PreTokenizer) -> dict[str, Any]:
    vocab = tokens.used()
    if "byte" in read_types(header, len(tokens.ids)):
        raise contradiction(header, "it has tokens of type byte, and a byte-level vocabulary spells bytes as letters")
    steps: list[dict[str, Any]] = [split(pattern, "Isolated") for pattern in pre.splits]
    steps.append({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False})
    missing = "".join(rf"\x{{{ord(letter):X}}}" for letter in LETTERS if letter not in vocab)
    if missing:  # a byte without a token is dropped, and no merge reaches across it
        steps.append(split(f"[{missing}]", "Removed"))
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": _bpe(vocab, _read_merges(header, vocab), ignore_merges=pre.ignore_merges),
    }


def _read_merges(header: gguf.Header, vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    """The merges in their order, the first of equal ones. All their parts and outcomes must be tokens."""
    merges: dict[tuple[str, str], None] = {}
    for i, raw in enumerate(strings(header, "merges")):
        text = raw.partition(b"\0")[0].decode(errors="replace")
        at = text.find(" ", 1)  # a part may begin with a space
        if at < 0:
            continue  # llama.cpp reads these as a merge of nothing
        left, right = text[:at], text[at + 1 :]
        lost = next((part for part in (left, right, left + right) if part not in vocab), None)
        if lost is not None:
            raise contradiction(header, f"merge {i}, {shown(text)}, needs {shown(lost)}, which is no token in use")
        merges[left, right] = None
    return list(merges)


def _sentencepiece_parts(header: gguf.Header, tokens: Tokens) -> dict[str, Any]:
    vocab = tokens.used()
    lost = next((b for b in range(256) if f"<0x{b:02X}>" not in vocab), None)
    if lost is not None:
        raise contradiction(header, f"no token is the byte <0x{lost:02X}>, so some texts have no tokens")
    spaces: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if flag(header, "add_space_prefix", True):
        spaces.insert(0, {"type": "Prepend", "prepend": "▁"})
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": {"type": "Sequence", "normalizers": spaces},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe(vocab, _merges_by_score(header, tokens), byte_fallback=True),
    }


def _merges_by_score(header: gguf.Header, tokens: Tokens) -> list[tuple[str, str]]:
    """Every way to make a token of two, best score first: SentencePiece has no list of merges, only scores.

    llama.cpp merges the leftmost of two tokens with the same score, which no order of merges says. Raises ModelError
    where that could make a difference: it makes none for the runs of spaces of Llama's vocabularies.
    """
    scores = _read_scores(header, len(tokens.ids))
    parts = {name for name, i in tokens.ids.items() if i not in tokens.control | tokens.unused}
    made = [name for name in parts if not _is_taken_out(name, tokens.ids[name] in tokens.user)]
    merges: list[tuple[str, str]] = []
    tied: dict[float, list[str]] = {}
    for name in sorted(made, key=lambda name: (-scores[tokens.ids[name]], tokens.ids[name])):
        pairs = _pairs(header, name, parts)
        merges += pairs
        if pairs:
            tied.setdefault(scores[tokens.ids[name]], []).append(name)
    rank = {pair: n for n, pair in enumerate(merges)}
    for names in tied.values():
        if len(names) > 1 and not _any_order_is_right(names, rank):
            raise contradiction(
                header,
                f"tokens {shown(names[0])} and {shown(names[1])} have the same score, so it does not say which of them "
                "a text is made of",
            )
    return merges


def _any_order_is_right(names: Sequence[str], rank: Mapping[tuple[str, str], int]) -> bool:
    """Whether tokens with one score are runs of one character, and each run is cut alike from the left and by rank."""
    if len(set("".join(names))) > 1:
        return False
    alone = names[0][0]
    among = {pair: n for pair, n in rank.items() if "".join(pair) in names}
    lengths = range(2, 2 * max(map(len, names)) + 2)
    return all(_merged(alone * n, dict.fromkeys(among, 0)) == _merged(alone * n, among) for n in lengths)


def _merged(text: str, rank: Mapping[tuple[str, str], int]) -> list[str]:
    """A text cut by merging the neighbours of the lowest rank, the leftmost of these, until none is left."""
    parts = list(text)
    while found := [(rank[pair], i) for i, pair in enumerate(pairwise(parts)) if pair in rank]:
        _, i = min(found)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def _is_taken_out(name: str, user: bool) -> bool:
    """Whether no merge ever meets a token's text: its spaces are ▁ by then, and user-defined tokens are found before.

    One with ▁ in its name is found before only where a text itself has ▁, and not where it has spaces.
    """
    return " " in name or (user and "▁" not in name)


def _pairs(header: gguf.Header, name: str, parts: Set[str]) -> list[tuple[str, str]]:
    """The pairs of tokens that a token can be made of. Raises ModelError for a character that is no token."""
    found = []
    for at in range(1, len(name)):
        left, right = name[:at], name[at:]
        if left in parts and right in parts:
            found.append((left, right))
        elif (left in parts or at == 1) and (right in parts or at == len(name) - 1):
            lost = right if left in parts else left
            raise contradiction(header, f"token {shown(name)} is built of {shown(lost)}, which is no token")
    return found


def _read_scores(header: gguf.Header, n: int) -> list[float]:
    values = header.metadata.get("tokenizer.ggml.scores")
    if not isinstance(values, gguf.Array) or values.type_name not in ("f32", "i32") or values.length < n:
        raise contradiction(header, f"tokenizer.ggml.scores is {shown(values)} for {n} tokens")
    scores: list[float] = values.numbers()[:n].astype("f4").tolist()
    wrong = next((i for i, score in enumerate(scores) if not math.isfinite(score)), None)
    if wrong is not None:
        raise contradiction(header, f"the score of token {wrong} is {scores[wrong]}")
    return scores


def _bpe(
    vocab: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    *,
    ignore_merges: bool = False,
    byte_fallback: bool = False,
) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": byte_fallback,
        "ignore_merges": ignore_merges,
        "vocab": vocab,
        "merges": merges,
    }


def _added_token(i: int, name: str, *, special: bool) -> dict[str, Any]:
    strict = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": i, "content": name, **strict, "special": special}


def _begin_with(name: str, i: int) -> dict[str, Any]:
    first = {"SpecialToken": {"id": name, "type_id": 0}}
    a, b = ({"Sequence": {"id": which, "type_id": t}} for t, which in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [first, a],
        "pair": [first, a, b],
        "special_tokens": {name: {"id": name, "ids": [i], "tokens": [name]}},
    }


def _tokenizer_config(header: gguf.Header, tokens: Tokens, name_of: Mapping[int, str], bos: int | None) -> bytes:
    config: dict[str, Any] = {
        "add_bos_token": bos is not None,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": gguf.context_length(header),
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    bos = special_id(header, "bos", None, len(name_of)) if bos is None else bos
    eos = special_id(header, "eos", None, len(name_of))
    if bos is not None:
        config["bos_token"] = name_of[bos]
    if eos in tokens.eog:
        config["eos_token"] = name_of[eos]
    template = gguf.chat_template(header)
    if template is not None:
        config["chat_template"] = template
    return _pretty(config)


def _generation_config(header: gguf.Header, tokens: Tokens, bos: int | None) -> bytes:
    config: dict[str, Any] = {"eos_token_id": sorted(tokens.eog)}
    bos = special_id(header, "bos", None, len(tokens.ids)) if bos is None else bos
    pad = special_id(header, "padding", None, len(tokens.ids))
    if bos is not None:
        config["bos_token_id"] = bos
    if pad is not None:
        config["pad_token_id"] = pad
    return _pretty(config)


def _pretty(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True) + "\n").encode()
