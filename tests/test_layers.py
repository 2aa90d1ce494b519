"""The layout is what docs/design.md says it is."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from graphlib import TopologicalSorter
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import edgeguard

PACKAGE = Path(edgeguard.__file__).parent
LAYERS = [
    {"cache", "errors", "version"},
    {"files", "charts", "pattern", "process", "tomlfile", "machine", "ahead", "windows", "llama_library"},
    {"automaton", "backend", "pool", "rendering", "rows"},
    {"grammar"},
    {"profile", "formats", "example_answers"},
    {"calibration"},
    {"builtin"},
    {"answers", "backends", "convert", "hub", "templates"},
    {"tree", "prompt", "inspection", "forms", "pull"},
    {"estimators", "ports", "description", "together"},
    {"estimates"},
    {"guard"},
    {"workers"},
    {"fingerprint"},
    {"ray"},
    {"evaluation", "explanation", "selftest"},
    {"quant", "explanation_page", "serve"},
    {"cli", "__init__"},
    {"__main__"},
]
BESIDE = {"testing"}  # stands beside the seam


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def layer_of(name: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if name in layer)


def place(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_at_load(path: Path) -> set[str]:
    """Parts of edgeguard that importing the module imports: not those inside functions or for types only."""
    found: set[str] = set()

    def visit(body: list[ast.stmt]) -> None:
        for node in body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "edgeguard":
                parts = (node.module or "").split(".")
                found.update([parts[1]] if len(parts) > 1 else [alias.name for alias in node.names])
            elif isinstance(node, ast.Try | ast.If) and "TYPE_CHECKING" not in ast.dump(node).partition("body")[0]:
                visit(node.body)

    visit(ast.parse(path.read_text(encoding="utf-8")).body)
    return {name for name in found if (PACKAGE / f"{name}.py").exists() or (PACKAGE / name).is_dir()}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_downward_only(path):
    here = place(path)
    if here in BESIDE:
        assert "guard" not in imports_at_load(path)
        assert "cli" not in imports_at_load(path)
        return
    for name in imports_at_load(path) - {here}:
        assert name not in BESIDE, f"{here} imports {name}"
        assert layer_of(name) < layer_of(here), f"{here} imports {name}, which is not below it"


def imports_anywhere(path: Path, names: set[str]) -> set[str]:
    """Modules among `names` that a module imports at load, inside functions, or for types only."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module in names:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner & names
            found |= {node.module} if inner - names else set()
    return found


def test_no_modules_import_each_other_in_a_circle():
    """Below the layers: within a package too, where a circle means that two modules are one."""
    paths = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in modules()}
    paths = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    graph = {name: imports_anywhere(path, set(paths)) - {name} for name, path in paths.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_a_public_class_has_a_name_of_its_own():
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in modules()]
    names = Counter(node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef))
    assert [name for name, n in names.items() if n > 1 and not name.startswith("_")] == []


def test_nobody_imports_an_adapter_but_open_backend():
    """It finds them by the folder's list; each imports its own modules, when it opens a model."""
    for path in modules():
        names = set(re.findall(r"edgeguard\.backends\.(\w+)", path.read_text(encoding="utf-8")))
        own = {path.parent.name} if path.parent.parent.name == "backends" else set()
        assert names <= own, path


def test_only_the_command_line_prints():
    for path in modules():
        if "cli" not in path.parts:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            calls = [n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
            assert "print" not in calls, path


WHOLE_COMMANDS = re.compile(
    r"edgeguard convert|pip download|CMAKE_ARGS|llama-gguf-split"
)  # a cure to type, or another program's


def test_no_message_of_the_library_names_an_option():
    """Who uses it from Python has none: `cli/advice.py` adds what an option can do, by the error's kind."""
    for path in modules():
        if "cli" in path.parts or path.name == "pictures.py":  # CSS has names like options
            continue
        for line, text in texts(ast.parse(path.read_text(encoding="utf-8"))):
            if re.search(r"(?<![\w-])--[a-z]", text):
                assert WHOLE_COMMANDS.search(text), f"{path}:{line}: {text}"


def texts(tree: ast.Module) -> list[tuple[int, str]]:
    """(line, text) of the strings of a module, f-strings whole, docstrings left out."""
    nodes = list(ast.walk(tree))
    parts = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    docs = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    strings = (node for node in nodes if isinstance(node, ast.JoinedStr | ast.Constant))
    return [(node.lineno, ast.unparse(node)) for node in strings if id(node) not in parts | docs]


def test_importing_the_package_imports_no_runtime():
    heavy = ("numpy", "llama_cpp", "onnx", "onnxruntime", "tokenizers", "jinja2", "rich")
    code = f"import sys, edgeguard; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_knowing_the_runtimes_imports_none_of_them():
    code = "import sys; from edgeguard.backends import runtimes; runtimes()"
    code += "; print([m for m in ('llama_cpp', 'onnx', 'onnxruntime') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_all_is_what_can_be_imported():
    assert list(edgeguard.__all__) == sorted(edgeguard.__all__)
    for name in edgeguard.__all__:
        assert getattr(edgeguard, name).__module__.startswith("edgeguard.")
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        edgeguard.nothing_of_the_kind  # noqa: B018


OUTSIDE = sorted(path for part in ("bench", "models", "docs") for path in (PACKAGE.parent / part).rglob("*.py"))


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda p: str(p.relative_to(PACKAGE.parent)))
def test_benches_and_recipes_use_public_names_that_are_there(path):
    """A bench that nobody ran since a name moved fails on the day its figures are asked for."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "edgeguard":
            for alias in node.names:
                module = import_module(node.module or "")
                assert hasattr(module, alias.name) or find_spec(f"{node.module}.{alias.name}"), alias.name
                assert not alias.name.startswith("_")
