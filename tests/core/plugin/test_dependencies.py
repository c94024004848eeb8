"""Tools are told of without being imported."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from yolotrt_core.plugin.stages import tool_versions, tools_available


def test_what_is_missing_is_named_with_the_command_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tools_available(("json", "numpy")).ok
    can = tools_available(("numpy", "no_such_tool"))
    assert (can.ok, can.reason) == (False, "`no_such_tool` is not installed")
    assert can.install == "pip install no_such_tool"
    can = tools_available(("no_such_tool", "no_such_package.part"), "pip install 'mine[all]'")
    assert can.reason == "`no_such_tool` and `no_such_package.part` are not installed"
    assert can.install == "pip install 'mine[all]'"
    monkeypatch.setitem(sys.modules, "numpy", None)
    assert not tools_available(("numpy",)).ok


def test_a_version_is_found_whatever_the_distribution_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "framework_of_mine").mkdir()
    (tmp_path / "framework_of_mine" / "__init__.py").write_text("raise RuntimeError('imported')")
    information = tmp_path / "framework_cpu-3.1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: framework-cpu\nVersion: 3.1\n")
    (information / "top_level.txt").write_text("framework_of_mine\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert tools_available(("framework_of_mine",)).ok
    assert tool_versions(("framework_of_mine", "no_such_tool")) == {"framework_of_mine": "3.1"}
