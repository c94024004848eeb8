"""`plugin.new`: what it writes installs, is found, holds its contract, and refuses what cannot be."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from new_plugin import install, runnable, shown_commands
from yolotrt_core.errors import ArtifactError, UsageError
from yolotrt_core.export.model_source import sample_path
from yolotrt_core.plugin.registered import KINDS
from yolotrt_core.scaffold.writer import write_plugin
from yolotrt_core.testing import small_model

from .conftest import Ran, call

ROOT = Path(__file__).resolve().parents[2]
RULES = ["check", "--isolated", "--line-length=120", "--target-version=py311", "--select=E,F,I,B,UP,RUF,PIE,C4,BLE"]


def _run(command: list[str], folder: Path, path: Path, store: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": f"{path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    if store:
        environment["YOLOTRT_STORE"] = str(store)
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_plugin_holds_its_contract(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the contracts run ONNX files")
    folder = write_plugin("my_own", kind, tmp_path)
    assert folder == tmp_path / "yolotrt-my-own"
    assert {p.name for p in folder.iterdir()} == {
        ".gitignore",
        "pyproject.toml",
        "README.md",
        "yolotrt_my_own",
        "tests",
    }
    for file in folder.rglob("*"):
        assert "$" not in file.read_text() if file.is_file() else True
    done = _run([sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"], folder, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout
    for command in (RULES, ["format", "--isolated", "--line-length=120", "--check"]):
        done = _run([sys.executable, "-m", "ruff", *command, "--no-cache", "."], folder, folder)
        assert done.returncode == 0, done.stdout


def test_a_new_exporter_of_another_head_holds_its_contract(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the contracts run ONNX files")
    folder = write_plugin("other", "exporter", tmp_path)
    module = folder / "yolotrt_other" / "exporter.py"
    text = module.read_text()
    assert 'HEAD = "yolov5"' in text
    module.write_text(text.replace('HEAD = "yolov5"', 'HEAD = "other"'))
    test = next((folder / "tests").glob("test_*.py"))
    test.write_text(
        test.read_text()
        + """
    def test_the_head_is_named(self, stage, source, request_, options, out):
        spec = stage.export(source, request_, options, out)
        assert (spec.head, spec.strides, spec.labels) == ("other", (), ("a", "b", "c"))
"""
    )
    done = _run([sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"], folder, folder)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_guide_s_first_commands_run(warm: Path, tmp_path: Path) -> None:
    for module in ("onnxruntime", "cv2"):
        pytest.importorskip(module, reason="builds and runs a model (extra `cpu`)")
    guide = (ROOT / "plugins" / "README.md").read_text()
    commands = shown_commands(guide.partition("## Write a plugin in ten minutes")[2])
    assert [command[0] for command in commands[:3]] == ["yolotrt", "cd", "pip"]
    done = _run(runnable(commands[0]), tmp_path, tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / commands[1][1]
    install(folder)
    for command in commands[3:]:
        done = _run(runnable(command), folder, folder, warm / "store")
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    assert {path.name for path in folder.iterdir()} >= {"example.bin", "engines", "detections"}
    ignored = (folder / ".gitignore").read_text().split()
    assert {"engines/", "detections/", "__pycache__/", "*.egg-info/"} <= set(ignored)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_commands_of_the_new_readme_run(kind: str, warm: Path, tmp_path: Path) -> None:
    for module in ("torch", "onnxruntime", "cv2"):
        pytest.importorskip(module, reason="builds and runs the embedded model (extra `cpu`)")
    folder = write_plugin("mine", kind, tmp_path)
    install(folder)
    shown = (folder / "README.md").read_text().partition("To use it")[2]
    commands = shown_commands(shown)
    own = {"IMAGES": str(tmp_path), "MODEL.onnx": str(corner_model(tmp_path)), "NAMES.txt": str(tmp_path / "n.txt")}
    (tmp_path / "n.txt").write_text("a\nb\nc\n")
    shutil.copy(sample_path(), tmp_path)
    for command in commands:
        words = [own.get(word, word) for word in command]
        done = _run(runnable(words), tmp_path / "here", folder, warm / "store")
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr


def corner_model(folder: Path) -> Path:
    """Write an ONNX (1, 3, 64, 64) -> rows of x1, y1, x2, y2 and three class scores."""
    import onnx

    path = small_model(folder / "model").path
    model = onnx.load(str(path))
    corners = np.eye(8, dtype=np.float32)[:, [0, 1, 0, 1, 5, 6, 7]]  # from cx, cy, w, h, objectness, scores
    corners[2:4, :4] = [[-0.5, 0, 0.5, 0], [0, -0.5, 0, 0.5]]
    model.graph.initializer.append(onnx.numpy_helper.from_array(corners, "to_corners"))
    model.graph.node.append(onnx.helper.make_node("MatMul", ["output0", "to_corners"], ["corners"]))
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("corners", 1, [1, 128, 7]))
    del model.metadata_props[:]
    onnx.save(model, str(path))
    return path


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


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in ("file", "/proc"):  # nobody makes a folder there, the superuser neither
        ran = _plugin_new(tmp_path, "own", "--kind", "pass", "--out", place)
        assert ran.code == 5
        assert ran.err.startswith("error: cannot write ")
        assert "hint: choose another folder with `--out`" in ran.err


def _plugin_new(folder: Path, *arguments: str) -> Ran:
    return call("plugin.new", *arguments, cwd=folder, store=folder / "store")


def test_a_full_disk_fails_as_other_outputs_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = Path.write_text, []

    def full(path: Path, text: str, **how: Any) -> int:
        written.append(path)
        if len(written) > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, text, **how)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ArtifactError, match=r"cannot write .*: no space left on device") as told:
        write_plugin("own", "pass", tmp_path)
    assert told.value.exit_code == 5
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == [], "half a plugin would be in the way of the next try"
    assert write_plugin("own", "pass", tmp_path).is_dir()


def test_the_command(tmp_path: Path) -> None:
    assert _plugin_new(tmp_path, "own", "--kind", "pass") == Ran(0, "yolotrt-own\n", "")
    for arguments, words in (
        (["own"], "error: `plugin.new` needs the kind of stage"),
        (["own", "--kind", "pass"], "error: `yolotrt-own` is there already"),
        (["onnxruntime", "--kind", "builder"], "error: there is already a builder named `onnxruntime`"),
    ):
        ran = _plugin_new(tmp_path, *arguments)
        assert ran.code == 2
        assert words in ran.err
        assert "hint: " in ran.err
