"""Both commands as users start them: a process of its own, in an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("invoke", "yolotrt")


@dataclass(frozen=True)
class Ran:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str


Run = Callable[..., Ran]


def start(
    command: str,
    *arguments: str,
    cwd: Path,
    store: Path,
    redirect: str = "",
    variables: Mapping[str, str] = {},
    stdout: int = subprocess.PIPE,
) -> Ran:
    """Run one of the two commands in `cwd` with its own store.

    Args:
        redirect: as for a shell, e.g. `>/dev/full`. variables: more of the environment. stdout: a descriptor to take
            the place of what is returned as `out`.
    """
    program = Path(sys.executable).with_name(command)
    before = ["--search-root", str(ROOT)] if command == "invoke" else []
    environment = {
        **os.environ,
        "YOLOTRT_STORE": str(store),
        "COLUMNS": "200",
        "XDG_CACHE_HOME": str(store.parent / "cache"),
        **variables,
    }
    line = [str(program), *before, *arguments]
    if redirect:
        line = ["bash", "-c", f'exec "$@" {redirect}', "bash", *line]
    done = subprocess.run(line, cwd=cwd, env=environment, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=600)
    return Ran(done.returncode, done.stdout or "", done.stderr)


@pytest.fixture(params=COMMANDS)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    """Run a command in an empty folder with an empty store; each test runs under both commands."""

    def call(*arguments: str, store: Path | None = None, **how: Any) -> Ran:
        here = tmp_path / "here"
        here.mkdir(exist_ok=True)
        return start(request.param, *arguments, cwd=here, store=store or tmp_path / "store", **how)

    return call


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store in which the embedded default model has been built for the CPU, and what that printed."""
    folder = tmp_path_factory.mktemp("warm")
    ran = start("yolotrt", "build", "--builder", "onnxruntime", "--out", "engine", cwd=folder, store=folder / "store")
    assert ran.code == 0, ran.err
    yield folder
