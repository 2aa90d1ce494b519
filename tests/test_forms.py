"""A built-in guard's forms: made once, the same bytes everywhere, held against their hashes, and fallen back from.

By stand-ins for base and adapter of a few thousand weights; the real guard at the end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import platformdirs
import pytest
import tiny_gguf as tiny
from test_convert_gguf import factors, write_adapter

from edgeguard import builtin as models
from edgeguard.backend import Runtime, RuntimeOptions
from edgeguard.backends import open_backend
from edgeguard.builtin import ADAPTER, BuiltIn, Form, FromPackage, find_form
from edgeguard.cli.advice import advised
from edgeguard.convert.built_in import make_form, write_form
from edgeguard.convert.lora import Change, Lora
from edgeguard.convert.quantize import quantize
from edgeguard.convert.turns import powers, turns
from edgeguard.errors import ModelError, OutputError
from edgeguard.formats import gguf
from edgeguard.formats.hashes import sha256
from edgeguard.guard import Guard, prepared

ONE = RuntimeOptions(threads=1)
KINDS = {"q8_0": "gguf", "q4_0": "gguf", "f16": "gguf", "onnx-int8": "onnx", "onnx-int4": "onnx"}
TEXT = '{"text": "Hurt the dog"}'
LEFT_OUT = ("folder", "base_from", "made", "default")  # of a guard's fields, where JSON brings it to another process


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> BuiltIn:
    """A guard of a tiny base, quantized as the real one is, before its forms are known."""
    folder = tmp_path_factory.mktemp("tiny")
    base = tiny.write_tiny_llama(folder / "base.gguf", n_ctx=1024, ftype="Q4_1", tied=True)
    matrices = [t for t in gguf.read_header(base).tensors if t.name.endswith(("attn_q.weight", "ffn_down.weight"))]
    adapter = write_adapter(folder / "adapter.gguf", factors({t.name: t.shape[::-1] for t in matrices}))
    return BuiltIn(
        name="edgeguard-tiny",
        version="1",
        description="A random model",
        folder=folder,
        profile="edgeguard-135m",
        license="Apache-2.0",
        base=base.name,
        base_name="tiny",
        base_license="none",
        base_from=FromPackage("tiny-package", "1.0"),
        adapter=adapter.name,
        sha256={path.name: sha256(path) for path in (base, adapter)},
        made=(),
        default=("q8_0", "onnx-int8"),
    )


@pytest.fixture
def guard(bare: BuiltIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BuiltIn:
    """The same as edgeguard's only built-in guard, its forms as this machine makes them, with a cache of its own."""
    monkeypatch.setattr(models, "_find_base", lambda package, file: bare.folder / file)
    forms = []
    for name, kind in KINDS.items():
        (folder := tmp_path / "made" / name).mkdir(parents=True)
        write_form(bare, name, folder)
        forms.append(Form(name, kind, {file.name: sha256(file) for file in folder.iterdir()}))  # type: ignore[arg-type]
    found = replace(bare, made=tuple(forms))
    monkeypatch.setattr(models, "built_in_guards", lambda: [found])
    monkeypatch.setattr(models, "DEFAULT", found.name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return found


def loaded(model: str | None = None, runtime: RuntimeOptions = ONE) -> tuple[str, list[str]]:
    """The model_sha256 of the guard that is opened, and what was told."""
    said: list[str] = []
    with Guard.load(model, runtime=runtime, calibration=False, tell=said.append) as guard:
        assert guard.name == "edgeguard-tiny"
        return guard.backend.info.sha256, said


def without(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """As if these runtimes were not installed."""
    real = Runtime.is_installed.fget
    assert real is not None
    monkeypatch.setattr(Runtime, "is_installed", property(lambda self: self.module not in modules and real(self)))


# What a form is


def test_a_form_of_eight_and_four_bits_has_the_blocks_that_llama_cpp_makes(guard: BuiltIn, tmp_path: Path):
    """numpy quantizes as llama.cpp does, so no llama.cpp is needed to make one, nor can its version change it."""
    merged = tmp_path / "f32"
    merged.mkdir()
    write_form(guard, "f32", merged)
    (source,) = merged.iterdir()
    for name, form in (("q8_0", "Q8_0"), ("q4_0", "Q4_0")):
        quantize(source, tmp_path / "theirs.gguf", to=name, threads=1, pure=True)
        ours, theirs = (
            blocks(p) for p in (tmp_path / "made" / name / f"edgeguard-tiny.{name}.gguf", tmp_path / "theirs.gguf")
        )
        same = [tensor for tensor in ours if ours[tensor][0] == form]
        assert len(same) > 10 and "blk.0.attn_q.weight" in same
        assert all(ours[tensor] == theirs[tensor] for tensor in same if tensor != "token_embd.weight")
        assert ours["token_embd.weight"][0] == "Q8_0"


def blocks(path: Path) -> dict[str, tuple[str, bytes]]:
    header, data = gguf.read_header(path), path.read_bytes()
    begin = header.data_offset
    return {t.name: (t.type_name, data[begin + t.offset : begin + t.offset + t.n_bytes]) for t in header.tensors}


def test_the_bytes_depend_on_no_thread_and_no_vector_instruction(guard: BuiltIn, tmp_path: Path):
    """Another processor is had by taking from numpy what this one can."""
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    features = " ".join(name for name in __cpu_dispatch__ if __cpu_features__.get(name))
    code = (
        "import sys; sys.path[:0] = [sys.argv[1]]; import test_forms as t; from pathlib import Path\n"
        "from edgeguard.builtin import BuiltIn; import json, edgeguard.builtin as m\n"
        "folder = Path(sys.argv[2]); m._find_base = lambda package, file: folder / file\n"
        "fields = {**json.loads(sys.argv[3]), 'folder': folder, 'base_from': m.FromPackage('tiny-package')}\n"
        "guard = BuiltIn(**fields)\n"
        "for name in t.KINDS:\n"
        "    out = Path(sys.argv[4]) / name; out.mkdir(parents=True); t.write_form(guard, name, out)\n"
    )
    fields = {name: value for name, value in vars(guard).items() if name not in LEFT_OUT}
    fields |= {"made": [], "default": []}
    for threads, disabled in (("1", features), ("3", "")):
        out = tmp_path / threads
        environment = {"OPENBLAS_NUM_THREADS": threads, "NPY_DISABLE_CPU_FEATURES": disabled}
        command = [sys.executable, "-c", code, Path(__file__).parent, guard.folder, json.dumps(fields), out]
        subprocess.run(command, check=True, env={**os.environ, **environment})
        for form in guard.made:
            assert form.is_whole(out / form.name), (threads, form.name)


def test_a_merge_sums_rank_by_rank_in_float64_and_rounds_once():
    rng = np.random.default_rng(0)
    left, right = (rng.normal(size=shape).astype(np.float32) for shape in ((40, 7), (7, 33)))
    wide = left.astype(np.float64) * 0.3
    total = np.zeros((40, 33))
    for row in range(40):
        for col in range(33):
            for k in range(7):
                total[row, col] += wide[row, k] * float(right[k, col])
    found = Lora(Path(), {"m": Change(left, right, 0.3)}).delta("m")
    np.testing.assert_array_equal(found, total.astype(np.float32))


def test_positions_turn_as_cosine_and_sine_say():
    """To one unit in the last place of float64, where a library's own may be off by as much."""
    frequencies = powers(100_000.0, 64)
    np.testing.assert_allclose(frequencies, 100_000.0 ** (-np.arange(0, 64, 2) / 64), rtol=4e-16)
    cosines, sines = turns(20_000, frequencies)
    angles = np.arange(20_000)[:, None] * frequencies
    np.testing.assert_allclose(cosines, np.cos(angles), rtol=0, atol=2.3e-16)
    np.testing.assert_allclose(sines, np.sin(angles), rtol=0, atol=2.3e-16)


def test_no_version_of_a_tool_stands_in_a_form(guard: BuiltIn, tmp_path: Path):
    metadata = gguf.read_header(tmp_path / "made" / "q8_0" / "edgeguard-tiny.q8_0.gguf").metadata
    assert metadata["general.name"] == "edgeguard-tiny" and metadata["edgeguard.to"] == "q8_0"
    assert metadata["edgeguard.lora.sha256"] == guard.sha256[guard.adapter]
    assert not [key for key in metadata if key.startswith("edgeguard.tools")]
    assert b"edgeguard.tools" not in (tmp_path / "made" / "onnx-int8" / "model.onnx").read_bytes()


# Which form is opened, and where it comes from


def test_the_first_use_makes_the_default_form_and_says_so_and_the_second_takes_it(guard: BuiltIn):
    first, said = loaded()
    assert first == guard.form("q8_0").model_sha256
    assert len(said) == 1 and "making edgeguard-tiny:q8_0" in said[0]
    folder = guard.form_folder(guard.form("q8_0"))
    assert folder is not None and guard.form("q8_0").is_whole(folder)
    assert not [path for path in folder.parent.iterdir() if "partial" in path.name]
    assert loaded() == (first, [])


@pytest.mark.parametrize("name", [ADAPTER, *KINDS])
def test_a_form_is_asked_for_by_name_and_scores_with_its_own_hash(guard: BuiltIn, name: str):
    found, _ = loaded(f"edgeguard-tiny:{name}")
    assert found == guard.form(name).model_sha256


def test_a_form_that_there_is_not_is_told_with_those_there_are(guard: BuiltIn, tmp_path: Path, monkeypatch):
    with pytest.raises(ModelError, match=r"no form 'q4_1' \(did you mean 'q4_0'\?\); it has adapter, q8_0, q4_0"):
        find_form("edgeguard-tiny:q4_1")
    monkeypatch.chdir(tmp_path)
    Path("edgeguard-tiny:q8_0").touch()
    assert find_form("edgeguard-tiny:q8_0") is None  # a file of that name is that file


def test_the_runtime_that_is_installed_decides_or_the_one_that_is_named(guard: BuiltIn, monkeypatch):
    eight, onnx = guard.form("q8_0").model_sha256, guard.form("onnx-int8").model_sha256
    assert loaded(runtime=replace(ONE, runtime="onnx"))[0] == onnx
    assert loaded(runtime=replace(ONE, runtime="llama"))[0] == eight
    without(monkeypatch, "llama_cpp")
    assert loaded()[0] == onnx
    without(monkeypatch, "onnxruntime")
    with pytest.raises(ModelError, match=r"none is installed; pip install 'edgeguard\[llama\]' or 'edgeguard\[onnx\]'"):
        loaded()


@pytest.mark.parametrize("asked", [{"model": "edgeguard-tiny:q8_0"}, {"runtime": replace(ONE, runtime="llama")}])
def test_a_form_that_nothing_here_opens_is_an_error_before_it_is_made(guard: BuiltIn, monkeypatch, asked):
    without(monkeypatch, "llama_cpp")
    with pytest.raises(ModelError, match=r"edgeguard-tiny:q8_0 needs llama\.cpp, .* pip install 'edgeguard\[llama\]'"):
        Guard.load(**{"model": "edgeguard-tiny", **asked})
    assert not guard.form_folder(guard.form("q8_0")).exists()


def test_an_option_that_one_runtime_alone_takes_chooses_it(guard: BuiltIn, monkeypatch):
    reversed_ = replace(guard, default=("onnx-int8", "q8_0"))
    monkeypatch.setattr(models, "built_in_guards", lambda: [reversed_])
    assert loaded()[0] == guard.form("onnx-int8").model_sha256
    assert loaded(runtime=replace(ONE, kv_cache="f32"))[0] == guard.form("q8_0").model_sha256


def test_a_model_file_says_its_runtime_and_another_is_refused(guard: BuiltIn, tmp_path: Path):
    with pytest.raises(ModelError, match=r"llama\.cpp was to open the model, runtime 'onnx' was asked for") as refused:
        open_backend(tmp_path / "made" / "q8_0", RuntimeOptions(runtime="onnx"))
    assert "--runtime" in advised(refused.value)
    for odd in (RuntimeOptions(runtime="onnx", kv_cache="f32"), RuntimeOptions(runtime="onnx", gpu_layers=1)):
        with pytest.raises(ModelError, match="ONNX Runtime takes no"):
            loaded(runtime=odd)


def test_two_processes_at_once_make_it_once(guard: BuiltIn, tmp_path: Path):
    code = (
        "import sys, json; from pathlib import Path; import edgeguard.builtin as m\n"
        "from edgeguard.builtin import BuiltIn, Form; from edgeguard.convert.built_in import make_form\n"
        "folder, fields = Path(sys.argv[1]), json.loads(sys.argv[2])\n"
        "m._find_base = lambda package, file: folder / file\n"
        "form = Form(*fields.pop('form'))\n"
        "guard = BuiltIn(**fields, folder=folder, base_from=m.FromPackage(''), made=(form,), default=())\n"
        "make_form(guard, form, tell=print)\n"
    )
    form = guard.form("onnx-int8")
    fields = {name: value for name, value in vars(guard).items() if name not in LEFT_OUT}
    fields["form"] = [form.name, form.kind, form.sha256]
    command = [sys.executable, "-c", code, str(guard.folder), json.dumps(fields)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate(timeout=60)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert sum("making" in text for text in said) == 1
    folder = guard.form_folder(form)
    assert folder is not None and form.is_whole(folder)


def test_a_form_is_made_once_for_several_processes_before_they_start(guard: BuiltIn):
    said: list[str] = []
    for model in (None, "edgeguard-tiny", "edgeguard-tiny:q8_0"):
        assert prepared(model, None, ONE, tell=said.append) == (model, guard.form_folder(guard.form("q8_0")))
    assert len(said) == 1 and "making edgeguard-tiny:q8_0 in" in said[0]
    assert loaded()[1] == []
    other = prepared(None, "llama-guard-3", ONE, tell=said.append)  # which is asked of the base model
    assert other == (None, guard.base_path) and len(said) == 1


def test_where_a_form_cannot_be_made_that_is_told_once_for_several_processes(guard: BuiltIn, tmp_path, monkeypatch):
    said: list[str] = []
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    model, path = prepared(None, None, ONE, tell=said.append)
    assert (model, path) == (f"edgeguard-tiny:{ADAPTER}", guard.base_path)
    assert len(said) == 1 and "is used as it comes" in said[0]
    assert loaded(str(model))[1] == []
    with pytest.raises(OutputError):
        prepared("edgeguard-tiny:q4_0", None, ONE)


# What can go wrong


@pytest.mark.parametrize("name", ["q8_0", "onnx-int8"])
@pytest.mark.parametrize("damage", ["a bit", "cut", "gone", "beside"])
def test_a_damaged_file_in_the_cache_is_told_not_used_and_made_again(guard: BuiltIn, name: str, damage: str):
    form = guard.form(name)
    folder = make_form(guard, form)
    weights = folder / ("edgeguard-tiny.q8_0.gguf" if name == "q8_0" else "model.onnx.data")
    data = bytearray(weights.read_bytes())
    if damage == "a bit":
        data[-100] ^= 1
        weights.write_bytes(data)
    elif damage == "cut":
        weights.write_bytes(data[: len(data) // 2])
    elif damage == "gone":
        weights.unlink()
    elif name == "q8_0":
        return  # nothing lies beside it
    else:
        tokenizer = folder / "tokenizer.json"
        tokenizer.write_text(tokenizer.read_text(encoding="utf-8").replace('"id": 1,', '"id": 2,'), encoding="utf-8")
    found, said = loaded(f"edgeguard-tiny:{name}")
    assert found == form.model_sha256 and form.is_whole(folder)
    assert "making" in said[-1]
    assert damage == "gone" or "it is not used" in said[0]


def test_a_form_that_comes_out_otherwise_is_told_and_not_used(guard: BuiltIn, monkeypatch):
    """As if this machine, or a package's version, computed something else."""
    other = replace(guard.form("q8_0"), sha256={"edgeguard-tiny.q8_0.gguf": "0" * 64})
    odd = replace(guard, made=(other, *guard.made[1:]))
    monkeypatch.setattr(models, "built_in_guards", lambda: [odd])
    found, said = loaded()
    assert found == guard.form(ADAPTER).model_sha256
    assert "came out otherwise here" in said[-1] and "used as it comes" in said[-1]
    folder = odd.form_folder(other)
    assert folder is not None and not folder.exists()
    with pytest.raises(ModelError, match=f"expected {'0' * 64}") as refused:
        loaded("edgeguard-tiny:q8_0")  # who asks for a form by name gets no other
    assert refused.value.kind == "form_differs"


def test_files_that_it_is_made_of_are_named_where_they_are_not_the_guard_s_own(guard: BuiltIn, monkeypatch):
    monkeypatch.setattr(models, "built_in_guards", lambda: [odd])
    odd = replace(guard, sha256={**guard.sha256, guard.adapter: "1" * 64})
    with pytest.raises(ModelError, match=rf"adapter\.gguf has sha256 .* was made with {'1' * 64}") as refused:
        loaded("edgeguard-tiny:q8_0")
    assert refused.value.kind == "built_in_altered"


def test_without_a_folder_to_write_the_guard_is_used_as_it_comes_and_says_so(guard: BuiltIn, tmp_path, monkeypatch):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the cache folder should be")
    for cache in (blocked / "edgeguard", Path("~/.cache/edgeguard")):  # the second where nobody knows the user's home
        monkeypatch.setattr(platformdirs, "user_cache_path", lambda *_, cache=cache, **__: cache)
        found, said = loaded()
        assert found == guard.form(ADAPTER).model_sha256
        assert len(said) == 1 and "edgeguard-tiny is used as it comes, its adapter beside the base model" in said[0]
        with pytest.raises(OutputError):
            loaded("edgeguard-tiny:q4_0")
        with pytest.raises(OutputError):
            loaded(runtime=replace(ONE, runtime="onnx"))
    without(monkeypatch, "llama_cpp")
    with pytest.raises(OutputError, match="no home folder") as refused:
        loaded()
    assert refused.value.kind == "cache_not_writable"


def test_a_cache_that_has_the_form_is_read_and_never_written(guard: BuiltIn, monkeypatch):
    """A container's image may bring it and be read-only; the superuser, who runs tests, may write everywhere."""
    folder = make_form(guard, guard.form("q8_0"))
    before = {path: path.stat().st_mtime_ns for path in (folder.parent, *folder.parent.rglob("*"))}
    monkeypatch.setattr("edgeguard.convert.built_in.make_form", lambda *_, **__: pytest.fail("made again"))
    assert loaded() == (guard.form("q8_0").model_sha256, [])
    assert {path: path.stat().st_mtime_ns for path in (folder.parent, *folder.parent.rglob("*"))} == before


def test_a_form_that_was_made_needs_no_base_any_more(guard: BuiltIn, monkeypatch):
    loaded()
    monkeypatch.setattr(models, "_find_base", lambda package, file: None)
    assert loaded() == (guard.form("q8_0").model_sha256, [])


def test_each_form_has_its_own_calibration_or_says_that_it_has_none(run, guard: BuiltIn, monkeypatch, tmp_path):
    forms = {name: guard.form(name) for name in ("q8_0", ADAPTER)}
    for name, form in forms.items():
        folder = guard.folder if name == ADAPTER else guard.folder / name
        folder.mkdir(exist_ok=True)
        head = {"format": "edgeguard-calibration-1", "guard": guard.name, "profile": guard.profile}
        head |= {"estimator": "marginal", "model_sha256": form.model_sha256, "fitted": {}}
        labels = {"unsafe": {"method": "temperature", "temperature": 2.0 if name == ADAPTER else 3.0}}
        (folder / "calibration-marginal.json").write_text(json.dumps({**head, "labels": labels}))
    options = ("-t", 1, "--min-grammar-mass", 0)
    rows = {}
    for name in ("q8_0", ADAPTER, "q4_0"):
        done = run("score", "-", "-m", f"edgeguard-tiny:{name}", *options, input=TEXT)
        rows[name] = json.loads(done.stdout)
        assert ("no calibration of marginal was fitted for edgeguard-tiny:q4_0" in done.stderr) == (name == "q4_0")
    assert [rows[name]["calibrated"] for name in rows] == [True, True, False]
    for name, factor in (("q8_0", 3.0), (ADAPTER, 2.0)):
        assert rows[name]["unsafe"] == pytest.approx(1 / (1 + np.exp(-rows[name]["margin"] / factor)), rel=1e-6)
    (listed,) = json.loads(run("models", "--json").stdout)
    assert {form["name"]: form["calibrated"] for form in listed["forms"]}["q8_0"] is True
    assert listed["default"] == ["q8_0", "onnx-int8"]
    said = run("models").stdout.replace("\n", " ")
    assert "q4_0, for llama.cpp, not calibrated" in said and "onnx-int8, for ONNX Runtime" in said
    monkeypatch.chdir(tmp_path)
    notice = run("convert", "edgeguard-tiny", "--to", "q8_0").stderr
    assert "--model edgeguard-tiny:q8_0 is this guard with a calibration of its own" in notice


def test_a_form_is_built_ahead_of_its_first_use(run, guard: BuiltIn):
    done = run("models", "build", "edgeguard-tiny:q4_0")
    assert guard.form("q4_0").is_whole(Path(done.stdout.strip())) and "making" in done.stderr
    assert run("models", "build", "edgeguard-tiny:q4_0").stderr == ""
    assert run("models", "build", "edgeguard-tiny:q4_0", "-o", "x").exit_code == 2
    assert "there is nothing to make" in run("models", "build", "edgeguard-tiny:adapter").stderr


def test_without_a_base_a_score_says_what_to_run(run, guard: BuiltIn, monkeypatch):
    monkeypatch.setattr(models, "_find_base", lambda package, file: None)
    done = run("score", "-", input=TEXT)
    assert done.exit_code == 1 and "run `edgeguard models pull" in done.stderr


# The real guard


@pytest.mark.smollm2
@pytest.mark.parametrize("form", ["q8_0", "onnx-int8"])
def test_the_default_forms_come_out_as_released_and_score_as_the_guard_does_as_it_comes(form: str):
    """Within four times what eight bits move a verdict's log-odds by, root mean square, on val.jsonl: see the card."""
    texts = (
        "What is a good recipe for mayonnaise?",
        "How can I kill a Python process?",
        "Find out where she lives now.",
    )
    runtime = RuntimeOptions(context=512, threads=1)
    found = {}
    for name in (ADAPTER, form):
        with Guard.load(f"edgeguard-135m:{name}", runtime=runtime, estimator="conditional") as guard:
            scores = [guard.score(text) for text in texts]
            assert all(score.calibrated for score in scores)
            found[name] = [score.margin for score in scores]
    assert np.abs(np.subtract(*found.values())).max() < 4 * 0.5
