"""Contract of stages of every kind, and of the errors they raise."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from yolotrt_core.errors import YolotrtError
from yolotrt_core.plugin.options import key_material
from yolotrt_core.plugin.registered import Kind, Registered
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.plugin.stages import Availability
from yolotrt_core.types import BuildRequest

_FRAMEWORKS = ("torch", "tensorflow", "keras", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "cv2", "numpy")
_CHECK_IMPORT = """
import importlib, sys
from yolotrt_core.plugin.registry import Registry
plugin = importlib.import_module(sys.argv[1])
registry = Registry.of(plugin)
for kind in registry.stages.values():
    for found in kind.values():
        if found.stage.available().ok:
            found.stage.fingerprint(found.stage.Options())
print(*[name for name in sys.argv[2:] if name in sys.modules])
"""


class StageContract:
    """Base of the contracts.

    Attributes:
        plugin: the plugin module, as its entry point names it. name: the stage's.
    """

    kind: ClassVar[Kind]
    plugin: ClassVar[Any]
    name: ClassVar[str]

    @pytest.fixture
    def found(self) -> Registered:
        """The registered stage; fails with the registry's error if the plugin is broken."""
        registry = Registry.of(self.plugin)
        assert not registry.broken, registry.broken[0].error
        return registry.get(self.kind, self.name)

    @pytest.fixture
    def stage(self, found: Registered) -> Any:
        can = found.stage.available()
        if not can.ok:
            pytest.skip(f"{can.reason}: {can.install}")
        return found.stage

    @pytest.fixture
    def options(self, stage: Any) -> Any:
        """The options to test with; default the stage's defaults."""
        return stage.Options()

    @pytest.fixture
    def request_(self) -> BuildRequest:
        """The request, of the shape of your model or `small_model`."""
        return BuildRequest("fp32", 1, 64, 64)

    @pytest.fixture
    def out(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
        """The folder to write to; a file in the current folder instead fails the test."""
        here = tmp_path / "here"
        here.mkdir()
        monkeypatch.chdir(here)
        folder = tmp_path / "out"
        folder.mkdir()
        yield folder
        assert not list(here.iterdir()), "a stage writes only under `out`"

    def test_is_found_and_can_enter_a_key(self, found: Registered) -> None:
        assert len(found.identity.source_sha256) == 64
        assert found.identity.stage_version >= 1
        assert any(name.startswith(self.plugin.__name__) for name in found.stage.sources), (
            "`sources` names none of the plugin's own modules, so an edit there would not rebuild"
        )
        material = key_material(found.stage.Options(), found.name)
        assert json.loads(json.dumps(material)) == material

    def test_reports_whether_it_is_available(self, found: Registered) -> None:
        can = found.stage.available()
        assert isinstance(can, Availability)
        assert can.ok or (can.reason and can.install)

    def test_fingerprint_is_short_plain_and_steady(self, stage: Any, options: Any) -> None:
        tools = stage.fingerprint(options)
        assert all(isinstance(key, str) and isinstance(value, str) for key, value in tools.items())
        assert dict(stage.fingerprint(options)) == dict(tools)
        assert not any("/" in value for value in tools.values()), "paths never enter a key"

    def test_help_imports_no_framework(self) -> None:
        """`--help` loads every plugin, so importing one must be fast."""
        command = [sys.executable, "-c", _CHECK_IMPORT, self.plugin.__name__, *_FRAMEWORKS]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == []


def assert_readable(err: YolotrtError) -> None:
    """Check the form of an error message: one line, lower case, no final stop."""
    assert "\n" not in err.message
    assert err.message
    assert not err.message[0].isupper()
    assert not err.message.endswith(".")
    assert len(err.message) < 600
