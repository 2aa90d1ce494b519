"""Models from a hub: named, chosen, fetched from a small hub on loopback, kept by hash, refused where they changed."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import Hub, Repo, serve_hub
from hypothesis import given
from hypothesis import strategies as st

from edgeguard.errors import ModelError
from edgeguard.guard import Guard
from edgeguard.hub import HubName, forget, parse_hub_name, problem, pull, pulled_models, resolved
from edgeguard.hub.names import choose, in_bytes, is_inside

pytest.importorskip("huggingface_hub")
NAME, REPO = "hf:org/guard", "org/guard"
quiet = {"tell": lambda line: None}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub, and caches of its own; huggingface_hub reads its environment as it is imported, so it is told here."""
    import platformdirs
    from huggingface_hub import constants, file_download

    with serve_hub() as served:
        template = served.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        cache = str(tmp_path / "hf")
        for name, value in {
            "ENDPOINT": served.endpoint,
            "HF_HUB_CACHE": cache,
            "HUGGINGFACE_HUB_CACHE": cache,
            "HUGGINGFACE_CO_URL_TEMPLATE": served.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_TOKEN_PATH": str(tmp_path / "token"),
            "HF_HUB_DISABLE_XET": True,
            "DEFAULT_REQUEST_TIMEOUT": 5,
        }.items():
            monkeypatch.setattr(constants, name, value, raising=False)
        monkeypatch.setenv("HF_TOKEN", "")
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(platformdirs, "user_cache_path", lambda *_, **__: tmp_path / "cache")
        yield served


def data(seed: str, n: int = 20_000) -> bytes:
    return (hashlib.sha512(seed.encode()).digest() * (n // 64 + 1))[:n]


def offline(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    """Nothing answers where the hub was: a port that nobody listens at."""
    from huggingface_hub import constants

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    hub.asked.clear()


# ---------------------------------------------------------------- names and choices


@pytest.mark.parametrize(
    "name",
    [
        HubName("a/b"),
        HubName("a/b", "x.gguf"),
        HubName("a/b", "onnx/m.onnx", "refs/pr/1"),
        HubName("A.b/c_d-1.0", None, "v1"),
    ],
    ids=str,
)
def test_a_name_is_read_as_it_is_written_also_as_a_path(name: HubName):
    assert parse_hub_name(str(name)) == parse_hub_name(Path(str(name))) == name


@pytest.mark.parametrize("name", ["model.gguf", "edgeguard-135m:q4_0", "./hf:a/b", "HF:a/b", None])
def test_what_is_no_hubs_name_is_left_alone(name):
    assert parse_hub_name(name) is None
    assert resolved(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *(
            "hf:",
            "hf:a",
            "hf:a/b/c",
            "hf:a/b:",
            "hf:a/b@",
            "hf:a/b:@x",
            "hf:../b",
            "hf:a/..",
            "hf:a/b:../x",
            "hf:a/b:/x",
        ),
        *("hf:a/b:x\\y", "hf:a/b@../x", "hf:a/b@/etc", "hf:a/b:x\n", "hf:-a/b", "hf:a/b@-x", "hf:a/b:c:d"),
    ],
)
def test_a_name_with_a_mistake_is_an_error_that_says_how_it_is_spelled(name):
    with pytest.raises(ModelError, match="expected hf:ORG/REPO"):
        parse_hub_name(name)


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20))
def test_no_name_leads_out_of_its_folder(repo, file, revision):
    try:
        wanted = parse_hub_name(f"hf:{repo}:{file}@{revision}")
    except ModelError:
        return
    assert wanted is not None and wanted.file is not None
    root = Path("/base/folder")
    for part in (wanted.repo, wanted.file, wanted.revision or ""):
        assert Path(f"{root}/{part}").resolve().is_relative_to(root)


def chosen(names: list[str], wanted: str = NAME, **options: bool) -> tuple[str, tuple[str, ...]]:
    found = choose(dict.fromkeys(names, 1000), parse_hub_name(wanted) or HubName(""), **options)
    return found.main, found.files


def test_the_one_gguf_is_meant_and_nothing_else_is_taken():
    names = [
        "README.md",
        "config.json",
        "mmproj-f16.gguf",
        "guard.imatrix.gguf",
        "evil.py",
        "guard.gguf",
        "pytorch.bin",
    ]
    assert chosen(names) == ("guard.gguf", ("guard.gguf",))


def test_a_model_in_parts_is_all_its_parts_whichever_is_named():
    names = [f"q8/g-0000{n}-of-00002.gguf" for n in (1, 2)]
    for name in (NAME, f"{NAME}:{names[0]}", f"{NAME}:{names[1]}", f"{NAME}:q8", f"{NAME}:q8/"):
        assert chosen(names, name) == (names[0], tuple(names))
    with pytest.raises(ModelError, match=r"has not all parts of .*: q8/g-00002-of-00002.gguf is missing"):
        chosen(names[:1])


def test_an_onnx_graph_comes_with_its_weights_and_what_is_read_beside_it():
    names = ["onnx/m.onnx", "onnx/m.onnx_data", "onnx/m.onnx.data", "onnx/m_q4.onnx", "onnx/m_q4.onnx_data"]
    more = ["config.json", "tokenizer.json", "onnx/config.json", "README.md", "custom.py"]
    main, files = chosen([*names, *more], f"{NAME}:onnx/m.onnx")
    assert main == "onnx/m.onnx"
    assert set(files) == {*names[:3], "tokenizer.json", "onnx/config.json"}


def test_a_checkpoint_is_taken_where_one_is_asked_for_alone():
    names = ["model.safetensors", "config.json", "tokenizer.json", "modeling.py", "pytorch_model.bin", "original/x.pth"]
    with pytest.raises(
        ModelError, match=r"is a checkpoint of safetensors.*edgeguard convert hf:org/guard --to onnx-fp32"
    ):
        chosen(names)
    assert chosen(names, checkpoint=True) == ("", ("model.safetensors", "tokenizer.json", "config.json"))


def test_several_models_are_listed_with_their_sizes():
    sizes = {"a.Q4.gguf": 900, "b-00001-of-00002.gguf": 2_000_000, "b-00002-of-00002.gguf": 1_000_000, "x.md": 3}
    with pytest.raises(
        ModelError, match=r"2 models, name one as hf:org/guard:FILE: a.Q4.gguf \(900 bytes\), b-.*3.0 MB"
    ):
        choose(sizes, HubName(REPO))


def test_a_file_that_is_not_there_is_an_error_with_the_near_one():
    with pytest.raises(ModelError, match=r"has no model 'guard.q8.gguf' \(did you mean 'guard.Q8.gguf'\?\)"):
        chosen(["guard.Q8.gguf", "other.gguf"], f"{NAME}:guard.q8.gguf")
    with pytest.raises(ModelError, match=r"README.md of hf:org/guard is no model"):
        chosen(["guard.Q8.gguf", "README.md"], f"{NAME}:README.md")
    with pytest.raises(ModelError, match="holds no GGUF and no ONNX file"):
        chosen(["README.md"])


@given(st.lists(st.text(max_size=12), max_size=5))
def test_a_hostile_listing_names_no_file_outside(names):
    sizes = dict.fromkeys([*names, "../x.gguf", "/y.gguf", "a/../../z.gguf", "b\\c.gguf", "good.gguf"], 1)
    try:
        found = choose(sizes, HubName(REPO))
    except ModelError:
        return
    assert all(is_inside(name) for name in found.files)


@pytest.mark.parametrize(("n", "said"), [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (98_400_000, "98.4 MB")])
def test_a_size_is_said_in_the_unit_that_fits(n, said):
    assert in_bytes(n) == said


# ---------------------------------------------------------------- fetching


def test_one_file_is_fetched_and_its_hash_kept(hub: Hub):
    files = {"guard.gguf": data("g"), "README.md": b"x", "config.json": b"{}", "big.bin": data("b")}
    hub.repos[REPO] = Repo(files)
    lines: list[str] = []
    path = resolved(NAME, tell=lines.append)
    assert isinstance(path, Path) and path.name == "guard.gguf" and path.read_bytes() == data("g")
    assert set(hub.downloads()) == {"guard.gguf"}
    (kept,) = pulled_models()
    assert kept.files[0].sha256 == hashlib.sha256(data("g")).hexdigest()
    assert (str(kept.wanted), kept.commit, kept.endpoint) == (NAME, "a" * 40, hub.endpoint)
    assert lines == [f"hf:org/guard: guard.gguf, 1 file, 20.0 kB, from {hub.endpoint}"]


def test_what_was_pulled_needs_no_network_and_no_library(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    hub.repos[REPO] = Repo({"guard.gguf": data("g")})
    path = resolved(NAME, **quiet)
    hub.asked.clear()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert resolved(NAME, **quiet) == path
    assert hub.asked == []
    with pytest.raises(ModelError, match=r"not installed; pip install 'edgeguard\[hub\]'"):
        resolved("hf:org/other", **quiet)


def test_an_onnx_repository_becomes_a_folder_with_all_that_is_read(hub: Hub):
    files = {
        "onnx/model.onnx": data("m"),
        "onnx/model.onnx_data": data("w"),
        "tokenizer.json": b"{}",
        "config.json": b"[]",
    }
    hub.repos[REPO] = Repo({**files, "model.py": b"import os", "flax.msgpack": data("f")})
    path = resolved(NAME, **quiet)
    assert isinstance(path, Path) and path.name == "model.onnx"
    there = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    assert there == {name.rpartition("/")[2]: content for name, content in files.items()}
    assert {file.resolve().parent for file in path.parent.iterdir()} == {path.resolve().parent}  # weights by the graph
    assert resolved(NAME, **quiet) == path
    assert pull(HubName(REPO), **quiet).path == path


def test_the_tests_guard_scores_from_a_hub_as_from_its_file(hub: Hub, tiny_model: Path, tiny_profile: Path):
    from edgeguard.backend import RuntimeOptions

    hub.repos[REPO] = Repo({"tiny.gguf": tiny_model.read_bytes()})
    options = {"profile": tiny_profile, "runtime": RuntimeOptions(threads=1)}
    with (
        Guard.load(tiny_model, **options) as guard,
        Guard.load(f"{NAME}@main", tell=lambda line: None, **options) as hubs,
    ):
        assert hubs.score("Hurt the dog").row() == guard.score("Hurt the dog").row()


def test_worker_processes_get_the_path_and_ask_no_hub(hub: Hub, tiny_model: Path, tiny_profile: Path):
    from edgeguard.backend import RuntimeOptions
    from edgeguard.workers import isolated

    hub.repos[REPO] = Repo({"tiny.gguf": tiny_model.read_bytes()})
    options = {"profile": tiny_profile, "runtime": RuntimeOptions(threads=1), **quiet}
    with isolated(NAME, **options) as guard:
        assert guard.score("Hurt the dog").guard == "tiny"
    assert hub.downloads() == ["tiny.gguf"]


def test_a_broken_download_goes_on_where_it_stopped(hub: Hub):
    """Whether the library goes on by itself, or says that it broke off and goes on when it is asked again."""
    content = data("g", 30_000_000)
    hub.repos[REPO] = Repo({"guard.gguf": content})
    hub.breaks_after = 22_000_000
    try:
        path = resolved(NAME, **quiet)
    except ModelError as error:
        assert "broke off" in str(error) and "what has come is kept" in str(error)
        path = resolved(NAME, **quiet)
    assert isinstance(path, Path) and path.read_bytes() == content
    ranges = [asked for method, _, asked in hub.asked if method == "GET" and asked]
    assert ranges and int(ranges[-1].removeprefix("bytes=").partition("-")[0]) > 0


@pytest.mark.parametrize(
    ("refuses", "said"),
    [
        (401, "is gated, and there is no token: ask for access at http://127.0.0.1:.*/org/guard, and give a token"),
        (403, "is gated, and your token's account has not been let in"),
        (404, "there is no hf:org/guard at http.*or it is private.*HF_TOKEN"),
    ],
)
def test_a_repository_that_is_closed_is_an_error_that_says_what_to_do(hub: Hub, refuses: int, said: str):
    hub.repos[REPO] = Repo({"guard.gguf": data("g")}, refuses=refuses)
    with pytest.raises(ModelError, match=said):
        resolved(NAME, **quiet)
    assert hub.downloads() == []


def test_a_revision_that_is_not_there_is_an_error(hub: Hub):
    hub.repos[REPO] = Repo({"guard.gguf": data("g")})
    with pytest.raises(ModelError, match="has no revision 'v9'"):
        resolved(f"{NAME}@v9", **quiet)


def test_a_hub_that_is_not_there_is_an_error(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    offline(monkeypatch, hub)
    with pytest.raises(ModelError, match=r"is not in the cache here, not whole, and .* was not reached"):
        resolved(NAME, **quiet)


def test_what_others_put_into_the_hubs_cache_is_used_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import constants, hf_hub_download

    hub.repos[REPO] = Repo({"guard.gguf": data("g")})
    there = Path(hf_hub_download(REPO, "guard.gguf", endpoint=hub.endpoint, cache_dir=constants.HF_HUB_CACHE))
    offline(monkeypatch, hub)
    assert resolved(NAME, **quiet) == there
    assert hub.asked == []
    with pytest.raises(ModelError, match="not reached"):
        resolved(f"{NAME}@v2", **quiet)


# ---------------------------------------------------------------- what changed


def test_another_file_at_the_same_name_is_refused_before_it_comes(hub: Hub):
    repo = hub.repos[REPO] = Repo({"guard.gguf": data("g")}, revisions=("main", "v1"))
    name = f"{NAME}@v1"
    resolved(name, **quiet)
    for commit, said in (("a" * 40, "at the same commit"), ("b" * 40, "at commit b{40}, then it was a{40}")):
        repo.files, repo.commit = {"guard.gguf": data("other")}, commit
        hub.asked.clear()
        with pytest.raises(ModelError, match=f"is not what was pulled: guard.gguf has sha256 .* {said}.*models forget"):
            pull(HubName(REPO, None, "v1"), **quiet)
        assert hub.downloads() == []
    assert Path(str(resolved(name, **quiet))).read_bytes() == data("g")  # what was pulled is still that
    forget(HubName(REPO, None, "v1"))
    assert Path(str(resolved(name, **quiet))).read_bytes() == data("other")


def test_a_small_file_that_changed_is_refused_too(hub: Hub):
    """A tokenizer is as good as weights to change what a guard says, and is listed without a sha256."""
    repo = hub.repos[REPO] = Repo({"model.onnx": data("m"), "tokenizer.json": b"{}"})
    resolved(NAME, **quiet)
    repo.files["tokenizer.json"], repo.commit = b'{"x": 1}', "b" * 40
    with pytest.raises(ModelError, match=r"tokenizer.json has sha256"):
        pull(HubName(REPO), **quiet)


def test_the_same_files_at_a_newer_commit_are_no_change(hub: Hub):
    repo = hub.repos[REPO] = Repo({"guard.gguf": data("g"), "README.md": b"1"})
    pull(HubName(REPO), **quiet)
    repo.files["README.md"], repo.commit = b"2", "b" * 40
    assert pull(HubName(REPO), **quiet).commit == "b" * 40


def test_a_file_altered_on_the_disk_is_refused_and_a_pull_replaces_it(hub: Hub):
    hub.repos[REPO] = Repo({"guard.gguf": data("g")})
    path = Path(str(resolved(NAME, **quiet)))
    path.resolve().write_bytes(data("evil"))
    with pytest.raises(ModelError, match=r"is not what was pulled: .*edgeguard models pull hf:org/guard replaces it"):
        resolved(NAME, **quiet)
    assert problem(pulled_models()[0]) is not None
    pull(HubName(REPO), **quiet)
    assert Path(str(resolved(NAME, **quiet))).read_bytes() == data("g")


def test_a_file_that_is_gone_comes_again(hub: Hub):
    hub.repos[REPO] = Repo({"guard.gguf": data("g")})
    path = Path(str(resolved(NAME, **quiet)))
    path.resolve().unlink()
    path.unlink()
    assert Path(str(resolved(NAME, **quiet))).read_bytes() == data("g")


def test_what_comes_with_another_hash_than_the_hub_lists_is_not_kept(hub: Hub, tmp_path: Path):
    hub.repos[REPO] = Repo({"guard.gguf": data("evil")}, lists_instead={"guard.gguf": data("g")})
    with pytest.raises(ModelError, match="came with another hash than the hub says"):
        resolved(NAME, **quiet)
    assert pulled_models() == []
    assert not [path for path in (tmp_path / "hf").rglob("*") if path.is_file() and path.stat().st_size == 20_000]


def test_a_commit_that_is_no_hash_makes_no_folder(hub: Hub):
    hub.repos[REPO] = Repo({"guard.gguf": data("g")}, commit="../../../x")
    with pytest.raises(ModelError, match=r"names commit '\.\./\.\./\.\./x', expected a hash"):
        resolved(NAME, **quiet)


# ---------------------------------------------------------------- the command line


def test_models_pull_lists_and_forgets(hub: Hub, run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("edgeguard.builtin.built_in_guards", list)
    hub.repos[REPO] = Repo({"a.gguf": data("a"), "b.gguf": data("b")})
    done = run("models", "pull", NAME)
    assert done.exit_code == 1
    assert "2 models, name one as hf:org/guard:FILE: a.gguf (20.0 kB), b.gguf (20.0 kB)" in done.stderr
    digest = hashlib.sha256(data("b")).hexdigest()
    done = run("models", "pull", f"{NAME}:b.gguf@main")
    assert done.exit_code == 0
    assert Path(done.stdout.strip()).read_bytes() == data("b")
    assert digest in done.stderr and "a" * 40 in done.stderr
    listed = run("models")
    assert listed.exit_code == 0
    assert f"{NAME}:b.gguf@main" in listed.stdout and digest in listed.stdout
    (row,) = json.loads(run("models", "--json").stdout)
    assert (row["name"], row["files"][0]["sha256"], row["files"][0]["origin"]) == (f"{NAME}:b.gguf@main", digest, "hub")
    Path(done.stdout.strip()).resolve().write_bytes(b"x")
    assert run("models").exit_code == 1
    assert run("models", "forget", f"{NAME}:b.gguf@main").exit_code == 0
    assert json.loads(run("models", "--json").stdout) == []
    assert run("models", "forget", NAME).exit_code == 1


def test_commands_that_take_a_model_take_a_hubs(hub: Hub, run, tiny_model: Path, tiny_profile: Path, tmp_path: Path):
    hub.repos[REPO] = Repo({"tiny.gguf": tiny_model.read_bytes()})
    text = run("score", "-", "--model", NAME, "--profile", tiny_profile, "--threads", "1", input='{"text": "x"}\n')
    assert json.loads(text.stdout)["guard"] == "tiny"
    assert (
        json.loads(run("inspect", NAME, "--json").stdout)["sha256"]
        == hashlib.sha256(tiny_model.read_bytes()).hexdigest()
    )
    assert run("profiles", tiny_profile, "--model", NAME).exit_code == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert run("convert", NAME, "--to", "q8_0").stdout.strip() == "tiny.q8_0.gguf"
    assert set(hub.downloads()) == {"tiny.gguf"}


def test_a_mirror_and_caches_are_told_by_the_environment(hub: Hub, edgeguard_command, tmp_path: Path):
    """As users have it: a process of its own, in which nothing is patched."""
    hub.repos[REPO] = Repo({"guard.gguf": data("g")})
    own = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "xdg")}
    unset = {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE"}
    env = {**{k: v for k, v in os.environ.items() if k not in unset}, **own}
    options = {"env": env, "capture_output": True, "text": True, "timeout": 60}
    done = subprocess.run(edgeguard_command("models", "pull", NAME), **options)
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.strip())
    assert path.is_relative_to(tmp_path / "home") and path.read_bytes() == data("g")
    assert hub.endpoint in done.stderr and "%|" not in done.stderr  # no bars where nobody looks
    hub.repos[REPO].refuses = 401
    done = subprocess.run(edgeguard_command("models", "pull", f"{NAME}@v1"), **options)
    assert done.returncode == 1
    assert done.stderr.startswith("edgeguard: hf:org/guard@v1 is gated") and "Traceback" not in done.stderr


def test_a_path_costs_no_import_of_the_library():
    code = "import sys; from edgeguard.hub import resolved; resolved('x.gguf'); print('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
