"""`edgeguard convert` as a whole: what comes out, what it says of itself, what is left of a failure."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_gguf import write_tiny_llama, write_tiny_recurrent

from edgeguard.cli import main
from edgeguard.convert import ONNX_TYPES, TYPES, Options, convert, default_output
from edgeguard.errors import ModelError, OutputError
from edgeguard.formats import gguf, onnx_graph

FILES = ["config.json", "edgeguard.json", "generation_config.json", "model.onnx", "tokenizer.json"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("source") / "guard.F32.gguf", seed=4, name="Tiny Guard")


def everything(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("to", [*ONNX_TYPES, "q8_0", "f16", "f32"])
def test_converting_twice_gives_the_same_bytes(source, tmp_path, to):
    folders = []
    for n in (1, 2):
        folder = tmp_path / str(n)
        folder.mkdir()
        done = convert(source, folder / "out.gguf", to=to, options=Options(threads=n))
        folders.append(everything(done.path if done.path.is_dir() else folder))
    assert folders[0] == folders[1]


@pytest.mark.parametrize("to", ["onnx-int8", "q8_0"])
def test_the_manifest_and_the_file_itself_say_what_it_was_made_from(source, tmp_path, to):
    done = convert(source, tmp_path / "out", to=to)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert done.manifest["sources"] == [
        {"role": "model", "file": "guard.F32.gguf", "sha256": digest, "n_bytes": source.stat().st_size}
    ]
    folder = done.path if done.path.is_dir() else done.path.parent
    for said in done.manifest["outputs"]:
        data = (folder / said["file"]).read_bytes()
        assert (said["sha256"], said["n_bytes"]) == (hashlib.sha256(data).hexdigest(), len(data))
    if to == "q8_0":
        metadata = gguf.read_header(done.path).metadata
        beside = json.loads((tmp_path / "out.manifest.json").read_text())
    else:
        metadata = onnx_graph.read_graph(done.path / "model.onnx").metadata
        beside = json.loads((done.path / "edgeguard.json").read_text())
    assert (metadata["edgeguard.to"], metadata["edgeguard.model.sha256"]) == (to, digest)
    assert beside == done.manifest
    assert str(tmp_path) not in json.dumps(beside)


def test_an_onnx_folder_has_what_users_of_hugging_face_expect(source, tmp_path):
    folder = convert(source, tmp_path / "onnx", to="onnx-fp32").path
    names = {path.name for path in folder.iterdir()}
    assert {*FILES, "model.onnx.data", "tokenizer_config.json"} <= names
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["max_position_embeddings"], config["hidden_size"]) == ("llama", 2048, 32)


def test_int8_and_int4_are_ggml_s_own_blocks(source, tmp_path):
    """So that one GGUF of the type and the ONNX model hold the very same weights."""
    for to, kind in (("onnx-int8", "q8_0"), ("onnx-int4", "q4_0")):
        direct = convert(source, tmp_path / to, to=to).path
        ggml = convert(source, tmp_path / f"{kind}.gguf", to=kind).path
        carried = convert(ggml, tmp_path / f"{to}-carried", to="onnx").path
        linear = "blk.1.ffn_down.weight"
        assert _initializer(direct, linear) == _initializer(carried, linear)
        assert _initializer(direct, f"{linear}/scale") == _initializer(carried, f"{linear}/scale")


def _initializer(folder: Path, name: str) -> bytes:
    import onnx

    model = onnx.load_model(folder / "model.onnx")
    return next(onnx.numpy_helper.to_array(t).tobytes() for t in model.graph.initializer if t.name == name)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_blocks_hold_the_weights_that_ggml_reads_from_them(kind):
    import gguf as library

    from edgeguard.convert.blocks import carry

    rng = np.random.default_rng(3)
    weights = rng.normal(size=(7, 96)).astype(np.float32)
    weights[2, 32:64] = 0.75  # one weight repeated: Q4_1's scale is 0
    weights[3] = 0
    type_ = library.GGMLQuantizationType[kind]
    raw = library.quants.quantize(weights, type_)
    blocks = carry(raw, kind)
    if blocks.bits == 4:
        q = np.stack([blocks.packed & 15, blocks.packed >> 4], axis=-1).reshape(7, 3, 32).astype(np.float32)
    else:
        q = blocks.packed.astype(np.float32)
    zero = np.float32(1 << (blocks.bits - 1)) if blocks.zero is None else blocks.zero[..., None]
    restored = (blocks.scale[..., None] * (q - zero)).reshape(7, 96)
    np.testing.assert_allclose(restored, library.quants.dequantize(raw, type_), rtol=1e-6, atol=1e-7)


# What a user sees


def test_the_command_prints_the_path_and_its_notices(run, source, tmp_path):
    result = run("convert", source, "--to", "Q4_K_M", "--output", tmp_path / "out.gguf")
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'out.gguf'}\n")
    assert "matrices became" in result.stderr
    assert "rows of 32, 64 weights" in result.stderr
    again = run("convert", tmp_path / "out.gguf", "--to", "q4_0", "--output", tmp_path / "again.gguf")
    assert "quantized already (Q4_K_M): q4_0 adds its own error" in again.stderr


def test_an_output_without_a_name_is_named_after_the_model(source, tmp_path):
    assert default_output(source, "onnx-int8") == Path("guard-onnx-int8")
    assert default_output(source, "q8_0") == Path("guard.q8_0.gguf")
    assert default_output(source, "onnx") == Path("guard.F32-onnx")
    assert default_output(Path("some/guard.v2.gguf"), "f16") == Path("guard.v2.f16.gguf")


def test_the_types_in_the_help_exist(run):
    said = run("convert", "--help").stdout
    words = said[said.index("--to TYPE") : said.index("--output")].replace(",", " ").split()
    named = {word for word in words if word in TYPES or word.startswith(("onnx-", "q", "iq"))}
    assert {*ONNX_TYPES, "q8_0", "f16"} <= named <= {*TYPES, "quantized"}
    assert "convert" in main.commands


def test_an_unknown_type_is_misuse_and_names_the_known_ones(run, source):
    result = run("convert", source, "--to", "int8")
    assert result.exit_code == 2
    assert "onnx-int8" in result.stderr


def test_an_existing_output_is_kept_unless_it_may_be_replaced(run, source, tmp_path):
    for to, out in (("onnx", tmp_path / "folder"), ("q8_0", tmp_path / "file.gguf")):
        assert run("convert", source, "--to", to, "-o", out).exit_code == 0
        refused = run("convert", source, "--to", to, "-o", out)
        assert refused.exit_code == 1
        assert "--overwrite" in refused.stderr
        assert run("convert", source, "--to", to, "-o", out, "--overwrite").exit_code == 0


def test_overwrite_never_removes_a_folder_that_no_conversion_made(run, source, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    result = run("convert", source, "--to", "onnx", "-o", mine, "--overwrite")
    assert result.exit_code == 1
    assert "no conversion made" in result.stderr
    assert (mine / "thesis.txt").read_text() == "years of work"


def test_a_gguf_is_no_folder_and_an_onnx_model_no_file(source, tmp_path):
    folder = convert(source, tmp_path / "out", to="onnx").path
    with pytest.raises(OutputError, match="is a folder"):
        convert(source, folder, to="q8_0", options=Options(overwrite=True))
    file = convert(source, tmp_path / "out.gguf", to="q8_0").path
    with pytest.raises(OutputError, match="is a file"):
        convert(source, file, to="onnx", options=Options(overwrite=True))


def test_a_model_is_not_written_over_itself(source, tmp_path):
    copy = Path(shutil.copy(source, tmp_path / "guard.gguf"))
    with pytest.raises(OutputError, match="is what is read"):
        convert(copy, copy, to="q8_0", options=Options(overwrite=True))


# What is refused


def test_what_cannot_be_converted_says_why(run, source, checkpoint, tmp_path):
    onnx = convert(source, tmp_path / "onnx", to="onnx").path
    mamba = write_tiny_recurrent(tmp_path / "mamba.gguf")
    scaled = write_tiny_llama(tmp_path / "yarn.gguf", metadata={"llama.rope.scaling.type": "yarn"})
    odd = write_tiny_llama(tmp_path / "odd.gguf", metadata={"llama.attention.temperature_scale": 0.5})
    for model, to, reason in (
        (onnx, "onnx-int8", "is an ONNX model already"),
        (mamba, "onnx", "mamba"),
        (scaled, "onnx", "rope.scaling.type is 'yarn'"),
        (odd, "onnx", "says llama.attention.temperature_scale, which the converter to ONNX does not know"),
        (checkpoint, "q8_0", "convert_hf_to_gguf.py"),
        (tmp_path / "nothing.gguf", "onnx", "does not exist"),
        (source.parent / "..", "onnx", "holds"),
    ):
        result = run("convert", model, "--to", to, "-o", tmp_path / "out")
        assert (result.exit_code, reason in result.stderr) == (1, True), result.stderr
        assert not (tmp_path / "out").exists()


def test_an_importance_matrix_is_for_quantized_gguf_types(source, tmp_path):
    with pytest.raises(ModelError, match="importance matrix is for quantized GGUF"):
        convert(source, tmp_path / "out", to="onnx-int8", options=Options(imatrix=tmp_path / "im.dat"))


@pytest.mark.parametrize(("package", "to"), [("onnx", "onnx"), ("gguf", "onnx-int8")])
def test_missing_packages_are_named_and_nothing_is_left(source, tmp_path, package, to):
    """In a process that finds all but one package, as after `make demo` with fewer extras."""
    code = (
        "import sys, importlib.util as util\n"
        f"real = util.find_spec\nutil.find_spec = lambda name, *a: None if name == {package!r} else real(name, *a)\n"
        f"sys.modules[{package!r}] = None\n"
        "from edgeguard.cli import main\nmain()"
    )
    command = [sys.executable, "-c", code, "convert", source, "--to", to, "-o", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert f"needs the {package} package, which is not installed; pip install" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_missing_tensor_is_named(tmp_path):
    whole = write_tiny_llama(tmp_path / "whole.gguf", tied=True)
    data = whole.read_bytes().replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_xx.weight")
    (tmp_path / "odd.gguf").write_bytes(data)
    with pytest.raises(ModelError, match=r"has no tensor 'blk\.1\.ffn_up\.weight'"):
        convert(tmp_path / "odd.gguf", tmp_path / "out", to="onnx")
    data = whole.read_bytes().replace(b"blk.1.ffn_norm.weight", b"blk.1.odd_norm.weight")
    (tmp_path / "odd.gguf").write_bytes(data)
    with pytest.raises(ModelError, match=r"has no tensor 'blk\.1\.ffn_norm\.weight'"):
        convert(tmp_path / "odd.gguf", tmp_path / "out", to="onnx")
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_a_tensor_that_the_converter_does_not_know_is_not_passed_over(tmp_path):
    source = write_tiny_llama(tmp_path / "tiny.gguf", arch="qwen2")
    odd = tmp_path / "odd.gguf"
    odd.write_bytes(source.read_bytes().replace(b"blk.1.attn_q.bias", b"blk.1.attn_z.bias"))
    with pytest.raises(ModelError, match=r"blk\.1\.attn_z\.bias is not part of a qwen2 model"):
        convert(odd, tmp_path / "out", to="onnx")


GEMMA_2 = {"arch": "gemma2", "tied": True}
GEMMA_3 = {"arch": "gemma3", "tied": True}


@pytest.mark.parametrize(
    ("model", "metadata", "said"),
    [
        (
            {"arch": "mistral3"},
            {},
            "made from llama, granite, qwen2, qwen3, gemma2, gemma3 models, this one is mistral3",
        ),
        ({"arch": "gemma"}, {}, "this one is gemma;"),
        (GEMMA_2, {"attention.sliding_window": 0}, "a sliding window of 0 tokens in a pattern of 2 layers is none"),
        (GEMMA_2, {"attention.sliding_window_pattern": [1, 0]}, "sliding_window_pattern is no single number"),
        (GEMMA_2, {"attn_logit_softcapping": 0.0}, "gemma2.attn_logit_softcapping is 0, logits cannot be held"),
        (GEMMA_2, {"final_logit_softcapping": -30.0}, "gemma2.final_logit_softcapping is -30"),
        (GEMMA_2, {"attention.scale": 0.1}, "gemma2.attention.scale, which the converter to ONNX does not know"),
        (GEMMA_3, {"attn_logit_softcapping": 50.0}, "gemma3.attn_logit_softcapping, which the converter"),
        (GEMMA_3, {"attention.key_length_swa": 4}, "gemma3.attention.key_length_swa, which the converter"),
        ({"arch": "gemma2"}, {}, "tensor output.weight is not part of a gemma2 model"),
        ({**GEMMA_3, "rope_factors": (1.0, 1.0, 2.0, 2.0)}, {}, "rope_freqs.weight is not part of a gemma3 model"),
    ],
    ids=str,
)
def test_what_would_change_the_numbers_of_a_model_is_refused_by_name(tmp_path, model, metadata, said):
    more = {f"llama.{key}": value for key, value in metadata.items()}
    source = write_tiny_llama(tmp_path / "tiny.gguf", metadata=more, **model)
    with pytest.raises(ModelError) as caught:
        convert(source, tmp_path / "out", to="onnx")
    assert said in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


@pytest.mark.parametrize("name", ["post_attention_norm", "post_ffw_norm", "attn_k_norm"])
def test_a_gemma_without_one_of_its_norms_is_not_converted_without_it(tmp_path, name):
    source = write_tiny_llama(tmp_path / "tiny.gguf", **GEMMA_3)
    source.write_bytes(source.read_bytes().replace(f"blk.1.{name}".encode(), f"blk.1.{name[:-1]}x".encode()))
    with pytest.raises(ModelError, match=rf"has no tensor 'blk\.1\.{name}\.weight'"):
        convert(source, tmp_path / "out", to="onnx")


@pytest.mark.parametrize("model", [GEMMA_2, GEMMA_3], ids=["gemma2", "gemma3"])
def test_gemma_is_not_computed_in_float16_which_may_not_hold_what_its_layers_add(tmp_path, model):
    source = write_tiny_llama(tmp_path / "tiny.gguf", **model)
    with pytest.raises(ModelError, match="may go beyond what float16 holds, 65504"):
        convert(source, tmp_path / "out", to="onnx-fp16")


def test_too_little_room_is_said_before_anything_is_written(source, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(OutputError, match=r"needs about .* the disk has 0 MB free"):
        convert(source, tmp_path / "out", to="onnx-fp32")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_becomes_full_leaves_nothing(source, tmp_path, monkeypatch):
    from edgeguard.convert.store import Store

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Store, "tensor", full)
    with pytest.raises(OutputError, match="the disk became full"):
        convert(source, tmp_path / "out", to="onnx-fp32")
    assert list(tmp_path.iterdir()) == []


def test_a_system_that_opens_no_folder_and_flushes_only_what_is_written_to_converts_too(source, tmp_path, monkeypatch):
    """Windows, whose two refusals are played here: every conversion ended with one of them."""
    real_open, real_sync = os.open, os.fsync

    def open_(path, flags, *rest, **more):
        if os.path.isdir(path) and flags == os.O_RDONLY:
            raise PermissionError(13, "Permission denied", str(path))
        return real_open(path, flags, *rest, **more)

    def fsync(descriptor):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(9, "Bad file descriptor")
        real_sync(descriptor)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "fsync", fsync)
    assert (convert(source, tmp_path / "onnx", to="onnx").path / "model.onnx").is_file()
    assert convert(source, tmp_path / "out.gguf", to="f32").path.is_file()


@pytest.mark.parametrize("with_signal", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.smollm2
def test_an_interrupted_conversion_leaves_nothing(edgeguard_command, tmp_path, with_signal):
    child = subprocess.Popen(
        edgeguard_command("convert", "--to", "onnx-fp32", "-o", tmp_path / "out"), stderr=subprocess.PIPE
    )
    until = time.monotonic() + 60
    while time.monotonic() < until:
        data = list(tmp_path.glob(".out.partial-*/out/model.onnx.data"))
        if data and data[0].stat().st_size > 1 << 20:  # all is imported: Python exits otherwise when hit there
            break
        time.sleep(0.005)
    os.kill(child.pid, with_signal)
    _, said = child.communicate(timeout=60)
    assert (child.returncode, b"interrupted" in said) == (130 if with_signal == signal.SIGINT else 1, True), said
    assert list(tmp_path.iterdir()) == []
