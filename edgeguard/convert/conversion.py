"""Model files from model files: what is read is told by content, what is written by the name of a type."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast

from edgeguard.convert import artifact
from edgeguard.convert.adapters import read_adapter
from edgeguard.convert.blocks import CARRIED, Activations
from edgeguard.convert.checkpoint import export
from edgeguard.convert.folder import write_folder
from edgeguard.convert.graph import Precision
from edgeguard.convert.merged import write_merged
from edgeguard.convert.mixed import Named, tensor_types
from edgeguard.convert.quantize import FILE_TYPES, Quantized, block_of, is_float, quantize
from edgeguard.convert.size import Size, checkpoint_size, float_size, gguf_size, in_words, onnx_size
from edgeguard.convert.weights import Weights
from edgeguard.errors import ModelError
from edgeguard.formats import gguf
from edgeguard.formats.manifest import IN_FOLDER, Origin, as_manifest, as_metadata, beside
from edgeguard.formats.model_file import find_model

Tell = Callable[[str], None]
ONNX_TYPES: Mapping[str, Precision] = {
    "onnx": "source",
    "onnx-fp32": "fp32",
    "onnx-fp16": "fp16",
    "onnx-int8": "int8",
    "onnx-int4": "int4",
}
TYPES = (*ONNX_TYPES, *FILE_TYPES)
_PACKAGES = ("gguf", "numpy", "onnx")


@dataclass(frozen=True)
class Converted:
    """The file or folder that was written, what its manifest says, and what a user should know of it."""

    path: Path
    manifest: Mapping[str, Any]
    notices: tuple[str, ...]


@dataclass(frozen=True)
class Options:
    """How to convert.

    lora         an adapter to merge into the model: a GGUF file, or a folder as PEFT writes it
    lora_scale   factor of the adapter
    imatrix      importance matrix, for quantized GGUF types
    mixed        (pattern of names, type) of tensors that get another type, for GGUF types: ("ffn_down", "q8_0")
    activations  ONNX int8 and int4: what the blocks are multiplied with
    threads      CPU threads for quantizing; no effect on the result
    name         what the output says it is called; None: what the model is called
    """

    lora: Path | None = None
    lora_scale: float = 1.0
    imatrix: Path | None = None
    mixed: tuple[Named, ...] = ()
    activations: Activations = "int8"
    threads: int | None = None
    overwrite: bool = False
    name: str | None = None


def convert(
    model: str | Path,
    out: str | Path,
    *,
    to: str,
    options: Options | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Converted:
    """Write `model` as type `to`: a name of TYPES. The same inputs and tools give the same bytes.

    tell  hears how large the output will be, of which types, before anything is written

    "onnx" keeps Q4_0, Q4_1 and Q8_0 blocks as they are and makes the rest float32. An ONNX output is a
    folder, a GGUF output a file and its manifest. Nothing is left of a conversion that fails.
    Raises ModelError, OutputError.
    """
    options, out = options or Options(), Path(out)
    if to not in TYPES:
        raise ValueError(f"to is {to!r}; expected one of {', '.join(TYPES)}")
    found = find_model(model)
    if options.imatrix and to in ONNX_TYPES:
        raise ModelError(
            "an importance matrix is for quantized GGUF types; quantize to GGUF first, then convert that to onnx"
        )
    if options.mixed and (to in ONNX_TYPES or to == "f32"):
        raise ModelError(f"types of single tensors are for quantized GGUF types and f16; {to} has one for all of them")
    if found.kind == "onnx":
        raise ModelError(f"{found.path} is an ONNX model already; convert from its GGUF file or its checkpoint")
    if found.kind == "checkpoint":
        return _from_checkpoint(found.path, out, to, options, tell)
    if to in ONNX_TYPES and find_spec("onnx") is None:
        raise ModelError(
            "writing ONNX needs the onnx package, which is not installed; pip install 'edgeguard[convert]'"
        )
    header = gguf.read_header(found.path)
    gguf.check_model(header)
    adapter = read_adapter(options.lora, header, scale=options.lora_scale) if options.lora else None
    weights = Weights(header, adapter)
    return (_to_onnx if to in ONNX_TYPES else _to_gguf)(weights, out, to, options, tell)


def default_output(model: Path, to: str) -> Path:
    """A name in the working directory: guard.F32.gguf → guard.q8_0.gguf, or the folder guard-onnx-int8.

    The type in the old name stays only where its blocks do, with "onnx".
    """
    stem = model.resolve().name.removesuffix(".gguf")
    before, _, kind = stem.rpartition(".")
    stem = before if before and to != "onnx" and kind.lower() in FILE_TYPES else stem
    return Path(f"{stem}-{to}") if to in ONNX_TYPES else Path(f"{stem}.{to}.gguf")


# GGUF → ONNX


def _to_onnx(weights: Weights, out: Path, to: str, options: Options, tell: Tell) -> Converted:
    header, precision = weights.header, ONNX_TYPES[to]
    origin = _origin(header.path, to, options, _PACKAGES)
    name = options.name or str(header.metadata.get("general.name", "") or header.path.stem)
    size = onnx_size(weights, precision)
    tell(_announced(out, size, header.n_bytes, _smaller(weights, precision, size, header.n_bytes)))
    with _staged(out, header.path, to, options, size.room) as stage:
        folder = stage / out.name
        folder.mkdir()
        kinds = write_folder(
            weights, folder, precision=precision, activations=options.activations, metadata=as_metadata(origin)
        )
        return _finish(folder, out, origin, _onnx_notices(weights, precision), name=name, matrices=kinds)


def _onnx_notices(weights: Weights, precision: Precision) -> tuple[str, ...]:
    matrices = [t for t in weights.header.tensors if len(t.shape) > 1]
    if precision == "source":
        others = sorted({t.type_name for t in matrices} - {*CARRIED, "F32"})
        count = sum(t.type_name in others for t in matrices)
        note = f"{count} matrices of {', '.join(others)} become float32: MatMulNBits has no such blocks"
        return (note,) if others else ()
    return _requantizing(weights, f"onnx-{precision}") if precision in ("int8", "int4") else ()


# GGUF → GGUF


def _to_gguf(weights: Weights, out: Path, to: str, options: Options, tell: Tell) -> Converted:
    header = weights.header
    origin = _origin(header.path, to, options, ("gguf", "llama-cpp-python", "numpy"))
    merge = to == "f32" or options.lora is not None or options.name is not None
    size = gguf_size(weights, to, tensor_types(header, options.mixed))
    room = size.room + (float_size(weights).room if merge and to != "f32" else 0)
    tell(_announced(out, size, header.n_bytes, _meanwhile(room, size)))
    with _staged(out, header.path, to, options, room) as stage:
        file, given = stage / out.name, header.path
        notices: tuple[str, ...] = ()
        if merge:
            given = stage / "merged.gguf"
            said = as_metadata(origin) | ({"general.name": options.name} if options.name else {})
            write_merged(weights, given, metadata=said)
        else:
            notices = _requantizing(weights, to)
        if to == "f32":
            given.rename(file)
        else:
            done = quantize(
                given,
                file,
                to=to,
                imatrix=options.imatrix,
                threads=options.threads,
                mixed=options.mixed,
                metadata={} if merge else as_metadata(origin),
            )
            notices += _fallbacks(done)
        types: dict[str, int] = {}
        for tensor in gguf.read_header(file).tensors:
            types[tensor.type_name] = types.get(tensor.type_name, 0) + 1
        return _finish(file, out, origin, notices, tensors=types)


def _fallbacks(done: Quantized) -> tuple[str, ...]:
    """What a user should know: rows that do not divide into the blocks of the type meant for them get another one.

    Not only with K-quants: every mix means Q6_K, with blocks of 256, for the output layer.
    """
    if not done.fallbacks:
        return ()
    n_matrices = sum(n for kind, n in done.types.items() if kind != "F32")
    notices = []
    for block in sorted({block_of(tensor) for tensor in done.fallbacks}):
        found = [tensor for tensor in done.fallbacks if block_of(tensor) == block]
        kinds, widths = sorted({t.type_name for t in found}), sorted({t.shape[0] for t in found})
        named = f" ({', '.join(t.name for t in found)})" if len(found) <= 2 else ""
        notices.append(
            f"{len(found)} of {n_matrices} matrices{named} became {', '.join(kinds)} instead: their rows of "
            f"{', '.join(map(str, widths))} weights do not divide into blocks of {block}, which the type has that "
            "llama.cpp means for them"
        )
    return tuple(notices)


def _requantizing(weights: Weights, to: str) -> tuple[str, ...]:
    header = weights.header
    kind = gguf.quantization(header)
    if is_float(header) or kind.lower() == to or to in ("f16", "bf16", "f32"):
        return ()
    return (
        f"{header.path.name} is quantized already ({kind}): {to} adds its own error to it; "
        "convert from an F16 or F32 file where there is one",
    )


# Checkpoint → ONNX


def _from_checkpoint(folder: Path, out: Path, to: str, options: Options, tell: Tell) -> Converted:
    if to not in ONNX_TYPES:
        raise ModelError(
            f"{folder} is a Hugging Face checkpoint; make a GGUF file of it with llama.cpp's convert_hf_to_gguf.py, "
            f"or name an ONNX type: {', '.join(ONNX_TYPES)}"
        )
    precision = "fp32" if to == "onnx" else cast(Literal["fp32", "fp16", "int8", "int4"], ONNX_TYPES[to])
    packages = ("onnx", "onnxruntime", "optimum", "optimum-onnx", "peft", "torch", "transformers")
    origin = _origin(folder, to, options, packages)
    size, full = checkpoint_size(folder, precision), checkpoint_size(folder, "fp32")  # the latter is written first
    given = sum(p.stat().st_size for p in folder.glob("*.safetensors"))
    more = full if precision != "fp32" else Size({})
    if size.types:  # else `export` says what is missing
        meanwhile = f"; {in_words(more.n_bytes)} more while it is made" if more.types else ""
        tell(_announced(out, size, given, meanwhile))
    with _staged(out, folder, to, options, size.room + more.n_bytes) as stage:
        target = stage / out.name
        target.mkdir()
        export(
            folder,
            target,
            to=precision,
            lora=options.lora,
            lora_scale=options.lora_scale,
            activations=options.activations,
        )
        _add_metadata(target / "model.onnx", as_metadata(origin))
        return _finish(target, out, origin, (), name=folder.resolve().name)


def _add_metadata(path: Path, metadata: Mapping[str, str]) -> None:
    import onnx

    model = onnx.load_model(path, load_external_data=False)
    onnx.helper.set_model_props(model, dict(sorted(metadata.items())))
    path.write_bytes(model.SerializeToString(deterministic=True))


# What all have in common


def _staged(out: Path, model: Path, to: str, options: Options, n_bytes: int) -> AbstractContextManager[Path]:
    folder = to in ONNX_TYPES
    return artifact.staged(out, model=model, folder=folder, overwrite=options.overwrite, n_bytes=n_bytes)


def _origin(model: Path, to: str, options: Options, packages: tuple[str, ...]) -> Origin:
    sources = [artifact.source("model", model)]
    said = {}
    if options.lora:
        sources.append(artifact.source("lora", options.lora))
        said["lora_scale"] = f"{options.lora_scale:g}"
    if options.imatrix:
        sources.append(artifact.source("imatrix", options.imatrix))
    for i, (pattern, kind) in enumerate(options.mixed, 1):  # apart: llama.cpp takes short texts only
        said[f"tensor_type.{i}"] = f"{pattern}={kind.lower()}"
    if to in ("onnx", "onnx-int8", "onnx-int4"):
        said["activations"] = options.activations
    return artifact.origin(to, sources, said, packages)


def _announced(out: Path, size: Size, given: int, more: str = "") -> str:
    """What will be written, said before anything is."""
    return f"{out} will have about {size}, from {in_words(given)}{more}"


def _smaller(weights: Weights, precision: Precision, size: Size, given: int) -> str:
    """Types that stay near the size that was given, where "onnx" makes floats of what MatMulNBits has no blocks for."""
    if precision != "source" or size.n_bytes < 1.5 * given:
        return ""
    others = ", ".join(f"onnx-{kind} about {in_words(onnx_size(weights, kind).n_bytes)}" for kind in ("int8", "int4"))
    return f": blocks that ONNX Runtime has none of, or that an adapter changes, become float32. Smaller: {others}"


def _meanwhile(room: int, size: Size) -> str:
    more = room - size.room
    return f"; {in_words(more)} more while it is made, for the merged model" if more else ""


def _finish(made_at: Path, out: Path, origin: Origin, notices: tuple[str, ...], **more: Any) -> Converted:
    """Write the manifest and put the result in its place."""
    if made_at.is_dir():
        text = as_manifest(origin, [*made_at.iterdir()], **more)
        (made_at / IN_FOLDER).write_bytes(text)
        artifact.put(made_at, out)
    else:
        text = as_manifest(origin, [made_at], **more)
        beside(made_at).write_bytes(text)
        artifact.put(made_at, out)
        artifact.put(beside(made_at), beside(out))
    return Converted(out, json.loads(text), notices)
