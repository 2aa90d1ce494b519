from __future__ import annotations

import os
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_gguf as tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeguard.errors import ModelError
from edgeguard.formats import gguf

KEY_U32, KEY_STR, KEY_ARRAY = 4, 8, 9


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny.gguf")


def refusal(path: Path) -> str:
    """What read_header or check_model says against a file; it must name the file."""
    with pytest.raises(ModelError) as caught:
        gguf.check_model(gguf.read_header(path))
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def minimal(keys: bytes = b"", tensors: bytes = b"", *, n_keys: int = 0, n_tensors: int = 0) -> bytes:
    """A GGUF file from raw parts, with an architecture and some zeros for weights."""
    own = entry("general.architecture", KEY_STR, string("llama"))
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_keys + 1) + own + keys + tensors + bytes(4096)


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str | bytes, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return string(name) + dims + struct.pack("<IQ", kind, offset)


# What a good file gives


def test_a_header_holds_what_was_written(model: Path) -> None:
    header = gguf.read_header(model)
    assert header.version == 3
    assert header.architecture == "llama"
    assert header.metadata["llama.block_count"] == 2
    assert header.metadata["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    assert header.metadata["tokenizer.ggml.add_bos_token"] is False
    assert header.n_bytes == model.stat().st_size
    assert header.data_offset % 32 == 0
    by_name = {t.name: t for t in header.tensors}
    assert by_name["blk.1.ffn_down.weight"].shape == (64, 32)
    assert by_name["blk.1.ffn_down.weight"].n_bytes == 64 * 32 * 4
    gguf.check_model(header)


@pytest.mark.parametrize("vocab", ["bpe", "spm"])
def test_arrays_are_read_when_asked_for(tmp_path: Path, vocab: tiny.Vocab) -> None:
    header = gguf.read_header(tiny.write_tiny_llama(tmp_path / "m.gguf", vocab=vocab))
    tokens, types = header.metadata["tokenizer.ggml.tokens"], header.metadata["tokenizer.ggml.token_type"]
    assert isinstance(tokens, gguf.Array)
    assert isinstance(types, gguf.Array)
    assert tokens.length == types.length == len(tokens.strings()) == len(types.numbers())
    assert b"safe" in tokens.strings()
    assert types.numbers().dtype == np.int32
    with pytest.raises(TypeError, match="strings"):
        tokens.numbers()
    with pytest.raises(TypeError, match="numbers"):
        types.strings()


def test_a_large_vocabulary_takes_no_memory_until_it_is_asked_for(tmp_path: Path) -> None:
    n = 150_000
    tokens = [f"<t{i}>" for i in range(n)]
    more = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * n,
        "tokenizer.ggml.merges": [f"{i} {i}" for i in range(n)],
        "llama.vocab_size": None,
    }
    path = tiny.write_tiny_llama(tmp_path / "m.gguf", metadata=more)
    tracemalloc.start()
    gguf.read_header(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e6  # bytes; the strings alone are three times as many


@pytest.mark.parametrize("ftype", ["F32", "F16", "Q8_0", "Q4_0"])
def test_quantization_is_what_the_file_says(tmp_path: Path, ftype: str) -> None:
    path = tiny.write_tiny_llama(tmp_path / "m.gguf", ftype=ftype)
    assert gguf.quantization(gguf.read_header(path)) == ftype


@pytest.mark.parametrize("claim", [None, 2, 99, 1024 + 2])
def test_quantization_is_of_the_tensors_when_the_file_says_nothing_true(tmp_path: Path, claim: int | None) -> None:
    path = tiny.write_tiny_llama(tmp_path / "m.gguf", ftype="Q8_0", metadata={"general.file_type": claim})
    assert gguf.quantization(gguf.read_header(path)) == "Q8_0"


def test_a_mix_keeps_its_usual_name(tmp_path: Path) -> None:
    path = tiny.write_tiny_llama(tmp_path / "m.gguf", ftype="Q8_0", metadata={"general.file_type": 15})
    assert gguf.quantization(gguf.read_header(path)) == "Q4_K_M"


def test_chat_template_and_context_are_the_headers(tmp_path: Path) -> None:
    header = gguf.read_header(tiny.write_tiny_llama(tmp_path / "m.gguf", chat_template="{{ x }}", n_ctx=77))
    assert (gguf.chat_template(header), gguf.context_length(header)) == ("{{ x }}", 77)
    bare = gguf.read_header(tiny.write_tiny_llama(tmp_path / "m.gguf", chat_template=None))
    assert gguf.chat_template(bare) is None


def test_memory_kind_tells_what_cannot_be_cut_back(tmp_path: Path, model: Path) -> None:
    def kind(path: Path) -> str:
        return gguf.memory_kind(gguf.read_header(path))

    assert kind(model) == "attention"
    assert kind(tiny.write_tiny_recurrent(tmp_path / "r.gguf")) == "recurrent"
    assert kind(tiny.write_tiny_recurrent(tmp_path / "r.gguf", arch="brand-new")) == "recurrent"
    assert kind(tiny.write_tiny_swa(tmp_path / "s.gguf")) == "sliding window"
    assert kind(tiny.write_tiny_swa(tmp_path / "s.gguf", arch="brand-new")) == "sliding window"
    assert kind(tiny.write_tiny_swa(tmp_path / "s.gguf", arch="gemma2", window=0)) == "sliding window"
    assert kind(tiny.write_tiny_swa(tmp_path / "s.gguf", arch="gemma3", window=0)) == "attention"
    # llama.cpp does not apply the window of these
    assert kind(tiny.write_tiny_swa(tmp_path / "s.gguf", arch="llama")) == "attention"


def test_recurrent_and_windowed_headers_pass_the_check(tmp_path: Path) -> None:
    gguf.check_model(gguf.read_header(tiny.write_tiny_recurrent(tmp_path / "r.gguf")))
    gguf.check_model(gguf.read_header(tiny.write_tiny_swa(tmp_path / "s.gguf")))


# What is no GGUF file


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"G", "not a GGUF"),
        (b"GGUF", "truncated"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html><body>404</body>", "web page"),
        (b"tjgg" + bytes(60), "old GGML"),
        (b"PK\x03\x04" + bytes(60), "PyTorch"),
        (struct.pack("<Q", 80) + b'{"__metadata__":{}}', "safetensors"),
        (b"\x08\x07\x12\x07pytorch" + bytes(60), "ONNX"),
        (b"\x1f\x8b" + bytes(60), "gzip"),
        (b"hello, world" + bytes(60), "b'hello, w'"),
        (b"GGUF" + struct.pack(">IQQ", 3, 1, 1), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 1, 1, 1), "version 1"),
        (b"GGUF" + struct.pack("<IQQ", 0, 1, 1), "version 0"),
        (b"GGUF" + struct.pack("<IQQ", 4, 1, 1), "version 4"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1), "tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 63), "metadata keys"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0) + bytes(9), "general.architecture"),
    ],
)
def test_what_is_no_gguf_file_is_called_what_it_looks_like(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    assert said in refusal(path)


def test_a_path_without_a_file_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "missing.gguf")
    assert "directory" in refusal(tmp_path)
    with pytest.raises(ModelError, match="cannot be read"):
        gguf.read_header("a\0b")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_is_refused_and_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "regular file" in refusal(tmp_path / "pipe")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(model.read_bytes())
    path.chmod(0)
    assert "Permission denied" in refusal(path)


# Lies of the metadata


@pytest.mark.parametrize(
    ("keys", "n", "said"),
    [
        (string("k") + struct.pack("<I", 13), 1, "unknown type 13"),
        (entry("k", KEY_STR, struct.pack("<Q", 5000)), 1, "ends within its header"),
        (entry("k", KEY_STR, struct.pack("<Q", 1 << 40)), 1, "bytes long"),
        (struct.pack("<Q", 1 << 20) + b"k", 1, "metadata key 1"),
        (entry("k", KEY_ARRAY, struct.pack("<IQ", 9, 1)), 1, "array of arrays"),
        (entry("k", KEY_ARRAY, struct.pack("<IQ", 77, 1)), 1, "unknown type 77"),
        (entry("k", KEY_ARRAY, struct.pack("<IQ", 4, 1 << 61)), 1, "ends within its header"),
        (entry("k", KEY_ARRAY, struct.pack("<IQ", 8, 1 << 61)), 1, "strings"),
        (entry("k", KEY_ARRAY, struct.pack("<IQ", 8, 4000)), 1, "ends within its header"),
        (entry("k", KEY_ARRAY, struct.pack("<IQQ", 8, 2, 1 << 63)), 1, "ends within its header"),
        (entry("k", KEY_U32, bytes(4)) * 2, 2, "appears twice"),
        (entry(b"\xff\xfe", KEY_U32, bytes(4)), 1, "not UTF-8"),
        (entry("llama.block_count\0", KEY_U32, bytes(4)), 1, "not a name"),
        (entry("", KEY_U32, bytes(4)), 1, "not a name"),
        *[
            (entry("general.alignment", KEY_U32, struct.pack("<I", n)), 1, f"general.alignment is {n}")
            for n in (0, 8, 48, 1 << 31)  # 8: llama.cpp aborts at weights it cannot map in place
        ],
        (entry("general.alignment", KEY_STR, string("x")), 1, "general.alignment is 'x'"),
        (entry("split.count", KEY_STR, string("x")), 1, "split.count"),
    ],
)
def test_a_lie_of_the_metadata_is_named(tmp_path: Path, keys: bytes, n: int, said: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(minimal(keys, n_keys=n))
    assert said in refusal(path)


@pytest.mark.parametrize("name", ["", "ll ama", "llama\0", "../x", "x" * 65])
def test_an_architecture_is_a_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "m.gguf"
    own = entry("general.architecture", KEY_STR, string(name))
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + own + bytes(64))
    assert "general.architecture is" in refusal(path)


# Lies of the tensors


@pytest.mark.parametrize(
    ("tensors", "n", "said"),
    [
        (tensor("t", (1, 1, 1, 1, 1)), 1, "5 dimensions"),
        (tensor("t", (4, 0)), 1, "impossible shape (4, 0)"),
        (tensor("t", (1 << 63,)), 1, "impossible shape"),
        (tensor("t", (1 << 32, 1 << 32)), 1, "impossible shape"),
        (tensor("t", (4,), kind=4), 1, "Q4_2, which was removed"),
        (tensor("t", (32,), kind=43), 1, "unknown type 43"),
        (tensor("t", (33,), kind=2), 1, "rows of 33 elements, Q4_0 wants multiples of 32"),
        (tensor("t", (4,), offset=8), 1, "offset 8 of the weights, 0 is expected"),
        (tensor("t", (4,)) + tensor("u", (4,), offset=16), 2, "offset 16 of the weights, 32 is expected"),
        (tensor("t", (4,)) + tensor("u", (4,), offset=0), 2, "offset 0 of the weights, 32 is expected"),
        (tensor("t", (4,)) + tensor("t", (4,), offset=32), 2, "appears twice"),
        (tensor("t" * 64, (4,)), 1, "at most 63"),
        (tensor("", (4,)), 1, "not a name"),
        (tensor("t", (1 << 20,)), 1, "truncated"),
        (struct.pack("<Q", 1 << 62), 1, "the name of tensor 0"),
    ],
)
def test_a_lie_of_a_tensor_is_named(tmp_path: Path, tensors: bytes, n: int, said: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(minimal(tensors=tensors, n_tensors=n))
    assert said in refusal(path)


def test_a_truncated_download_says_how_much_is_there(tmp_path: Path, model: Path) -> None:
    size = model.stat().st_size
    path = tiny.truncated(model, tmp_path / "cut.gguf", -1000)
    assert f"is truncated: {size - 1000} of {size} bytes; download it again" in refusal(path)


def test_a_large_truncated_download_is_counted_in_megabytes(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(minimal(tensors=tensor("t", (25_000_000,)), n_tensors=1))
    os.truncate(path, 40_000_000)
    assert "40 MB of 100 MB" in refusal(path)


def test_every_truncation_is_refused(tmp_path: Path, model: Path) -> None:
    size = model.stat().st_size
    for n in [*range(0, 400, 7), *range(400, size, 1009), size - 1]:
        refusal(tiny.truncated(model, tmp_path / "cut.gguf", n))


# Models in parts


def split(path: Path, number: int, count: int) -> Path:
    more = {"split.no": number, "split.count": count, "split.tensors.count": 21}
    return tiny.write_tiny_llama(path, metadata=more)


def test_a_first_part_needs_the_others_beside_it(tmp_path: Path) -> None:
    first = split(tmp_path / "m-00001-of-00003.gguf", 0, 3)
    assert "2 more of its 3 parts beside it, first m-00002-of-00003.gguf" in refusal(first)
    split(tmp_path / "m-00002-of-00003.gguf", 1, 3)
    split(tmp_path / "m-00003-of-00003.gguf", 2, 3)
    gguf.check_model(gguf.read_header(first))


def test_a_later_part_names_the_first(tmp_path: Path) -> None:
    assert "give the first, m-00001-of-00003.gguf" in refusal(split(tmp_path / "m-00002-of-00003.gguf", 1, 3))


def test_a_part_must_keep_its_name(tmp_path: Path) -> None:
    assert "must keep the name" in refusal(split(tmp_path / "part.gguf", 0, 3))


def test_one_part_of_one_is_a_whole_model(tmp_path: Path) -> None:
    gguf.check_model(gguf.read_header(split(tmp_path / "m.gguf", 0, 1)))


# Hyperparameters that contradict each other


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"general.type": "adapter"}, "LoRA"),
        ({"general.type": "mmproj"}, "vision projector"),
        ({"llama.attention.causal": False}, "does not write text"),
        ({"llama.block_count": None}, "has no llama.block_count"),
        ({"llama.block_count": 0}, "llama.block_count is 0"),
        ({"llama.block_count": 513}, "llama.block_count is 513"),
        ({"llama.block_count": "two"}, "llama.block_count is 'two'"),
        ({"llama.block_count": 2.0}, "llama.block_count is 2.0"),
        ({"llama.nextn_predict_layers": 3}, "nextn_predict_layers is 3"),
        ({"llama.context_length": 0}, "context_length is 0"),
        ({"llama.context_length": 2**32 - 1}, "context_length is 4294967295"),
        ({"llama.embedding_length": 0}, "embedding_length is 0"),
        ({"llama.embedding_length": 64, "llama.rope.dimension_count": 16}, "token_embd.weight has shape (32, 280)"),
        ({"llama.attention.head_count": 0}, "head_count is missing or 0"),
        ({"llama.attention.head_count": None}, "head_count is missing or 0"),
        ({"llama.attention.head_count": 3, "llama.attention.head_count_kv": 1}, "do not divide"),
        ({"llama.attention.head_count": 2**32 - 1}, "head_count is 4294967295"),
        ({"llama.attention.head_count_kv": 0}, "cannot share 0"),
        ({"llama.attention.head_count_kv": 3}, "cannot share 3"),
        ({"llama.attention.head_count_kv": 8}, "cannot share 8"),
        ({"llama.attention.head_count_kv": [2, 3]}, "cannot share 3"),
        ({"llama.attention.head_count": [4, 4, 4]}, "array of 3 i32 for 2 layers"),
        ({"llama.attention.head_count": ["4", "4"]}, "array of 2 str for 2 layers"),
        ({"llama.attention.head_count": [4, -4]}, "holds -4"),
        ({"llama.attention.key_length": 0}, "key_length is 0"),
        ({"llama.attention.value_length": 4}, "values of 4"),
        ({"llama.rope.dimension_count": 6}, "6 rotated elements"),
        ({"llama.rope.dimension_count": 10}, "dimension_count is 10"),
        ({"llama.rope.scaling.type": "wild"}, "rope.scaling.type is 'wild'"),
        ({"llama.rope.freq_base": float("nan")}, "freq_base is nan"),
        ({"llama.rope.freq_base": 0.0}, "freq_base is 0.0"),
        ({"llama.attention.layer_norm_rms_epsilon": -1.0}, "epsilon is -1.0"),
        ({"llama.logit_scale": float("inf")}, "logit_scale is inf"),
        ({"llama.feed_forward_length": 2**31}, "feed_forward_length is"),
        ({"llama.expert_count": 4}, "expert_used_count is 0"),
        ({"llama.expert_count": 4, "llama.expert_used_count": 5}, "expert_used_count is 5"),
        ({"llama.expert_used_count": 2}, "expert_used_count is 2"),
        ({"llama.expert_count": 2000, "llama.expert_used_count": 2}, "expert_count is 2000"),
        (
            {"llama.expert_count": 4, "llama.expert_used_count": 2, "llama.expert_group_count": 3},
            "4 experts in 3 groups",
        ),
        ({"llama.vocab_size": 281}, "280 tokens, 280 embeddings and a vocab_size of 281"),
        ({"tokenizer.ggml.model": None}, "no tokenizer"),
        ({"tokenizer.ggml.model": "no_vocab"}, "no tokenizer"),
        ({"tokenizer.ggml.model": "rwkv"}, "'rwkv' for 'llama'"),
        ({"tokenizer.ggml.model": "bert"}, "'bert' for 'llama'"),
        ({"tokenizer.ggml.tokens": None}, "tokens is missing or empty"),
        ({"tokenizer.ggml.tokens": "abc"}, "tokens is 'abc'"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "an array of str is needed"),
        ({"tokenizer.ggml.tokens": ["a", "b"]}, "2 tokens and 280 of tokenizer.ggml.token_type"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "280 tokens and 2 of tokenizer.ggml.token_type"),
        ({"tokenizer.ggml.token_type": ["a"]}, "an array of i32 is needed"),
        ({"tokenizer.ggml.scores": [1, 2]}, "280 tokens and 2 of tokenizer.ggml.scores"),
        ({"tokenizer.ggml.merges": [1, 2]}, "merges is an array of 2 i32"),
        ({"tokenizer.ggml.bos_token_id": 280}, "bos_token_id is 280"),
        ({"tokenizer.ggml.eos_token_id": 2**32 - 1}, "eos_token_id is 4294967295"),
        ({"tokenizer.chat_template": 5}, "chat_template"),
        ({"tokenizer.chat_template": "x" * (1 << 20) + "y"}, "chat_template"),
    ],
)
def test_numbers_that_llama_cpp_would_abort_at_are_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path = tiny.write_tiny_llama(tmp_path / "m.gguf", metadata=changes)
    assert said in refusal(path)


@pytest.mark.parametrize("pattern", [1, [0, 0]])
def test_a_window_that_no_layer_has_is_refused(tmp_path: Path, pattern: int | list[int]) -> None:
    more = {"llama.attention.sliding_window_pattern": pattern}
    said = refusal(tiny.write_tiny_llama(tmp_path / "m.gguf", arch="gemma3", tied=True, metadata=more))
    assert "sliding_window_pattern" in said and "no layer with it" in said
    more["llama.attention.sliding_window"] = 0
    gguf.check_model(
        gguf.read_header(tiny.write_tiny_llama(tmp_path / "n.gguf", arch="gemma3", tied=True, metadata=more))
    )


def test_an_experts_model_and_per_layer_heads_pass(tmp_path: Path) -> None:
    more = {
        "llama.expert_count": 8,
        "llama.expert_used_count": 2,
        "llama.expert_group_count": 4,
        "llama.expert_group_used_count": 2,
        "llama.attention.head_count": [4, 4],
        "llama.attention.head_count_kv": [2, 2],
    }
    gguf.check_model(gguf.read_header(tiny.write_tiny_llama(tmp_path / "m.gguf", metadata=more)))


@pytest.mark.parametrize("types", [26, 24, 25, 15])
def test_a_matrix_of_a_type_no_weights_have_is_refused(tmp_path: Path, model: Path, types: int) -> None:
    header = gguf.read_header(model)
    at = tiny.after(model, string("output.weight")) + 4 + 16
    assert header.tensors[-1].name == "output.weight"
    path = tiny.patched(model, tmp_path / "m.gguf", at, struct.pack("<I", types))
    assert "output.weight" in refusal(path)


def test_a_vector_of_another_type_than_f32_is_refused(tmp_path: Path, model: Path) -> None:
    # I32 has F32's size, so nothing but the type gives it away; llama.cpp aborts in its first decode.
    at = tiny.after(model, b"blk.0.attn_norm.weight") + 4 + 8
    path = tiny.patched(model, tmp_path / "m.gguf", at, struct.pack("<I", 26))
    assert "vectors are F32" in refusal(path)


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    path = tiny.write(tmp_path / "m.gguf", "llama", {"llama.block_count": 1}, {})
    assert "no tensors" in refusal(path)


def test_two_equal_tokens_are_refused(tmp_path: Path, model: Path) -> None:
    path = tiny.replaced(model, tmp_path / "m.gguf", string("<|im_end|>"), string("<|im_end|\0"))
    gguf.check_model(gguf.read_header(path))
    path = tiny.replaced(model, tmp_path / "m.gguf", b"<|end_of_text|>", b"<|im_end|>\0zzzz")
    assert "tokens 2 and 4 are the same, b'<|im_end|>'" in refusal(path)  # C reads them up to the NUL


def test_a_piece_vocabulary_without_a_byte_is_refused(tmp_path: Path) -> None:
    # llama.cpp throws through its tokenizer, and so ends the process, at the first text with that byte.
    good = tiny.write_tiny_llama(tmp_path / "good.gguf", vocab="spm")
    path = tiny.replaced(good, tmp_path / "m.gguf", b"<0xE9>", b"<0xe9>")
    assert "no token writes the byte 0xE9" in refusal(path)


# Laws


@st.composite
def damage(draw: st.DrawFn) -> Callable[[bytearray, int], bytes]:
    cut = draw(st.none() | st.floats(0, 1))
    edits = draw(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=8))))

    def apply(data: bytearray, end: int) -> bytes:
        for where, new in edits:
            at = int(where * end)
            data[at : at + len(new)] = new
        return bytes(data if cut is None else data[: int(cut * len(data))])

    return apply


@pytest.mark.parametrize("vocab", ["bpe", "spm"])
def test_damage_is_refused_or_harmless_and_always_cheap(
    tmp_path_factory: pytest.TempPathFactory, vocab: tiny.Vocab
) -> None:
    folder = tmp_path_factory.mktemp("damage")
    good = tiny.write_tiny_llama(folder / "good.gguf", vocab=vocab, merge_words=("safe", "unsafe"))
    data, end, path = good.read_bytes(), gguf.read_header(good).data_offset, folder / "damaged.gguf"

    @settings(max_examples=300, deadline=5000)
    @given(damage())
    def law(apply: Callable[[bytearray, int], bytes]) -> None:
        path.write_bytes(apply(bytearray(data), end))
        tracemalloc.start()
        try:
            header = gguf.read_header(path)
            gguf.check_model(header)
            gguf.memory_kind(header), gguf.quantization(header), gguf.chat_template(header)
        except ModelError as error:
            assert str(path) in str(error)
        finally:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert peak < 4e6

    law()


def test_a_long_value_is_shortened_in_messages(tmp_path: Path) -> None:
    path = tiny.write_tiny_llama(tmp_path / "m.gguf", metadata={"llama.rope.scaling.type": "y" * 10_000})
    assert len(refusal(path)) < 400 + len(str(path))


# The tiny models themselves

PROBE = """
import ctypes, sys
import llama_cpp as lc, numpy as np
from edgeguard.backends.llama_cpp.model import model_params
log = lc.llama_log_callback(lambda *a: None)
lc.llama_log_set(log, ctypes.c_void_p(0))
model = lc.llama_model_load_from_file(sys.argv[1].encode(), model_params())
assert model
params = lc.llama_context_default_params()
params.n_ctx, params.n_threads, params.n_threads_batch = 256, 1, 1
context = lc.llama_init_from_model(model, params)
ids = (lc.llama_token * 4)(1, 2, 3, 60)
assert lc.llama_decode(context, lc.llama_batch_get_one(ids, 4)) == 0
n = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(model))
logits = np.ctypeslib.as_array(lc.llama_get_logits_ith(context, -1), (n,))
assert np.isfinite(logits).all()
assert 2 < logits.std() < 4, logits.std()
"""


@pytest.mark.parametrize(
    "options", [{}, {"vocab": "spm"}, {"ftype": "Q8_0"}, {"ftype": "Q4_0"}, {"bias": {"safe": 4.0}}], ids=str
)
def test_llama_cpp_runs_the_tiny_models(tmp_path: Path, options: dict[str, Any]) -> None:
    pytest.importorskip("llama_cpp")
    path = tiny.write_tiny_llama(tmp_path / "m.gguf", **options)
    gguf.check_model(gguf.read_header(path))
    # In a process of its own: an abort in there must fail this test, not end the session.
    run = subprocess.run([sys.executable, "-c", PROBE, str(path)], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    a, b, c = (tiny.write_tiny_llama(tmp_path / f"{i}.gguf", seed=s) for i, s in enumerate((1, 1, 2)))
    assert a.read_bytes() == b.read_bytes() != c.read_bytes()
