"""The recipe's last step: an adapter and a guard.toml that edgeguard opens, of a guard on any architecture."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_gguf as tiny

from edgeguard import builtin as models
from edgeguard.builtin import ADAPTER, FromHub, FromPackage, built_in
from edgeguard.convert.built_in import make_form
from edgeguard.formats import gguf
from edgeguard.formats.hashes import sha256
from edgeguard.pull import pull_base

torch = pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).parents[1] / "models" / "recipe"))

import export  # noqa: E402
import forms  # noqa: E402


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny.write_tiny_llama(tmp_path / "given.gguf", arch="qwen2", n_ctx=1024, ftype="Q8_0")


@pytest.fixture
def run_of(base: Path, tmp_path: Path) -> Path:
    """What a training leaves, of random matrices."""
    torch.manual_seed(0)
    adapter = {}
    for tensor in gguf.read_header(base).tensors:
        if tensor.name.startswith("blk.") and tensor.name.endswith(("_q.weight", "_down.weight")):
            _, layer, part, _ = tensor.name.split(".")
            cols, rows = tensor.shape
            adapter[f"blocks.{layer}.{part}.a"] = 0.1 * torch.randn(4, cols)
            adapter[f"blocks.{layer}.{part}.b"] = 0.1 * torch.randn(rows, 4)
    torch.save({"settings": {"alpha": 8.0}, "adapter": adapter}, tmp_path / "adapter.pt")
    return tmp_path / "adapter.pt"


@pytest.mark.parametrize("name", sorted(export.RELEASES))
def test_an_exported_guard_is_one_that_edgeguard_scores_with(
    run, base: Path, run_of: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    release = replace(export.RELEASES[name], base_sha256=sha256(base))
    monkeypatch.setitem(export.RELEASES, name, release)
    monkeypatch.setattr(
        sys, "argv", ["export.py", str(run_of), "--guard", name, "--base", str(base), "--out", str(tmp_path / name)]
    )
    export.main()
    monkeypatch.setattr(models, "_FOLDERS", (tmp_path,))
    monkeypatch.setattr(models, "_find_base", lambda package, file: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    guard = built_in(f"{name}@{release.version}")
    assert (guard.base, guard.base_from, guard.default) == (release.base_file, release.base_from, (ADAPTER,))
    assert guard.adapter_path.stat().st_size < 20e6
    assert gguf.read_header(guard.adapter_path).metadata["general.architecture"] == "qwen2"
    pull_base(guard, file=base)
    row = json.loads(run("score", "-", "-m", name, "-t", 1, "--min-grammar-mass", 0, input='{"text": "x"}').stdout)
    assert (row["guard"], row["model_sha256"]) == (name, guard.form(ADAPTER).model_sha256)
    # And the forms that are made of it.
    monkeypatch.setattr(sys, "argv", ["forms.py", "--guard", name])
    forms.main()
    guard, (made, default) = built_in(name), forms.FORMS[name]
    assert ([form.name for form in guard.made], guard.default) == ([*made], default)
    assert {(form.name, form.kind) for form in guard.forms} >= {(n, k) for n, k in forms.KINDS.items() if n in made}
    assert guard.form("onnx-int8").is_whole(make_form(guard, guard.form("onnx-int8")))


def test_another_base_than_the_guard_s_is_refused(base: Path, run_of: Path, monkeypatch, capsys, tmp_path: Path):
    argv = ["export.py", str(run_of), "--guard", "edgeguard-500m", "--base", str(base), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit):
        export.main()
    assert "edgeguard-500m stands on 1d961463" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_released_guard_stands_on_the_base_that_the_recipe_names():
    for name, release in export.RELEASES.items():
        assert isinstance(release.base_from, FromPackage if name == models.DEFAULT else FromHub)
    guard, release = built_in("edgeguard-135m@1"), export.RELEASES["edgeguard-135m"]
    assert (guard.base, guard.base_from, guard.profile) == (release.base_file, release.base_from, release.profile)
    assert guard.sha256[guard.base] == release.base_sha256
