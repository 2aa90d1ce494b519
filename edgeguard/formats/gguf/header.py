"""What a GGUF header holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from struct import Struct

import numpy as np
import numpy.typing as npt

from edgeguard.errors import ModelError
from edgeguard.formats.gguf.tables import DTYPES, FILE_TYPES, TENSOR_TYPES

MAX_TEMPLATE = 1 << 20  # characters of a chat template

_U64 = Struct("<Q")


@dataclass(frozen=True, repr=False)
class Array:
    """A metadata array, left in the file until its values are asked for.

    `type_name` is "str", "bool" or a number's type such as "i32"; `n_bytes` is its size in the file.
    """

    type_name: str
    length: int
    n_bytes: int
    path: Path
    position: int

    def __repr__(self) -> str:
        return f"an array of {self.length} {self.type_name}"

    def numbers(self) -> npt.NDArray[np.generic]:
        """The values, (length,). Raises TypeError for strings, ModelError if the file went away."""
        if self.type_name == "str":
            raise TypeError("an array of strings has no numbers; call strings()")
        values = np.frombuffer(self._bytes(), dtype=DTYPES[self.type_name])
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
            raise ModelError(f"{self.path} cannot be read any more: {error.strerror or error}") from error
        if len(data) < self.n_bytes:
            raise ModelError(f"{self.path} became shorter while it was read; download it again")
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


def quantization(header: Header) -> str:
    """The quantization's usual name, "Q4_K_M": as the file says, else the type most weight bytes have.

    A file that says a type none of its tensors has is not believed.
    """
    n_bytes: dict[str, int] = {}
    for tensor in header.tensors:
        n_bytes[tensor.type_name] = n_bytes.get(tensor.type_name, 0) + tensor.n_bytes
    claim = header.metadata.get("general.file_type")
    name = FILE_TYPES.get(claim & ~1024) if isinstance(claim, int) else None  # 1024 marks a guess
    is_tensor_type = any(name == type_name for type_name, _, _ in TENSOR_TYPES.values())
    if name is not None and (not is_tensor_type or name in n_bytes):
        return name
    return max(n_bytes, key=lambda t: n_bytes[t]) if n_bytes else "unknown"


def chat_template(header: Header) -> str | None:
    """The model's default chat template, Jinja from a stranger; None if it has none."""
    template = header.metadata.get("tokenizer.chat_template")
    return template if isinstance(template, str) and template else None
