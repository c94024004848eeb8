"""`plugin.new`: what it writes installs, is found, holds its contract, and refuses what cannot be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from yolotrt_core.errors import UsageError
from yolotrt_core.registry import KINDS
from yolotrt_core.scaffold import write_plugin

RULES = ["check", "--isolated", "--line-length=120", "--target-version=py311", "--select=E,F,I,B,UP,RUF,PIE,C4,BLE"]


def _run(command: list[str], folder: Path, path: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(path)}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_plugin_holds_its_contract(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the contracts run ONNX files")
    folder = write_plugin("my_own", kind, tmp_path)
    assert folder == tmp_path / "yolotrt-my-own"
    assert {p.name for p in folder.iterdir()} == {"pyproject.toml", "README.md", "yolotrt_my_own", "tests"}
    for file in folder.rglob("*"):
        assert "$" not in file.read_text() if file.is_file() else True
    done = _run([sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"], folder, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout
    for command in (RULES, ["format", "--isolated", "--line-length=120", "--check"]):
        done = _run([sys.executable, "-m", "ruff", *command, "--no-cache", "."], folder, folder)
        assert done.returncode == 0, done.stdout


def test_names_that_cannot_be(tmp_path: Path) -> None:
    for name, words in (("Own", "lower-case"), ("1st", "lower-case"), ("a-b", "lower-case"), ("torch", "installed")):
        with pytest.raises(UsageError, match=words):
            write_plugin(name, "exporter", tmp_path)
    with pytest.raises(UsageError, match="unknown kind of stage `expoter`") as told:
        write_plugin("own", "expoter", tmp_path)
    assert told.value.hint == "did you mean `exporter`?"
    write_plugin("own", "exporter", tmp_path)
    with pytest.raises(UsageError, match="is there already"):
        write_plugin("own", "pass", tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["yolotrt-own"]


def test_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from yolotrt_core.cli import main; main()", "plugin.new"]
    done = _run([*command, "own", "--kind", "pass"], tmp_path, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "yolotrt-own\n", "")
    for arguments, words in (
        (["own"], "error: `plugin.new` needs the kind of stage"),
        (["own", "--kind", "pass"], "error: `yolotrt-own` is there already"),
        (["onnxruntime", "--kind", "builder"], "error: there is already a builder named `onnxruntime`"),
    ):
        done = _run([*command, *arguments], tmp_path, tmp_path)
        assert done.returncode == 2
        assert words in done.stderr
        assert "hint: " in done.stderr
