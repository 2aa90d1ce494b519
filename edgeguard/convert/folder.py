"""The folder of an ONNX model: the graph, and beside it what says how to read texts for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from edgeguard.convert.blocks import Activations
from edgeguard.convert.decoder import read_decoder
from edgeguard.convert.graph import Precision, write_graph
from edgeguard.convert.weights import Weights
from edgeguard.formats.tokenizer import tokenizer_files


def write_folder(
    weights: Weights,
    folder: Path,
    *,
    precision: Precision,
    activations: Activations,
    metadata: Mapping[str, str],
) -> dict[str, int]:
    """Write the model of `weights` into `folder`, which is there and empty; how many matrices have which type.

    `metadata` stands in the graph. Raises ModelError for what the converter does not know.
    """
    tokenizer = tokenizer_files(weights.header)
    kinds = write_graph(weights, folder, precision=precision, activations=activations, metadata=metadata)
    for file, data in {**tokenizer, "config.json": _config(weights)}.items():
        (folder / file).write_bytes(data)
    return kinds


def _config(weights: Weights) -> bytes:
    """config.json as Hugging Face's models have it, as far as the GGUF says."""
    d, arch = read_decoder(weights), weights.header.architecture
    names = {"llama": "LlamaForCausalLM", "granite": "GraniteForCausalLM"}
    config = {
        "architectures": [names.get(arch, f"{arch.capitalize()}ForCausalLM")],
        "model_type": arch,
        "hidden_size": d.width,
        "num_hidden_layers": d.n_layer,
        "num_attention_heads": d.n_head,
        "num_key_value_heads": d.n_head_kv,
        "head_dim": d.head,
        "rms_norm_eps": d.epsilon,
        "vocab_size": d.n_vocab,
        "max_position_embeddings": d.n_ctx,
        "tie_word_embeddings": "output.weight" not in weights,
        **({"sliding_window": d.window.size} if d.window else {}),
    }
    return (json.dumps(config, indent=2) + "\n").encode()
