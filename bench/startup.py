"""From the command to the first row of one line: whole, against an earlier commit, and by part.

    python bench/startup.py --before 712bd52 > bench/results/startup.txt

Whole: `edgeguard score` of one short text in a fresh process, the default guard as a user gets it, this tree and the
earlier commit in turn. Parts: in a fresh process of this tree, what each call takes; they need not add up to the whole,
and the hash runs beside the loading. A file's hash is known from the run before ("known") or not ("first").
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import spread

ROOT = Path(__file__).resolve().parents[1]
TEXT = {"text": "How do I kill a Python process that hangs?"}
PARTS = """
import json, sys, time
began = time.perf_counter()
import edgeguard.cli
parts = {"import of the command line": time.perf_counter() - began}
from edgeguard import Guard
from edgeguard.formats import gguf, hashes

def timed(part, owner, name):
    original = getattr(owner, name)
    def wrapped(*arguments, **options):
        began = time.perf_counter()
        try:
            return original(*arguments, **options)
        finally:
            parts[part] = parts.get(part, 0.0) + time.perf_counter() - began
    setattr(owner, name, wrapped)

timed("GGUF header, read", gguf, "read_header")
timed("GGUF header, checked", gguf, "check_model")
began = time.perf_counter()
from edgeguard.backends.llama_cpp import model as llama
parts["import of llama_cpp"] = time.perf_counter() - began
timed("weights, mapped", llama.LlamaCpp, "_load")
timed("context", llama.LlamaCpp, "_context")
timed("vocabulary, read", llama, "_read_vocabulary")
timed("hash, beside the rest", hashes, "known_sha256")
from edgeguard import answers
timed("grammar over the vocabulary", answers.Answers, "__init__")
began = time.perf_counter()
guard = Guard.load("edgeguard-135m:q8_0")
parts["Guard.load, all of it"] = time.perf_counter() - began
for name in ("first record", "second record"):
    began = time.perf_counter()
    guard.score(sys.argv[1])
    parts[name] = time.perf_counter() - began
print(json.dumps(parts))
"""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", metavar="COMMIT", help="an earlier commit to compare with [default: none]")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trees = {"this tree": ROOT}
        if args.before:
            trees[f"commit {args.before}"] = checkout(args.before, Path(folder))
        text = Path(folder) / "one.jsonl"
        text.write_text(json.dumps(TEXT) + "\n")
        whole: dict[str, list[float]] = {name: [] for name in trees}
        for i in range(args.rounds + 1):  # the first fills caches of modules and hashes
            for name, tree in trees.items():
                seconds = timed(tree, ["-m", "edgeguard", "score", str(text)])
                if i:
                    whole[name].append(seconds)
        print("`edgeguard score` of one line, seconds: median (10 % … 90 %)\n")
        for name, found in whole.items():
            print(f"{name:<28} {spread(found)}")
        if args.before:
            ours, theirs = whole.values()
            print(f"{'over the earlier':<28} {spread([a / b for a, b in zip(ours, theirs, strict=True)])}")
    print("\nBy part, seconds\n")
    runs = [by_part() for _ in range(args.rounds)]
    for part in runs[0]:
        print(f"{part:<28} {spread([run[part] for run in runs])}")


def checkout(commit: str, folder: Path) -> Path:
    """An earlier commit's files. It runs with this interpreter's packages."""
    tree = folder / "before"
    tree.mkdir()
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x"], cwd=tree, input=archive, check=True)
    return tree


def environment(tree: Path) -> dict[str, str]:
    """Of a process that runs this tree, and keeps its compiled modules as a user's does."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPATH": str(tree)}


def timed(tree: Path, command: list[str]) -> float:
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *command], cwd=tree, env=environment(tree), capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(done.stderr)
    return seconds


def by_part() -> dict[str, float]:
    command = [sys.executable, "-c", PARTS, TEXT["text"]]
    done = subprocess.run(command, cwd=ROOT, env=environment(ROOT), capture_output=True, text=True, check=True)
    parts: dict[str, float] = json.loads(done.stdout)
    return parts


if __name__ == "__main__":
    main()
