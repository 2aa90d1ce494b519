"""The variants of a reference model: given as files, or made of it and kept."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from edgeguard.convert import TYPES, Options, convert
from edgeguard.errors import ModelError
from edgeguard.formats import gguf
from edgeguard.formats.hashes import sha256_of_all
from edgeguard.formats.model_file import find_model, to_be_converted
from edgeguard.formats.onnx_graph import read_graph

FLOAT = "-float"  # onnx-int8-float: the same blocks, what they are multiplied with not rounded
_IN_FLOATS = 1  # MatMulNBits' accuracy_level


@dataclass(frozen=True)
class Variant:
    """A model to compare.

    files    what its size and hash are of
    runtime  "gguf" or "onnx"
    notices  what its making said, such as K-quants that fell back
    """

    name: str
    path: Path
    files: tuple[Path, ...]
    sha256: str
    runtime: str
    quantization: str
    notices: tuple[str, ...] = ()

    @property
    def n_bytes(self) -> int:
        """Of all its files."""
        return sum(path.stat().st_size for path in self.files)


def open_variant(path: Path, *, name: str = "", notices: Sequence[str] = ()) -> Variant:
    """A model file as a variant; `name` "" for the file's or the folder's own. Raises ModelError."""
    found = find_model(path)
    if found.kind == "checkpoint":
        raise to_be_converted(path)
    if found.kind == "gguf":
        files, kind = [found.path], gguf.quantization(gguf.read_header(found.path))
        own = found.path.stem
    else:
        graph = read_graph(found.path)
        files, kind, own = list(graph.files), "ONNX", found.path.resolve().parent.name
    return Variant(name or own, found.path, tuple(files), sha256_of_all(files), found.kind, kind, tuple(notices))


def make_variants(
    reference: Variant, wanted: Sequence[str], folder: Path, *, tell: Callable[[str], None] = lambda line: None
) -> list[Variant]:
    """Each of `wanted`: a model file, or a type of `edgeguard convert` to make of the reference and keep in `folder`.

    "onnx-int8-float" and "onnx-int4-float" have float activations. Raises ModelError, OutputError.
    """
    found, kept = [], folder / f"{reference.path.stem}-{reference.sha256[:12]}"
    for name in wanted:
        kind = name.lower().removesuffix(FLOAT)
        if Path(name).exists():
            found.append(open_variant(Path(name)))
            continue
        if kind not in TYPES or (name.lower().endswith(FLOAT) and kind not in ("onnx-int8", "onnx-int4")):
            raise ModelError(f"{name!r} is no file, and none of {', '.join(TYPES)}, onnx-int8-float, onnx-int4-float")
        if reference.runtime != "gguf":
            raise ModelError(
                f"{name} cannot be made of {reference.path}, which is ONNX; give the GGUF file it was made from"
            )
        found.append(_made(reference, name.lower(), kind, kept, tell))
    names = [variant.name for variant in (reference, *found)]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ModelError(f"two models are called {sorted(twice)[0]}; rename one of the files")
    return found


def _made(reference: Variant, name: str, kind: str, kept: Path, tell: Callable[[str], None]) -> Variant:
    path, noted = kept / (name if kind.startswith("onnx") else f"{name}.gguf"), kept / f"{name}.notices"
    if not path.exists() or not noted.exists():
        tell(f"making {name}")
        kept.mkdir(parents=True, exist_ok=True)
        options = Options(activations="float" if name.endswith(FLOAT) else "int8", overwrite=True)
        done = convert(reference.path, path, to=kind, options=options)
        noted.write_text("\n".join(done.notices), encoding="utf-8")
    return open_variant(path, name=name, notices=[n for n in noted.read_text(encoding="utf-8").split("\n") if n])


# The same weights with float activations: what a variant's own rounding of activations does is what it differs by.


def as_float(variant: Variant) -> Variant | None:
    """What `made_float` will make, by name and hash; None for a model that rounds no activations anyway."""
    if variant.runtime == "gguf":
        # llama.cpp rounds activations to the type that it multiplies a matrix's blocks with: F32 alone stays.
        tensors = gguf.read_header(variant.path).tensors
        rounds = any(t.type_name != "F32" for t in tensors if len(t.shape) > 1)
    else:
        blocked = read_graph(variant.path).blocked.values()
        rounds = any(b.accuracy_level not in (None, _IN_FLOATS) for b in blocked)
    if not rounds:
        return None
    return replace(variant, name=f"{variant.name}{FLOAT}", files=(), sha256=f"{variant.sha256}{FLOAT}")


@contextmanager
def made_float(variant: Variant, folder: Path) -> Iterator[Variant]:
    """`as_float` of a variant as a model that can be loaded, in `folder` until the block ends.

    GGUF: the blocks written out as F32. ONNX: the same files, with MatMulNBits told to multiply in floats.
    Raises ModelError, OutputError.
    """
    named = as_float(variant)
    assert named is not None
    path = folder / (f"{named.name}.gguf" if variant.runtime == "gguf" else named.name)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if variant.runtime == "gguf":
            convert(variant.path, path, to="f32", options=Options(overwrite=True))
            yield replace(named, path=path)
        else:
            yield replace(named, path=_in_floats(variant, path))
    finally:
        shutil.rmtree(path, ignore_errors=True)
        for file in (path, path.with_name(f"{path.name}.manifest.json")):
            if not file.is_dir():
                file.unlink(missing_ok=True)


def _in_floats(variant: Variant, folder: Path) -> Path:
    """The folder of an ONNX model once more, its large files linked."""
    import onnx

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for file in variant.path.parent.iterdir():
        if file.is_file() and file.name != variant.path.name:
            try:
                os.link(file, folder / file.name)
            except OSError:  # another disk, or one without links
                shutil.copyfile(file, folder / file.name)
    model = onnx.load_model(variant.path, load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            kept = [a for a in node.attribute if a.name != "accuracy_level"]
            del node.attribute[:]
            node.attribute.extend([*kept, onnx.helper.make_attribute("accuracy_level", _IN_FLOATS)])
    (folder / variant.path.name).write_bytes(model.SerializeToString(deterministic=True))
    return folder / variant.path.name
