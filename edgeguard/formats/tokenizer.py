r"""A Hugging Face tokenizer.json as edgeguard's Vocabulary, and such files made from a GGUF header.

The law: for a GGUF, the vocabulary read from its `tokenizer_files` is the one that llama.cpp has, and gives
the same ids for every text. For that the patterns below are llama.cpp's, in the words of the regex engine
that `tokenizers` has, Oniguruma. Where the two cannot agree:

- A control token is never written by text here. llama.cpp lets merges make one, where a file has such merges.
- Two tokens of type "user defined" that overlap in a text ("ab" and "bcd" in "abcd"): the first of them is
  taken here, the longest by llama.cpp.
- Two SentencePiece pieces of equal score compete: llama.cpp merges the leftmost, here one of them always wins.
  Scores of real vocabularies differ.
- A vocabulary with several names for one fill-in-the-middle token ("<PAD>" and "<fim_pad>"): llama.cpp takes
  the first of a hash table, here it is the first of `_FILL_NAMES`.
- A token of a byte-level vocabulary that is not in GPT-2's letters writes its text here, as in `tokenizers`;
  llama.cpp writes "[UNK_BYTE_…]". No text is encoded as such a token.
- llama.cpp's table is Unicode 15.1. What Unicode 16 added is taken out of the patterns below; `tokenizers`
  before 0.21 still knows no letters of Unicode 15.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from edgeguard.backend import Vocabulary
from edgeguard.errors import ModelError, printable
from edgeguard.formats import gguf

MAX_BYTES = 64 << 20  # of one JSON file; Gemma's tokenizer.json, the largest known, has 33 MB
MAX_TOKENS = 1 << 22  # an id above would cost memory before the lie shows

_AGAIN = "export the model again, or download its folder again"
_CONVERT = "convert the model again, or take another file of it"


# What llama.cpp knows

# Names of tokens that end an answer.
_END_NAMES = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
)
# Names of fill-in-the-middle tokens, looked for where no key of the header names one.
_FILL_NAMES: Mapping[str, tuple[str, ...]] = {
    "pre": (
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<｜fim▁begin｜>",
        "<PRE>",
        "▁<PRE>",
        "<|code_prefix|>",
        "<|prefix|>",
    ),
    "suf": (
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<｜fim▁hole｜>",
        "<SUF>",
        "▁<SUF>",
        "<|code_suffix|>",
        "<|suffix|>",
    ),
    "mid": (
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<｜fim▁end｜>",
        "<MID>",
        "▁<MID>",
        "<|code_middle|>",
        "<|middle|>",
    ),
    "pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "sep": ("<|file_sep|>",),
}
_FILL_ENDS = ("pad", "rep", "sep")  # these end an answer
_OLD_FILL_KEYS = {"pre": "prefix", "suf": "suffix", "mid": "middle"}
_ALWAYS_TEXT = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")

_TOKEN_TYPES = ("undefined", "normal", "unknown", "control", "user defined", "unused", "byte")  # by number

# Undefined in llama.cpp's table, a letter, number, mark, punctuation or symbol since Unicode 16.
_SINCE_16 = re.sub(
    r"(\w+)-(\w+) ?",
    r"\\x{\1}-\\x{\2}",
    "897-897 1B4E-1B4F 1B7F-1B7F 1C89-1C8A 2427-2429 31E4-31E5 A7CB-A7CD A7DA-A7DC 105C0-105F3 10D40-10D8F 10EC2-10EFC "
    "11380-113E2 116D0-116E3 11BC0-11BF9 11F5A-11F5A 13460-143FA 16100-16139 16D40-16D79 18CFF-18CFF 1CC00-1CEB3 "
    "1E5D0-1E5FF 1F8B2-1F8C1 1FA89-1FA8F 1FABE-1FABE 1FAC6-1FAC6 1FADC-1FADF 1FAE9-1FAE9 1FBCB-1FBEF",
)

_SHORT = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACE = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{L}&&[^a-z]]", r"[\p{L}&&[^A-Z]]"  # llama.cpp's reading of \p{Lu} and \p{Ll} here
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
_CASED_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"

_GPT2 = (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",)
_DIGITS = (r"\p{N}", *_GPT2)
_LLAMA3 = (rf"{_SHORT}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACE}",)
_QWEN2 = (rf"{_SHORT}|{_WORD}|\p{{N}}|{_SIGNS}|{_SPACE}",)
_QWEN35 = (rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACE}",)
_TEKKEN = (rf"{_CASED % ('', '')}|\p{{N}}|{_CASED_SIGNS}|{_SPACE}",)
_GPT4O = (rf"{_CASED % (f'{_SHORT}?', f'{_SHORT}?')}|\p{{N}}{{1,3}}|{_CASED_SIGNS}|{_SPACE}",)
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"[!-/:-@\[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|" + _SPACE,
)
_SEED_CODER = (rf"{_SHORT}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACE}",)
_FALCON = (r"[\p{P}$+<=>^~|`]+", *_GPT2, "[0-9][0-9][0-9]")
_DEFAULT = (r"[\p{P}$+<=>^~|]+", *_GPT2, r"\p{N}+", "[0-9][0-9][0-9]")


@dataclass(frozen=True)
class _Pre:
    """What a value of tokenizer.ggml.pre means: patterns that split a text one after the other, and defaults."""

    splits: tuple[str, ...]
    ignore_merges: bool = False  # a whole word that is a token is taken as it is
    add_bos: bool = False


def _named(names: str, pre: _Pre) -> dict[str, _Pre]:
    return dict.fromkeys(names.split(), pre)


_PRE: Mapping[str, _Pre] = {
    "": _Pre(_DEFAULT),
    **_named("default", _Pre(_DEFAULT)),
    **_named("gpt-2 phi-2 mpt olmo jais trillion gigachat exaone4 a.x-4.0 mellum granite-docling", _Pre(_GPT2)),
    **_named("smollm starcoder refact command-r codeshell exaone minerva-7b mellum2", _Pre(_DIGITS)),
    **_named(
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2",
        _Pre(_LLAMA3, ignore_merges=True, add_bos=True),
    ),
    **_named("smaug-bpe dbrx", _Pre(_LLAMA3)),
    **_named("qwen2 deepseek-r1-qwen megrez kormo stablelm2 hunyuan solar-open grok-2", _Pre(_QWEN2)),
    **_named("qwen35", _Pre(_QWEN35)),
    **_named("tekken", _Pre(_TEKKEN, ignore_merges=True, add_bos=True)),
    **_named("gpt-4o llama4 kanana2 minimax-m2", _Pre(_GPT4O)),
    **_named("deepseek-v3 hunyuan-dense joyai-llm hy_v4", _Pre(_DEEPSEEK3)),
    **_named("seed-coder", _Pre(_SEED_CODER)),
    **_named("falcon", _Pre(_FALCON)),
}


def _byte_letters() -> list[str]:
    """GPT-2's letter for each byte: printable Latin-1 as itself, the others from U+0100 on."""
    printed = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [b for b in range(256) if b not in printed]
    return [chr(b) if b in printed else chr(256 + others.index(b)) for b in range(256)]


_LETTERS = _byte_letters()
_BYTE_OF = {letter: byte for byte, letter in enumerate(_LETTERS)}
_BYTE_NAME = re.compile("<0x([0-9A-F]{2})>")


def _end_ids(ids: Mapping[str, int], declared: Iterable[int]) -> frozenset[int]:
    """The ids that end an answer: those declared and those of well-known names, but for llama.cpp's exceptions."""
    found = {*declared, *(ids[name] for name in _END_NAMES if name in ids)}
    here = {name for name in (*_END_NAMES, "<|plamo:eos|>") if ids.get(name) in found}
    call = bool(here & {"<|call|>", "<|calls|>"})
    if call and here & {"<|return|>", "<|flush|>"} and "<|end|>" in here:
        found.remove(ids["<|end|>"])  # between the parts of an answer, with these
    if here & {"<|tool_response>", "<|plamo:eos|>"} and "</s>" in here:
        found.remove(ids["</s>"])  # an HTML tag, with these
    return frozenset(found)


def _fill_id(ids: Mapping[str, int], kind: str) -> int | None:
    return next((ids[name] for name in _FILL_NAMES[kind] if name in ids), None)


# From a GGUF header


@dataclass(frozen=True)
class Tokens:
    """A header's tokens.

    ids      every token's name → id
    control  never written by text; the unknown token is among them
    user     user-defined: taken out of a text before all else
    unused   in no text and with no piece; left out of the files
    eog      end an answer
    """

    ids: Mapping[str, int]
    control: frozenset[int]
    user: frozenset[int]
    unused: frozenset[int]
    eog: frozenset[int]

    def used(self) -> dict[str, int]:
        """Names and ids of all tokens but the unused."""
        return {name: i for name, i in self.ids.items() if i not in self.unused}


def tokenizer_files(header: gguf.Header) -> dict[str, bytes]:
    """The tokenizer's files of a Hugging Face model folder, by name, from a GGUF's metadata. Deterministic.

    "tokenizer.json", "tokenizer_config.json" and "generation_config.json". Raises ModelError for a kind of
    tokenizer that is not supported, and for metadata that contradict each other.
    """
    model = header.metadata.get("tokenizer.ggml.model")
    if model not in ("gpt2", "llama"):
        raise ModelError(
            f"{header.path}: tokenizer.ggml.model is {_shown(model)}; supported are gpt2 (byte-level BPE) and llama "
            "(SentencePiece BPE); use the GGUF itself, or a model folder with a tokenizer.json"
        )
    pre = _pre(header) if model == "gpt2" else None
    tokens = read_tokens(header)
    parts = _byte_level_parts(header, tokens, pre) if pre else _sentencepiece_parts(header, tokens)
    bos = _special_id(header, "bos", 11 if pre else 1, len(tokens.ids))
    begins = _flag(header, "add_bos_token", pre.add_bos if pre else True) and bos is not None
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


def _pre(header: gguf.Header) -> _Pre:
    name = header.metadata.get("tokenizer.ggml.pre", "")
    if not isinstance(name, str) or name not in _PRE:
        raise ModelError(
            f"{header.path}: tokenizer.ggml.pre is {_shown(name)}; supported are {', '.join(filter(None, _PRE))}; "
            "use the GGUF itself, or a model folder with a tokenizer.json"
        )
    return _PRE[name]


def read_tokens(header: gguf.Header) -> Tokens:
    """Names and kinds of all tokens, after llama.cpp's corrections of kinds."""
    ids = _read_names(header)
    of_type: dict[str, set[int]] = {kind: set() for kind in _TOKEN_TYPES}
    for i, kind in enumerate(_read_types(header, len(ids))):
        of_type[kind].add(i)
    guessed, fill_ends = _fill_tokens(header, ids)
    ends = {ids[name] for name in _END_NAMES if name in ids}
    declared = fill_ends | _declared_end_ids(header, len(ids))
    eog = _end_ids(ids, declared)
    freed = (ends | declared) - eog
    text = {ids[name] for name in _ALWAYS_TEXT if name in ids} | (freed & {ids.get("<|end|>")})
    settled = text | freed  # of a kind now, whatever the header says
    control = of_type["control"] | ends | guessed
    unused = of_type["unused"] | {i for name, i in ids.items() if i in control and "unused" in name}
    return Tokens(
        ids=ids,
        control=frozenset((control | of_type["unknown"]) - unused - settled),
        user=frozenset((of_type["user defined"] - control - freed) | text),
        unused=frozenset((unused | (of_type["undefined"] - control)) - settled),
        eog=eog,
    )


def _fill_tokens(header: gguf.Header, ids: Mapping[str, int]) -> tuple[set[int], set[int]]:
    """Fill-in-the-middle tokens: those known by their names alone, and those that end an answer."""
    keys = {kind: _fill_key(header, kind, len(ids)) for kind in _FILL_NAMES}
    guessed = {kind: _fill_id(ids, kind) for kind, i in keys.items() if i is None}
    found = {**keys, **guessed}
    return {i for i in guessed.values() if i is not None}, {i for k in _FILL_ENDS if (i := found[k]) is not None}


def _declared_end_ids(header: gguf.Header, n: int) -> set[int]:
    """The header's tokens that end an answer; llama.cpp takes token 11 or 2 where it names none."""
    eos = _special_id(header, "eos", 11 if header.metadata["tokenizer.ggml.model"] == "gpt2" else 2, n)
    others = (_special_id(header, key, None, n) for key in ("eot", "eom"))
    return {i for i in (eos, *others) if i is not None}


def _read_names(header: gguf.Header) -> dict[str, int]:
    """Token names → ids, in the order of ids. llama.cpp ends a name at a NUL and numbers the empty ones."""
    ids: dict[str, int] = {}
    for i, raw in enumerate(_strings(header, "tokens")):
        try:
            name = raw.partition(b"\0")[0].decode() or f"[EMPTY_{i}]"
        except UnicodeDecodeError:
            raise _contradiction(header, f"token {i} is not UTF-8: {_shown(raw)}") from None
        if name in ids:
            raise _contradiction(header, f"tokens {ids[name]} and {i} are the same, {_shown(name)}")
        ids[name] = i
    if not ids:
        raise _contradiction(header, "tokenizer.ggml.tokens is empty")
    return ids


def _read_types(header: gguf.Header, n: int) -> list[str]:
    """Each token's kind; all are normal where the header does not say."""
    values = header.metadata.get("tokenizer.ggml.token_type")
    if values is None:
        return ["normal"] * n
    if not isinstance(values, gguf.Array) or values.type_name != "i32" or values.length < n:
        raise _contradiction(header, f"tokenizer.ggml.token_type is {_shown(values)} for {n} tokens")
    numbers = values.numbers()[:n].tolist()
    return [_TOKEN_TYPES[t] if 0 <= t < len(_TOKEN_TYPES) else "undefined" for t in numbers]


def _byte_level_parts(header: gguf.Header, tokens: Tokens, pre: _Pre) -> dict[str, Any]:
    vocab = tokens.used()
    if "byte" in _read_types(header, len(tokens.ids)):
        raise _contradiction(header, "it has tokens of type byte, and a byte-level vocabulary spells bytes as letters")
    steps: list[dict[str, Any]] = [_split(pattern, "Isolated") for pattern in pre.splits]
    steps.append({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False})
    missing = "".join(rf"\x{{{ord(letter):X}}}" for letter in _LETTERS if letter not in vocab)
    if missing:  # a byte without a token is dropped, and no merge reaches across it
        steps.append(_split(f"[{missing}]", "Removed"))
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": _bpe(vocab, _read_merges(header, vocab), ignore_merges=pre.ignore_merges),
    }


def _read_merges(header: gguf.Header, vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    """The merges in their order, the first of equal ones. All their parts and outcomes must be tokens."""
    merges: dict[tuple[str, str], None] = {}
    for i, raw in enumerate(_strings(header, "merges")):
        text = raw.partition(b"\0")[0].decode(errors="replace")
        at = text.find(" ", 1)  # a part may begin with a space
        if at < 0:
            continue  # llama.cpp reads these as a merge of nothing
        left, right = text[:at], text[at + 1 :]
        lost = next((part for part in (left, right, left + right) if part not in vocab), None)
        if lost is not None:
            raise _contradiction(header, f"merge {i}, {_shown(text)}, needs {_shown(lost)}, which is no token in use")
        merges[left, right] = None
    return list(merges)


def _sentencepiece_parts(header: gguf.Header, tokens: Tokens) -> dict[str, Any]:
    vocab = tokens.used()
    lost = next((b for b in range(256) if f"<0x{b:02X}>" not in vocab), None)
    if lost is not None:
        raise _contradiction(header, f"no token is the byte <0x{lost:02X}>, so some texts have no tokens")
    spaces: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if _flag(header, "add_space_prefix", True):
        spaces.insert(0, {"type": "Prepend", "prepend": "▁"})
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": {"type": "Sequence", "normalizers": spaces},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe(vocab, _merges_by_score(header, tokens), byte_fallback=True),
    }


def _merges_by_score(header: gguf.Header, tokens: Tokens) -> list[tuple[str, str]]:
    """Every way to make a token of two, best score first: SentencePiece has no list of merges, only scores."""
    scores = _read_scores(header, len(tokens.ids))
    parts = {name for name, i in tokens.ids.items() if i not in tokens.control | tokens.unused}
    merges: list[tuple[str, str]] = []
    for name in sorted(parts, key=lambda name: (-scores[tokens.ids[name]], tokens.ids[name])):
        for at in range(1, len(name)):
            left, right = name[:at], name[at:]
            if left in parts and right in parts:
                merges.append((left, right))
            elif (left in parts or at == 1) and (right in parts or at == len(name) - 1):
                lost = right if left in parts else left
                raise _contradiction(header, f"token {_shown(name)} is built of {_shown(lost)}, which is no token")
    return merges


def _read_scores(header: gguf.Header, n: int) -> list[float]:
    values = header.metadata.get("tokenizer.ggml.scores")
    if not isinstance(values, gguf.Array) or values.type_name not in ("f32", "i32") or values.length < n:
        raise _contradiction(header, f"tokenizer.ggml.scores is {_shown(values)} for {n} tokens")
    scores: list[float] = values.numbers()[:n].astype("f4").tolist()
    wrong = next((i for i, score in enumerate(scores) if not math.isfinite(score)), None)
    if wrong is not None:
        raise _contradiction(header, f"the score of token {wrong} is {scores[wrong]}")
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


def _split(pattern: str, behavior: str) -> dict[str, Any]:
    for name in "LNMPS":
        pattern = pattern.replace(rf"\p{{{name}}}", rf"[\p{{{name}}}&&[^{_SINCE_16}]]")
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False}


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
    bos = _special_id(header, "bos", None, len(name_of)) if bos is None else bos
    eos = _special_id(header, "eos", None, len(name_of))
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
    bos = _special_id(header, "bos", None, len(tokens.ids)) if bos is None else bos
    pad = _special_id(header, "padding", None, len(tokens.ids))
    if bos is not None:
        config["bos_token_id"] = bos
    if pad is not None:
        config["pad_token_id"] = pad
    return _pretty(config)


def _pretty(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True) + "\n").encode()


def _special_id(header: gguf.Header, name: str, default: int | None, n: int) -> int | None:
    """The id of the header's `name` token. llama.cpp ignores one that is out of range; so do we."""
    default = None if default is not None and default >= n else default
    value = header.metadata.get(f"tokenizer.ggml.{name}_token_id", default)
    if isinstance(value, bool) or not isinstance(value, int | None):
        raise _contradiction(header, f"tokenizer.ggml.{name}_token_id is {_shown(value)}, a whole number is needed")
    return value if value is None or 0 <= value < n else default


def _fill_key(header: gguf.Header, kind: str, n: int) -> int | None:
    new = _special_id(header, f"fim_{kind}", None, n)
    old = _special_id(header, _OLD_FILL_KEYS[kind], None, n) if kind in _OLD_FILL_KEYS else None
    return new if old is None else old


def _flag(header: gguf.Header, name: str, default: bool) -> bool:
    value = header.metadata.get(f"tokenizer.ggml.{name}", default)
    if not isinstance(value, bool):
        raise _contradiction(header, f"tokenizer.ggml.{name} is {_shown(value)}, true or false is needed")
    return value


def _strings(header: gguf.Header, name: str) -> list[bytes]:
    value = header.metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(value, gguf.Array) or value.type_name != "str":
        raise _contradiction(header, f"tokenizer.ggml.{name} is {_shown(value)}, an array of str is needed")
    return value.strings()


def _contradiction(header: gguf.Header, what: str) -> ModelError:
    return ModelError(f"{header.path} has no tokenizer that can be used: {what}; {_CONVERT}")


# From a model folder


def read_vocabulary(folder: Path, *, n_vocab: int | None = None) -> Vocabulary:
    """The vocabulary of a model folder, from its tokenizer.json and the configurations beside it.

    n_vocab  length of the model's next-token rows, which may be padded: the rest are unused tokens. None: as
             many as the tokenizer has

    Control tokens are the special ones among the added tokens, and those of names that end an answer. Raises
    ModelError for a missing or broken file, for a tokenizer that is no BPE, and for one larger than `n_vocab`.
    """
    folder = Path(folder)
    source = folder / "tokenizer.json"
    if not source.is_file():
        raise _no_tokenizer(folder)
    tokenizer = _read_json(source)
    vocab, added = _read_model_vocab(source, tokenizer), _read_added(source, tokenizer)
    ids = _all_ids(source, vocab, added)
    n = _length(source, ids, n_vocab)
    configs = _read_configs(folder)
    eog = _end_ids(ids, _declared_ends(configs, ids, n))
    control = {token.name: token.id for token in added if token.special}
    control |= {name: ids[name] for name in _END_NAMES if ids.get(name) in eog}
    library = _load(source, _without_control(source, tokenizer, vocab, added, control))
    return Vocabulary(
        pieces=_pieces(source, tokenizer, vocab, added, control, n),
        control=control,
        eog=eog,
        bos=_bos(source, configs, ids, n, library),
        encode=_encoder(source, library),
    )


def read_chat_template(folder: Path) -> str | None:
    """A model folder's default chat template, Jinja from a stranger; None if it has none. Raises ModelError.

    From chat_template.jinja, tokenizer_config.json or chat_template.json, the first that has one.
    """
    folder = Path(folder)
    source = folder / "chat_template.jinja"
    if source.is_file():
        return _template(source, _read_text(source))
    for name in ("tokenizer_config.json", "chat_template.json"):
        source = folder / name
        value = _read_json(source).get("chat_template") if source.is_file() else None
        if isinstance(value, list):
            value = _default_template(source, value)
        if value is not None:
            return _template(source, value)
    return None


@dataclass(frozen=True)
class _Added:
    """An added token of a tokenizer.json: found in a text before all else."""

    name: str
    id: int
    special: bool


@dataclass(frozen=True)
class _Config:
    """A configuration of the folder, as read."""

    source: Path
    values: Mapping[str, Any]


def _no_tokenizer(folder: Path) -> ModelError:
    if not folder.is_dir():
        return ModelError(f"{folder} is not a folder; give the model's folder, with its tokenizer.json")
    if any((folder / name).is_file() for name in ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")):
        return ModelError(
            f"{folder} has a SentencePiece model and no tokenizer.json; load it with transformers' "
            "AutoTokenizer.from_pretrained and write the tokenizer.json with save_pretrained"
        )
    return ModelError(f"{folder} has no tokenizer.json; {_AGAIN}, or copy the file from the original model")


def _read_model_vocab(source: Path, tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Names → ids of the BPE model itself, without the added tokens."""
    model = _member(source, tokenizer, "model", dict)
    if model.get("type", "BPE") != "BPE":
        raise ModelError(
            f"{source}: the tokenizer's model is {_shown(model['type'])}; BPE is supported, which generative guard "
            "models have, take one of these"
        )
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise ModelError(
            f"{source} marks begins or ends of words in its tokens; byte-level and SentencePiece BPE are supported, "
            "take a model with one of these"
        )
    vocab: dict[str, int] = _member(source, model, "vocab", dict)
    wrong = next((name for name, i in vocab.items() if type(i) is not int or not 0 <= i < MAX_TOKENS), None)
    if wrong is not None:
        raise ModelError(f"{source}: the id of {_shown(wrong)} is {_shown(vocab[wrong])}, no token's id; {_AGAIN}")
    return vocab


def _read_added(source: Path, tokenizer: Mapping[str, Any]) -> list[_Added]:
    added: list[_Added] = []
    for entry in _member(source, tokenizer, "added_tokens", list, []):
        fields = entry if isinstance(entry, dict) else {}
        name, i, special = fields.get("content"), fields.get("id"), fields.get("special", False)
        if not (isinstance(name, str) and name and type(i) is int and 0 <= i < MAX_TOKENS and type(special) is bool):
            raise ModelError(f"{source}: {_shown(entry)} is no added token; {_AGAIN}")
        added.append(_Added(name, i, special))
    return added


def _all_ids(source: Path, vocab: Mapping[str, int], added: Iterable[_Added]) -> dict[str, int]:
    """Names → ids of all tokens, no two of one name or id."""
    ids = dict(vocab)
    for token in added:
        if ids.setdefault(token.name, token.id) != token.id:
            raise ModelError(f"{source}: {_shown(token.name)} is both {ids[token.name]} and {token.id}; {_AGAIN}")
    if not ids:
        raise ModelError(f"{source} has no tokens; {_AGAIN}")
    if len(set(ids.values())) < len(ids):
        name_of: dict[int, str] = {}
        again, i = next((name, i) for name, i in ids.items() if name_of.setdefault(i, name) != name)
        raise ModelError(f"{source}: {_shown(name_of[i])} and {_shown(again)} are both token {i}; {_AGAIN}")
    return ids


def _length(source: Path, ids: Mapping[str, int], n_vocab: int | None) -> int:
    n = max(ids.values()) + 1
    if n_vocab is not None and n_vocab < n:
        raise ModelError(
            f"{source} has tokens up to id {n - 1}, the model gives {n_vocab} probabilities; they are not of the "
            f"same model, {_AGAIN}"
        )
    return n if n_vocab is None else n_vocab


def _pieces(
    source: Path,
    tokenizer: Mapping[str, Any],
    vocab: Mapping[str, int],
    added: Iterable[_Added],
    control: Mapping[str, int],
    n: int,
) -> list[bytes]:
    """The bytes each token writes, by id; b"" for control and unused tokens."""
    pieces = [b""] * n
    written = _from_letters if _is_byte_level(source, tokenizer) else _from_sentencepiece
    try:
        for name, i in vocab.items():
            pieces[i] = written(name)
        for token in added:
            pieces[token.id] = token.name.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
        raise ModelError(f"{source}: {_shown(error.object)} is no Unicode text; {_AGAIN}") from None
    for i in control.values():
        pieces[i] = b""
    return pieces


def _is_byte_level(source: Path, tokenizer: Mapping[str, Any]) -> bool:
    """Whether tokens are spelled in GPT-2's letters; if not, with ▁ for a space and <0xXX> for a byte."""
    kinds = {*kinds_of(tokenizer.get("decoder")), *kinds_of(tokenizer.get("pre_tokenizer"))}
    if "ByteLevel" in kinds:
        return True
    if kinds & {"Metaspace", "ByteFallback"} or any(map(_writes_spaces, _steps(tokenizer.get("decoder")))):
        return False
    raise ModelError(
        f"{source}: its decoder, {_shown(sorted(kinds))}, is neither that of byte-level nor of SentencePiece tokens, "
        "so it is not known what the tokens write; take a model with one of these"
    )


def _writes_spaces(step: Mapping[str, Any]) -> bool:
    return step.get("type") == "Replace" and step.get("pattern") == {"String": "▁"}


def kinds_of(step: object) -> list[str]:
    """The types of a decoder or pre-tokenizer of tokenizer.json, or of the parts of a sequence of them."""
    return [str(part.get("type")) for part in _steps(step)]


def _steps(step: object) -> list[dict[str, Any]]:
    """A decoder or pre-tokenizer, or the parts of a sequence of them. One level: no tokenizer nests them."""
    if not isinstance(step, dict):
        return []
    parts = step.get("decoders") or step.get("pretokenizers")
    return [part for part in (parts if isinstance(parts, list) else [step]) if isinstance(part, dict)]


def _from_letters(name: str) -> bytes:
    try:
        return bytes([_BYTE_OF[letter] for letter in name])
    except KeyError:  # as tokenizers' decoder: such a token was added, and is spelled as it is
        return name.encode()


def _from_sentencepiece(name: str) -> bytes:
    byte = _BYTE_NAME.fullmatch(name)
    return bytes([int(byte[1], 16)]) if byte else name.replace("▁", " ").encode()


# What ends an answer, and what begins a prompt


def _read_configs(folder: Path) -> dict[str, _Config]:
    """The configurations that may name tokens, {} for those that are missing."""
    names = ("tokenizer_config.json", "generation_config.json", "config.json", "genai_config.json")
    found = {
        name: _Config(folder / name, _read_json(folder / name) if (folder / name).is_file() else {}) for name in names
    }
    genai = found["genai_config.json"]
    found["genai_config.json"] = _Config(genai.source, _member(genai.source, genai.values, "model", dict, {}))
    return found


def _declared_ends(configs: Mapping[str, _Config], ids: Mapping[str, int], n: int) -> set[int]:
    ends = {i for kind in _FILL_ENDS if (i := _fill_id(ids, kind)) is not None}
    for config in configs.values():
        ends.update(_config_ids(config, "eos_token_id", n))
    name = _token_name(configs["tokenizer_config.json"], "eos_token")
    return ends | ({ids[name]} if name is not None and name in ids else set())


def _config_ids(config: _Config, key: str, n: int) -> list[int]:
    """One id or several; none where the key is missing."""
    value = config.values.get(key)
    found = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(i) is int and 0 <= i < n for i in found):
        raise ModelError(f"{config.source}: {key} is {_shown(value)}, ids below {n} are needed; {_AGAIN}")
    return found


def _token_name(config: _Config, key: str) -> str | None:
    value = config.values.get(key)
    if isinstance(value, dict):  # as transformers writes an AddedToken
        value = value.get("content")
    if not isinstance(value, str | None):
        raise ModelError(f"{config.source}: {key} is {_shown(value)}, a token's text is needed; {_AGAIN}")
    return value


def _bos(source: Path, configs: Mapping[str, _Config], ids: Mapping[str, int], n: int, library: Any) -> int | None:
    """The id that prompts begin with, where the configuration or the post-processor puts one."""
    config = configs["tokenizer_config.json"]
    says = config.values.get("add_bos_token")
    if not isinstance(says, bool | None):
        raise ModelError(f"{config.source}: add_bos_token is {_shown(says)}, true or false is needed; {_AGAIN}")
    if says is None:
        return _put_in_front(source, library, n)
    if not says:
        return None
    name = _token_name(config, "bos_token")
    named = [ids[name]] if name is not None and name in ids else []
    declared = [i for other in configs.values() for i in _config_ids(other, "bos_token_id", n)]
    for i in (*named, *declared):
        return i
    raise ModelError(f"{config.source}: add_bos_token is true, and no file names a bos_token that is a token; {_AGAIN}")


def _put_in_front(source: Path, library: Any, n: int) -> int | None:
    encoding = _encoding(source, library, "a", special=True)
    if not encoding.ids or not encoding.special_tokens_mask[0]:
        return None
    first = int(encoding.ids[0])
    if first >= n:
        raise ModelError(f"{source} begins prompts with token {first} of {n}; {_AGAIN}")
    return first


# Encoding


def _without_control(
    source: Path,
    tokenizer: Mapping[str, Any],
    vocab: Mapping[str, int],
    added: Iterable[_Added],
    control: Mapping[str, int],
) -> dict[str, Any]:
    """The same tokenizer, but no text becomes a control token, nothing is cut off or padded, and none is by chance."""
    model = dict(tokenizer["model"])
    text = {token.name: token.id for token in added if token.name not in control}
    # In the model's own vocabulary too, since the library numbers added tokens by itself otherwise.
    model["vocab"] = {name: i for name, i in vocab.items() if name not in control} | text
    model["merges"] = [
        (left, right)
        for left, right in _merge_pairs(source, model.get("merges"))
        if left not in control and right not in control and left + right not in control
    ]
    model |= {"type": "BPE", "unk_token": None, "dropout": None}
    entries = [entry for entry in tokenizer.get("added_tokens") or [] if entry["content"] in text]
    return {**tokenizer, "model": model, "added_tokens": entries, "truncation": None, "padding": None}


def _merge_pairs(source: Path, merges: object) -> list[tuple[str, str]]:
    """Merges as pairs; older files write each as one string."""
    if not isinstance(merges, list):
        raise ModelError(f"{source}: merges is {_shown(merges)}, a list is needed; {_AGAIN}")
    pairs = [m.split(" ") if isinstance(m, str) else m for m in merges]
    wrong = [p for p in pairs if not (isinstance(p, list) and len(p) == 2 and type(p[0]) is type(p[1]) is str)]
    if wrong:
        raise ModelError(f"{source}: {_shown(wrong[0])} is no merge of two tokens; {_AGAIN}")
    return [(left, right) for left, right in pairs]


def _load(source: Path, tokenizer: Mapping[str, Any]) -> Any:
    try:
        library = import_module("tokenizers")  # on demand: only models in folders need it
    except ModuleNotFoundError as error:
        if error.name != "tokenizers":
            raise
        raise ModelError(
            f"{source} needs the tokenizers package, which is not installed; pip install 'edgeguard[onnx]'"
        ) from None
    try:
        return library.Tokenizer.from_str(json.dumps(tokenizer, ensure_ascii=False))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the library is no Exception
        raise _unusable(source, error) from error


def _encoder(source: Path, library: Any) -> Callable[[str], list[int]]:
    """Plain text → token ids; the spelling of a control token stays text."""

    # A closure, since the library's repr, which a partial would show, writes warnings to stdout.
    def encode(text: str) -> list[int]:
        return list(_encoding(source, library, text, special=False).ids)

    return encode


def _encoding(source: Path, library: Any, text: str, *, special: bool) -> Any:
    text.encode()  # half of a surrogate pair is the caller's error, not the file's
    try:
        return library.encode(text, add_special_tokens=special)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the library is no Exception
        raise _unusable(source, error) from error


def _unusable(source: Path, error: BaseException) -> ModelError:
    return ModelError(f"{source} cannot be used by the tokenizers package: {_shown(str(error), 200)}; {_AGAIN}")


# Files


def _read_json(source: Path) -> dict[str, Any]:
    """A JSON file's object. Raises ModelError."""
    try:
        value = json.loads(_read_text(source))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{source} is not JSON: {_shown(str(error), 200)}; {_AGAIN}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{source} holds {_shown(value)}, a JSON object is needed; {_AGAIN}")
    return value


def _read_text(source: Path) -> str:
    try:
        with source.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ModelError(f"{source} cannot be read: {error.strerror}; {_AGAIN}") from None
    if len(data) > MAX_BYTES:
        raise ModelError(
            f"{source} is larger than {MAX_BYTES >> 20} MB, which makes no sense for such a file; {_AGAIN}"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ModelError(f"{source} is not UTF-8 at byte {error.start}; {_AGAIN}") from None


def _default_template(source: Path, entries: list[Any]) -> str | None:
    if not all(isinstance(e, dict) and isinstance(e.get("name"), str) and "template" in e for e in entries):
        raise ModelError(
            f'{source}: chat_template is {_shown(entries)}, a list of {{"name", "template"}} is needed; {_AGAIN}'
        )
    named = {entry["name"]: entry["template"] for entry in entries}
    only = next(iter(named.values())) if len(named) == 1 else None
    return named.get("default", only)


def _template(source: Path, value: object) -> str | None:
    if not isinstance(value, str) or len(value) > gguf.MAX_TEMPLATE:
        raise ModelError(
            f"{source}: the chat template is not a text of at most {gguf.MAX_TEMPLATE} characters; {_AGAIN}"
        )
    return value or None


def _member(source: Path, values: Mapping[str, Any], key: str, kind: type[Any], default: Any = None) -> Any:
    value = values.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, kind):
        name = {"dict": "an object", "list": "a list"}[kind.__name__]
        raise ModelError(f"{source}: {key} is {_shown(value)}, {name} is needed; {_AGAIN}")
    return value


def _shown(value: object, longest: int = 60) -> str:
    """A stranger's value for a message: short, on one line."""
    if isinstance(value, gguf.Array):
        return f"an array of {value.length} {value.type_name}"
    text = printable(value if isinstance(value, str) and longest > 60 else repr(value))
    return text if len(text) <= longest else text[: longest - 3] + "..."
