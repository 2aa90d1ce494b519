"""Types of single tensors: which tensors a name means, that llama.cpp gives them these, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_gguf import write_tiny_llama

from edgeguard.convert import Options, convert
from edgeguard.convert.mixed import tensor_types
from edgeguard.convert.quantize import quantize
from edgeguard.convert.size import gguf_size, misfits
from edgeguard.convert.weights import Weights
from edgeguard.errors import ModelError
from edgeguard.formats import gguf
from edgeguard.quant.variants import misfits_of, open_variant, wanted_variants


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("mixed") / "m.gguf", n_embd=96, n_ff=256)


def types_of(path: Path) -> dict[str, str]:
    return {t.name: t.type_name for t in gguf.read_header(path).tensors if len(t.shape) > 1}


def test_a_name_means_all_matrices_that_have_it_in_theirs_and_the_last_counts(model):
    header = gguf.read_header(model)
    found = tensor_types(header, [("ffn_down", "q8_0"), (r"blk\.0\.", "f16")])
    assert found["blk.0.ffn_down.weight"] == found["blk.0.attn_q.weight"] == "F16"
    assert found["blk.1.ffn_down.weight"] == "Q8_0"
    assert "blk.1.attn_q.weight" not in found
    assert not any("norm" in name for name in found)  # vectors stay


def test_llama_cpp_gives_the_named_matrices_their_type_and_the_others_what_they_had(model, tmp_path):
    plain = quantize(model, tmp_path / "plain.gguf", to="q4_0")
    names = [("ffn_down", "q8_0"), ("token_embd", "f16"), ("attn_v", "q5_1"), (r"^output\.", "q4_0")]
    done = quantize(model, tmp_path / "mixed.gguf", to="q4_0", mixed=names)
    own = tensor_types(gguf.read_header(model), names)
    before = types_of(plain.path)
    assert types_of(done.path) == {name: own.get(name, kind) for name, kind in before.items()}
    assert {t.name for t in plain.fallbacks} == {"output.weight"}  # its rows do not fit Q6_K
    assert done.fallbacks == ()  # what was asked for is none


def test_the_size_that_is_announced_is_that_of_the_mix(model, tmp_path):
    header, names = gguf.read_header(model), [("ffn_", "f16")]
    done = quantize(model, tmp_path / "mixed.gguf", to="q4_0", mixed=names)
    sizes = gguf_size(Weights(header, None), "q4_0", tensor_types(header, names))
    assert sum(t.n_bytes for t in gguf.read_header(done.path).tensors) == pytest.approx(sizes.n_bytes, rel=0.03)


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("attn_x", "q8_0", "no matrix whose name has 'attn_x' in it; it has attn_k, attn_output"),
        ("attn_norm", "q8_0", "no matrix"),
        ("ffn_down", "q9", "'q9' is no type of a tensor; expected one of bf16, f16"),
        ("ffn_down", "q8_1", "is no type of a tensor"),
        ("attn_v", "q6_k", "rows of 96 weights do not divide into blocks of 256; take a type with blocks of 32"),
        ("(", "q8_0", "is no pattern of names"),
        ("x" * 101, "q8_0", "too long"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(model, tmp_path, name, kind, said):
    with pytest.raises(ModelError) as caught:
        convert(model, tmp_path / "o.gguf", to="q4_0", options=Options(mixed=((name, kind),)))
    assert said in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", ["onnx-int4", "f32"])
def test_other_targets_have_one_type_for_all(model, tmp_path, to):
    with pytest.raises(ModelError, match="types of single tensors are for quantized GGUF types"):
        convert(model, tmp_path / "o", to=to, options=Options(mixed=(("ffn_down", "q8_0"),)))


def test_the_command_takes_them_as_llama_quantize_does_and_the_manifest_says_so(run, model, tmp_path):
    out = tmp_path / "o.gguf"
    options = ["--tensor-type", "ffn_down=q8_0", "--tensor-type", "attn_v=Q8_0"]
    result = run("convert", model, "--to", "q4_0", "-o", out, *options)
    assert result.exit_code == 0, result.stderr
    assert types_of(out)["blk.0.ffn_down.weight"] == types_of(out)["blk.1.attn_v.weight"] == "Q8_0"
    said = json.loads((tmp_path / "o.gguf.manifest.json").read_text())["options"]
    assert said == {"tensor_type.1": "ffn_down=q8_0", "tensor_type.2": "attn_v=q8_0"}
    assert gguf.read_header(out).metadata["edgeguard.options.tensor_type.1"] == "ffn_down=q8_0"
    assert "is not NAME=TYPE" in run("convert", model, "--to", "q4_0", "--tensor-type", "ffn_down").stderr


def test_a_variant_of_a_study_may_be_a_mix(model, tmp_path):
    reference = open_variant(model)
    mixed, plain = sorted(
        wanted_variants(reference, ["q4_0", "q4_0+ffn_down=q8_0+attn_v=q8_0"], tmp_path), key=lambda v: -v.n_bytes
    )
    assert mixed.n_bytes > plain.n_bytes  # estimated, as nothing is made yet
    made = mixed.open(reference)
    assert made.name == "q4_0+ffn_down=q8_0+attn_v=q8_0"
    assert types_of(made.path)["blk.0.ffn_down.weight"] == "Q8_0"
    for name, said in (("q4_0+ffn_down", "is not NAME=TYPE"), ("onnx-int4+ffn_down=q8_0", "has one for all")):
        with pytest.raises(ModelError, match=said):
            wanted_variants(reference, [name], tmp_path)


@pytest.mark.parametrize("to", ["q4_k_m", "q6_k", "iq4_xs", "q4_0", "q8_0"])
def test_what_llama_cpp_falls_back_to_is_foreseen_from_the_header(model, tmp_path, to):
    header, done = gguf.read_header(model), quantize(model, tmp_path / "o.gguf", to=to)
    said = misfits(header, to)
    fell_back = [t for t in done.fallbacks if t.name != "output.weight" or to not in ("q4_0", "q8_0")]
    if not fell_back:
        assert said == ""
        return
    assert said.startswith(f"{len(fell_back)} of {sum(len(t.shape) > 1 for t in header.tensors)} matrices")
    smallest = min(fell_back, key=lambda t: t.n_bytes / (t.shape[0] * t.shape[1]))
    assert f"become {smallest.type_name} or larger: their rows of 96 weights" in said


def test_a_study_s_plan_says_it(model, tmp_path):
    reference = open_variant(model)
    one, other = wanted_variants(reference, ["q4_k_m", "q8_0"], tmp_path)
    assert "do not divide into blocks of 256" in misfits_of(reference, one)
    assert misfits_of(reference, other) == ""
