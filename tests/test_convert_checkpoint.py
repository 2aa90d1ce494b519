"""Checkpoints exported through optimum are held against torch; those that cannot be are refused in time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeguard.convert.checkpoint import MODEL_TYPES, check_checkpoint, checks, export, onnx_export, probe
from edgeguard.convert.checkpoint.matrices import quantized_blocks
from edgeguard.convert.checkpoint.surgery import cut
from edgeguard.convert.checkpoint.torch_process import write_tokenizer
from edgeguard.errors import ModelError, OutputError

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("optimum.exporters.onnx")
tiny = pytest.importorskip("tiny_checkpoint")

# torch and transformers warn of much, and none of it is edgeguard's.
pytestmark = pytest.mark.filterwarnings("ignore")

# Many exports in one process: each of its own would take 10 s, nearly all of it for imports.
_MANY = """
import json, sys
from pathlib import Path
from edgeguard.convert.checkpoint.torch_process import Job, export_job
for line in sys.stdin:
    job = Job.from_json({**json.loads(line), "lora": None, "lora_scale": 1.0})
    job.out.mkdir(parents=True)
    job.place.mkdir()
    export_job(job)
"""
_TO = {"fp16": "float", "int8": "int8", "int4": "int8", "int8-float": "float", "int4-float": "float"}
# float32 sums in another order: 2e-5 is seen, and a wrong graph is off by nats
ATOL = 1e-4


@pytest.fixture(scope="session", autouse=True)
def _offline() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny checkpoint by its name: a model type, "tied", or "odd", whose rows do not divide into blocks."""
    place = tmp_path_factory.mktemp("checkpoints")

    def write(name: str) -> Path:
        if not (place / name).is_dir():
            family = {"tied": "qwen3", "odd": "llama"}.get(name, name)
            size = {"n_embd": 40, "n_ff": 72} if name == "odd" else {}
            tiny.write_tiny_checkpoint(
                place / name, family=family, tied=name in ("tied", "odd"), seed=len(name), **size
            )
        return place / name

    return write


@pytest.fixture(scope="session")
def exported(
    checkpoints: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Path]:
    """The model.onnx of a checkpoint's name and a type."""
    place = tmp_path_factory.mktemp("exported")
    wanted = [(name, "fp32") for name in (*sorted(MODEL_TYPES), "tied")]
    wanted += [(name, to) for name in ("qwen2", "tied") for to in _TO]
    wanted += [("odd", "int8-float"), ("odd", "int4-float")]
    jobs = [
        {
            "folder": str(checkpoints(name)),
            "out": str(place / name / to),
            "place": str(place / name / f"{to}-traced"),
            "to": to.removesuffix("-float"),
            "activations": _TO.get(to, "int8"),
        }
        for name, to in wanted
    ]
    lines = "\n".join(map(json.dumps, jobs))
    ran = subprocess.run([sys.executable, "-c", _MANY], input=lines, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return lambda name, to: place / name / to / "model.onnx"


@pytest.fixture(scope="session")
def llama(checkpoints: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `export` itself makes of a llama."""
    out = tmp_path_factory.mktemp("llama")
    export(checkpoints("llama"), out, to="fp32")
    return out


# Computing


def torch_logits(model: Any, row: list[int]) -> np.ndarray:
    """(tokens, n_vocab)"""
    with torch.inference_mode():
        logits: np.ndarray = model(torch.tensor([row])).logits[0].float().numpy()
    return logits


def load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


class Graph:
    """An exported graph, asked step by step."""

    def __init__(self, path: Path) -> None:
        self.session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        ports = {port.name: port for port in self.session.get_inputs()}
        self.named = {
            o.name: ports["past_key_values" + o.name.removeprefix("present")] for o in self.session.get_outputs()[1:]
        }

    def start(self, n_rows: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        past = {p.name: np.zeros((n_rows, p.shape[1], 0, p.shape[3]), kinds[p.type]) for p in self.named.values()}
        return past, np.zeros((n_rows, 0), np.int64)

    def step(
        self, rows: list[list[int]], state: tuple[dict[str, np.ndarray], np.ndarray], pad: int = 0
    ) -> tuple[list[np.ndarray], tuple[dict[str, np.ndarray], np.ndarray]]:
        """Each row's logits (tokens, n_vocab), and the state after it. Rows are filled up with `pad` on the right."""
        past, mask = state
        width = max(map(len, rows))
        begin = mask.sum(axis=1, keepdims=True)
        mask = np.concatenate([mask, [[int(t < len(row)) for t in range(width)] for row in rows]], axis=1).astype(
            np.int64
        )
        inputs = {
            "input_ids": np.array([row + [pad] * (width - len(row)) for row in rows], np.int64),
            "position_ids": (begin + np.arange(width)).astype(np.int64),
            "attention_mask": mask,
            "positions": np.array([i * width + t for i, row in enumerate(rows) for t in range(len(row))], np.int64),
        }
        logits, *present = self.session.run(None, {**inputs, **past})
        parts = np.split(logits, np.cumsum([len(row) for row in rows])[:-1])
        return parts, (dict(zip((p.name for p in self.named.values()), present, strict=True)), mask)

    def alone(self, row: list[int]) -> np.ndarray:
        return self.step([row], self.start(1))[0][0]


def some_rows(n_vocab: int, *lengths: int) -> list[list[int]]:
    rng = np.random.default_rng(sum(lengths))
    return [rng.integers(0, n_vocab, n).tolist() for n in lengths]


def dequantized(model: Any, folder: Path) -> dict[str, np.ndarray]:
    """The matrices (n_out, n_in) of a graph's MatMulNBits by the names of their blocks, in plain numpy."""
    arrays = {t.name: onnx.numpy_helper.to_array(t, str(folder)) for t in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            said = {a.name: a.i for a in node.attribute}
            q = arrays[node.input[1]].astype(np.int32)
            if said["bits"] == 4:
                q = np.stack([q & 15, q >> 4], axis=-1).reshape(*q.shape[:2], -1)
            w = (q - (1 << (said["bits"] - 1))) * arrays[node.input[2]][..., None]
            found[node.input[1]] = w.reshape(w.shape[0], -1)[:, : said["K"]]
    return found


# The same as torch


@pytest.mark.parametrize("name", (*sorted(MODEL_TYPES), "tied"))
def test_a_graph_gives_the_logits_of_torch_at_every_position(name, checkpoints, exported):
    """Every architecture that export lets in. It would show a layer, a scale or a bias lost on the way."""
    model, graph = load(checkpoints(name)), Graph(exported(name, "fp32"))
    for row in some_rows(model.config.vocab_size, 1, 2, 40):
        np.testing.assert_allclose(graph.alone(row), torch_logits(model, row), atol=ATOL)


@pytest.mark.parametrize("name", (*tiny.FAMILIES, "tied", "phi3", "granite", "stablelm"))
def test_rows_of_different_lengths_continue_together_as_each_alone(name, checkpoints, exported):
    """Padding on the right, two steps, a past with holes: masks and positions must be those of the tokens."""
    model, graph = load(checkpoints(name)), Graph(exported(name, "fp32"))
    first = some_rows(model.config.vocab_size, 9, 1, 30)
    second = some_rows(model.config.vocab_size, 5, 12, 1)
    begun, state = graph.step(first, graph.start(3), pad=7)
    ended, _ = graph.step(second, state, pad=8)
    for i in range(3):
        expected = torch_logits(model, first[i] + second[i])
        np.testing.assert_allclose(np.concatenate([begun[i], ended[i]]), expected, atol=ATOL)


def test_logits_come_in_the_order_of_the_positions_and_as_often_as_asked(checkpoints, exported):
    graph = Graph(exported("llama", "fp32"))
    row = some_rows(200, 6)[0]
    whole = graph.alone(row)
    past, _ = graph.start(1)
    inputs = {"input_ids": [row], "position_ids": [list(range(6))], "attention_mask": [[1] * 6], "positions": [5, 0, 5]}
    logits = graph.session.run(["logits"], {**{k: np.array(v, np.int64) for k, v in inputs.items()}, **past})[0]
    np.testing.assert_allclose(logits, whole[[5, 0, 5]], atol=ATOL)


def test_the_interface_is_as_described(exported):
    for to, kv in (("fp32", "tensor(float)"), ("fp16", "tensor(float16)"), ("int4", "tensor(float)")):
        session = ort.InferenceSession(str(exported("qwen2" if to != "fp32" else "llama", to)))
        found = {p.name: (p.type, p.shape) for p in (*session.get_inputs(), *session.get_outputs())}
        past, total = "past_sequence_length", "past_sequence_length + sequence_length"
        both = ["batch_size", "sequence_length"]
        assert found == {
            "input_ids": ("tensor(int64)", both),
            "attention_mask": ("tensor(int64)", ["batch_size", total]),
            "position_ids": ("tensor(int64)", both),
            "positions": ("tensor(int64)", ["n"]),
            "logits": ("tensor(float)", ["n", 276]),
            **{f"past_key_values.{i}.{p}": (kv, ["batch_size", 2, past, 8]) for i in (0, 1) for p in ("key", "value")},
            **{f"present.{i}.{p}": (kv, ["batch_size", 2, total, 8]) for i in (0, 1) for p in ("key", "value")},
        }


# Fewer bits


@pytest.mark.parametrize("name", ("qwen2", "tied"))
def test_float16_stays_near_torch(name, checkpoints, exported):
    """Half precision has 11 bits: logits of a few nats are right to some hundredths."""
    model, graph = load(checkpoints(name)), Graph(exported(name, "fp16"))
    row = some_rows(model.config.vocab_size, 40)[0]
    np.testing.assert_allclose(graph.alone(row), torch_logits(model, row), atol=0.05)
    weights = onnx.load(exported(name, "fp16"), load_external_data=False).graph.initializer
    large = {onnx.TensorProto.DataType.Name(t.data_type) for t in weights if len(t.dims) == 2}
    assert large == {"FLOAT16"}


@pytest.mark.parametrize("name", ("qwen2", "tied", "odd"))
@pytest.mark.parametrize("to", ("int8-float", "int4-float"))
def test_a_quantized_graph_computes_with_the_rounded_weights(name, to, checkpoints, exported):
    """torch with the graph's own weights gives its logits: nothing but the weights is rounded."""
    model, path = load(checkpoints(name)), exported(name, to)
    graph = onnx.load(path, load_external_data=False)
    rounded = dequantized(graph, path.parent)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert len(rounded) == len(layers) == 15
    with torch.no_grad():
        for module in layers.values():
            near = min(rounded.values(), key=lambda w, m=module: _distance(w, m.weight.numpy()))
            module.weight.copy_(torch.from_numpy(near))
        embedding = model.get_input_embeddings().weight
        packed, scale = quantized_blocks(embedding.numpy(), 8)
        rows = ((packed.astype(np.float32) - 128) * scale[..., None]).reshape(packed.shape[0], -1)
        embedding.copy_(torch.from_numpy(rows[:, : embedding.shape[1]]))
    row = some_rows(model.config.vocab_size, 40)[0]
    np.testing.assert_allclose(Graph(path).alone(row), torch_logits(model, row), atol=1e-3)


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max()) if a.shape == b.shape else np.inf


@pytest.mark.parametrize("to", ("int8", "int4"))
def test_rounded_activations_change_little(to, exported):
    """With the same weights, next to what another token in its place changes. Real models are measured in bench/."""
    row = some_rows(276, 40)[0]
    rounded, whole = Graph(exported("qwen2", to)).alone(row), Graph(exported("qwen2", f"{to}-float")).alone(row)
    other = Graph(exported("qwen2", f"{to}-float")).alone([*row[:-1], (row[-1] + 1) % 276])
    assert 0 < 2 * np.abs(rounded - whole)[-1].max() < np.abs(other - whole)[-1].max()


@pytest.mark.parametrize("to", ("int8", "int4", "fp16"))
def test_the_company_in_a_batch_changes_no_bit(to, exported):
    """Which forbids quantize_dynamic: its scales are of a whole batch."""
    graph = Graph(exported("qwen2", to))
    rows = some_rows(200, 12, 20, 3)
    together, _ = graph.step(rows, graph.start(3))
    for row, logits in zip(rows, together, strict=True):
        np.testing.assert_array_equal(logits, graph.alone(row))


def test_quantized_graphs_say_what_they_are(exported):
    """At four bits the output layer keeps eight, and shares them with the embedding where they are one."""
    for name, to, accuracy in (("qwen2", "int4", 4), ("tied", "int4", 4), ("tied", "int8-float", 1)):
        graph = onnx.load(exported(name, to), load_external_data=False).graph
        nodes = [n for n in graph.node if n.op_type == "MatMulNBits"]
        said = {n.name: {a.name: a.i for a in n.attribute} for n in nodes}
        assert {s["accuracy_level"] for s in said.values()} == {accuracy}
        assert {s["block_size"] for s in said.values()} == {32}
        assert {s["bits"] for n, s in said.items() if n != "/lm_head/MatMul"} == {4 if to == "int4" else 8}
        assert said["/lm_head/MatMul"]["bits"] == 8
        assert "DynamicQuantizeLinear" not in {n.op_type for n in graph.node}
        assert not [
            t.name for t in graph.initializer if len(t.dims) == 2 and t.data_type == 1 and "scale" not in t.name
        ]
        of_vocabulary = [t.name for t in graph.initializer if len(t.dims) == 3 and t.dims[0] == 276]
        assert len(of_vocabulary) == (1 if name == "tied" else 2)


@pytest.mark.parametrize("bits", (4, 8))
@pytest.mark.parametrize("k", (32, 96, 40, 7))
def test_blocks_are_within_half_a_step_of_the_weights(bits, k):
    """Rows that are no multiple of a block are filled up; a block of zeros is zeros."""
    w = np.random.default_rng(k).normal(0, 1, (5, k)).astype(np.float32)
    w[0], w[1, : min(k, 32)] = 0, 0.5
    packed, scale = quantized_blocks(w, bits)
    assert packed.shape == (5, -(-k // 32), 4 * bits) and packed.dtype == np.uint8
    q = packed if bits == 8 else np.stack([packed & 15, packed >> 4], -1).reshape(5, -1, 32)
    back = ((q.astype(np.int32) - (1 << (bits - 1))) * scale[..., None]).reshape(5, -1)
    step = np.repeat(np.abs(scale), 32, axis=-1)
    # At four bits the end opposite to the largest weight is cut off, at seven steps of eight.
    assert (np.abs(back[:, :k] - w) <= (0.5 if bits == 8 else 1.0) * step[:, :k] + 1e-6).all()
    assert (back[:, k:] == 0).all() and (back[0] == 0).all()


# Adapters


def test_an_adapter_is_merged_as_peft_merges_it(checkpoints, tmp_path):
    from peft import PeftModel

    scale = 0.5
    lora, out = tiny.write_tiny_lora(tmp_path / "lora", checkpoints("llama")), tmp_path / "out"
    out.mkdir()
    export(checkpoints("llama"), out, to="fp32", lora=lora, lora_scale=scale)
    row = some_rows(200, 40)[0]
    plain = torch_logits(load(checkpoints("llama")), row)
    adapted = PeftModel.from_pretrained(load(checkpoints("llama")), lora).eval()
    for module in adapted.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling = {k: v * scale for k, v in module.scaling.items()}
    expected = torch_logits(adapted, row)  # not merged: computed beside the model
    assert np.abs(expected - plain).max() > 0.5
    np.testing.assert_allclose(Graph(out / "model.onnx").alone(row), expected, atol=ATOL)


def test_an_adapter_of_another_model_is_refused(checkpoints, tmp_path):
    wide = tiny.write_tiny_checkpoint(tmp_path / "wide", n_embd=64)
    lora, out = tiny.write_tiny_lora(tmp_path / "lora", wide), tmp_path / "out"
    out.mkdir()
    with pytest.raises(
        ModelError, match=r"lora does not fit the model: .*size mismatch.*; give the adapter made for it"
    ):
        export(checkpoints("llama"), out, to="fp32", lora=lora)


# What is written


def test_two_exports_are_the_same_bytes(llama, checkpoints, tmp_path):
    """In two processes, from two places, one of them moved: no path, no time, no order of a set."""
    moved = shutil.copytree(checkpoints("llama"), tmp_path / "elsewhere" / "model")
    out = tmp_path / "out"
    out.mkdir()
    export(moved, out, to="fp32")
    files = {p.name: p.read_bytes() for p in llama.iterdir()}
    assert {p.name: p.read_bytes() for p in out.iterdir()} == files
    for data in files.values():
        assert (
            str(tmp_path).encode() not in data and os.fsencode(Path.home()) not in data and b"site-packages" not in data
        )


def test_quantized_exports_are_the_same_bytes(exported, checkpoints, tmp_path):
    """Also after others in one process: nothing is left from one export to the next."""
    export(checkpoints("tied"), tmp_path, to="int4")
    for path in (tmp_path / "model.onnx", tmp_path / "model.onnx.data"):
        assert path.read_bytes() == exported("tied", "int4").with_name(path.name).read_bytes()


def test_a_folder_is_whole(llama, checkpoints):
    names = {
        "model.onnx",
        "model.onnx.data",
        "tokenizer.json",
        "tokenizer_config.json",
        "config.json",
        "generation_config.json",
    }
    assert {p.name for p in llama.iterdir()} == names
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        assert (llama / name).read_bytes() == (checkpoints("llama") / name).read_bytes()


def test_large_weights_lie_beside_the_graph_and_begin_on_a_page(llama):
    graph = onnx.load(llama / "model.onnx", load_external_data=False).graph
    for tensor in graph.initializer:
        said = {e.key: e.value for e in tensor.external_data}
        assert not said or (said["location"] == "model.onnx.data" and int(said["offset"]) % 4096 == 0)
        assert said or len(tensor.raw_data) < 1024


def test_paths_of_the_makers_machine_are_left_out(checkpoints, tmp_path):
    folder, out = shutil.copytree(checkpoints("llama"), tmp_path / "in"), tmp_path / "out"
    out.mkdir()
    for name, key in (("config.json", "_name_or_path"), ("tokenizer_config.json", "name_or_path")):
        said = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**said, key: str(tmp_path / "guard")}))
    onnx_export.copy_settings(folder, out)
    assert json.loads((out / "config.json").read_text())["_name_or_path"] == "guard"
    assert json.loads((out / "tokenizer_config.json").read_text())["name_or_path"] == "guard"


def test_nothing_reaches_the_terminal_and_nothing_of_the_working_directory_is_run(
    checkpoints, tmp_path, monkeypatch, capfd
):
    """stdout is data, warnings of torch's tracer are for nobody, and a stranger's folder may hold a torch.py."""
    (tmp_path / "torch.py").write_text("raise SystemExit('imported')")
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    export(checkpoints("llama"), Path("out"), to="fp32")  # a relative path, too
    assert (tmp_path / "out" / "model.onnx").is_file()
    assert capfd.readouterr() == ("", "")


# Refused


def _edited(folder: Path, out: Path, **config: Any) -> Path:
    shutil.copytree(folder, out)
    said = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**said, **config}))
    return out


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"quantization_config": {"quant_method": "gptq"}},
            "is quantized already .*; take the checkpoint it was made from",
        ),
        ({"auto_map": {"AutoModel": "m.M"}}, r"config.json asks for Python code of its own \(auto_map\)"),
        ({"model_type": "mamba"}, "is a mamba model .*; a ...ForCausalLM of one of arcee, .* is needed"),
        ({"model_type": ["x"]}, r"is a \['x'\] model"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification.* is needed"),
        ({"architectures": None}, r"\(None\)"),
        ({"model_type": "m\x1b[2J"}, r"is a m\\x1b\[2J model"),
        ({"sliding_window": 128}, "attends within a window of 128 tokens; only models of full attention"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "attends within sliding_attention"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "scales its positions by a prompt's length"),
        ({"rope_scaling": {"type": "longrope"}}, "rope_scaling 'longrope'"),
    ],
)
def test_a_checkpoint_of_another_kind_is_refused_before_torch_starts(config, said, checkpoints, tmp_path, monkeypatch):
    folder = _edited(checkpoints("llama"), tmp_path / "in", **config)
    monkeypatch.setattr(onnx_export, "run_job", None)
    with pytest.raises(ModelError, match=said):
        export(folder, tmp_path, to="fp32")


@pytest.mark.parametrize("config", [{"sliding_window": 512}, {"sliding_window": 8, "use_sliding_window": False}])
def test_a_window_that_limits_nothing_is_let_in(config, checkpoints, tmp_path):
    check_checkpoint(_edited(checkpoints("llama"), tmp_path / "in", **config))


@pytest.mark.parametrize(
    ("gone", "put", "said"),
    [
        (["config.json"], {}, "has no config.json; give the folder of a Hugging Face checkpoint"),
        (["config.json"], {"adapter_config.json": "{}"}, "is a LoRA adapter; give its base model's checkpoint"),
        ([], {"config.json": "{"}, "config.json is not JSON: .*; download the checkpoint again"),
        ([], {"config.json": "[" * 100_000}, "config.json is not JSON"),
        ([], {"config.json": "[]"}, "config.json is no JSON object"),
        (
            [],
            {"tokenizer_config.json": '{"auto_map": {"AutoTokenizer": "t.T"}}'},
            "tokenizer_config.json asks for Python",
        ),
        (["model.safetensors"], {}, "has no model.safetensors; download the checkpoint's weights too"),
        (["model.safetensors"], {"pytorch_model.bin": ""}, r"as pickles only \(.bin\), which can run code"),
        (
            ["model.safetensors"],
            {"model.safetensors.index.json": '{"weight_map": {"w": "a.safetensors"}}'},
            "lacks a.saf",
        ),
        (
            ["model.safetensors"],
            {"model.safetensors.index.json": '{"weight_map": {"w": "../config.json"}}'},
            "lacks ../c",
        ),
        (["model.safetensors"], {"model.safetensors.index.json": '{"weight_map": []}'}, "lacks weights"),
        (["tokenizer.json"], {}, "has no tokenizer.json; download the checkpoint's tokenizer too"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(gone, put, said, checkpoints, tmp_path, monkeypatch):
    folder = shutil.copytree(checkpoints("llama"), tmp_path / "in")
    for name in gone:
        (folder / name).unlink()
    for name, text in put.items():
        (folder / name).write_text(text)
    monkeypatch.setattr(onnx_export, "run_job", None)
    with pytest.raises(ModelError, match=said):
        export(folder, tmp_path, to="fp32")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "has no adapter_config.json; give the folder of a PEFT LoRA adapter"),
        ({"adapter_config.json": '{"peft_type": "IA3"}'}, "is a IA3 adapter; a LORA adapter is needed"),
        ({"adapter_config.json": '{"peft_type": "LORA"}', "adapter_model.bin": ""}, "has no adapter_model.safetensors"),
    ],
)
def test_an_adapter_that_cannot_be_read_is_refused(files, said, checkpoints, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ModelError, match=said):
        export(checkpoints("llama"), tmp_path, to="fp32", lora=tmp_path)


def test_a_missing_package_is_named_with_what_installs_it(checkpoints, tmp_path, monkeypatch):
    def missing(name: str) -> str:
        raise checks.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(checks.metadata, "version", missing)
    with pytest.raises(ModelError, match=r"optimum-onnx and torch, which are not installed .*'edgeguard\[optimum\]'"):
        export(checkpoints("llama"), tmp_path, to="fp32")


def test_an_output_that_cannot_be_written_is_not_the_model_s_fault(checkpoints, tmp_path):
    with pytest.raises(OutputError, match="gone cannot be written: No such file"):
        export(checkpoints("llama"), tmp_path / "gone", to="fp32")


def test_the_last_words_of_a_failure_are_told(checkpoints, tmp_path):
    """A config that the libraries refuse: their reason, and no traceback."""
    folder, out = _edited(checkpoints("llama"), tmp_path / "in", hidden_act="no\x1bsuch"), tmp_path / "out"
    out.mkdir()
    with pytest.raises(
        ModelError, match=r"in cannot be exported: optimum failed: .*no.*such.*; take another"
    ) as raised:
        export(folder, out, to="fp32")
    assert "Traceback" not in str(raised.value) and "\x1b" not in str(raised.value) and "\n" not in str(raised.value)
    assert not list(out.iterdir())


def test_weights_that_are_not_there_do_not_become_random(checkpoints, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(checkpoints("llama"), tmp_path / "in")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"in has no weight model.layers.1.mlp.up_proj.weight; download all its files"):
        export(folder, tmp_path, to="fp32")


def test_a_tokenizer_that_nobody_can_read_is_refused(checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints("llama"), tmp_path / "in")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"no sentencepiece")
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ModelError, match=r"in has no tokenizer.json, and transformers cannot make it \(.*; get one"):
        write_tokenizer(folder, out)


def test_wrong_names_are_a_programmer_s_mistake(tmp_path):
    with pytest.raises(ValueError, match="to is 'fp8'"):
        export(tmp_path, tmp_path, to="fp8")  # type: ignore[arg-type]


# The check


def test_a_graph_that_computes_something_else_is_not_handed_out(checkpoints, exported):
    """The check has to see what the export could do wrong, in one weight and in one operator."""
    model, check = load(checkpoints("llama")), probe.Probe(276)
    expected, good = check.torch_logits(model), exported("llama", "fp32")
    check.refuse_other(check.graph_logits(good), expected, 1e-2)
    with pytest.raises(ModelError, match=r"differ by \d.* from torch's, 0.01 is allowed; take a GGUF"):
        check.refuse_other(check.graph_logits(exported("mistral", "fp32")), expected, 1e-2)
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.weight[0] += 0.5
    with pytest.raises(ModelError, match="computes something else"):
        check.refuse_other(check.graph_logits(good), check.torch_logits(model), 1e-2)
    with pytest.raises(ModelError, match="overflows"):
        check.refuse_other(np.full_like(expected, np.nan), expected, None)


@pytest.mark.parametrize("wrong", ("position_ids", "attention_mask", "past"))
def test_the_check_sees_a_forgotten_input(wrong, checkpoints, exported, monkeypatch):
    """A graph traced with a constant in the place of an input would pass a check of one prompt alone."""
    check, real = probe.Probe(276), probe.open_session

    class Forgetful:
        def __init__(self, path: Path) -> None:
            self.session = real(path)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.session, name)

        def run(self, names: Any, inputs: dict[str, np.ndarray]) -> Any:
            if wrong == "position_ids":
                rows, width = inputs["input_ids"].shape
                past = inputs["attention_mask"].shape[1] - width
                inputs = {**inputs, wrong: np.tile(np.arange(past, past + width), (rows, 1))}
            elif wrong == "attention_mask":
                inputs = {**inputs, wrong: np.ones_like(inputs[wrong])}
            else:
                inputs = {k: v * 0 if k.startswith("past") else v for k, v in inputs.items()}
            return self.session.run(names, inputs)

    expected = check.torch_logits(load(checkpoints("llama")))
    monkeypatch.setattr(probe, "open_session", Forgetful)
    with pytest.raises(ModelError, match="computes something else"):
        check.refuse_other(check.graph_logits(exported("llama", "fp32")), expected, 1e-2)


# The cut


def _model(nodes: list[Any], n_initial: int = 0) -> Any:
    weights = [
        onnx.numpy_helper.from_array(np.ones((4, 6), np.float32), "w"),
        onnx.numpy_helper.from_array(np.ones(6, np.float32), "b"),
        onnx.numpy_helper.from_array(np.ones((6, 6), np.float32), "square"),
    ]
    value = onnx.helper.make_tensor_value_info
    inputs = [value(n, 1, ["b", "s", 4]) for n in ("x", "y", "z")]
    return onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "g", inputs, [value("logits", 1, ["b", "s", 6])], weights)
    )


def test_the_cut_goes_behind_biases_scales_and_caps():
    node = onnx.helper.make_node
    model = _model(
        [
            node("MatMul", ["x", "w"], ["m"], name="head"),
            node("Add", ["b", "m"], ["a"]),
            node("Tanh", ["a"], ["t"]),
            node("Mul", ["t", "b"], ["logits"]),
        ]
    )
    assert cut(model) == "head"
    x = np.random.default_rng(0).normal(0, 0.1, (2, 3, 4)).astype(np.float32)
    session = ort.InferenceSession(_runnable(model))
    empty = np.zeros((1, 1, 4), np.float32)
    (logits,) = session.run(None, {"x": x, "y": empty, "z": empty, "positions": np.array([4, 0])})
    whole = np.tanh(x.sum(-1, keepdims=True) + np.ones(6)).reshape(-1, 6)
    np.testing.assert_allclose(logits, whole[[4, 0]], rtol=1e-5)


def _runnable(model: Any) -> bytes:
    model.ir_version, model.opset_import[0].version = 8, 18
    data: bytes = model.SerializeToString()
    return data


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([("MatMul", ["x", "y"], ["logits"])], "come from MatMul, no matrix of weights"),
        ([("Softmax", ["x"], ["logits"])], "come from Softmax, no matrix of weights"),
        ([("MatMul", ["x", "w"], ["m"]), ("Add", ["m", "y"], ["logits"])], "pass through Add of"),
        ([("MatMul", ["x", "w"], ["m"]), ("Add", ["m", "square"], ["logits"])], "pass through Add of"),
        ([("MatMul", ["x", "w"], ["m"]), ("Neg", ["m"], ["n"]), ("Mul", ["b", "m"], ["logits"])], "go to 2 places"),
    ],
)
def test_a_graph_of_another_shape_is_not_cut(nodes, said):
    """Rows must stay rows: what mixes them after the matrix would get the wrong ones."""
    with pytest.raises(ModelError, match=f"{said}.*take a GGUF file of the model"):
        cut(_model([onnx.helper.make_node(*node) for node in nodes]))


# onnxruntime-genai's own graphs


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """genai's attention runs with heads of a multiple of 16 only."""
    return tiny.write_tiny_checkpoint(tmp_path_factory.mktemp("wide"), n_embd=64)


@pytest.fixture(scope="session")
def genai(wide: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    pytest.importorskip("onnxruntime_genai")
    pytest.importorskip("onnx_ir")  # its builder needs it, and does not say so
    place = tmp_path_factory.mktemp("genai")

    def build(precision: str, **options: str) -> Path:
        out = place / "-".join([precision, *options])
        return out if out.is_dir() else tiny.build_genai(wide, out, precision=precision, **options)

    return build


@pytest.mark.parametrize(
    ("precision", "options", "output", "width"),
    [
        ("fp32", {}, "logits", ["batch_size", "sequence_length", 276]),
        ("fp32", {"prune_lm_head": "true"}, "logits", ["batch_size", 1, 276]),
        ("fp32", {"exclude_lm_head": "true"}, "hidden_states", ["batch_size", "sequence_length", 64]),
        ("int4", {}, "logits", ["batch_size", "sequence_length", 276]),
    ],
)
def test_genai_graphs_are_as_recorded(precision, options, output, width, genai):
    """The I/O that tiny_checkpoint.py records. No position_ids; the head's size is a name, not a number."""
    folder = genai(precision, **options)
    session = ort.InferenceSession(str(folder / "model.onnx"))
    head = "kv_cache_dim"
    expected = {
        "input_ids": ("tensor(int64)", ["batch_size", "sequence_length"]),
        "attention_mask": ("tensor(int64)", ["batch_size", "total_sequence_length"]),
        output: ("tensor(float)", width),
    }
    for i in range(2):
        for part in ("key", "value"):
            past = ["batch_size", 2, "past_sequence_length", head]
            expected[f"past_key_values.{i}.{part}"] = ("tensor(float)", past)
            expected[f"present.{i}.{part}"] = ("tensor(float)", ["batch_size", 2, "total_sequence_length", head])
    assert {p.name: (p.type, p.shape) for p in (*session.get_inputs(), *session.get_outputs())} == expected
    said = json.loads((folder / "genai_config.json").read_text())["model"]
    assert (said["decoder"]["head_size"], said["context_length"], said["type"]) == (16, 512, "llama")


def test_genai_graphs_give_torch_s_logits_one_row_at_a_time(genai, wide):
    """Batches are right padded without a past; with one, only a single row goes."""
    model = load(wide)
    session = ort.InferenceSession(str(genai("fp32") / "model.onnx"))
    rows = some_rows(276, 9, 4)
    past = {f"past_key_values.{i}.{p}": np.zeros((2, 2, 0, 16), np.float32) for i in (0, 1) for p in ("key", "value")}
    ids = np.array([row + [7] * (9 - len(row)) for row in rows])
    mask = np.array([[1] * len(row) + [0] * (9 - len(row)) for row in rows])
    logits, *_ = session.run(None, {"input_ids": ids, "attention_mask": mask, **past})
    for i, row in enumerate(rows):
        np.testing.assert_allclose(logits[i, : len(row)], torch_logits(model, row), atol=ATOL)
    names = [o.name for o in session.get_outputs()]
    one = {k: v[:1] for k, v in past.items()}
    begun = dict(zip(names, session.run(None, {"input_ids": ids[:1], "attention_mask": mask[:1], **one}), strict=True))
    one = {k: begun[k.replace("past_key_values", "present")] for k in past}
    (logits,) = session.run(["logits"], {"input_ids": ids[1:, :4], "attention_mask": np.ones((1, 13), np.int64), **one})
    np.testing.assert_allclose(logits[0], torch_logits(model, rows[0] + rows[1])[9:], atol=ATOL)
    two = {k: np.repeat(v, 2, axis=0) for k, v in one.items()}
    with pytest.raises(Exception, match="batch_size must be 1 when sequence_length > 1 and past context is given"):
        session.run(["logits"], {"input_ids": ids[:, :4], "attention_mask": np.ones((2, 13), np.int64), **two})
