"""GGUF files: the header, read without trusting it and held against what llama.cpp would die from.

tables.py has the types, header.py what a header holds, reader.py the bounded reading, checks.py and adapters.py what
is refused of a model and of a LoRA adapter.
"""

from edgeguard.formats.gguf.adapters import OTHER_ADAPTER, check_adapter, pair_halves
from edgeguard.formats.gguf.checks import (
    MAX_CONTEXT,
    MAX_EXPERTS,
    MAX_LAYERS,
    MAX_WIDTH,
    MemoryKind,
    check_memory,
    check_model,
    context_length,
    memory_kind,
    uncuttable,
)
from edgeguard.formats.gguf.header import (
    MAX_TEMPLATE,
    Array,
    Header,
    MetadataValue,
    TensorInfo,
    chat_template,
    quantization,
)
from edgeguard.formats.gguf.reader import (
    MAX_NAME,
    MAX_TENSORS,
    Reader,
    open_reader,
    read_header,
    read_metadata,
    read_tensors,
)

__all__ = [
    "MAX_CONTEXT",
    "MAX_EXPERTS",
    "MAX_LAYERS",
    "MAX_NAME",
    "MAX_TEMPLATE",
    "MAX_TENSORS",
    "MAX_WIDTH",
    "OTHER_ADAPTER",
    "Array",
    "Header",
    "MemoryKind",
    "MetadataValue",
    "Reader",
    "TensorInfo",
    "chat_template",
    "check_adapter",
    "check_memory",
    "check_model",
    "context_length",
    "memory_kind",
    "open_reader",
    "pair_halves",
    "quantization",
    "read_header",
    "read_metadata",
    "read_tensors",
    "uncuttable",
]
