"""The tokens of a GGUF header: names, kinds, and which of them end an answer, after llama.cpp's corrections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgeguard.errors import ModelError, shown
from edgeguard.formats import gguf
from edgeguard.formats.tokenizer.names import END_NAMES, FILL_ENDS, FILL_NAMES, end_ids, fill_id

_OLD_FILL_KEYS = {"pre": "prefix", "suf": "suffix", "mid": "middle"}
_ALWAYS_TEXT = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")

_TOKEN_TYPES = ("undefined", "normal", "unknown", "control", "user defined", "unused", "byte")  # by number

_CONVERT = "convert the model again, or take another file of it"


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


def read_tokens(header: gguf.Header) -> Tokens:
    """Names and kinds of all tokens, after llama.cpp's corrections of kinds."""
    ids = _read_names(header)
    of_type: dict[str, set[int]] = {kind: set() for kind in _TOKEN_TYPES}
    for i, kind in enumerate(read_types(header, len(ids))):
        of_type[kind].add(i)
    guessed, fill_ends = _fill_tokens(header, ids)
    ends = {ids[name] for name in END_NAMES if name in ids}
    declared = fill_ends | _declared_end_ids(header, len(ids))
    eog = end_ids(ids, declared)
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
    keys = {kind: _fill_key(header, kind, len(ids)) for kind in FILL_NAMES}
    guessed = {kind: fill_id(ids, kind) for kind, i in keys.items() if i is None}
    found = {**keys, **guessed}
    return {i for i in guessed.values() if i is not None}, {i for k in FILL_ENDS if (i := found[k]) is not None}


def _declared_end_ids(header: gguf.Header, n: int) -> set[int]:
    """The header's tokens that end an answer; llama.cpp takes token 11 or 2 where it names none."""
    eos = special_id(header, "eos", 11 if header.metadata["tokenizer.ggml.model"] == "gpt2" else 2, n)
    others = (special_id(header, key, None, n) for key in ("eot", "eom"))
    return {i for i in (eos, *others) if i is not None}


def _read_names(header: gguf.Header) -> dict[str, int]:
    """Token names → ids, in the order of ids. llama.cpp ends a name at a NUL and numbers the empty ones."""
    ids: dict[str, int] = {}
    for i, raw in enumerate(strings(header, "tokens")):
        try:
            name = raw.partition(b"\0")[0].decode() or f"[EMPTY_{i}]"
        except UnicodeDecodeError:
            raise contradiction(header, f"token {i} is not UTF-8: {shown(raw)}") from None
        if name in ids:
            raise contradiction(header, f"tokens {ids[name]} and {i} are the same, {shown(name)}")
        ids[name] = i
    if not ids:
        raise contradiction(header, "tokenizer.ggml.tokens is empty")
    return ids


def read_types(header: gguf.Header, n: int) -> list[str]:
    """Each token's kind; all are normal where the header does not say."""
    values = header.metadata.get("tokenizer.ggml.token_type")
    if values is None:
        return ["normal"] * n
    if not isinstance(values, gguf.Array) or values.type_name != "i32" or values.length < n:
        raise contradiction(header, f"tokenizer.ggml.token_type is {shown(values)} for {n} tokens")
    numbers = values.numbers()[:n].tolist()
    return [_TOKEN_TYPES[t] if 0 <= t < len(_TOKEN_TYPES) else "undefined" for t in numbers]


def special_id(header: gguf.Header, name: str, default: int | None, n: int) -> int | None:
    """The id of the header's `name` token. llama.cpp ignores one that is out of range; so do we."""
    default = None if default is not None and default >= n else default
    value = header.metadata.get(f"tokenizer.ggml.{name}_token_id", default)
    if isinstance(value, bool) or not isinstance(value, int | None):
        raise contradiction(header, f"tokenizer.ggml.{name}_token_id is {shown(value)}, a whole number is needed")
    return value if value is None or 0 <= value < n else default


def _fill_key(header: gguf.Header, kind: str, n: int) -> int | None:
    new = special_id(header, f"fim_{kind}", None, n)
    old = special_id(header, _OLD_FILL_KEYS[kind], None, n) if kind in _OLD_FILL_KEYS else None
    return new if old is None else old


def flag(header: gguf.Header, name: str, default: bool) -> bool:
    """The header's setting `name`. Raises ModelError where it is neither true nor false."""
    value = header.metadata.get(f"tokenizer.ggml.{name}", default)
    if not isinstance(value, bool):
        raise contradiction(header, f"tokenizer.ggml.{name} is {shown(value)}, true or false is needed")
    return value


def strings(header: gguf.Header, name: str) -> list[bytes]:
    """The header's list `name`. Raises ModelError where it is missing or of another type."""
    value = header.metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(value, gguf.Array) or value.type_name != "str":
        raise contradiction(header, f"tokenizer.ggml.{name} is {shown(value)}, an array of str is needed")
    return value.strings()


def contradiction(header: gguf.Header, what: str) -> ModelError:
    """The error that the header's tokens cannot be used."""
    return ModelError(f"{header.path} has no tokenizer that can be used: {what}; {_CONVERT}")
