"""Plugins of third parties, as distributions of their own: those of `examples`, which work, and broken ones."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import site
import subprocess
import sys
import tomllib
import venv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from yolotrt_core.plugin.registered import KINDS
from yolotrt_core.scaffold.writer import write_plugin

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = {"calibrator": "yolotrt_image_mean", "exporter": "yolotrt_zoo", "yolov8": "yolotrt_yolov8"}
MOST_LINES = {"calibrator": 80, "exporter": 80, "yolov8": 150}
MAIN = "from yolotrt_core.cli import main; main()"

Run = Callable[..., subprocess.CompletedProcess[str]]


@dataclass(frozen=True)
class Environment:
    """A fresh environment that sees this one's packages, with the examples installed in it."""

    python: Path
    folder: Path

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [str(self.python), *arguments]
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_"))}
        done = subprocess.run(
            command, cwd=self.folder, env=clean, capture_output=True, text=True, timeout=300, check=False
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def yolotrt(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run("-c", MAIN, *arguments, check=check)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    pytest.importorskip("onnxruntime", reason="the examples need onnx and onnxruntime (extra `torch`)")
    folder = tmp_path_factory.mktemp("examples")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    python = folder / "venv" / "bin" / "python"
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    # Frameworks come from where the tests run; installing them again would take minutes and gigabytes.
    (packages / "outer.pth").write_text("".join(f"import site; site.addsitedir({p!r})\n" for p in _site_packages()))
    sources = []
    for kind in EXAMPLES:
        sources.append(folder / "sources" / kind)
        shutil.copytree(ROOT / "examples" / kind, sources[-1])
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", *map(str, sources)]
    done = subprocess.run(install, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return Environment(python, folder)


def _site_packages() -> list[str]:
    return [p for p in {*site.getsitepackages(), str(Path(pytest.__file__).parent.parent)} if Path(p).is_dir()]


def test_the_examples_are_short() -> None:
    for kind, package in EXAMPLES.items():
        files = [file for file in (ROOT / "examples" / kind / package).iterdir() if file.is_file()]
        assert sum(len(file.read_text().splitlines()) for file in files) < MOST_LINES[kind]


def test_the_examples_are_written_against_the_public_layers_only() -> None:
    """The contract of import-linter for the built-in plugins; see `plugins/README.md`, What a plugin may import."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (forbidden,) = (each["forbidden_modules"] for each in contracts if "public layers" in each["name"])
    for kind, package in EXAMPLES.items():
        for file in (ROOT / "examples" / kind / package).glob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                names += [each.name for each in node.names] if isinstance(node, ast.Import) else []
                for name in names:
                    assert not name.startswith((*forbidden, "ultralytics")), f"{file}: {name}"
                    assert name.partition("_")[0] != "yolotrt" or name.startswith(("yolotrt_core", package)), name
                if isinstance(node, ast.ImportFrom):
                    assert not any(each.name.startswith("_") for each in node.names), file


def _third_party(package: Path) -> set[str]:
    """Return the modules a package imports that neither it nor the standard library has."""
    found: set[str] = set()
    for file in package.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add((node.module or "").partition(".")[0])
    return found - sys.stdlib_module_names - {package.name}


def _declared(requirements: list[str]) -> set[str]:
    return {re.split(r"[^A-Za-z0-9._-]", each)[0].lower().replace("-", "_") for each in requirements}


_HIDDEN = """
import importlib, sys
plugin, hidden = sys.argv[1:]
sys.modules[hidden] = None  # as if it were not installed: an import fails, and `find_spec` finds nothing
from yolotrt_core.plugin.registered import KINDS
from yolotrt_core.plugin.registry import Registry
registry = Registry.of(importlib.import_module(plugin))
assert not registry.broken, registry.broken
for kind in KINDS:
    for found in registry.stages[kind].values():
        can = found.stage.available()
        print(can.ok, can.reason, can.install, sep="|")
        found.stage.fingerprint(found.stage.Options())
"""


def _refuse_dishonest(project: Path, package: Path) -> None:
    """Check that an environment with only what a plugin declares can run it, and that one without says so."""
    declared = _declared(tomllib.loads((project / "pyproject.toml").read_text())["project"]["dependencies"])
    imported = _third_party(package)
    assert imported <= declared, f"imported and not declared: {imported - declared}"
    own = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    path = os.pathsep.join([str(package.parent), os.environ.get("PYTHONPATH", "")])
    for module in imported - _declared(own) - {"yolotrt_core"}:
        command = [sys.executable, "-c", _HIDDEN, package.name, module]
        done = subprocess.run(
            command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        missing = [line.split("|")[1:] for line in done.stdout.splitlines() if line.startswith("False|")]
        assert missing, f"`available` of no stage of {package.name} misses {module}"
        for reason, install in missing:
            assert module in reason
            assert install == f"pip install {module}"


@pytest.mark.parametrize("kind", EXAMPLES)
def test_an_example_declares_what_it_imports_and_says_when_that_is_missing(kind: str) -> None:
    project = ROOT / "examples" / kind
    _refuse_dishonest(project, project / EXAMPLES[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_plugin_declares_what_it_imports_and_says_when_that_is_missing(kind: str, tmp_path: Path) -> None:
    project = write_plugin("mine", kind, tmp_path)
    _refuse_dishonest(project, project / "yolotrt_mine")


@pytest.mark.slow
@pytest.mark.parametrize("kind", EXAMPLES)
def test_an_installed_example_holds_its_contract(kind: str, environment: Environment) -> None:
    tests = environment.folder / "sources" / kind / "tests"
    options = ["-q", "-W", "error", "-p", "no:cacheprovider", "--import-mode=importlib", "-o", f"pythonpath={tests}"]
    done = environment.run(
        "-m", "pytest", *options, f"--confcutdir={tests}", "-c", os.devnull, f"--rootdir={tests}", str(tests)
    )
    assert "passed" in done.stdout
    assert "skipped" not in done.stdout  # by a contract whose stage says that it is not available
    where = environment.run("-c", f"import {EXAMPLES[kind]} as p; print(p.__file__)").stdout
    assert "site-packages" in where
    assert str(environment.folder) in where


@pytest.mark.slow
def test_installed_examples_are_listed_with_their_distributions(environment: Environment) -> None:
    listed = json.loads(environment.yolotrt("plugins", "--json").stdout)
    assert listed["broken"] == []
    theirs = {(s["kind"], s["name"], s["distribution"]) for s in listed["stages"]}
    assert theirs >= {
        ("calibrator", "image_mean", "yolotrt-image-mean"),
        ("exporter", "zoo", "yolotrt-zoo"),
        ("exporter", "yolov8", "yolotrt-yolov8"),
        ("postprocessor", "yolov8_boxes", "yolotrt-yolov8"),
    }


@pytest.mark.slow
def test_a_calibrator_is_swapped_in_by_name(environment: Environment, data: Path) -> None:
    pytest.importorskip("torch", reason="the embedded model is a checkpoint (extra `torch`)")
    folder = environment.folder / "pictures"
    folder.mkdir()
    for image in sorted((data / "coco" / "images" / "calib").glob("*.jpg"))[:4]:
        shutil.copy(image, folder)
    settings = ["--precision", "int8", "--calib-data", str(folder), "--builder", "onnxruntime", "--store", "store"]
    methods = {}
    for name in ("image_mean", "minmax"):
        done = environment.yolotrt("build", *settings, "--calibrator", name, "--json", "--out", f"int8-{name}")
        steps = {step["kind"]: step["plugin"] for step in json.loads(done.stdout)["steps"]}
        assert steps["calibrator"] == name
        environment.yolotrt(
            "artifacts.export", *settings, "--calibrator", name, "--kind", "ranges", "--out", f"ranges-{name}"
        )
        (file,) = (environment.folder / f"ranges-{name}").rglob("*ranges*.json")
        methods[name] = json.loads(file.read_text())
    mean, largest = methods["image_mean"], methods["minmax"]
    assert (mean["method"], largest["method"]) == ("image_mean", "minmax")
    assert mean["tensors"].keys() == largest["tensors"].keys()
    # A mean of the images' largest values is below the largest of them.
    assert all(mean["tensors"][name] <= largest["tensors"][name] * 1.0001 for name in mean["tensors"])


@pytest.mark.slow
def test_exporters_are_chosen_by_content(environment: Environment) -> None:
    make = """
import json, zipfile
from pathlib import Path
from yolotrt_core.testing import small_model
here = Path.cwd()
path = small_model(here / "network").path
with zipfile.ZipFile(here / "bundle.zip", "w") as archive:
    archive.write(path, "network.onnx")
    archive.writestr("card.json", json.dumps({"classes": ["a", "b", "c"], "strides": [8]}))
import sys
sys.path.insert(0, str(here / "sources" / "yolov8" / "tests"))
from small_yolov8 import write_model
write_model(here / "columns.onnx")
"""
    environment.run("-c", make)
    common = ["--builder", "onnxruntime", "--precision", "fp32", "--store", "store", "--json"]
    for file, exporter in (("bundle.zip", "zoo"), ("columns.onnx", "yolov8"), ("network/model.onnx", "onnx")):
        done = environment.yolotrt("build", "--weights", file, *common, "--imgsz", "64", "--out", exporter)
        assert json.loads(done.stdout)["steps"][0]["plugin"] == exporter


_PASS = """
from pathlib import Path
from yolotrt_core.plugin.hookspecs import hookimpl
from yolotrt_core.plugin.options import NoOptions, option
from yolotrt_core.plugin.stages import Pass
from dataclasses import dataclass
YOLOTRT_API = 1

@dataclass(frozen=True)
class Flags:
    {field}: int = option(1, help="a number")

class Stage(Pass):
    name, order, Options = "{name}", {order}, {options}
    def applies(self, request, options): return {applies}
    def apply(self, model, calibration, request, options, out):
        {work}
        (out / "model.onnx").write_bytes(model.path.read_bytes())
        return model.spec, {{}}

@hookimpl
def yolotrt_passes(): return [Stage()]
"""


def _pass(module: str, **changed: Any) -> str:
    values: dict[str, Any] = {
        "name": module,
        "module": module,
        "options": "NoOptions",
        "applies": "False",
        "work": "pass",
    }
    values |= {"field": "x", "order": 30}
    return _PASS.format(**(values | changed))


_RAISING_HOOKS = """
from yolotrt_core.plugin.hookspecs import hookimpl
YOLOTRT_API = 1

@hookimpl
def yolotrt_select_exporter(source): raise RuntimeError("no selecting today")

@hookimpl
def yolotrt_stage_started(action): raise RuntimeError("no starting today")

@hookimpl
def yolotrt_stage_finished(record): raise RuntimeError("no finishing today")
"""

# What is wrong, and what the message must say beside the distribution.
BROKEN: Mapping[str, tuple[str, str]] = {
    "raises_at_import": ("import no_such_framework", "No module named 'no_such_framework'"),
    "exits_at_import": ("raise SystemExit(7)", "SystemExit"),
    "wrong_argument": (
        "from yolotrt_core.plugin.hookspecs import hookimpl\nYOLOTRT_API = 1\n"
        "@hookimpl\ndef yolotrt_select_exporter(weights): return None",
        "weights",
    ),
    "duplicate_name": (_pass("duplicate_name", name="simplify"), "`simplify` is brought by both `yolotrt-core`"),
    "duplicate_flag": (
        _pass("duplicate_flag", name="tensorrt_optimization", options="Flags", field="level"),
        "flag `--tensorrt-optimization-level` is claimed by both `yolotrt-core`",
    ),
    "name_of_another_kind": (
        _pass("name_of_another_kind", name="torch"),
        "exporter `torch` of `yolotrt-core` and pass `torch` of `bad-name-of-another-kind` cannot share a name",
    ),
    "old_api": ("YOLOTRT_API = 0", "is written for plugin API 0; this version supports plugin API 1"),
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return `yolotrt(*arguments)` where every broken plugin is installed, each as a distribution of its own."""
    folder = tmp_path_factory.mktemp("broken")
    outside = "(out.parent / 'stray.txt').write_text('x')"
    fp16_only = "request.precision == 'fp16'"
    modules = {name: text for name, (text, _) in BROKEN.items()}
    modules["writes_outside"] = _pass("writes_outside", applies=fp16_only, work=outside, order=60)
    modules["raises_in_hooks"] = _RAISING_HOOKS
    for module, text in modules.items():
        dist = f"bad-{module.replace('_', '-')}"
        (folder / f"{module}.py").write_text(text)
        information = folder / f"{dist.replace('-', '_')}-1.0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.0\n")
        (information / "entry_points.txt").write_text(f"[yolotrt]\n{module} = {module}\n")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": str(folder)}
        command = [sys.executable, "-c", MAIN, *arguments]
        return subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
        )

    return run


def test_broken_plugins_are_listed_with_distribution_and_reason(broken: Run) -> None:
    done = broken("plugins", "--json")
    assert done.returncode == 0, done.stderr
    told = {each["distribution"]: each["error"] for each in json.loads(done.stdout)["broken"]}
    assert told.keys() == {f"bad-{module.replace('_', '-')}" for module in BROKEN}
    for module, (_, words) in BROKEN.items():
        assert words in told[f"bad-{module.replace('_', '-')}"]


def test_help_works_beside_broken_plugins(broken: Run) -> None:
    for arguments in (["--list"], ["--help", "build"], ["build", "--help"], ["doctor", "--json"]):
        done = broken(*arguments)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr


def test_a_build_that_needs_no_broken_plugin_works(broken: Run) -> None:
    pytest.importorskip("torch", reason="the embedded model is a checkpoint (extra `torch`)")
    done = broken("build", "--builder", "onnxruntime", "--precision", "fp32", "--store", "store", "--json")
    assert done.returncode == 0, done.stderr
    assert {step["plugin"] for step in json.loads(done.stdout)["steps"]} == {"torch", "simplify", "onnxruntime"}
    for words in ("`yolotrt_select_exporter` failed", "no starting today", "no finishing today"):
        assert words in done.stderr
    assert "plugin `raises_in_hooks` of `bad-raises-in-hooks` is skipped" in done.stderr


def test_a_build_that_runs_a_broken_stage_names_its_distribution(broken: Run) -> None:
    pytest.importorskip("torch", reason="the embedded model is a checkpoint (extra `torch`)")
    done = broken("build", "--builder", "onnxruntime", "--precision", "fp16", "--store", "store")
    assert done.returncode == 4
    assert "stray.txt" in done.stderr
    assert "bad-writes-outside" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_build_that_asks_for_a_broken_plugin_is_told_why(broken: Run) -> None:
    done = broken("build", "--exporter", "raises_at_import", "--store", "store")
    assert done.returncode == 3, done.stderr
    assert "bad-raises-at-import" in done.stderr
    assert "no_such_framework" in done.stderr
