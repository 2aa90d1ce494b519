"""A GGUF model's tensors as arrays, read when asked for: as they stand in the file, or dequantized to float32."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeguard.convert.lora import Lora
from edgeguard.errors import ModelError
from edgeguard.formats.gguf import Header, TensorInfo


class Weights:
    """The tensors of one GGUF file, an adapter's change added where there is one.

    The file is mapped into memory: what an array takes is its own size, never the model's. `float32` of a
    tensor depends on the file, the adapter and the tensor's name alone.
    """

    def __init__(self, header: Header, adapter: Lora | None = None) -> None:
        """Map the file of `header`. Raises ModelError if it is one part of several, or changed since it was read."""
        refuse_parts(header)
        self.header = header
        self._adapter = adapter
        self._tensors = {tensor.name: tensor for tensor in header.tensors}
        try:
            self._data = np.asarray(np.memmap(header.path, dtype=np.uint8, mode="r"))
        except (OSError, ValueError) as error:  # ValueError: the file is empty by now
            raise ModelError(f"{header.path} cannot be read any more: {error}") from error
        if len(self._data) != header.n_bytes:
            raise ModelError(
                f"{header.path} has {len(self._data)} bytes, it had {header.n_bytes} a moment ago; "
                "leave it alone while it is converted"
            )

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def info(self, name: str) -> TensorInfo:
        """Where a tensor stands, and its type. Raises ModelError if the file has none of that name."""
        if name not in self._tensors:
            raise ModelError(
                f"{self.header.path} has no tensor {name!r}, which a {self.header.architecture} model needs here; "
                "convert the model again, or take another file of it"
            )
        return self._tensors[name]

    def changed(self, name: str) -> bool:
        """Whether the adapter changes this tensor."""
        return self._adapter is not None and name in self._adapter.changes

    def blocks(self, name: str) -> npt.NDArray[np.uint8]:
        """A tensor as it stands in the file: (rows, bytes a row), read-only.

        Raises ValueError for a tensor that the adapter changes: its blocks are not the model's any more.
        """
        if self.changed(name):
            raise ValueError(f"{name} is changed by an adapter; its blocks in the file are not its weights")
        return self._stored(name)

    def float32(self, name: str) -> npt.NDArray[np.float32]:
        """A tensor's weights, outermost dimension first: (rows, cols) for a matrix, (n,) for a vector.

        Maybe a read-only view of the file. Raises ModelError for a type that cannot be dequantized.
        """
        info = self.info(name)
        library = gguf_library()
        try:
            kind = library.GGMLQuantizationType[info.type_name]
            values = library.quants.dequantize(self._stored(name), kind)
        except (KeyError, NotImplementedError):
            raise ModelError(
                f"{self.header.path}: tensor {name} is {info.type_name}, which the gguf package here cannot "
                "dequantize; take another quantization of the model, or update gguf"
            ) from None
        found: npt.NDArray[np.float32] = np.asarray(values, dtype=np.float32).reshape(info.shape[::-1])
        if self._adapter is not None and name in self._adapter.changes:
            found = found + self._adapter.delta(name)
        return found

    def quantized(self, name: str, type_name: str) -> npt.NDArray[np.uint8]:
        """A matrix in blocks of ggml's type `type_name`: (rows, bytes a row).

        Its own blocks where it has such, else what llama.cpp makes of its floats without an importance matrix: the
        numpy code of the gguf package, number by number, whose bits depend neither on the machine nor on its threads.
        """
        if self.info(name).type_name == type_name and not self.changed(name):
            return self._stored(name)
        library = gguf_library()
        raw: npt.NDArray[np.uint8] = library.quants.quantize(
            self.float32(name), library.GGMLQuantizationType[type_name]
        )
        return raw

    def _stored(self, name: str) -> npt.NDArray[np.uint8]:
        info = self.info(name)
        begin = self.header.data_offset + info.offset
        n_rows = int(np.prod(info.shape[1:], dtype=np.int64))
        return self._data[begin : begin + info.n_bytes].reshape(n_rows, info.n_bytes // n_rows)


def refuse_parts(header: Header) -> None:
    """Raises ModelError for a model in several files."""
    count = header.metadata.get("split.count", 1)
    if isinstance(count, int) and count > 1:
        raise ModelError(
            f"{header.path} is the first of {count} parts of a model; "
            "merge the parts first with llama-gguf-split --merge"
        )


def gguf_library() -> Any:
    """The gguf package. Raises ModelError where it is not installed."""
    try:
        return importlib.import_module("gguf")
    except ModuleNotFoundError as error:
        raise ModelError(
            "reading a model's weights needs the gguf package, which is not installed; pip install 'edgeguard[convert]'"
        ) from error
