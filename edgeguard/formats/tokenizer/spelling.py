"""What the names of tokens write: in GPT-2's letters for bytes, or as SentencePiece spells."""

from __future__ import annotations

import re


def _byte_letters() -> list[str]:
    """GPT-2's letter for each byte: printable Latin-1 as itself, the others from U+0100 on."""
    printed = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [b for b in range(256) if b not in printed]
    return [chr(b) if b in printed else chr(256 + others.index(b)) for b in range(256)]


LETTERS = _byte_letters()
_BYTE_OF = {letter: byte for byte, letter in enumerate(LETTERS)}
_BYTE_NAME = re.compile("<0x([0-9A-F]{2})>")


def from_letters(name: str) -> bytes:
    """What a token writes whose name has GPT-2's letter for each byte."""
    try:
        return bytes([_BYTE_OF[letter] for letter in name])
    except KeyError:  # as tokenizers' decoder: such a token was added, and is spelled as it is
        return name.encode()


def from_sentencepiece(name: str) -> bytes:
    """What a token writes whose name has ▁ for a space, or is <0xXX> for a byte."""
    byte = _BYTE_NAME.fullmatch(name)
    return bytes([int(byte[1], 16)]) if byte else name.replace("▁", " ").encode()
