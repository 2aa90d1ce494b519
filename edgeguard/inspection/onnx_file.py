"""An ONNX model and its folder."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeguard.formats import onnx_graph
from edgeguard.formats.bounded_json import find_object
from edgeguard.formats.manifest import IN_FOLDER
from edgeguard.formats.model_folder import read_settings
from edgeguard.formats.tokenizer import read_chat_template
from edgeguard.inspection.files import Hashes, together
from edgeguard.inspection.folder import Problems, config_shape, folder_tokenizer
from edgeguard.inspection.provenance import find_provenance
from edgeguard.inspection.types import (
    CONSTANTS,
    Inspection,
    ModelShape,
    Quantization,
    Tensor,
    TypeShare,
    kv_bytes,
    type_shares,
)

# What a score depends on beside the weights.
_BESIDE = (
    *("config.json", "generation_config.json", "genai_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("chat_template.jinja", "chat_template.json"),
)
_ROTARY_TABLES = frozenset({"cos", "sin", "cos_window", "sin_window", "cos_cache", "sin_cache"})
_ACTIVATIONS = {0: "float or as the runtime chooses", 1: "float", 2: "float16", 3: "bfloat16", 4: "int8"}
_OWN_BLOCK = 32  # weights a block, where edgeguard's graphs look up in a packed embedding


def inspect_onnx(path: Path, hashes: Hashes) -> Inspection:
    """What the graph and the files beside it say. Raises ModelError where it is no ONNX file."""
    graph, folder = onnx_graph.read_graph(path), path.parent
    problems = Problems()
    settings = problems.of(lambda: read_settings(folder))
    head, n_ctx = (settings.head, settings.n_ctx) if settings else (0, 0)
    interface = problems.of(lambda: onnx_graph.read_interface(graph, head=head))
    tokenizer = folder_tokenizer(folder, interface.n_vocab if interface else None, problems)
    template = problems.of(lambda: read_chat_template(folder))
    config = problems.of(lambda: find_object(folder / "config.json")) or {}
    shares, n_weights = _shares(graph)
    files = hashes.files(graph.files)
    beside = hashes.files(folder / name for name in _BESIDE if (folder / name).is_file())
    provenance, notices = find_provenance(folder / IN_FOLDER, graph.metadata, (*files, *beside), hashes)
    dynamic = tuple(op for op in graph.operators if op in onnx_graph.DYNAMIC)
    if dynamic:
        notices = (_dynamic_notice(dynamic), *notices)
    if settings and not n_ctx:
        notices = (
            *notices,
            "its folder does not say how long a context it was trained for; scoring needs `context`",
        )
    return Inspection(
        path=path,
        kind="onnx",
        format=f"ONNX opset {graph.opset}",
        files=files,
        beside=beside,
        sha256=together(files),
        architecture=settings.architecture if settings else "",
        name=settings.name if settings else "",
        shape=_shape(interface, config, n_ctx, n_weights),
        quantization=Quantization(onnx_graph.quantization(graph), shares, _activations(graph), dynamic),
        tokenizer=tokenizer,
        chat_template=template,
        tensors=tuple(Tensor(w.name, w.shape, w.type_name, w.n_bytes) for w in graph.weights),
        problems=tuple(problems.texts),
        notices=notices,
        provenance=provenance,
    )


def _dynamic_notice(operators: Sequence[str]) -> str:
    return (
        f"dynamic quantization ({', '.join(op.rpartition(':')[2] for op in operators)}): activations are rounded by "
        "one scale for all that is in a call, so a score depends on what else is in it; "
        "int8 weights without it are what `edgeguard convert --to onnx-int8` makes"
    )


def _shape(interface: onnx_graph.Interface | None, config: Mapping[str, Any], n_ctx: int, n_weights: int) -> ModelShape:
    said = config_shape(config)
    shape = replace(said, n_weights=n_weights, n_ctx_train=n_ctx or said.n_ctx_train)
    if interface is None:
        return replace(shape, memory=None, kv_type=None, kv_bytes_per_token=None)
    n_layer, size = len(interface.past) // 2, 4 if interface.kv_type == "float32" else 2
    return replace(
        shape,
        n_layer=n_layer,
        n_head_kv=interface.n_head_kv,
        head=interface.head,
        n_vocab=interface.n_vocab,
        memory="sliding window" if interface.window else "attention",
        kv_type=interface.kv_type,
        kv_bytes_per_token=kv_bytes(n_layer, interface.n_head_kv, 2 * interface.head, size),
    )


def _shares(graph: onnx_graph.Graph) -> tuple[tuple[TypeShare, ...], int]:
    """By type, a quantized matrix and its scales as one; and the number of weights."""
    by_name = {weight.name: weight for weight in graph.weights if weight.name}
    blocked = {**_looked_up(graph, by_name), **graph.blocked}
    parts = {name for block in blocked.values() for name in block.arrays}
    rows = []
    for first, block in blocked.items():
        stored = [by_name[name] for name in block.arrays if name in by_name]
        if first in by_name:
            type_name = f"int{block.bits} by {block.block_size}"
            rows.append((type_name, _n_weights(block, by_name[first].n_bytes), sum(w.n_bytes for w in stored)))
    for weight in graph.weights:
        if weight.name not in parts:
            constant = _is_constant(weight)
            n = 0 if constant else math.prod(weight.shape)
            rows.append((CONSTANTS if constant else weight.type_name, n, weight.n_bytes))
    return type_shares(rows), sum(n for _, n, _ in rows)


def _n_weights(block: onnx_graph.Blocked, n_bytes: int) -> int:
    """As the operator says, unless its values have no room for so many."""
    room = n_bytes * 8 // max(1, block.bits)
    return block.n_weights if 0 < block.n_weights <= room else room


def _looked_up(graph: onnx_graph.Graph, by_name: Mapping[str, onnx_graph.Weight]) -> dict[str, onnx_graph.Blocked]:
    """Packed embeddings of edgeguard's own graphs, which plain operators unpack."""
    found = {}
    for name, weight in by_name.items():
        scale = by_name.get(f"{name}/scale")
        if scale is None or name in graph.blocked or weight.type_name != "uint8":
            continue
        n = math.prod(scale.shape) * _OWN_BLOCK
        if n and 8 * weight.n_bytes % n == 0:
            arrays = tuple(a for a in (name, f"{name}/scale", f"{name}/zero") if a in by_name)
            found[name] = onnx_graph.Blocked(arrays, n, 8 * weight.n_bytes // n, _OWN_BLOCK, None)
    return found


def _is_constant(weight: onnx_graph.Weight) -> bool:
    """Shapes, indices, scalars and tables of angles; not the bytes of a quantized matrix."""
    if math.prod(weight.shape) <= 1 or weight.name in _ROTARY_TABLES:
        return True
    narrow = weight.type_name in ("int8", "uint8", "int4", "uint4", "int2", "uint2") and len(weight.shape) > 1
    return not narrow and not weight.type_name.startswith(("float", "bfloat"))


def _activations(graph: onnx_graph.Graph) -> dict[str, int]:
    levels = [b.accuracy_level for b in graph.blocked.values() if b.accuracy_level is not None]
    return dict(Counter(_ACTIVATIONS.get(level, f"accuracy_level {level}") for level in levels).most_common())
