"""The tests on every Python that the package's classifiers name, as far as this machine has them.

python tests/versions.py

Each version gets an environment in .venv/versions/, without torch: its tests are skipped there, and those of the real
model, which is no other under another Python. llama-cpp-python's
wheel is made for every Python 3 at once, so it is compiled for the first and handed to the others.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = "llama,onnx,convert,smollm2,parquet,zstd,ray,serve,hub"


def named() -> list[str]:
    """Versions that the classifiers name: "3.11", …"""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = (re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line) for line in project["classifiers"])
    return [match[1] for match in found if match]


def candidates(version: str) -> Iterator[str]:
    """Where an interpreter of this version may be: on the path, or where pyenv keeps it."""
    if found := shutil.which(f"python{version}"):
        yield found
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from map(str, sorted(pyenv.glob(f"versions/{version}.*/bin/python")))


def interpreter(version: str) -> str | None:
    """One that runs and is of this version; a shim on the path may be neither."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    for path in candidates(version):
        done = subprocess.run([path, "-c", code], capture_output=True, text=True)
        if done.returncode == 0 and done.stdout.strip() == version:
            return path
    return None


def environment(version: str, python: str, wheel: Path) -> Path:
    """The version's own interpreter with the package and what its tests need."""
    folder = ROOT / ".venv" / "versions" / version
    own = folder / "bin" / "python"
    if not own.exists():
        subprocess.run([python, "-m", "venv", folder], check=True)
    pip = [own, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--upgrade", "pip>=25.1"], check=True)
    subprocess.run([*pip, wheel], check=True)
    subprocess.run(
        [*pip, "--editable", f"{ROOT}[{EXTRAS}]", "--group", "test", "--group", "bench"], check=True, cwd=ROOT
    )
    return own


def llama_wheel() -> Path:
    """The wheel that pip made of llama-cpp-python for this environment; from its cache, as a rule."""
    folder = ROOT / ".venv" / "wheels"
    if not any(folder.glob("llama_cpp_python-*.whl")):
        pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder]
        subprocess.run([*pip, "llama-cpp-python>=0.3.36"], check=True)
    return max(folder.glob("llama_cpp_python-*.whl"))


def main() -> int:
    """Exit status: 1 if the tests failed on a version."""
    here, outcomes = f"{sys.version_info.major}.{sys.version_info.minor}", {}
    for version in named():
        if version == here:
            continue
        python = interpreter(version)
        if python is None:
            outcomes[version] = "not on this machine"
            continue
        own = environment(version, python, llama_wheel())
        command = [
            own,
            "-m",
            "pytest",
            "-q",
            "-n",
            "2",
            "--dist",
            "loadscope",
            "-p",
            "no:cacheprovider",
            "-m",
            "not smollm2",
        ]
        done = subprocess.run(command, cwd=ROOT)
        outcomes[version] = "passed" if done.returncode == 0 else "FAILED"
    for version, outcome in outcomes.items():
        print(f"Python {version}: {outcome}")
    return 1 if "FAILED" in outcomes.values() else 0


if __name__ == "__main__":
    sys.exit(main())
