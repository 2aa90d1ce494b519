"""What is particular to ONNX models: files from strangers, devices, rows and their past."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from tiny_gguf import write_tiny_llama

from edgeguard.backend import Prefix, RuntimeOptions
from edgeguard.backends import open_backend
from edgeguard.convert import convert
from edgeguard.errors import ModelError
from edgeguard.formats import onnx_graph
from edgeguard.formats.model_file import find_model


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("source") / "tiny.gguf", seed=2)


@pytest.fixture(scope="module")
def converted(source, tmp_path_factory):
    return convert(source, tmp_path_factory.mktemp("converted") / "onnx", to="onnx-fp32").path


@pytest.fixture(scope="module")
def windowed(tmp_path_factory):
    """The first of two layers has a window of 16 tokens."""
    pattern = {"llama.attention.sliding_window_pattern": 2}
    source = tmp_path_factory.mktemp("windowed") / "tiny.gguf"
    write_tiny_llama(source, seed=2, arch="gemma3", metadata=pattern)
    return convert(source, source.parent / "onnx", to="onnx-fp32").path


@pytest.fixture
def folder(converted, tmp_path):
    """A copy to damage."""
    return Path(shutil.copytree(converted, tmp_path / "onnx"))


def change(folder: Path, edit) -> None:
    model = onnx.load_model(folder / "model.onnx", load_external_data=False)
    edit(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def assert_refused(folder: Path, match: str) -> None:
    with pytest.raises(ModelError, match=match):
        open_backend(folder, RuntimeOptions(context=128, threads=1))


# Found by content


def test_a_model_is_found_by_its_content(source, converted, checkpoint, tmp_path):
    assert find_model(source).kind == "gguf"
    assert find_model(converted).path == find_model(converted / "model.onnx").path == converted / "model.onnx"
    assert find_model(checkpoint).kind == "checkpoint"
    renamed = Path(shutil.copy(source, tmp_path / "model.bin"))
    assert find_model(renamed).kind == "gguf"
    assert find_model(shutil.copy(converted / "model.onnx", tmp_path / "graph")).kind == "onnx"


def test_a_folder_of_several_models_asks_which(source, tmp_path):
    for name in ("a.gguf", "b.gguf"):
        shutil.copy(source, tmp_path / name)
    with pytest.raises(ModelError, match=r"holds 2 models; give one of them: a\.gguf, b\.gguf"):
        find_model(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="holds no model"):
        find_model(tmp_path / "empty")


def test_a_checkpoint_is_to_be_converted_first(checkpoint):
    with pytest.raises(ModelError, match="convert it first: edgeguard convert"):
        open_backend(checkpoint)


# Files from strangers


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "a/../../b", "C:\\secret", "..\\secret", ""])
def test_weights_outside_the_folder_are_not_read(folder, location):
    def edit(model):
        entries = next(t.external_data for t in model.graph.initializer if t.external_data)
        next(e for e in entries if e.key == "location").value = location

    change(folder, edit)
    assert_refused(folder, "outside the model's folder")


def test_operators_that_need_another_library_are_refused(folder):
    change(folder, lambda model: model.graph.node.add(op_type="Shell", domain="evil", input=["cos"], output=["x"]))
    assert_refused(folder, "needs the operator evil:Shell")


def test_weights_that_are_missing_or_cut_short_are_said_so(folder):
    data = folder / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-1])
    assert_refused(folder, "is truncated")
    data.unlink()
    assert_refused(folder, "which is not beside it; download both")


@pytest.mark.parametrize("damage", [b"", b"\x08", b"not a model at all", bytes(range(256)) * 9])
def test_what_is_no_graph_is_refused(folder, damage):
    (folder / "model.onnx").write_bytes(damage)
    assert_refused(folder, "is not an ONNX file")


def test_damaged_graphs_end_in_an_error_and_never_the_process(converted, tmp_path):
    """One byte after the other; what still loads must still answer, or say why not."""
    good = (converted / "model.onnx").read_bytes()
    rng = np.random.default_rng(0)
    for n in range(60):
        folder = Path(shutil.copytree(converted, tmp_path / str(n)))
        data = bytearray(good)
        for at in rng.integers(0, len(data), 3):
            data[at] = rng.integers(0, 256)
        (folder / "model.onnx").write_bytes(data)
        try:
            backend = open_backend(folder, RuntimeOptions(context=64, threads=1))
            backend.logprobs([Prefix((5, 6, 7))])
            backend.close()
        except ModelError:
            pass


def test_a_graph_that_is_no_decoder_with_a_past_says_how_to_export_one(folder):
    def forget(model):
        kept = [i for i in model.graph.input if not i.name.startswith("past")]
        del model.graph.input[:]
        model.graph.input.extend(kept)

    change(folder, forget)
    assert_refused(folder, "has no past_key_values inputs; export it")


def test_an_input_that_nobody_fills_is_named(folder):
    extra = helper.make_tensor_value_info("use_cache_branch", TensorProto.BOOL, [1])
    change(folder, lambda model: model.graph.input.append(extra))
    assert_refused(folder, "wants an input 'use_cache_branch'")


@pytest.mark.parametrize("said", [None, "0", "-3", "sixteen", "16.0", "1" * 11])
def test_a_graph_with_a_window_says_how_long_it_is(windowed, tmp_path, said):
    def edit(model):
        kept = [entry for entry in model.metadata_props if entry.key != onnx_graph.WINDOW]
        del model.metadata_props[:]
        model.metadata_props.extend(kept)
        if said is not None:
            model.metadata_props.add(key=onnx_graph.WINDOW, value=said)

    folder = Path(shutil.copytree(windowed, tmp_path / "onnx"))
    change(folder, edit)
    assert_refused(folder, r"edgeguard\.window is .*, and it takes a mask of a sliding window")


def test_a_window_without_its_mask_is_refused(folder):
    change(folder, lambda model: model.metadata_props.add(key=onnx_graph.WINDOW, value="16"))
    assert_refused(folder, "is '16', and it takes no mask of a sliding window")


def test_weights_that_compute_no_numbers_are_said_so(folder):
    data = folder / "model.onnx.data"
    data.write_bytes(b"\xff" * data.stat().st_size)  # float32 NaN
    backend = open_backend(folder, RuntimeOptions(context=128, threads=1))
    with pytest.raises(ModelError, match="computes no numbers"):
        backend.logprobs([Prefix((5, 6))])
    backend.close()


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("config.json", b"{", "is not JSON"),
        ("config.json", b"[]", "is no JSON object"),
        ("config.json", b'{"max_position_embeddings": "many"}', "context length is 'many'"),
        ("config.json", b'{"max_position_embeddings": -1}', "context length is -1"),
        ("tokenizer.json", b"{}", r"tokenizer\.json"),
        ("tokenizer.json", None, r"tokenizer\.json"),
    ],
)
def test_a_folder_s_other_files_are_checked(folder, name, content, match):
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    assert_refused(folder, match)


def test_a_model_that_does_not_say_its_context_needs_to_be_told(folder):
    (folder / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="give a `context`"):
        open_backend(folder, RuntimeOptions(threads=1))
    open_backend(folder, RuntimeOptions(threads=1, context=64)).close()


# Devices


def test_cuda_without_its_provider_names_the_package(converted):
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(ModelError, match=r"needs onnxruntime-gpu.*edgeguard\[onnx-gpu\]"):
        open_backend(converted, RuntimeOptions(device="cuda"))
    open_backend(converted, RuntimeOptions(device="auto", threads=1)).close()


def test_a_session_that_fell_back_without_a_word_is_an_error(converted, monkeypatch):
    """onnxruntime-gpu lists CUDA whether or not it can be used, and goes on on the CPU."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda file, options, providers: real(file, options, providers[1:])
    )
    with pytest.raises(ModelError, match="CUDA was asked for and could not be started"):
        open_backend(converted, RuntimeOptions(device="cuda", threads=1))
    open_backend(converted, RuntimeOptions(device="auto", threads=1)).close()


def test_llama_cpp_without_a_gpu_says_how_to_build_it(source):
    import llama_cpp

    if llama_cpp.llama_supports_gpu_offload():
        pytest.skip("this llama.cpp has a GPU")
    for options in ({"device": "cuda"}, {"gpu_layers": 3}, {"gpu_layers": -1}):
        with pytest.raises(ModelError, match="built without GPU support"):
            open_backend(source, RuntimeOptions(context=128, **options))
    open_backend(source, RuntimeOptions(context=128, threads=1, device="auto")).close()


def test_missing_packages_are_named_with_their_extra(converted, monkeypatch):
    for name in [n for n in sys.modules if n.startswith("edgeguard.backends.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModelError, match=r"needs ONNX Runtime, which is not installed.*edgeguard\[onnx\]"):
        open_backend(converted)


# Rows


@pytest.mark.parametrize("which", ["converted", "windowed"])
def test_a_dynamically_quantized_model_never_meets_a_neighbour(request, tmp_path, which):
    """Its kernels scale activations over all rows of a call: so a record, and a branch, is a call of its own."""
    from onnxruntime.quantization import quantize_dynamic

    converted = request.getfixturevalue(which)
    graph = onnx_graph.read_graph(converted / "model.onnx")
    assert not onnx_graph.read_interface(graph).one_row
    folder = Path(shutil.copytree(converted, tmp_path / "dynamic"))
    options = {"MatMulConstBOnly": True, "DefaultTensorType": TensorProto.FLOAT}
    only = ["MatMul"]
    out = folder / "model.onnx"
    quantize_dynamic(converted / "model.onnx", out, op_types_to_quantize=only, extra_options=options)
    graph = onnx_graph.read_graph(folder / "model.onnx")
    assert onnx_graph.read_interface(graph).one_row
    assert onnx_graph.quantization(graph) == "dynamic int8"
    backend = open_backend(folder, RuntimeOptions(context=512, threads=1))
    record = Prefix(tuple(range(50, 70)), Prefix((40, 41)))
    branches = [Prefix((t, t + 1), record) for t in (9, 11, 200)]
    alone = [backend.logprobs([prefix])[0] for prefix in (record, *branches)]
    np.testing.assert_array_equal(backend.logprobs([record, *branches]), alone)
    backend.close()


@pytest.mark.parametrize("which", ["converted", "windowed"])
def test_prompts_longer_than_a_chunk_are_those_of_one_call(request, monkeypatch, which):
    from edgeguard.backends.onnx_runtime import model as onnx_runtime

    converted = request.getfixturevalue(which)
    root = Prefix(tuple(range(3, 60)) * 5)
    record = Prefix(tuple(range(60, 90)) * 3, root)
    branches = [Prefix((t, t + 1), record) for t in (9, 11, 13)]
    rows = []
    for n_batch in (1 << 12, 32):
        monkeypatch.setattr(onnx_runtime, "N_BATCH", n_batch)
        backend = open_backend(converted, RuntimeOptions(context=1024, threads=1))
        rows.append(np.concatenate([backend.logprobs([record, *branches]), backend.logprobs(branches[1:])]))
        backend.close()
    np.testing.assert_allclose(*rows, atol=1e-3)  # nats, the adapter's own tolerance for floats


def test_rows_are_grouped_so_that_padding_wastes_little():
    from edgeguard.backends.onnx_runtime.model import _alike, _Row

    rows = [_Row((0,) * n, {}) for n in (1, 9, 2, 1, 30, 8, 16, 2)]
    groups = [[len(row.tokens) for row in group] for group in _alike(rows, 3)]
    assert groups == [[1, 1, 2], [2], [8, 9, 16], [30]]
