"""Reading an ONNX graph without its weights, and without trusting it.

The graph is held against what ONNX Runtime will do with it: where its weights lie, which operators it
needs, what it takes and gives.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from edgeguard.errors import ModelError, shown

MAX_GRAPH = 1 << 31  # bytes: protobuf's own limit
MAX_DIMS = 16  # dimensions of an array
MAX_VOCAB = 1 << 22  # tokens; the largest known vocabulary has a quarter of a million
MAX_HEADS, MAX_HEAD = 1 << 12, 1 << 16  # key-value heads, numbers of a key
MAX_LAYERS = 1 << 10
DOMAINS = frozenset({"", "ai.onnx", "com.microsoft"})  # operators that come with ONNX Runtime

DYNAMIC = frozenset(
    {
        *("DynamicQuantizeLinear", "MatMulInteger"),
        *("com.microsoft:DynamicQuantizeMatMul", "com.microsoft:MatMulIntegerToFloat"),
    }
)

WINDOW = "edgeguard.window"  # key of a graph's metadata: the length of its sliding window, in tokens

_PAST = re.compile(r"past_key_values\.(\d+)\.(key|value)")
_EXPORT = "export it with `edgeguard convert`, or with optimum's task text-generation-with-past"


@dataclass(frozen=True)
class Port:
    """An input or output. A dimension is a number, or a name where it is free."""

    name: str
    type_name: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Weight:
    """An array of the graph: its type as stored, and its bytes."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    n_bytes: int


@dataclass(frozen=True)
class Blocked:
    """A matrix in quantized blocks. `arrays` names what it is stored as: the packed values first.

    n_weights       what its operator says, 0 where it does not say
    accuracy_level  MatMulNBits' own: 0 unset, 1 float32, 4 int8, …; None for a matrix that is only looked up in
    """

    arrays: tuple[str, ...]
    n_weights: int
    bits: int
    block_size: int
    accuracy_level: int | None


@dataclass(frozen=True)
class Graph:
    """What an ONNX file says of itself. `files` are the graph's own and those that hold its weights.

    operators  how often each occurs, "domain:name" outside the standard
    bits       of the quantized matrices, how many have each width
    blocked    the quantized matrices, by the name of their packed values
    """

    path: Path
    metadata: Mapping[str, str]
    inputs: Mapping[str, Port]
    outputs: Mapping[str, Port]
    weights: tuple[Weight, ...]
    operators: Mapping[str, int]
    bits: Mapping[int, int]
    opset: int
    files: tuple[Path, ...]
    n_bytes: int
    blocked: Mapping[str, Blocked]


@dataclass(frozen=True)
class Interface:
    """How a decoder is asked.

    mask         "tree": bool, every token says what it sees; "rows": one or zero for each token of a row
    past         names of the inputs for keys and values, and of the outputs that carry them on
    n_head_kv    heads of a key; head: its length; kv_type: "float32" or "float16"
    chosen       takes `positions`, and computes the output layer there only
    last_only    gives the last position's logits only
    one_row      several rows with a past are more than the graph can do
    window       tokens that `attn_mask_window` lets a token see, itself included; 0: the graph has no such input
    """

    mask: Literal["tree", "rows"]
    past: tuple[tuple[str, str], ...]
    n_head_kv: int
    head: int
    kv_type: Literal["float32", "float16"]
    n_vocab: int
    chosen: bool
    last_only: bool
    one_row: bool
    position_ids: bool
    window: int


def read_graph(path: Path) -> Graph:
    """The graph, its weights left on disk. Raises ModelError."""
    onnx = _onnx()
    try:
        size = path.stat().st_size
        if size > MAX_GRAPH:
            raise ModelError(f"{path} has {size} bytes, an ONNX graph at most {MAX_GRAPH}; keep its weights beside it")
        model = onnx.load_model(path, load_external_data=False)
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist; give the path of a model file") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from None
    except ModelError:
        raise
    except Exception:  # protobuf's errors are those of its parser, and name nothing
        raise ModelError(f"{path} is not an ONNX file, or is damaged; download or convert it again") from None
    if not model.graph.node:
        raise ModelError(f"{path} is not an ONNX file, or has no graph; download or convert it again")
    graphs = list(_graphs(model.graph))
    arrays = [tensor for graph in graphs for tensor in _arrays(graph)]
    _refuse_bytes(path, model, graphs, arrays)
    if any(graph.sparse_initializer for graph in graphs) or any(_has_sparse(node) for g in graphs for node in g.node):
        raise ModelError(f"{path} has sparse weights, which no guard model has: they may unpack to any size; {_EXPORT}")
    places = {_place(path, tensor) for tensor in arrays if tensor.external_data}
    return Graph(
        path=path,
        metadata={entry.key: entry.value for entry in model.metadata_props},
        inputs=_ports(onnx, model.graph.input),
        outputs=_ports(onnx, model.graph.output),
        weights=tuple(_weight(onnx, path, tensor) for tensor in arrays),
        operators=_operators(path, graphs),
        bits=Counter(_bits(node) for graph in graphs for node in graph.node if node.op_type == "MatMulNBits"),
        opset=max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0),
        files=(path, *sorted(places)),
        n_bytes=size + sum(place.stat().st_size for place in places),
        blocked=_blocked(graphs),
    )


def read_interface(graph: Graph, *, head: int = 0) -> Interface:
    """How the graph is asked. Raises ModelError where it is no decoder with keys and values outside.

    head  length of a key, for graphs that leave it open; 0 where it is not known
    """
    path = graph.path
    past = {name: port for name, port in graph.inputs.items() if _PAST.fullmatch(name)}
    if not past:
        raise ModelError(f"{path} has no past_key_values inputs; {_EXPORT}")
    known = {"input_ids", "position_ids", "attention_mask", "attn_mask", "attn_mask_window", "positions"}
    if unknown := sorted(graph.inputs.keys() - past.keys() - known):
        raise ModelError(f"{path} wants an input {unknown[0]!r}, which edgeguard does not know; {_EXPORT}")
    carried = {name: "present" + name.removeprefix("past_key_values") for name in past}
    tree = "attn_mask" in graph.inputs
    needed = {"input_ids", *(("attn_mask", "position_ids", "positions") if tree else ("attention_mask",))}
    missing = sorted((needed - graph.inputs.keys()) | ({"logits", *carried.values()} - graph.outputs.keys()))
    if missing:
        raise ModelError(f"{path} has no {missing[0]!r} among its inputs and outputs; {_EXPORT}")
    n_head_kv, head, kv_type = _keys_and_values(path, list(past.values()), head)
    logits = graph.outputs["logits"].shape
    chosen = "positions" in graph.inputs
    if len(logits) != (2 if chosen else 3) or not isinstance(logits[-1], int):
        raise ModelError(f"{path} has logits of shape {shown(logits)}, which edgeguard does not know; {_EXPORT}")
    most = min(MAX_VOCAB, graph.n_bytes)  # each has a row of weights, of a byte at the least
    if not 1 <= logits[-1] <= most:
        raise ModelError(
            f"{path}: its logits are said to have {logits[-1]} elements, a file of {graph.n_bytes} bytes can give 1 to "
            f"{most}; convert it again"
        )
    return Interface(
        mask="tree" if tree else "rows",
        past=tuple(sorted(carried.items(), key=lambda pair: _order(pair[0]))),
        n_head_kv=n_head_kv,
        head=head,
        kv_type=kv_type,
        n_vocab=logits[-1],
        chosen=chosen,
        last_only=not chosen and logits[1] == 1,
        # Their kernels take one row with a past; and a scale over all rows would mix their scores.
        one_row=is_dynamic(graph) or "com.microsoft:GroupQueryAttention" in graph.operators,
        position_ids="position_ids" in graph.inputs,
        window=_window(graph),
    )


def _window(graph: Graph) -> int:
    """Tokens of the sliding window, 0 for none. Raises ModelError where input and metadata contradict each other."""
    said = graph.metadata.get(WINDOW)
    masked = "attn_mask_window" in graph.inputs
    if said is None and not masked:
        return 0
    if said is None or not masked or "attn_mask" not in graph.inputs or not re.fullmatch(r"[1-9][0-9]{0,9}", said):
        raise ModelError(
            f"{graph.path}: its metadata say {WINDOW} is {said!r}, and it takes {'a' if masked else 'no'} mask of a "
            "sliding window; convert the model again"
        )
    return int(said)


def _keys_and_values(path: Path, ports: list[Port], head: int) -> tuple[int, int, Literal["float32", "float16"]]:
    """Heads, the length of a key and the type that all past inputs share."""
    shapes = {port.shape[1::2] for port in ports if len(port.shape) == 4}
    types = {port.type_name for port in ports}
    n_head_kv, length = shapes.pop() if len(shapes) == 1 else ("?", "?")
    length = length if isinstance(length, int) else head
    kv_type = types.pop() if len(types) == 1 else "several"
    known = isinstance(n_head_kv, int) and 1 <= n_head_kv <= MAX_HEADS and 1 <= length <= MAX_HEAD
    if len(ports) > 2 * MAX_LAYERS or shapes or not known or kv_type not in ("float32", "float16"):
        raise ModelError(f"{path} has keys and values of shapes or types that differ or are not known; {_EXPORT}")
    assert isinstance(n_head_kv, int)
    return n_head_kv, length, "float16" if kv_type == "float16" else "float32"


def is_dynamic(graph: Graph) -> bool:
    """Whether activations are rounded by one scale for all that a call holds: neighbours change scores then."""
    return not DYNAMIC.isdisjoint(graph.operators)


def quantization(graph: Graph) -> str:
    """The usual name of what most matrices are: "int4", "int8", "dynamic int8", "fp16", "fp32"."""
    if is_dynamic(graph):
        return "dynamic int8"
    if graph.bits:
        return f"int{max(graph.bits, key=lambda bits: graph.bits[bits])}"
    n_bytes: Counter[str] = Counter()
    for weight in graph.weights:
        n_bytes[weight.type_name] += weight.n_bytes
    most = n_bytes.most_common(1)[0][0] if n_bytes else "unknown"
    return {"float32": "fp32", "float16": "fp16"}.get(most, most)


# Reading


def _onnx() -> Any:
    try:
        import onnx
    except ModuleNotFoundError as error:
        if error.name != "onnx":
            raise
        raise ModelError(
            "ONNX models need the onnx package, which is not installed; pip install 'edgeguard[onnx]'"
        ) from (None)
    return onnx


def _graphs(graph: Any) -> Iterator[Any]:
    """The graph and those inside its nodes: branches of an If, bodies of a Loop."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from _graphs(inner)


def _refuse_bytes(path: Path, model: Any, graphs: list[Any], arrays: list[Any]) -> None:
    """protobuf gives a string that is not UTF-8 as bytes, which nothing else here expects."""
    nodes = [node for graph in graphs for node in graph.node]
    values = [value for graph in graphs for value in (*graph.input, *graph.output)]
    entries = [*model.metadata_props, *(entry for tensor in arrays for entry in tensor.external_data)]
    texts = [text for entry in entries for text in (entry.key, entry.value)]
    texts += [named.name for named in (*values, *arrays, *(a for node in nodes for a in node.attribute))]
    texts += [text for node in nodes for text in (node.op_type, node.domain, *node.input)]
    texts += [dim.dim_param for value in values for dim in value.type.tensor_type.shape.dim]
    if wrong := next((text for text in texts if not isinstance(text, str)), None):
        raise ModelError(f"{path}: a name in it is not UTF-8, {wrong[:60]!r}; download or convert it again")


def _arrays(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _has_sparse(node: Any) -> bool:
    return any(a.HasField("sparse_tensor") or a.sparse_tensors for a in node.attribute)


def _place(path: Path, tensor: Any) -> Path:
    """The file that holds a tensor's values: in the graph's own folder, links followed, and long enough."""
    said = {entry.key: entry.value for entry in tensor.external_data}
    location = said.get("location", "")
    parts = PurePosixPath(location.replace("\\", "/")).parts
    if not parts or location.startswith(("/", "\\")) or ".." in parts or ":" in location or "\0" in location:
        raise ModelError(
            f"{path}: its weights are said to lie in {location!r}, outside the model's folder; do not use it"
        )
    place: Path = path.parent / location
    try:
        # ONNX Runtime's rule. A hub's cache links graph and weights into one folder: there the graph's own is meant.
        own = (path.parent.resolve(), path.resolve().parent)
        if not any(place.resolve().is_relative_to(folder) for folder in own):
            raise ModelError(
                f"{path}: its weights {shown(location)} are linked out of the model's folder; copy the file there"
            )
        begin, length = int(said.get("offset", 0)), int(said.get("length", 0))
        size = place.stat().st_size if place.is_file() else -1
    except (OSError, ValueError, RuntimeError):  # RuntimeError: links in a circle
        raise ModelError(f"{path}: where {tensor.name!r} lies cannot be read; convert the model again") from None
    if size < 0:
        raise ModelError(f"{path} keeps its weights in {location}, which is not beside it; download both")
    if begin < 0 or length < 0 or begin + length > size:
        raise ModelError(f"{place} is truncated: it has {size} bytes, {begin + length} are needed; download it again")
    return place


def _ports(onnx: Any, values: Any) -> dict[str, Port]:
    found = {}
    for value in values:
        tensor = value.type.tensor_type
        shape = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim)
        found[value.name] = Port(value.name, _type_name(onnx, tensor.elem_type), shape)
    return found


def _weight(onnx: Any, path: Path, tensor: Any) -> Weight:
    shape = tuple(tensor.dims[: MAX_DIMS + 1])
    if len(shape) > MAX_DIMS or any(d < 0 for d in shape) or math.prod(shape) >= 1 << 63:
        raise ModelError(f"{path}: {tensor.name!r} has the impossible shape {shape}; convert it again")
    type_name = _type_name(onnx, tensor.data_type)
    number = re.match(r"(?:u?int|b?float|complex)(\d+)", type_name)  # of "float8e4m3fn" the first
    if number is None and type_name not in ("bool", "string"):
        raise ModelError(f"{path}: {tensor.name!r} has values of {type_name}, which are not known; {_EXPORT}")
    bits = 8 if number is None else int(number[1])
    n_bytes = -(-math.prod(shape) * bits // 8)
    _check_stored(path, tensor, math.prod(shape), n_bytes)
    return Weight(tensor.name, shape, type_name, n_bytes)


def _check_stored(path: Path, tensor: Any, n: int, n_bytes: int) -> None:
    """A shape is believed where there is a value for each of its places: memory is taken by the shape."""
    if tensor.external_data:
        said = {entry.key: entry.value for entry in tensor.external_data}
        begin, length = int(said.get("offset", 0)), int(said.get("length", 0))
        stored = length or (path.parent / said["location"]).stat().st_size - begin
        right = stored == n_bytes if length else stored >= n_bytes
    elif tensor.HasField("raw_data"):
        stored = len(tensor.raw_data)
        right = stored == n_bytes
    else:
        fields = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
        stored = max(len(getattr(tensor, field)) for field in fields)
        right = n <= 2 * stored  # two values of 4 bits lie in one
    if not right:
        shape = tuple(tensor.dims)
        raise ModelError(
            f"{path}: {tensor.name!r} of shape {shape} needs {n_bytes} bytes and {stored} are stored; convert it again"
        )


def _type_name(onnx: Any, number: int) -> str:
    names = {"FLOAT": "float32", "DOUBLE": "float64"}
    try:
        name = str(onnx.TensorProto.DataType.Name(number))
    except ValueError:
        return f"type {number}"
    return names.get(name, name.lower())


def _operators(path: Path, graphs: list[Any]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for graph in graphs:
        for node in graph.node:
            if node.domain not in DOMAINS:
                raise ModelError(
                    f"{path} needs the operator {node.domain}:{node.op_type}, which does not come with ONNX Runtime; "
                    f"{_EXPORT}"
                )
            found[f"{node.domain}:{node.op_type}" if node.domain == "com.microsoft" else node.op_type] += 1
    return dict(sorted(found.items()))


def _bits(node: Any) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "bits"), 4)


def _blocked(graphs: list[Any]) -> dict[str, Blocked]:
    found: dict[str, Blocked] = {}
    for node in (node for graph in graphs for node in graph.node):
        places = {"MatMulNBits": (1, 2, 3), "GatherBlockQuantized": (0, 2, 3)}.get(node.op_type, ())
        arrays = tuple(node.input[i] for i in places if i < len(node.input) and node.input[i])
        if not arrays or (node.op_type != "MatMulNBits" and arrays[0] in found):
            continue
        said = {a.name: int(a.i) for a in node.attribute}
        multiplied = node.op_type == "MatMulNBits"
        found[arrays[0]] = Blocked(
            arrays=arrays,
            n_weights=said.get("N", 0) * said.get("K", 0),
            bits=_bits(node),
            block_size=said.get("block_size", 128),
            accuracy_level=said.get("accuracy_level", 0) if multiplied else None,
        )
    return found


def _order(name: str) -> tuple[int, str]:
    match = _PAST.fullmatch(name)
    assert match is not None
    return int(match[1]), match[2]
