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


@dataclass(frozen=True)
class Wanted:
    """A model to compare, before it is made.

    path     where it is or will be; made: whether it is made of the reference
    kind     the type of `edgeguard convert`; "" for a file that was given
    n_bytes  of its files; about, where it is not there yet
    """

    name: str
    path: Path
    kind: str
    runtime: str
    n_bytes: int

    @property
    def made(self) -> bool:
        """Whether it is made of the reference, and not given."""
        return bool(self.kind)

    @property
    def is_there(self) -> bool:
        """Whether nothing is left to do."""
        return not self.made or (self.path.exists() and self._noted.exists())

    @property
    def _noted(self) -> Path:
        return self.path.with_name(f"{self.name}.notices")

    def open(self, reference: Variant) -> Variant:
        """The model; made, if it is not there yet. Raises ModelError, OutputError."""
        if not self.made:
            return open_variant(self.path)
        if not self.is_there:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            options = Options(activations="float" if self.name.endswith(FLOAT) else "int8", overwrite=True)
            done = convert(reference.path, self.path, to=self.kind, options=options)
            self._noted.write_text("\n".join(done.notices), encoding="utf-8")
        notices = [n for n in self._noted.read_text(encoding="utf-8").split("\n") if n]
        return open_variant(self.path, name=self.name, notices=notices)


def wanted_variants(reference: Variant, wanted: Sequence[str], folder: Path) -> list[Wanted]:
    """Each of `wanted`, the smallest first: a model file, or a type of `edgeguard convert`, to be kept in `folder`.

    "onnx-int8-float" and "onnx-int4-float" have float activations. Nothing is made yet. Raises ModelError.
    """
    found, kept = [], folder / f"{reference.name}-{reference.sha256[:12]}"
    for name in wanted:
        kind = name.lower().removesuffix(FLOAT)
        if Path(name).exists():
            given = open_variant(Path(name))
            found.append(Wanted(given.name, Path(name), "", given.runtime, given.n_bytes))
            continue
        if kind not in TYPES or (name.lower().endswith(FLOAT) and kind not in ("onnx-int8", "onnx-int4")):
            raise ModelError(f"{name!r} is no file, and none of {', '.join(TYPES)}, onnx-int8-float, onnx-int4-float")
        if reference.runtime != "gguf":
            raise ModelError(
                f"{name} cannot be made of {reference.path}, which is ONNX; give the GGUF file it was made from"
            )
        onnx = kind.startswith("onnx")
        path = kept / (name.lower() if onnx else f"{name.lower()}.gguf")
        runtime = "onnx" if onnx else "gguf"
        one = Wanted(name.lower(), path, kind, runtime, _about_bytes(reference, kind))
        found.append(replace(one, n_bytes=one.open(reference).n_bytes) if one.is_there else one)
    names = [reference.name, *(one.name for one in found)]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ModelError(f"two models are called {sorted(twice)[0]}; rename one of the files")
    return sorted(found, key=lambda one: one.n_bytes)


# Bits a weight, about: of a small guard, part of whose matrices stays in more.
_BITS = {"f32": 32, "f16": 16, "bf16": 16, "q8_0": 8.6, "q6_k": 8, "q5": 6.7, "q4": 5.8, "iq4": 5.5, "q3": 5, "q2": 4}
_ONNX_BITS = {"onnx": 32, "onnx-fp32": 32, "onnx-fp16": 16, "onnx-int8": 9.2, "onnx-int4": 6.0}


def _about_bytes(reference: Variant, kind: str) -> int:
    """About how large a type will be."""
    bits = _ONNX_BITS.get(kind) or next((b for name, b in _BITS.items() if kind.startswith(name)), 32)
    own = 16 if "16" in reference.quantization else 32
    return int(reference.n_bytes * bits / own)


def make_variants(
    reference: Variant, wanted: Sequence[str], folder: Path, *, tell: Callable[[str], None] = lambda line: None
) -> list[Variant]:
    """`wanted_variants`, made. Raises ModelError, OutputError."""
    found = []
    for one in wanted_variants(reference, wanted, folder):
        if not one.is_there:
            tell(f"making {one.name}")
        found.append(one.open(reference))
    return found


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
