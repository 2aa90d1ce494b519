"""What a run, or the average of several, is worth on labelled rows: the figures that a choice between them rests on.

    python models/recipe/validate.py DATA/val.jsonl RUN/adapter.pt [MORE/adapter.pt …]

In torch, before export. The released figures come from `bench/guard.py`, through edgeguard.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from export import find_base, halves, soup
from network import Network
from train import VERDICTS, Settings, encode, open_prompter, read_rows, validate


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("runs", type=Path, nargs="+", help="adapter.pt of each run; several are averaged")
    args = parser.parse_args()
    saved = [torch.load(path, weights_only=True) for path in args.runs]
    settings, prompter = Settings(**saved[0]["settings"]), open_prompter()
    rows = [encode(row, prompter, settings) for row in read_rows(args.rows)]
    for word in ("safe", "unsafe"):
        VERDICTS[word] = next(r for r in rows if r.unsafe == (word == "unsafe")).targets[0]
    network = Network(find_base(), rank=settings.rank, alpha=settings.alpha)
    pairs = soup([halves(run["adapter"]) for run in saved])
    adapter = {
        f"{module_of(name)}.{half}": torch.tensor(m)
        for name, ab in pairs.items()
        for half, m in zip("ab", ab, strict=True)
    }
    assert not network.load_state_dict(adapter, strict=False).unexpected_keys
    print(json.dumps(validate(network, rows), indent=1))


def module_of(tensor: str) -> str:
    """blk.7.attn_q.weight → blocks.7.attn_q."""
    _, layer, part, _ = tensor.split(".")
    return f"blocks.{layer}.{part}"


if __name__ == "__main__":
    main()
