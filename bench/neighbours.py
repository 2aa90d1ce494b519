"""Does a record's score depend on who else is scored?

    python bench/neighbours.py                    # some minutes on 2 cores

Default settings: every record scored alone, by a guard just loaded, and in mixed company, by a guard that has scored
others; the largest |Δp| over "unsafe" and all categories. It must be 0.

Then what the default avoids: many records as rows of one call of the same graphs, filled up on the right, against
each record as a call of its own; the largest |Δ probability| of a next token. Also for a graph that was quantized
dynamically, which edgeguard never makes.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
from pathlib import Path

import common
import numpy as np
import onnxruntime

from edgeguard.backend import RuntimeOptions
from edgeguard.builtin import base_model
from edgeguard.guard import Guard, Search

VARIANTS = ("q8_0", "q4_0", "onnx-fp32", "onnx-int8", "onnx-int4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--records", type=int, default=8)
    parser.add_argument("--variants", type=Path, default=None, help="folder to keep the converted models in")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, model = args.variants or Path(temporary), base_model()
        paths = {"the base model": model, **common.make_variants(folder, model, VARIANTS)}
        paths["dynamic int8"] = dynamic(folder, paths["onnx-fp32"])
        print(f"model {model.stem}, {args.records} records")
        print("1. default settings, alone against in company: largest |Δp|")
        for name, path in paths.items():
            print(f"   {name}: {company(path, args.records):.3g}", flush=True)
        print("2. what the default avoids: 16 records as rows of one call, largest |Δ probability| of a next token")
        for name in ("onnx-fp32", "onnx-int8", "onnx-int4", "dynamic int8"):
            print(f"   {name}: {rows_together(paths[name]):.3g}", flush=True)


def company(path: Path, n: int) -> float:
    """The largest |Δp| between records scored alone and among others."""

    def load() -> Guard:
        return Guard.load(
            path, profile="instruct", runtime=RuntimeOptions(context=2048), search=Search(min_grammar_mass=0)
        )

    with load() as guard:
        texts = common.messages(guard.backend.vocabulary, n)
        order = [*texts, *texts]
        random.Random(1).shuffle(order)
        together = {text: guard.score(text) for text in order}
    largest = 0.0
    for text in texts:
        with load() as guard:
            alone = guard.score(text)
        pairs = [(alone.category_scores[c], together[text].category_scores[c]) for c in alone.category_scores]
        largest = max(largest, *(abs(a - b) for a, b in [(alone.unsafe, together[text].unsafe), *pairs]))
    return largest


def dynamic(folder: Path, fp32: Path) -> Path:
    """The fp32 graph with its linear layers quantized dynamically, as onnxruntime's tool does it."""
    from onnx import TensorProto
    from onnxruntime.quantization import quantize_dynamic

    out = folder / "dynamic-int8"
    if not out.exists():
        shutil.copytree(fp32, out, ignore=shutil.ignore_patterns("model.onnx*"))
        options = {"MatMulConstBOnly": True, "DefaultTensorType": TensorProto.FLOAT}
        # one scale a column for the weights: the best it can do; activations have one scale for all
        quantize_dynamic(
            fp32 / "model.onnx", out / "model.onnx", op_types_to_quantize=["MatMul"], per_channel=True,
            extra_options=options,
        )  # fmt: skip
    return out


def rows_together(path: Path, n: int = 16) -> float:
    """Rows in one call against each as a call of its own, the bare graph."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path / "model.onnx"), options, providers=["CPUExecutionProvider"])
    with Guard.load(path, profile="instruct", runtime=RuntimeOptions(context=2048)) as guard:
        texts = common.messages(guard.backend.vocabulary, n, shortest=8)
        rows = [guard.backend.vocabulary.encode(text) for text in texts]

    def ask(group: list[list[int]]) -> np.ndarray:
        longest = max(map(len, group))
        ids = np.zeros((len(group), longest), np.int64)
        for i, row in enumerate(group):
            ids[i, : len(row)] = row
        feed = {
            "input_ids": ids,
            "position_ids": np.broadcast_to(np.arange(longest), ids.shape).copy(),
            "attn_mask": np.tri(longest, dtype=bool)[None, None],
            "positions": np.array([i * longest + len(row) - 1 for i, row in enumerate(group)]),
        }
        for port in session.get_inputs():
            if port.name.startswith("past"):
                feed[port.name] = np.empty((len(group), port.shape[1], 0, port.shape[3]), np.float32)
        logits = session.run(["logits"], feed)[0].astype(np.float64)
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        return p / p.sum(axis=1, keepdims=True)

    return float(np.abs(ask(rows) - np.concatenate([ask([row]) for row in rows])).max())


if __name__ == "__main__":
    main()
