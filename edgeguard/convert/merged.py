"""A GGUF model with its adapter merged into it, in float32."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from struct import pack
from typing import BinaryIO

import numpy as np

from edgeguard.convert.weights import Weights
from edgeguard.errors import OutputError
from edgeguard.formats.gguf import Header, open_reader

_U32, _STRING = 4, 8  # GGUF value types
_F32, _ALL_F32 = 0, 0  # ggml type, llama file type


def write_merged(weights: Weights, out: Path, *, metadata: Mapping[str, str]) -> None:
    """Write a GGUF of all of `weights` as F32, one tensor in memory at a time; the same bytes each time.

    The base's metadata is kept byte for byte, but for general.file_type; `metadata` joins it or replaces what it
    had, as strings. Raises ModelError for weights that cannot be read, OutputError; `out` is gone then.
    """
    if out.exists() and out.samefile(weights.header.path):
        raise ValueError(f"{out} is the model that is read")
    try:
        with out.open("wb") as file:
            _write(file, weights, metadata)
    except OSError as error:
        out.unlink(missing_ok=True)
        raise OutputError(f"{out} cannot be written: {error.strerror or error}") from error
    except BaseException:
        out.unlink(missing_ok=True)
        raise


def _write(file: BinaryIO, weights: Weights, metadata: Mapping[str, str]) -> None:
    header = weights.header
    new = {"general.file_type": pack("<II", _U32, _ALL_F32)}
    new |= {key: pack("<I", _STRING) + _string(value) for key, value in metadata.items()}
    entries = {key: new.pop(key, raw) for key, raw in _raw_metadata(header)} | new
    file.write(b"GGUF" + pack("<IQQ", 3, len(header.tensors), len(entries)))
    for key, raw in entries.items():
        file.write(_string(key) + raw)
    alignment = header.metadata.get("general.alignment", 32)
    assert isinstance(alignment, int)  # read_header has refused all else
    at = 0
    for tensor in header.tensors:
        shape = pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        file.write(_string(tensor.name) + shape + pack("<IQ", _F32, at))
        at += -(-4 * math.prod(tensor.shape) // alignment) * alignment
    _pad(file, alignment)
    for tensor in header.tensors:
        file.write(np.ascontiguousarray(weights.float32(tensor.name), dtype="<f4").data)
        _pad(file, alignment)


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
