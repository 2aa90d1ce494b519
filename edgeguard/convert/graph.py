"""GGUF → ONNX: a decoder with explicit keys and values, its output layer at chosen places only. No torch.

Inputs   input_ids, position_ids        int64 (batch, seq)
         attn_mask                      bool (batch or 1, 1, seq, past + seq): what each token may look at
         attn_mask_window               bool, likewise: in the layers of a sliding window, where the model has some
         positions                      int64 (n): flat places b · seq + t
         past_key_values.{i}.key|value  (batch, n_head_kv, past, head)
Outputs  logits                         float32 (n, n_vocab)
         present.{i}.key|value          (batch, n_head_kv, past + seq, head)

The mask is an input so that all branches of an answer fit into one call, each blind to the others. It is
never left to the operator: `is_causal` with a past means different things in different runtimes. A sliding window
is a mask too: which tokens are near follows from positions, and the graph does not know those of the past. The
window's length stands in the metadata (`formats.onnx_graph.WINDOW`).
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
from edgeguard.convert.turns import turns
from edgeguard.convert.weights import Weights
from edgeguard.errors import ModelError
from edgeguard.formats.onnx_graph import WINDOW

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
    if precision == "fp16" and decoder.norms_behind:
        raise ModelError(
            f"{weights.header.path}: what layers of {weights.header.architecture} models add may go beyond what "
            "float16 holds, 65504; convert it with float32 or quantized weights"
        )
    if decoder.window:
        metadata = {**metadata, WINDOW: str(decoder.window.size)}
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
        self.shared: set[str] = set()
        self.kinds: dict[str, int] = {}

    # What there is to name

    def constant(self, name: str, array: npt.NDArray[Any]) -> str:
        self.initializers.append(self.store.tensor(name, array))
        return name

    def once(self, name: str, array: npt.NDArray[Any]) -> str:
        """A constant that several nodes read; it is written for the first of them."""
        if name not in self.shared:
            self.shared.add(self.constant(name, array))
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
        return carry(self.weights.quantized(name, wanted), wanted)

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
        self._angles("", d.frequencies)
        if d.window:
            self._angles("_window", d.window.frequencies)
        stream, embedding = self._embed()
        before, update = stream, None
        for i in range(d.n_layer):
            before, x = self._normed(before, update, f"blk.{i}.attn_norm.weight")
            update = self._norm_behind(self._attention(x, i), f"blk.{i}.post_attention_norm.weight")
            before, x = self._normed(before, update, f"blk.{i}.ffn_norm.weight")
            update = self._norm_behind(self._feed_forward(x, i), f"blk.{i}.post_ffw_norm.weight")
        _, x = self._normed(before, update, "output_norm.weight", last=True)
        self._output(x, embedding)
        self._refuse_unused()

    def _angles(self, layers: str, frequencies: npt.NDArray[np.float64]) -> None:
        cosines, sines = turns(self.decoder.n_ctx, frequencies)
        self.constant(f"cos{layers}", cosines.astype(self.float))
        self.constant(f"sin{layers}", sines.astype(self.float))

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
        if d.window:
            inputs.append(("attn_mask_window", TensorProto.BOOL, ["mask_batch", 1, "seq", "total"]))
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

    def _norm_behind(self, update: str, name: str) -> str:
        """What a layer adds; Gemma 2 and 3 norm it."""
        if not self.decoder.norms_behind:
            return update
        weight = self.vector(name, (self.decoder.width,))
        out = name.removesuffix(".weight")
        return self.node("SimplifiedLayerNormalization", [update, weight], out, axis=-1, epsilon=self.decoder.epsilon)

    def _attention(self, x: str, i: int) -> str:
        d, layer = self.decoder, f"blk.{i}"
        within = "_window" if d.window and d.window.layers[i] else ""
        q, k = (self._rotated(x, i, part, n, within) for part, n in (("q", d.n_head), ("k", d.n_head_kv)))
        v = self.linear(x, f"{layer}.attn_v.weight", d.width, d.n_head_kv * d.head, f"{layer}/v")
        attend = self._attended_capped if d.attention_cap else self._attended
        heads = attend(q, k, v, f"attn_mask{within}", i)
        return self.linear(heads, f"{layer}.attn_output.weight", d.n_head * d.head, d.width, f"{layer}/attention")

    def _rotated(self, x: str, i: int, part: str, n_head: int, within: str) -> str:
        """Queries or keys, (batch, seq, n_head · head)."""
        d, layer = self.decoder, f"blk.{i}"
        rows = self.linear(x, f"{layer}.attn_{part}.weight", d.width, n_head * d.head, f"{layer}/{part}")
        if d.head_norms:
            rows = self._head_norm(rows, f"{layer}.attn_{part}_norm.weight", n_head)
        return self.node(
            "RotaryEmbedding",
            [rows, f"cos{within}", f"sin{within}", "position_ids"],
            f"{layer}/{part}/rotated",
            num_heads=n_head,
            interleaved=int(d.neighbours),
            rotary_embedding_dim=0 if 2 * len(d.frequencies) == d.head else 2 * len(d.frequencies),
        )

    def _attended(self, q: str, k: str, v: str, mask: str, i: int) -> str:
        d = self.decoder
        return self.node(
            "Attention",
            [q, k, v, mask, *(f"past_key_values.{i}.{p}" for p in ("key", "value"))],
            [f"blk.{i}/attended", *(f"present.{i}.{p}" for p in ("key", "value"))],
            q_num_heads=d.n_head,
            kv_num_heads=d.n_head_kv,
            scale=d.attention_scale,
            softmax_precision=1,
        )

    def _attended_capped(self, q: str, k: str, v: str, mask: str, i: int) -> str:
        """The same with capped logits, in plain operators.

        Attention's own `softcap` caps the mask as well in ONNX Runtime 1.23, and what must not be seen is seen.
        Heads that share a key are one matrix: (batch, n_head_kv, heads · seq, head).
        """
        d, at = self.decoder, f"blk.{i}"
        shared = d.n_head // d.n_head_kv
        keys, values = (self._carried(rows, i, part) for rows, part in ((k, "key"), (v, "value")))
        q = self._shaped(q, f"{at}/q/grouped", "q_heads", [0, 0, d.n_head_kv, shared, d.head])
        q = self.node("Transpose", [q], f"{at}/q/heads", perm=[0, 2, 3, 1, 4])
        q = self._shaped(q, f"{at}/q/rows", "q_rows", [0, 0, -1, d.head])
        q = self._scaled(q, d.attention_scale / d.attention_cap)
        turned = self.node("Transpose", [keys], f"{at}/keys/turned", perm=[0, 1, 3, 2])
        logits = self.node("Tanh", [self.node("MatMul", [q, turned], f"{at}/logits")], f"{at}/tanh")
        logits = self._scaled(logits, d.attention_cap)
        logits = self._shaped(logits, f"{at}/logits/heads", "logit_heads", [0, d.n_head, -1, 0])
        never = self.once("never", np.array(-np.inf, self.float))
        seen = self.node("Where", [mask, logits, never], f"{at}/logits/seen")
        shares = self.node("Softmax", [seen], f"{at}/shares", axis=-1)
        shares = self._shaped(shares, f"{at}/shares/rows", "share_rows", [0, d.n_head_kv, -1, 0])
        out = self.node("MatMul", [shares, values], f"{at}/attended/rows")
        out = self._shaped(out, f"{at}/attended/heads", "out_heads", [0, 0, shared, -1, d.head])
        out = self.node("Transpose", [out], f"{at}/attended/tokens", perm=[0, 3, 1, 2, 4])
        return self._shaped(out, f"{at}/attended", "out_rows", [0, 0, -1])

    def _carried(self, rows: str, i: int, part: str) -> str:
        """Keys or values of the past and the new tokens, (batch, n_head_kv, past + seq, head)."""
        d = self.decoder
        heads = self._shaped(rows, f"blk.{i}/{part}/heads", "kv_heads", [0, 0, d.n_head_kv, d.head])
        new = self.node("Transpose", [heads], f"blk.{i}/{part}/new", perm=[0, 2, 1, 3])
        return self.node("Concat", [f"past_key_values.{i}.{part}", new], f"present.{i}.{part}", axis=2)

    def _shaped(self, x: str, output: str, name: str, shape: list[int]) -> str:
        """Another shape. `name` is that of the shape, which all layers share."""
        return self.node("Reshape", [x, self.once(name, np.array(shape, np.int64))], output)

    def _head_norm(self, rows: str, name: str, n_head: int) -> str:
        """Qwen 3 and Gemma 3 norm each head before it is rotated."""
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
        both = self.node("Mul", [self._activated(gate, layer), up], f"{layer}/gated")
        return self.linear(both, f"{layer}.ffn_down.weight", inner, width, f"{layer}/feed_forward")

    def _activated(self, gate: str, layer: str) -> str:
        if self.decoder.gelu:
            return self.node("Gelu", [gate], f"{layer}/gelu", approximate="tanh")
        return self.node("Mul", [gate, self.node("Sigmoid", [gate], f"{layer}/sigmoid")], f"{layer}/silu")

    def _output(self, x: str, embedding: tuple[list[str], Blocks | None]) -> None:
        d = self.decoder
        flat = self.constant("flat_shape", np.array([-1, d.width], np.int64))
        rows = self.node("Gather", [self.node("Reshape", [x, flat], "flat"), "positions"], "chosen")
        if _OUTPUT in self.weights and not d.tied:
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
        if d.logit_cap:
            small = self._scaled(logits, 1 / d.logit_cap)
            logits = self._scaled(self.node("Tanh", [small], "scores/tanh"), d.logit_cap)
        self.node("Cast", [logits], "logits", to=1)

    def _refuse_unused(self) -> None:
        known = {"rope_freqs.weight"} if self.decoder.rope_factors else set()
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
