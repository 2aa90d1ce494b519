"""Do both runtimes compute the same from the same weights?

    python bench/parity.py examples/messages.jsonl TEXTS.jsonl     # about half an hour on 2 cores
    python bench/parity.py --records 20 --model guard.gguf --profile llama-guard-3

F32 against fp32, and Q8_0, Q4_0, Q4_1 blocks carried over to ONNX against the same GGUF, with activations rounded
to 8 bits (as llama.cpp does) and with float ones. For each pair: |Δ log-probability| of the tokens that the grammar
allows, where a verdict or a label is decided, after the very same prefixes; and |Δp| of "unsafe" and of every
category for the three estimators. The search looks into the same number of places for all, so that Δp is the
runtimes' and not the search's. KV memory in F32 on both sides.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import common
import numpy as np

from edgeguard.backend import Prefix, Rows, RuntimeOptions
from edgeguard.builtin import base_model
from edgeguard.estimators import ESTIMATORS
from edgeguard.guard import Guard, Search
from edgeguard.tree import STOP, Tree, explore

PAIRS = (
    ("f32", "onnx-fp32"),
    ("q8_0", "onnx:q8_0"),
    ("q8_0", "onnx:q8_0:float"),
    ("q4_0", "onnx:q4_0"),
    ("q4_0", "onnx:q4_0:float"),
    ("q4_1", "onnx:q4_1"),
)
NODES = 48


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--records", type=int, default=200)
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--profile", default="instruct")
    parser.add_argument("--variants", type=Path, default=None, help="folder to keep the converted models in")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, model = args.variants or Path(temporary), args.model or base_model()
        names = [*dict.fromkeys(name for pair in PAIRS for name in pair)]
        paths = common.make_variants(folder, model, names)
        texts: list[str] = []
        for number, (left, right) in enumerate(PAIRS):
            with load(paths[left], args.profile) as a, load(paths[right], args.profile) as b:
                texts = texts or common.texts_of(args.files, args.records, a.backend.vocabulary)
                if number == 0:
                    print(f"model {model.stem}, profile {a.profile.name}, {len(texts)} texts, {NODES} places each")
                compare(f"{left} GGUF, {right} ", a, b, texts)


def load(path: Path, profile: str) -> Guard:
    kv = "f32" if path.suffix == ".gguf" else None
    return Guard.load(
        path, profile=profile, runtime=RuntimeOptions(context=4096, kv_cache=kv), search=Search(min_grammar_mass=0)
    )


def compare(title: str, a: Guard, b: Guard, texts: Sequence[str]) -> None:
    logs: list[float] = []
    moved: dict[str, list[float]] = {name: [] for name in ESTIMATORS}
    for text in texts:
        assert a.prompt_ids(text) == b.prompt_ids(text), "the two tokenizers differ"
        trees = [look(guard, guard.prompt(text)) for guard in (a, b)]
        logs += moves(*trees)
        for name, estimate in ESTIMATORS.items():
            moved[name].append(float(np.abs(estimate(trees[0]) - estimate(trees[1])).max()))
    print(f"{title.strip()}")
    print(f"   |Δ log p|, nats, {len(logs)} tokens: mean {np.mean(logs):.3g}, at most {max(logs):.3g}")
    for name, values in moved.items():
        print(f"   largest |Δp| of a text, {name}: {common.spread(values)}, at most {max(values):.3g}", flush=True)


def look(guard: Guard, prompt: Prefix) -> Tree:
    def rows(prefixes: Sequence[Prefix]) -> Rows:
        return guard.backend.logprobs(prefixes)

    return explore(rows, guard.answers, prompt, tolerance=0.0, max_rows=NODES)


def moves(a: Tree, b: Tree) -> list[float]:
    """|Δ log p| of the steps that both trees looked at, and that either finds likelier than 1e-4."""
    steps = [
        {tree.answer(i) + ((STOP,) if tree.token[i] == STOP else ()): i for i in range(1, len(tree.logp))}
        for tree in (a, b)
    ]
    found = []
    for path, i in steps[0].items():
        j = steps[1].get(path)
        if j is None:
            continue
        left = a.logp[i] - a.logp[a.parent[i]]
        right = b.logp[j] - b.logp[b.parent[j]]
        if max(left, right) > np.log(1e-4):
            found.append(float(abs(left - right)))
    return found


if __name__ == "__main__":
    main()
