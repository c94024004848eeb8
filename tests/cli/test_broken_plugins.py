"""Plugins of strangers that fail: what the commands do beside them, and what they say of them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .conftest import Run, both_commands

Install = Callable[..., None]

_IMPORTS = """
from dataclasses import dataclass
from yolotrt_core.plugin.hookspecs import hookimpl
from yolotrt_core.plugin.options import NoOptions, option
from yolotrt_core.plugin.stages import Builder, Exporter, Pass
YOLOTRT_API = 1
"""
_STAGE = """
class Stage({kind}):
    name, Options = "{module}", NoOptions
"""
_BUILDER = (
    _IMPORTS
    + _STAGE.replace("{kind}", "Builder")
    + """
    engine_file, precisions, priority = "x.bin", frozenset({{"fp32", "fp16"}}), 1000
    def available(self): raise RuntimeError("no builder today")
    def runnable(self): raise RuntimeError("no running today")
    def preflight(self, request, options): raise KeyError("no preflight today")
    def build(self, *given): pass
    def open(self, *given): pass
@hookimpl
def yolotrt_builders(): return [Stage()]
"""
)
_EXPORTER = (
    _IMPORTS
    + _STAGE.replace("{kind}", "Exporter")
    + """
    def export(self, source, request, options, out): {work}
@hookimpl
def yolotrt_exporters(): return [Stage()]
@hookimpl
def yolotrt_select_exporter(source): return {answer}
"""
)
_PASS = (
    _IMPORTS
    + """
@dataclass(frozen=True)
class Options:
    x: int = option(9, help="x", maximum=5)
"""
    + _STAGE.replace("{kind}", "Pass").replace("NoOptions", "Options")
    + """
    order = 60
    def applies(self, request, options): return False
    def apply(self, *given): pass
@hookimpl
def yolotrt_passes(): return [Stage()]
"""
)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Return `install(module, text)`: the module becomes a plugin of the distribution `MODULE-dist`."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    loaded = set(sys.modules)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH", "")))))

    def add(module: str, text: str, **values: str) -> None:
        (site / f"{module}.py").write_text(
            text.format(module=module, **values) if values or "{module}" in text else text
        )
        information = site / f"{module}_dist-1.0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}-dist\nVersion: 1.0\n")
        (information / "entry_points.txt").write_text(f"[yolotrt]\n{module} = {module}\n")

    yield add
    for module in set(sys.modules) - loaded:
        if str(getattr(sys.modules[module], "__file__", "")).startswith(str(site)):
            del sys.modules[module]


def test_what_fails_when_asked_harms_no_command(run: Run, install: Install) -> None:
    install("badbuilder", _BUILDER)
    for arguments in (["plugins", "--json"], ["doctor", "--json"], ["--list"], ["artifacts.explain"]):
        ran = run(*arguments)
        assert ran.code == 0, ran.err
        assert "Traceback" not in ran.err
    listed = json.loads(run("plugins", "--json").out)["stages"]
    (told,) = [each for each in listed if each["name"] == "badbuilder"]
    assert (told["distribution"], told["available"]) == ("badbuilder-dist", False)
    assert "no builder today" in told["reason"]
    ran = run("artifacts.explain")
    assert ran.err.count("builder `badbuilder` of `badbuilder-dist` is skipped") == 1
    ran = run("build", "--builder", "badbuilder")
    assert ran.code == 3
    assert "error: `available` of builder `badbuilder` of `badbuilder-dist` failed with RuntimeError" in ran.err
    assert "Traceback" not in ran.err


def test_a_stage_that_exits_is_named(run: Run, install: Install, tmp_path: Path) -> None:
    install("leaver", _EXPORTER, work="raise SystemExit(0)", answer="None")
    (tmp_path / "m.bin").write_bytes(b"x")
    ran = run("build", "--weights", str(tmp_path / "m.bin"), "--exporter", "leaver")
    assert ran.code == 4
    assert "error: export: failed with SystemExit: 0" in ran.err
    assert "`leaver` of `leaver-dist`" in ran.err


def test_an_export_that_wrote_nothing_is_named(run: Run, install: Install, tmp_path: Path) -> None:
    install("idle", _EXPORTER, work="pass", answer="None")
    (tmp_path / "m.bin").write_bytes(b"x")
    for _ in range(2):
        ran = run("build", "--weights", str(tmp_path / "m.bin"), "--exporter", "idle")
        assert ran.code == 4
        assert "error: export: exporter `idle` of `idle-dist` did not write `model.onnx`" in ran.err


def test_a_choice_that_is_none_names_its_distribution(run: Run, install: Install, tmp_path: Path) -> None:
    install("chooser", _EXPORTER, work="pass", answer="42")
    (tmp_path / "m.bin").write_bytes(b"x")
    ran = run("artifacts.explain", "--weights", str(tmp_path / "m.bin"))
    assert ran.code == 3
    assert "plugin `chooser` of `chooser-dist` chose int `42` in `yolotrt_select_exporter`" in ran.err
    ran = run("artifacts.explain")  # the embedded model, which `torch` reads
    assert ran.code == 0, ran.err
    assert ran.err.count("`chooser-dist` chose int `42`") == 1


def test_flags_and_tables_of_a_broken_plugin_say_why(run: Run, install: Install, tmp_path: Path) -> None:
    install("badpass", _PASS)
    install("gone", "import no_such_framework")
    ran = run("build", "--badpass-x", "3")
    assert ran.code == 1
    assert "error: `build` has no flag `--badpass-x`" in ran.err
    assert "it belongs to the broken plugin `badpass` of `badpass-dist` (field `x` of options" in ran.err
    assert "no_such_framework" not in ran.err
    ran = run("build", "--gone-x", "3")  # which stages it would bring, nobody can know
    assert ran.code == 1
    assert "`gone` of `gone-dist` (import failed: ModuleNotFoundError: No module named 'no_such_framework')" in ran.err
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[badpass]\nx = 3\n")
    ran = run("build", "--recipe", str(recipe))
    assert ran.code == 2
    assert "unknown name `badpass` in the recipe" in ran.err
    assert "it belongs to the broken plugin `badpass` of `badpass-dist`" in ran.err


def test_a_name_of_the_core_is_refused(run: Run, install: Install) -> None:
    install("gate", _EXPORTER, work="pass", answer="None")
    (told,) = json.loads(run("plugins", "--json").out)["broken"]
    assert told["distribution"] == "gate-dist"
    assert "`gate` is a name of `yolotrt-core` itself" in told["error"]


@both_commands
def test_a_plugin_that_prints_and_logs_at_import_spoils_nothing(run: Run, install: Install) -> None:
    install(
        "loud",
        "import logging, os\nprint('loud python')\nos.write(1, b'loud native\\n')\nlogging.basicConfig()\n"
        "logging.warning('loud log')\nYOLOTRT_API = 1\n",
    )
    ran = run("plugins", "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["schema"] == 1
    assert "loud python" in ran.err
    assert "loud native" in ran.err
    ran = run("artifacts.explain", "--weights", "parts", "--precision", "int8")
    assert ran.code == 2
    assert ran.err.count("needs images") == 1


def test_an_empty_onnx_file_is_told(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="the exporter `onnx` needs it")
    (tmp_path / "empty.onnx").touch()
    for command in ("build", "artifacts.explain"):
        ran = run(command, "--weights", str(tmp_path / "empty.onnx"))
        assert "Traceback" not in ran.err
    ran = run("build", "--weights", str(tmp_path / "empty.onnx"))
    assert ran.code == 2
    assert "error: " in ran.err
    assert "empty.onnx` is no" in ran.err


def test_a_stage_s_name_is_not_given_twice(run: Run) -> None:
    for name, words in (("torch", "there is already an exporter named `torch`"), ("gate", "`gate` is a name of")):
        ran = run("plugin.new", name, "--kind", "pass")
        assert ran.code == 2
        assert words in ran.err
