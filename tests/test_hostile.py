"""Model files, templates, profiles and tokenizers of strangers: each is refused in seconds, and takes little memory."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner
from test_prompt import CHATML, CHATML_TEMPLATE, MODEL, byte_vocabulary, chat, guard, own
from tiny_gguf import write_tiny_llama

from edgeguard import process, rendering
from edgeguard.backend import RuntimeOptions
from edgeguard.backends import open_backend
from edgeguard.cli import main
from edgeguard.convert import convert
from edgeguard.errors import ModelError, ProfileError, RecordError
from edgeguard.formats import gguf
from edgeguard.formats.tokenizer import read_vocabulary, tokenizer_files
from edgeguard.inspection import inspect_model
from edgeguard.profile import load_profile
from edgeguard.prompt import Prompter, compile_prompt

BENCH = Path(__file__).resolve().parents[1] / "bench"
VOCABULARY = byte_vocabulary(CHATML, eog="<|im_end|>")


def prompter(template: str) -> Prompter:
    return compile_prompt(guard(MODEL), template, VOCABULARY)


# Templates

NESTED_LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
ENDLESS = {
    "nested loops": NESTED_LOOPS,
    "a macro that calls itself twice": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"
    ),
    "a text of very many words": "{{ lipsum(n=999999999) }}",
}
LARGE = {
    "a text multiplied": "{{ 'a' * 3000000000 }}",
    "a text doubled": "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "a list multiplied": "{{ [0] * 999999999 }}",
    "a list as JSON": "{{ (range(99999) | list * 1000) | tojson }}",
    "a number of many places": "{{ '%999999999d' % 1 }}",
    "a text in the middle of a line": "{{ 'a'.center(999999999) }}",
    "a format": "{{ '{:>999999999}'.format(1) }}",
    "a replacement of nothing": "{{ ('a' * 9999) | replace('', 'b' * 999999) | length }}",
    "rows filled up": "{{ messages | batch(999999999, 1) | list }}",
    "much output": "{% for i in range(99999) %}abcdefgh{% endfor %}",
    "parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "calls of itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
}


@pytest.mark.parametrize("template", ENDLESS.values(), ids=ENDLESS)
def test_a_template_without_end_is_an_error_within_seconds(template: str) -> None:
    began = time.monotonic()
    with pytest.raises(ProfileError, match=r"the chat template (takes (longer than \d s|more)|fails)"):
        prompter(CHATML_TEMPLATE + template)
    assert time.monotonic() - began < rendering.LIMITS.wall + 10  # and as long again on a busy machine


@pytest.mark.parametrize("template", LARGE.values(), ids=LARGE)
def test_a_template_that_wants_much_memory_is_an_error(template: str) -> None:
    with pytest.raises(ProfileError, match=r"the chat template (takes more|writes more than|fails: RecursionError)"):
        prompter(CHATML_TEMPLATE + template)


def test_a_profile_s_own_text_is_bounded_as_a_model_file_s_template_is() -> None:
    with pytest.raises(ProfileError, match=r"\[prompt\] text takes more than 512 MiB"):
        compile_prompt(own("{{ messages[0].content }}{{ 'a' * 3000000000 }}"), None, VOCABULARY)


def test_after_a_hostile_template_the_next_one_is_rendered() -> None:
    with pytest.raises(ProfileError):
        prompter(NESTED_LOOPS)
    assert prompter(CHATML_TEMPLATE).encode(chat("hello"))


def test_a_template_that_is_hostile_to_some_conversations_fails_these_records_at_once() -> None:
    found = prompter(CHATML_TEMPLATE + "{% if messages | length > 1 %}" + NESTED_LOOPS + "{% endif %}")
    for _ in range(2):
        began = time.monotonic()
        with pytest.raises(RecordError, match="takes longer than"):
            found.encode(chat("one", "two", "three"))
        took = time.monotonic() - began
    assert took < 1  # the second time it is known
    assert found.encode(chat("one"))


def test_what_comes_with_edgeguard_is_rendered_without_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a process was asked")

    monkeypatch.setattr(process.Server, "ask", refuse)
    profile = load_profile("edgeguard-135m")
    assert profile.shipped
    names = (*profile.prompt.control, *profile.stop)
    vocabulary = byte_vocabulary(tuple(dict.fromkeys(names)), eog=names[-1])
    assert compile_prompt(profile, None, vocabulary).encode(chat("hello"))


def test_a_template_is_rendered_alike_in_the_process_and_in_this_one() -> None:
    variables = {"messages": [{"role": "user", "content": "é漢\ue000<\u2028"}], "n": None, "x": 1.5}
    text = "{% for m in messages %}{{ m | tojson }} {{ n }} {{ x }}{% endfor %} {{ strftime_now('%Y') }}"
    here, there = (rendering.render(text, variables, strict=False, trusted=t) for t in (True, False))
    assert here == there


def _twice(job: Any) -> Any:
    return {"twice": 2 * job["n"]}


def _child() -> None:
    process.serve_many(_twice, process.Limits(cpu=2, wall=5.0, memory=1 << 30))


def test_any_number_of_threads_may_ask_one_process() -> None:
    server = process.Server(process.start("test_hostile"), process.Limits(cpu=2, wall=5.0, memory=1 << 30))
    found: dict[int, int] = {}
    threads = [
        threading.Thread(target=lambda n=n: found.update({n: server.ask({"n": n})["twice"]}))  # type: ignore[misc]
        for n in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: 2 * n for n in range(20)}
    server.end()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_process_that_renders_ends_with_the_one_that_began_it() -> None:
    code = (
        "from edgeguard import rendering as r; r.render('', {}, strict=False, trusted=False); "
        "print(r._SERVER._child.pid, flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        os.kill(parent.pid, signal.SIGKILL)
    until = time.monotonic() + 20
    while Path(f"/proc/{child}/stat").exists() and time.monotonic() < until:
        if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z":  # nobody waits for it here
            break
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{child}/stat").exists()


# GGUF


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"llama.context_length": 16}, "context_length is 16, a whole number from 64 to"),
        ({"llama.context_length": 2}, "context_length is 2, a whole number from 64 to"),
        ({"llama.rope.dimension_count": 0}, "rope.dimension_count is 0, a whole number from 1 to 8"),
        ({"llama.attention.head_count_kv": [2, 4]}, "4 heads of 8 elements need 32"),
        ({"llama.attention.head_count": [4, 2]}, "2 heads of 8 elements need 16"),
        ({"llama.attention.head_count_kv": 0}, "4 attention heads cannot share 0 key-value heads"),
        ({"llama.attention.head_count_kv": 3}, "cannot share 3"),
        ({"llama.block_count": 0}, "block_count is 0"),
        ({"llama.expert_count": 4, "llama.expert_used_count": 0}, "expert_used_count is 0"),
        ({"llama.attention.layer_norm_rms_epsilon": -1.0}, "epsilon is -1.0"),
        ({"llama.vocab_size": 100}, "vocab_size of 100"),
        ({"tokenizer.ggml.token_type": [1] * 10}, "10 of tokenizer.ggml.token_type"),
        ({"tokenizer.ggml.eos_token_id": 100_000}, "eos_token_id is 100000"),
    ],
)
def test_a_number_that_llama_cpp_would_die_from_is_named_with_what_was_expected(
    keys: dict[str, Any], says: str, tmp_path: Path
) -> None:
    path = write_tiny_llama(tmp_path / "m.gguf", metadata=keys)
    with pytest.raises(ModelError, match=says):
        gguf.check_model(gguf.read_header(path))


def test_layers_with_heads_of_their_own_pass_where_their_matrices_are_as_long(tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path / "m.gguf", metadata={"llama.attention.head_count_kv": [2, 2]})
    gguf.check_model(gguf.read_header(path))


def test_llama_cpp_writes_no_backtrace_where_it_aborts(tmp_path: Path) -> None:
    open_backend(write_tiny_llama(tmp_path / "m.gguf"), RuntimeOptions(context=128, threads=1)).close()
    assert os.environ["GGML_NO_BACKTRACE"] == "1"


# ONNX


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    return convert(write_tiny_llama(folder / "tiny.gguf"), folder / "model", to="onnx-fp32").path


@pytest.fixture
def folder(converted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(converted, tmp_path / "model"))


def change(folder: Path, edit: Any) -> None:
    model = onnx.load_model(folder / "model.onnx", load_external_data=False)
    edit(model.graph)
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def assert_refused(folder: Path, match: str) -> None:
    with pytest.raises(ModelError, match=match):
        open_backend(folder, RuntimeOptions(context=128, threads=1))


def dims(port: Any) -> Any:
    return port.type.tensor_type.shape.dim


@pytest.mark.parametrize("n", [10**9, 1 << 40, 0, -1, 500_000])
def test_logits_longer_than_the_file_has_weights_for_are_refused(n: int, folder: Path) -> None:
    def edit(graph: Any) -> None:
        port = next(port for port in graph.output if port.name == "logits")
        dims(port)[len(dims(port)) - 1].dim_value = n

    change(folder, edit)
    assert_refused(folder, rf"logits are said to have {n} elements, a file of \d+ bytes can give 1 to \d+")


def test_logits_of_an_unknown_length_are_refused(folder: Path) -> None:
    def edit(graph: Any) -> None:
        port = next(port for port in graph.output if port.name == "logits")
        dims(port)[len(dims(port)) - 1].dim_param = "vocabulary"

    change(folder, edit)
    assert_refused(folder, "has logits of shape")


@pytest.mark.parametrize("n", [10**9, 1 << 40])
def test_keys_longer_than_any_model_s_are_refused(n: int, folder: Path) -> None:
    def edit(graph: Any) -> None:
        for port in (*graph.input, *graph.output):
            if "key" in port.name or "value" in port.name:
                dims(port)[3].dim_value = n

    change(folder, edit)
    assert_refused(folder, "keys and values of shapes")


@pytest.mark.parametrize("n", [10**9, 1 << 40, 3])
def test_a_weight_of_another_shape_than_is_stored_is_refused(n: int, folder: Path) -> None:
    def edit(graph: Any) -> None:
        tensor = next(tensor for tensor in graph.initializer if tensor.external_data and len(tensor.dims) == 2)
        tensor.dims[0] = n

    change(folder, edit)
    assert_refused(folder, rf"of shape \({n}, \d+\) needs \d+ bytes and \d+ are stored")


def test_a_constant_of_another_shape_than_is_stored_is_refused(folder: Path) -> None:
    graph_of = onnx.helper.make_tensor("big", onnx.TensorProto.FLOAT, [2], [1.0, 2.0])
    graph_of.dims[0] = 10**10
    change(folder, lambda graph: graph.initializer.append(graph_of))
    assert_refused(folder, r"'big' of shape \(10000000000,\) needs 40000000000 bytes")


def test_sparse_weights_are_refused_since_they_unpack_to_any_size(folder: Path) -> None:
    values = onnx.helper.make_tensor("sparse", onnx.TensorProto.FLOAT, [1], [1.0])
    places = onnx.helper.make_tensor("places", onnx.TensorProto.INT64, [1], [0])
    change(folder, lambda graph: graph.sparse_initializer.append(
        onnx.helper.make_sparse_tensor(values, places, [10**12])
    ))  # fmt: skip
    assert_refused(folder, "sparse weights")


def test_weights_linked_out_of_the_folder_are_refused_by_inspect_as_by_score(folder: Path, tmp_path: Path) -> None:
    data = folder / "model.onnx.data"
    data.rename(tmp_path / "elsewhere")
    data.symlink_to(tmp_path / "elsewhere")
    assert_refused(folder, "are linked out of the model's folder")
    with pytest.raises(ModelError, match="are linked out of the model's folder"):
        inspect_model(folder)


def test_a_hub_s_cache_which_links_graph_and_weights_to_one_place_is_read(folder: Path, tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for name in ("model.onnx", "model.onnx.data"):
        (folder / name).rename(blobs / name)
        (folder / name).symlink_to(blobs / name)
    assert inspect_model(folder).kind == "onnx"


def test_onnx_runtime_says_nothing_on_stderr(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def edit(graph: Any) -> None:
        graph.node[0].input[0] = "nowhere"

    change(folder, edit)
    assert_refused(folder, "cannot be loaded by ONNX Runtime")
    assert capfd.readouterr().err == ""


# Tokenizers


def replacing(content: str, pattern: str = " ") -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


def sequence(*steps: Any) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(steps)}


def splitting(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def deep(n: int) -> dict[str, Any]:
    return sequence(deep(n - 1)) if n else {"type": "NFC"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"normalizer": replacing("x" * 1000)}, "up to 1000 times as long"),
        ({"normalizer": sequence(*[replacing("aa", "a")] * 30)}, "up to 32 times as long"),
        ({"normalizer": {"type": "Replace", "pattern": {"Regex": ""}, "content": "x" * 99}}, "up to 100 times"),
        ({"normalizer": {"type": "Prepend", "prepend": "x" * 99}}, "up to 100 times as long"),
        ({"normalizer": sequence(*[{"type": "NFKD"}] * 500)}, "has 500 steps"),
        ({"normalizer": deep(50)}, "more than 8 deep"),
        ({"post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 50}},
         "writes a text 50 times"),
        ({"pre_tokenizer": splitting("(a+)+$")}, "splitting a text of 4000 characters"),
        ({"pre_tokenizer": splitting("(x+x+)+y")}, "splitting a text of 4000 characters"),
        ({"junk": [[]] * 5_000_000}, "values, 4194304 are more than any known file has"),
    ],
)  # fmt: skip
def test_a_tokenizer_that_multiplies_a_text_or_never_ends_is_refused(
    changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    files = tokenizer_files(gguf.read_header(write_tiny_llama(tmp_path / "m.gguf")))
    values = json.loads(files["tokenizer.json"])
    (tmp_path / "tokenizer.json").write_text(json.dumps({**values, **changes}))
    with pytest.raises(ModelError, match=says):
        read_vocabulary(tmp_path)


def test_sentencepiece_s_rules_and_a_pattern_of_one_s_own_pass(tmp_path: Path) -> None:
    files = tokenizer_files(gguf.read_header(write_tiny_llama(tmp_path / "m.gguf", vocab="spm")))
    values = json.loads(files["tokenizer.json"])
    values["normalizer"] = sequence({"type": "Prepend", "prepend": "▁"}, replacing("▁"), {"type": "NFC"})
    values["pre_tokenizer"] = splitting(r"\p{L}+|[0-9]{1,2}|\s+")
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    assert read_vocabulary(tmp_path).encode("safe 1")


# What is shown


MARKUP = "S1[/b][red]:smile:"
PROFILE = f"""
name = "[bold]mine[/]"
taxonomy = "[/]"
min_grammar_mass = 0.0
[answer]
pattern = '{{verdict=safe}}|{{verdict=unsafe}}(\\n{{category}})?'
[field.verdict]
safe = ["safe"]
unsafe = ["unsafe"]
[prompt]
template = "own"
text = "[/x] {{{{ messages[-1].content }}}}"
[self_test]
safe = "[/] egg"
unsafe = "[/] dog"
[[category]]
code = "{MARKUP}"
name = "[/b] name"
"""


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    write_tiny_llama(tmp_path / "m.gguf", name="[/b] model", bias={"safe": 4.0, "unsafe": 4.0})
    (tmp_path / "p.toml").write_text(PROFILE)
    rows = [{"id": f"[/]{i}", "text": f"[/] {i}", "labels": [MARKUP] if i % 2 else []} for i in range(40)]
    (tmp_path / "l.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        ["score", "l.jsonl", "--table", "-m", "m.gguf", "-p", "p.toml"],
        ["explain", "hello", "-m", "m.gguf", "-p", "p.toml"],
        ["calibrate", "l.jsonl", "-o", "c.json", "-m", "m.gguf", "-p", "p.toml"],
        ["evaluate", "l.jsonl", "-m", "m.gguf", "-p", "p.toml"],
        ["profiles", "p.toml"],
        ["check", "-m", "m.gguf", "-p", "p.toml"],
    ],
    ids=lambda command: command[0],
)
def test_markup_in_a_profile_is_text_on_the_terminal(
    command: list[str], strange: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(strange)
    monkeypatch.setenv("COLUMNS", "200")
    done = CliRunner().invoke(main, [*command, *(() if command[0] == "profiles" else ("-t", "1"))])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    assert done.exit_code == (1 if command[0] == "check" and "not" in done.output else 0), done.output
    if command[0] != "evaluate":  # whose truth is of the verdict alone here
        assert "[/" in done.output
    assert "😄" not in done.output


def test_a_cache_that_is_no_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    done = CliRunner().invoke(main, ["models", "build", "edgeguard-135m"])
    assert done.exit_code == 1
    assert f"{tmp_path / 'file'}" in done.output
    assert "stdout" not in done.output


# The fuzzer


def test_some_mutants_of_each_kind_of_model_file_end_in_an_answer_or_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    fuzzing, models = (__import__(name) for name in ("fuzzing", "fuzz_models"))
    monkeypatch.setattr(fuzzing, "SECONDS", 60.0)  # the machine may be busy; the bench holds them to 10
    for name in ("GGUF", "ADAPTER", "ONNX", "TOKENIZER", "TEMPLATE", "PROFILE", "CALIBRATION"):
        count = fuzzing.run(name.lower(), getattr(models, name), n=5, seed=1)
        assert not count.failures, count.failures
        assert count.outcomes.total() == 5


def test_the_fuzzer_finds_what_it_looks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fuzzing = runpy.run_path(str(BENCH / "fuzzing.py"))
    attempts: dict[str, Any] = {
        "SIGKILL": lambda path: os.kill(os.getpid(), signal.SIGKILL),
        "ZeroDivisionError": lambda path: 1 / 0,
        "ended without a word": lambda path: os._exit(0),
        "refused, ModelError": lambda path: (_ for _ in ()).throw(ModelError("no")),
        "fine": lambda path: "fine",
    }
    for expected, attempt in attempts.items():
        kind = fuzzing["Kind"](lambda folder: None, lambda draw, whole, path: path, attempt)
        count = fuzzing["run"]("kind", kind, n=1, seed=0)
        assert [*count.outcomes] == [expected]
        assert bool(count.failures) == (expected not in ("fine", "refused, ModelError"))
