"""An importance matrix of a model on a guard's own prompts, as llama-imatrix computes one of plain text.

    python bench/importance.py MODEL.F32.gguf TEXTS.jsonl imatrix.dat --profile llama-guard-3 --records 200

Mean squares of each matrix's inputs over all tokens of the records' prompts. No label is read. llama-cpp-python comes
without llama-imatrix, so the model is run as an ONNX graph that sums the squares itself; it is made beside the output
and removed. The file is of llama-imatrix's older format, which it and `edgeguard convert --imatrix` read.
"""

from __future__ import annotations

import argparse
import shutil
import struct
import sys
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path

import numpy as np

from edgeguard.backend import RuntimeOptions
from edgeguard.convert import Options, convert
from edgeguard.guard import Guard
from edgeguard.rows.readers import read_records
from edgeguard.rows.record import Record


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="an F32 or F16 GGUF")
    parser.add_argument("texts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--profile", required=True)
    parser.add_argument("--records", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    importance(args.model, args.texts, args.out, profile=args.profile, records=args.records, threads=args.threads)


def importance(model: Path, texts: Path, out: Path, *, profile: str, records: int, threads: int = 1) -> Path:
    """Write the importance matrix of the first records of `texts` to `out`, if it is not there."""
    if out.exists():
        return out
    prompts = list(islice(prompts_of(model, texts, profile), records))
    graph = out.with_name(f"{out.stem}-graph")
    try:
        convert(model, graph, to="onnx-fp32", options=Options(overwrite=True))
        sums, n = sums_of_squares(graph, prompts, threads)
    finally:
        shutil.rmtree(graph, ignore_errors=True)
    write_dat(out, {name: values / n for name, values in sums.items()}, texts.name)
    return out


def prompts_of(model: Path, texts: Path, profile: str) -> Iterable[tuple[int, ...]]:
    """Token ids of the records' prompts, as the guard asks them; records that cannot be read are left out."""
    with Guard.load(model, profile=profile, runtime=RuntimeOptions(threads=1), calibration=False) as guard:
        for record in read_records(texts):
            if isinstance(record, Record):
                yield guard.prompt_ids(record, guard.questions[0])


def sums_of_squares(
    folder: Path, prompts: Iterable[tuple[int, ...]], threads: int
) -> tuple[dict[str, np.ndarray], int]:
    """Matrix → (cols,) sums of the squares of its inputs, and over how many tokens."""
    import onnx
    import onnxruntime

    model = onnx.load_model(folder / "model.onnx", load_external_data=False)
    graph, inputs_of = model.graph, {}
    constants = {one.name for one in graph.initializer}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in constants and node.input[1].startswith("blk."):
            inputs_of[node.input[1]] = node.input[0]
    axes = onnx.numpy_helper.from_array(np.array([0, 1]), "importance/axes")
    graph.initializer.append(axes)
    summed = {source: f"importance/{source}" for source in set(inputs_of.values())}
    for source, name in summed.items():
        graph.node.append(onnx.helper.make_node("ReduceSumSquare", [source, axes.name], [name], keepdims=0))
        graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    path = folder / "importance.onnx"
    path.write_bytes(model.SerializeToString())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names, found, n = list(summed.values()), dict.fromkeys(summed, 0.0), 0
    for i, prompt in enumerate(prompts, 1):
        given = feeds(session, prompt)
        for source, value in zip(summed, session.run(names, given), strict=True):
            found[source] = found[source] + value.astype(np.float64)
        n += len(prompt)
        if i % 50 == 0:
            print(f"importance: {i} records", file=sys.stderr)
    return {matrix: found[source] for matrix, source in inputs_of.items()}, n


def feeds(session: object, prompt: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The graph's inputs for one prompt with nothing before it. Sliding windows are taken to hold all of it."""
    n = len(prompt)
    mask = np.tril(np.ones((n, n), dtype=bool))[None, None]
    given = {
        "input_ids": np.array([prompt]),
        "position_ids": np.arange(n)[None],
        "positions": np.array([n - 1]),
    }
    for one in session.get_inputs():
        if one.name.startswith("attn_mask"):
            given[one.name] = mask
        elif one.name.startswith("past_key_values."):
            _, heads, _, head = one.shape
            given[one.name] = np.zeros((1, heads, 0, head), np.float32)
    return given


def write_dat(path: Path, arrays: Mapping[str, np.ndarray], text: str) -> None:
    """The older format: for each matrix its name, one call, and the mean squares."""
    data = struct.pack("<i", len(arrays))
    for name, values in arrays.items():
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 1, len(values))
        data += values.astype("<f4").tobytes()
    path.write_bytes(data + struct.pack("<ii", 1, len(text.encode())) + text.encode())


if __name__ == "__main__":
    main()
