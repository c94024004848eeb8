"""Who may import whom: contracts over the source, so that no run can hide it, and what a start really loads."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = sorted(p for p in (ROOT / "plugins").iterdir() if p.is_dir() and (p / "__init__.py").is_file())
# What the core must never name, however lazily: so says a contract of `pyproject.toml`.
FRAMEWORKS = {
    "torch", "tensorflow", "tf2onnx", "keras", "tensorrt", "tensorrt_rtx", "onnx", "onnxruntime", "onnxsim", "onnxslim",
    "onnxscript", "pycuda", "cuda",
}  # fmt: skip
# May be imported inside functions only: each costs more than the whole of `--help` may.
HEAVY = FRAMEWORKS | {"numpy", "cv2", "av", "diskcache", "rich", "faster_coco_eval", "pycocotools"}


def _imports(path: Path, *, at_top: bool) -> Iterator[str]:
    """Yield the top package of each import that can run; `at_top`: those that importing the file runs."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hidden: set[int] = set()
    for node in ast.walk(tree):
        is_for_checkers = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if is_for_checkers or (at_top and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))):
            hidden |= {id(inner) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").partition(".")[0]


def test_import_contracts_hold() -> None:
    """Function-level imports and those for type checkers count too."""
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_package_and_framework_is_under_contract() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    packages = {"yolotrt_core", *(p.name for p in PLUGINS)}
    assert set(settings["root_packages"]) == packages
    core, plugins, licences, public, *layers = settings["contracts"]
    for importer, _, _ in (line.partition(" -> ") for line in core["ignore_imports"]):
        file = ROOT / f"{importer.replace('.', '/')}.py"
        assert not set(_imports(file, at_top=False)) & FRAMEWORKS, f"{file.name} may name them for type checkers only"
    assert set(core["forbidden_modules"]) == FRAMEWORKS | {p.name for p in PLUGINS}
    assert set(plugins["modules"]) == {p.name for p in PLUGINS}
    assert set(licences["source_modules"]) == packages
    assert set(public["source_modules"]) == {p.name for p in PLUGINS}
    assert [contract["type"] for contract in layers] == ["layers", "acyclic_siblings"]
    assert layers[0]["exhaustive"]
    assert set(layers[1]["ancestors"]) == packages


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda p: p.name)
def test_a_plugins_front_imports_no_framework(plugin: Path) -> None:
    for front in (plugin / f"{name}.py" for name in ("__init__", "options", "stages", "passes", "formats")):
        assert not front.is_file() or not set(_imports(front, at_top=True)) & HEAVY


@pytest.mark.parametrize("command", [["--help"], ["build", "--help"], ["detect", "--help"], ["plugins", "--help"]])
def test_help_loads_nothing_heavy(command: list[str]) -> None:
    code = (
        "import sys; from yolotrt_core.cli import program\n"
        f"program().run(['yolotrt', *{command!r}], exit=False)\n"
        f"heavy = {sorted(HEAVY)!r}\n"
        "sys.exit(','.join(m for m in heavy if m in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_what_the_core_exports_lazily_is_listed() -> None:
    listed = "import yolotrt_core, sys; print(*dir(yolotrt_core)); print('yolotrt_core.api' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", listed], capture_output=True, text=True, check=True)
    names, was_imported = done.stdout.splitlines()
    assert {"BuildSettings", "Detector", "build"} <= set(names.split())
    assert was_imported == "False"


def test_no_sub_package_hides_a_public_name() -> None:
    """Importing a sub-package sets an attribute of the package, which would win over a lazy name."""
    import yolotrt_core

    modules = {path.stem for path in Path(yolotrt_core.__path__[0]).iterdir()}
    assert not modules & set(yolotrt_core.__all__)
