"""How large a conversion's result will be is said before it is made, and is right."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny_gguf import write_tiny_llama

from edgeguard.convert import Options, convert
from edgeguard.convert.size import Size, gguf_size, in_words, onnx_size
from edgeguard.convert.weights import Weights
from edgeguard.errors import OutputError
from edgeguard.formats import gguf

WIDE = {"n_embd": 256, "n_ff": 512, "n_head": 4, "n_head_kv": 2, "n_layer": 2}


@pytest.fixture(scope="module", params=["F32", "Q8_0", "Q4_0", "Q4_1"])
def source(request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("source") / "m.gguf", ftype=request.param, **WIDE)


@pytest.mark.parametrize("to", ["onnx", "onnx-fp32", "onnx-fp16", "onnx-int8", "onnx-int4"])
def test_an_onnx_model_is_as_large_as_was_said(source: Path, tmp_path: Path, to: str):
    said: list[str] = []
    done = convert(source, tmp_path / "o", to=to, tell=said.append)
    written = (done.path / "model.onnx.data").stat().st_size
    precision = {"onnx": "source"}.get(to, to.removeprefix("onnx-"))
    assert onnx_size(Weights(gguf.read_header(source)), precision).n_bytes == pytest.approx(
        written, rel=0.03
    )  # and pages
    assert len(said) == 1 and "will have about" in said[0]


@pytest.mark.parametrize("to", ["f32", "f16", "q8_0", "q4_0", "q5_1", "q6_k", "q4_k_m", "q3_k_s", "iq4_nl"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_gguf_is_about_as_large_as_was_said(tmp_path: Path, to: str, tied: bool):
    pytest.importorskip("llama_cpp")
    path = write_tiny_llama(tmp_path / "m.gguf", tied=tied, **WIDE)
    expected = gguf_size(Weights(gguf.read_header(path)), to).n_bytes
    made = gguf.read_header(convert(path, tmp_path / "o.gguf", to=to).path)
    assert expected == pytest.approx(sum(t.n_bytes for t in made.tensors), rel=0.12)  # mixes are llama.cpp's own


def test_what_becomes_larger_than_it_was_is_said_with_types_that_do_not(tmp_path: Path):
    pytest.importorskip("llama_cpp")
    whole = write_tiny_llama(tmp_path / "m.gguf", **WIDE)
    small = convert(whole, tmp_path / "k.gguf", to="q4_k_m").path
    said: list[str] = []
    convert(small, tmp_path / "o", to="onnx", tell=said.append)
    assert "adapter changes, become float32. Smaller: onnx-int8 about" in said[0]


def test_a_disk_without_room_is_refused_with_both_numbers_before_anything_is_read(tmp_path: Path, monkeypatch):
    path = write_tiny_llama(tmp_path / "m.gguf", **WIDE)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 3_000_000))
    with pytest.raises(OutputError, match=r"o needs about \d+ MB, the disk has 3 MB free"):
        convert(path, tmp_path / "o", to="onnx-fp32", options=Options())


def test_an_output_layer_whose_rows_fit_no_block_of_256_says_so_whatever_was_asked_for(tmp_path: Path):
    """896 is 28 × 32: it divides into Q4_0's blocks, and not into those of Q6_K, which the output layer is to have."""
    pytest.importorskip("llama_cpp")
    path = write_tiny_llama(tmp_path / "m.gguf", n_embd=896, n_head=14, n_head_kv=2, n_ff=512, n_layer=1, tied=True)
    (note,) = convert(path, tmp_path / "o.gguf", to="q4_0").notices
    assert note == (
        "1 of 8 matrices (token_embd.weight) became Q8_0 instead: their rows of 896 weights do not divide into blocks "
        "of 256, which the type has that llama.cpp means for them"
    )


@pytest.mark.parametrize(("n", "said"), [(2_100_000_000, "2.1 GB"), (145_300_000, "145 MB"), (500, "1 kB")])
def test_sizes_are_written_short(n: int, said: str):
    assert in_words(n) == said


def test_types_of_less_than_a_hundredth_are_not_listed():
    assert (
        str(Size({"float32": 2_000_000_000, "Q8_0": 100_000_000, "F32": 1000}))
        == "2.1 GB (2.0 GB float32, 100 MB Q8_0)"
    )
