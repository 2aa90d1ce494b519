"""safetensors files: the header read without trusting it, and arrays of floats.

Eight bytes say how long the header is, the header is a JSON object of types, shapes and places, and the values follow:
https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgeguard.errors import ModelError, shown
from edgeguard.formats.bounded_json import find_object, parse_object, table

MAX_HEADER = 100_000_000  # bytes, the format's own limit
MAX_DIMS = 16  # dimensions of a tensor

_AGAIN = "download it again"
_FLOATS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # numpy has no bfloat16


@dataclass(frozen=True)
class Entry:
    """A tensor of the header. `shape` is outermost first, `begin` is bytes from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    begin: int
    n_bytes: int


def weight_files(folder: Path) -> list[Path]:
    """The files with a checkpoint's weights: those of its index, or model.safetensors, or all there are.

    Raises ModelError where the index names a file that is not there.
    """
    index = (find_object(folder / "model.safetensors.index.json") or {}).get("weight_map")
    if isinstance(index, dict):
        names = sorted({str(name) for name in index.values()})
        lost = next((n for n in names if Path(n).name != n or not (folder / n).is_file()), None)
        if lost is not None:
            raise ModelError(f"{folder} needs {lost!r} with weights of it, which is not there; download it too")
        return [folder / name for name in names]
    single = folder / "model.safetensors"
    return [single] if single.is_file() else sorted(p for p in folder.glob("*.safetensors") if p.is_file())


def read_entries(path: Path) -> list[Entry]:
    """All tensors of a file, in the header's order. Raises ModelError."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER):
                raise ModelError(f"{path} is truncated, or no safetensors file: {size} bytes; {_AGAIN}")
            header = file.read(length)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from None
    members = parse_object(header, f"the header of {path}", cure=_AGAIN)
    begin = 8 + length
    return [_entry(path, name, entry, begin, size) for name, entry in members.items() if name != "__metadata__"]


def read_floats(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """All tensors as float32, by name in the order of names. Raises ModelError where one is of another kind."""
    found = {}
    for entry in sorted(read_entries(path), key=lambda entry: entry.name):
        kind = _FLOATS.get(entry.type_name)
        if kind is None:
            raise ModelError(f"{path}: {shown(entry.name)} is {shown(entry.type_name)}; F32, F16 or BF16 is needed")
        if entry.n_bytes != math.prod(entry.shape) * np.dtype(kind).itemsize:
            raise ModelError(f"{path}: {shown(entry.name)} of shape {entry.shape} has {entry.n_bytes} bytes; {_AGAIN}")
        values = np.fromfile(path, kind, math.prod(entry.shape), offset=entry.begin).reshape(entry.shape)
        found[entry.name] = _from_bfloat16(values) if entry.type_name == "BF16" else values.astype(np.float32)
    return found


def _from_bfloat16(halves: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """The upper half of each float32 → the float32."""
    return (halves.astype(np.uint32) << 16).view(np.float32)


def _entry(path: Path, name: str, value: object, begin: int, size: int) -> Entry:
    entry = table(value)
    shape, offsets, type_name = entry.get("shape"), entry.get("data_offsets"), entry.get("dtype")
    numbers = [*shape, *offsets] if isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2 else []
    are_sizes = all(type(n) is int and 0 <= n < 1 << 63 for n in numbers) and 2 <= len(numbers) <= MAX_DIMS + 2
    if not are_sizes or not isinstance(type_name, str) or math.prod(numbers[:-2]) >= 1 << 63:
        raise ModelError(f"{path}: {shown(name)} is no tensor's entry; {_AGAIN}")
    first, end = numbers[-2:]
    if not first <= end <= size - begin:
        raise ModelError(
            f"{path} is truncated: {shown(name)} ends at byte {end} of its weights, they have {size - begin}; {_AGAIN}"
        )
    return Entry(name, tuple(numbers[:-2]), type_name, begin + first, end - first)
