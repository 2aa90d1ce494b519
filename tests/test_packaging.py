"""The wheel that users get holds what it needs."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_wheel_holds_the_profiles_the_types_and_the_guard_and_nothing_else(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "edgeguard/py.typed" in names
    for profile in (ROOT / "edgeguard" / "profiles").glob("*.toml"):
        assert f"edgeguard/profiles/{profile.name}" in names
    outside = {n for n in names if not n.startswith(("edgeguard/", "edgeguard-"))}
    assert not outside
    guard = {n.removeprefix("edgeguard/guards/edgeguard-135m/") for n in names if n.startswith("edgeguard/guards/")}
    estimators = ("conditional", "joint", "marginal")
    forms = ("", "q8_0/", "q4_0/", "onnx-int8/", "onnx-int4/")
    calibrations = {f"{form}calibration-{e}.json" for form in forms for e in estimators}
    assert guard == {"README.md", "adapter.gguf", "guard.toml"} | calibrations
    assert {"edgeguard/quant/page.html.jinja", "edgeguard/quant/page.css", "edgeguard/explanation_page.css"} <= names
    page = {n for n in names if n.startswith("edgeguard/serve/") and not n.endswith(".py")}
    files = {f"page/{name}" for name in ("index.html", "page.css", "page.js")} | {"openai.toml"}
    assert page == {f"edgeguard/serve/{name}" for name in files}
    others = {n for n in names if n.endswith((".gguf", ".onnx", ".jsonl", ".pt"))}
    assert others == {"edgeguard/guards/edgeguard-135m/adapter.gguf"}
    assert wheel.stat().st_size < 20e6
