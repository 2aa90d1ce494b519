"""What the precision of the KV memory costs: speed, memory, and how far it moves the scores.

    python bench/kv_cache.py                    # a minute on 2 cores
    python bench/kv_cache.py --model guard.gguf --profile llama-guard-3

The same records with F16 and F32 KV in turn; ratios record by record.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import common
import numpy as np

from edgeguard.backend import RuntimeOptions
from edgeguard.guard import Guard, Search


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--profile", default="instruct")
    parser.add_argument("--records", type=int, default=40)
    args = parser.parse_args()
    guards = {
        kv: Guard.load(
            args.model,
            profile=args.profile,
            runtime=RuntimeOptions(kv_cache=kv, context=2048),
            search=Search(min_grammar_mass=0),
        )
        for kv in ("f16", "f32")
    }
    half = guards["f16"]
    texts = common.messages(half.backend.vocabulary, args.records)
    for guard in guards.values():
        guard.score(texts[0])
    seconds: dict[str, list[float]] = {"f16": [], "f32": []}
    moved, margins = [], []
    for text in texts:
        scores = {}
        for kv, guard in guards.items():
            began = time.perf_counter()
            scores[kv] = guard.score(text)
            seconds[kv].append(time.perf_counter() - began)
        a, b = scores["f16"], scores["f32"]
        moved.append(max(abs(a.category_scores[c] - b.category_scores[c]) for c in half.codes))
        moved[-1] = max(moved[-1], abs(a.unsafe - b.unsafe))
        margins.append(abs(a.margin - b.margin))
    print(f"model {half.name} ({half.backend.info.quantization}), {args.records} records")
    print(f"time with F32 over F16: {common.spread(np.array(seconds['f32']) / np.array(seconds['f16']), '×')}")
    print(f"largest |Δp| of a record: {common.spread(moved)}, at most {max(moved):.3g}")
    print(f"|Δ margin|, nats: {common.spread(margins)}, at most {max(margins):.3g}")
    for guard in guards.values():
        guard.close()


if __name__ == "__main__":
    main()
