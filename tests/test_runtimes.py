"""Runtimes say what they are before they are imported, and a new one is one file in backends/."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from edgeguard import Guard, ModelError, RuntimeOptions
from edgeguard import backends as package
from edgeguard.backend import Condition, Prefix
from edgeguard.backends import conditions, open_backend, runtime_of, runtimes
from edgeguard.cli.advice import ADVICE, advised
from edgeguard.cli.options import model_options, together_option
from edgeguard.workers import Plan, planned

# A whole adapter: a model whose next token depends on how many came before.
TOY = """
from edgeguard.backend import Condition, Runtime


def _open(path, options):
    import numpy as np
    import toy_runtime  # heavy, in real life

    from edgeguard.testing import FakeBackend, vocabulary

    pieces = [bytes([b]) for b in range(256)]
    weights = np.random.default_rng(len(path.read_bytes())).normal(size=(7, len(pieces) + 1))
    tokens = vocabulary(pieces)
    return FakeBackend(tokens, lambda ids: weights[len(ids) % 7], n_ctx=options.context or 4096)


RUNTIME = Runtime(
    name="Toy",
    short="toy",
    opens=frozenset({".toy"}),
    module="toy_runtime",
    package="toy-runtime",
    open=_open,
    takes=frozenset({"context"}),
    conditions={"batch": Condition(batch=1)},
)
"""
TOY_PROFILE = """
name = "toy"
description = "for the toy"
taxonomy = "toy"
min_grammar_mass = 0.0

[answer]
pattern = '{verdict=safe}|{verdict=unsafe}(\\n{category}(,{category})*)?'

[field.verdict]
safe = ["s"]
unsafe = ["u"]

[prompt]
template = "own"
text = "{{ messages[-1].content }}"

[[category]]
code = "1"
name = "One"
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A model of a runtime that edgeguard has not heard of: its adapter is in a folder that backends/ looks into."""
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "toy.py").write_text(TOY, encoding="utf-8")
    (tmp_path / "toy_runtime.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / "adapters")])
    model = tmp_path / "guard.toy"
    model.write_bytes(b"weights")
    yield model
    for name in ("edgeguard.backends.toy", "toy_runtime"):
        sys.modules.pop(name, None)


@pytest.fixture
def toy_profile(tmp_path: Path) -> Path:
    path = tmp_path / "toy.toml"
    path.write_text(TOY_PROFILE, encoding="utf-8")
    return path


def test_a_new_runtime_is_a_file_and_scores_like_any_other(toy: Path, toy_profile: Path) -> None:
    assert runtime_of(toy).name == "Toy" and "toy_runtime" not in sys.modules
    with Guard.load(toy, profile=toy_profile) as guard:
        score = guard.score("hello")
        assert 0 <= score.category_scores["1"] <= score.unsafe <= 1
        assert guard.score({"text": "hello"}) == score
    assert open_backend(toy, RuntimeOptions(context=16)).n_ctx == 16


def test_a_new_runtime_s_models_can_be_scored_from_the_command_line(run, toy: Path, toy_profile: Path) -> None:
    done = run("score", "-", "-m", toy, "-p", toy_profile, "--context", 64, input='{"text": "hello"}')
    assert done.exit_code == 0 and '"unsafe"' in done.stdout
    assert planned(toy, RuntimeOptions()) == Plan(1, None)
    assert planned(toy, RuntimeOptions(), workers=2) == Plan(2, None)
    refused = run("score", "-", "-m", toy, "-p", toy_profile, "--threads", 2, input='{"text": "hello"}')
    assert refused.exit_code == 1 and "Toy takes no threads, 2 was given; leave it out" in refused.stderr


def test_a_runtime_that_is_not_installed_names_what_brings_it(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "toy_runtime", None)
    with pytest.raises(ModelError, match=r"needs Toy, which is not installed; pip install 'toy-runtime'"):
        open_backend(toy)


def test_a_mistake_inside_an_adapter_is_not_taken_for_a_missing_package(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "toy_runtime.py").write_text("import no_such_module_at_all", encoding="utf-8")
    with pytest.raises(ModuleNotFoundError, match="no_such_module_at_all"):
        open_backend(toy)


def test_no_two_runtimes_open_the_same_and_all_options_are_of_runtime_options() -> None:
    known = runtimes()
    opened = [kind for runtime in known for kind in runtime.opens]
    assert len(opened) == len(set(opened)) >= 2
    names = {field.name for field in fields(RuntimeOptions)}
    for runtime in known:
        assert runtime.takes <= names - {"condition"}
        for condition in runtime.conditions.values():
            runtime.check(RuntimeOptions(condition=condition))


def test_options_have_one_name_from_the_command_line_to_the_adapter() -> None:
    command = together_option(model_options(lambda: None))  # together is of the commands that score files
    offered = {option.name for option in command.__click_params__}  # type: ignore[attr-defined]
    assert {field.name for field in fields(RuntimeOptions)} - {"condition"} <= offered


@pytest.mark.parametrize(
    ("option", "value"), [("lora", "a.gguf"), ("gpu_layers", 1), ("gpu_layers", 0), ("kv_cache", "f32")]
)
def test_an_option_that_a_runtime_has_not_is_refused_and_never_passed_over(option: str, value: object) -> None:
    onnx = next(runtime for runtime in runtimes() if "onnx" in runtime.opens)
    with pytest.raises(ModelError, match=f"ONNX Runtime takes no {option}, {value} was given") as refused:
        onnx.check(RuntimeOptions(**{option: value}))  # type: ignore[arg-type]
    assert refused.value.kind in ADVICE and str(refused.value) != advised(refused.value)


def test_a_condition_that_a_runtime_has_not_is_a_value_error() -> None:
    onnx = next(runtime for runtime in runtimes() if "onnx" in runtime.opens)
    onnx.check(RuntimeOptions(condition=Condition(batch=4)))
    for condition, match in (
        (Condition(company=True), "company"),
        (Condition(batch=4, attention="flash"), "attention"),
    ):
        with pytest.raises(ValueError, match=f"cannot be measured under another {match}"):
            onnx.check(RuntimeOptions(condition=condition))


def test_conditions_are_asked_of_the_adapter(tiny_model: Path, toy: Path) -> None:
    assert list(conditions(tiny_model)) == ["batch", "attention", "neighbours"]
    assert list(conditions(toy)) == ["batch"]


def test_a_prompt_stands_on_the_preamble_that_others_share(tiny_guard: Guard) -> None:
    one, two = tiny_guard.prompt("a"), tiny_guard.prompt({"text": "b"})
    assert one.parent is two.parent and isinstance(one.parent, Prefix)
    assert tiny_guard.prompt_ids("a") == one.path() == (*one.parent.tokens, *one.tokens)
    assert len(one.path()) == tiny_guard.score("a").tokens["prompt"]
