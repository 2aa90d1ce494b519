"""What a tokenizer.json of a stranger may do to a text: make it longer without end, or split it for hours.

How far its rules lengthen a text is worked out from the file. Patterns cannot be judged by looking at them, so those
that are not known are tried in a process of its own with limits, on the texts that bad ones never finish.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from edgeguard import process
from edgeguard.errors import ModelError, printable, shown
from edgeguard.formats.bounded_json import DOWNLOAD
from edgeguard.formats.tokenizer.patterns import PRE_TOKENIZERS, split

MAX_GROWTH = 16  # characters made of one by the file's own rules; SentencePiece's make two
MAX_STEPS = 64  # normalizers, pre-tokenizers or processors, however nested
MAX_DEPTH = 8  # of sequences in one another
LIMITS = process.Limits(cpu=3, wall=6.0, memory=1 << 30)  # of the trial of a file's patterns

_LENGTH = 4000  # characters of a trial
_RUNS = 64  # of characters that the patterns spell
_STEPS = ("normalizers", "pretokenizers", "processors")
# The patterns that vocabularies in use are published with, beside those that edgeguard writes itself.
_PUBLISHED = frozenset(
    {
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
        r"\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
        r"\s+(?!\S)|\s+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+"
        r"[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"\p{N}{1,3}",
        "[一-龥぀-ゟ゠-ヿ]+",
    }
)


def check_bounds(source: Path, values: Mapping[str, Any]) -> None:
    """Hold a tokenizer.json against what it may do to a text. Raises ModelError."""
    for key in ("normalizer", "pre_tokenizer", "post_processor"):
        n = sum(1 for _ in _steps(source, values.get(key)))
        if n > MAX_STEPS:
            raise ModelError(f"{source}: its {key} has {n} steps, at most {MAX_STEPS} make sense; {DOWNLOAD}")
    growth = 1
    for step in (*_steps(source, values.get("normalizer")), *_steps(source, values.get("pre_tokenizer"))):
        growth *= _growth(step)
        if growth > MAX_GROWTH:
            raise ModelError(
                f"{source}: its {shown(step.get('type'))} makes a text up to {shown(growth)} times as long, "
                f"{MAX_GROWTH} times is the most that makes sense; {DOWNLOAD}"
            )
    texts = sum(_texts_of(step) for step in _steps(source, values.get("post_processor")))
    if texts > 1:
        raise ModelError(f"{source}: its post_processor writes a text {texts} times, once is right; {DOWNLOAD}")
    _try_patterns(source, values)


def _steps(source: Path, step: object, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """A step, or all steps of sequences in one another."""
    if depth > MAX_DEPTH:
        raise ModelError(f"{source} nests its steps more than {MAX_DEPTH} deep; {DOWNLOAD}")
    if not isinstance(step, dict):
        return
    parts = next((step[name] for name in _STEPS if isinstance(step.get(name), list)), None)
    if parts is None:
        yield step
        return
    for part in parts:
        yield from _steps(source, part, depth + 1)


def _growth(step: Mapping[str, Any]) -> int:
    """Characters that a step makes of one at most, by what the file says."""
    kind = step.get("type")
    if kind == "Replace":
        pattern = step.get("pattern")
        fixed = pattern.get("String") if isinstance(pattern, dict) else None
        if isinstance(fixed, str) and fixed:
            return max(1, -(-_length(step.get("content")) // len(fixed)))
        return 1 + _length(step.get("content"))  # a regex finds an empty place beside each character
    if kind in ("Prepend", "Metaspace"):
        return 1 + _length(step.get("prepend") or step.get("replacement"))
    if kind == "Precompiled":
        return _longest_replacement(step.get("precompiled_charsmap"))
    return 1


def _length(text: object) -> int:
    return len(text) if isinstance(text, str) else 0


def _longest_replacement(charsmap: object) -> int:
    """Of SentencePiece's table: the length of a trie, the trie, and replacements that end with a NUL."""
    try:
        table = base64.b64decode(charsmap) if isinstance(charsmap, str) else b""
    except (binascii.Error, ValueError):
        return 1  # the library says what is wrong
    texts = table[4 + int.from_bytes(table[:4], "little") :]
    return max((len(text.decode(errors="replace")) for text in texts.split(b"\0")), default=1) or 1


def _texts_of(step: Mapping[str, Any]) -> int:
    """How often a processor writes the text."""
    pieces = step.get("single")
    if step.get("type") != "TemplateProcessing" or not isinstance(pieces, list):
        return 0
    return sum(isinstance(piece, dict) and "Sequence" in piece for piece in pieces)


# Patterns


def _patterns(source: Path, values: Mapping[str, Any]) -> set[str]:
    steps = (*_steps(source, values.get("normalizer")), *_steps(source, values.get("pre_tokenizer")))
    found = (step["pattern"].get("Regex") for step in steps if isinstance(step.get("pattern"), dict))
    return {pattern for pattern in found if isinstance(pattern, str)}


def _known() -> frozenset[str]:
    own = {split(pattern, "")["pattern"]["Regex"] for pre in PRE_TOKENIZERS.values() for pattern in pre.splits}
    return _PUBLISHED | own | {pattern for pre in PRE_TOKENIZERS.values() for pattern in pre.splits}


def _try_patterns(source: Path, values: Mapping[str, Any]) -> None:
    """Split texts that patterns without bounds do not finish. Raises ModelError."""
    unknown = _patterns(source, values)
    if not unknown or unknown <= _known():
        return
    steps = {key: values.get(key) for key in ("normalizer", "pre_tokenizer")}
    server = process.Server(process.start(__name__), LIMITS)
    try:
        failed = str(server.ask(steps))
    except process.OverLimit as error:
        failed = str(error)
    finally:
        server.end()
    if failed:
        raise ModelError(
            f"{source}: splitting a text of {_LENGTH} characters fails ({printable(failed)}), by its pattern "
            f"{shown(max(unknown, key=len))}; {DOWNLOAD}"
        )


def _trials(patterns: str) -> list[str]:
    """Runs of one kind of character, and what no pattern expects behind them: there bad ones begin anew."""
    spelled = sorted({c for c in patterns if c.isalnum()})[:_RUNS]
    runs = ("a", "A", " ", "\n", "1", ".", "漢", "\u0301", "ab", "a ", "a1", "=-", *spelled)
    return [run * (_LENGTH // len(run)) + end for run in runs for end in ("", "!", "\x00")]


def _try(steps: Any) -> str:
    """What went wrong with a trial, "" for nothing."""
    package = import_module("tokenizers")
    values = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}, **steps}
    try:
        tokenizer = package.Tokenizer.from_str(json.dumps(values))
        for text in _trials(json.dumps(steps)):
            tokenizer.encode(text)
    except Exception:  # a pattern that is none: the whole file's reading says what is wrong
        return ""
    except BaseException as error:  # a panic: the engine's own bound of a search
        return str(error)[:200]
    return ""


def _child() -> NoReturn:
    process.serve_many(_try, LIMITS)
