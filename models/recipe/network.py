"""The base model in torch, from the very weights of its GGUF file, with LoRA on every linear layer.

Weights stay in the file's layout (a Llama's queries and keys rotate neighbours, a Qwen2's one of each half), so the
adapter that is trained here is the adapter that llama.cpp applies: no permutation in between.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812  # the name everyone gives it

from edgeguard.convert.decoder import Decoder, read_decoder
from edgeguard.convert.weights import Weights
from edgeguard.formats.gguf import read_header

LINEARS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
WRITTEN_OUT = 256  # tokens: on a CPU attention of shorter rows is faster written out, of longer ones in torch's kernel


class LoraLinear(torch.nn.Module):
    """y = W x + b + (alpha / rank) · B A x, with W and b frozen. A is (rank, cols), B is (rows, rank).

    dropout  share of the elements of x that A does not see in training
    """

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, rank: int, alpha: float, dropout: float
    ) -> None:
        super().__init__()
        rows, cols = weight.shape
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.dropout = dropout
        self.a = torch.nn.Parameter(torch.randn(rank, cols) / math.sqrt(cols))
        self.b = torch.nn.Parameter(torch.zeros(rows, rank))  # the change is zero to begin with
        self.factor = alpha / rank

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, cols) → (n, rows), in the dtype of x."""
        low = F.linear(F.dropout(x, self.dropout, self.training), self.a.to(x.dtype))
        return F.linear(x, self.weight, self.bias) + F.linear(low, (self.b * self.factor).to(x.dtype))


@dataclass(frozen=True)
class Adapter:
    """Of every linear layer; LoraLinear says what each is."""

    rank: int
    alpha: float
    dropout: float = 0.0


class Block(torch.nn.Module):
    """One layer of the decoder."""

    def __init__(self, decoder: Decoder, weights: Weights, layer: int, adapter: Adapter, dtype: torch.dtype) -> None:
        super().__init__()
        self.n_head, self.n_head_kv, self.head = decoder.n_head, decoder.n_head_kv, decoder.head
        self.epsilon, self.neighbours = decoder.epsilon, decoder.neighbours
        for name in LINEARS:
            at = f"blk.{layer}.{name}"
            bias = _tensor(weights, f"{at}.bias", dtype) if f"{at}.bias" in weights else None
            weight = _tensor(weights, f"{at}.weight", dtype)
            self.add_module(name, LoraLinear(weight, bias, adapter.rank, adapter.alpha, adapter.dropout))
        for name in ("attn_norm", "ffn_norm"):
            self.register_buffer(name, _tensor(weights, f"blk.{layer}.{name}.weight", dtype))

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """(batch, time, width) → the same."""
        n, t, _ = x.shape
        h = _norm(x, self.attn_norm, self.epsilon)
        q = self.attn_q(h).view(n, t, self.n_head, self.head).transpose(1, 2)
        k = self.attn_k(h).view(n, t, self.n_head_kv, self.head).transpose(1, 2)
        v = self.attn_v(h).view(n, t, self.n_head_kv, self.head).transpose(1, 2)
        rotate = _rotate_neighbours if self.neighbours else _rotate_halves
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        written_out = x.device.type == "cpu" and t < WRITTEN_OUT
        out = _attention(q, k, v) if written_out else _fused_attention(q, k, v)
        x = x + self.attn_output(out.transpose(1, 2).reshape(n, t, -1))
        h = _norm(x, self.ffn_norm, self.epsilon)
        return x + self.ffn_down(F.silu(self.ffn_gate(h)) * self.ffn_up(h))


class Network(torch.nn.Module):
    """A Llama or a Qwen2. Only the adapter's matrices are parameters."""

    def __init__(self, base: Path, adapter: Adapter, *, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        weights = Weights(read_header(base))
        decoder = read_decoder(weights)
        self.epsilon = decoder.epsilon
        self.blocks = torch.nn.ModuleList(
            Block(decoder, weights, layer, adapter, dtype) for layer in range(decoder.n_layer)
        )
        self.register_buffer("embedding", _tensor(weights, "token_embd.weight", dtype))
        output = "output.weight" if "output.weight" in weights else "token_embd.weight"
        self.register_buffer("output", _tensor(weights, output, dtype))
        self.register_buffer("output_norm", _tensor(weights, "output_norm.weight", dtype))
        self.register_buffer("frequencies", torch.from_numpy(decoder.frequencies).float())

    def forward(self, ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """ids (batch, time); places (m,) indices into the flattened ids → (m, n_vocab) next-token logits, float32."""
        angle = torch.arange(ids.shape[1], device=ids.device)[:, None] * self.frequencies
        x = F.embedding(ids, self.embedding)
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        for block in self.blocks:
            x = block(x, cos, sin)
        x = _norm(x.reshape(-1, x.shape[-1])[places], self.output_norm, self.epsilon)
        return F.linear(x, self.output).float()


def _tensor(weights: Weights, name: str, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(weights.float32(name).copy()).to(dtype)


def _norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight, epsilon)


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Causal attention of (batch, heads, time, head), several query heads to a key head.

    Rows are padded on the right, so that nothing looks at the padding. Written out: of short rows the backward pass of
    torch's own function takes a third of a training step on a CPU, this one a fifth of that. Of long rows torch's is
    the faster one by far, since it does not hold all scores.
    """
    n, heads, t, size = q.shape
    q = q.reshape(n * k.shape[1], heads // k.shape[1] * t, size)  # query heads of one key head, one after the other
    k, v = k.reshape(-1, t, size), v.reshape(-1, t, size)
    future = torch.ones(t, t, dtype=torch.bool).triu(1)
    scores = (q @ k.transpose(1, 2)).view(len(k), -1, t, t) / math.sqrt(size)
    share = scores.float().masked_fill(future, -torch.inf).softmax(-1).to(v.dtype)
    return (share.view(len(k), -1, t) @ v).view(n, heads, t, size)


def _fused_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The same by torch's own kernels."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def _rotate_neighbours(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate neighbouring pairs of each head: (batch, heads, time, head)."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def _rotate_halves(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate pairs of one element of each half of a head: (batch, heads, time, head)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)
