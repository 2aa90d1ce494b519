"""A GGUF model with its adapter merged into it: in float32, float16, or blocks that numpy quantizes.

No llama.cpp has a hand in it, and every step is taken number by number: the same bytes on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from struct import pack
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from edgeguard.convert.weights import Weights
from edgeguard.errors import OutputError
from edgeguard.formats.gguf import Header, TensorInfo, open_reader

_U32, _STRING = 4, 8  # GGUF value types
_FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7}  # enum llama_ftype
_TENSOR_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 8}  # enum ggml_type
_BLOCK_BYTES = {"Q4_0": 18, "Q8_0": 34}
_BLOCK = 32  # weights

MERGED_TYPES = tuple(_FILE_TYPES)


def write_merged(weights: Weights, out: Path, *, metadata: Mapping[str, str], to: str = "f32") -> None:
    """Write a GGUF of all of `weights`, one tensor in memory at a time; the same bytes each time.

    to  one of MERGED_TYPES, the type of the matrices; vectors stay F32. As llama.cpp does it, "q4_0" leaves the
        embedding and the output layer in Q8_0, and a row that is no multiple of 32 is F16

    The base's metadata is kept byte for byte, but for general.file_type; `metadata` joins it or replaces what it
    had, as strings. Raises ModelError for weights that cannot be read, OutputError; `out` is gone then.
    """
    if to not in _FILE_TYPES:
        raise ValueError(f"to is {to!r}; expected one of {', '.join(_FILE_TYPES)}")
    if out.exists() and out.samefile(weights.header.path):
        raise ValueError(f"{out} is the model that is read")
    try:
        with out.open("wb") as file:
            _write(file, weights, metadata, to)
    except OSError as error:
        out.unlink(missing_ok=True)
        raise OutputError(f"{out} cannot be written: {error.strerror or error}") from error
    except BaseException:
        out.unlink(missing_ok=True)
        raise


def _write(file: BinaryIO, weights: Weights, metadata: Mapping[str, str], to: str) -> None:
    header = weights.header
    new = {"general.file_type": pack("<II", _U32, _FILE_TYPES[to])}
    new |= {key: pack("<I", _STRING) + _string(value) for key, value in metadata.items()}
    entries = {key: new.pop(key, raw) for key, raw in _raw_metadata(header)} | new
    file.write(b"GGUF" + pack("<IQQ", 3, len(header.tensors), len(entries)))
    for key, raw in entries.items():
        file.write(_string(key) + raw)
    alignment = header.metadata.get("general.alignment", 32)
    assert isinstance(alignment, int)  # read_header has refused all else
    at = 0
    for tensor in header.tensors:
        kind = _type_of(tensor, to)
        shape = pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        file.write(_string(tensor.name) + shape + pack("<IQ", _TENSOR_TYPES[kind], at))
        at += -(-_n_bytes(tensor, kind) // alignment) * alignment
    _pad(file, alignment)
    for tensor in header.tensors:
        file.write(_data(weights, tensor.name, _type_of(tensor, to)).data)
        _pad(file, alignment)


def _type_of(tensor: TensorInfo, to: str) -> str:
    if to == "f32" or len(tensor.shape) < 2:
        return "F32"
    if to == "f16" or tensor.shape[0] % _BLOCK:
        return "F16"
    return "Q8_0" if tensor.name in ("token_embd.weight", "output.weight") else to.upper()


def _n_bytes(tensor: TensorInfo, kind: str) -> int:
    n = math.prod(tensor.shape)
    return n // _BLOCK * _BLOCK_BYTES[kind] if kind in _BLOCK_BYTES else n * (2 if kind == "F16" else 4)


def _data(weights: Weights, name: str, kind: str) -> npt.NDArray[Any]:
    if kind in _BLOCK_BYTES:
        return np.ascontiguousarray(weights.quantized(name, kind))
    return np.ascontiguousarray(weights.float32(name), dtype="<f2" if kind == "F16" else "<f4")


def _pad(file: BinaryIO, alignment: int) -> None:
    file.write(bytes(-file.tell() % alignment))


def _string(text: str) -> bytes:
    raw = text.encode()
    return pack("<Q", len(raw)) + raw


def _raw_metadata(header: Header) -> Iterator[tuple[str, bytes]]:
    """Each key and its value as the file has it, type first."""
    with open_reader(header.path) as reader:
        _, _, n_keys = reader.preamble()
        for i in range(n_keys):
            key = reader.key(i)
            begin = reader.at
            reader.value(key)
            yield key, reader.data[begin : reader.at]
