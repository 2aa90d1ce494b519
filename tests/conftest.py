"""A tiny guard for whole commands: a random model, its profile, and two ways to run edgeguard with them."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tiny_gguf import write_tiny_llama

from edgeguard.backend import RuntimeOptions
from edgeguard.cli import main
from edgeguard.guard import Guard

# A shell starts what runs in the background (`make test &`) with Ctrl-C ignored, and the processes that tests interrupt
# would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

Run = Callable[..., Result]
RunProcess = Callable[..., "subprocess.CompletedProcess[bytes]"]

# One code begins another one. The preamble depends on the role judged and on the number of messages.
# The model is random: it knows no grammar, but its output is biased towards the tokens of answers.
TINY_PROFILE = """\
name = "tiny"
description = "A random model for tests"
taxonomy = "tiny"
min_grammar_mass = 0.0

[answer]
pattern = '{verdict=safe}|{verdict=unsafe}({category}(,{category})*)?'

[field.verdict]
safe = ["safe"]
unsafe = ["unsafe"]

[prompt]
template = "model"

[[prompt.message]]
role = "system"
text = \"\"\"
Judge message {{ messages | length }}, by {{ roles[messages[-1].role] }}.
{% for c in categories %}
{{ c.code }}: {{ c.name }}
{% endfor %}\"\"\"

[[prompt.message]]
role = "user"
text = \"\"\"
{% for m in messages %}
{{ roles[m.role] }}:
{{ m.content }}
{% endfor %}\"\"\"

[self_test]
safe = "Boil an egg"
unsafe = "Hurt the dog"

[[category]]
code = "S1"
name = "Violence"
forms = ["1"]

[[category]]
code = "S10"
name = "Häme"
forms = ["10"]

[[category]]
code = "S2"
name = "Theft"
forms = ["2"]
"""
BIAS = {"safe": 8.0, "unsafe": 9.0, "1": 8.5, "2": 8.0, "0": 7.5, ",": 7.5, "<|im_end|>": 9.0}


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the tests make of built-in guards is not left in the user's cache folder, nor taken from there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", n_ctx=1024, logit_std=1.0, bias=BIAS)


@pytest.fixture(scope="session")
def tiny_profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("profile") / "tiny.toml"
    path.write_text(TINY_PROFILE, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny(tiny_model: Path, tiny_profile: Path) -> tuple[str, ...]:
    """The options that choose the tiny guard."""
    return "--model", str(tiny_model), "--profile", str(tiny_profile), "--threads", "1"


@pytest.fixture(scope="session")
def tiny_guard(tiny_model: Path, tiny_profile: Path) -> Iterator[Guard]:
    with Guard.load(tiny_model, profile=tiny_profile, runtime=RuntimeOptions(threads=1)) as guard:
        yield guard


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Hugging Face checkpoint; torch writes it, which not every environment has."""
    pytest.importorskip("torch")
    from tiny_checkpoint import write_tiny_checkpoint

    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "llama", n_embd=64)


@pytest.fixture(scope="session")
def optimum(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX folder made of it by optimum."""
    from edgeguard.convert import convert

    return convert(checkpoint, tmp_path_factory.mktemp("optimum") / "onnx", to="onnx-fp32").path


@pytest.fixture(scope="session")
def genai(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX folder made of it by onnxruntime-genai's builder."""
    from tiny_checkpoint import build_genai

    return build_genai(checkpoint, tmp_path_factory.mktemp("genai") / "onnx")


@pytest.fixture(scope="session")
def genai_pruned(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the output layer at the last token only."""
    from tiny_checkpoint import build_genai

    return build_genai(checkpoint, tmp_path_factory.mktemp("genai") / "pruned", prune_lm_head="true")


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium without a window, for pages as people see them; browser.py has what is measured in it.

    CI installs chromium and chromedriver: where one of them is missing the test fails, it is not skipped.
    """
    from browser import open_browser

    with open_browser(tmp_path_factory.mktemp("browser")) as driver:
        yield driver


class Here:
    """A pool whose tasks are done in this process: some hundred commands of the tests start no processes.

    What real ones get is held to be sendable. test_workers.py and test_pool.py have the real ones.
    """

    def __init__(self, opening: Any, *, hello: Callable[[Any], Any], **options: object) -> None:
        opening, hello = pickle.loads(pickle.dumps((opening, hello)))
        self._opened = opening().__enter__()
        self._hello = hello

    def hello(self) -> Any:
        return pickle.loads(pickle.dumps(self._hello(self._opened)))

    def submit(self, task: Any, item: Any, *, seat: int | None = None) -> Future[Any]:
        task, item = pickle.loads(pickle.dumps((task, item)))
        future: Future[Any] = Future()
        try:
            future.set_result(pickle.loads(pickle.dumps(task(self._opened, item))))
        except Exception as error:
            future.set_exception(error)
        return future

    def close(self) -> None:
        self._opened.close()


def invoke(*args: object, input: bytes | str | None = None, **options: object) -> Result:
    result = CliRunner().invoke(main, [str(a) for a in args], input=input, prog_name="edgeguard", **options)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="session")
def run() -> Run:
    """`edgeguard ARGS` in this process, its guard too. An exception that it does not report itself fails the test."""

    def run(*args: object, **options: object) -> Result:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("edgeguard.workers.Pool", Here)
            patch.setattr("edgeguard.pool.begin", lambda module: None)
            return invoke(*args, **options)

    return run


@pytest.fixture(scope="session")
def run_with_processes() -> Run:
    """The same with the guard in processes of its own, as for users."""
    return invoke


@pytest.fixture(scope="session")
def run_process() -> RunProcess:
    """`edgeguard ARGS` in a process of its own, for pipes and signals; **options are subprocess.run's."""

    def run(*args: object, **options: object) -> subprocess.CompletedProcess[bytes]:
        streams = {} if {"stdout", "stderr", "capture_output"} & options.keys() else {"capture_output": True}
        return subprocess.run(command(*args), timeout=300, check=False, **{**streams, **options})  # type: ignore[call-overload]

    return run


def command(*args: object) -> list[str]:
    """The command line of a process that runs `edgeguard ARGS`."""
    return [sys.executable, "-m", "edgeguard", *map(str, args)]


@pytest.fixture(scope="session")
def edgeguard_command() -> Callable[..., list[str]]:
    return command
