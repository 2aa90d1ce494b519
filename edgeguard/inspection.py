"""What a model file is, as far as it says: read, never loaded. Nothing of it is believed that is not shown as its word.

A model that edgeguard cannot score with is described too, and why it cannot. Weights are hashed, not read.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from edgeguard.errors import ModelError
from edgeguard.formats import gguf, onnx_graph
from edgeguard.formats import tokenizer as tokenizers
from edgeguard.formats.hashes import sha256
from edgeguard.formats.model_file import find_model
from edgeguard.profile import detect_profile, list_profiles

Kind = Literal["gguf", "onnx", "checkpoint", "adapter"]
State = Literal["as converted", "changed since", "not known"]
Numbers = int | tuple[int, ...]  # one for all layers, or one for each
T = TypeVar("T")

MAX_SAFETENSORS = 100_000_000  # bytes of a header, the format's own limit
_MAX_DIMS = 16  # dimensions of a tensor
CONSTANTS = "constants"  # the type of arrays that are no weights

# What a score depends on beside the weights, and where an ONNX model's folder has it.
_BESIDE = (
    *("config.json", "generation_config.json", "genai_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("chat_template.jinja", "chat_template.json"),
)
_MANIFEST = "edgeguard.json"  # in a folder; beside a file, NAME.manifest.json
_MAX_MANIFEST_FILES = 1000
_ROTARY_TABLES = frozenset({"cos", "sin", "cos_cache", "sin_cache"})
_ACTIVATIONS = {0: "float or as the runtime chooses", 1: "float", 2: "float16", 3: "bfloat16", 4: "int8"}
_OWN_BLOCK = 32  # weights a block, where edgeguard's graphs look up in a packed embedding
_AGAIN = "download it again"


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
class Shape:
    """The model's size; None where the file does not say.

    n_weights           without constants and rotary tables
    n_head, n_head_kv   attention heads, and those for keys and values; a list where layers differ
    head                length of a head's key
    n_ctx_train         tokens of context it was trained for
    memory              what it keeps of the tokens it has read; edgeguard can use "attention" only
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
class Source:
    """What a conversion read. `role` is "model", "lora" or "imatrix"; name and size are not always said."""

    role: str
    sha256: str
    file: str = ""
    n_bytes: int = 0


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
    shape: Shape
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


def inspect_model(path: str | Path) -> Inspection:
    """What a file or a folder is. Raises ModelError where it cannot be read as a model at all."""
    path = Path(path)
    if _is_peft(path):
        return _peft(path, _Hashes({}))
    model = find_model(path)
    readers = {"gguf": _gguf, "onnx": _onnx, "checkpoint": _checkpoint}
    found = readers[model.kind](model.path, _Hashes({}))
    if found.kind == "adapter":
        return found
    said = {"architecture": found.architecture, "name": found.name, "chat_template": found.chat_template}
    fits = tuple(p.name for p in list_profiles() if p.detect.matches(**said))  # type: ignore[arg-type]
    return replace(found, profile=detect_profile(**said), profiles=fits)  # type: ignore[arg-type]


# Files


@dataclass
class _Hashes:
    """Each file is hashed once: a model's take seconds."""

    known: dict[Path, str]

    def file(self, path: Path) -> File:
        if path not in self.known:
            self.known[path] = sha256(path)
        return File(path.name, path.stat().st_size, self.known[path])

    def files(self, paths: Iterable[Path]) -> tuple[File, ...]:
        try:
            return tuple(self.file(path) for path in paths)
        except OSError as error:
            raise ModelError(f"{error.filename} cannot be read any more: {error.strerror or error}") from None


def _together(files: Sequence[File]) -> str:
    """files.sha256_of_all of files that are hashed already."""
    if len(files) == 1:
        return files[0].sha256
    lines = [f"{file.sha256}  {file.name}\n" for file in sorted(files, key=lambda file: file.name)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


# GGUF


def _gguf(path: Path, hashes: _Hashes) -> Inspection:
    header = gguf.read_header(path)
    metadata = header.metadata
    tensors = tuple(Tensor(t.name, t.shape, t.type_name, t.n_bytes) for t in header.tensors)
    tokenizer = _gguf_tokenizer(header)
    files = hashes.files(_parts(path, metadata))
    own = {key: value for key, value in metadata.items() if isinstance(value, str)}
    provenance, notices = _provenance(path.with_name(f"{path.name}.manifest.json"), own, files, hashes)
    if len(files) > 1:
        notices = (f"it is the first of {len(files)} parts, whose tensors alone are shown", *notices)
    return Inspection(
        path=path,
        kind="adapter" if metadata.get("general.type") == "adapter" else "gguf",
        format=f"GGUF v{header.version}",
        files=files,
        beside=(),
        sha256=files[0].sha256,  # as the backend has it, which opens a model in parts by its first
        architecture=header.architecture,
        name=str(metadata.get("general.name", "") or metadata.get("general.basename", "")),
        shape=_gguf_shape(header, tensors, tokenizer),
        quantization=Quantization(gguf.quantization(header), _shares(tensors)),
        tokenizer=tokenizer,
        chat_template=gguf.chat_template(header),
        tensors=tensors,
        problems=_gguf_problems(header),
        notices=notices,
        adapter=_gguf_adapter(header) if metadata.get("general.type") == "adapter" else None,
        provenance=provenance,
    )


def _parts(path: Path, metadata: Mapping[str, gguf.MetadataValue]) -> list[Path]:
    """The file, or all the parts that it is the first of; the reader has seen that they are there."""
    count = metadata.get("split.count", 1)
    if not isinstance(count, int) or count < 2:
        return [path]
    return [path.with_name(f"{path.name[:-20]}-{i + 1:05d}-of-{count:05d}.gguf") for i in range(count)]


def _gguf_problems(header: gguf.Header) -> tuple[str, ...]:
    try:
        gguf.check_model(header)
    except ModelError as error:
        return (str(error),)
    kind = gguf.memory_kind(header)
    if kind == "attention":
        return ()
    return (
        f"{header.path} keeps a {kind} memory, which cannot be cut back to the policy after each record; "
        "edgeguard needs a model with full attention",
    )


def _gguf_shape(header: gguf.Header, tensors: Sequence[Tensor], tokenizer: Tokenizer | None) -> Shape:
    """From numbers that nothing has held against each other yet."""
    n_weights = sum(math.prod(t.shape) for t in tensors)
    if header.metadata.get("general.type", "model") != "model":
        return Shape(n_weights=n_weights)
    arch = header.architecture
    n_layer, width = (_number(header, f"{arch}.{key}") for key in ("block_count", "embedding_length"))
    n_head = _numbers(header, f"{arch}.attention.head_count")
    n_head_kv = _numbers(header, f"{arch}.attention.head_count_kv") or n_head
    most = max(n_head) if isinstance(n_head, tuple) else n_head
    head = _number(header, f"{arch}.attention.key_length") or (width // most if width and most else None)
    value = _number(header, f"{arch}.attention.value_length") or head
    return Shape(
        n_weights=n_weights,
        n_layer=n_layer,
        width=width,
        n_head=n_head,
        n_head_kv=n_head_kv,
        head=head,
        n_vocab=tokenizer.n_tokens if tokenizer else _number(header, f"{arch}.vocab_size"),
        n_ctx_train=_number(header, f"{arch}.context_length"),
        memory=gguf.memory_kind(header),
        kv_type="float16" if head else None,
        kv_bytes_per_token=_kv_bytes(n_layer, n_head_kv, (head or 0) + (value or 0), 2),
    )


def _kv_bytes(n_layer: int | None, n_head_kv: Numbers | None, key_and_value: int, size: int) -> int | None:
    heads = sum(n_head_kv) if isinstance(n_head_kv, tuple) else (n_head_kv or 0) * (n_layer or 0)
    return heads * key_and_value * size or None


def _number(header: gguf.Header, key: str) -> int | None:
    value = header.metadata.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _numbers(header: gguf.Header, key: str) -> Numbers | None:
    """A number for all layers, or one for each where they differ."""
    value = header.metadata.get(key)
    if not isinstance(value, gguf.Array):
        return _number(header, key)
    if value.type_name not in ("i32", "u32") or not 0 < value.length <= gguf.MAX_LAYERS:
        return None
    found = tuple(int(n) for n in value.numbers().tolist())
    if min(found) < 0 or not max(found):
        return None
    return found


def _gguf_tokenizer(header: gguf.Header) -> Tokenizer | None:
    metadata = header.metadata
    model, tokens = (metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "tokens"))
    if not isinstance(model, str) or not isinstance(tokens, gguf.Array) or tokens.type_name != "str":
        return None
    texts = tokens.strings()
    try:
        known = tokenizers.read_tokens(header)
        ends, n_control = sorted(known.eog), len(known.control)
    except ModelError:  # llama.cpp reads some that tokenizer.json cannot spell
        named = (metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom"))
        ends, n_control = sorted({i for i in named if isinstance(i, int) and 0 <= i < len(texts)}), None
    bos, adds_bos = (metadata.get(f"tokenizer.ggml.{key}") for key in ("bos_token_id", "add_bos_token"))

    def token(i: int) -> Token:
        return Token(i, texts[i].decode(errors="replace"))

    return Tokenizer(
        model=model,
        pre=str(metadata.get("tokenizer.ggml.pre", "")),
        n_tokens=tokens.length,
        bos=token(bos) if isinstance(bos, int) and 0 <= bos < len(texts) else None,
        adds_bos=adds_bos if isinstance(adds_bos, bool) else None,
        ends=tuple(token(i) for i in ends),
        n_control=n_control,
    )


def _gguf_adapter(header: gguf.Header) -> Adapter:
    alpha = header.metadata.get("adapter.lora.alpha")
    return Adapter(
        base=header.architecture,
        ranks=tuple(sorted({t.shape[0] for t in header.tensors if t.name.endswith(".lora_b") and t.shape})),
        alpha=float(alpha) if isinstance(alpha, int | float) and math.isfinite(alpha) else None,
        changes=tuple(t.name.removesuffix(".lora_b") for t in header.tensors if t.name.endswith(".lora_b")),
    )


# ONNX


def _onnx(path: Path, hashes: _Hashes) -> Inspection:
    graph, folder = onnx_graph.read_graph(path), path.parent
    problems = _Problems([])
    settings = problems.of(lambda: onnx_graph.read_settings(folder))
    head, n_ctx = (settings.head, settings.n_ctx) if settings else (0, 0)
    interface = problems.of(lambda: onnx_graph.read_interface(graph, head=head))
    tokenizer = _folder_tokenizer(folder, interface.n_vocab if interface else None, problems)
    template = problems.of(lambda: tokenizers.read_chat_template(folder))
    config = problems.of(lambda: onnx_graph.read_json(folder / "config.json")) or {}
    shares, n_weights = _onnx_shares(graph)
    files = hashes.files(graph.files)
    beside = hashes.files(folder / name for name in _BESIDE if (folder / name).is_file())
    provenance, notices = _provenance(folder / _MANIFEST, graph.metadata, (*files, *beside), hashes)
    dynamic = tuple(op for op in graph.operators if op in onnx_graph.DYNAMIC)
    if dynamic:
        notices = (_dynamic_notice(dynamic), *notices)
    if settings and not n_ctx:
        notices = (*notices, "its folder does not say how long a context it was trained for; scoring needs --context")
    return Inspection(
        path=path,
        kind="onnx",
        format=f"ONNX opset {graph.opset}",
        files=files,
        beside=beside,
        sha256=_together(files),
        architecture=settings.architecture if settings else "",
        name=settings.name if settings else "",
        shape=_onnx_shape(interface, config, n_ctx, n_weights),
        quantization=Quantization(onnx_graph.quantization(graph), shares, _activations(graph), dynamic),
        tokenizer=tokenizer,
        chat_template=template,
        tensors=tuple(Tensor(w.name, w.shape, w.type_name, w.n_bytes) for w in graph.weights),
        problems=tuple(problems.texts),
        notices=notices,
        provenance=provenance,
    )


@dataclass
class _Problems:
    """What went wrong, each once, in order: the rest is shown all the same."""

    texts: list[str]

    def of(self, read: Callable[[], T]) -> T | None:
        """What `read` gives, None if it fails."""
        try:
            return read()
        except ModelError as error:
            if str(error) not in self.texts:
                self.texts.append(str(error))
            return None


def _dynamic_notice(operators: Sequence[str]) -> str:
    return (
        f"dynamic quantization ({', '.join(op.rpartition(':')[2] for op in operators)}): activations are rounded by "
        "one scale for all that is in a call, so a score depends on what else is in it; "
        "int8 weights without it are what `edgeguard convert --to onnx-int8` makes"
    )


def _onnx_shape(interface: onnx_graph.Interface | None, config: Mapping[str, Any], n_ctx: int, n_weights: int) -> Shape:
    said = _config_shape(config)
    shape = replace(said, n_weights=n_weights, n_ctx_train=n_ctx or said.n_ctx_train)
    if interface is None:
        return replace(shape, memory=None, kv_type=None, kv_bytes_per_token=None)
    n_layer, size = len(interface.past) // 2, 4 if interface.kv_type == "float32" else 2
    return replace(
        shape,
        n_layer=n_layer,
        n_head_kv=interface.n_head_kv,
        head=interface.head,
        n_vocab=interface.n_vocab,
        memory="attention",
        kv_type=interface.kv_type,
        kv_bytes_per_token=_kv_bytes(n_layer, interface.n_head_kv, 2 * interface.head, size),
    )


def _onnx_shares(graph: onnx_graph.Graph) -> tuple[tuple[TypeShare, ...], int]:
    """By type, a quantized matrix and its scales as one; and the number of weights."""
    by_name = {weight.name: weight for weight in graph.weights if weight.name}
    blocked = {**_looked_up(graph, by_name), **graph.blocked}
    parts = {name for block in blocked.values() for name in block.arrays}
    rows = []
    for first, block in blocked.items():
        stored = [by_name[name] for name in block.arrays if name in by_name]
        if first in by_name:
            type_name = f"int{block.bits} by {block.block_size}"
            rows.append((type_name, _n_weights(block, by_name[first].n_bytes), sum(w.n_bytes for w in stored)))
    for weight in graph.weights:
        if weight.name not in parts:
            constant = _is_constant(weight)
            n = 0 if constant else math.prod(weight.shape)
            rows.append((CONSTANTS if constant else weight.type_name, n, weight.n_bytes))
    return _shared(rows), sum(n for _, n, _ in rows)


def _n_weights(block: onnx_graph.Blocked, n_bytes: int) -> int:
    """As the operator says, unless its values have no room for so many."""
    room = n_bytes * 8 // max(1, block.bits)
    return block.n_weights if 0 < block.n_weights <= room else room


def _looked_up(graph: onnx_graph.Graph, by_name: Mapping[str, onnx_graph.Weight]) -> dict[str, onnx_graph.Blocked]:
    """Packed embeddings of edgeguard's own graphs, which plain operators unpack."""
    found = {}
    for name, weight in by_name.items():
        scale = by_name.get(f"{name}/scale")
        if scale is None or name in graph.blocked or weight.type_name != "uint8":
            continue
        n = math.prod(scale.shape) * _OWN_BLOCK
        if n and 8 * weight.n_bytes % n == 0:
            arrays = tuple(a for a in (name, f"{name}/scale", f"{name}/zero") if a in by_name)
            found[name] = onnx_graph.Blocked(arrays, n, 8 * weight.n_bytes // n, _OWN_BLOCK, None)
    return found


def _is_constant(weight: onnx_graph.Weight) -> bool:
    """Shapes, indices, scalars and tables of angles; not the bytes of a quantized matrix."""
    if math.prod(weight.shape) <= 1 or weight.name in _ROTARY_TABLES:
        return True
    narrow = weight.type_name in ("int8", "uint8", "int4", "uint4", "int2", "uint2") and len(weight.shape) > 1
    return not narrow and not weight.type_name.startswith(("float", "bfloat"))


def _activations(graph: onnx_graph.Graph) -> dict[str, int]:
    levels = [b.accuracy_level for b in graph.blocked.values() if b.accuracy_level is not None]
    return dict(Counter(_ACTIVATIONS.get(level, f"accuracy_level {level}") for level in levels).most_common())


# The folder of a checkpoint or an ONNX model


def _checkpoint(folder: Path, hashes: _Hashes) -> Inspection:
    config = onnx_graph.read_json(folder / "config.json")
    problems = _Problems(
        [f"{folder} is a Hugging Face checkpoint; convert it first: edgeguard convert {folder} --to onnx-fp32"]
    )
    tensors = tuple(t for path in _safetensors(folder) for t in _read_safetensors(path))
    settings = problems.of(lambda: onnx_graph.read_settings(folder))
    shape = _config_shape(config)
    files = hashes.files(sorted(p for p in folder.iterdir() if p.is_file()))
    notices = () if tensors else ("it has no safetensors files, so nothing is known of its weights",)
    return Inspection(
        path=folder,
        kind="checkpoint",
        format="safetensors" if tensors else "no safetensors",
        files=files,
        beside=(),
        sha256=_together(files),
        architecture=settings.architecture if settings else "",
        name=(settings and settings.name) or folder.resolve().name,
        shape=replace(shape, n_weights=sum(n for t in tensors if (n := _floats(t)))) if tensors else shape,
        quantization=Quantization(
            _stored_as(config, tensors), _shared((t.type_name, _floats(t), t.n_bytes) for t in tensors)
        ),
        tokenizer=_folder_tokenizer(folder, None, problems),
        chat_template=problems.of(lambda: tokenizers.read_chat_template(folder)),
        tensors=tensors,
        problems=tuple(problems.texts),
        notices=notices,
    )


def _floats(tensor: Tensor) -> int:
    """Weights of a tensor: integers in a checkpoint are packed, and how many they hold is not said."""
    return math.prod(tensor.shape) if tensor.type_name.startswith(("F", "BF")) else 0


def _stored_as(config: Mapping[str, Any], tensors: Sequence[Tensor]) -> str:
    said = config.get("quantization_config")
    if isinstance(said, dict) and isinstance(said.get("quant_method"), str):
        return " ".join(str(said[key]) for key in ("quant_method", "bits") if isinstance(said.get(key), str | int))
    shares = _shared((t.type_name, _floats(t), t.n_bytes) for t in tensors)
    return shares[0].type_name if shares else "unknown"


def _config_shape(config: Mapping[str, Any]) -> Shape:
    """From config.json, which spells all models' numbers alike, mostly."""
    inner = config.get("text_config")
    config = {**config, **inner} if isinstance(inner, dict) else config

    def whole(*names: str) -> int | None:
        found = (config.get(name) for name in names)
        return next((n for n in found if isinstance(n, int) and not isinstance(n, bool) and 0 < n < 1 << 40), None)

    n_layer, width = whole("num_hidden_layers", "n_layer"), whole("hidden_size", "n_embd")
    n_head = whole("num_attention_heads", "n_head")
    n_head_kv = whole("num_key_value_heads") or n_head
    head = whole("head_dim") or (width // n_head if width and n_head else None)
    return Shape(
        n_layer=n_layer,
        width=width,
        n_head=n_head,
        n_head_kv=n_head_kv,
        head=head,
        n_vocab=whole("vocab_size"),
        n_ctx_train=whole("max_position_embeddings", "n_positions"),
        memory=_config_memory(config),
        kv_type="float16" if head else None,
        kv_bytes_per_token=_kv_bytes(n_layer, n_head_kv, 2 * (head or 0), 2),
    )


def _config_memory(config: Mapping[str, Any]) -> gguf.MemoryKind | None:
    """None: a configuration that names no window and no recurrent layer says nothing."""
    layers = config.get("layer_types")
    kinds = {str(kind) for kind in layers} if isinstance(layers, list) else set()
    if kinds & {"linear_attention", "mamba", "recurrent", "conv"}:
        return "recurrent"
    if kinds:
        return "sliding window" if any("sliding" in kind or "chunked" in kind for kind in kinds) else "attention"
    window = config.get("sliding_window")
    windowed = isinstance(window, int) and window > 0 and config.get("use_sliding_window", True) is not False
    return "sliding window" if windowed else None


def _folder_tokenizer(folder: Path, n_vocab: int | None, problems: _Problems) -> Tokenizer | None:
    """From tokenizer.json, as the backend reads it; as much as there is if it cannot be used."""
    vocabulary = problems.of(lambda: tokenizers.read_vocabulary(folder, n_vocab=n_vocab))
    source = folder / "tokenizer.json"
    said = _loose_json(source, tokenizers.MAX_BYTES)
    if said is None:
        return None
    model, added = _table(said.get("model")), said.get("added_tokens")
    vocab = _table(model.get("vocab"))
    entries = [e for e in added if isinstance(e, dict)] if isinstance(added, list) else []
    ids: dict[str, object] = {**vocab, **{str(e.get("content")): e.get("id") for e in entries}}
    name_of = {i: name for name, i in ids.items() if isinstance(i, int)}
    bos = _table(_loose_json(folder / "tokenizer_config.json", tokenizers.MAX_BYTES)).get("bos_token")
    bos = bos.get("content") if isinstance(bos, dict) else bos
    bos_id = ids.get(bos) if isinstance(bos, str) else None
    if vocabulary is not None and vocabulary.bos is not None:
        bos_id = vocabulary.bos
    return Tokenizer(
        model=str(model.get("type", "")),
        pre=" + ".join(dict.fromkeys(tokenizers.kinds_of(said.get("pre_tokenizer")))),
        n_tokens=len(ids),
        bos=Token(bos_id, name_of.get(bos_id, "")) if isinstance(bos_id, int) else None,
        adds_bos=None if vocabulary is None else vocabulary.bos is not None,
        ends=() if vocabulary is None else tuple(Token(i, name_of.get(i, "")) for i in sorted(vocabulary.eog)),
        n_control=sum(bool(e.get("special")) for e in entries) if vocabulary is None else len(vocabulary.control),
    )


def _loose_json(path: Path, longest: int) -> dict[str, Any] | None:
    """A JSON object of a file that somebody else complains about; None where there is none."""
    try:
        with path.open("rb") as file:
            value = json.loads(file.read(longest))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _table(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


# Safetensors


def _safetensors(folder: Path) -> list[Path]:
    """The files with a checkpoint's weights: those of its index, or model.safetensors, or all there are."""
    index = onnx_graph.read_json(folder / "model.safetensors.index.json").get("weight_map")
    if isinstance(index, dict):
        names = sorted({str(name) for name in index.values()})
        lost = next((n for n in names if Path(n).name != n or not (folder / n).is_file()), None)
        if lost is not None:
            raise ModelError(f"{folder} needs {lost!r} with weights of it, which is not there; download it too")
        return [folder / name for name in names]
    single = folder / "model.safetensors"
    return [single] if single.is_file() else sorted(p for p in folder.glob("*.safetensors") if p.is_file())


def _read_safetensors(path: Path) -> list[Tensor]:
    """The tensors of a file, from its header. Raises ModelError."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_SAFETENSORS):
                raise ModelError(f"{path} is truncated, or no safetensors file: {size} bytes; {_AGAIN}")
            said = json.loads(file.read(length))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise ModelError(f"{path} is no safetensors file: its header is not a JSON object; {_AGAIN}")
    return [_safetensor(path, n, v, size - 8 - length) for n, v in said.items() if n != "__metadata__"]


def _safetensor(path: Path, name: str, said: object, room: int) -> Tensor:
    entry = _table(said)
    shape, offsets, type_name = entry.get("shape"), entry.get("data_offsets"), entry.get("dtype")
    whole = [*shape, *offsets] if isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2 else [-1]
    wrong = len(whole) > _MAX_DIMS + 2 or any(type(n) is not int or not 0 <= n < 1 << 63 for n in whole)
    if wrong or not isinstance(type_name, str) or math.prod(whole[:-2]) >= 1 << 63:
        raise ModelError(f"{path}: {name[:60]!r} is no tensor's entry; {_AGAIN}")
    begin, end = whole[-2:]
    if not begin <= end <= room:
        raise ModelError(
            f"{path} is truncated: {name[:60]!r} ends at byte {end} of its weights, they have {room}; {_AGAIN}"
        )
    return Tensor(name, tuple(whole[:-2]), type_name, end - begin)


# Adapters in a folder, as PEFT saves them


def _is_peft(path: Path) -> bool:
    try:
        return (path / "adapter_config.json").is_file() and not (path / "config.json").is_file()
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return False


def _peft(folder: Path, hashes: _Hashes) -> Inspection:
    config = onnx_graph.read_json(folder / "adapter_config.json")
    weights = folder / "adapter_model.safetensors"
    tensors = tuple(_read_safetensors(weights)) if weights.is_file() else ()
    files = hashes.files(sorted(p for p in folder.iterdir() if p.is_file()))
    alpha = config.get("lora_alpha")
    ranks = {t.shape[0] for t in tensors if ".lora_A" in t.name and t.shape}
    shares = _shared((t.type_name, _floats(t), t.n_bytes) for t in tensors)
    return Inspection(
        path=folder,
        kind="adapter",
        format="PEFT",
        files=files,
        beside=(),
        sha256=_together(files),
        architecture="",
        name="",
        shape=Shape(n_weights=sum(_floats(t) for t in tensors)),
        quantization=Quantization(shares[0].type_name if shares else "unknown", shares),
        tokenizer=None,
        chat_template=None,
        tensors=tensors,
        problems=(
            f"{folder} is a LoRA adapter, not a model; merge it into its model with `edgeguard convert MODEL --lora`",
        ),
        notices=() if tensors else ("it has no adapter_model.safetensors, so nothing is known of its weights",),
        adapter=Adapter(
            base=str(config.get("base_model_name_or_path") or ""),
            ranks=tuple(sorted(ranks)),
            alpha=float(alpha) if type(alpha) in (int, float) and math.isfinite(alpha) else None,  # type: ignore[arg-type]
            changes=tuple(
                t.name.removeprefix("base_model.model.").partition(".lora_B")[0] for t in tensors if ".lora_B" in t.name
            ),
        ),
    )


# Types


def _shares(tensors: Iterable[Tensor]) -> tuple[TypeShare, ...]:
    return _shared((t.type_name, math.prod(t.shape), t.n_bytes) for t in tensors)


def _shared(rows: Iterable[tuple[str, int, int]]) -> tuple[TypeShare, ...]:
    """(type, weights, bytes) of each tensor, added up; most bytes first, constants last."""
    found: dict[str, tuple[int, int, int]] = {}
    for type_name, n, n_bytes in rows:
        count, weights, size = found.get(type_name, (0, 0, 0))
        found[type_name] = count + 1, weights + n, size + n_bytes
    shares = [TypeShare(name, *sums) for name, sums in found.items()]
    return tuple(sorted(shares, key=lambda s: (s.type_name == CONSTANTS, -s.n_bytes, s.type_name)))


# Provenance


def _provenance(
    manifest: Path, metadata: Mapping[str, str], files: Sequence[File], hashes: _Hashes
) -> tuple[Provenance | None, tuple[str, ...]]:
    """What edgeguard wrote of a conversion, and what is to be said of it: from the manifest, else the metadata."""
    notices: tuple[str, ...] = ()
    try:
        said = onnx_graph.read_json(manifest)
        if said:
            return _from_manifest(manifest, said, files, hashes), ()
    except ModelError as error:
        notices = (f"its manifest says nothing: {error}",)
    return _from_metadata(metadata), notices


def _from_manifest(manifest: Path, said: Mapping[str, Any], files: Sequence[File], hashes: _Hashes) -> Provenance:
    outputs, sources = said.get("outputs"), said.get("sources")
    if said.get("format") != 1 or not isinstance(outputs, list) or not isinstance(sources, list):
        raise ModelError(f"{manifest} is not a manifest of format 1")
    if max(len(outputs), len(sources)) > _MAX_MANIFEST_FILES:
        raise ModelError(f"{manifest} lists {len(outputs)} files, at most {_MAX_MANIFEST_FILES} make sense")
    entries = [_table(entry) for entry in outputs]
    changed = [str(e.get("file", "")) for e in entries if not _is_unchanged(manifest.parent, e, hashes)]
    # A file that was put there later may be what a score comes from.
    listed = {entry.get("sha256") for entry in entries if isinstance(entry.get("sha256"), str)}
    changed += [file.name for file in files if file.sha256 not in listed]
    return Provenance(
        said_in=manifest.name,
        to=str(said.get("to", "")),
        sources=tuple(_source(_table(entry)) for entry in sources),
        options=_texts(said.get("options")),
        tools=_texts(said.get("tools")),
        state="changed since" if changed else "as converted",
        changed=tuple(dict.fromkeys(changed)),
    )


def _is_unchanged(folder: Path, entry: Mapping[str, Any], hashes: _Hashes) -> bool:
    """A name with a folder in it is nobody's output, and is not looked at."""
    name, expected = entry.get("file"), entry.get("sha256")
    if not isinstance(name, str) or Path(name).name != name or "\0" in name:
        return False
    if not (folder / name).is_file():
        return expected in hashes.known.values()  # it has another name now, as its manifest has
    return hashes.files([folder / name])[0].sha256 == expected


def _source(entry: Mapping[str, Any]) -> Source:
    role, sha256_, file = (str(entry.get(key, "")) for key in ("role", "sha256", "file"))
    n_bytes = entry.get("n_bytes")
    return Source(role, sha256_, file, n_bytes if type(n_bytes) is int else 0)


def _texts(value: object) -> dict[str, str]:
    return {key: str(text) for key, text in _table(value).items()}


def _from_metadata(metadata: Mapping[str, str]) -> Provenance | None:
    own = {key.removeprefix("edgeguard."): value for key, value in metadata.items() if key.startswith("edgeguard.")}
    if "to" not in own:
        return None
    parts: dict[str, dict[str, str]] = {"tools": {}, "options": {}}
    sources = []
    for key, value in own.items():
        first, _, rest = key.partition(".")
        if first in parts:
            parts[first][rest] = value
        elif rest == "sha256":
            sources.append(Source(first, value))
    return Provenance("metadata", own["to"], tuple(sources), parts["options"], parts["tools"], "not known")
