"""Hugging Face checkpoint → ONNX through optimum: its output layer at chosen places only, and checked against torch.

Inputs   input_ids, position_ids        int64 (batch, seq)
         attention_mask                 int64 (batch, past + seq): one for a token, zero for padding
         positions                      int64 (n): flat places b · seq + t
         past_key_values.{i}.key|value  (batch, n_head_kv, past, head)
Outputs  logits                         float32 (n, n_vocab)
         present.{i}.key|value          (batch, n_head_kv, past + seq, head)

Keys and values are float32, at "fp16" float16. No graph is handed out whose logits differ from the model's.

optimum, transformers and torch run in a process of their own: they talk on stdout, take gigabytes, and a
checkpoint is a stranger's file.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import numpy.typing as npt

from edgeguard import process
from edgeguard.convert.store import Store
from edgeguard.errors import ModelError, OutputError, printable

Precision = Literal["fp32", "fp16", "int8", "int4"]
Activations = Literal["int8", "float"]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

# optimum's graphs of these have position_ids and full attention; a test exports one of each.
MODEL_TYPES = frozenset(
    {"arcee", "cohere", "glm", "granite", "helium", "llama", "mistral"}
    | {"olmo", "olmo2", "phi3", "qwen2", "qwen3", "smollm3", "stablelm"}
)
MAX_DIFFERENCE = {
    "fp32": 1e-2,
    "fp16": 0.5,
}  # nats between a right graph's logits and torch's, and far below a wrong one's

_MAX_JSON = 16 << 20  # bytes
_ACCURACY = {"float": 1, "int8": 4}  # MatMulNBits' accuracy_level
_BLOCK = 32
_SLOW_TOKENIZERS = ("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
_COPIED = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json", "config.json", "generation_config.json"),
)


def export(
    folder: Path,
    out: Path,
    *,
    to: Precision,
    lora: Path | None = None,
    lora_scale: float = 1.0,
    activations: Activations = "int8",
) -> None:
    """Write the checkpoint in `folder` into the empty folder `out`: model.onnx, model.onnx.data, tokenizer, configs.

    to           "fp32", "fp16", or "int8" and "int4": symmetric blocks of 32 weights in MatMulNBits, the
                 embedding and the output layer of 8 bits in both
    lora         a PEFT folder, merged before the export; lora_scale multiplies what it changes
    activations  what quantized matrices are multiplied with: rounded to 8 bits, or as they are

    The same files and packages give the same bytes. Raises ModelError for a checkpoint that cannot be exported or
    whose graph computes something else, OutputError where `out` cannot be written; its content is of no use then.
    """
    if to not in ("fp32", "fp16", "int8", "int4") or activations not in _ACCURACY:
        raise ValueError(f"to is {to!r} and activations {activations!r}; expected fp32, fp16, int8, int4; int8, float")
    check_checkpoint(folder)
    if lora is not None:
        _check_adapter(lora)
    _check_packages(lora is not None)
    try:
        with tempfile.TemporaryDirectory(dir=out, prefix=".export-") as place:
            job = {
                "folder": str(folder.absolute()),
                "out": str(out.absolute()),
                "place": str(Path(place).absolute()),
                "to": to,
                "lora": None if lora is None else str(lora.absolute()),
                "lora_scale": lora_scale,
                "activations": activations,
            }
            _run(job, f"{folder} cannot be exported")
        _copy_settings(folder, out)
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror or error}") from error


# What can be known before torch starts


def check_checkpoint(folder: Path) -> None:
    """Whether the folder is one that `export` takes, as far as its JSON files say. Raises ModelError."""
    config = _read_json(folder / "config.json")
    if config is None:
        if (folder / "adapter_config.json").is_file():
            raise ModelError(
                f"{folder} is a LoRA adapter; give its base model's checkpoint, and the adapter with --lora"
            )
        raise ModelError(f"{folder} has no config.json; give the folder of a Hugging Face checkpoint")
    for said, name in (
        (config, "config.json"),
        (_read_json(folder / "tokenizer_config.json") or {}, "tokenizer_config.json"),
    ):
        if said.get("auto_map"):
            raise ModelError(
                f"{folder / name} asks for Python code of its own (auto_map), which edgeguard does not run; "
                "take a checkpoint of a standard architecture"
            )
    if config.get("quantization_config"):
        raise ModelError(f"{folder} is quantized already (quantization_config); take the checkpoint it was made from")
    _check_architecture(folder, config)
    _check_weights(folder)
    if not any((folder / name).is_file() for name in ("tokenizer.json", *_SLOW_TOKENIZERS)):
        raise ModelError(f"{folder} has no tokenizer.json; download the checkpoint's tokenizer too")


def _check_architecture(folder: Path, config: Mapping[str, Any]) -> None:
    kind, classes = config.get("model_type"), config.get("architectures")
    causal = isinstance(classes, list) and any(str(name).endswith("ForCausalLM") for name in classes)
    if not isinstance(kind, str) or kind not in MODEL_TYPES or not causal:
        raise ModelError(
            f"{folder} is a {printable(str(kind))} model ({printable(str(classes))}); a ...ForCausalLM of one of "
            f"{', '.join(sorted(MODEL_TYPES))} is needed"
        )
    if window := _window(config):
        raise ModelError(f"{folder} attends within {window}; only models of full attention can be exported")
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    rope_type = rope.get("rope_type", rope.get("type")) if isinstance(rope, dict) else rope
    if rope_type in ("dynamic", "longrope", "su"):
        raise ModelError(
            f"{folder} scales its positions by a prompt's length (rope_scaling {rope_type!r}), which a graph cannot; "
            "take a model whose scaling is fixed"
        )


def _window(config: Mapping[str, Any]) -> str:
    """What limits attention to near tokens; "" where nothing does."""
    layers, window, n_ctx = (config.get(k) for k in ("layer_types", "sliding_window", "max_position_embeddings"))
    if isinstance(layers, list):
        return next((str(kind) for kind in layers if kind != "full_attention"), "")
    unused = window is None or config.get("use_sliding_window") is False
    if unused or (isinstance(window, int) and isinstance(n_ctx, int) and window >= n_ctx):
        return ""
    return f"a window of {window} tokens"


def _check_weights(folder: Path) -> None:
    if (folder / "model.safetensors").is_file():
        return
    index = _read_json(folder / "model.safetensors.index.json")
    if index is not None:
        shards = index.get("weight_map")
        names = {str(name) for name in shards.values()} if isinstance(shards, dict) else set()
        missing = sorted(name for name in names if Path(name).name != name or not (folder / name).is_file())
        if missing or not names:
            raise ModelError(
                f"{folder} lacks {printable(missing[0]) if missing else 'weights'}; download all its files"
            )
        return
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
        raise ModelError(
            f"{folder} has its weights as pickles only (.bin), which can run code when they are read; "
            "take or make a model.safetensors"
        )
    raise ModelError(f"{folder} has no model.safetensors; download the checkpoint's weights too")


def _check_adapter(lora: Path) -> None:
    config = _read_json(lora / "adapter_config.json")
    if config is None:
        raise ModelError(f"{lora} has no adapter_config.json; give the folder of a PEFT LoRA adapter")
    if config.get("peft_type") != "LORA":
        raise ModelError(f"{lora} is a {printable(str(config.get('peft_type')))} adapter; a LORA adapter is needed")
    if not (lora / "adapter_model.safetensors").is_file():
        raise ModelError(
            f"{lora} has no adapter_model.safetensors; pickles (.bin) are not read, save it as safetensors"
        )


def _check_packages(with_peft: bool) -> None:
    names = ["onnx", "onnxruntime", "torch", "transformers", *(["peft"] if with_peft else [])]
    missing = [name for name in names if find_spec(name) is None]
    try:
        metadata.version("optimum-onnx")
    except metadata.PackageNotFoundError:
        missing.insert(0, "optimum-onnx")
    if missing:
        raise ModelError(
            "exporting a checkpoint needs optimum-onnx and torch, which are not installed "
            f"(missing: {', '.join(missing)}); pip install 'edgeguard[optimum]'"
        )


def _read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object; None where there is no such file. Raises ModelError."""
    try:
        if path.stat().st_size > _MAX_JSON:
            raise ModelError(f"{path} is larger than {_MAX_JSON >> 20} MiB; download the checkpoint again")
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise ModelError(f"{path} is not JSON; download the checkpoint again") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} is no JSON object; download the checkpoint again")
    return value


def _copy_settings(folder: Path, out: Path) -> None:
    """The files beside the weights, as they are but for paths of the machine they were made on."""
    for name in _COPIED:
        if not (folder / name).is_file():
            continue
        said = _read_json(folder / name) if name.endswith("config.json") else None
        local = [key for key in ("_name_or_path", "name_or_path") if said and _is_local(str(said.get(key, "")))]
        if said and local:
            kept = {key: _last_part(str(value)) if key in local else value for key, value in said.items()}
            (out / name).write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        else:
            shutil.copyfile(folder / name, out / name)


def _is_local(path: str) -> bool:
    return path.startswith(("/", "~", ".")) or "\\" in path or path[1:2] == ":" or path.count("/") > 1


def _last_part(path: str) -> str:
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2]


# The process that torch runs in

_START = process.start("edgeguard.convert.checkpoint")
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONHASHSEED": "0",  # sets in the same order: the same bytes
}
_REFUSED = 3  # exit status: the last line of stderr is a message for the user, in JSON


def _run(job: Mapping[str, Any], failed: str) -> None:
    """Do `job` in a process of its own, which ends when this one does. Raises ModelError."""
    code, last = process.run(_START, job, _ENVIRONMENT)
    if code == _REFUSED:
        raise ModelError(printable(str(json.loads(last[-1]))))
    if code != 0:
        said = printable("; ".join(last))[-1000:] or "it gave no reason"
        if "No space left" in said:
            raise OutputError(f"{job['out']} cannot be written: the disk is full ({said})")
        how = f"ended by {signal.Signals(-code).name}; is there enough memory?" if code < 0 else "optimum failed"
        raise ModelError(f"{failed}: {how}: {said}; take another checkpoint, or a GGUF file of the model")


def _child() -> NoReturn:
    process.serve(_serve)


def _serve(job: Mapping[str, Any]) -> int:
    try:
        _export(_job(job))
    except ModelError as error:
        sys.stderr.write(f"\n{json.dumps(str(error))}\n")
        return _REFUSED
    return 0


@dataclass(frozen=True)
class Job:
    """What `export` was asked. `place` is an empty folder for what is thrown away."""

    folder: Path
    out: Path
    place: Path
    to: Precision
    lora: Path | None
    lora_scale: float
    activations: Activations


def _job(said: Mapping[str, Any]) -> Job:
    paths = {key: Path(said[key]) for key in ("folder", "out", "place", "lora") if said[key] is not None}
    return Job(**{**said, **paths})


def _export(job: Job) -> None:
    import onnx

    model = _load(job.folder, job.lora, job.lora_scale)
    check = _Check(model.config.vocab_size)
    expected = check.torch_logits(model)
    floats: Literal["fp32", "fp16"] = "fp16" if job.to == "fp16" else "fp32"
    traced = _trace(model, job.place / "traced", half=floats == "fp16")
    del model  # its memory is needed for what follows
    graph = onnx.load_model(traced, load_external_data=False)
    head = cut(graph)
    _plain(graph, traced.parent)
    whole = traced.with_name("cut.onnx")  # beside the traced weights, which it shares
    whole.write_bytes(graph.SerializeToString(deterministic=True))
    check.refuse_other(check.graph_logits(whole), expected, MAX_DIFFERENCE[floats])
    with Moving(job.out / "model.onnx.data", traced.parent) as weights:
        if job.to in ("int8", "int4"):
            quantize(graph, weights, head=head, bits=8 if job.to == "int8" else 4, activations=job.activations)
        weights.move(graph)
    (job.out / "model.onnx").write_bytes(graph.SerializeToString(deterministic=True))
    check.refuse_other(check.graph_logits(job.out / "model.onnx"), expected, None)
    _write_tokenizer(job.folder, job.out)


def _load(folder: Path, lora: Path | None, lora_scale: float) -> Any:
    """The model in float32, the adapter merged."""
    import torch
    import transformers

    auto: Any = transformers.AutoModelForCausalLM
    model, found = auto.from_pretrained(
        folder,
        dtype=torch.float32,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    if found["missing_keys"]:  # transformers would leave them random
        raise ModelError(f"{folder} has no weight {min(found['missing_keys'])}; download all its files")
    if lora is not None:
        model = _merge(model, lora, lora_scale)
    return model.eval()


def _merge(model: Any, lora: Path, scale: float) -> Any:
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    known = set(model.state_dict())
    try:
        adapted = PeftModel.from_pretrained(model, lora, local_files_only=True, use_safetensors=True)
    except (RuntimeError, ValueError, KeyError) as error:
        raise ModelError(f"{lora} does not fit the model: {str(error)[:500]}; give the adapter made for it") from error
    for module in adapted.modules():
        if isinstance(module, LoraLayer):
            module.scale_layer(scale)
    merged = adapted.merge_and_unload(safe_merge=True)
    if set(merged.state_dict()) != known:
        raise ModelError(f"{lora} adds weights that the model does not have; give a plain LoRA adapter")
    return merged


def _trace(model: Any, place: Path, *, half: bool) -> Path:
    """optimum's graph of the model: the path of model.onnx."""
    import torch
    from optimum.exporters.onnx import onnx_export_from_model

    if half:
        with torch.no_grad():
            for weight in model.parameters():  # and not model.half(): the angles of positions stay float32
                weight.data = weight.data.half()
        model.config.dtype = torch.float16
        model.set_attn_implementation("eager")  # the fused one is traced in float32, with the layer after it
    onnx_export_from_model(
        model=model, output=place, task="text-generation-with-past", do_validation=False, device="cpu"
    )
    return place / "model.onnx"


def _write_tokenizer(folder: Path, out: Path) -> None:
    """tokenizer.json of a checkpoint that has a slow tokenizer only."""
    if (folder / "tokenizer.json").is_file():
        return
    import transformers

    auto: Any = transformers.AutoTokenizer
    try:
        auto.from_pretrained(folder, use_fast=True, local_files_only=True).save_pretrained(out)
    except Exception as error:  # whatever the many converters raise
        reason = f"{type(error).__name__}: {str(error)[:300]}"
        raise ModelError(
            f"{folder} has no tokenizer.json, and transformers cannot make it ({reason}); get one"
        ) from error
    if not (out / "tokenizer.json").is_file():
        raise ModelError(f"{folder} has no tokenizer.json, and transformers makes none of its tokenizer; get one")


# The graph

_ELEMENTWISE = frozenset({"Add", "Cast", "Div", "Identity", "Mul", "Sub", "Tanh"})
_CONSTANTS = frozenset({"Cast", "Identity", "Transpose", "Unsqueeze", "Squeeze"})  # of a constant, constant
_FLOAT, _FLOAT16 = 1, 10  # TensorProto.DataType


def cut(model: Any) -> str:
    """Compute the output layer at `positions` only; returns the name of its MatMul. Changes `model` in place.

    Raises ModelError where what leads to `logits` is not a matrix and elementwise operators after it.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    logits = next((out for out in graph.output if out.name == "logits"), None)
    if logits is None:
        raise ModelError(f"the graph has no output 'logits' but {[out.name for out in graph.output]}; {_REPORT}")
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


_REPORT = "optimum wrote a graph that edgeguard does not know; take a GGUF file of the model"


def _find_head(graph: Any) -> tuple[Any, str]:
    """The MatMul behind `logits`, and the name of the rows that go into it."""
    made_by = {name: node for node in graph.node for name in node.output}
    name = "logits"
    while (node := made_by.get(name)) is not None and node.op_type in _ELEMENTWISE:
        computed = [part for part in node.input if not _is_constant(graph, made_by, part)]
        if len(computed) != 1 or any(len(_shape_of(graph, part)) > 1 for part in node.input if part != computed[0]):
            raise ModelError(f"the logits pass through {node.op_type} of {list(node.input)}; {_REPORT}")
        name = computed[0]
    if node is None or node.op_type != "MatMul" or not _is_constant(graph, made_by, node.input[1]):
        raise ModelError(f"the logits come from {node.op_type if node else name}, no matrix of weights; {_REPORT}")
    users = [n for n in graph.node if name in n.input]
    if name != "logits" and len(users) != 1:
        raise ModelError(f"the output layer's rows go to {len(users)} places; {_REPORT}")
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


def _plain(model: Any, folder: Path) -> None:
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


# Blocks of weights


def blocks(rows: Floats, bits: int) -> tuple[npt.NDArray[np.uint8], Floats]:
    """ggml's Q8_0 and Q4_0 with scales of float32, as MatMulNBits reads them: w = scale · (q - 2^(bits - 1)).

    rows (n, k) → packed (n, k / 32, 32 · bits / 8) uint8, at 4 bits the first of two weights in the low half, and
    scale (n, k / 32). Rows are filled up with zeros.
    """
    n, k = rows.shape
    w = np.pad(rows, ((0, 0), (0, -k % _BLOCK))).reshape(n, -1, _BLOCK)
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
            nodes.append(found.product(node, *source, 8 if node.name == head else bits, _ACCURACY[activations]))
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
            parts: Sequence[npt.NDArray[Any]] = blocks(rows if turned else np.ascontiguousarray(rows.T), bits)
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
            block_size=_BLOCK,
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
        if width % _BLOCK:  # without what fills the last block up
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


# The check


class _Check:
    """Two rows of random tokens, read in two steps with padding on the right, and their logits everywhere.

    A graph that forgets its past, the mask, a token's position or a layer has logits that differ by nats.
    """

    def __init__(self, n_vocab: int) -> None:
        lengths = ((7, 5), (4, 8))  # tokens of each row in each step
        rng = np.random.default_rng(0)
        self.rows = [[rng.integers(0, n_vocab, n) for n in row] for row in lengths]

    def torch_logits(self, model: Any) -> Floats:
        """Each row alone, at once: (tokens, n_vocab)."""
        import torch

        with torch.inference_mode():
            rows = [model(torch.from_numpy(np.concatenate(row))[None]).logits[0] for row in self.rows]
        logits: Floats = torch.cat(rows).float().numpy()
        return logits

    def graph_logits(self, path: Path) -> Floats:
        """The same places, both rows together, the second step with the first one's keys and values."""
        session = _session(path)
        past = _empty_past(session, len(self.rows))
        mask = np.zeros((len(self.rows), 0), np.int64)
        begin = np.zeros(len(self.rows), np.int64)
        found: list[list[Floats]] = [[] for _ in self.rows]
        for step in range(2):
            tokens = [row[step] for row in self.rows]
            lengths, width = [len(t) for t in tokens], max(map(len, tokens))
            ids = np.stack([np.pad(t, (0, width - len(t))) for t in tokens])
            mask = np.concatenate([mask, np.arange(width) < np.array(lengths)[:, None]], axis=1).astype(np.int64)
            places = np.concatenate([i * width + np.arange(n) for i, n in enumerate(lengths)])
            backwards: Ints = places[::-1].astype(np.int64)  # the order is the caller's
            inputs = {
                "input_ids": ids,
                "attention_mask": mask,
                "position_ids": begin[:, None] + np.arange(width),
                "positions": backwards,
                **past,
            }
            logits, *present = session.run(None, inputs)
            for i, part in enumerate(np.split(logits[::-1], np.cumsum(lengths)[:-1])):
                found[i].append(part)
            past, begin = dict(zip(past, present, strict=True)), begin + np.array(lengths)
        rows: Floats = np.concatenate([part for row in found for part in row])
        return rows

    def refuse_other(self, found: Floats, expected: Floats, limit: float | None) -> None:
        """Raise ModelError where logits are not finite, or further than `limit` from those expected, in nats."""
        if not np.isfinite(found).all():
            raise ModelError("the exported graph overflows: its logits are not finite; export with another type")
        difference = float(np.abs(found - expected).max())
        if limit is not None and not difference <= limit:
            raise ModelError(
                f"the exported graph computes something else: its logits differ by {difference:.2g} from torch's, "
                f"{limit:g} is allowed; take a GGUF file of the model"
            )


def _session(path: Path) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    wanted = {"input_ids", "attention_mask", "position_ids", "positions"}
    names = {port.name for port in session.get_inputs() if not port.name.startswith("past_key_values.")}
    if names != wanted:
        raise ModelError(f"the graph takes {sorted(names)}, {sorted(wanted)} are needed; {_REPORT}")
    return session


def _empty_past(session: Any, n_rows: int) -> dict[str, npt.NDArray[Any]]:
    """No keys and values yet, in the order in which the graph gives them back."""
    ports = {port.name: port for port in session.get_inputs()}
    past = {}
    for output in session.get_outputs()[1:]:
        port = ports[output.name.replace("present", "past_key_values", 1)]
        dtype = np.float16 if port.type == "tensor(float16)" else np.float32
        past[port.name] = np.zeros((n_rows, port.shape[1], 0, port.shape[3]), dtype)
    return past
