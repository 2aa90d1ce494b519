"""`edgeguard inspect` says what a file is: usable, unusable, damaged or made to deceive."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf as library
import numpy as np
import pytest
from conftest import Run
from tiny_gguf import (
    CHATML,
    replaced,
    truncated,
    write_tiny_llama,
    write_tiny_recurrent,
)

from edgeguard.backend import RuntimeOptions
from edgeguard.backends import open_backend
from edgeguard.builtin import built_in
from edgeguard.convert import convert
from edgeguard.errors import ModelError
from edgeguard.formats import gguf
from edgeguard.formats.hashes import sha256, sha256_of_all
from edgeguard.inspection import CONSTANTS, Inspection, inspect_model

onnx = pytest.importorskip("onnx")
pytest.importorskip("tokenizers")

HOSTILE = "Gu\x1b[31mard\x07\u202e[red]x[/red]\x9b2J\x7f"
KEYS = [
    *("path", "kind", "format", "files", "beside", "sha256", "architecture", "name", "shape", "quantization"),
    *("tokenizer", "chat_template", "usable", "problems", "notices", "adapter", "profile", "profiles", "provenance"),
]
SHAPE_KEYS = [
    *("n_weights", "n_layer", "width", "n_head", "n_head_kv", "head", "n_vocab", "n_ctx_train", "memory"),
    *("kv_type", "kv_bytes_per_token"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("gguf") / "tiny.gguf", n_ctx=512, name="Llama Guard 3 tiny")


@pytest.fixture(scope="module")
def folders(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The ONNX folder of a type, converted once."""
    from edgeguard.convert import convert

    place = tmp_path_factory.mktemp("onnx")

    def folder(to: str) -> Path:
        return place / to if (place / to).is_dir() else convert(model, place / to, to=to).path

    return folder


@pytest.fixture
def folder(folders: Callable[[str], Path], tmp_path: Path) -> Path:
    """An ONNX folder to damage."""
    return Path(shutil.copytree(folders("onnx-int4"), tmp_path / "onnx"))


def shares(found: Inspection) -> dict[str, tuple[int, int]]:
    """Tensors and weights of each type."""
    return {t.type_name: (t.n_tensors, t.n_weights) for t in found.quantization.types}


def failed(run: Run, path: Path) -> str:
    """The one line on stderr of an inspection with exit code 1."""
    result = run("inspect", path)
    (line,) = result.stderr.splitlines()
    assert (result.exit_code, result.stdout) == (1, "")
    return line


# ------------------------------------------------------------ GGUF


def test_a_gguf_s_numbers_are_those_it_was_written_with(model: Path) -> None:
    found = inspect_model(model)
    n_vocab = 2 * len(gguf.read_header(model).metadata["tokenizer.ggml.tokens"].strings()) // 2
    assert (found.kind, found.format, found.architecture) == ("gguf", "GGUF v3", "llama")
    assert found.name == "Llama Guard 3 tiny"
    shape = found.shape
    assert (shape.n_layer, shape.width, shape.n_head, shape.n_head_kv, shape.head) == (2, 32, 4, 2, 8)
    assert (shape.n_vocab, shape.n_ctx_train, shape.memory) == (n_vocab, 512, "attention")
    assert shape.kv_bytes_per_token == 2 * 2 * 2 * 8 * 2
    assert shape.n_weights == sum(int(np.prod(t.shape)) for t in found.tensors)
    assert found.quantization.bits == 32
    assert (found.profile, found.profiles) == ("llama-guard-3", ("llama-guard-3",))
    assert (found.problems, found.notices, found.provenance) == ((), (), None)


def test_the_tokenizer_is_described_as_the_backend_has_it(model: Path, folders: Callable[[str], Path]) -> None:
    for path in (model, folders("onnx")):
        found = inspect_model(path).tokenizer
        assert found is not None
        with contextlib.closing(open_backend(path, RuntimeOptions(threads=1))) as backend:
            vocabulary = backend.vocabulary
            assert {t.id for t in found.ends} == vocabulary.eog
            assert found.n_control == len(vocabulary.control)
            assert found.adds_bos is (vocabulary.bos is not None)
            assert all(vocabulary.control[t.text] == t.id for t in found.ends)
    assert found.model == "BPE" and "ByteLevel" in found.pre


def test_the_hash_is_the_one_in_a_score_s_row(model: Path, folders: Callable[[str], Path]) -> None:
    for path in (model, folders("onnx")):
        with contextlib.closing(open_backend(path, RuntimeOptions(threads=1))) as backend:
            assert inspect_model(path).sha256 == backend.info.sha256


@pytest.mark.parametrize("ftype", ["F16", "Q8_0", "Q4_0"])
def test_types_add_up_to_the_file(tmp_path: Path, ftype: str) -> None:
    found = inspect_model(write_tiny_llama(tmp_path / "t.gguf", ftype=ftype))
    assert found.quantization.name == ftype
    assert sum(t.n_tensors for t in found.quantization.types) == len(found.tensors)
    assert sum(t.n_weights for t in found.quantization.types) == found.shape.n_weights
    bits = {t.type_name: t.bits for t in found.quantization.types}
    assert bits == {ftype: {"F16": 16, "Q8_0": 8.5, "Q4_0": 4.5}[ftype], "F32": 32}


def test_a_memory_that_cannot_be_cut_is_shown_and_said(run: Run, tmp_path: Path) -> None:
    path = write_tiny_recurrent(tmp_path / "m.gguf")
    found, result = inspect_model(path), run("inspect", path)
    assert found.shape.memory == "recurrent"
    assert result.exit_code == 0 and "recurrent memory, which edgeguard cannot use" in " ".join(result.stdout.split())
    with pytest.raises(ModelError) as error:
        open_backend(path)
    assert found.problems == (str(error.value),)


def test_a_sliding_window_is_shown_and_no_hindrance(run: Run, tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path / "m.gguf", arch="gemma2", tied=True)
    found, result = inspect_model(path), run("inspect", path)
    assert found.shape.memory == "sliding window" and not found.problems
    assert "sliding window memory" in " ".join(result.stdout.split()) and "cannot use" not in result.stdout
    open_backend(path).close()
    graph = inspect_model(convert(path, tmp_path / "onnx", to="onnx").path)
    for key in ("memory", "n_weights", "n_layer", "n_head_kv", "head"):
        assert getattr(graph.shape, key) == getattr(found.shape, key), key
    assert not graph.problems


@pytest.mark.parametrize(
    "metadata",
    [
        {"llama.attention.head_count": 5},
        {"llama.block_count": "many"},
        {"llama.context_length": None},
        {"llama.attention.head_count": -1.5},
        {"tokenizer.ggml.eos_token_id": 1 << 30},
        {"tokenizer.ggml.model": "none"},
        {"tokenizer.ggml.tokens": None},
        {"tokenizer.ggml.token_type": [1, 2]},
        {"llama.attention.head_count_kv": [0, 0]},
        {"tokenizer.chat_template": 3},
        {"general.type": "mmproj"},
        {"general.name": 7, "general.file_type": "x"},
    ],
)
def test_a_header_that_contradicts_itself_is_shown_with_what_is_wrong(
    run: Run, tmp_path: Path, metadata: dict[str, Any]
) -> None:
    path = write_tiny_llama(tmp_path / "t.gguf", metadata=metadata)
    result = run("inspect", path, "--json")
    assert result.exit_code == 0
    row = json.loads(result.stdout)
    try:
        gguf.check_model(gguf.read_header(path))
        assert row["usable"]
    except ModelError as error:
        assert row["problems"] == [str(error)]
    assert row["shape"]["n_weights"] > 0
    assert run("inspect", path).exit_code == 0


def test_layers_that_differ_are_counted_one_by_one(tmp_path: Path, run: Run) -> None:
    path = write_tiny_llama(tmp_path / "t.gguf", metadata={"llama.attention.head_count_kv": [2, 1]})
    shape = inspect_model(path).shape
    assert (shape.n_head_kv, shape.kv_bytes_per_token) == ((2, 1), 3 * 2 * 8 * 2)
    assert "1 to 2 KV heads" in run("inspect", path).stdout


def test_a_model_in_parts_lists_them_all(tmp_path: Path) -> None:
    parts = [tmp_path / f"big-0000{i}-of-00002.gguf" for i in (1, 2)]
    write_tiny_llama(parts[0], metadata={"split.count": 2, "split.no": 0})
    parts[1].write_bytes(b"the rest")
    found = inspect_model(tmp_path)
    assert [(f.name, f.sha256) for f in found.files] == [(p.name, sha256(p)) for p in parts]
    assert found.sha256 == sha256(parts[0])
    assert "2 parts" in found.notices[0]


def test_an_adapter_is_told_by_what_it_changes(tmp_path: Path, run: Run) -> None:
    path = write_adapter(tmp_path / "adapter.gguf")
    found = inspect_model(path)
    assert found.kind == "adapter" and found.adapter is not None
    assert (found.adapter.base, found.adapter.ranks, found.adapter.alpha) == ("llama", (4,), 16.0)
    assert found.adapter.changes == ("blk.0.attn_q.weight", "blk.1.attn_q.weight", "blk.0.ffn_down.weight")
    assert found.profile is None and "LoRA adapter" in found.problems[0]
    shown = run("inspect", path)
    assert shown.exit_code == 0
    for text in ("rank 4, alpha 16", "blk.*.attn_q.weight (2)", "blk.*.ffn_down.weight", "not usable"):
        assert text in shown.stdout


def write_adapter(path: Path) -> Path:
    writer = library.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 16.0)
    for name, n_in, n_out in (("blk.0.attn_q", 32, 32), ("blk.1.attn_q", 32, 32), ("blk.0.ffn_down", 64, 32)):
        writer.add_tensor(f"{name}.weight.lora_a", np.ones((4, n_in), np.float32))
        writer.add_tensor(f"{name}.weight.lora_b", np.ones((n_out, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# ------------------------------------------------------------ what cannot be read


def test_what_is_no_model_is_one_line_and_exit_code_1(run: Run, tmp_path: Path, model: Path) -> None:
    cut = truncated(model, tmp_path / "cut.gguf", -100)
    assert "truncated" in failed(run, cut)
    assert "truncated" in failed(run, truncated(model, tmp_path / "head.gguf", 1000))
    assert "does not exist" in failed(run, tmp_path / "none.gguf")
    text = tmp_path / "notes.txt"
    text.write_text("not a model", encoding="utf-8")
    assert "not a GGUF file" in failed(run, text)
    (tmp_path / "empty").mkdir()
    assert "holds no model" in failed(run, tmp_path / "empty")
    assert "not an ONNX file" in failed(run, replaced(text, tmp_path / "a.onnx", b"not", b"no"))


def test_an_onnx_graph_without_its_weights_is_refused(run: Run, folder: Path) -> None:
    data = folder / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-1])
    assert "truncated" in failed(run, folder)
    data.unlink()
    assert "not beside it" in failed(run, folder)


# ------------------------------------------------------------ ONNX


@pytest.mark.parametrize(
    ("to", "name", "matrices", "activations"),
    [
        ("onnx-fp32", "fp32", {"float32"}, {}),
        ("onnx-fp16", "fp16", {"float16"}, {}),
        ("onnx-int8", "int8", {"int8 by 32", "float32"}, {"int8": 15}),
        ("onnx-int4", "int4", {"int4 by 32", "int8 by 32", "float32"}, {"int8": 15}),
    ],
)
def test_a_graph_has_the_weights_of_the_gguf_it_was_made_of(
    model: Path,
    folders: Callable[[str], Path],
    to: str,
    name: str,
    matrices: set[str],
    activations: dict[str, int],
) -> None:
    found, source = inspect_model(folders(to)), inspect_model(model)
    assert found.format == "ONNX opset 23"
    assert found.shape.n_weights == source.shape.n_weights
    assert (found.quantization.name, dict(found.quantization.activations)) == (name, activations)
    assert {*shares(found)} == matrices | {CONSTANTS}
    assert (found.profile, found.problems, found.chat_template) == ("llama-guard-3", (), CHATML)
    for key in ("n_layer", "width", "n_head", "n_head_kv", "head", "n_vocab", "n_ctx_train", "memory"):
        assert getattr(found.shape, key) == getattr(source.shape, key), key
    assert found.shape.kv_bytes_per_token == 2 * 2 * 2 * 8 * (2 if to == "onnx-fp16" else 4)


def test_a_looked_up_embedding_of_4_bits_is_counted_by_its_scales(tmp_path: Path) -> None:
    from edgeguard.convert.graph import write_graph
    from edgeguard.convert.weights import Weights

    path = write_tiny_llama(tmp_path / "q4.gguf", ftype="Q4_0")
    write_graph(Weights(gguf.read_header(path)), tmp_path, precision="source", activations="float", metadata={})
    found = inspect_model(tmp_path / "model.onnx")
    assert found.shape.n_weights == inspect_model(path).shape.n_weights
    assert shares(found)["int4 by 32"][0] == 16
    assert dict(found.quantization.activations) == {"float": 15}


def test_a_graph_without_its_folder_s_files_is_still_described(run: Run, folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json", "edgeguard.json"):
        (folder / name).unlink()
    found = inspect_model(folder)
    assert "no tokenizer.json" in found.problems[0]
    assert any("scoring needs `context`" in notice for notice in found.notices)
    assert (found.tokenizer, found.chat_template, found.beside) == (None, None, ())
    assert found.shape.n_layer == 2
    assert run("inspect", folder).exit_code == 0


def test_a_broken_tokenizer_is_shown_as_far_as_it_goes(run: Run, folder: Path) -> None:
    values = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    values["model"]["type"] = "Unigram"
    (folder / "tokenizer.json").write_text(json.dumps(values), encoding="utf-8")
    found = inspect_model(folder)
    assert found.tokenizer is not None
    assert (found.tokenizer.model, found.tokenizer.ends) == ("Unigram", ())
    assert "BPE is supported" in found.problems[0]
    (folder / "tokenizer.json").write_text("{", encoding="utf-8")
    (folder / "config.json").write_text("[]", encoding="utf-8")
    result = run("inspect", folder)
    assert result.exit_code == 0 and "no JSON object" in " ".join(result.stdout.split())


def test_a_graph_as_optimum_exports_it(tmp_path: Path) -> None:
    found = inspect_model(write_rows_graph(tmp_path / "model.onnx"))
    assert found.shape.n_layer == 1 and found.shape.n_vocab == 8
    assert (found.shape.n_head_kv, found.shape.head, found.shape.kv_bytes_per_token) == (2, 4, 2 * 2 * 4 * 4)
    assert shares(found) == {"float32": (1, 32), CONSTANTS: (1, 0)}
    assert "no tokenizer.json" in found.problems[0]
    assert found.quantization.dynamic == ()


def test_dynamic_quantization_is_pointed_out(tmp_path: Path, run: Run) -> None:
    path = write_rows_graph(tmp_path / "model.onnx", dynamic=True)
    found = inspect_model(path)
    assert found.quantization.name == "dynamic int8"
    assert found.quantization.dynamic == ("DynamicQuantizeLinear", "MatMulInteger")
    assert shares(found)["int8"] == (1, 32)
    assert "depends on what else is in it" in found.notices[0]
    assert "DynamicQuantizeLinear" in run("inspect", path).stdout


def test_a_graph_without_keys_and_values_says_why_it_cannot_be_used(tmp_path: Path) -> None:
    found = inspect_model(write_rows_graph(tmp_path / "model.onnx", past=False))
    assert "no past_key_values" in found.problems[0]
    assert found.shape.memory is None
    assert found.shape.n_weights == 32


def write_rows_graph(path: Path, *, dynamic: bool = False, past: bool = True) -> Path:
    """Names and shapes of optimum's graphs, with one matrix in them; no decoder."""
    from onnx import TensorProto, helper, numpy_helper

    int64, floats = TensorProto.INT64, TensorProto.FLOAT
    matrix = np.ones((4, 8), np.int8 if dynamic else np.float32)
    constants = [numpy_helper.from_array(matrix, "w"), numpy_helper.from_array(np.array([1, 4], np.int64), "shape")]
    nodes = [helper.make_node("Cast", ["input_ids"], ["x"], to=floats)]
    if dynamic:
        nodes += [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
            helper.make_node("MatMulInteger", ["q", "w", "zero"], ["product"]),
            helper.make_node("Cast", ["product"], ["logits"], to=floats),
        ]
    else:
        nodes.append(helper.make_node("MatMul", ["x", "w"], ["logits"]))
    inputs = [helper.make_tensor_value_info(name, int64, ["b", "s"]) for name in ("input_ids", "attention_mask")]
    outputs = [helper.make_tensor_value_info("logits", floats, ["b", "s", 8])]
    for part in ("key", "value") if past else ():
        shape = ["b", 2, "p", 4]
        inputs.append(helper.make_tensor_value_info(f"past_key_values.0.{part}", floats, shape))
        outputs.append(helper.make_tensor_value_info(f"present.0.{part}", floats, shape))
        nodes.append(helper.make_node("Identity", [f"past_key_values.0.{part}"], [f"present.0.{part}"]))
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())
    return path


@pytest.mark.parametrize("dims", [[-1], [1 << 62, 4], [1 << 62] * 2000])
def test_an_impossible_shape_is_refused(run: Run, folder: Path, dims: list[int]) -> None:
    """A number of 40,000 digits is more than Python prints."""
    graph = onnx.load_model(folder / "model.onnx", load_external_data=False)
    graph.graph.initializer[0].dims[:] = dims
    (folder / "model.onnx").write_bytes(graph.SerializeToString())
    assert "impossible shape" in failed(run, folder)


@pytest.mark.parametrize("name", [b"input_ids", b"token_embd.weight", b"com.microsoft", b"accuracy_level", b"batch"])
def test_a_name_that_is_not_utf_8_is_refused(run: Run, folder: Path, name: bytes) -> None:
    """protobuf gives it as bytes."""
    data = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(data.replace(name, b"\xff" + name[1:]))
    assert "not UTF-8" in failed(run, folder)


# ------------------------------------------------------------ checkpoints


def write_safetensors(path: Path, tensors: dict[str, tuple[int, ...]], *, cut: int = 0) -> None:
    """A file of zeros, its last `cut` bytes missing."""
    header, at = {}, 0
    for name, shape in tensors.items():
        n_bytes = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + n_bytes]}
        at += n_bytes
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    data = struct.pack("<Q", len(text)) + text + bytes(at)
    path.write_bytes(data[: len(data) - cut])


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "granite-guard"
    folder.mkdir()
    config = {
        "model_type": "granite",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 10,
        "max_position_embeddings": 128,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_safetensors(folder / "model.safetensors", {"model.embed_tokens.weight": (10, 32), "norm.weight": (32,)})
    return folder


def test_a_checkpoint_is_described_and_told_to_be_converted(run: Run, checkpoint: Path) -> None:
    found = inspect_model(checkpoint)
    assert (found.kind, found.architecture, found.name) == ("checkpoint", "granite", "granite-guard")
    assert (found.shape.n_weights, found.shape.head, found.shape.kv_bytes_per_token) == (352, 8, 2 * 2 * 2 * 8 * 2)
    assert found.quantization.name == "BF16" and found.quantization.bits == 16
    assert f"edgeguard convert {checkpoint}" in found.problems[0]
    assert found.sha256 == sha256_of_all(sorted(checkpoint.iterdir()))
    assert run("inspect", checkpoint, "--tensors").stdout.count("embed_tokens") == 1


def test_a_checkpoint_s_hash_is_its_manifest_s(checkpoint: Path) -> None:
    from edgeguard.convert.artifact import source

    assert inspect_model(checkpoint).sha256 == source("model", checkpoint).sha256


def test_a_checkpoint_in_shards_needs_all_of_them(run: Run, checkpoint: Path) -> None:
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = {"weight_map": {"a": names[0], "b": names[1]}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    write_safetensors(checkpoint / names[0], {"a": (4, 4)})
    assert names[1] in failed(run, checkpoint)
    write_safetensors(checkpoint / names[1], {"b": (4, 4)})
    assert [t.name for t in inspect_model(checkpoint).tensors] == ["a", "b"]
    index["weight_map"]["b"] = "../secret"
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert "secret" in failed(run, checkpoint)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 8 + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 5) + b'{"a":',
        struct.pack("<Q", 8) + b'{"a": 1}',
        struct.pack("<Q", 62) + b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}' + bytes(4),
        struct.pack("<Q", 61) + b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 9]}}' + bytes(4),
        struct.pack("<Q", 100_000) + b"[" * 100_000,
        struct.pack("<Q", 36_050)
        + b'{"a": {"dtype": "F32", "shape": [%s], "data_offsets": [0, 4]}}' % b", ".join([b"9" * 18] * 1800),
    ],
)
def test_a_damaged_safetensors_file_is_refused(run: Run, checkpoint: Path, data: bytes) -> None:
    (checkpoint / "model.safetensors").write_bytes(data)
    assert "model.safetensors" in failed(run, checkpoint)


def test_a_truncated_safetensors_file_is_refused(run: Run, checkpoint: Path) -> None:
    write_safetensors(checkpoint / "model.safetensors", {"a": (4, 4)}, cut=1)
    assert "truncated" in failed(run, checkpoint)


def test_a_checkpoint_of_other_files_says_that_its_weights_are_not_known(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    found = inspect_model(checkpoint)
    assert found.shape.n_weights is None and "no safetensors" in found.notices[0]


@pytest.mark.parametrize(
    ("said", "memory"),
    [
        ({}, None),
        ({"sliding_window": 4096}, "sliding window"),
        ({"sliding_window": 4096, "use_sliding_window": False}, None),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding window"),
        ({"layer_types": ["full_attention"] * 2}, "attention"),
        ({"text_config": {"layer_types": ["linear_attention", "full_attention"]}}, "recurrent"),
    ],
)
def test_a_configuration_s_memory(checkpoint: Path, said: dict[str, Any], memory: str | None) -> None:
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    (checkpoint / "config.json").write_text(json.dumps({**config, **said}), encoding="utf-8")
    assert inspect_model(checkpoint).shape.memory == memory


def test_a_peft_folder_is_an_adapter(run: Run, tmp_path: Path) -> None:
    config = {"base_model_name_or_path": "org/base", "r": 4, "lora_alpha": 8}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    shapes = {f"{layer}.lora_A.weight": (4, 32), f"{layer}.lora_B.weight": (32, 4)}
    write_safetensors(tmp_path / "adapter_model.safetensors", shapes)
    found = inspect_model(tmp_path)
    assert found.adapter is not None
    assert (found.adapter.base, found.adapter.ranks, found.adapter.alpha) == ("org/base", (4,), 8.0)
    assert found.adapter.changes == ("model.layers.0.self_attn.q_proj",)
    assert "org/base" in run("inspect", tmp_path).stdout


# ------------------------------------------------------------ provenance


def test_a_converted_file_says_of_what_it_was_made(model: Path, folders: Callable[[str], Path], run: Run) -> None:
    made = inspect_model(folders("onnx-int4")).provenance
    assert made is not None
    assert (made.to, made.state, made.said_in, made.changed) == ("onnx-int4", "as converted", "edgeguard.json", ())
    (source,) = made.sources
    assert (source.role, source.file, source.sha256) == ("model", model.name, sha256(model))
    assert made.options == {"activations": "int8"} and "edgeguard" in made.tools
    assert "as converted" in run("inspect", folders("onnx-int4")).stdout


@pytest.mark.parametrize("name", ["config.json", "model.onnx.data", "tokenizer.json"])
def test_a_file_changed_since_the_conversion_is_named(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data + b"\n")
    made = inspect_model(folder).provenance
    assert made is not None and (made.state, made.changed) == ("changed since", (name,))


def test_a_file_that_was_added_and_changes_scores_is_named(folder: Path) -> None:
    """A chat_template.jinja wins over the one in tokenizer_config.json, and no listed hash would tell."""
    (folder / "chat_template.jinja").write_text("other", encoding="utf-8")
    found = inspect_model(folder)
    assert found.chat_template == "other"
    assert found.provenance is not None and found.provenance.changed == ("chat_template.jinja",)


def test_a_manifest_beside_another_graph_does_not_vouch_for_it(folder: Path) -> None:
    write_rows_graph(folder / "other.onnx")
    made = inspect_model(folder / "other.onnx").provenance
    assert made is not None and made.changed == ("other.onnx",)


def test_without_a_manifest_the_metadata_tell_but_do_not_vouch(folder: Path, run: Run) -> None:
    (folder / "edgeguard.json").unlink()
    made = inspect_model(folder).provenance
    assert made is not None
    assert (made.said_in, made.to, made.state) == ("metadata", "onnx-int4", "not known")
    assert [source.role for source in made.sources] == ["model"]
    assert "may have changed" in run("inspect", folder).stdout


@pytest.mark.parametrize(
    "said",
    [
        "{",
        "[]",
        '{"format": 2}',
        '{"format": 1, "outputs": 3, "sources": []}',
        json.dumps({"format": 1, "outputs": [{}] * 2000, "sources": []}),
        '{"format": 1, "outputs": [{"file": "../../etc/passwd"}, 7, {"file": 3}], "sources": [1]}',
        '{"format": 1, "outputs": [], "sources": [{"n_bytes": "x"}], "tools": 1, "options": {"a": {}}}',
        '{"format": 1, "outputs": [{"file": "a\\u0000", "sha256": []}], "sources": []}',
    ],
)
def test_a_manifest_of_another_kind_vouches_for_nothing(run: Run, folder: Path, said: str) -> None:
    (folder / "edgeguard.json").write_text(said, encoding="utf-8")
    found = inspect_model(folder)
    assert found.provenance is not None and found.provenance.state != "as converted"
    assert run("inspect", folder).exit_code == 0


def test_a_gguf_renamed_with_its_manifest_is_as_converted(model: Path, tmp_path: Path) -> None:
    from edgeguard.convert import convert

    path = convert(model, tmp_path / "a.gguf", to="f32").path
    for old in (path, path.with_name("a.gguf.manifest.json")):
        old.rename(old.with_name(old.name.replace("a.gguf", "b.gguf")))
    made = inspect_model(tmp_path / "b.gguf").provenance
    assert made is not None and made.state == "as converted"
    with (tmp_path / "b.gguf").open("ab") as file:
        file.write(b"\0")
    made = inspect_model(tmp_path / "b.gguf").provenance
    assert made is not None and made.state == "changed since"


# ------------------------------------------------------------ what is printed


def test_the_json_has_the_same_keys_for_every_kind(
    run: Run, model: Path, folders: Callable[[str], Path], checkpoint: Path, tmp_path: Path
) -> None:
    for path in (model, folders("onnx"), checkpoint, write_adapter(tmp_path / "a.gguf")):
        result = run("inspect", path, "--json")
        (line,) = result.stdout.splitlines()
        row = json.loads(line)
        assert list(row) == KEYS
        assert list(row["shape"]) == SHAPE_KEYS
        assert list(row["quantization"]) == ["name", "bits", "types", "activations", "dynamic"]
        assert list(row["quantization"]["types"][0]) == ["type_name", "n_tensors", "n_weights", "n_bytes", "bits"]
        assert list(row["files"][0]) == ["name", "n_bytes", "sha256"]
        assert row["usable"] is (not row["problems"])
        whole = json.loads(run("inspect", path, "--json", "--tensors").stdout)
        tensors = whole.pop("tensors")
        assert list(tensors[0]) == ["name", "shape", "type_name", "n_bytes"]
        assert whole == row


def test_the_default_is_the_base_model(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeguard.builtin.base_model", lambda: model)
    assert json.loads(run("inspect", "--json").stdout)["path"] == str(model)


def test_every_tensor_is_listed_on_request_only(run: Run, model: Path) -> None:
    short, long = run("inspect", model).stdout, run("inspect", model, "--tensors").stdout
    assert long.startswith(short)
    for tensor in inspect_model(model).tensors:
        assert tensor.name in long and tensor.name not in short


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_is_wider_than_the_terminal(
    run: Run, folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    shown = run("inspect", folders("onnx-int4"), "--tensors").stdout
    assert max(map(len, shown.splitlines())) <= width
    for file in inspect_model(folders("onnx-int4")).files:
        assert file.sha256[:12] in shown and (file.sha256 in shown) >= (width == 120)


def test_a_stranger_s_strings_do_not_reach_the_terminal(run: Run, tmp_path: Path) -> None:
    """Nor is their markup taken for ours."""
    metadata = {
        "general.basename": HOSTILE,
        "tokenizer.ggml.pre": HOSTILE,
        "tokenizer.chat_template": HOSTILE + "\n" + HOSTILE,
        "edgeguard.to": HOSTILE,
        f"edgeguard.tools.{HOSTILE!a}": HOSTILE,
        "edgeguard.model.sha256": HOSTILE,
    }
    path = write_tiny_llama(tmp_path / "t.gguf", name=HOSTILE, metadata=metadata, control=(HOSTILE, "<|im_end|>"))
    for options in ((), ("--json",), ("--tensors",)):
        result = run("inspect", path, *options)
        assert result.exit_code == 0
        assert result.stdout.replace("\n", "").isprintable()
    assert json.loads(run("inspect", path, "--json").stdout)["name"] == HOSTILE
    assert "\\x1b[31mard\\x07\\u202e[red]x[/red]" in run("inspect", path).stdout


def test_a_stranger_s_onnx_strings_do_not_reach_the_terminal(run: Run, folder: Path) -> None:
    graph = onnx.load_model(folder / "model.onnx", load_external_data=False)
    for tensor in graph.graph.initializer:
        tensor.name += HOSTILE
    (folder / "model.onnx").write_bytes(graph.SerializeToString())
    said = {"format": 1, "to": HOSTILE, "outputs": [{"file": HOSTILE}], "sources": [{"role": HOSTILE}], "name": HOSTILE}
    (folder / "edgeguard.json").write_text(json.dumps(said), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": HOSTILE}), encoding="utf-8")
    for options in ((), ("--tensors",), ("--json", "--tensors")):
        result = run("inspect", folder, *options)
        assert result.exit_code == 0
        assert result.stdout.replace("\n", "").isprintable()


# ------------------------------------------------------------ noise


def test_noise_in_any_file_is_an_error_on_purpose_or_none(model: Path, folder: Path, tmp_path: Path) -> None:
    """A flipped byte anywhere in a header must not become a traceback."""
    rng = random.Random(0)
    spoiled = tmp_path / "spoiled.gguf"
    header = model.read_bytes()
    for _ in range(60):
        spoiled.write_bytes(flipped(header, rng, 12_000))
        survive(spoiled)
    for name in ("model.onnx", "edgeguard.json", "config.json", "tokenizer_config.json"):
        data = (folder / name).read_bytes()
        for _ in range(25):
            (folder / name).write_bytes(flipped(data, rng, len(data)))
            survive(folder)
        (folder / name).write_bytes(data)


def flipped(data: bytes, rng: random.Random, n: int) -> bytes:
    spoiled = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        spoiled[rng.randrange(min(n, len(data)))] = rng.randrange(256)
    return bytes(spoiled)


def survive(path: Path) -> None:
    with contextlib.suppress(ModelError):
        json.dumps(inspect_model(path).row(tensors=True))


# Built-in guards


@pytest.mark.smollm2
def test_a_built_in_guard_is_inspected_by_its_name(run: Run) -> None:
    """Whatever has been made on this machine: the base and the adapter come as they are."""
    result = run("inspect", "edgeguard-135m:adapter")
    assert result.exit_code == 0, result.stderr
    for part in ("edgeguard-135m, version", "as they were released, by their hashes", "LoRA adapter", "onnx-int8"):
        assert part in result.stdout
    assert "not usable" not in result.stdout
    found = json.loads(run("inspect", "edgeguard-135m:adapter", "--json").stdout)
    assert found["built_in"]["whole"] and found["model"]["usable"] and found["adapter"]["kind"] == "adapter"


def test_a_form_that_is_not_made_yet_says_how_it_is_made(run: Run, tmp_path: Path) -> None:
    result = run("inspect", "edgeguard-135m:q8_0", env={"XDG_CACHE_HOME": str(tmp_path), "COLUMNS": "200"})
    assert result.exit_code == 0, result.stderr
    assert f"not made yet; they will be in {tmp_path}" in result.stdout
    assert "edgeguard score --model edgeguard-135m:q8_0" in result.stdout or "edgeguard models pull" in result.stdout
    assert list(tmp_path.iterdir()) == []  # nothing was made


def test_a_form_whose_files_are_others_is_not_told_for_the_released_one(run: Run, tmp_path: Path) -> None:
    folder = built_in("edgeguard-135m").form_folder(built_in("edgeguard-135m").form("q8_0")).name
    (tmp_path / "edgeguard" / folder).mkdir(parents=True)
    write_tiny_llama(tmp_path / "edgeguard" / folder / "m.gguf")
    result = run("inspect", "edgeguard-135m:q8_0", env={"XDG_CACHE_HOME": str(tmp_path), "COLUMNS": "200"})
    assert "not those that were released" in result.stdout


def test_a_form_that_no_guard_has_is_named(run: Run) -> None:
    result = run("inspect", "edgeguard-135m:q9")
    assert (result.exit_code, "has no form 'q9'" in result.stderr) == (1, True)
