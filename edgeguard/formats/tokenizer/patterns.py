"""How texts are split before tokens are merged, by tokenizer.ggml.pre: llama.cpp's patterns in Oniguruma's words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
class PreTokenizer:
    """What a value of tokenizer.ggml.pre means: patterns that split a text one after the other, and defaults."""

    splits: tuple[str, ...]
    ignore_merges: bool = False  # a whole word that is a token is taken as it is
    add_bos: bool = False


def _named(names: str, pre: PreTokenizer) -> dict[str, PreTokenizer]:
    return dict.fromkeys(names.split(), pre)


PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    "": PreTokenizer(_DEFAULT),
    **_named("default", PreTokenizer(_DEFAULT)),
    **_named("gpt-2 phi-2 mpt olmo jais trillion gigachat exaone4 a.x-4.0 mellum granite-docling", PreTokenizer(_GPT2)),
    **_named("smollm starcoder refact command-r codeshell exaone minerva-7b mellum2", PreTokenizer(_DIGITS)),
    **_named(
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2",
        PreTokenizer(_LLAMA3, ignore_merges=True, add_bos=True),
    ),
    **_named("smaug-bpe dbrx", PreTokenizer(_LLAMA3)),
    **_named("qwen2 deepseek-r1-qwen megrez kormo stablelm2 hunyuan solar-open grok-2", PreTokenizer(_QWEN2)),
    **_named("qwen35", PreTokenizer(_QWEN35)),
    **_named("tekken", PreTokenizer(_TEKKEN, ignore_merges=True, add_bos=True)),
    **_named("gpt-4o llama4 kanana2 minimax-m2", PreTokenizer(_GPT4O)),
    **_named("deepseek-v3 hunyuan-dense joyai-llm hy_v4", PreTokenizer(_DEEPSEEK3)),
    **_named("seed-coder", PreTokenizer(_SEED_CODER)),
    **_named("falcon", PreTokenizer(_FALCON)),
}


def split(pattern: str, behavior: str) -> dict[str, Any]:
    """A step of a pre-tokenizer: texts split at a pattern, as llama.cpp's table of letters has it."""
    for name in "LNMPS":
        pattern = pattern.replace(rf"\p{{{name}}}", rf"[\p{{{name}}}&&[^{_SINCE_16}]]")
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False}
