"""Importance matrices, as llama-imatrix writes them: how much each input of a matrix matters to its output.

Two formats: GGUF, with NAME.in_sum2 and NAME.counts for each tensor, and the older .dat. Both come from strangers,
so every length is held against the file before it is used, and every name and size against the model.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from struct import unpack_from

import numpy as np
import numpy.typing as npt

from edgeguard.errors import ModelError
from edgeguard.formats import gguf

Floats = npt.NDArray[np.float32]

_AGAIN = "download it again, or compute it with llama-imatrix"


def read_imatrix(path: str | Path, model: gguf.Header) -> Mapping[str, Floats]:
    """Mean squares of each tensor's inputs, by its name: (experts · cols,), experts 1 for all but mixtures of them.

    Raises ModelError for a file that is no importance matrix, or is one of another model.
    """
    path = Path(path)
    try:
        with (
            open(path, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
            np.errstate(all="ignore"),  # numbers that are none are refused by name below
        ):
            found = dict(_read_gguf(path, data) if data[:4] == b"GGUF" else _read_dat(path, data))
    except (OSError, ValueError) as error:  # ValueError: an empty file, a NUL in the path
        raise ModelError(f"{path} cannot be read: {error}; give an importance matrix") from error
    if not found:
        raise ModelError(f"{path} holds no importance of any tensor; {_AGAIN}")
    _check(path, found, model)
    return found


def _check(path: Path, found: Mapping[str, Floats], model: gguf.Header) -> None:
    tensors = {tensor.name: tensor for tensor in model.tensors}
    for name, values in found.items():
        if name not in tensors:
            raise ModelError(
                f"{path} is of another model: {model.path} has no tensor {name!r}; compute it with llama-imatrix"
            )
        shape = tensors[name].shape
        expected = shape[0] * math.prod(shape[2:])
        if len(values) != expected:
            raise ModelError(
                f"{path} is of another model: it has {len(values)} numbers for {name}, "
                f"{model.path} needs {expected}; compute it with llama-imatrix"
            )
        if not np.isfinite(values).all() or (values < 0).any():
            raise ModelError(f"{path}: {name} holds numbers that are no mean squares; {_AGAIN}")


def _read_gguf(path: Path, data: mmap.mmap) -> Iterator[tuple[str, Floats]]:
    arrays = _gguf_arrays(path, data)
    for full, sums in arrays.items():
        name = full.removesuffix(".in_sum2")
        if name == full:
            continue
        counts = arrays.get(f"{name}.counts")
        if counts is None or len(sums) % len(counts):
            n = "no" if counts is None else len(counts)
            raise ModelError(f"{path} has {len(sums)} sums and {n} counts of {name}; {_AGAIN}")
        by_expert, n_seen = sums.reshape(len(counts), -1), np.round(counts)[:, None]
        # An expert that no text came to has no sums: all of its inputs matter the same, as in llama-quantize.
        yield name, np.where(n_seen > 0, by_expert / np.where(n_seen > 0, n_seen, 1), 1).astype(np.float32).ravel()


def _gguf_arrays(path: Path, data: mmap.mmap) -> dict[str, Floats]:
    """The tensors of a GGUF that is no model: `gguf.read_header` refuses it, as it names no architecture."""
    reader = gguf.Reader(path, data)
    _, n_tensors, metadata = gguf.read_metadata(reader)
    if metadata.get("general.type") != "imatrix":
        kind = metadata.get("general.type", "model")
        raise ModelError(f"{path} is no importance matrix, its general.type is {kind!r}; {_AGAIN}")
    tensors, begin = gguf.read_tensors(reader, n_tensors, metadata)
    other = next((tensor for tensor in tensors if tensor.type_name != "F32"), None)
    if other is not None:
        raise ModelError(f"{path}: tensor {other.name!r} is {other.type_name}, F32 is needed; {_AGAIN}")
    return {t.name: np.frombuffer(data[begin + t.offset :][: t.n_bytes], "<f4") for t in tensors}


def _read_dat(path: Path, data: mmap.mmap) -> Iterator[tuple[str, Floats]]:
    reader = gguf.Reader(path, data)
    n_entries = _whole(reader, "the number of entries", gguf.MAX_TENSORS)
    for i in range(n_entries):
        length = _whole(reader, f"the length of name {i}", gguf.MAX_NAME)
        begin = reader.take(length, f"name {i}")
        name = data[begin : begin + length].decode(errors="replace")
        n_calls = int(unpack_from("<i", data, reader.take(4, f"the calls of {name!r}"))[0])
        n_values = _whole(reader, f"the size of {name!r}", gguf.MAX_WIDTH * gguf.MAX_EXPERTS)
        begin = reader.take(4 * n_values, f"the values of {name!r}")
        values = np.frombuffer(data[begin : begin + 4 * n_values], "<f4")
        yield name, (values / max(1, n_calls)).astype(np.float32)
    # What follows, the number of chunks and the text's name, is not needed.


def _whole(reader: gguf.Reader, what: str, most: int) -> int:
    """A count of the .dat format, which has no magic: the first number that makes no sense says it is another."""
    n = int(unpack_from("<i", reader.data, reader.take(4, what))[0])
    if not 1 <= n <= most:
        raise ModelError(f"{reader.path} is no importance matrix: {what} is {n}, 1 to {most} make sense; {_AGAIN}")
    return n
