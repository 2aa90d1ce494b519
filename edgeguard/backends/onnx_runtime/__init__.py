"""ONNX models through ONNX Runtime: what edgeguard may know of it without importing it."""

from __future__ import annotations

from pathlib import Path

from edgeguard.backend import Backend, Condition, Runtime, RuntimeOptions


def _open(path: Path, options: RuntimeOptions) -> Backend:
    if options.together is not None:
        from edgeguard.backends.onnx_runtime.together import OnnxRuntimeTogether

        return OnnxRuntimeTogether(path, options)
    from edgeguard.backends.onnx_runtime.model import OnnxRuntime

    return OnnxRuntime(path, options)


RUNTIME = Runtime(
    name="ONNX Runtime",
    short="onnx",
    opens=frozenset({"onnx"}),
    module="onnxruntime",
    package="edgeguard[onnx]",
    open=_open,
    takes=frozenset({"context", "threads", "device", "together"}),
    # A graph has one attention kernel, and no company in its calls.
    conditions={"batch": Condition(batch=16)},
)
