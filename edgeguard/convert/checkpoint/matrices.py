"""The matrices of a traced graph in quantized blocks, and its weights in the file beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeguard.convert.blocks import ACCURACY, SIZE, Activations
from edgeguard.convert.store import Store

Floats = npt.NDArray[np.float32]

_FLOAT = 1  # TensorProto.DataType


class Moving(Store):
    """A store that takes over a traced graph's arrays, which lie in `folder`."""

    def __init__(self, path: Path, folder: Path) -> None:
        super().__init__(path)
        self._folder = folder

    def array(self, tensor: Any) -> npt.NDArray[Any]:
        """A tensor's values."""
        import onnx

        copy = onnx.TensorProto()  # reading would leave the values in the graph
        copy.CopyFrom(tensor)
        values: npt.NDArray[Any] = onnx.numpy_helper.to_array(copy, base_dir=str(self._folder))
        return values

    def move(self, model: Any) -> None:
        """Take over all arrays that are not in this file yet."""
        for i, tensor in enumerate(model.graph.initializer):
            said = {entry.key: entry.value for entry in tensor.external_data}
            if said.get("location") != self.name:
                model.graph.initializer[i].CopyFrom(self.tensor(tensor.name, self.array(tensor)))


def quantized_blocks(rows: Floats, bits: int) -> tuple[npt.NDArray[np.uint8], Floats]:
    """ggml's Q8_0 and Q4_0 with scales of float32, as MatMulNBits reads them: w = scale · (q - 2^(bits - 1)).

    rows (n, k) → packed (n, k / 32, 32 · bits / 8) uint8, at 4 bits the first of two weights in the low half, and
    scale (n, k / 32). Rows are filled up with zeros.
    """
    n, k = rows.shape
    w = np.pad(rows, ((0, 0), (0, -k % SIZE))).reshape(n, -1, SIZE)
    largest = np.take_along_axis(w, np.abs(w).argmax(axis=-1, keepdims=True), axis=-1)[..., 0]
    scale = np.abs(largest) / np.float32(127) if bits == 8 else largest / np.float32(-8)
    steps = np.divide(w, scale[..., None], out=np.zeros_like(w), where=scale[..., None] != 0)
    middle = 1 << (bits - 1)
    q = np.clip(np.rint(steps) + middle, 0, 2 * middle - 1).astype(np.uint8)
    return (q if bits == 8 else q[..., 0::2] | (q[..., 1::2] << 4)), scale.astype(np.float32)


def quantize(model: Any, weights: Moving, *, head: str, bits: int, activations: Activations) -> None:
    """Make the matrices blocks of `bits` bits, the embedding and the output layer of 8. Changes `model` in place.

    A scale is of a block of weights, never of activations over a batch: scores do not depend on the company.
    """
    graph = model.graph
    found = _Quantizing(graph, weights)
    nodes: list[Any] = []
    for node in graph.node:
        if node.op_type == "MatMul" and (source := found.matrix(node.input[1])):
            nodes.append(found.product(node, *source, 8 if node.name == head else bits, ACCURACY[activations]))
        elif node.op_type == "Gather" and node.input[1] == "input_ids" and node.input[0] in found.floats:
            nodes += found.rows(node)
        else:
            nodes.append(node)
    found.replace(nodes)
    if not any(opset.domain == "com.microsoft" for opset in model.opset_import):
        model.opset_import.add(domain="com.microsoft", version=1)


class _Quantizing:
    """A graph's matrices, and the blocks made of them so far. An embedding that is the output layer too is one."""

    def __init__(self, graph: Any, weights: Moving) -> None:
        self.graph, self.weights = graph, weights
        self.floats = {tensor.name: tensor for tensor in graph.initializer if len(tensor.dims) == 2}
        self.turned = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Transpose"}
        self.made: dict[str, Any] = {}

    def matrix(self, name: str) -> tuple[str, bool] | None:
        """Which float matrix (n_in, n_out) an input is, and whether it is stored as (n_out, n_in)."""
        source = self.turned.get(name, name)
        return (source, name in self.turned) if source in self.floats else None

    def blocks(self, name: str, turned: bool, bits: int) -> tuple[str, str]:
        """The names of a matrix's blocks and scales."""
        names = (f"{name}/int{bits}", f"{name}/int{bits}/scale")
        if names[0] not in self.made:
            rows = self.weights.array(self.floats[name]).astype(np.float32)
            parts: Sequence[npt.NDArray[Any]] = quantized_blocks(rows if turned else np.ascontiguousarray(rows.T), bits)
            for part, array in zip(names, parts, strict=True):
                self.made[part] = self.weights.tensor(part, array)
        return names

    def product(self, node: Any, name: str, turned: bool, bits: int, accuracy: int) -> Any:
        from onnx import helper

        shape = tuple(self.floats[name].dims)
        n_in, n_out = shape[::-1] if turned else shape
        return helper.make_node(
            "MatMulNBits",
            [node.input[0], *self.blocks(name, turned, bits)],
            list(node.output),
            name=node.name,
            domain="com.microsoft",
            K=n_in,
            N=n_out,
            bits=bits,
            block_size=SIZE,
            accuracy_level=accuracy,
        )

    def rows(self, node: Any) -> Iterator[Any]:
        """The embedding's rows of the tokens, in plain operators."""
        from onnx import helper

        name, out = node.input[0], node.output[0]
        q, scale = self.blocks(name, True, 8)
        width = self.floats[name].dims[1]
        constants: dict[str, npt.NDArray[Any]] = {
            "middle": np.array(128, np.float32),
            "last": np.array([-1], np.int64),
            "flat": np.array([0, 0, -1], np.int64),
        }
        last = []
        if width % SIZE:  # without what fills the last block up
            constants |= {"zero": np.array([0], np.int64), "width": np.array([width], np.int64)}
            last = [("Slice", ["filled", "zero", "width", "last"], "")]
        for key, value in constants.items():
            self.made[f"{out}/{key}"] = self.weights.tensor(f"{out}/{key}", value)
        steps: list[tuple[str, list[str], str]] = [
            ("Gather", [q, "input_ids"], "q"),  # (batch, seq, blocks, 32)
            ("Cast", ["q"], "float"),
            ("Sub", ["float", "middle"], "centred"),
            ("Gather", [scale, "input_ids"], "scale"),  # (batch, seq, blocks)
            ("Unsqueeze", ["scale", "last"], "scales"),
            ("Mul", ["centred", "scales"], "blocks"),
            ("Reshape", ["blocks", "flat"], "filled" if last else ""),
            *last,
        ]
        known = {"input_ids", q, scale}
        for op, inputs, result in steps:
            names = [part if part in known else f"{out}/{part}" for part in inputs]
            made = f"{out}/{result}" if result else out
            to: dict[str, Any] = {"to": _FLOAT} if op == "Cast" else {}
            yield helper.make_node(op, names, [made], name=f"{made}/{op}", **to)

    def replace(self, nodes: Sequence[Any]) -> None:
        """Put the nodes into the graph, without matrices and transpositions that nothing uses any more."""
        used = {name for node in nodes for name in node.input}
        nodes = [n for n in nodes if n.op_type != "Transpose" or n.output[0] in used or n.input[0] not in self.floats]
        used = {name for node in nodes for name in node.input}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in used]
        del self.graph.node[:], self.graph.initializer[:]
        self.graph.node.extend(nodes)
        self.graph.initializer.extend([*kept, *self.made.values()])
