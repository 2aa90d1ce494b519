"""GGUF → ONNX: a decoder with explicit keys and values, its output layer at chosen places only. No torch.

Inputs   input_ids, position_ids        int64 (batch, seq)
         attn_mask                      bool (batch or 1, 1, seq, past + seq): what each token may look at
         positions                      int64 (n): flat places b · seq + t
         past_key_values.{i}.key|value  (batch, n_head_kv, past, head)
Outputs  logits                         float32 (n, n_vocab)
         present.{i}.key|value          (batch, n_head_kv, past + seq, head)

The mask is an input so that all branches of an answer fit into one call, each blind to the others. It is
never left to the operator: `is_causal` with a past means different things in different runtimes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgeguard.convert.blocks import ACCURACY, CARRIED, SIZE, Activations, Blocks, carry
from edgeguard.convert.decoder import Decoder, read_decoder
from edgeguard.convert.store import Store
from edgeguard.convert.weights import Weights, gguf_library
from edgeguard.errors import ModelError

Precision = Literal["source", "fp32", "fp16", "int8", "int4"]

OPSET = 23  # the first with Attention and RotaryEmbedding
IR_VERSION = 11
_MS = "com.microsoft"

_HEAD = "token_embd.weight"
_OUTPUT = "output.weight"


def write_graph(
    weights: Weights,
    folder: Path,
    *,
    precision: Precision,
    activations: Activations,
    metadata: Mapping[str, str],
) -> dict[str, int]:
    """Write model.onnx and model.onnx.data into `folder`; returns how many matrices have which type.

    precision    "source" carries Q4_0, Q4_1 and Q8_0 blocks over and makes the rest float32; "int8" and
                 "int4" are ggml's Q8_0 and Q4_0, the embedding and the output layer Q8_0
    activations  what quantized matrices are multiplied with: rounded to 8 bits, or as they are

    Raises ModelError for an architecture, a key or a tensor that is not known, or one that is missing.
    """
    decoder = read_decoder(weights)
    with Store(folder / "model.onnx.data") as store:
        graph = _Graph(weights, decoder, store, precision, activations)
        graph.build()
        graph.save(folder / "model.onnx", metadata)
    return graph.kinds


class _Graph:
    """The nodes, in the order in which they run."""

    def __init__(
        self, weights: Weights, decoder: Decoder, store: Store, precision: Precision, activations: Activations
    ) -> None:
        self.weights, self.decoder, self.store = weights, decoder, store
        self.precision, self.activations = precision, activations
        self.float = np.dtype(np.float16 if precision == "fp16" else np.float32)
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.used: set[str] = set()
        self.kinds: dict[str, int] = {}

    # What there is to name

    def constant(self, name: str, array: npt.NDArray[Any]) -> str:
        self.initializers.append(self.store.tensor(name, array))
        return name

    def node(self, op: str, inputs: list[str], output: str | list[str], domain: str = "", **attributes: Any) -> str:
        from onnx import helper

        outputs = [output] if isinstance(output, str) else output
        self.nodes.append(helper.make_node(op, inputs, outputs, name=f"{outputs[0]}/{op}", domain=domain, **attributes))
        return outputs[0]

    def vector(self, name: str, shape: tuple[int, ...]) -> str:
        array = self.weights.float32(name)
        self._expect(name, array.shape, shape)
        self.used.add(name)
        return self.constant(name, array.astype(self.float))

    def _expect(self, name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
        if found != expected:
            raise ModelError(
                f"{self.weights.header.path}: tensor {name} has shape {found}, {expected} is needed; "
                "convert the model again"
            )

    # Matrices

    def blocks(self, name: str) -> Blocks | None:
        """A matrix's quantized blocks; None where it is to be of floats."""
        info = self.weights.info(name)
        if self.precision in ("fp32", "fp16") or info.shape[0] % SIZE:
            return None
        if self.precision == "source":
            whole = self.weights.changed(name) or info.type_name not in CARRIED
            return None if whole else carry(self.weights.blocks(name), info.type_name)
        wanted = "Q4_0" if self.precision == "int4" and name not in (_HEAD, _OUTPUT) else "Q8_0"
        if info.type_name == wanted and not self.weights.changed(name):
            return carry(self.weights.blocks(name), wanted)
        return carry(_quantized(self.weights.float32(name), wanted), wanted)

    def count(self, name: str, blocks: Blocks | None) -> None:
        kind = str(self.float) if blocks is None else f"int{blocks.bits}"
        self.kinds[kind] = self.kinds.get(kind, 0) + 1
        self.used.add(name)

    def linear(self, x: str, name: str, n_in: int, n_out: int, output: str) -> str:
        """x · Wᵀ, and its bias where the model has one."""
        self._expect(name, self.weights.info(name).shape[::-1], (n_out, n_in))
        bias = name.removesuffix("weight") + "bias"
        has_bias = bias in self.weights
        product = f"{output}/product" if has_bias else output
        blocks = self.blocks(name)
        self.count(name, blocks)
        if blocks is None:
            matrix = np.ascontiguousarray(self.weights.float32(name).T).astype(self.float)
            self.node("MatMul", [x, self.constant(name, matrix)], product)
        else:
            self.product(x, self.quantized(name, blocks), blocks, product)
        if has_bias:
            self.node("Add", [product, self.vector(bias, (n_out,))], output)
        return output

    def quantized(self, name: str, blocks: Blocks) -> list[str]:
        names = [self.constant(name, blocks.packed), self.constant(f"{name}/scale", blocks.scale)]
        return names if blocks.zero is None else [*names, self.constant(f"{name}/zero", blocks.zero)]

    def product(self, x: str, names: list[str], blocks: Blocks, output: str) -> str:
        n, n_blocks, _ = blocks.packed.shape
        return self.node(
            "MatMulNBits",
            [x, *names],
            output,
            _MS,
            K=n_blocks * SIZE,
            N=n,
            bits=blocks.bits,
            block_size=SIZE,
            accuracy_level=ACCURACY[self.activations],
        )

    # Layers

    def build(self) -> None:
        d = self.decoder
        self._interface()
        angles = np.outer(np.arange(d.n_ctx), d.frequencies)
        self.constant("cos", np.cos(angles).astype(self.float))
        self.constant("sin", np.sin(angles).astype(self.float))
        stream, embedding = self._embed()
        before, update = stream, None
        for i in range(d.n_layer):
            before, x = self._normed(before, update, f"blk.{i}.attn_norm.weight")
            before, x = self._normed(before, self._attention(x, i), f"blk.{i}.ffn_norm.weight")
            update = self._feed_forward(x, i)
        _, x = self._normed(before, update, "output_norm.weight", last=True)
        self._output(x, embedding)
        self._refuse_unused()

    def _interface(self) -> None:
        from onnx import TensorProto, helper

        d = self.decoder
        kv = helper.np_dtype_to_tensor_dtype(self.float)
        inputs: list[tuple[str, int, list[str | int | None]]] = [
            ("input_ids", TensorProto.INT64, ["batch", "seq"]),
            ("position_ids", TensorProto.INT64, ["batch", "seq"]),
            ("attn_mask", TensorProto.BOOL, ["mask_batch", 1, "seq", "total"]),
            ("positions", TensorProto.INT64, ["n"]),
        ]
        self.inputs += [helper.make_tensor_value_info(*each) for each in inputs]
        self.outputs.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", d.n_vocab]))
        for i in range(d.n_layer):
            for part in ("key", "value"):
                past, present = f"past_key_values.{i}.{part}", f"present.{i}.{part}"
                self.inputs.append(helper.make_tensor_value_info(past, kv, ["batch", d.n_head_kv, "past", d.head]))
                self.outputs.append(helper.make_tensor_value_info(present, kv, ["batch", d.n_head_kv, "total", d.head]))

    def _embed(self) -> tuple[str, tuple[list[str], Blocks | None]]:
        """The embedded tokens, and the embedding's arrays, which may be the output layer's too."""
        d, name = self.decoder, _HEAD
        self._expect(name, self.weights.info(name).shape[::-1], (d.n_vocab, d.width))
        blocks = self.blocks(name)
        self.count(name, blocks)
        if blocks is None:
            names = [self.constant(name, self.weights.float32(name).astype(self.float))]
            out = self.node("Gather", [names[0], "input_ids"], "embedded")
        else:
            names = self.quantized(name, blocks)
            out = self._dequantized_rows(names, blocks)
        return self._scaled(out, d.embedding_scale), (names, blocks)

    def _dequantized_rows(self, names: list[str], blocks: Blocks) -> str:
        """The rows of the tokens alone, in plain operators: the output layer reads the same bytes."""
        rows = self.node("Gather", [names[0], "input_ids"], "embedded/packed")  # (batch, seq, blocks, bytes)
        if blocks.bits == 4:
            low = self.node("BitwiseAnd", [rows, self.constant("fifteen", np.array(15, np.uint8))], "embedded/low")
            four = self.constant("four", np.array(4, np.uint8))
            high = self.node("BitShift", [rows, four], "embedded/high", direction="RIGHT")
            last = self.constant("last", np.array([4], np.int64))
            pair = [self.node("Unsqueeze", [half, last], f"{half}/pair") for half in (low, high)]
            both = self.node("Concat", pair, "embedded/both", axis=4)
            shape = self.constant("in_blocks", np.array([0, 0, 0, SIZE], np.int64))
            rows = self.node("Reshape", [both, shape], "embedded/q")
        q = self.node("Cast", [rows], "embedded/float", to=1)
        if blocks.zero is None:
            zero = self.constant("embedded/middle", np.array(1 << (blocks.bits - 1), np.float32))
        else:
            zero = self._block_values(names[2], "zero")
        centred = self.node("Sub", [q, zero], "embedded/centred")
        w = self.node("Mul", [centred, self._block_values(names[1], "scale")], "embedded/blocks")
        flat = self.constant("in_rows", np.array([0, 0, -1], np.int64))
        return self.node("Reshape", [w, flat], "embedded")

    def _block_values(self, name: str, what: str) -> str:
        """One number a block, for the tokens: (batch, seq, blocks, 1)."""
        rows = self.node("Gather", [name, "input_ids"], f"embedded/{what}_rows")
        axis = self.constant(f"embedded/{what}_axis", np.array([-1], np.int64))
        return self.node("Unsqueeze", [rows, axis], f"embedded/{what}")

    def _scaled(self, x: str, factor: float) -> str:
        if factor == 1.0:
            return x
        return self.node("Mul", [x, self.constant(f"{x}/factor", np.array(factor, self.float))], f"{x}/scaled")

    def _normed(self, stream: str, update: str | None, name: str, *, last: bool = False) -> tuple[str, str]:
        """The residual stream with the update added, and its RMS norm: (stream, normed)."""
        weight, epsilon = self.vector(name, (self.decoder.width,)), self.decoder.epsilon
        out = name.removesuffix(".weight")
        if update is None:
            return stream, self.node("SimplifiedLayerNormalization", [stream, weight], out, axis=-1, epsilon=epsilon)
        outputs = [out] if last else [out, "", "", f"{out}/stream"]
        inputs = [stream, self._scaled(update, self.decoder.residual_scale), weight]
        self.node("SkipSimplifiedLayerNormalization", inputs, outputs, _MS, epsilon=epsilon)
        return f"{out}/stream", out

    def _attention(self, x: str, i: int) -> str:
        d, layer = self.decoder, f"blk.{i}"
        parts = {}
        for part, n in (("q", d.n_head), ("k", d.n_head_kv)):
            rows = self.linear(x, f"{layer}.attn_{part}.weight", d.width, n * d.head, f"{layer}/{part}")
            rows = self._head_norm(rows, f"{layer}.attn_{part}_norm.weight", n)
            parts[part] = self.node(
                "RotaryEmbedding",
                [rows, "cos", "sin", "position_ids"],
                f"{layer}/{part}/rotated",
                num_heads=n,
                interleaved=int(d.neighbours),
                rotary_embedding_dim=0 if 2 * len(d.frequencies) == d.head else 2 * len(d.frequencies),
            )
        v = self.linear(x, f"{layer}.attn_v.weight", d.width, d.n_head_kv * d.head, f"{layer}/v")
        self.node(
            "Attention",
            [parts["q"], parts["k"], v, "attn_mask", *(f"past_key_values.{i}.{p}" for p in ("key", "value"))],
            [f"{layer}/attended", *(f"present.{i}.{p}" for p in ("key", "value"))],
            q_num_heads=d.n_head,
            kv_num_heads=d.n_head_kv,
            scale=d.attention_scale,
            softmax_precision=1,
        )
        return self.linear(
            f"{layer}/attended", f"{layer}.attn_output.weight", d.n_head * d.head, d.width, f"{layer}/attention"
        )

    def _head_norm(self, rows: str, name: str, n_head: int) -> str:
        """Qwen 3 norms each head before it is rotated."""
        if name not in self.weights:
            return rows
        shape = self.constant(f"{rows}/heads_shape", np.array([0, 0, n_head, self.decoder.head], np.int64))
        heads = self.node("Reshape", [rows, shape], f"{rows}/heads")
        weight = self.vector(name, (self.decoder.head,))
        normed = self.node(
            "SimplifiedLayerNormalization", [heads, weight], f"{rows}/norm", axis=-1, epsilon=self.decoder.epsilon
        )
        flat = self.constant(f"{rows}/flat_shape", np.array([0, 0, -1], np.int64))
        return self.node("Reshape", [normed, flat], f"{rows}/normed")

    def _feed_forward(self, x: str, i: int) -> str:
        layer, width = f"blk.{i}", self.decoder.width
        inner = self.weights.info(f"{layer}.ffn_up.weight").shape[1]
        gate = self.linear(x, f"{layer}.ffn_gate.weight", width, inner, f"{layer}/gate")
        up = self.linear(x, f"{layer}.ffn_up.weight", width, inner, f"{layer}/up")
        open_ = self.node("Mul", [gate, self.node("Sigmoid", [gate], f"{layer}/sigmoid")], f"{layer}/silu")
        both = self.node("Mul", [open_, up], f"{layer}/gated")
        return self.linear(both, f"{layer}.ffn_down.weight", inner, width, f"{layer}/feed_forward")

    def _output(self, x: str, embedding: tuple[list[str], Blocks | None]) -> None:
        d = self.decoder
        flat = self.constant("flat_shape", np.array([-1, d.width], np.int64))
        rows = self.node("Gather", [self.node("Reshape", [x, flat], "flat"), "positions"], "chosen")
        if _OUTPUT in self.weights:
            logits = self.linear(rows, _OUTPUT, d.width, d.n_vocab, "scores")
        else:
            names, blocks = embedding
            if blocks is None:
                logits = self.node("Gemm", [rows, *names], "scores", transB=1)
            else:
                logits = self.product(rows, names, blocks, "scores")
            if "output.bias" in self.weights:
                logits = self.node("Add", [logits, self.vector("output.bias", (d.n_vocab,))], "scores/biased")
        logits = self._scaled(logits, d.logit_scale)
        self.node("Cast", [logits], "logits", to=1)

    def _refuse_unused(self) -> None:
        known = {"rope_freqs.weight"}
        unused = [t.name for t in self.weights.header.tensors if t.name not in self.used | known]
        if unused:
            raise ModelError(
                f"{self.weights.header.path}: tensor {unused[0]} is not part of a "
                f"{self.weights.header.architecture} model as the converter to ONNX knows it; use the GGUF file"
            )

    def save(self, path: Path, metadata: Mapping[str, str]) -> None:
        from onnx import helper

        graph = helper.make_graph(self.nodes, "decoder", self.inputs, self.outputs, self.initializers)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(_MS, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="edgeguard")
        helper.set_model_props(model, dict(sorted(metadata.items())))
        path.write_bytes(model.SerializeToString(deterministic=True))


def _quantized(matrix: npt.NDArray[np.float32], type_name: str) -> npt.NDArray[np.uint8]:
    """(n, k) floats → (n, bytes a row) of ggml's blocks, as llama.cpp quantizes without an importance matrix."""
    library = gguf_library()
    raw: npt.NDArray[np.uint8] = library.quants.quantize(matrix, library.GGMLQuantizationType[type_name])
    return raw
