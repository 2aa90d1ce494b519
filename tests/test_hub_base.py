"""A built-in guard whose base is a file of a hub: pulled from a small hub on loopback, or taken where it lies."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_gguf as tiny
from hub_server import Hub, Repo
from test_convert_gguf import factors, write_adapter
from test_hub import hub, offline  # noqa: F401

from edgeguard import Guard, ModelError, RuntimeOptions
from edgeguard import builtin as models
from edgeguard.builtin import ADAPTER, BuiltIn, Form, FromHub, FromPackage, find_base
from edgeguard.cli.advice import advised
from edgeguard.convert.built_in import write_form
from edgeguard.formats import gguf
from edgeguard.formats.hashes import sha256
from edgeguard.hub import pulled_models
from edgeguard.pull import pull_base

pytest.importorskip("huggingface_hub")
ONE = RuntimeOptions(threads=1, context=64)
COMMIT = "b" * 40
SOURCE = FromHub("org/base-GGUF", COMMIT)
FILE = "base-q8_0.gguf"
SCORE = ("score", "-", "-t", 1, "--min-grammar-mass", 0, "-m", "edgeguard-tiny")
TEXT = '{"text": "Hurt the dog"}'


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[BuiltIn, bytes]:
    """A guard on a qwen2 with biases, and its base's bytes; its ONNX form as this machine makes it."""
    folder = tmp_path_factory.mktemp("guard")
    base = tiny.write_tiny_llama(folder / FILE, arch="qwen2", n_ctx=1024, ftype="Q8_0")
    matrices = [t for t in gguf.read_header(base).tensors if t.name.endswith(("attn_q.weight", "ffn_down.weight"))]
    adapter = write_adapter(folder / "adapter.gguf", factors({t.name: t.shape[::-1] for t in matrices}), arch="qwen2")
    guard = BuiltIn(
        name="edgeguard-tiny",
        version="1",
        description="A random model",
        folder=folder,
        profile="edgeguard-135m",
        license="Apache-2.0",
        base=FILE,
        base_name="Tiny-Base",
        base_license="none",
        base_from=SOURCE,
        adapter=adapter.name,
        sha256={path.name: sha256(path) for path in (base, adapter)},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "_find_base", lambda package, file: base)
        out = tmp_path_factory.mktemp("form")
        write_form(replace(guard, base_from=FromPackage("none")), "onnx-int8", out)
    form = Form("onnx-int8", "onnx", {file.name: sha256(file) for file in out.iterdir()})
    data = base.read_bytes()
    base.unlink()
    return replace(guard, made=(form,)), data


@pytest.fixture
def guard(made: tuple[BuiltIn, bytes], hub: Hub, monkeypatch: pytest.MonkeyPatch) -> BuiltIn:  # noqa: F811
    """The guard in place of the real ones, but not the default; its base is in the hub's repository among others."""
    found, data = made
    hub.repos[SOURCE.repo] = Repo({FILE: data, "base-q4_0.gguf": data[:9999], "README.md": b"x"}, COMMIT)
    monkeypatch.setattr(models, "built_in_guards", lambda: [found])
    return found


# From the hub


def test_the_base_comes_from_the_hub_once_and_scores_offline(run, guard: BuiltIn, hub: Hub, monkeypatch):  # noqa: F811
    done = run("models", "pull", "edgeguard-tiny")
    assert done.exit_code == 0, done.stderr
    assert Path(done.stdout.strip()) == guard.cached_base and sha256(guard.cached_base) == guard.sha256[FILE]
    assert hub.downloads() == [FILE] and "pulled, hash right" in done.stderr
    assert pulled_models() == []  # it is the guard's, and no model of its own
    offline(monkeypatch, hub)
    again = run("models", "pull", "edgeguard-tiny")
    assert again.stdout == done.stdout and "it is there already" in again.stderr and hub.asked == []
    row = json.loads(run(*SCORE, input=TEXT).stdout)
    assert (row["guard"], row["profile"]) == ("edgeguard-tiny", "edgeguard-135m")
    assert row["model_sha256"] == guard.form(ADAPTER).model_sha256
    (listed,) = json.loads(run("models", "--json").stdout)
    assert (listed["files"][0]["origin"], listed["files"][0]["problem"]) == ("cache", None)


def test_what_others_have_put_into_the_hub_s_cache_is_taken_offline(guard: BuiltIn, hub: Hub, monkeypatch):  # noqa: F811
    pull_base(guard)
    guard.cached_base.unlink()
    offline(monkeypatch, hub)
    assert pull_base(guard).how == "pulled" and sha256(guard.cached_base) == guard.sha256[FILE]


def test_a_pull_that_broke_off_is_whole_when_it_is_asked_again(guard: BuiltIn, hub: Hub, made):  # noqa: F811
    """That what has come is not fetched again is shown in test_hub.py, on a file that is large enough."""
    hub.breaks_after = 8192
    try:
        pull_base(guard)
    except ModelError as error:
        assert error.data["reason"] == "hub_not_reached" and find_base(guard) is None
        pull_base(guard)
    assert hub.broken == {FILE} and guard.cached_base.read_bytes() == made[1]


@pytest.mark.parametrize(
    ("refuses", "words"), [(401, "is gated, and there is no token"), (404, "there is no hf:org/base-GGUF")]
)
def test_a_hub_that_refuses_says_why(guard: BuiltIn, hub: Hub, refuses: int, words: str):  # noqa: F811
    hub.repos[SOURCE.repo].refuses = refuses
    with pytest.raises(ModelError, match=words) as caught:
        pull_base(guard)
    assert caught.value.kind == "base_not_fetched" and advised(caught.value).endswith("that you have with --from")


def test_offline_and_without_the_library_it_says_what_to_do(run, guard: BuiltIn, hub: Hub, monkeypatch):  # noqa: F811
    offline(monkeypatch, hub)
    done = run("models", "pull", "edgeguard-tiny")
    assert done.exit_code == 1 and "was not reached" in done.stderr and "--from" in done.stderr
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    done = run("models", "pull", "edgeguard-tiny")
    assert done.exit_code == 1 and "pip install 'edgeguard[hub]'" in done.stderr and "--from" in done.stderr


def test_a_hub_that_lists_another_file_is_refused_before_it_comes(guard: BuiltIn, hub: Hub):  # noqa: F811
    hub.repos[SOURCE.repo].files[FILE] = b"y" * 20_000
    with pytest.raises(ModelError, match=rf"{FILE}@{COMMIT} has sha256 .*, expected {guard.sha256[FILE]}"):
        pull_base(guard)
    assert hub.downloads() == []
    del hub.repos[SOURCE.repo].files[FILE]
    with pytest.raises(ModelError, match=f"is not among the files of the repository at commit {COMMIT}"):
        pull_base(guard)


def test_a_small_file_of_another_hash_is_refused_though_the_hub_lists_none(guard: BuiltIn, hub: Hub):  # noqa: F811
    hub.repos[SOURCE.repo].files[FILE] = b"small"
    with pytest.raises(ModelError, match="has sha256"):
        pull_base(guard)
    assert find_base(guard) is None


# A user's own file


@pytest.fixture
def mine(made: tuple[BuiltIn, bytes], tmp_path: Path) -> Path:
    path = tmp_path / "downloads" / "my copy.gguf"
    path.parent.mkdir()
    path.write_bytes(made[1])
    return path


def test_a_file_that_is_here_is_linked_and_takes_no_room(run, guard: BuiltIn, hub: Hub, mine: Path):  # noqa: F811
    done = run("models", "pull", "edgeguard-tiny", "--from", mine)
    assert done.exit_code == 0 and "linked to the file that was given" in done.stderr and hub.asked == []
    assert Path(done.stdout.strip()).samefile(mine)
    before = json.loads(run(*SCORE, input=TEXT).stdout)
    assert before["model_sha256"] == guard.form(ADAPTER).model_sha256  # by the guard's name of it
    mine.unlink()  # the link is the file itself
    assert json.loads(run(*SCORE, input=TEXT).stdout)["unsafe"] == before["unsafe"]
    assert [path.name for path in guard.cached_base.parent.iterdir()] == [FILE]


def test_on_another_file_system_it_is_a_symbolic_link_and_without_links_a_copy(
    guard: BuiltIn, mine: Path, made: tuple[BuiltIn, bytes], monkeypatch: pytest.MonkeyPatch
):
    def none(*_: object) -> None:
        raise OSError("Invalid cross-device link")

    monkeypatch.setattr(os, "link", none)
    pull_base(guard, file=Path(os.path.relpath(mine)))
    assert guard.cached_base.is_symlink() and guard.cached_base.samefile(mine)
    with Guard.load("edgeguard-tiny", runtime=ONE, calibration=False) as loaded:
        assert loaded.model_sha256 == guard.form(ADAPTER).model_sha256
    mine.rename(mine.with_name("moved.gguf"))
    assert find_base(guard) is None  # and it is said what brings it
    monkeypatch.setattr(os, "symlink", none)
    pull_base(guard, file=mine.with_name("moved.gguf"))
    assert not guard.cached_base.is_symlink() and guard.cached_base.read_bytes() == made[1]


def test_a_file_that_is_not_the_one_is_refused_and_nothing_is_kept(run, guard: BuiltIn, mine: Path, tmp_path: Path):
    mine.write_bytes(mine.read_bytes()[:-1] + b"!")
    done = run("models", "pull", "edgeguard-tiny", "--from", mine)
    assert done.exit_code == 1 and find_base(guard) is None
    for word in (sha256(mine), guard.sha256[FILE], f"expected {FILE} of hf:org/base-GGUF@{COMMIT}"):
        assert word in done.stderr
    for path in (tmp_path / "none.gguf", tmp_path):
        assert "cannot be read" in run("models", "pull", "edgeguard-tiny", "--from", path).stderr
    assert list(guard.cached_base.parent.iterdir()) == []


def test_a_link_to_a_file_that_was_changed_is_not_used_and_a_pull_leaves_that_file_alone(
    run, guard: BuiltIn, mine: Path, made: tuple[BuiltIn, bytes]
):
    pull_base(guard, file=mine)
    with mine.open("r+b") as file:
        file.write(b"changed")
    done = run(*SCORE, input=TEXT)
    assert done.exit_code == 1 and "run `edgeguard models pull edgeguard-tiny`, which replaces it" in done.stderr
    listed = run("models", "--json")
    problem = json.loads(listed.stdout)[0]["files"][0]["problem"]
    assert (listed.exit_code, problem) == (1, "another file of that name: edgeguard models pull edgeguard-tiny")
    changed = mine.read_bytes()
    done = run("models", "pull", "edgeguard-tiny")
    assert done.exit_code == 0 and "it is replaced" in done.stderr
    assert guard.cached_base.read_bytes() == made[1] and mine.read_bytes() == changed


def test_a_package_s_base_is_taken_from_a_file_too(guard: BuiltIn, mine: Path, monkeypatch):
    monkeypatch.setattr(models, "_find_base", lambda package, file: None)
    packaged = replace(guard, base_from=FromPackage("tiny-package"))
    assert pull_base(packaged, file=mine).how == "given"
    assert pull_base(packaged).how == "kept"


def test_a_wheel_is_for_a_package_s_base_alone(run, guard: BuiltIn, mine: Path):
    for options in (("--wheel", "x.whl"), ("--wheel", "x.whl", "--from", mine)):
        assert run("models", "pull", "edgeguard-tiny", *options).exit_code == 2
    assert run("models", "pull", "hf:org/base-GGUF", "--from", mine).exit_code == 2
    for given in ({"wheel": mine}, {"wheel": mine, "file": mine}):
        with pytest.raises(ValueError, match="expected"):
            pull_base(guard, **given)


# Without the base


def test_without_its_base_a_guard_says_the_commands_that_bring_it(run, guard: BuiltIn):
    for options in ((), ("--runtime", "onnx")):  # as it comes, and in a form that is made of it
        done = run(*SCORE, *options, input=TEXT)
        assert done.exit_code == 1
        for words in (
            "edgeguard-tiny needs Tiny-Base, which is not on this machine",
            "run `edgeguard models pull edgeguard-tiny`",
            "pip install 'edgeguard[hub]'",
            "`edgeguard models pull edgeguard-tiny --from FILE`",
        ):
            assert words in done.stderr
    assert "edgeguard models pull edgeguard-tiny" in run("inspect", "edgeguard-tiny").stdout


def test_a_base_that_was_never_asked_for_is_no_fault_of_the_installation(run, guard: BuiltIn, monkeypatch):
    listed = run("models", "--json")
    assert listed.exit_code == 0
    assert json.loads(listed.stdout)[0]["files"][0]["problem"] == "not installed: edgeguard models pull edgeguard-tiny"
    assert "not installed: edgeguard models pull edgeguard-tiny" in run("models").stdout
    monkeypatch.setattr(models, "DEFAULT", guard.name)  # whose base is needed
    assert run("models").exit_code == 1


def test_its_onnx_form_is_made_of_the_linked_base(run, guard: BuiltIn, mine: Path):
    pull_base(guard, file=mine)
    rows = {}
    for options in ((), ("--runtime", "onnx")):
        done = run(*SCORE, *options, input=TEXT)
        assert done.exit_code == 0, done.stderr
        rows[options] = json.loads(done.stdout)
    assert rows[()]["model_sha256"] == guard.form(ADAPTER).model_sha256
    assert rows[("--runtime", "onnx")]["model_sha256"] == guard.form("onnx-int8").model_sha256
    assert guard.form_folder(guard.form("onnx-int8")).name.startswith("edgeguard-tiny-1-onnx-int8-")
