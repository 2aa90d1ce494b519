"""GGUF models through llama.cpp: what edgeguard may know of it without importing it."""

from __future__ import annotations

import os
from pathlib import Path

from edgeguard.backend import Backend, Condition, Runtime, RuntimeOptions


def _open(path: Path, options: RuntimeOptions) -> Backend:
    # Where llama.cpp aborts, it would have a debugger write a backtrace to stdout, among the scores.
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    if options.together is not None:
        from edgeguard.backends.llama_cpp.together import LlamaCppTogether

        return LlamaCppTogether(path, options)
    from edgeguard.backends.llama_cpp.model import LlamaCpp

    return LlamaCpp(path, options)


RUNTIME = Runtime(
    name="llama.cpp",
    short="llama",
    opens=frozenset({"gguf"}),
    module="llama_cpp",
    package="edgeguard[llama]",
    open=_open,
    takes=frozenset({"context", "threads", "device", "gpu_layers", "kv_cache", "lora", "batch", "together"}),
    conditions={
        "batch": Condition(batch=16),
        "attention": Condition(attention="flash"),
        "neighbours": Condition(company=True),
    },
)
