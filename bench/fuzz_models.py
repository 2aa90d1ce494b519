"""Damaged model files, and what lies beside them: the kinds of bench/fuzz.py that edgeguard opens with a model."""

from __future__ import annotations

import struct
from pathlib import Path

import common  # noqa: F401  (it puts tests/ on the path)
from fuzzing import Draw, Kind
from tiny_gguf import write_tiny_llama

from edgeguard.backend import Prefix, RuntimeOptions
from edgeguard.formats import gguf

NASTY = [0, 1, 2, 3, 7, 31, 33, 255, 257, 511, 65535, 2**20, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1]


def damaged(draw: Draw, data: bytes, end: int) -> bytes:
    """Some of the first `end` bytes changed: random ones, flipped bits, or a number set to a nasty value."""
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        at = draw.randrange(max(1, end - 8))
        kind = draw.randrange(3)
        if kind == 0:
            changed[at] = draw.randrange(256)
        elif kind == 1:
            changed[at] ^= 1 << draw.randrange(8)
        else:
            form = draw.choice(["<I", "<Q"])
            value = draw.choice(NASTY) % 2 ** (8 * struct.calcsize(form))
            changed[at : at + struct.calcsize(form)] = struct.pack(form, value)
    return bytes(changed)


# GGUF


def _gguf_whole(folder: Path) -> list[tuple[bytes, int]]:
    paths = [
        write_tiny_llama(folder / "bpe.gguf"),
        write_tiny_llama(folder / "spm.gguf", vocab="spm"),
        write_tiny_llama(folder / "q8.gguf", ftype="Q8_0", bias={"safe": 1.0}),
    ]
    return [(path.read_bytes(), gguf.read_header(path).data_offset) for path in paths]


def _gguf_mutant(draw: Draw, whole: list[tuple[bytes, int]], path: Path) -> Path:
    path = path.with_name(path.name + ".gguf")
    path.write_bytes(damaged(draw, *draw.choice(whole)))
    return path


def _gguf_attempt(path: Path) -> str:
    from edgeguard.backends.llama_cpp import model as adapter

    backend = adapter.LlamaCpp(path, RuntimeOptions(context=256, threads=1))
    try:
        backend.vocabulary.encode("safe unsafe \n\nS1 123 é 日本 \U0001f600 the")
        backend.logprobs([Prefix((1, 2, 3), Prefix((4, 5)))])
    except UnicodeError:
        return "refused, UnicodeError"
    return "evaluated"


GGUF = Kind(_gguf_whole, _gguf_mutant, _gguf_attempt)
