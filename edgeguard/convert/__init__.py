"""Model files from model files: GGUF → GGUF, GGUF → ONNX, Hugging Face checkpoint → ONNX."""

from edgeguard.convert.conversion import ONNX_TYPES, TYPES, Converted, Options, convert, default_output

__all__ = ["ONNX_TYPES", "TYPES", "Converted", "Options", "convert", "default_output"]
