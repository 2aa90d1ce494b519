"""Adapters to model runtimes. Each imports its runtime; nobody imports an adapter but `open_backend`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from edgeguard.backend import Backend
from edgeguard.errors import ModelError


def open_backend(
    path: str | Path,
    *,
    n_ctx: int | None = None,
    threads: int | None = None,
    gpu_layers: int = 0,
    kv_type: Literal["f16", "f32"] = "f16",
) -> Backend:
    """Load a model file with the runtime it is for. Raises ModelError.

    n_ctx       tokens of context; None: the model's own, up to 8192
    threads     CPU threads; None: all cores this process may use
    gpu_layers  layers to put on a GPU, -1 for all; 0 for none
    kv_type     precision of the KV memory
    """
    try:
        from edgeguard.backends.llama_cpp import LlamaCpp  # on demand: a runtime takes its time to import
    except ModuleNotFoundError as error:
        if error.name != "llama_cpp":
            raise
        raise ModelError(
            "GGUF models need llama-cpp-python, which is not installed; pip install 'edgeguard[llama]'"
        ) from None
    return LlamaCpp(path, n_ctx=n_ctx, threads=threads, gpu_layers=gpu_layers, kv_type=kv_type)
