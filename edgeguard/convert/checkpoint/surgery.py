"""Surgery on a traced graph: its output layer at chosen places only, and nothing that tells where it was made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeguard.errors import ModelError

_ELEMENTWISE = frozenset({"Add", "Cast", "Div", "Identity", "Mul", "Sub", "Tanh"})
_CONSTANTS = frozenset({"Cast", "Identity", "Transpose", "Unsqueeze", "Squeeze"})  # of a constant, constant
_FLOAT, _FLOAT16 = 1, 10  # TensorProto.DataType
_FLOAT = 1  # TensorProto.DataType

UNKNOWN_GRAPH = "optimum wrote a graph that edgeguard does not know; take a GGUF file of the model"


def cut(model: Any) -> str:
    """Compute the output layer at `positions` only; returns the name of its MatMul. Changes `model` in place.

    Raises ModelError where what leads to `logits` is not a matrix and elementwise operators after it.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    logits = next((out for out in graph.output if out.name == "logits"), None)
    if logits is None:
        raise ModelError(f"the graph has no output 'logits' but {[out.name for out in graph.output]}; {UNKNOWN_GRAPH}")
    head, rows = _find_head(graph)
    n_vocab = logits.type.tensor_type.shape.dim[-1].dim_value
    width = _shape_of(graph, head.input[1])[-2]
    graph.initializer.append(numpy_helper.from_array(np.array([-1, width], np.int64), "positions/rows"))
    chosen = [
        helper.make_node("Reshape", [rows, "positions/rows"], ["positions/flat"], name="positions/Reshape"),
        helper.make_node(
            "Gather", ["positions/flat", "positions"], ["positions/chosen"], name="positions/Gather", axis=0
        ),
    ]
    head.input[0] = "positions/chosen"
    at = list(graph.node).index(head)
    nodes = [*graph.node[:at], *chosen, *graph.node[at:]]
    if logits.type.tensor_type.elem_type != _FLOAT:
        last = next(node for node in nodes if "logits" in node.output)
        last.output[list(last.output).index("logits")] = "logits/half"
        nodes.append(helper.make_node("Cast", ["logits/half"], ["logits"], name="logits/Cast", to=_FLOAT))
    name = head.name
    del graph.node[:]
    graph.node.extend(nodes)
    graph.input.insert(3, helper.make_tensor_value_info("positions", 7, ["n"]))
    logits.CopyFrom(helper.make_tensor_value_info("logits", _FLOAT, ["n", n_vocab]))
    return str(name)


def _find_head(graph: Any) -> tuple[Any, str]:
    """The MatMul behind `logits`, and the name of the rows that go into it."""
    made_by = {name: node for node in graph.node for name in node.output}
    name = "logits"
    while (node := made_by.get(name)) is not None and node.op_type in _ELEMENTWISE:
        computed = [part for part in node.input if not _is_constant(graph, made_by, part)]
        if len(computed) != 1 or any(len(_shape_of(graph, part)) > 1 for part in node.input if part != computed[0]):
            raise ModelError(f"the logits pass through {node.op_type} of {list(node.input)}; {UNKNOWN_GRAPH}")
        name = computed[0]
    if node is None or node.op_type != "MatMul" or not _is_constant(graph, made_by, node.input[1]):
        raise ModelError(
            f"the logits come from {node.op_type if node else name}, no matrix of weights; {UNKNOWN_GRAPH}"
        )
    users = [n for n in graph.node if name in n.input]
    if name != "logits" and len(users) != 1:
        raise ModelError(f"the output layer's rows go to {len(users)} places; {UNKNOWN_GRAPH}")
    return node, str(node.input[0])


def _is_constant(graph: Any, made_by: Mapping[str, Any], name: str) -> bool:
    node = made_by.get(name)
    if node is None:
        return any(tensor.name == name for tensor in graph.initializer)
    return node.op_type == "Constant" or (node.op_type in _CONSTANTS and _is_constant(graph, made_by, node.input[0]))


def _shape_of(graph: Any, name: str) -> tuple[int, ...]:
    """Of a constant: an initializer, a Constant, or one of them transposed."""
    for tensor in graph.initializer:
        if tensor.name == name:
            return tuple(tensor.dims)
    node = next(node for node in graph.node if name in node.output)
    if node.op_type == "Constant":
        return tuple(dim for a in node.attribute if a.name == "value" for dim in a.t.dims)
    shape = _shape_of(graph, node.input[0])
    return shape[::-1] if node.op_type == "Transpose" else shape


def plain(model: Any, folder: Path) -> None:
    """Remove what says where and how the graph was made, and take constants' values into it."""
    from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

    model.doc_string = model.graph.doc_string = ""
    del model.metadata_props[:]
    del model.graph.value_info[:]  # shapes of before the cut
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
        for attribute in node.attribute:
            if attribute.HasField("t") and uses_external_data(attribute.t):
                load_external_data_for_tensor(attribute.t, str(folder))
                attribute.t.data_location = 0
                del attribute.t.external_data[:]
