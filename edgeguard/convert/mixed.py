"""Types of single tensors, as llama-quantize's --tensor-type takes them: a pattern of names, and the type they get."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from edgeguard.errors import ModelError
from edgeguard.formats.gguf.header import Header
from edgeguard.formats.gguf.tables import TENSOR_TYPES

_INTERNAL = frozenset({"Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64", "NVFP4"})  # no weights are kept in them
_BLOCKS = {name: (number, per_block) for number, (name, per_block, _) in TENSOR_TYPES.items() if name not in _INTERNAL}
_LONGEST = 100  # bytes of a pattern: it goes into the output's metadata
Named = tuple[str, str]  # a pattern, a type


def tensor_types(header: Header, wanted: Sequence[Named]) -> dict[str, str]:
    """Tensor → its type, of all matrices that a pattern is found in; of several patterns the last counts.

    A pattern is a regular expression that may be found anywhere in a name, or a name's part: "ffn_down".
    Raises ModelError for a pattern that is none or is found nowhere, a type that is none, and one whose blocks rows
    do not divide into.
    """
    found: dict[str, str] = {}
    for pattern, kind in wanted:
        name = kind.upper()
        if name not in _BLOCKS:
            raise ModelError(f"{kind!r} is no type of a tensor; expected one of {', '.join(sorted(_BLOCKS)).lower()}")
        if len(pattern.encode()) > _LONGEST:
            raise ModelError(f"a pattern of {len(pattern)} characters is too long; at most {_LONGEST} bytes are taken")
        try:
            matcher = re.compile(pattern)
        except re.error as error:
            raise ModelError(f"{pattern!r} is no pattern of names: {error}; give a part of a tensor's name") from None
        tensors = [tensor for tensor in header.tensors if len(tensor.shape) > 1 and matcher.search(tensor.name)]
        if not tensors:
            parts = sorted({part for t in header.tensors if len(t.shape) > 1 for part in t.name.split(".")[-2:-1]})
            raise ModelError(f"{header.path} has no matrix whose name has {pattern!r} in it; it has {', '.join(parts)}")
        for tensor in tensors:
            if tensor.shape[0] % _BLOCKS[name][1]:
                raise ModelError(
                    f"{tensor.name} cannot be {kind}: its rows of {tensor.shape[0]} weights do not divide into blocks "
                    f"of {_BLOCKS[name][1]}; take a type with blocks of 32, such as q8_0"
                )
            found[tensor.name] = name
    return found


def numbers(types: Mapping[str, str]) -> dict[str, int]:
    """The same with ggml's numbers of types."""
    return {tensor: _BLOCKS[name][0] for tensor, name in types.items()}
