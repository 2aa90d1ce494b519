"""What a model file is, as data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from edgeguard.formats import gguf
from edgeguard.formats.manifest import Source

Kind = Literal["gguf", "onnx", "checkpoint", "adapter"]
State = Literal["as converted", "changed since", "not known"]
Numbers = int | tuple[int, ...]  # one for all layers, or one for each

CONSTANTS = "constants"  # the type of arrays that are no weights


@dataclass(frozen=True)
class File:
    """A file of the model: its name within the folder, bytes, and sha256 in hex."""

    name: str
    n_bytes: int
    sha256: str


@dataclass(frozen=True)
class Tensor:
    """An array of the file. `shape` is in the format's own order: innermost first in GGUF, last in the others."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    n_bytes: int


@dataclass(frozen=True)
class TypeShare:
    """All tensors of one type together. `n_bytes` has the scales of quantized blocks in it.

    type_name  "Q4_K"; "float32"; "int4 by 32": 4 bits in blocks of 32; CONSTANTS: arrays that are no weights
    """

    type_name: str
    n_tensors: int
    n_weights: int
    n_bytes: int

    @property
    def bits(self) -> float:
        """Bits a weight; 0 where there are none."""
        return 8 * self.n_bytes / self.n_weights if self.n_weights else 0.0


@dataclass(frozen=True)
class Quantization:
    """How the weights are stored.

    name         the usual name: "Q4_K_M", "int4", "fp16", "BF16"
    types        by type, most bytes first
    activations  ONNX: how many matrices in quantized blocks are multiplied with activations rounded to what
    dynamic      ONNX: the operators that round activations by a scale over all that is in a call
    """

    name: str
    types: tuple[TypeShare, ...]
    activations: Mapping[str, int] = field(default_factory=dict)
    dynamic: tuple[str, ...] = ()

    @property
    def bits(self) -> float:
        """Bits a weight, all types together; 0 where there are no weights."""
        weighty = [share for share in self.types if share.n_weights]
        n_weights = sum(share.n_weights for share in weighty)
        return 8 * sum(share.n_bytes for share in weighty) / n_weights if n_weights else 0.0


@dataclass(frozen=True)
class ModelShape:
    """The model's size; None where the file does not say.

    n_weights           without constants and rotary tables
    n_head, n_head_kv   attention heads, and those for keys and values; a list where layers differ
    head                length of a head's key
    n_ctx_train         tokens of context it was trained for
    memory              what it keeps of the tokens it has read; edgeguard cannot use a "recurrent" memory
    kv_type             of the keys and values: float16 for GGUF, which is edgeguard's default there
    kv_bytes_per_token  what a token of context takes in memory, all layers together
    """

    n_weights: int | None = None
    n_layer: int | None = None
    width: int | None = None
    n_head: Numbers | None = None
    n_head_kv: Numbers | None = None
    head: int | None = None
    n_vocab: int | None = None
    n_ctx_train: int | None = None
    memory: gguf.MemoryKind | None = None
    kv_type: str | None = None
    kv_bytes_per_token: int | None = None


@dataclass(frozen=True)
class Token:
    """A token's id, and its name in the file."""

    id: int
    text: str


@dataclass(frozen=True)
class Tokenizer:
    """How texts become tokens.

    model      GGUF: tokenizer.ggml.model; else the kind of tokenizer.json's model
    pre        GGUF: tokenizer.ggml.pre; else the kinds of tokenizer.json's pre-tokenizers
    bos        the token that the file names as the beginning of a text
    adds_bos   whether prompts begin with it; None where the file does not say
    ends       the tokens that end an answer
    n_control  control tokens; None where they cannot be told
    """

    model: str
    pre: str
    n_tokens: int
    bos: Token | None
    adds_bos: bool | None
    ends: tuple[Token, ...]
    n_control: int | None


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter: `base` is what it says it was trained for, `changes` are the names of the matrices it changes.

    ranks  all there are, ascending
    """

    base: str
    ranks: tuple[int, ...]
    alpha: float | None
    changes: tuple[str, ...]


@dataclass(frozen=True)
class Provenance:
    """What edgeguard's own record says of how the file was made.

    said_in  the manifest's name, or "metadata" for the model file's own
    state    whether the hashes in the manifest are those of the files; metadata has no hashes
    changed  files that are not as the manifest has them, are gone, or are not in it and make the model what it is
    """

    said_in: str
    to: str
    sources: tuple[Source, ...]
    options: Mapping[str, str]
    tools: Mapping[str, str]
    state: State
    changed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Inspection:
    """What a model file is.

    path        the GGUF or ONNX file, or the folder of a checkpoint or of a PEFT adapter
    kind        "gguf", "onnx", "checkpoint", "adapter"
    format      "GGUF v3", "ONNX opset 23", "safetensors"
    files       what `sha256` is of; of a checkpoint, all files of the folder
    beside      other files that a score depends on
    sha256      as a score's row has it; of a checkpoint, as the manifest of a conversion has it
    profile     the one built-in profile that fits, or None where that is not certain
    profiles    all built-in profiles that fit
    problems    why edgeguard cannot score with it; empty if it can
    notices     what else a user should know
    """

    path: Path
    kind: Kind
    format: str
    files: tuple[File, ...]
    beside: tuple[File, ...]
    sha256: str
    architecture: str
    name: str
    shape: ModelShape
    quantization: Quantization
    tokenizer: Tokenizer | None
    chat_template: str | None
    tensors: tuple[Tensor, ...]
    problems: tuple[str, ...]
    notices: tuple[str, ...] = ()
    adapter: Adapter | None = None
    profile: str | None = None
    profiles: tuple[str, ...] = ()
    provenance: Provenance | None = None

    def row(self, *, tensors: bool = False) -> dict[str, Any]:
        """As one JSON object: the fields by their names; `tensors` on request.

        Beside them: `usable`, whether there are no problems; and `bits`, a weight, of the quantization and its types.
        """
        found = asdict(replace(self, tensors=()))
        found["path"] = str(self.path)
        stored = found["quantization"]
        found["quantization"] = {"name": stored.pop("name"), "bits": round(self.quantization.bits, 4), **stored}
        for share, said in zip(self.quantization.types, found["quantization"]["types"], strict=True):
            said["bits"] = round(share.bits, 4)
        listed = [asdict(tensor) for tensor in self.tensors]
        row: dict[str, Any] = {}
        for key, value in found.items():
            if key == "problems":
                row["usable"] = not value
            if key != "tensors" or tensors:
                row[key] = listed if key == "tensors" else value
        return row


def type_shares(rows: Iterable[tuple[str, int, int]]) -> tuple[TypeShare, ...]:
    """(type, weights, bytes) of each tensor → each type's sums, most bytes first, constants last."""
    found: dict[str, tuple[int, int, int]] = {}
    for type_name, n, n_bytes in rows:
        count, weights, size = found.get(type_name, (0, 0, 0))
        found[type_name] = count + 1, weights + n, size + n_bytes
    shares = [TypeShare(name, *sums) for name, sums in found.items()]
    return tuple(sorted(shares, key=lambda s: (s.type_name == CONSTANTS, -s.n_bytes, s.type_name)))


def kv_bytes(n_layer: int | None, n_head_kv: Numbers | None, key_and_value: int, size: int) -> int | None:
    """What a token of context takes in memory: `key_and_value` numbers a head, of `size` bytes. None if not known."""
    heads = sum(n_head_kv) if isinstance(n_head_kv, tuple) else (n_head_kv or 0) * (n_layer or 0)
    return heads * key_and_value * size or None
