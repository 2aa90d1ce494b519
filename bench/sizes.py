"""File size, load time and peak memory of every variant, both runtimes side by side.

    python bench/sizes.py                         # a few minutes on 2 cores

Each variant is loaded and scores a few records in a process of its own, several times. Memory is the process's peak,
less what it had before it loaded the model; mapped weight files count as far as they were read. Linux only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import common
import numpy as np

from edgeguard.builtin import base_model

VARIANTS = (
    "f32", "f16", "q8_0", "q4_1", "q4_0", "onnx-fp32", "onnx-fp16", "onnx-int8", "onnx:q4_1", "onnx-int4",
)  # fmt: skip

CHILD = """
import json, sys, time
from pathlib import Path
from edgeguard import Guard, RuntimeOptions, Search

def peak():  # of this program alone: getrusage's number begins with that of the process that started it
    said = Path("/proc/self/status").read_text()
    return int(said.split("VmHWM:")[1].split()[0]) / 1024

base = peak()
began = time.perf_counter()
runtime, search = RuntimeOptions(context=2048), Search(min_grammar_mass=0)
guard = Guard.load(sys.argv[1], profile="instruct", runtime=runtime, search=search)
loaded = time.perf_counter() - began
for n in range(3):
    guard.score(f"How do I get rid of {n} wasps?")
print(json.dumps({"load": loaded, "peak": peak() - base}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--variants", type=Path, default=None, help="folder to keep the converted models in")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        model = base_model()
        paths = common.make_variants(args.variants or Path(temporary), model, VARIANTS)
        print(f"model {model.stem}, {args.runs} runs each; over the F32 GGUF in brackets")
        found = {}
        for name, path in paths.items():
            files = [path] if path.is_file() else sorted(path.glob("model.onnx*"))
            runs = [run(path) for _ in range(args.runs)]
            found[name] = (
                sum(file.stat().st_size for file in files) / 1e6,
                np.array([r["load"] for r in runs]),
                np.array([r["peak"] for r in runs]),
            )
            size, load, peak = found[name]
            base = found["f32"]
            times, memory = np.median(load) / np.median(base[1]), np.median(peak) / np.median(base[2])
            print(f"{name}: {size:.0f} MB (×{size / base[0]:.2f})", end=", ")
            print(f"load {np.median(load):.2f} s ({load.min():.2f} … {load.max():.2f}; ×{times:.2f})", end=", ")
            print(f"peak {np.median(peak):.0f} MiB (×{memory:.2f})", flush=True)


def run(path: Path) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
