"""GGUF in, GGUF out: weights as arrays, adapters merged, file types changed."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf as library
import numpy as np
import pytest
import tiny_gguf as tiny
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgeguard import process
from edgeguard.backend import Prefix, RuntimeOptions, log_softmax
from edgeguard.backends import open_backend
from edgeguard.convert.adapters import read_adapter
from edgeguard.convert.imatrix import read_imatrix
from edgeguard.convert.lora import Change, Lora
from edgeguard.convert.merged import write_merged
from edgeguard.convert.quantize import FILE_TYPES, NEEDS_IMATRIX, is_float, quantize
from edgeguard.convert.weights import Weights
from edgeguard.errors import ModelError, OutputError
from edgeguard.formats import gguf

quantize_module = sys.modules[quantize.__module__]  # the package has a function of the module's name
TOKENS = [1, 2, 60, 61, 33, 7]
NATS = 1e-3  # LlamaCpp's own tolerance for F32 weights
Arrays = Mapping[str, np.ndarray]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("convert")


@pytest.fixture(scope="module")
def base(folder: Path) -> Path:
    return tiny.write_tiny_llama(folder / "base.gguf")


@pytest.fixture(scope="module")
def wide(folder: Path) -> Path:
    """Rows of 256: every type has room in them."""
    return tiny.write_tiny_llama(folder / "wide.gguf", n_embd=256, n_ff=256, n_layer=1)


def weights(path: Path, adapter: Lora | None = None) -> Weights:
    return Weights(gguf.read_header(path), adapter)


def matrices(path: Path) -> dict[str, tuple[int, int]]:
    """(rows, cols) of a layer's matrices and the output's, by name."""
    header = gguf.read_header(path)
    return {t.name: t.shape[::-1] for t in header.tensors if len(t.shape) == 2 and t.name != "token_embd.weight"}  # type: ignore[misc]


def factors(shapes: Mapping[str, tuple[int, int]], *, rank: int = 4, seed: int = 0) -> dict[str, np.ndarray]:
    """The tensors of an adapter that changes matrices of these shapes."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, (rows, cols) in shapes.items():
        arrays[f"{name}.lora_a"] = rng.normal(0, 0.3, (rank, cols)).astype(np.float32)
        arrays[f"{name}.lora_b"] = rng.normal(0, 0.3, (rows, rank)).astype(np.float32)
    return arrays


def write_adapter(path: Path, arrays: Arrays, *, arch: str = "llama", alpha: float = 8.0, **changes: Any) -> Path:
    keys = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": alpha}
    return tiny.write(path, arch, keys | {key.replace("__", "."): value for key, value in changes.items()}, arrays)


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(ModelError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Weights


@pytest.mark.parametrize("ftype", ["F32", "F16", "Q8_0", "Q4_0"])
def test_float32_is_what_the_gguf_library_reads(tmp_path: Path, ftype: str) -> None:
    path = tiny.write_tiny_llama(tmp_path / "m.gguf", ftype=ftype)
    ours = weights(path)
    for tensor in library.GGUFReader(path).tensors:
        expected = library.quants.dequantize(tensor.data, tensor.tensor_type)
        found = ours.float32(tensor.name)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(ours.blocks(tensor.name).ravel(), np.asarray(tensor.data).view(np.uint8).ravel())


def test_blocks_are_rows_of_bytes_of_the_file(tmp_path: Path) -> None:
    ours = weights(tiny.write_tiny_llama(tmp_path / "m.gguf", ftype="Q4_0"))
    assert ours.blocks("blk.0.ffn_down.weight").shape == (32, 64 // 32 * 18)
    assert ours.float32("blk.0.ffn_down.weight").shape == (32, 64)
    assert ours.float32("output_norm.weight").shape == (32,)
    assert not ours.changed("output.weight")


def test_a_missing_tensor_is_named_with_its_file(base: Path) -> None:
    ours = weights(base)
    assert "output.weight" in ours
    assert "output.bias" not in ours
    said = refusal(lambda: ours.float32("output.bias"))
    assert str(base) in said
    assert "'output.bias'" in said


def test_blocks_of_a_changed_tensor_are_refused(base: Path) -> None:
    changes = {"output.weight": Change(np.ones((280, 1), np.float32), np.ones((1, 32), np.float32), 1.0)}
    ours = weights(base, Lora(base, changes))
    assert ours.changed("output.weight")
    with pytest.raises(ValueError, match=r"output\.weight is changed by an adapter"):
        ours.blocks("output.weight")


def test_a_type_that_the_library_cannot_read_is_named(folder: Path, wide: Path) -> None:
    path = quantize(wide, folder / "q1.gguf", to="q1_0").path
    assert "blk.0.attn_k.weight is Q1_0" in refusal(lambda: weights(path).float32("blk.0.attn_k.weight"))


def test_a_missing_library_says_how_to_install_it(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert "pip install 'edgeguard[convert]'" in refusal(lambda: weights(base).float32("output.weight"))


def test_a_model_in_parts_is_to_be_merged_first(tmp_path: Path) -> None:
    for i in range(2):
        more = {"split.no": i, "split.count": 2, "split.tensors.count": 21}
        tiny.write_tiny_llama(tmp_path / f"m-0000{i + 1}-of-00002.gguf", metadata=more)
    first = tmp_path / "m-00001-of-00002.gguf"
    assert "llama-gguf-split --merge" in refusal(lambda: weights(first))
    assert "llama-gguf-split --merge" in refusal(lambda: quantize(first, tmp_path / "o.gguf", to="q8_0"))


def test_a_file_that_shrinks_meanwhile_is_refused(tmp_path: Path, base: Path) -> None:
    path = tiny.truncated(base, tmp_path / "m.gguf", base.stat().st_size)
    header = gguf.read_header(path)
    os.truncate(path, 5000)
    assert "leave it alone" in refusal(lambda: Weights(header))


# Adapters


@settings(max_examples=50, deadline=None)
@given(
    rows=st.integers(1, 40),
    cols=st.integers(1, 20),
    rank=st.integers(1, 9),
    factor=st.floats(-4, 4),
    seed=st.integers(0, 99),
)
def test_a_delta_is_the_scaled_product_rounded_once(rows: int, cols: int, rank: int, factor: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    left, right = (rng.normal(size=s).astype(np.float32) for s in ((rows, rank), (rank, cols)))
    delta = Lora(Path("a"), {"t": Change(left, right, factor)}).delta("t")
    expected = factor * (left.astype(np.float64) @ right.astype(np.float64))
    assert delta.dtype == np.float32
    np.testing.assert_allclose(delta, expected, rtol=1e-6, atol=1e-12)  # a float32's rounding


def logprobs_with_adapter(model: Path, adapter: Path, scale: float) -> np.ndarray:
    """Next-token log-probabilities after TOKENS as llama.cpp computes them with the adapter beside the model."""
    import llama_cpp as lc

    from edgeguard.backends.llama_cpp.model import model_params

    log = lc.llama_log_callback(lambda *_: None)
    lc.llama_log_set(log, None)
    loaded = lc.llama_model_load_from_file(str(model).encode(), model_params())
    params = lc.llama_context_default_params()
    params.n_ctx, params.type_k, params.type_v = 256, 0, 0
    params.flash_attn_type = lc.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = lc.llama_init_from_model(loaded, params)
    lora = lc.llama_adapter_lora_init(loaded, str(adapter).encode())
    assert lora
    given = (lc.llama_adapter_lora_p_ctypes * 1)(lora)
    assert lc.llama_set_adapters_lora(context, given, 1, (ctypes.c_float * 1)(scale)) == 0
    ids = (lc.llama_token * len(TOKENS))(*TOKENS)
    assert lc.llama_decode(context, lc.llama_batch_get_one(ids, len(TOKENS))) == 0
    n = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(loaded))
    logits = np.ctypeslib.as_array(lc.llama_get_logits_ith(context, -1), (n,)).copy()
    lc.llama_free(context)
    lc.llama_model_free(loaded)
    return log_softmax(logits[None])[0]


def logprobs(model: Path) -> np.ndarray:
    backend = open_backend(model, RuntimeOptions(kv_cache="f32", context=256, threads=1))
    try:
        return np.asarray(backend.logprobs([Prefix(tuple(TOKENS))])[0])
    finally:
        backend.close()


@pytest.mark.parametrize(("scale", "alpha"), [(1.0, 8.0), (0.5, 3.0), (1.0, 0.0)])
def test_a_merged_model_scores_as_llama_cpp_does_with_the_adapter(
    tmp_path: Path, base: Path, scale: float, alpha: float
) -> None:
    # The token embedding is the odd one: llama.cpp wants its A transposed.
    arrays = factors(matrices(base))
    rng = np.random.default_rng(5)
    arrays["token_embd.weight.lora_a"] = rng.normal(0, 0.3, (280, 4)).astype(np.float32)
    arrays["token_embd.weight.lora_b"] = rng.normal(0, 0.3, (32, 4)).astype(np.float32)
    path = write_adapter(tmp_path / "lora.gguf", arrays, alpha=alpha)
    adapter = read_adapter(path, gguf.read_header(base), scale=scale)
    merged = tmp_path / "merged.gguf"
    write_merged(weights(base, adapter), merged, metadata={})
    expected = logprobs_with_adapter(base, path, scale)
    assert np.abs(logprobs(base) - expected).max() > 0.1  # it does change something
    np.testing.assert_allclose(logprobs(merged), expected, atol=NATS)


@pytest.mark.parametrize("ftype", ["F16", "Q8_0"])
def test_an_adapter_of_another_type_is_dequantized(tmp_path: Path, base: Path, ftype: str) -> None:
    arrays = factors({"blk.0.attn_q.weight": (32, 32)}, rank=32)
    path = write_adapter(tmp_path / "lora.gguf", arrays)
    tiny.write(tmp_path / "small.gguf", "llama", dict(_plain_keys(path)), arrays, ftype=ftype)
    header = gguf.read_header(base)
    small, full = (read_adapter(p, header).delta("blk.0.attn_q.weight") for p in (tmp_path / "small.gguf", path))
    np.testing.assert_allclose(small, full, atol=0.05 * np.abs(full).max())


def _plain_keys(path: Path) -> dict[str, Any]:
    return {k: v for k, v in gguf.read_header(path).metadata.items() if k != "general.architecture"}


def test_a_zero_adapter_changes_nothing(tmp_path: Path, base: Path) -> None:
    arrays = {k: v * (0 if k.endswith("b") else 1) for k, v in factors(matrices(base)).items()}
    adapter = read_adapter(write_adapter(tmp_path / "lora.gguf", arrays), gguf.read_header(base))
    write_merged(weights(base, adapter), tmp_path / "with.gguf", metadata={})
    write_merged(weights(base), tmp_path / "without.gguf", metadata={})
    assert (tmp_path / "with.gguf").read_bytes() == (tmp_path / "without.gguf").read_bytes()


Q = "blk.0.attn_q.weight"
PAIR = factors({Q: (32, 32)})


@pytest.mark.parametrize(
    ("arrays", "keys", "said"),
    [
        (PAIR, {"general__type": "model"}, "general.type is 'model'"),
        (PAIR, {"adapter__type": "control_vector"}, "only 'lora'"),
        (PAIR, {"adapter__alora__invocation_tokens": [1, 2]}, "aLoRA"),
        (PAIR, {"arch": "qwen2"}, "for qwen2 models"),
        (PAIR, {"alpha": float("nan")}, "alpha is nan"),
        ({f"{Q}.lora_a": PAIR[f"{Q}.lora_a"]}, {}, f"has no {Q}.lora_b"),
        (PAIR | {"output_norm.weight": np.ones(32, np.float32)}, {}, "output_norm.weight is neither"),
        (factors({"blk.9.attn_q.weight": (32, 32)}), {}, "blk.9.attn_q.weight, which"),
        (factors({Q: (32, 48)}), {}, "(32, 4) and (4, 48); (32, rank) and (rank, 32) are needed"),
        (PAIR | {f"{Q}.lora_b": np.zeros((32, 8), np.float32)}, {}, "(32, 8) and (4, 32)"),
        (factors({"output_norm.weight": (32, 32)}), {}, "only matrices"),
        (PAIR | {f"{Q}.lora_b": np.full((32, 4), np.inf, np.float32)}, {}, "not finite"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(
    tmp_path: Path, base: Path, arrays: Arrays, keys: dict[str, Any], said: str
) -> None:
    path = write_adapter(tmp_path / "lora.gguf", arrays, **keys)
    message = refusal(lambda: read_adapter(path, gguf.read_header(base)))
    assert said in message
    assert str(path) in message


@pytest.mark.parametrize(
    ("more", "less", "name", "said"),
    [
        ({}, "output.weight", "token_embd.weight", "also uses as its output"),
        ({"blk.0.attn_q.scale": np.ones(1, np.float32)}, "", Q, "a scale of its own"),
    ],
)
def test_a_sum_that_would_mean_something_else_is_refused(
    tmp_path: Path, base: Path, more: Arrays, less: str, name: str, said: str
) -> None:
    arrays = {t.name: np.array(weights(base).float32(t.name)) for t in gguf.read_header(base).tensors}
    arrays.pop(less, None)
    path = tiny.write(tmp_path / "m.gguf", "llama", {"llama.block_count": 2}, {**arrays, **more})
    pair = factors({name: (32, 32)}) if name == Q else {f"{name}.lora_a": np.ones((280, 4), np.float32)}
    pair.setdefault(f"{name}.lora_b", np.ones((32, 4), np.float32))
    adapter = write_adapter(tmp_path / "lora.gguf", pair)
    assert said in refusal(lambda: read_adapter(adapter, gguf.read_header(path)))


def test_a_scale_is_a_number(tmp_path: Path, base: Path) -> None:
    with pytest.raises(ValueError, match="scale is nan"):
        read_adapter(tmp_path, gguf.read_header(base), scale=float("nan"))


# Merged files


@pytest.mark.parametrize("vocab", ["bpe", "spm"])
def test_a_merged_file_keeps_the_metadata(tmp_path: Path, vocab: tiny.Vocab) -> None:
    path = tiny.write_tiny_llama(tmp_path / "m.gguf", vocab=vocab, ftype="Q8_0")
    out = tmp_path / "out.gguf"
    write_merged(weights(path), out, metadata={"edgeguard.made_by": "test", "general.name": "Häme"})
    before, after = (dict(library.GGUFReader(p).fields) for p in (path, out))
    assert after.pop("edgeguard.made_by").contents() == "test"
    assert after["general.name"].contents() == "Häme"
    assert after["general.file_type"].contents() == 0
    changed = {"general.name", "general.file_type", "GGUF.kv_count"}
    assert before.keys() == after.keys()
    for key in before.keys() - changed:
        assert before[key].types == after[key].types
        assert before[key].contents() == after[key].contents()
    header = gguf.read_header(out)
    gguf.check_model(header)
    assert gguf.quantization(header) == "F32"


@pytest.mark.parametrize("ftype", ["F32", "Q4_0"])
def test_a_merged_file_without_an_adapter_holds_the_dequantized_weights(tmp_path: Path, ftype: str) -> None:
    path = tiny.write_tiny_llama(tmp_path / "m.gguf", ftype=ftype)
    write_merged(weights(path), tmp_path / "a.gguf", metadata={})
    write_merged(weights(path), tmp_path / "b.gguf", metadata={})
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    before, after = weights(path), weights(tmp_path / "a.gguf")
    assert [t.name for t in before.header.tensors] == [t.name for t in after.header.tensors]
    for tensor in after.header.tensors:
        assert tensor.type_name == "F32"
        np.testing.assert_array_equal(after.float32(tensor.name), before.float32(tensor.name))


def aligned(path: Path, out: Path, alignment: int) -> Path:
    """A copy whose tensors stand at multiples of `alignment`."""
    header, arrays = gguf.read_header(path), weights(path)
    writer = library.GGUFWriter(out, header.architecture)
    writer.add_custom_alignment(alignment)
    for key, value in header.metadata.items():
        if isinstance(value, gguf.Array):
            writer.add_array(key, value.strings() if value.type_name == "str" else value.numbers().tolist())
        elif key != "general.architecture":
            tiny._add(writer, key, value)
    for tensor in header.tensors:
        writer.add_tensor(tensor.name, np.array(arrays.float32(tensor.name)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def test_another_alignment_is_kept_when_merging_and_left_when_quantizing(tmp_path: Path) -> None:
    # llama.cpp copies general.alignment but aligns by 32: without care nobody can read what it writes.
    plain = tiny.write_tiny_llama(tmp_path / "plain.gguf", n_embd=40, n_ff=72)
    path = aligned(plain, tmp_path / "m.gguf", 256)
    write_merged(weights(path), tmp_path / "merged.gguf", metadata={})
    quantize(path, tmp_path / "quantized.gguf", to="f16")
    assert gguf.read_header(tmp_path / "merged.gguf").metadata["general.alignment"] == 256
    assert gguf.read_header(tmp_path / "quantized.gguf").metadata["general.alignment"] == 32
    expected = logprobs(plain)
    np.testing.assert_allclose(logprobs(tmp_path / "merged.gguf"), expected, atol=NATS)
    # F16 weights and activations have 11 bits; tensors read from another place would have nothing in common with these.
    halves = logprobs(tmp_path / "quantized.gguf")
    assert 20 * np.abs(halves - expected).max() < np.ptp(expected)


def test_a_merged_file_that_cannot_be_written_is_an_output_error(tmp_path: Path, base: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        write_merged(weights(base), tmp_path / "no" / "m.gguf", metadata={})
    with pytest.raises(ValueError, match="the model that is read"):
        write_merged(weights(base), base, metadata={})


def test_nothing_is_left_of_a_merge_that_fails(folder: Path, wide: Path) -> None:
    path = quantize(wide, folder / "q1.gguf", to="q1_0").path
    refusal(lambda: write_merged(weights(path), folder / "out.gguf", metadata={}))
    assert not (folder / "out.gguf").exists()


# Adapters of PEFT


def write_peft(path: Path, arrays: Arrays, **config: Any) -> Path:
    from safetensors.numpy import save_file

    path.mkdir()
    save_file(dict(arrays), path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8} | config))
    return path


def peft_pair(module: str, rows: int = 32, cols: int = 32, rank: int = 4) -> dict[str, np.ndarray]:
    pair = factors({"x": (rows, cols)}, rank=rank)
    name = f"base_model.model.{module}"
    return {f"{name}.lora_A.weight": pair["x.lora_a"], f"{name}.lora_B.weight": pair["x.lora_b"]}


PEFT_Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("arrays", "config", "said"),
    [
        (peft_pair(PEFT_Q), {"use_dora": True}, "use_dora is True"),
        (peft_pair(PEFT_Q), {"bias": "all"}, "bias is 'all'"),
        (peft_pair(PEFT_Q), {"modules_to_save": ["lm_head"]}, "modules_to_save is"),
        (peft_pair(PEFT_Q), {"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is"),
        (peft_pair(PEFT_Q), {"peft_type": "IA3"}, "not of a LoRA adapter"),
        (peft_pair(PEFT_Q), {"lora_alpha": float("nan")}, "alpha of model.layers.0.self_attn.q_proj is nan"),
        (peft_pair(PEFT_Q), {"alpha_pattern": {"(q|v)_proj": 4}}, "'(q|v)_proj' is not a module's name"),
        (peft_pair("model.embed_tokens"), {}, "'base_model.model.model.embed_tokens.lora_A.weight' is no LoRA"),
        (peft_pair("model.layers.0.mlp.experts.up_proj"), {}, "is no LoRA matrix"),
        (peft_pair(PEFT_Q, rows=48), {}, "(48, 4) and (4, 32)"),
        (dict([peft_pair(PEFT_Q).popitem()]), {}, "has no blk.0.attn_q.weight.lora_a"),
        ({}, {}, "changes no tensor"),
    ],
)
def test_a_peft_folder_that_cannot_be_merged_is_refused(
    tmp_path: Path, base: Path, arrays: Arrays, config: dict[str, Any], said: str
) -> None:
    path = write_peft(tmp_path / "peft", arrays, **config)
    assert said in refusal(lambda: read_adapter(path, gguf.read_header(base)))


def test_a_folder_that_is_no_adapter_is_refused(tmp_path: Path, base: Path) -> None:
    header = gguf.read_header(base)
    assert "has no adapter_config.json" in refusal(lambda: read_adapter(tmp_path, header))
    path = write_peft(tmp_path / "peft", peft_pair(PEFT_Q))
    (path / "adapter_model.safetensors").write_bytes(b"\xff" * 100)
    assert "download it again" in refusal(lambda: read_adapter(path, header))
    (path / "adapter_model.safetensors").unlink()
    assert "save the adapter as safetensors" in refusal(lambda: read_adapter(path, header))


def test_a_peft_folder_for_another_architecture_is_refused(tmp_path: Path) -> None:
    keys = {"gemma.block_count": 1}
    path = tiny.write(tmp_path / "m.gguf", "gemma", keys, {"token_embd.weight": np.ones((4, 32), np.float32)})
    folder = write_peft(tmp_path / "peft", peft_pair(PEFT_Q))
    assert "llama, qwen2, qwen3 models, not into gemma" in refusal(lambda: read_adapter(folder, gguf.read_header(path)))


@pytest.mark.parametrize(
    ("config", "factor"),
    [
        ({}, 8 / 4),
        ({"use_rslora": True}, 8 / 2),
        ({"alpha_pattern": {"q_proj": 3}}, 3 / 4),
        ({"alpha_pattern": {"layers.1.self_attn.q_proj": 3}}, 8 / 4),
    ],
)
def test_the_factor_is_pefts(tmp_path: Path, base: Path, config: dict[str, Any], factor: float) -> None:
    path = write_peft(tmp_path / "peft", peft_pair(PEFT_Q), **config)
    assert read_adapter(path, gguf.read_header(base)).changes[Q].factor == factor


@pytest.mark.filterwarnings("ignore")  # torch's, transformers' and peft's own
def test_a_merged_peft_folder_is_what_peft_merges(tmp_path: Path) -> None:
    torch, transformers, peft = (pytest.importorskip(name) for name in ("torch", "transformers", "peft"))
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(vocab_size=280, num_hidden_layers=2, tie_word_embeddings=False, **shape)
    model = transformers.LlamaForCausalLM(config)
    path = write_hf_llama(tmp_path / "m.gguf", model.state_dict())
    lora = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules="all-linear",
        init_lora_weights=False,
        use_rslora=True,
        rank_pattern={"v_proj": 2},
        alpha_pattern={"layers.1.mlp.up_proj": 5},
    )
    wrapped = peft.get_peft_model(model, lora)
    wrapped.save_pretrained(tmp_path / "peft")
    merged = write_hf_llama(tmp_path / "merged.gguf", wrapped.merge_and_unload().state_dict())
    ours = weights(path, read_adapter(tmp_path / "peft", gguf.read_header(path)))
    n_changed = 0
    for tensor in ours.header.tensors:
        n_changed += ours.changed(tensor.name)
        np.testing.assert_allclose(ours.float32(tensor.name), weights(merged).float32(tensor.name), atol=1e-6)
    assert n_changed == 14


def write_hf_llama(path: Path, state: Mapping[str, Any]) -> Path:
    """A GGUF of a Hugging Face llama's weights, ordered as convert_hf_to_gguf.py does."""
    names = library.get_tensor_name_map(library.MODEL_ARCH.LLAMA, 2)
    arrays = {}
    for full, tensor in state.items():
        array = tensor.detach().float().numpy()
        n_head = {"q_proj": 4, "k_proj": 2}.get(full.split(".")[-2])
        if n_head:
            array = array.reshape(n_head, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        arrays[str(names.get_name(full, (".weight",)))] = np.ascontiguousarray(array)
    keys = {"llama.attention.head_count": 4, "llama.attention.head_count_kv": 2}
    return tiny.write(path, "llama", keys, arrays)


# Importance matrices


def importance(path: Path) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {name: rng.uniform(0.5, 2, cols).astype(np.float32) for name, (_, cols) in matrices(path).items()}


def write_dat(path: Path, arrays: Arrays, *, n_calls: int = 3) -> Path:
    data = struct.pack("<i", len(arrays))
    for name, values in arrays.items():
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", n_calls, len(values))
        data += (values * n_calls).astype("<f4").tobytes()
    path.write_bytes(data + struct.pack("<ii", n_calls, 4) + b"text")
    return path


def write_imatrix(path: Path, arrays: Arrays, *, count: float = 2.0, kind: str = "imatrix") -> Path:
    writer = library.GGUFWriter(path, "x")
    del writer.kv_data[0]["general.architecture"]  # llama-imatrix writes none
    writer.add_string("general.type", kind)
    writer.add_array("imatrix.datasets", ["text"])
    for name, values in arrays.items():
        writer.add_tensor(f"{name}.in_sum2", values[None] * count)
        writer.add_tensor(f"{name}.counts", np.full((1, 1), count, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def imatrix(folder: Path, wide: Path) -> Path:
    return write_imatrix(folder / "imatrix.gguf", importance(wide))


def test_both_formats_of_an_importance_matrix_say_the_same(folder: Path, wide: Path, imatrix: Path) -> None:
    header = gguf.read_header(wide)
    new, old = read_imatrix(imatrix, header), read_imatrix(write_dat(folder / "imatrix.dat", importance(wide)), header)
    assert new.keys() == old.keys() == matrices(wide).keys()
    for name, values in importance(wide).items():
        np.testing.assert_allclose(new[name], values, rtol=1e-6)
        np.testing.assert_allclose(old[name], values, rtol=1e-6)


def test_an_expert_without_texts_counts_all_inputs_the_same(tmp_path: Path) -> None:
    experts = {"blk.0.ffn_up_exps.weight": np.ones((2, 8, 4), np.float32)}
    model = gguf.read_header(tiny.write(tmp_path / "m.gguf", "llama", {}, experts))
    path = tmp_path / "i.gguf"
    writer = library.GGUFWriter(path, "x")
    writer.add_string("general.type", "imatrix")
    writer.add_tensor("blk.0.ffn_up_exps.weight.in_sum2", np.array([[2, 4, 6, 8], [0, 0, 0, 0]], np.float32))
    writer.add_tensor("blk.0.ffn_up_exps.weight.counts", np.array([[2], [0]], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_imatrix(path, model)["blk.0.ffn_up_exps.weight"]
    np.testing.assert_array_equal(found, [1, 2, 3, 4, 1, 1, 1, 1])


@pytest.mark.parametrize("write", [write_dat, write_imatrix])
@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"blk.7.attn_q.weight": np.ones(32, np.float32)}, "has no tensor 'blk.7.attn_q.weight'"),
        ({Q: np.ones(48, np.float32)}, "needs 32"),
        ({Q: np.full(32, np.nan, np.float32)}, "no mean squares"),
        ({Q: np.full(32, -1, np.float32)}, "no mean squares"),
    ],
)
def test_an_importance_matrix_of_another_model_is_refused(
    tmp_path: Path, base: Path, write: Callable[[Path, Arrays], Path], arrays: Arrays, said: str
) -> None:
    path = write(tmp_path / "i", arrays)
    message = refusal(lambda: quantize(base, tmp_path / "o.gguf", to="q8_0", imatrix=path))
    assert said in message
    assert str(path) in message
    assert not (tmp_path / "o.gguf").exists()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "cannot be read"),
        (struct.pack("<i", 1 << 30), "the number of entries is 1073741824"),
        (struct.pack("<ii", 1, 1 << 30), "the length of name 0 is 1073741824"),
        (struct.pack("<ii4sii", 1, 4, b"name", 1, 1 << 29), "the values of 'name'"),
        (struct.pack("<ii4sii", 1, 4, b"name", 1, -5), "is -5"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 40, 0), "claims"),
    ],
)
def test_a_lie_of_an_importance_matrix_is_refused(tmp_path: Path, base: Path, data: bytes, said: str) -> None:
    path = tmp_path / "i.dat"
    path.write_bytes(data)
    assert said in refusal(lambda: read_imatrix(path, gguf.read_header(base)))


def test_a_gguf_of_another_kind_is_no_importance_matrix(tmp_path: Path, base: Path) -> None:
    header = gguf.read_header(base)
    assert "general.type is 'model'" in refusal(lambda: read_imatrix(base, header))
    path = write_imatrix(tmp_path / "i.gguf", {Q: np.ones(32, np.float32)})
    data = path.read_bytes().replace(b"counts", b"kounts")
    path.write_bytes(data)
    assert "32 sums and no counts" in refusal(lambda: read_imatrix(path, header))


@pytest.mark.parametrize("write", [write_dat, write_imatrix])
def test_a_damaged_importance_matrix_is_refused_or_harmless(
    folder: Path, base: Path, write: Callable[[Path, Arrays], Path]
) -> None:
    data, header = write(folder / "good", importance(base)).read_bytes(), gguf.read_header(base)
    path = folder / "damaged"

    @settings(max_examples=200, deadline=None)
    @given(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=8), st.none() | st.floats(0, 1))
    @example(0.75, b"\x7f", None)  # a signalling NaN
    def law(where: float, new: bytes, cut: float | None) -> None:
        at = int(where**4 * len(data))  # most of the damage near the beginning, where the lengths are
        damaged = data[:at] + new + data[at + len(new) :]
        path.write_bytes(damaged if cut is None else damaged[: int(cut * len(data))])
        try:
            read_imatrix(path, header)
        except ModelError as error:
            assert str(path) in str(error)

    law()


# Quantizing


ALIASES = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m"}
# llama.cpp takes seconds to build the codebook that iq1_m shares with iq1_s, and iq2_m with iq3_xxs: once is enough.
TESTED = [name for name in FILE_TYPES if name not in ALIASES and name not in ("iq1_m", "iq2_m")]


@pytest.mark.parametrize("to", TESTED)
def test_every_file_type_works_or_is_refused_by_name(folder: Path, wide: Path, imatrix: Path, to: str) -> None:
    out = folder / f"{to}.gguf"
    if to in NEEDS_IMATRIX:
        assert f"{to} has so few bits that it needs an importance matrix" in refusal(lambda: quantize(wide, out, to=to))
        assert not out.exists()
    done = quantize(wide, out, to=to, imatrix=imatrix if to in NEEDS_IMATRIX else None)
    header = gguf.read_header(out)
    assert done.path == out
    assert done.fallbacks == ()
    assert sum(done.types.values()) == len(header.tensors)
    assert header.metadata["general.file_type"] == FILE_TYPES[to]
    assert is_float(header) == (to in ("f32", "f16", "bf16"))
    _check_dequantized_as_llama_cpp_does(out, folder / "back.gguf")


def _check_dequantized_as_llama_cpp_does(path: Path, back: Path) -> None:
    """float32() against llama.cpp's own dequantization, which is what its F32 of a quantized file is."""
    ours, theirs = weights(path), weights(quantize(path, back, to="f32").path)
    for tensor in ours.header.tensors:
        if tensor.type_name not in ("Q1_0", "Q2_0"):  # the library has none of these
            # Where a block's scale is a product of two, C may round the product once (FMA) and numpy twice.
            np.testing.assert_allclose(ours.float32(tensor.name), theirs.float32(tensor.name), rtol=1e-5, atol=1e-6)


def test_the_file_types_are_those_of_this_llama_cpp() -> None:
    lc = pytest.importorskip("llama_cpp")
    for name, number in FILE_TYPES.items():
        kind = "ALL" if name == "f32" else "MOSTLY"
        assert getattr(lc, f"LLAMA_FTYPE_{kind}_{ALIASES.get(name, name).upper()}") == number


def test_rows_that_do_not_fit_a_type_are_told(tmp_path: Path) -> None:
    path = tiny.write_tiny_llama(tmp_path / "m.gguf", n_embd=96, n_ff=256)
    done = quantize(path, tmp_path / "o.gguf", to="q4_k_m")
    told = {tensor.name: tensor.type_name for tensor in done.fallbacks}
    assert told["blk.0.attn_q.weight"] == "Q5_0"  # 96 is no multiple of 256
    assert told["output.weight"] == "Q8_0"
    assert "blk.0.ffn_down.weight" not in told  # its rows are 256 long
    assert done.types == {"F32": 5, "Q5_0": 12, "Q8_0": 2, "Q6_K": 1, "Q4_K": 1}


def test_rows_that_fit_no_type_stay_f16_and_are_told(tmp_path: Path) -> None:
    path = tiny.write_tiny_llama(tmp_path / "m.gguf", n_embd=40, n_ff=64)
    done = quantize(path, tmp_path / "o.gguf", to="q8_0")
    assert {tensor.type_name for tensor in done.fallbacks} == {"F16"}
    assert {tensor.shape[0] for tensor in done.fallbacks} == {40}


def test_pure_gives_all_matrices_one_type(folder: Path, wide: Path) -> None:
    assert quantize(wide, folder / "pure.gguf", to="q4_k_m", pure=True).types.keys() == {"Q4_K", "F32"}


@pytest.mark.parametrize("ftype", ["F16", "Q8_0"])
def test_a_quantized_model_can_be_quantized_again(tmp_path: Path, ftype: str) -> None:
    path = tiny.write_tiny_llama(tmp_path / "m.gguf", ftype=ftype, n_embd=256, n_ff=256, n_layer=1)
    assert is_float(gguf.read_header(path)) == (ftype == "F16")
    assert "Q4_0" in quantize(path, tmp_path / "o.gguf", to="q4_0").types
    assert gguf.quantization(gguf.read_header(tmp_path / "o.gguf")) == "Q4_0"
    gguf.check_model(gguf.read_header(tmp_path / "o.gguf"))


@pytest.mark.parametrize("to", ["q8_0", "q4_k_m", "q2_k_s"])
def test_the_same_bytes_come_out_for_any_number_of_threads(folder: Path, wide: Path, imatrix: Path, to: str) -> None:
    outs = [folder / f"{to}-{i}.gguf" for i in range(3)]
    for out, threads in zip(outs, (1, 1, 2), strict=True):
        quantize(wide, out, to=to, threads=threads, imatrix=imatrix, metadata={"edgeguard.x": "y"})
    assert outs[0].read_bytes() == outs[1].read_bytes() == outs[2].read_bytes()


def test_an_importance_matrix_changes_the_weights(folder: Path, wide: Path, imatrix: Path) -> None:
    with_it = quantize(wide, folder / "with.gguf", to="q4_k_m", imatrix=imatrix).path
    without = quantize(wide, folder / "without.gguf", to="q4_k_m").path
    assert with_it.read_bytes() != without.read_bytes()


def test_metadata_arrives_as_new_keys_and_the_rest_stays(tmp_path: Path, base: Path) -> None:
    more = {"edgeguard.source": "x" * 127, "k" * 127: "Häme", "general.name": "Other"}
    quantize(base, tmp_path / "o.gguf", to="q8_0", metadata=more)
    before, after = gguf.read_header(base).metadata, gguf.read_header(tmp_path / "o.gguf").metadata
    for key, value in more.items():
        assert after[key] == value
    assert after.keys() == before.keys() | more.keys()
    for key in before.keys() - {"general.name", "general.file_type"}:
        old, new = before[key], after[key]
        if not isinstance(old, gguf.Array):
            assert old == new
            continue
        assert isinstance(new, gguf.Array)
        assert old._bytes() == new._bytes()


@pytest.mark.parametrize("more", [{"k" * 128: "v"}, {"k": "ä" * 64}, {"k": "a\0b"}, {"": "v"}])
def test_metadata_that_llama_cpp_would_cut_is_refused(tmp_path: Path, base: Path, more: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="metadata"):
        quantize(base, tmp_path / "o.gguf", to="q8_0", metadata=more)


def test_misuse_is_a_value_error(tmp_path: Path, base: Path) -> None:
    with pytest.raises(ValueError, match="'q9' is no file type; known are f32, f16"):
        quantize(base, tmp_path / "o.gguf", to="q9")
    with pytest.raises(ValueError, match="the model that is read"):
        quantize(base, base, to="q8_0")


def test_an_output_that_cannot_be_written_is_an_output_error(tmp_path: Path, base: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        quantize(base, tmp_path / "no" / "o.gguf", to="q8_0")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_an_output_error(tmp_path: Path, base: Path) -> None:
    out = tmp_path / "o.gguf"
    out.symlink_to("/dev/full")
    with pytest.raises(OutputError, match="disk may be full"):
        quantize(base, out, to="q8_0")
    assert not out.is_symlink()


def test_a_missing_llama_cpp_says_how_to_install_it(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize_module, "find_spec", lambda name: None)
    assert "pip install 'edgeguard[llama]'" in refusal(lambda: quantize(base, tmp_path / "o.gguf", to="q8_0"))


def test_what_llama_cpp_says_is_in_the_error(tmp_path: Path, base: Path) -> None:
    # Rows of 32 have no room for Q1_0's blocks of 128, and llama.cpp has nothing to take instead.
    said = refusal(lambda: quantize(base, tmp_path / "o.gguf", to="q1_0"))
    assert "no tensor type fallback is defined" in said
    assert str(base) in said
    assert not (tmp_path / "o.gguf").exists()


def test_an_abort_of_llama_cpp_is_a_model_error(folder: Path, wide: Path, imatrix: Path) -> None:
    # No importance matrix has the token embedding in it, and so few bits do not go without: an assertion fails.
    said = refusal(lambda: quantize(wide, folder / "o.gguf", to="iq2_xxs", imatrix=imatrix, pure=True))
    assert "llama.cpp was ended by SIGABRT" in said
    assert "GGML_ASSERT" in said
    assert not (folder / "o.gguf").exists()


SLEEP = "import sys, time; sys.path[:] = sys.argv[1:]; from edgeguard import process; "
SLEEP += "process.serve(lambda job: time.sleep(60) or 0)"


def test_an_interrupt_ends_the_process_at_once_and_leaves_no_file(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "start", lambda module: SLEEP)
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def start(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*args, **options))
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", start)
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    begin = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        quantize(base, tmp_path / "o.gguf", to="q8_0")
    assert time.perf_counter() - begin < 5
    assert started[0].returncode == -signal.SIGKILL
    assert not (tmp_path / "o.gguf").exists()


def test_the_process_ends_with_its_parent() -> None:
    child = subprocess.Popen([sys.executable, "-P", "-c", SLEEP, *sys.path], stdin=subprocess.PIPE)
    assert child.stdin is not None
    child.stdin.write(b"{}\n")
    child.stdin.close()
    assert child.wait(timeout=10) == 1


def test_importing_the_modules_imports_no_runtime() -> None:
    names = ("weights", "adapters", "peft", "merged", "imatrix", "quantize")
    code = f"import sys; {'; '.join(f'import edgeguard.convert.{n}' for n in names)}; "
    code += "print([m for m in ('llama_cpp', 'gguf', 'safetensors', 'torch') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
