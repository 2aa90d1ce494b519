"""The built-in guard without its base's package: pulled out of a wheel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from test_models import ARCH, tiny_adapter, tiny_built_in, twice  # noqa: F401

from edgeguard import Guard, ModelError, OutputError, RuntimeOptions, builtin
from edgeguard import pull as pulling
from edgeguard.builtin import BuiltIn, built_in, find_base
from edgeguard.cli.advice import advised
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
        assert loaded.backend.info.sha256 == guard.form(builtin.ADAPTER).model_sha256


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
        "own = {'folder': Path(given['guard']['folder']), 'base_from': builtin.FromPackage('tiny-package')};"
        "guard = builtin.BuiltIn(**{**given['guard'], **own});"
        "print(pull_base(guard).path)"
    )
    given = {"cache": str(tmp_path / "cache"), "guard": {**vars(guard), "folder": str(guard.folder), "base_from": None}}
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
    run, guard: BuiltIn, wheels: Path, tmp_path: Path, monkeypatch
):
    (tmp_path / "cache").write_text("a file")  # a folder without the right to write would stop no administrator
    refused = run("models", "pull")
    assert refused.exit_code == 1 and "cannot be written: " in refused.stderr and "XDG_CACHE_HOME" in refused.stderr
    (tmp_path / "cache").unlink()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("platformdirs.user_cache_path", lambda *_, **__: Path("~/.cache/edgeguard"))
    with pytest.raises(OutputError, match="there is no home folder") as e:
        pull_base(guard)
    assert e.value.kind == "cache_not_writable" and not Path("~").exists()


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
    assert extras["smollm2"] == [built_in("edgeguard-135m").base_from.said]
    assert {"onnx", "gguf", "tokenizers"} <= {need.partition(">")[0] for need in extras["onnx"]}
