"""A llama.cpp that has a libstdc++ of its own linked in lives beside the system's, which numpy brings."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgeguard import llama_library as library

# What llama.cpp does as it reads a tokenizer; made unlike a constant, so that the compiler does not know it.
READS = r"""
#include <locale>
#include <regex>
#include <string>
bool has(const std::string & text, const std::string & pattern) {
    return std::regex_search(text, std::regex(pattern));
}
extern "C" int reads(const char * text) { return has(text, "[a-y]\\s+[^b]"); }
"""
# Stands for llama-cpp-python. The other is there before, as numpy is, and has made its locale.
PACKAGE = """
import ctypes, pathlib
reads = ctypes.CDLL(str(pathlib.Path(__file__).parent / "lib" / "libllama.so")).reads
"""
PROGRAM = """
import ctypes, sys
ctypes.CDLL(sys.argv[1])
if sys.argv[2] == "shared":
    from edgeguard import llama_library as library
    lc = library.load()
else:
    import llama_cpp as lc
print(lc.reads(b"it a d"), lc.reads(b"zzz"))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder: other.so, which uses the system's libstdc++, and two packages, `own` and `usual`, by how they link."""
    if sys.platform != "linux" or shutil.which("g++") is None:
        pytest.skip("libstdc++ is mixed on Linux, and g++ makes such a library")
    folder = tmp_path_factory.mktemp("built")
    (folder / "other.cpp").write_text("#include <iostream>\nstatic std::ios_base::Init made;\n")
    (folder / "reads.cpp").write_text(READS)
    _compiled("-shared", folder / "other.cpp", "-o", folder / "other.so")
    _compiled("-c", folder / "reads.cpp", "-o", folder / "reads.o")
    for name, how in {"own": ["-static-libstdc++"], "usual": []}.items():
        package = folder / name / "llama_cpp"
        (package / "lib").mkdir(parents=True)
        (package / "__init__.py").write_text(PACKAGE)
        _compiled("-shared", *how, folder / "reads.o", "-o", package / "lib" / "libllama.so")
    return folder


def _compiled(*arguments: str | Path) -> None:
    done = subprocess.run(["g++", "-fPIC", "-O1", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"g++ cannot do so here: {done.stderr[-200:]}")


def _run(built: Path, package: str, how: str) -> subprocess.CompletedProcess[str]:
    paths = [str(built / package), str(Path(library.__file__).parents[1])]
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(built / "other.so"), how],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )


def test_a_library_with_a_libstdcxx_of_its_own_is_told_from_one_that_asks_for_the_systems(built: Path):
    assert library.has_own_cxx(built / "own" / "llama_cpp" / "lib" / "libllama.so")
    assert not library.has_own_cxx(built / "usual" / "llama_cpp" / "lib" / "libllama.so")
    assert not library.share_cxx([built / "usual" / "llama_cpp" / "lib", built / "none"])


def test_it_reads_a_regular_expression_where_the_system_has_made_its_locale_before(built: Path):
    done = _run(built, "own", "shared")
    assert (done.returncode, done.stdout.strip()) == (0, "1 0"), done.stderr


def test_alone_it_would_end_the_process(built: Path):
    done = _run(built, "own", "alone")
    if done.returncode == 0:
        pytest.skip("this libstdc++ lives beside another")
    assert done.returncode < 0


def test_the_usual_library_needs_nothing(built: Path):
    assert _run(built, "usual", "alone").stdout == _run(built, "usual", "shared").stdout == "1 0\n"


def test_what_is_no_library_has_no_libstdcxx(tmp_path: Path):
    (tmp_path / "empty.so").touch()
    assert not library.has_own_cxx(tmp_path / "empty.so")
    assert not library.has_own_cxx(tmp_path / "none.so")
