"""Damaged GGUF headers with our checks and without: what llama.cpp alone makes of them.

    python bench/fuzz_gguf.py                       # 1,000 mutants that pass, some minutes
    python bench/fuzz_gguf.py --passing 300 --unchecked   # what llama.cpp alone does with them

Each mutant of a tiny model is opened and evaluated in a process of its own, as edgeguard would. Prints how many
were refused by the checks, refused by llama.cpp, evaluated, and how many ended their process by a signal.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import resource
import signal
import tempfile
from pathlib import Path

import common  # noqa: F401  (it puts tests/ on the path)
from fuzz_models import damaged
from tiny_gguf import write_tiny_llama

from edgeguard.backend import Prefix, RuntimeOptions
from edgeguard.backends.llama_cpp import model as adapter
from edgeguard.errors import ModelError
from edgeguard.formats import gguf


def outcome(path: Path) -> str:
    """Open and evaluate in a child: "evaluated", "refused by llama.cpp", or the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.alarm(30)
        code = 2
        try:
            backend = adapter.LlamaCpp(path, RuntimeOptions(context=256, threads=1))
            backend.vocabulary.encode("safe unsafe \n\nS1 123 é 日本 \U0001f600 the")
            backend.logprobs([Prefix((1, 2, 3), Prefix((4, 5)))])
            code = 0
        except (ModelError, UnicodeError):
            code = 1
        finally:
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return {0: "evaluated", 1: "refused by llama.cpp"}.get(os.WEXITSTATUS(status), "another error")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--passing", type=int, default=1000, help="mutants that pass the checks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--unchecked", action="store_true", help="open all of them, our checks left out")
    args = parser.parse_args()
    draw, counts = random.Random(args.seed), collections.Counter[str]()
    check = gguf.check_model
    if args.unchecked:
        gguf.check_model = lambda header: None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bases = [
            write_tiny_llama(folder / "bpe.gguf"),
            write_tiny_llama(folder / "spm.gguf", vocab="spm"),
            write_tiny_llama(folder / "q8.gguf", ftype="Q8_0", bias={"safe": 1.0}),
        ]
        whole = [(path.read_bytes(), gguf.read_header(path).data_offset) for path in bases]
        passed = 0
        while passed < args.passing:
            path = folder / "mutant.gguf"
            path.write_bytes(damaged(draw, *draw.choice(whole)))
            try:
                header = gguf.read_header(path)
                if not args.unchecked:
                    check(header)
            except ModelError:
                counts["refused by the checks"] += 1
                continue
            passed += 1
            counts[outcome(path)] += 1
    print(f"{passed} mutants passed {'the header reader alone' if args.unchecked else 'the checks'}")
    for kind, n in sorted(counts.items()):
        print(f"  {kind}: {n}")


if __name__ == "__main__":
    main()
