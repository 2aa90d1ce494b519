"""The built-in guard without its base's package and without llama.cpp: pulled out of a wheel, converted to ONNX."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from test_convert_gguf import write_adapter
from test_models import ARCH, tiny_adapter, tiny_built_in, twice  # noqa: F401

from edgeguard import Guard, ModelError, OutputError, RuntimeOptions, builtin
from edgeguard import backends as backends_package
from edgeguard import pull as pulling
from edgeguard.builtin import BuiltIn, built_in, find_base
from edgeguard.cli.advice import advised
from edgeguard.convert import built_in as forms
from edgeguard.formats.hashes import sha256
from edgeguard.pull import pull_base

pytestmark = pytest.mark.filterwarnings("error")
ONE = RuntimeOptions(threads=1, context=64)
NAME = "tiny_package-1-py3-none-any.whl"


@pytest.fixture
def guard(tiny_built_in: BuiltIn, monkeypatch: pytest.MonkeyPatch) -> BuiltIn:  # noqa: F811
    """The tiny guard, its base's package not installed."""
    monkeypatch.setattr(builtin, "_find_base", lambda package, file: None)
    return tiny_built_in


def wheel_of(guard: BuiltIn, folder: Path, data: bytes | None, *, file: str | None = None) -> Path:
    """A wheel that pip takes: with `data` in the place of the base; None: without the base."""
    folder.mkdir(exist_ok=True)
    path = folder / NAME
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        info = "tiny_package-1.dist-info"
        if data is not None:
            archive.writestr(f"tiny_package/{file or guard.base}", data)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-package\nVersion: 1\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def wheels(guard: BuiltIn, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that is all that pip's configuration knows."""
    folder = tmp_path / "wheels"
    wheel_of(guard, folder, tiny_model.read_bytes())
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file() or p.name.startswith("."))


def test_pip_s_own_configuration_brings_the_base_into_the_cache(run, guard: BuiltIn, wheels: Path, tmp_path: Path):
    done = run("models", "pull")
    assert done.exit_code == 0, done.stderr
    assert Path(done.stdout.strip()) == guard.cached_base
    assert sha256(guard.cached_base) == guard.sha256[guard.base]
    assert left(tmp_path / "cache") == [guard.base]  # nothing half-done
    again = run("models", "pull", "edgeguard-tiny")
    assert again.stdout == done.stdout and "it is there already" in again.stderr and "pip fetches" not in again.stderr
    row = json.loads(run("models", "--json").stdout)[0]["files"][0]
    assert (row["origin"], row["path"], row["problem"]) == ("cache", str(guard.cached_base), None)
    with Guard.load(runtime=ONE, calibration=False) as loaded:
        assert loaded.backend.info.sha256 == guard.model_sha256  # the same scores as with the package


def test_the_installed_package_comes_before_the_cache(guard: BuiltIn, wheels: Path, tiny_model: Path, monkeypatch):
    pull_base(guard)
    monkeypatch.setattr(builtin, "_find_base", lambda package, file: tiny_model)
    found = find_base(guard)
    assert found is not None and (found.path, found.origin) == (tiny_model, "package")
    assert pull_base(guard).how == "installed"
    other = guard.folder / "other" / guard.base
    other.parent.mkdir()
    other.write_bytes(b"x")
    monkeypatch.setattr(builtin, "_find_base", lambda package, file: other)
    with pytest.raises(ModelError, match="reinstall edgeguard and tiny-package"):
        pull_base(guard)


def test_a_damaged_file_is_told_and_pulled_again(run, guard: BuiltIn, wheels: Path, tiny_model: Path):
    pull_base(guard)
    for damage in (b"x", b"", tiny_model.read_bytes()[:-1] + b"!"):
        guard.cached_base.write_bytes(damage)
        with pytest.raises(ModelError, match="run `edgeguard models pull`, which replaces it"):
            Guard.load(runtime=ONE, calibration=False)
        assert "another file of that name: edgeguard models pull" in json.dumps(
            json.loads(run("models", "--json").stdout)
        )
        done = run("models", "pull")
        assert done.exit_code == 0 and "is damaged" in done.stderr
        assert guard.cached_base.read_bytes() == tiny_model.read_bytes()


def test_many_pulls_at_once_leave_one_whole_file(guard: BuiltIn, wheels: Path, tmp_path: Path):
    """In processes, as users do: each with a pip of its own."""
    job = (
        "import sys, json; from pathlib import Path; from edgeguard import builtin;"
        "from edgeguard.pull import pull_base;"
        "import platformdirs; given = json.loads(sys.argv[1]);"
        "platformdirs.user_cache_path = lambda *a, **k: Path(given['cache']);"
        "guard = builtin.BuiltIn(**{**given['guard'], 'folder': Path(given['guard']['folder'])});"
        "print(pull_base(guard).path)"
    )
    given = {"cache": str(tmp_path / "cache"), "guard": {**vars(guard), "folder": str(guard.folder)}}
    processes = [
        subprocess.Popen([sys.executable, "-c", job, json.dumps(given)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = {process.communicate(timeout=120)[0].strip() for process in processes}
    assert said == {str(guard.cached_base)} and [process.returncode for process in processes] == [0, 0]
    assert left(tmp_path / "cache") == [guard.base]
    assert sha256(guard.cached_base) == guard.sha256[guard.base]


def test_a_wheel_at_hand_needs_no_pip(run, guard: BuiltIn, wheels: Path, monkeypatch):
    monkeypatch.setattr(pulling, "find_spec", lambda name: None)
    refused = run("models", "pull")
    assert refused.exit_code == 1 and refused.stdout == ""
    for words in ("has none", "python -m ensurepip", "--wheel"):
        assert words in refused.stderr
    assert run("models", "pull", "--wheel", wheels / NAME).exit_code == 0
    assert guard.cached_base.is_file()


def test_what_pip_cannot_fetch_says_why(guard: BuiltIn, wheels: Path, tmp_path: Path, monkeypatch):
    (wheels / NAME).unlink()
    with pytest.raises(
        ModelError, match=r"did not fetch tiny-package: .*No matching distribution.*pip config list"
    ) as e:
        pull_base(guard)
    assert e.value.kind == "not_pulled" and "--wheel" in advised(e.value)
    fake = tmp_path / "fake" / "pip"
    fake.mkdir(parents=True)
    (fake / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", f"{fake.parent}")
    for code, match in (
        (
            "sys.exit('WARNING: Retrying after ConnectionError\\nERROR: none found')",
            "no connection to the index; none f",
        ),
        ("sys.exit(3)", "it says nothing"),
        ("", "fetched 0 wheels"),
    ):
        (fake / "__main__.py").write_text(f"import sys\n{code}", encoding="utf-8")
        with pytest.raises(ModelError, match=match):
            pull_base(guard)
    assert left(tmp_path / "cache") == []


@pytest.mark.parametrize("kind", ["other", "none", "elsewhere", "huge", "cut", "text", "missing", "damaged"])
def test_a_wheel_that_is_not_the_one_is_refused_and_nothing_is_kept(
    guard: BuiltIn, tiny_model: Path, tmp_path: Path, monkeypatch, kind: str
):
    data = tiny_model.read_bytes()
    given = {"other": b"another", "none": None}.get(kind, data)
    wheel = wheel_of(guard, tmp_path / "w", given, file="../base.gguf" if kind == "elsewhere" else None)
    raw = wheel.read_bytes()
    if kind == "huge":
        monkeypatch.setattr(pulling, "MAX_BYTES", len(data) - 1)
    elif kind == "missing":
        wheel.unlink()
    elif kind in ("cut", "text", "damaged"):
        at = len(raw) // 3
        wheel.write_bytes(
            {"cut": raw[:-30], "text": b"no zip", "damaged": raw[:at] + b"\xff" * 64 + raw[at + 64 :]}[kind]
        )
    match = {"other": "has sha256", "none": "holds no", "elsewhere": "holds no", "huge": "at most", "missing": "read"}
    with pytest.raises(ModelError, match=match.get(kind, "no whole wheel")) as e:
        pull_base(guard, wheel=wheel)
    assert e.value.kind == "not_pulled"
    assert left(tmp_path / "cache") == []


def test_a_cache_that_cannot_be_written_is_an_error_that_says_so(
    run, no_llama: BuiltIn, wheels: Path, tiny_model: Path, tmp_path: Path, monkeypatch
):
    (tmp_path / "cache").write_text("a file")  # a folder without the right to write would stop no administrator
    refused = run("models", "pull")
    assert refused.exit_code == 1 and "cannot be written: " in refused.stderr and "XDG_CACHE_HOME" in refused.stderr
    monkeypatch.setattr(builtin, "_find_base", lambda package, file: tiny_model)
    with pytest.raises(OutputError, match="make the cache folder writable") as e:
        Guard.load(runtime=ONE)
    assert e.value.kind == "cache_not_writable"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="an administrator may write anywhere")
def test_a_read_only_cache_still_gives_what_it_holds(guard: BuiltIn, wheels: Path, tmp_path: Path):
    pull_base(guard)
    guard.cached_base.parent.chmod(0o500)
    try:
        assert pull_base(guard).how == "kept"
        guard.cached_base.write_bytes(b"x")
        with pytest.raises(OutputError, match="cannot be written: Permission denied"):
            pull_base(guard)
    finally:
        guard.cached_base.parent.chmod(0o700)


def test_what_a_killed_pull_has_left_is_removed_a_day_later(guard: BuiltIn, wheels: Path):
    folder = guard.cached_base.parent
    for name, age in (("old", 90_000), ("new", 60)):
        (folder / f".pull-{name}").mkdir(parents=True)
        when = (folder / f".pull-{name}").stat().st_mtime - age
        os.utime(folder / f".pull-{name}", (when, when))
    pull_base(guard)
    assert sorted(p.name for p in folder.iterdir()) == [".pull-new", guard.base]


def test_the_pinned_package_is_the_one_of_the_extra():
    root = Path(__file__).resolve().parents[1]
    extras = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert extras["smollm2"] == [built_in("edgeguard-135m").requirement]
    assert {"onnx", "gguf", "tokenizers"} <= {need.partition(">")[0] for need in extras["onnx"]}


# ONNX Runtime alone


@pytest.fixture
def no_llama(monkeypatch: pytest.MonkeyPatch, tiny_built_in: BuiltIn) -> BuiltIn:  # noqa: F811
    """A machine with ONNX Runtime and without llama.cpp."""
    real = backends_package.find_spec
    monkeypatch.setattr(backends_package, "find_spec", lambda name: None if name == "llama_cpp" else real(name))
    return tiny_built_in


def test_without_llama_cpp_the_guard_is_converted_once_and_says_that_it_is_not_calibrated(
    run, no_llama: BuiltIn, tmp_path: Path
):
    text, quick = '{"text": "Hurt the dog"}', ("--threads", 1, "--min-grammar-mass", 0)
    first = run("score", "-", *quick, input=text)
    assert first.exit_code == 0, first.stderr
    row = json.loads(first.stdout)
    assert row["calibrated"] is False and row["guard"] == "edgeguard-tiny-1-onnx-int8"
    assert row["model_sha256"] != no_llama.model_sha256
    assert first.stderr.count("is converted for ONNX Runtime, once") == first.stderr.count("not calibrated") == 1
    second = run("score", "-", *quick, input=text)
    assert second.stdout == first.stdout and "is converted" not in second.stderr and "not calibrated" in second.stderr
    asked = run("score", "-", *quick, "--no-calibration", input=text)
    assert asked.stdout == first.stdout and "not calibrated" not in asked.stderr
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["edgeguard-tiny-1-onnx-int8"]


def test_a_damaged_form_is_made_again(no_llama: BuiltIn):
    folder = forms.onnx_built_in(no_llama)
    graph = (folder / "model.onnx").read_bytes()
    for name in ("model.onnx", "tokenizer.json", "edgeguard.json"):
        (folder / name).write_bytes(b"x")
        assert forms.onnx_built_in(no_llama) == folder and forms.is_onnx(no_llama, folder)
        assert (folder / "model.onnx").read_bytes() == graph
    (folder / "model.onnx").unlink()
    assert (forms.onnx_built_in(no_llama) / "model.onnx").read_bytes() == graph


def test_conversions_at_once_end_with_one_whole_form(no_llama: BuiltIn, tmp_path: Path):
    forms.onnx_path(no_llama).mkdir(parents=True)
    (forms.onnx_path(no_llama) / "model.onnx").write_bytes(b"damaged")
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(lambda _: forms.onnx_built_in(no_llama), range(4)))) == 1
    assert forms.is_onnx(no_llama, forms.onnx_path(no_llama))
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [forms.onnx_path(no_llama).name]


def test_a_form_of_another_adapter_is_not_taken(no_llama: BuiltIn, tiny_model: Path):
    folder = forms.onnx_built_in(no_llama)
    write_adapter(no_llama.adapter_path, twice(tiny_model), arch=ARCH)
    changed = BuiltIn(
        **{**vars(no_llama), "sha256": {**no_llama.sha256, "adapter.gguf": sha256(no_llama.adapter_path)}}
    )
    assert not forms.is_onnx(changed, folder)


def test_what_is_missing_is_said_exactly(run, no_llama: BuiltIn, monkeypatch):
    monkeypatch.setattr(forms, "find_spec", lambda name: None if name in ("gguf", "onnx") else object())
    with pytest.raises(ModelError, match=r"needs gguf and onnx, not installed; pip install 'edgeguard\[onnx\]'") as e:
        Guard.load(runtime=ONE)
    assert e.value.kind == "cannot_convert"
    monkeypatch.setattr(backends_package, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"'edgeguard\[onnx\]' for ONNX Runtime, or .*'edgeguard\[llama\]'"):
        Guard.load(runtime=ONE)
    with pytest.raises(ModelError, match=r"ONNX Runtime was asked for and is not installed"):
        Guard.load(runtime=RuntimeOptions(runtime="onnx"))
    monkeypatch.setattr(builtin, "_find_base", lambda package, file: None)
    refused = run("score", "-", "--runtime", "llama", input="")
    assert refused.exit_code == 1 and "run `edgeguard models pull`" in refused.stderr


def test_the_runtime_can_be_chosen_where_both_are(tiny_built_in: BuiltIn, tiny_model: Path):  # noqa: F811
    for name in ("onnx", "llama", None):
        with Guard.load(runtime=RuntimeOptions(threads=1, runtime=name), calibration=False) as guard:
            assert (guard.backend.info.sha256 == tiny_built_in.model_sha256) == (name != "onnx")
    with pytest.raises(ModelError, match="ONNX Runtime takes no kv_cache"):
        Guard.load(runtime=RuntimeOptions(runtime="onnx", kv_cache="f32"))
    with pytest.raises(ModelError, match=r"llama\.cpp was to open the model, runtime 'onnx' was asked for") as e:
        Guard.load(tiny_model, profile="instruct", runtime=RuntimeOptions(runtime="onnx"))
    assert "leave --runtime out" in advised(e.value)


def test_a_calibration_of_the_other_form_is_refused(no_llama: BuiltIn):
    """The law of calibrations stands: one file, one calibration."""
    from edgeguard import CalibrationError

    with pytest.raises(CalibrationError):
        Guard.load(runtime=ONE, calibration=built_in_file())


def built_in_file() -> Path:
    return Path(__file__).resolve().parents[1] / "models" / "edgeguard-135m" / "calibration-marginal.json"
