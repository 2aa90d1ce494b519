"""Reading a GGUF header without trusting it.

llama.cpp stops the whole process at some lies in a model file. So the header is read here first, in
plain Python: `read_header` refuses what is not a whole, well-formed GGUF file, `check_model` refuses
numbers that contradict each other. Both say what is wrong and what to do. Weights are not read.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from struct import Struct
from types import MappingProxyType
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgeguard.errors import ModelError

MemoryKind = Literal["attention", "recurrent", "sliding window"]

# Far above every real model; below what would cost noticeable time or memory before the lie shows.
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 17
MAX_STRINGS = 1 << 22  # elements of one array of strings; Gemma's merges are half a million
MAX_STRING = 16 << 20  # bytes of one string
MAX_NAME = 63  # bytes of a tensor's name, GGML_MAX_NAME - 1
MAX_LAYERS = 512  # LLAMA_MAX_LAYERS; one more aborts
MAX_EXPERTS = 1024  # LLAMA_MAX_EXPERTS; one more aborts
MAX_WIDTH = 1 << 20  # elements of a hidden state, of a head, of a feed-forward layer
MAX_CONTEXT = 1 << 27  # tokens
MAX_TEMPLATE = 1 << 20  # characters
MAX_ALIGNMENT = 1 << 20  # bytes
MIN_ALIGNMENT = 32  # bytes; llama.cpp maps the weights in place and aborts when they stand less aligned

OTHER_ADAPTER = "give the adapter that was trained for this model"  # what to do where two do not fit
_MAGIC = b"GGUF"
_U32, _U64 = Struct("<I"), Struct("<Q")
_STRING, _ARRAY = 8, 9  # GGUF value types with a length of their own
_NUMBERS: Mapping[int, tuple[str, str]] = {  # value type → its name, its numpy type
    0: ("u8", "<u1"),
    1: ("i8", "<i1"),
    2: ("u16", "<u2"),
    3: ("i16", "<i2"),
    4: ("u32", "<u4"),
    5: ("i32", "<i4"),
    6: ("f32", "<f4"),
    7: ("bool", "<u1"),
    10: ("u64", "<u8"),
    11: ("i64", "<i8"),
    12: ("f64", "<f8"),
}
_DTYPES = dict(_NUMBERS.values())

_TYPES: Mapping[int, tuple[str, int, int]] = {  # ggml type → name, elements a block, bytes a block
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}
_REMOVED_TYPES = {
    4: "Q4_2",
    5: "Q4_3",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}
_NOT_WEIGHTS = frozenset({"Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64"})  # no matrix product reads them

_FILE_TYPES = {  # general.file_type, enum llama_ftype
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4_MOE",
    39: "NVFP4",
    40: "Q1_0",
    41: "Q2_0",
}

# Names of architectures, matched whole.
_RECURRENT = re.compile(
    r"mamba2?|a?rwkv\w+|jamba|falcon-h1|plamo2|granitehybrid|lfm2(moe)?|nemotron_h(_moe)?|qwen3next|qwen35(moe)?|"
    r"qwen4exp|kimi-linear|kimi-k3|bailingmoe3|glm5-next|deepseek4|minimax-01"
)
_SLIDING = re.compile(r"gemma2|gemma3n|llama4|gpt-oss|cohere2")  # always, whether or not a key says so
_WINDOW_IGNORED = re.compile(r"llama|mistral3|qwen[23](moe)?|phi3|starcoder2")  # llama.cpp does not apply it
_NOT_CAUSAL = re.compile(
    r"(\w+-)?bert(-moe|-v[23])?|eurobert|gemma-embedding|llama-embed|t5(encoder)?|dream|llada(-moe)?|rnd1"
)
# llama.cpp asserts that these rotate a whole head, and that keys are as long as values.
_WHOLE_HEAD = re.compile(
    r"llama4?|deci|qwen2(moe|vl)?|qwen3(moe|vl|vlmoe)?|mistral3|granite(moe)?|olmo2?|olmoe|smollm3|falcon|internlm2|"
    r"starcoder2|baichuan|deepseek|exaone|orion|xverse|nemotron|arcee|apertus|ernie4_5(-moe)?|seed_oss|dots1|grok|dbrx"
)
_NO_VOCABULARY = frozenset({"none", "no_vocab", "test"})
_ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
_ANSWER_TOKENS = ("bos", "eos", "eot", "eom")

_AGAIN = "download it again"
_CONVERT = "convert the model again, or take another file of it"


# What a header holds


@dataclass(frozen=True)
class Array:
    """A metadata array, left in the file until its values are asked for.

    `type_name` is "str", "bool" or a number's type such as "i32"; `n_bytes` is its size in the file.
    """

    type_name: str
    length: int
    n_bytes: int
    path: Path = field(repr=False)
    position: int = field(repr=False)

    def numbers(self) -> npt.NDArray[np.generic]:
        """The values, (length,). Raises TypeError for strings, ModelError if the file went away."""
        if self.type_name == "str":
            raise TypeError("an array of strings has no numbers; call strings()")
        values = np.frombuffer(self._bytes(), dtype=_DTYPES[self.type_name])
        return values != 0 if self.type_name == "bool" else values

    def strings(self) -> list[bytes]:
        """The values as bytes: tokens need not be UTF-8. Raises TypeError for an array of numbers."""
        if self.type_name != "str":
            raise TypeError(f"an array of {self.type_name} has no strings; call numbers()")
        data, at, found = self._bytes(), 0, []
        for _ in range(self.length):
            end = at + 8 + _U64.unpack_from(data, at)[0]
            found.append(data[at + 8 : end])
            at = end
        return found

    def _bytes(self) -> bytes:
        try:
            with open(self.path, "rb") as file:
                file.seek(self.position)
                data = file.read(self.n_bytes)
        except OSError as error:
            raise ModelError(f"{self.path} cannot be read any more: {_reason(error)}") from error
        if len(data) < self.n_bytes:
            raise ModelError(f"{self.path} became shorter while it was read; {_AGAIN}")
        return data


MetadataValue = str | int | float | bool | Array


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's place in the file. `shape` is innermost first; `offset` is bytes from `data_offset`."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    offset: int
    n_bytes: int


@dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself. `n_bytes` is the file's size, `data_offset` where weights begin."""

    path: Path
    version: int
    metadata: Mapping[str, MetadataValue]
    tensors: tuple[TensorInfo, ...]
    n_bytes: int
    data_offset: int

    @property
    def architecture(self) -> str:
        """The model family's name, which is also the prefix of its keys: "llama"."""
        return str(self.metadata["general.architecture"])


def read_header(path: str | Path) -> Header:
    """The header of a GGUF file, every length and offset in it checked against the file.

    Time and memory follow the header's size, not the weights'. Raises ModelError.
    """
    path = Path(path)
    try:
        _refuse_what_is_no_file(path)
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise ModelError(f"{path} is empty (0 bytes); {_AGAIN}")
            # The bytes past a file's end must not be touched, so all reading goes through _Reader's bounds.
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parse(_Reader(path, data))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ModelError(f"{path} cannot be read: {_reason(error)}") from error


def check_model(header: Header) -> None:
    """Refuse numbers that contradict each other or the tensors: llama.cpp aborts at many of them.

    Raises ModelError. An unknown architecture passes: llama.cpp names it.
    """
    for check in _CHECKS:
        check(header)


def check_adapter(header: Header, base: Header) -> list[str]:
    """Hold a LoRA adapter's header against that of its base model; the names of the tensors that it changes.

    Kind, architecture, alpha, and that each change has both halves; shapes are for who uses them. Raises ModelError.
    """
    path, metadata = header.path, header.metadata
    if metadata.get("general.type") != "adapter":
        kind = metadata.get("general.type", "model")
        raise ModelError(f"{path} is no adapter, its general.type is {kind!r}; give a LoRA adapter")
    if metadata.get("adapter.type") != "lora":
        raise ModelError(f"{path} is an adapter of type {metadata.get('adapter.type')!r}; only 'lora' can be used")
    if "adapter.alora.invocation_tokens" in metadata:
        raise ModelError(
            f"{path} is an activated LoRA (aLoRA), which changes the model from a token of the prompt on; "
            "give a plain LoRA adapter"
        )
    if header.architecture != base.architecture:
        raise ModelError(
            f"{path} is for {header.architecture} models, {base.path} is {base.architecture}; {OTHER_ADAPTER}"
        )
    alpha = metadata.get("adapter.lora.alpha", 0.0)
    if not isinstance(alpha, float) or not math.isfinite(alpha):
        raise ModelError(f"{path}: adapter.lora.alpha is {alpha!r}, a finite number is needed; convert it again")
    return pair_halves(path, [tensor.name for tensor in header.tensors])


def pair_halves(path: Path, names: Sequence[str]) -> list[str]:
    """The base's tensors that an adapter changes, each with its A and its B there. Raises ModelError."""
    found: dict[str, set[str]] = {}
    for full in names:
        name, _, part = full.rpartition(".")
        if part not in ("lora_a", "lora_b"):
            raise ModelError(
                f"{path}: tensor {full} is neither lora_a nor lora_b, and would be lost; give a plain LoRA adapter"
            )
        found.setdefault(name, set()).add(part)
    for name, parts in found.items():
        if len(parts) < 2:
            missing = ({"lora_a", "lora_b"} - parts).pop()
            raise ModelError(f"{path} has no {name}.{missing} to its other half; convert the adapter again")
    return list(found)


def memory_kind(header: Header) -> MemoryKind:
    """What the model keeps of the tokens it has read, as far as the header tells.

    Only an "attention" memory can be cut back to any earlier length.
    """
    arch, metadata = header.architecture, header.metadata
    recurrent = (f"{arch}.ssm.", f"{arch}.wkv.", f"{arch}.shortconv.", f"{arch}.kda.")
    if _RECURRENT.fullmatch(arch) or any(key.startswith(recurrent) for key in metadata):
        return "recurrent"
    window = metadata.get(f"{arch}.attention.sliding_window", 0)
    windowed = isinstance(window, Array) or (isinstance(window, int) and window > 0)
    if _SLIDING.fullmatch(arch) or (windowed and not _WINDOW_IGNORED.fullmatch(arch)):
        return "sliding window"
    return "attention"


def quantization(header: Header) -> str:
    """The quantization's usual name, "Q4_K_M": as the file says, else the type most weight bytes have.

    A file that says a type none of its tensors has is not believed.
    """
    n_bytes: dict[str, int] = {}
    for tensor in header.tensors:
        n_bytes[tensor.type_name] = n_bytes.get(tensor.type_name, 0) + tensor.n_bytes
    claim = header.metadata.get("general.file_type")
    name = _FILE_TYPES.get(claim & ~1024) if isinstance(claim, int) else None  # 1024 marks a guess
    is_tensor_type = any(name == type_name for type_name, _, _ in _TYPES.values())
    if name is not None and (not is_tensor_type or name in n_bytes):
        return name
    return max(n_bytes, key=lambda t: n_bytes[t]) if n_bytes else "unknown"


def chat_template(header: Header) -> str | None:
    """The model's default chat template, Jinja from a stranger; None if it has none."""
    template = header.metadata.get("tokenizer.chat_template")
    return template if isinstance(template, str) and template else None


def context_length(header: Header) -> int:
    """Tokens the model was trained to read at once. Raises ModelError."""
    return _whole(header, f"{header.architecture}.context_length", 1, MAX_CONTEXT)


# Reading: every length is held against the file before it is used


@dataclass
class _Reader:
    """A cursor over a file's bytes that refuses to pass their end."""

    path: Path
    data: mmap.mmap
    at: int = 0

    def take(self, n: int, what: str) -> int:
        """Step over `n` bytes; where they begin."""
        begin = self.at
        if n > len(self.data) - begin:
            raise ModelError(
                f"{self.path} ends within its header: {what} needs {n} bytes at offset {begin}, the file has "
                f"{len(self.data)}; it is truncated or damaged, {_AGAIN}"
            )
        self.at = begin + n
        return begin

    def u32(self, what: str) -> int:
        return int(_U32.unpack_from(self.data, self.take(4, what))[0])

    def u64(self, what: str) -> int:
        return int(_U64.unpack_from(self.data, self.take(8, what))[0])

    def string(self, what: str, longest: int = MAX_STRING) -> bytes:
        n = self.u64(what)
        if n > longest:
            raise ModelError(f"{self.path}: {what} is {n} bytes long, at most {longest} make sense; {_AGAIN}")
        begin = self.take(n, what)
        return self.data[begin : begin + n]

    def identifier(self, what: str, longest: int) -> str:
        """Printable text: C code ends a name at a NUL, and would read another name than we do."""
        raw = self.string(what, longest)
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            raise ModelError(f"{self.path}: {what} is not UTF-8: {_shown(raw)}; {_AGAIN}") from None
        if not name or not name.isprintable():
            raise ModelError(f"{self.path}: {what} is not a name: {_shown(name)}; {_AGAIN}")
        return name

    def skip_strings(self, n: int, what: str) -> None:
        if n > MAX_STRINGS:
            raise ModelError(f"{self.path}: {what} has {n} strings, at most {MAX_STRINGS} make sense; {_AGAIN}")
        if 8 * n > len(self.data) - self.at:
            self.take(8 * n, what)
        data, at, last, read = self.data, self.at, len(self.data) - 8, _U64.unpack_from
        for _ in range(n):  # a hundred thousand turns for a real vocabulary: nothing else belongs in here
            if at > last:
                break
            at += 8 + read(data, at)[0]
        self.take(at - self.at, what)


def _parse(reader: _Reader) -> Header:
    path, n_bytes = reader.path, len(reader.data)
    version, n_tensors, n_keys = _preamble(reader)
    metadata: dict[str, MetadataValue] = {}
    for i in range(n_keys):
        key = reader.identifier(f"metadata key {i}", 0xFFFF)
        if key in metadata:
            raise ModelError(f"{path}: metadata key {_shown(key)} appears twice; {_CONVERT}")
        metadata[key] = _value(reader, key)
    _check_split(path, metadata)
    _check_architecture(path, metadata)
    alignment = _alignment(path, metadata)
    tensors = tuple(_tensor(reader, i) for i in range(n_tensors))
    _check_names(path, tensors)
    data_offset = -(-reader.at // alignment) * alignment
    _check_layout(path, tensors, data_offset, alignment, n_bytes)
    return Header(path, version, MappingProxyType(metadata), tensors, n_bytes, data_offset)


def _refuse_what_is_no_file(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist; give the path of a .gguf file") from None
    if stat.S_ISDIR(mode):
        raise ModelError(f"{path} is a directory; give the .gguf file in it")
    if not stat.S_ISREG(mode):
        raise ModelError(f"{path} is not a regular file; give the path of a .gguf file")


def _preamble(reader: _Reader) -> tuple[int, int, int]:
    """Magic, version and counts: (version, n_tensors, n_keys)."""
    path, size = reader.path, len(reader.data)
    head = reader.data[:512]
    if not head.startswith(_MAGIC):
        raise ModelError(f"{path} is not a GGUF file: {_looks_like(head)}")
    reader.take(4, "the magic")
    version = reader.u32("the version")
    if version & 0xFFFF == 0 and version:
        raise ModelError(f"{path} is a big-endian GGUF file; take the little-endian file of this model")
    if version not in (2, 3):
        raise ModelError(f"{path} is GGUF version {version}, versions 2 and 3 can be read; {_CONVERT}")
    n_tensors, n_keys = reader.u64("the tensor count"), reader.u64("the key count")
    rest = size - reader.at
    # A key takes at least 8 + 1 + 4 + 1 bytes, a tensor 8 + 1 + 4 + 4 + 8.
    for count, each, limit, what in (
        (n_tensors, 25, MAX_TENSORS, "tensors"),
        (n_keys, 14, MAX_KEYS, "metadata keys"),
    ):
        if count > limit or count * each > rest:
            raise ModelError(
                f"{path} claims {count} {what}, more than a file of {_size(size)} can hold; "
                f"it is truncated or damaged, {_AGAIN}"
            )
    return version, n_tensors, n_keys


def _looks_like(head: bytes) -> str:
    """What a file that begins with `head` probably is, and what to do about it."""
    text = head.lstrip().lower()
    convert = "convert it with llama.cpp's convert_hf_to_gguf.py"
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; fetch the real file with git lfs pull, or download it"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page; download the model file itself"
    if head[:4] in (b"lmgg", b"fmgg", b"tjgg", b"algg"):
        return f"it is an old GGML file; {_CONVERT}"
    if head[:4] == b"PK\x03\x04" or head.startswith(b"\x80\x02"):
        return f"it looks like a PyTorch checkpoint; {convert}"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return f"it looks like a safetensors file; {convert}"
    if head[:1] == b"\x08" and (b"onnx" in head or b"pytorch" in head):
        return "it looks like an ONNX model, but its first bytes are not those of one; download it again"
    if head.startswith(b"\x1f\x8b"):
        return "it is compressed with gzip; unpack it"
    return f"it begins with {_shown(head[:8])}, not {_MAGIC!r}; give the path of a .gguf file"


def _value(reader: _Reader, key: str) -> MetadataValue:
    what = f"the value of {_shown(key)}"
    kind = reader.u32(what)
    if kind == _STRING:
        return reader.string(what).decode(errors="replace")  # text to show; the key was checked
    if kind == _ARRAY:
        return _array(reader, what)
    name, dtype = _number_type(reader, kind, what)
    begin = reader.take(np.dtype(dtype).itemsize, what)
    number = np.frombuffer(reader.data[begin : reader.at], dtype=dtype)[0].item()
    return bool(number) if name == "bool" else number


def _array(reader: _Reader, what: str) -> Array:
    kind, length = reader.u32(what), reader.u64(what)
    if kind == _ARRAY:
        raise ModelError(f"{reader.path}: {what} is an array of arrays, which no runtime reads; {_CONVERT}")
    if kind == _STRING:
        begin, name = reader.at, "str"
        reader.skip_strings(length, what)
    else:
        name, dtype = _number_type(reader, kind, what)
        begin = reader.take(length * np.dtype(dtype).itemsize, what)
    return Array(name, length, reader.at - begin, reader.path, begin)


def _number_type(reader: _Reader, kind: int, what: str) -> tuple[str, str]:
    if kind not in _NUMBERS:
        raise ModelError(f"{reader.path}: {what} has the unknown type {kind}, 0 to 12 are known; {_AGAIN}")
    return _NUMBERS[kind]


def _tensor(reader: _Reader, i: int) -> TensorInfo:
    path = reader.path
    name = reader.identifier(f"the name of tensor {i}", MAX_NAME)
    what = f"tensor {_shown(name)}"
    n_dims = reader.u32(what)
    if n_dims > 4:
        raise ModelError(f"{path}: {what} has {n_dims} dimensions, at most 4 are possible; {_AGAIN}")
    shape = tuple(reader.u64(what) for _ in range(n_dims))
    if any(not 0 < d < 1 << 63 for d in shape) or math.prod(shape) >= 1 << 63:
        raise ModelError(f"{path}: {what} has the impossible shape {shape}; {_AGAIN}")
    kind = reader.u32(what)
    if kind in _REMOVED_TYPES:
        raise ModelError(f"{path}: {what} has type {_REMOVED_TYPES[kind]}, which was removed; {_CONVERT}")
    if kind not in _TYPES:
        raise ModelError(
            f"{path}: {what} has the unknown type {kind}, known are 0 to {max(_TYPES)}; "
            "update edgeguard, or take another quantization of the model"
        )
    type_name, per_block, block_bytes = _TYPES[kind]
    row = shape[0] if shape else 1
    if row % per_block:
        raise ModelError(
            f"{path}: {what} has rows of {row} elements, {type_name} wants multiples of {per_block}; {_AGAIN}"
        )
    n_bytes = math.prod(shape) // per_block * block_bytes
    return TensorInfo(name, shape, type_name, reader.u64(what), n_bytes)


def _alignment(path: Path, metadata: Mapping[str, MetadataValue]) -> int:
    """Bytes that tensors are aligned to."""
    value = metadata.get("general.alignment", 32)
    is_power = isinstance(value, int) and value > 0 and value & (value - 1) == 0
    if not isinstance(value, int) or not is_power or not MIN_ALIGNMENT <= value <= MAX_ALIGNMENT:
        raise ModelError(
            f"{path}: general.alignment is {_shown(value)}, a power of two from {MIN_ALIGNMENT} to "
            f"{MAX_ALIGNMENT} is needed; {_CONVERT}"
        )
    return value


def _check_architecture(path: Path, metadata: Mapping[str, MetadataValue]) -> None:
    arch = metadata.get("general.architecture")
    if arch is None:
        raise ModelError(f"{path} has no general.architecture, so it is no model; {_CONVERT}")
    if not isinstance(arch, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", arch):
        raise ModelError(f"{path}: general.architecture is {_shown(arch)}, a name is needed; {_CONVERT}")


def _check_names(path: Path, tensors: tuple[TensorInfo, ...]) -> None:
    seen: set[str] = set()
    for tensor in tensors:
        if tensor.name in seen:
            raise ModelError(f"{path}: tensor {_shown(tensor.name)} appears twice; {_CONVERT}")
        seen.add(tensor.name)


def _check_layout(path: Path, tensors: tuple[TensorInfo, ...], data_offset: int, alignment: int, n_bytes: int) -> None:
    """Tensors stand one after the other, each aligned, and the file holds them all."""
    expected = end = 0
    for tensor in tensors:
        if tensor.offset != expected:
            raise ModelError(
                f"{path}: tensor {_shown(tensor.name)} stands at offset {tensor.offset} of the weights, "
                f"{expected} is expected; {_AGAIN}"
            )
        end = tensor.offset + tensor.n_bytes
        expected = -(-end // alignment) * alignment
    if tensors and data_offset + end > n_bytes:
        raise ModelError(f"{path} is truncated: {_of(n_bytes, data_offset + end)}; {_AGAIN}")


def _check_split(path: Path, metadata: Mapping[str, MetadataValue]) -> None:
    """A model in parts is opened by its first part, and the others must lie beside it."""
    count, number = metadata.get("split.count", 0), metadata.get("split.no", 0)
    if not isinstance(count, int) or not isinstance(number, int) or not 0 <= number <= count <= 0xFFFF:
        raise ModelError(f"{path}: split.no {_shown(number)} of split.count {_shown(count)} is no part; {_AGAIN}")
    if count < 2:
        return
    match = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})\.gguf", path.name)
    if match is None or int(match[3]) != count or int(match[2]) != number + 1:
        raise ModelError(
            f"{path} is part {number + 1} of {count} of a model, and must keep the name "
            f"NAME-{number + 1:05d}-of-{count:05d}.gguf; rename it"
        )
    parts = [path.with_name(f"{match[1]}-{i + 1:05d}-of-{count:05d}.gguf") for i in range(count)]
    if number:
        raise ModelError(f"{path} is part {number + 1} of {count} of a model; give the first, {parts[0].name}")
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise ModelError(
            f"{path} needs {len(missing)} more of its {count} parts beside it, first {missing[0]}; "
            "download them into the same folder"
        )


# Checking: hyperparameters against each other and against the tensors


def _check_kind(header: Header) -> None:
    path, arch = header.path, header.architecture
    kind = header.metadata.get("general.type", "model")
    if kind == "adapter":
        raise ModelError(f"{path} is a LoRA adapter, not a model; merge it into its model and convert that")
    if kind == "mmproj" or arch == "clip":
        raise ModelError(f"{path} is a vision projector, not a language model; give the model's own file")
    if not header.tensors:
        raise ModelError(f"{path} has no tensors, it is a vocabulary without a model; give the model's file")
    if _NOT_CAUSAL.fullmatch(arch) or header.metadata.get(f"{arch}.attention.causal") is False:
        raise ModelError(
            f"{path} is a {_shown(arch)} model that does not write text token by token; "
            "edgeguard scores generative guard models"
        )


def _check_layers(header: Header) -> None:
    arch = header.architecture
    n_layer = _whole(header, f"{arch}.block_count", 1, MAX_LAYERS)
    _whole(header, f"{arch}.embedding_length", 1, MAX_WIDTH)
    context_length(header)
    _whole(header, f"{arch}.nextn_predict_layers", 0, n_layer, default=0)
    _per_layer(header, f"{arch}.feed_forward_length", 0, MAX_WIDTH)


def _check_experts(header: Header) -> None:
    arch = header.architecture
    n = _whole(header, f"{arch}.expert_count", 0, MAX_EXPERTS, default=0)
    used = _per_layer(header, f"{arch}.expert_used_count", 0, n) or [0]
    if n and not any(used):
        raise _contradiction(header, f"{arch}.expert_count is {n} and {arch}.expert_used_count is 0")
    groups = _whole(header, f"{arch}.expert_group_count", 0, max(0, n - 1), default=0)
    groups_used = _whole(header, f"{arch}.expert_group_used_count", 0, MAX_EXPERTS, default=0)
    if groups > 1 and (n % groups or not 0 < groups_used < groups):
        raise _contradiction(header, f"{n} experts in {groups} groups, {groups_used} of them used")


def _check_attention(header: Header) -> None:
    """Heads divide what they share: a division by zero or a mismatch stops llama.cpp's process."""
    arch = header.architecture
    width = _whole(header, f"{arch}.embedding_length", 1, MAX_WIDTH)
    heads = _per_layer(header, f"{arch}.attention.head_count", 0, MAX_WIDTH)
    shared = _per_layer(header, f"{arch}.attention.head_count_kv", 0, MAX_WIDTH) or heads
    if memory_kind(header) == "recurrent":
        return
    if not heads or not any(heads):
        raise _contradiction(header, f"{arch}.attention.head_count is missing or 0")
    n_layer = max(len(heads), len(shared))
    for n, n_kv in zip(_repeated(heads, n_layer), _repeated(shared, n_layer), strict=True):
        if (n_kv == 0 and len(shared) == 1) or (n_kv and n % n_kv):
            raise _contradiction(header, f"{n} attention heads cannot share {n_kv} key-value heads")
    for part in ("key", "value"):
        length = _whole(header, f"{arch}.attention.{part}_length", 1, MAX_WIDTH, default=0)
        if not length and heads[0] and width % heads[0]:
            raise _contradiction(header, f"{heads[0]} attention heads do not divide {width} elements")


def _check_rope(header: Header) -> None:
    arch, metadata = header.architecture, header.metadata
    width = _whole(header, f"{arch}.embedding_length", 1, MAX_WIDTH)
    heads = _per_layer(header, f"{arch}.attention.head_count", 0, MAX_WIDTH)
    head = width // heads[0] if heads and heads[0] else width
    head = _whole(header, f"{arch}.attention.key_length", 1, MAX_WIDTH, default=head)
    rotated = _whole(header, f"{arch}.rope.dimension_count", 0, head, default=head)
    values = _whole(header, f"{arch}.attention.value_length", 1, MAX_WIDTH, default=head)
    if _WHOLE_HEAD.fullmatch(arch) and not rotated == values == head:
        raise _contradiction(header, f"keys of {head}, values of {values} and {rotated} rotated elements a head")
    if rotated % 2:
        raise _contradiction(header, f"{rotated} of a head's elements are to be rotated, in pairs")
    scaling = metadata.get(f"{arch}.rope.scaling.type", "linear")
    if scaling not in _ROPE_SCALINGS:
        raise _contradiction(
            header, f"{arch}.rope.scaling.type is {_shown(scaling)}, known are {', '.join(_ROPE_SCALINGS)}"
        )


def _check_floats(header: Header) -> None:
    """A NaN or a negative where a norm or a scale stands turns every probability into NaN, or aborts."""
    for key, value in header.metadata.items():
        if not isinstance(value, float) or not key.startswith(f"{header.architecture}."):
            continue
        low = 0.0 if "epsilon" in key or ".rope." in key else -math.inf
        if not math.isfinite(value) or value < low or (key.endswith("freq_base") and value == 0):
            raise _contradiction(header, f"{key} is {value}")


def _check_tensors(header: Header) -> None:
    width = _whole(header, f"{header.architecture}.embedding_length", 1, MAX_WIDTH)
    for tensor in header.tensors:
        is_vector = len(tensor.shape) < 2
        if tensor.type_name in _NOT_WEIGHTS or (is_vector and tensor.type_name != "F32"):
            expected = "vectors are F32" if is_vector else "no weights are of that type"
            raise _contradiction(header, f"tensor {_shown(tensor.name)} is {tensor.type_name}, {expected}")
        if tensor.name == "token_embd.weight" and (len(tensor.shape) != 2 or tensor.shape[0] != width):
            raise _contradiction(
                header,
                f"token_embd.weight has shape {tensor.shape}, embedding_length is {width}",
            )


def _check_vocabulary(header: Header) -> None:
    arch, metadata = header.architecture, header.metadata
    model = metadata.get("tokenizer.ggml.model")
    if not isinstance(model, str) or model in _NO_VOCABULARY:
        raise _contradiction(header, f"tokenizer.ggml.model is {_shown(model)}, so it has no tokenizer")
    if model in ("rwkv", "bert") and memory_kind(header) != "recurrent":
        # The one never ends where a byte has no token, the other aborts at tokens that are bytes.
        raise _contradiction(header, f"tokenizer.ggml.model is {_shown(model)} for {_shown(arch)}")
    tokens = _array_of(header, "tokenizer.ggml.tokens", "str")
    if tokens is None or not tokens.length:
        raise _contradiction(header, "tokenizer.ggml.tokens is missing or empty")
    n = tokens.length
    for key, types in (("token_type", ("i32",)), ("scores", ("f32", "i32"))):
        values = _array_of(header, f"tokenizer.ggml.{key}", *types)
        if values is not None and values.length != n:
            raise _contradiction(header, f"it has {n} tokens and {values.length} of tokenizer.ggml.{key}")
    _array_of(header, "tokenizer.ggml.merges", "str")
    claimed = _whole(header, f"{arch}.vocab_size", 1, 1 << 31, default=n)
    rows = next((t.shape[-1] for t in header.tensors if t.name == "token_embd.weight"), n)
    if not claimed == rows == n:
        raise _contradiction(header, f"{n} tokens, {rows} embeddings and a vocab_size of {claimed}")
    _check_pieces(header, model, tokens.strings())


def _check_pieces(header: Header, model: str, tokens: list[bytes]) -> None:
    # C code ends a piece at a NUL; llama.cpp numbers the empty ones, and aborts where two are equal.
    cut = [t.partition(b"\0")[0] if b"\0" in t else t for t in tokens]
    pieces = {t or b"[EMPTY_%d]" % i: i for i, t in enumerate(cut)}
    if len(pieces) < len(cut):
        i, again = next((i, t) for i, t in enumerate(cut) if pieces[t or b"[EMPTY_%d]" % i] != i)
        raise _contradiction(header, f"tokens {i} and {pieces[again]} are the same, {_shown(again)}")
    if model != "llama":
        return
    # llama.cpp throws through the tokenizer, past any handler, at a byte that has no token.
    missing = next((b for b in range(256) if b"<0x%02X>" % b not in pieces and bytes([b]) not in pieces), None)
    if missing is not None:
        raise _contradiction(header, f"no token writes the byte 0x{missing:02X}, so some texts have no tokens")


def _check_answer_tokens(header: Header) -> None:
    tokens = header.metadata["tokenizer.ggml.tokens"]
    n = tokens.length if isinstance(tokens, Array) else 0
    for name in _ANSWER_TOKENS:
        _whole(header, f"tokenizer.ggml.{name}_token_id", 0, n - 1, default=0)


def _check_template(header: Header) -> None:
    template = header.metadata.get("tokenizer.chat_template", "")
    if not isinstance(template, str) or len(template) > MAX_TEMPLATE:
        raise _contradiction(header, f"tokenizer.chat_template is not a text of at most {MAX_TEMPLATE} characters")


_CHECKS = (
    _check_kind,
    _check_layers,
    _check_experts,
    _check_attention,
    _check_rope,
    _check_floats,
    _check_tensors,
    _check_vocabulary,
    _check_answer_tokens,
    _check_template,
)


def _whole(header: Header, key: str, low: int, high: int, *, default: int | None = None) -> int:
    """A whole number of the metadata, held against low ≤ value ≤ high. Raises ModelError."""
    value = header.metadata.get(key, default)
    if value is None:
        raise ModelError(f"{header.path} has no {key}, which every model of its kind has; {_CONVERT}")
    if key in header.metadata and (isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high):
        raise ModelError(
            f"{header.path}: {key} is {_shown(value)}, a whole number from {low} to {high} is needed; {_CONVERT}"
        )
    assert isinstance(value, int)
    return value


def _per_layer(header: Header, key: str, low: int, high: int) -> list[int]:
    """A number for all layers, as one element, or one for each; [] where the key is missing."""
    value = header.metadata.get(key)
    if value is None:
        return []
    if not isinstance(value, Array):
        return [_whole(header, key, low, high)]
    n_layer = _whole(header, f"{header.architecture}.block_count", 1, MAX_LAYERS)
    if value.type_name not in ("i32", "u32") or value.length != n_layer:
        raise _contradiction(header, f"{key} is {_shown(value)} for {n_layer} layers")
    numbers = [int(n) for n in value.numbers().tolist()]
    wrong = next((n for n in numbers if not low <= n <= high), None)
    if wrong is not None:
        raise _contradiction(header, f"{key} holds {wrong}, outside of {low} to {high}")
    return numbers


def _repeated(numbers: list[int], n: int) -> list[int]:
    return numbers * n if len(numbers) == 1 else numbers


def _array_of(header: Header, key: str, *types: str) -> Array | None:
    value = header.metadata.get(key)
    if value is None or (isinstance(value, Array) and value.type_name in types):
        return value
    raise _contradiction(header, f"{key} is {_shown(value)}, an array of {' or '.join(types)} is needed")


def _contradiction(header: Header, what: str) -> ModelError:
    return ModelError(f"{header.path} contradicts itself: {what}; {_CONVERT}")


def _shown(value: object) -> str:
    """A stranger's value for a message: short, on one line."""
    if isinstance(value, Array):
        return f"an array of {value.length} {value.type_name}"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return f"{os.strerror(error.errno)} ({errno.errorcode.get(error.errno, error.errno)})"
    return str(error)


def _size(n: int) -> str:
    return f"{n / 1e6:.0f} MB" if n >= 10_000_000 else f"{n} bytes"


def _of(part: int, whole: int) -> str:
    """As in: 98 MB of 105 MB. In bytes where megabytes would not tell them apart."""
    if _size(part) == _size(whole) or whole < 10_000_000:
        return f"{part} of {whole} bytes"
    return f"{_size(part)} of {_size(whole)}"
