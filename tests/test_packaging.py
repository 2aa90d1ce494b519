"""The wheel that users get holds what it needs."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ESTIMATORS = ("conditional", "joint", "marginal")


def wheel_of(project: Path, out: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=project, check=True, capture_output=True)
    (wheel,) = out.glob("*.whl")
    return wheel


def files_of(guard: Path) -> set[str]:
    """What the wheel must hold of a built-in guard's folder: with three calibrations of each of its forms."""
    forms = ("", *(f"{name}/" for name in tomllib.loads(guard.read_text(encoding="utf-8")).get("form", {})))
    names = {
        "README.md",
        "adapter.gguf",
        "guard.toml",
        *(f"{f}calibration-{e}.json" for f in forms for e in ESTIMATORS),
    }
    return {f"{guard.parent.name}/{name}" for name in names}


def test_the_wheel_holds_the_profiles_the_types_and_the_guards_and_nothing_else(tmp_path):
    wheel = wheel_of(ROOT, tmp_path)
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "edgeguard/py.typed" in names
    for profile in (ROOT / "edgeguard" / "profiles").glob("*.toml"):
        assert f"edgeguard/profiles/{profile.name}" in names
    outside = {n for n in names if not n.startswith(("edgeguard/", "edgeguard-"))}
    assert not outside
    tables = list((ROOT / "models").glob("*/guard.toml"))
    found = {n.removeprefix("edgeguard/guards/") for n in names if n.startswith("edgeguard/guards/")}
    assert tables and found == set().union(*map(files_of, tables))
    assert {"edgeguard/quant/page.html.jinja", "edgeguard/quant/page.css", "edgeguard/explanation_page.css"} <= names
    page = {n for n in names if n.startswith("edgeguard/serve/") and not n.endswith(".py")}
    files = {f"page/{name}" for name in ("index.html", "page.css", "page.js")} | {"openai.toml"}
    assert page == {f"edgeguard/serve/{name}" for name in files}
    others = {n for n in names if n.endswith((".gguf", ".onnx", ".jsonl", ".pt"))}
    assert others == {f"edgeguard/guards/{table.parent.name}/adapter.gguf" for table in tables}
    assert wheel.stat().st_size < 20e6 * len(tables)


def test_a_guard_that_is_added_is_in_the_wheel_by_the_same_rule(tmp_path):
    """No line of pyproject.toml names a guard; what a guard was made by stays out."""
    project = tmp_path / "project"
    (project / "edgeguard").mkdir(parents=True)
    (project / "edgeguard" / "__init__.py").touch()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, project)
    kept = {"guard.toml", "adapter.gguf", "README.md", "calibration-joint.json", "onnx-int8/calibration-joint.json"}
    for folder in ("edgeguard-135m-1", "edgeguard-500m", "recipe"):
        for name in (*kept, "experiments.md", "config.toml", "train.py", "q8_0/scores.npz"):
            path = project / "models" / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    names = zipfile.ZipFile(wheel_of(project, tmp_path / "out")).namelist()
    guards = {n.removeprefix("edgeguard/guards/") for n in names if "guards" in n}
    assert guards == {f"{folder}/{name}" for folder in ("edgeguard-135m-1", "edgeguard-500m") for name in kept}
