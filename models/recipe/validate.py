"""What a run, or the average of several, is worth on labelled rows: the figures that a choice between them rests on.

    python models/recipe/validate.py VAL.npz RUN/adapter.pt [MORE/adapter.pt …] [--base BASE.gguf]

In torch, before export; VAL.npz by `encode.py`. The released figures come from `bench/guard.py`, through edgeguard.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from encoded import read
from export import DEFAULT, find_base, load, soup
from network import Adapter, Network
from train import by_source, figures_of, label_nll, margins


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("runs", type=Path, nargs="+", help="adapter.pt of each run; several are averaged")
    parser.add_argument("--weights", type=float, nargs="+", help="of each run in their average [default: all alike]")
    parser.add_argument("--base", type=Path, help="the base model's GGUF file [default: of the installed package]")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    args = parser.parse_args()
    runs, rows = [load(path) for path in args.runs], read(args.rows)
    pairs = soup([pairs for _, pairs in runs], args.weights or [1 / len(runs)] * len(runs))
    network = Network(args.base or find_base(DEFAULT), Adapter(len(next(iter(pairs.values()))[0]), runs[0][0]))
    adapter = {
        f"{module_of(name)}.{half}": torch.tensor(m)
        for name, ab in pairs.items()
        for half, m in zip("ab", ab, strict=True)
    }
    assert not network.load_state_dict(adapter, strict=False).unexpected_keys
    network.to(args.device)
    margin = margins(network, rows, args.device)
    figures = figures_of(margin, rows.unsafe) | {"label nll": label_nll(network, rows, args.device)}
    print(json.dumps(figures | {"accuracy by source": by_source(margin, rows)}, indent=1))


def module_of(tensor: str) -> str:
    """blk.7.attn_q.weight → blocks.7.attn_q."""
    _, layer, part, _ = tensor.split(".")
    return f"blocks.{layer}.{part}"


if __name__ == "__main__":
    main()
