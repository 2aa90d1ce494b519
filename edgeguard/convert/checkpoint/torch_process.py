"""The process in which torch loads a checkpoint and optimum traces it: what it makes is cut, quantized and checked."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from edgeguard import process
from edgeguard.convert.blocks import Activations
from edgeguard.convert.checkpoint.matrices import Moving, quantize
from edgeguard.convert.checkpoint.probe import Probe
from edgeguard.convert.checkpoint.surgery import cut, plain
from edgeguard.errors import ModelError, OutputError, printable

Precision = Literal["fp32", "fp16", "int8", "int4"]

# nats between a right graph's logits and torch's, and far below a wrong one's
MAX_DIFFERENCE = {"fp32": 1e-2, "fp16": 0.5}

_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONHASHSEED": "0",  # sets in the same order: the same bytes
}
_REFUSED = 3  # exit status: the last line of stderr is a message for the user, in JSON


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

    def as_json(self) -> dict[str, Any]:
        """For `from_json`: paths as texts."""
        return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Job:
        """The job of what `as_json` gave."""
        paths = {key: Path(values[key]) for key in ("folder", "out", "place", "lora") if values[key] is not None}
        return Job(**{**values, **paths})


def run_job(job: Job) -> None:
    """Do `job` in a process of its own, which ends when this one does. Raises ModelError, OutputError."""
    code, last = process.run(process.start(__name__), job.as_json(), _ENVIRONMENT)
    if code == _REFUSED:
        raise ModelError(printable(str(json.loads(last[-1]))))
    if code != 0:
        said = process.last_words(last)
        if "No space left" in said:
            raise OutputError(f"{job.out} cannot be written: the disk is full ({said})")
        how = process.ending("optimum", code) + ("; is there enough memory?" if code < 0 else "")
        raise ModelError(
            f"{job.folder} cannot be exported: {how}: {said}; take another checkpoint, or a GGUF file of the model"
        )


def _child() -> NoReturn:
    process.serve(_serve)


def _serve(job: Mapping[str, Any]) -> int:
    try:
        export_job(Job.from_json(job))
    except ModelError as error:
        sys.stderr.write(f"\n{json.dumps(str(error))}\n")
        return _REFUSED
    return 0


def export_job(job: Job) -> None:
    """What the process does: model.onnx, its weights and a tokenizer.json in `job.out`. Raises ModelError."""
    import onnx

    model = _load(job.folder, job.lora, job.lora_scale)
    probe = Probe(model.config.vocab_size)
    expected = probe.torch_logits(model)
    floats: Literal["fp32", "fp16"] = "fp16" if job.to == "fp16" else "fp32"
    traced = _trace(model, job.place / "traced", half=floats == "fp16")
    del model  # its memory is needed for what follows
    graph = onnx.load_model(traced, load_external_data=False)
    head = cut(graph)
    plain(graph, traced.parent)
    whole = traced.with_name("cut.onnx")  # beside the traced weights, which it shares
    whole.write_bytes(graph.SerializeToString(deterministic=True))
    probe.refuse_other(probe.graph_logits(whole), expected, MAX_DIFFERENCE[floats])
    with Moving(job.out / "model.onnx.data", traced.parent) as weights:
        if job.to in ("int8", "int4"):
            quantize(graph, weights, head=head, bits=8 if job.to == "int8" else 4, activations=job.activations)
        weights.move(graph)
    (job.out / "model.onnx").write_bytes(graph.SerializeToString(deterministic=True))
    probe.refuse_other(probe.graph_logits(job.out / "model.onnx"), expected, None)
    write_tokenizer(job.folder, job.out)


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


def write_tokenizer(folder: Path, out: Path) -> None:
    """Make the tokenizer.json of a checkpoint that has a slow tokenizer only. Raises ModelError."""
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
