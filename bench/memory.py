"""Peak memory and rate over many records: both must be flat.

    python bench/memory.py                      # 1,000 and 100,000 records, a tiny random model: some minutes

Runs `edgeguard score` as a process on generated records, with a tiny model so that it ends, and prints the peak
memory of each run, their ratio, and the rate over ten parts of the longer run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import common  # noqa: F401  (it puts tests/ on the path)
from tiny_gguf import write_tiny_llama

PROFILE = """
name = "tiny"
version = "1"
description = "three labels for a random model"
taxonomy = "tiny"
taxonomy_version = "1"
min_grammar_mass = 0
[answer]
pattern = '({verdict=safe}|{verdict=unsafe}(\\n{category}((,|, ){category})*)?)\\n?'
[field.verdict]
safe = ["safe"]
unsafe = ["unsafe"]
[prompt]
template = "own"
control = ["<|im_start|>", "<|im_end|>"]
text = "<|im_start|>user\\nIs this safe? {{ messages[-1].content }}<|im_end|>\\n<|im_start|>assistant\\n"
[[category]]
code = "S1"
name = "one"
[[category]]
code = "S10"
name = "ten"
[[category]]
code = "S2"
name = "two"
"""


def score(folder: Path, n: int) -> tuple[float, list[tuple[float, int]]]:
    """(peak MiB, [(seconds, bytes written)]) of one run over n records."""
    records, output = folder / f"{n}.jsonl", folder / f"{n}.out.jsonl"
    with records.open("w") as file:
        for i in range(n):
            file.write(json.dumps({"id": f"record-{i}", "text": f"message {i} of {n}"}) + "\n")
    command = [
        sys.executable, "-m", "edgeguard", "score", str(records), "-m", str(folder / "tiny.gguf"),
        "-p", str(folder / "tiny.toml"), "-o", str(output), "--context", "256", "--max-nodes", "4", "-e", "conditional",
    ]  # fmt: skip
    began, seen = time.perf_counter(), []
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if output.exists():
            seen.append((time.perf_counter() - began, output.stat().st_size))
        if pid:
            break
        time.sleep(0.05)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"edgeguard ended with {process.returncode}: {process.stderr.read().decode()}")
    return usage.ru_maxrss / 1024, seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--records", type=int, nargs=2, default=[1000, 100_000])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tiny_llama(folder / "tiny.gguf", n_ctx=256)
        (folder / "tiny.toml").write_text(PROFILE)
        peaks = []
        for n in args.records:
            peak, seen = score(folder, n)
            peaks.append(peak)
            print(f"{n} records: peak {peak:.1f} MiB, {seen[-1][0]:.1f} s")
        print(f"peak memory, ratio: {peaks[1] / peaks[0]:.3f}")
        written = [(t, size) for t, size in seen if size > 0]
        (first, start), (_, end) = written[0], written[-1]
        marks = [start + (end - start) * k / 10 for k in range(1, 11)]
        times = [first] + [next(t for t, size in written if size >= mark) for mark in marks]
        rates = [args.records[1] / 10 / (b - a) for a, b in pairwise(times)]
        print("rate over ten parts, records/s: " + " ".join(f"{rate:.0f}" for rate in rates))
        print(f"slowest over fastest part: {min(rates) / max(rates):.2f}; last over first: {rates[-1] / rates[0]:.2f}")


if __name__ == "__main__":
    main()
