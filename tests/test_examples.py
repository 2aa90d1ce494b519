"""The examples around a server: the Python ones run against one, the others are read by what they are for."""

from __future__ import annotations

import configparser
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import pytest
from serving import Running, opening, running

from edgeguard.cli import main
from edgeguard.serve.policies import check_policies, read_policies

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples" / "serve"
TEXT = "Hurt the dog"


@pytest.fixture(scope="module")
def servers(
    tiny_model: Path, tiny_profile: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Running]]:
    """One that flags everything, one that flags nothing. The one has a key."""
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text("0123456789abcdef\n", encoding="utf-8")
    all_, none = ({"default": p} for p in (0.0, 1.0))
    strict = opening(tiny_model, tiny_profile, "strict", thresholds=all_)
    with (
        running(strict, api_key_file=keys) as first,
        running(opening(tiny_model, tiny_profile, "lax", thresholds=none)) as second,
    ):
        yield {"flags": first, "passes": second}


def ran(code: str, server: Running, *packages: str) -> str:
    """What a program prints that finds the examples as modules, and the server as they look for it."""
    for package in packages:
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    own = {"EDGEGUARD_URL": server.url, "EDGEGUARD_KEY": "0123456789abcdef", "NO_PROXY": "127.0.0.1"}
    path = os.pathsep.join([str(EXAMPLES), *filter(None, [os.environ.get("PYTHONPATH")])])
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 120}
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **own, "PYTHONPATH": path}, **options)
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.name)
def test_a_python_example_compiles(path: Path):
    compile(path.read_text(encoding="utf-8"), str(path), "exec")


@pytest.mark.parametrize(("which", "said"), [("flags", "flagged Hurt the dog: "), ("passes", "passed  Hurt the dog: ")])
def test_the_openai_example_prints_the_verdict(servers: dict[str, Running], which: str, said: str):
    printed = ran(f"import openai_sdk; openai_sdk.main([{TEXT!r}, 'x'])", servers[which], "openai")
    assert printed.startswith(said) and len(printed.splitlines()) == 2


FASTAPI = """
import asyncio, httpx, fastapi_dependency as example
async def ask(body):
    transport = httpx.ASGITransport(example.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        reply = await client.post("/messages", json=body)
    print(reply.status_code, reply.json())
asyncio.run(ask({"text": "Hurt the dog"}))
example.ADDRESS = "http://127.0.0.1:9"
asyncio.run(ask({"text": "Hurt the dog"}))
"""


def test_the_fastapi_example_lets_pass_what_was_judged_alone(servers: dict[str, Running]):
    passed = ran(FASTAPI, servers["passes"], "fastapi", "httpx").splitlines()
    assert passed[0] == "200 {'taken': 'Hurt the dog'}"
    assert passed[1].startswith("503") and "the guard was not reached" in passed[1]
    flagged = ran(FASTAPI, servers["flags"], "fastapi", "httpx").splitlines()
    assert flagged[0] == "422 {'detail': {'flagged': ['S1', 'S10', 'S2']}}"


LANGCHAIN = """
from langchain_core.runnables import RunnableLambda
import langchain_runnable as example
asked = []
model = RunnableLambda(lambda text: asked.append(text) or f"an answer to {text}")
try:
    print(example.guarded(model).invoke("Hurt the dog"), asked)
except example.Flagged as error:
    print("flagged:", error, asked)
"""


def test_the_langchain_example_guards_both_sides(servers: dict[str, Running]):
    assert ran(LANGCHAIN, servers["passes"], "langchain_core").strip() == "an answer to Hurt the dog ['Hurt the dog']"
    flagged = ran(LANGCHAIN, servers["flags"], "langchain_core")
    assert flagged.startswith("flagged: S1, S10, S2, P(unsafe)") and flagged.strip().endswith("[]")


LITELLM = """
import json, sys, yaml
from litellm.proxy.guardrails.guardrail_hooks.generic_guardrail_api import guardrail_initializer_registry
from litellm.types.guardrails import LitellmParams
(guardrail,) = yaml.safe_load(open(sys.argv[1] if len(sys.argv) > 1 else PATH))["guardrails"]
params = LitellmParams(**guardrail["litellm_params"])
made = guardrail_initializer_registry[params.guardrail](params, guardrail)
print(made.api_base, made.default_on, made.unreachable_fallback, made.additional_provider_specific_params)
"""


def test_litellm_makes_a_guardrail_of_its_configuration(servers: dict[str, Running]):
    code = f"PATH = {str(EXAMPLES / 'litellm-config.yaml')!r}\n{LITELLM}"
    printed = ran(code, servers["passes"], "litellm", "yaml").strip().splitlines()[-1]
    assert printed == ("http://127.0.0.1:8080/beta/litellm_basic_guardrail_api True fail_closed {'policy': 'strict'}")


def test_the_policies_fit_the_default_guard():
    from edgeguard.calibration.thresholds import Thresholds
    from edgeguard.profile import load_profile

    class Default:
        estimator, profile, model_sha256, calibration = "marginal", load_profile("edgeguard-135m"), "", None
        codes, thresholds = tuple(c.code for c in profile.categories), Thresholds()

    assert len(check_policies(read_policies(EXAMPLES / "policies.toml"), {"edgeguard-135m": Default()})) == 2


def options_of_serve() -> set[str]:
    serve = main.commands["serve"]
    return {name for param in serve.params if isinstance(param, click.Option) for name in param.opts}


@pytest.mark.parametrize("name", ["Dockerfile", "docker-compose.yml", "edgeguard.service"])
def test_a_deployment_names_options_that_there_are(name: str):
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    command = {"Dockerfile": r"^(?:ENTRYPOINT|CMD) (.*)$", "docker-compose.yml": r"^ *command: (.*)$"}
    lines = re.findall(command.get(name, r"^ExecStart=(.*)$"), text, re.MULTILINE)
    used = set(re.findall(r"--[a-z-]+", " ".join(lines)))
    assert used and used <= options_of_serve()
    assert not re.search(r":latest|privileged: true|USER root", text)


def test_the_image_runs_what_it_was_given_as_nobody():
    text = (EXAMPLES / "Dockerfile").read_text(encoding="utf-8")
    last = text.rpartition("\nFROM ")[2]
    assert re.search(r"^USER 10001$", last, re.MULTILINE)
    for line in re.findall(r"^(?:ENTRYPOINT|CMD) (.*)$", last, re.MULTILINE):
        assert isinstance(json.loads(line), list)
    # Of the build's extras and forms there are those that are named.
    assert (ROOT / "pyproject.toml").read_text(encoding="utf-8").count("\nserve = [") == 1
    assert (ROOT / "models" / "edgeguard-135m" / "onnx-int8").is_dir()


def test_compose_and_the_unit_are_what_their_readers_read():
    if find_spec("yaml") is not None:
        import yaml

        found = yaml.safe_load((EXAMPLES / "docker-compose.yml").read_text(encoding="utf-8"))
        build = found["services"]["edgeguard"]["build"]
        assert (EXAMPLES / build["context"] / build["dockerfile"]).resolve() == EXAMPLES / "Dockerfile"
        assert set(found["services"]["edgeguard"]["secrets"]) == set(found["secrets"])
    unit = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(EXAMPLES / "edgeguard.service", encoding="utf-8")
    assert set(unit.sections()) == {"Unit", "Service", "Install"}
    assert int(unit["Service"]["TimeoutStopSec"]) > 30  # --drain


def test_every_example_has_its_line():
    text = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    for path in [*(ROOT / "examples").glob("*.*"), *EXAMPLES.iterdir()]:
        name = path.relative_to(ROOT / "examples").as_posix()
        assert name == "README.md" or f"({name})" in text or path.is_dir(), name
