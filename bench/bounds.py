"""How narrow the certified bounds are, and what they cost in model tokens.

    python bench/bounds.py examples/messages.jsonl
    python bench/bounds.py examples/messages.jsonl texts.jsonl --limit 300 --max-nodes 16 32 64

For each node budget: the share of records whose widest bound is at most the tolerance, the widest bound, and
the tokens evaluated for the answer's tree. The first budget is the default unless others are named.
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

import common

from edgeguard.guard import Guard, Score, Search
from edgeguard.rows.readers import read_records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--limit", type=int, default=300, help="records in all")
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--profile", default="instruct")
    parser.add_argument("--tolerance", type=float, default=Search.tolerance)
    parser.add_argument("--max-nodes", type=int, nargs="+", default=[Search.max_nodes])
    args = parser.parse_args()

    with Guard.load(args.model, profile=args.profile) as guard:
        records = list(islice((r for file in args.files for r in read_records(file)), args.limit))
        print(f"model {guard.name} ({guard.backend.info.quantization}), profile {guard.profile.name}")
        for budget in args.max_nodes:
            search = Guard(guard.backend, guard.profile, search=Search(tolerance=args.tolerance, max_nodes=budget))
            results = list(search.score_many(records))
            scores = [r for r in results if isinstance(r, Score)]
            widest = [max(high - low for low, high in s.bounds.values()) for s in scores]
            narrow = sum(w <= args.tolerance for w in widest) / max(1, len(scores))
            tokens = [s.tokens["answer"] for s in scores]
            print(
                f"--max-nodes {budget}: {100 * narrow:.1f} % of {len(scores)} records within {args.tolerance:g} "
                f"({len(results) - len(scores)} errors); widest bound {common.spread(widest)}; "
                f"answer tokens {common.spread(tokens)}"
            )


if __name__ == "__main__":
    main()
