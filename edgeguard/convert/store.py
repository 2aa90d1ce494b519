"""The file beside an ONNX graph that holds its large arrays, one after the other."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

_INLINE = 1024  # bytes; smaller arrays stay in the graph's own file
_PAGE = 4096  # the runtime maps weights that begin on a page


class Store:
    """Written from its beginning: onnx's own saving would append to a file that is there."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._file = path.open("wb")

    def tensor(self, name: str, array: npt.NDArray[Any]) -> Any:
        """The array as a TensorProto, its values in the file if they are many."""
        import onnx

        array = np.ascontiguousarray(array)
        if array.nbytes < _INLINE:
            return onnx.numpy_helper.from_array(array, name)
        self._file.write(b"\0" * (-self._file.tell() % _PAGE))
        tensor = onnx.TensorProto(
            name=name,
            dims=array.shape,
            data_type=onnx.helper.np_dtype_to_tensor_dtype(array.dtype),
            data_location=onnx.TensorProto.EXTERNAL,
        )
        for key, value in (("location", self.name), ("offset", self._file.tell()), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        array.tofile(self._file)
        return tensor

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
