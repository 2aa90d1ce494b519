"""Adapters to model runtimes. Each imports its runtime; nobody imports an adapter but `open_backend`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from edgeguard.backend import Backend, Condition, available_cores
from edgeguard.errors import ModelError
from edgeguard.formats.model_file import find_model

Device = Literal["cpu", "cuda", "auto"]
KvType = Literal["f16", "f32"]


def open_backend(
    path: str | Path,
    *,
    n_ctx: int | None = None,
    threads: int | None = None,
    device: Device = "cpu",
    gpu_layers: int | None = None,
    kv_type: KvType | None = None,
    adapter: str | Path | None = None,
    condition: Condition | None = None,
) -> Backend:
    """Load a model with the runtime it is for, told by content: a GGUF or ONNX file, or a folder with one.

    n_ctx       tokens of context; None: the model's own, up to 8192
    threads     CPU threads; None: all cores this process may use
    device      "cuda" or an error; "auto": CUDA where the runtime was built with it
    gpu_layers  GGUF: layers to put on the GPU, -1 for all; None: as `device` says
    kv_type     GGUF: precision of the KV memory; None: F16
    adapter     GGUF: a LoRA adapter, a GGUF file too, to apply beside the weights
    condition   another way to compute the same, to measure noise with

    Raises ModelError.
    """
    model, cores = find_model(path), threads or available_cores()
    if model.kind == "checkpoint":
        raise ModelError(
            f"{path} is a Hugging Face checkpoint; convert it first: edgeguard convert {path} --to onnx-fp32"
        )
    try:
        if model.kind == "gguf":
            from edgeguard.backends.llama_cpp import LlamaCpp  # on demand: a runtime takes its time to import

            return LlamaCpp(
                model.path,
                n_ctx=n_ctx,
                threads=cores,
                device=device,
                gpu_layers=gpu_layers,
                kv_type=kv_type or "f16",
                adapter=adapter,
                condition=condition,
            )
        _refuse_gguf_options(path, gpu_layers, kv_type, adapter)
        from edgeguard.backends.onnx_runtime import OnnxRuntime

        return OnnxRuntime(model.path, n_ctx=n_ctx, threads=cores, device=device, condition=condition)
    except ModuleNotFoundError as error:
        missing = {"llama_cpp": ("GGUF", "llama-cpp-python", "llama"), "onnxruntime": ("ONNX", "onnxruntime", "onnx")}
        if error.name not in missing:
            raise
        what, package, extra = missing[error.name]
        raise ModelError(
            f"{what} models need {package}, which is not installed; pip install 'edgeguard[{extra}]'"
        ) from None


def _refuse_gguf_options(
    path: str | Path, gpu_layers: int | None, kv_type: KvType | None, adapter: str | Path | None
) -> None:
    if adapter is not None:
        raise ModelError(
            f"{path} is an ONNX model, which takes no adapter at load; merge it: "
            f"edgeguard convert BASE.gguf --lora {adapter} --to onnx"
        )
    if gpu_layers is not None:
        raise ModelError(
            f"{path} is an ONNX model, which has no GPU layers; use --device cuda in place of --gpu-layers"
        )
    if kv_type is not None:
        raise ModelError(f"{path} is an ONNX model: its file says the precision of its KV memory; leave --kv-cache out")
