"""GGUF to GGUF at any of llama.cpp's file types, by llama.cpp's own quantization.

llama.cpp runs in a process of its own: it ends the whole process at some files, and does not hear Ctrl-C.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from edgeguard import llama_library, process
from edgeguard.convert.imatrix import read_imatrix
from edgeguard.convert.mixed import Named, numbers, tensor_types
from edgeguard.convert.weights import refuse_parts
from edgeguard.errors import ModelError, OutputError
from edgeguard.formats import gguf
from edgeguard.machine import available_cores

MAX_TEXT = 127  # bytes of a metadata key or value that llama.cpp takes

# As llama-quantize names them: enum llama_ftype, and the type that most matrices get.
_KINDS: Mapping[str, tuple[int, str]] = {
    "f32": (0, "F32"),
    "f16": (1, "F16"),
    "bf16": (32, "BF16"),
    "q8_0": (7, "Q8_0"),
    "q6_k": (18, "Q6_K"),
    "q5_k": (17, "Q5_K"),
    "q5_k_m": (17, "Q5_K"),
    "q5_k_s": (16, "Q5_K"),
    "q5_1": (9, "Q5_1"),
    "q5_0": (8, "Q5_0"),
    "q4_k": (15, "Q4_K"),
    "q4_k_m": (15, "Q4_K"),
    "q4_k_s": (14, "Q4_K"),
    "q4_1": (3, "Q4_1"),
    "q4_0": (2, "Q4_0"),
    "iq4_nl": (25, "IQ4_NL"),
    "iq4_xs": (30, "IQ4_XS"),
    "mxfp4_moe": (38, "MXFP4"),
    "q3_k": (12, "Q3_K"),
    "q3_k_l": (13, "Q3_K"),
    "q3_k_m": (12, "Q3_K"),
    "q3_k_s": (11, "Q3_K"),
    "iq3_m": (27, "IQ3_S"),
    "iq3_s": (26, "IQ3_S"),
    "iq3_xs": (22, "IQ3_S"),
    "iq3_xxs": (23, "IQ3_XXS"),
    "q2_k": (10, "Q2_K"),
    "q2_k_s": (21, "Q2_K"),
    "q2_0": (41, "Q2_0"),
    "iq2_m": (29, "IQ2_S"),
    "iq2_s": (28, "IQ2_XS"),
    "iq2_xs": (20, "IQ2_XS"),
    "iq2_xxs": (19, "IQ2_XXS"),
    "tq2_0": (37, "TQ2_0"),
    "tq1_0": (36, "TQ1_0"),
    "iq1_m": (31, "IQ1_M"),
    "iq1_s": (24, "IQ1_S"),
    "q1_0": (40, "Q1_0"),
}
FILE_TYPES: Mapping[str, int] = MappingProxyType({name: number for name, (number, _) in _KINDS.items()})
NEEDS_IMATRIX = frozenset(
    {"iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m", "iq3_xxs", "iq3_xs", "q2_k_s"}
)  # llama.cpp refuses them without an importance matrix

_FLOATS = frozenset({"F32", "F16", "BF16"})
_SMALL, _LARGE = 32, 256  # weights a block of the older types, and of the K, IQ and TQ types
_INSTEAD = frozenset({"IQ4_NL", "Q4_0", "Q5_0", "Q5_1", "Q8_0"})  # small, where a large block does not fit


@dataclass(frozen=True)
class Quantized:
    """What became of a model's tensors.

    `types` is the number of tensors by type. `fallbacks` are the matrices whose rows are no multiple of the block
    of the type meant for them, and which got a larger type for that. What a mix such as q4_k_m gives more bits on
    purpose is not among them.
    """

    path: Path
    types: Mapping[str, int]
    fallbacks: tuple[gguf.TensorInfo, ...]


def main_type(to: str) -> str:
    """The type that most matrices of a file type get: Q4_K for "q4_k_m"."""
    return _KINDS[to][1]


def block_of(tensor: gguf.TensorInfo) -> int:
    """Of a fallback: the weights a block of the type that was meant for it, which its rows do not divide into.

    That need not be the type that was asked for: every mix means the output layer, and the embedding where it is that
    too, to have Q6_K, whose blocks hold 256 weights.
    """
    return _SMALL if tensor.type_name == "F16" else _LARGE


def is_float(header: gguf.Header) -> bool:
    """Whether no weight is quantized yet: quantizing again what is quantized loses more than either step alone."""
    return all(tensor.type_name in _FLOATS for tensor in header.tensors)


def quantize(
    source: Path,
    out: Path,
    *,
    to: str,
    imatrix: Path | None = None,
    threads: int | None = None,
    pure: bool = False,
    mixed: Sequence[Named] = (),
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> Quantized:
    """Write the model `source` to `out` with weights of file type `to`, one of FILE_TYPES.

    imatrix   an importance matrix of this very model
    threads   None for all cores there are; the bytes written are the same for any number
    pure      one type for all matrices instead of llama.cpp's mix
    mixed     types of single tensors, as `mixed.tensor_types` takes them
    metadata  keys to add, texts of at most MAX_TEXT bytes each

    Raises ModelError for a model that cannot be quantized, OutputError where `out` cannot be written; `out` is gone
    then, and also when it is interrupted.
    """
    _check(source, out, to=to, imatrix=imatrix, metadata=metadata)
    own = tensor_types(gguf.read_header(source), mixed)
    job = {
        "source": str(source),
        "out": str(out),
        "file_type": FILE_TYPES[to],
        "imatrix": None if imatrix is None else str(imatrix),
        "threads": threads or available_cores(),
        "pure": pure,
        "tensor_types": numbers(own),
        "metadata": dict(metadata),
    }
    try:
        with out.open("wb"):
            pass
        _run(job, f"{source} cannot be quantized to {to}")
        result = gguf.read_header(out)
    except OSError as error:
        out.unlink(missing_ok=True)
        raise OutputError(f"{out} cannot be written: {error.strerror or error}") from error
    except BaseException:
        out.unlink(missing_ok=True)
        raise
    types = Counter(tensor.type_name for tensor in result.tensors)
    plain = _KINDS[to][1]
    fallbacks = (tensor for tensor in result.tensors if tensor.name not in own and _fell_back(tensor, plain))
    return Quantized(out, types, tuple(fallbacks))


def _check(source: Path, out: Path, *, to: str, imatrix: Path | None, metadata: Mapping[str, str]) -> None:
    """All that can be known before llama.cpp starts."""
    if to not in FILE_TYPES:
        raise ValueError(f"{to!r} is no file type; known are {', '.join(FILE_TYPES)}")
    for text in (*metadata, *metadata.values()):
        if len(text.encode()) > MAX_TEXT or "\0" in text:
            raise ValueError(f"{text!r} cannot be added to the metadata: at most {MAX_TEXT} bytes, and no NUL")
    if "" in metadata:
        raise ValueError("a metadata key is empty")
    if find_spec("llama_cpp") is None:
        raise ModelError("quantizing needs llama.cpp, which is not installed; pip install 'edgeguard[llama]'")
    header = gguf.read_header(source)
    gguf.check_model(header)
    refuse_parts(header)
    if out.exists() and out.samefile(source):
        raise ValueError(f"{out} is the model that is read")
    if imatrix is not None:
        read_imatrix(imatrix, header)
    elif to in NEEDS_IMATRIX:
        raise ModelError(
            f"{to} has so few bits that it needs an importance matrix; compute one of {source} with llama-imatrix "
            "and give it, or take a larger type"
        )


def _fell_back(tensor: gguf.TensorInfo, plain: str) -> bool:
    """Whether a tensor of the result is of its type because its rows fit no better one."""
    if len(tensor.shape) < 2 or plain in _FLOATS or tensor.type_name == plain:
        return False
    if tensor.type_name == "F16":
        return tensor.shape[0] % _SMALL != 0
    if plain == "MXFP4":  # its mix has no large blocks
        return False
    # In the mixes of the older types only output.weight is meant to have large blocks.
    instead = frozenset({"Q8_0"}) if plain in ("Q4_0", "Q4_1", "Q5_0", "Q5_1") else _INSTEAD
    return tensor.type_name in instead and tensor.shape[0] % _LARGE != 0


# The process that llama.cpp runs in


def _run(job: Mapping[str, Any], failed: str) -> None:
    """Do `job` in a process of its own, which ends when this one does. Raises ModelError, OutputError."""
    # Without the variable llama.cpp starts a debugger, if there is one, before it aborts.
    code, last = process.run(process.start(__name__), job, {"GGML_NO_BACKTRACE": "1"})
    if code != 0:
        said = process.last_words(last)
        if "iostream error" in said:
            raise OutputError(f"{job['out']} cannot be written: the disk may be full ({said})")
        how = process.ending("llama.cpp", code)
        raise ModelError(f"{failed}: {how}: {said}; take another file type, or another file of the model")


def _child() -> NoReturn:
    process.serve(_quantize)


def _quantize(job: Mapping[str, Any]) -> int:
    lc = llama_library.load()
    log = lc.llama_log_callback(_log)
    lc.llama_log_set(log, None)
    lc.llama_backend_init()
    header = gguf.read_header(job["source"])
    params = lc.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.pure = job["file_type"], job["threads"], job["pure"]
    params.allow_requantize = True
    overrides = _overrides(lc, header, job["metadata"])
    params.kv_overrides = ctypes.cast(overrides, type(params.kv_overrides))
    if job["imatrix"] is not None:
        entries = _imatrix_entries(lc, job["imatrix"], header)
        params.imatrix = ctypes.cast(entries, type(params.imatrix))
    if job["tensor_types"]:
        chosen = _tensor_types(lc, job["tensor_types"])
        params.tt_overrides = ctypes.cast(chosen, type(params.tt_overrides))
    paths = (os.fsencode(job["source"]), os.fsencode(job["out"]))
    return int(lc.llama_model_quantize(*paths, ctypes.byref(params)))


_ERROR = 4  # enum ggml_log_level


def _log(level: int, text: bytes, _: Any) -> None:
    if level == _ERROR:
        sys.stderr.write(text.decode(errors="replace"))


def _overrides(lc: Any, header: gguf.Header, metadata: Mapping[str, str]) -> Any:
    """The keys that llama.cpp sets in the result; an empty key ends the array."""
    array = (lc.llama_model_kv_override * (len(metadata) + 2))()
    for override, (key, text) in zip(array, metadata.items(), strict=False):
        override.tag, override.key = lc.LLAMA_KV_OVERRIDE_TYPE_STR, key.encode()
        override.value.val_str = text.encode()
    if "general.alignment" in header.metadata:
        # llama.cpp copies the key, but always aligns the result by 32: its own reader would refuse the file.
        array[-2].tag, array[-2].key = lc.LLAMA_KV_OVERRIDE_TYPE_INT, b"general.alignment"
        array[-2].value.val_i64 = 32
    return array


def _tensor_types(lc: Any, types: Mapping[str, int]) -> Any:
    """Each tensor's own type: llama.cpp searches its name for a regular expression. A null pattern ends the array."""
    array = (lc.llama_model_tensor_override * (len(types) + 1))()
    for entry, (name, number) in zip(array, types.items(), strict=False):
        entry.pattern, entry.type = f"^{re.escape(name)}$".encode(), number
    return array


def _imatrix_entries(lc: Any, path: str, header: gguf.Header) -> Any:
    """The importance of each tensor; a null name ends the array. ctypes keeps the numbers alive with it."""
    found = read_imatrix(path, header)
    array = (lc.llama_model_imatrix_data * (len(found) + 1))()
    for entry, (name, values) in zip(array, found.items(), strict=False):
        numbers = (ctypes.c_float * len(values)).from_buffer_copy(values.tobytes())
        entry.name, entry.size = name.encode(), len(values)
        entry.data = ctypes.cast(numbers, ctypes.POINTER(ctypes.c_float))
    return array
