"""Damaged files of every kind that edgeguard reads: does any end the process, hang it, or take its memory?

    python bench/fuzz.py                        # 500 mutants of each kind
    python bench/fuzz.py gguf onnx --n 2000     # of some kinds
    python bench/fuzz.py gguf --only 17 --keep mutants   # one again, kept where it fails

Each mutant is opened as edgeguard would, in a process of its own. Counts by outcome; exit code 1 where one ended by a
signal, showed a traceback, took more than 10 s or 1 GiB, or lost a record.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import fuzz_inputs
import fuzz_models
from fuzzing import Kind, print_count, run

KINDS: Mapping[str, Kind] = {
    "gguf": fuzz_models.GGUF,
    "adapter": fuzz_models.ADAPTER,
    "onnx": fuzz_models.ONNX,
    "tokenizer": fuzz_models.TOKENIZER,
    "template": fuzz_models.TEMPLATE,
    "profile": fuzz_models.PROFILE,
    "calibration": fuzz_models.CALIBRATION,
    "lines": fuzz_inputs.JSON_LINES,  # 20 lines a mutant
    "array": fuzz_inputs.JSON_ARRAY,
    "csv": fuzz_inputs.CSV,
    "parquet": fuzz_inputs.PARQUET,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)} [default: all]")
    parser.add_argument("--n", type=int, default=500, help="mutants of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="+", default=[], metavar="I", help="these mutants alone")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where those that fail are left")
    args = parser.parse_args()
    if unknown := [kind for kind in args.kinds if kind not in KINDS]:
        parser.error(f"{unknown[0]!r} is none of {', '.join(KINDS)}")
    failed = False
    for name in args.kinds or KINDS:
        count = run(name, KINDS[name], n=args.n, seed=args.seed, only=args.only, keep=args.keep)
        print_count(name, count)
        failed |= bool(count.failures)
    sys.exit(failed)


if __name__ == "__main__":
    main()
