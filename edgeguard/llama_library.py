"""How llama.cpp's libraries come into the process: llama-cpp-python loads them when it is imported, by this alone."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

SPINS = 1000  # turns of libgomp at a barrier before a thread sleeps
_CXX = "libstdc++.so.6"
_STRING = b"St7__cxx1112basic_string"  # in the names of what takes a std::string of libstdc++, not of libc++


def load() -> Any:
    """llama_cpp, whose threads wait for one another without taking the cores from other processes.

    They meet at barriers of libgomp, thousands a second, and by default turn there for so long that two processes with
    a thread for each core do a fraction of what one does (`python bench/starvation.py`). Sleeping at once slows a lone
    process down, for waking takes longer than most waits. So they turn for a short while and then sleep. libgomp reads
    this once, when it is loaded; who has said otherwise is left alone, and so is the environment of others.
    """
    if sys.platform == "linux" and "llama_cpp" not in sys.modules:
        share_cxx(_folders())
    ours = not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys()
    if ours:
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
    try:
        import llama_cpp
    finally:
        if ours:
            os.environ.pop("GOMP_SPINCOUNT", None)
    return llama_cpp


def share_cxx(folders: Iterable[Path]) -> bool:
    """Where llama.cpp in one of these folders brings a libstdc++ of its own, have it use the system's. Whether it does.

    Some compilers link libstdc++ into each library. Its numbers of the facets of a locale are one in a process all the
    same (STB_GNU_UNIQUE), but the counter that gives them is not. So where numpy or anything else has brought the
    system's, whose locale is there already, the second locale puts two facets into one place, and the first regular
    expression, with which a model's tokenizer is read, ends the process by SIGSEGV. Names that are global before are
    taken instead of a library's own: all of both is then the system's.
    """
    if not any(has_own_cxx(file) for folder in folders for file in folder.glob("libllama.so")):
        return False
    with suppress(OSError):  # it is not here, so nobody else has brought it
        ctypes.CDLL(_CXX, mode=ctypes.RTLD_GLOBAL)
        return True
    return False


def has_own_cxx(library: Path) -> bool:
    """Whether a library written in C++ asks for no libstdc++: it, or one that it needs, has it linked in."""
    with (
        suppress(OSError, ValueError),  # no such file, or an empty one
        library.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        return data.find(_CXX.encode()) < 0 <= data.find(_STRING)
    return False


def _folders() -> list[Path]:
    """Where llama-cpp-python looks for its libraries."""
    if asked := os.environ.get("LLAMA_CPP_LIB_PATH"):
        return [Path(asked)]
    found = find_spec("llama_cpp")
    return [Path(place) / "lib" for place in (found and found.submodule_search_locations) or ()]
