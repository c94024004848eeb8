"""Who may import whom: read from the source, so that no run can hide it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = sorted((ROOT / "yolotrt_core").rglob("*.py"))
PLUGINS = sorted(p for p in (ROOT / "plugins").iterdir() if p.is_dir() and (p / "__init__.py").is_file())
# What the core must never name, however lazily.
FRAMEWORKS = {
    "torch", "tensorflow", "tf2onnx", "keras", "tensorrt", "tensorrt_rtx", "onnx", "onnxruntime", "onnxsim", "onnxslim",
    "onnxscript", "pycuda", "cuda",
}  # fmt: skip
# May be imported inside functions only: each costs more than the whole of `--help` may.
HEAVY = FRAMEWORKS | {"numpy", "cv2", "diskcache", "rich", "faster_coco_eval", "pycocotools"}
AGPL = {"yolov5", "ultralytics", "models", "utils"}


def _imports(path: Path, *, top_level_only: bool = False) -> Iterator[str]:
    """Yield the top package of each import; those under `if TYPE_CHECKING` never run."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    if top_level_only:
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                hidden |= {id(inner) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").partition(".")[0]


@pytest.mark.parametrize("path", CORE, ids=lambda p: str(p.relative_to(ROOT)))
def test_core_knows_stages_never_a_framework(path: Path) -> None:
    found = set(_imports(path))
    assert not found & FRAMEWORKS
    assert not {name for name in found if name.startswith("yolotrt_") and name != "yolotrt_core"}


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda p: p.name)
def test_a_plugin_imports_the_core_and_never_another_plugin(plugin: Path) -> None:
    for path in plugin.rglob("*.py"):
        others = {n for n in _imports(path) if n.startswith("yolotrt_")} - {"yolotrt_core", plugin.name}
        assert not others, f"{path.name} imports {others}"


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda p: p.name)
def test_a_plugins_front_imports_no_framework(plugin: Path) -> None:
    for front in (plugin / f"{name}.py" for name in ("__init__", "options", "stages", "passes", "formats")):
        assert not front.is_file() or not set(_imports(front, top_level_only=True)) & HEAVY


@pytest.mark.parametrize("path", [*CORE, *(f for p in PLUGINS for f in sorted(p.rglob("*.py")))], ids=lambda p: p.name)
def test_nothing_under_agpl_is_imported(path: Path) -> None:
    assert not set(_imports(path)) & AGPL


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
    listed = "import yolotrt_core, sys; print(*dir(yolotrt_core)); print('yolotrt_core.engine' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", listed], capture_output=True, text=True, check=True)
    names, was_imported = done.stdout.splitlines()
    assert {"BuildSettings", "Detector", "build"} <= set(names.split())
    assert was_imported == "False"
