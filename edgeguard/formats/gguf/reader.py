"""Reading a GGUF header without trusting it: every length is held against the file before it is used."""

from __future__ import annotations

import errno
import math
import mmap
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from types import MappingProxyType

import numpy as np

from edgeguard.errors import ModelError, shown
from edgeguard.formats.gguf.header import Array, Header, MetadataValue, TensorInfo
from edgeguard.formats.gguf.tables import ARRAY, NUMBERS, REMOVED_TYPES, STRING, TENSOR_TYPES

# Far above every real model; below what would cost noticeable time or memory before the lie shows.
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 17
MAX_STRINGS = 1 << 22  # elements of one array of strings; Gemma's merges are half a million
MAX_STRING = 16 << 20  # bytes of one string
MAX_NAME = 63  # bytes of a tensor's name, GGML_MAX_NAME - 1
MAX_ALIGNMENT = 1 << 20  # bytes
MIN_ALIGNMENT = 32  # bytes; llama.cpp maps the weights in place and aborts when they stand less aligned

_MAGIC = b"GGUF"
_U32, _U64 = Struct("<I"), Struct("<Q")

_AGAIN = "download it again"
_CONVERT = "convert the model again, or take another file of it"


@dataclass
class Reader:
    """A cursor over a file's bytes that refuses to pass their end.

    `what` is in the message what was to be read. All methods raise ModelError.
    """

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
        """The next four bytes as a number."""
        return int(_U32.unpack_from(self.data, self.take(4, what))[0])

    def u64(self, what: str) -> int:
        """The next eight bytes as a number."""
        return int(_U64.unpack_from(self.data, self.take(8, what))[0])

    def string(self, what: str, longest: int = MAX_STRING) -> bytes:
        """A string with its length before it."""
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
            raise ModelError(f"{self.path}: {what} is not UTF-8: {shown(raw)}; {_AGAIN}") from None
        if not name or not name.isprintable():
            raise ModelError(f"{self.path}: {what} is not a name: {shown(name)}; {_AGAIN}")
        return name

    def skip_strings(self, n: int, what: str) -> None:
        """Step over `n` strings."""
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

    def preamble(self) -> tuple[int, int, int]:
        """Magic, version and counts: (version, n_tensors, n_keys)."""
        path, size = self.path, len(self.data)
        head = self.data[:512]
        if not head.startswith(_MAGIC):
            raise ModelError(f"{path} is not a GGUF file: {_looks_like(head)}")
        self.take(4, "the magic")
        version = self.u32("the version")
        if version & 0xFFFF == 0 and version:
            raise ModelError(f"{path} is a big-endian GGUF file; take the little-endian file of this model")
        if version not in (2, 3):
            raise ModelError(f"{path} is GGUF version {version}, versions 2 and 3 can be read; {_CONVERT}")
        n_tensors, n_keys = self.u64("the tensor count"), self.u64("the key count")
        rest = size - self.at
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

    def key(self, i: int) -> str:
        """The name of metadata key `i`."""
        return self.identifier(f"metadata key {i}", 0xFFFF)

    def value(self, key: str) -> MetadataValue:
        """The value of metadata key `key`, its type first; an array's values stay in the file."""
        what = f"the value of {shown(key)}"
        kind = self.u32(what)
        if kind == STRING:
            return self.string(what).decode(errors="replace")  # text to show; the key was checked
        if kind == ARRAY:
            return self._array(what)
        name, dtype = self._number_type(kind, what)
        begin = self.take(np.dtype(dtype).itemsize, what)
        number = np.frombuffer(self.data[begin : self.at], dtype=dtype)[0].item()
        return bool(number) if name == "bool" else number

    def _array(self, what: str) -> Array:
        kind, length = self.u32(what), self.u64(what)
        if kind == ARRAY:
            raise ModelError(f"{self.path}: {what} is an array of arrays, which no runtime reads; {_CONVERT}")
        if kind == STRING:
            begin, name = self.at, "str"
            self.skip_strings(length, what)
        else:
            name, dtype = self._number_type(kind, what)
            begin = self.take(length * np.dtype(dtype).itemsize, what)
        return Array(name, length, self.at - begin, self.path, begin)

    def _number_type(self, kind: int, what: str) -> tuple[str, str]:
        if kind not in NUMBERS:
            raise ModelError(f"{self.path}: {what} has the unknown type {kind}, 0 to 12 are known; {_AGAIN}")
        return NUMBERS[kind]

    def tensor(self, i: int) -> TensorInfo:
        """What the header says of tensor `i`."""
        path = self.path
        name = self.identifier(f"the name of tensor {i}", MAX_NAME)
        what = f"tensor {shown(name)}"
        n_dims = self.u32(what)
        if n_dims > 4:
            raise ModelError(f"{path}: {what} has {n_dims} dimensions, at most 4 are possible; {_AGAIN}")
        shape = tuple(self.u64(what) for _ in range(n_dims))
        if any(not 0 < d < 1 << 63 for d in shape) or math.prod(shape) >= 1 << 63:
            raise ModelError(f"{path}: {what} has the impossible shape {shape}; {_AGAIN}")
        kind = self.u32(what)
        if kind in REMOVED_TYPES:
            raise ModelError(f"{path}: {what} has type {REMOVED_TYPES[kind]}, which was removed; {_CONVERT}")
        if kind not in TENSOR_TYPES:
            raise ModelError(
                f"{path}: {what} has the unknown type {kind}, known are 0 to {max(TENSOR_TYPES)}; "
                "update edgeguard, or take another quantization of the model"
            )
        type_name, per_block, block_bytes = TENSOR_TYPES[kind]
        row = shape[0] if shape else 1
        if row % per_block:
            raise ModelError(
                f"{path}: {what} has rows of {row} elements, {type_name} wants multiples of {per_block}; {_AGAIN}"
            )
        n_bytes = math.prod(shape) // per_block * block_bytes
        return TensorInfo(name, shape, type_name, self.u64(what), n_bytes)


def read_header(path: str | Path) -> Header:
    """The header of a GGUF file, every length and offset in it checked against the file.

    Time and memory follow the header's size, not the weights'. Raises ModelError.
    """
    with open_reader(path) as reader:
        return _read(reader)


@contextmanager
def open_reader(path: str | Path) -> Iterator[Reader]:
    """A reader at the beginning of a file, which is mapped into memory. Raises ModelError."""
    path = Path(path)
    try:
        _refuse_what_is_no_file(path)
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise ModelError(f"{path} is empty (0 bytes); {_AGAIN}")
            # The bytes past a file's end must not be touched, so all reading goes through Reader's bounds.
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                yield Reader(path, data)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ModelError(f"{path} cannot be read: {_reason(error)}") from error


def read_metadata(reader: Reader) -> tuple[int, int, dict[str, MetadataValue]]:
    """From a file's beginning to the end of its keys: (version, number of tensors, metadata)."""
    version, n_tensors, n_keys = reader.preamble()
    metadata: dict[str, MetadataValue] = {}
    for i in range(n_keys):
        key = reader.key(i)
        if key in metadata:
            raise ModelError(f"{reader.path}: metadata key {shown(key)} appears twice; {_CONVERT}")
        metadata[key] = reader.value(key)
    return version, n_tensors, metadata


def read_tensors(
    reader: Reader, n_tensors: int, metadata: Mapping[str, MetadataValue]
) -> tuple[tuple[TensorInfo, ...], int]:
    """From the end of the keys on: where the tensors stand, and the offset in the file where weights begin."""
    alignment = _alignment(reader.path, metadata)
    tensors = tuple(reader.tensor(i) for i in range(n_tensors))
    data_offset = -(-reader.at // alignment) * alignment
    _check_names(reader.path, tensors)
    _check_layout(reader.path, tensors, data_offset, alignment, len(reader.data))
    return tensors, data_offset


def _read(reader: Reader) -> Header:
    version, n_tensors, metadata = read_metadata(reader)
    _check_split(reader.path, metadata)
    _check_architecture(reader.path, metadata)
    tensors, data_offset = read_tensors(reader, n_tensors, metadata)
    return Header(reader.path, version, MappingProxyType(metadata), tensors, len(reader.data), data_offset)


def _refuse_what_is_no_file(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist; give the path of a .gguf file") from None
    if stat.S_ISDIR(mode):
        raise ModelError(f"{path} is a directory; give the .gguf file in it")
    if not stat.S_ISREG(mode):
        raise ModelError(f"{path} is not a regular file; give the path of a .gguf file")


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
    return f"it begins with {shown(head[:8])}, not {_MAGIC!r}; give the path of a .gguf file"


def _alignment(path: Path, metadata: Mapping[str, MetadataValue]) -> int:
    """Bytes that tensors are aligned to."""
    value = metadata.get("general.alignment", 32)
    is_power = isinstance(value, int) and value > 0 and value & (value - 1) == 0
    if not isinstance(value, int) or not is_power or not MIN_ALIGNMENT <= value <= MAX_ALIGNMENT:
        raise ModelError(
            f"{path}: general.alignment is {shown(value)}, a power of two from {MIN_ALIGNMENT} to "
            f"{MAX_ALIGNMENT} is needed; {_CONVERT}"
        )
    return value


def _check_architecture(path: Path, metadata: Mapping[str, MetadataValue]) -> None:
    arch = metadata.get("general.architecture")
    if arch is None:
        raise ModelError(f"{path} has no general.architecture, so it is no model; {_CONVERT}")
    if not isinstance(arch, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", arch):
        raise ModelError(f"{path}: general.architecture is {shown(arch)}, a name is needed; {_CONVERT}")


def _check_names(path: Path, tensors: tuple[TensorInfo, ...]) -> None:
    seen: set[str] = set()
    for tensor in tensors:
        if tensor.name in seen:
            raise ModelError(f"{path}: tensor {shown(tensor.name)} appears twice; {_CONVERT}")
        seen.add(tensor.name)


def _check_layout(path: Path, tensors: tuple[TensorInfo, ...], data_offset: int, alignment: int, n_bytes: int) -> None:
    """Tensors stand one after the other, each aligned, and the file holds them all."""
    expected = end = 0
    for tensor in tensors:
        if tensor.offset != expected:
            raise ModelError(
                f"{path}: tensor {shown(tensor.name)} stands at offset {tensor.offset} of the weights, "
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
        raise ModelError(f"{path}: split.no {shown(number)} of split.count {shown(count)} is no part; {_AGAIN}")
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
