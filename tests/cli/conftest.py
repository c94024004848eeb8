"""The command line in an empty folder with an empty store: in this process, or as a process where that matters."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from command_line import COMMANDS, ROOT, Ran, call, start

__all__ = ["COMMANDS", "ROOT", "Ran", "Run", "both_commands", "call", "start"]

Run = Callable[..., Ran]
BuiltOnce = Callable[[str, Callable[[Path], None]], Path]

# For tests whose subject is the process: `run` starts it, once as `invoke`, once as `yolotrt`.
both_commands = pytest.mark.parametrize("run", COMMANDS, indirect=True)


@pytest.fixture
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    """Run the command line in an empty folder with an empty store, in this process unless `both_commands` asks."""
    command = getattr(request, "param", None)
    here = tmp_path / "here"

    def execute(*arguments: str, store: Path | None = None, **how: Any) -> Ran:
        here.mkdir(exist_ok=True)
        place = {"cwd": here, "store": store or tmp_path / "store"}
        return start(command, *arguments, **place, **how) if command else call(*arguments, **place, **how)

    return execute


@pytest.fixture(scope="session")
def warm(built_once: BuiltOnce, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which the embedded default model has been built for the CPU, and what that printed."""

    def build(folder: Path) -> None:
        for precision in ("fp32", "fp16"):
            common = ("--builder", "onnxruntime", "--precision", precision, "--out", "engine")
            ran = start("yolotrt", "build", *common, cwd=folder, store=folder / "store")
            assert ran.code == 0, ran.err

    folder = tmp_path_factory.mktemp("warm") / "copy"  # tests add to it
    shutil.copytree(built_once("warm", build), folder)
    return folder
