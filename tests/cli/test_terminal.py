"""What people see on a terminal of 80 columns, and what a pipe gets."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import sys
import termios
from pathlib import Path

import pytest

from yolotrt_core.console.text import wrapped

from .conftest import COMMANDS, ROOT, Run

_COLUMNS = 80
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def on_terminal(command: str, *arguments: str, store: Path, cwd: Path) -> list[str]:
    """Run a command on a terminal of 80 columns; return the lines it leaves there."""
    program = str(Path(sys.executable).with_name(command))
    before = ["--search-root", str(ROOT)] if command == "invoke" else []
    environment = {k: v for k, v in os.environ.items() if k != "COLUMNS"} | {"YOLOTRT_STORE": str(store)}
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(cwd)
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, _COLUMNS, 0, 0))
        os.execve(program, [program, *before, *arguments], environment)
    out = b""
    while True:
        try:
            read = os.read(terminal, 65536)
        except OSError:  # the other end is closed
            break
        if not read:
            break
        out += read
    os.waitpid(child, 0)
    os.close(terminal)
    return _ESCAPES.sub("", out.decode()).replace("\r\n", "\n").split("\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_log_lines_and_errors_break_between_words(command: str, warm: Path, tmp_path: Path) -> None:
    arguments = ("build", "--builder", "onnxruntime", "--int8-keep", "model.2.cv1")
    lines = on_terminal(command, *arguments, store=warm / "store", cwd=tmp_path)
    shown = [line.rpartition("\r")[2] for line in lines]
    at = next(i for i, line in enumerate(shown) if line.startswith("gate "))
    assert len(shown[at]) <= _COLUMNS
    assert shown[at + 1].startswith("  ")
    joined = " ".join(f"{shown[at]} {shown[at + 1]}".split())
    assert "agreement 1.000 (minimum 0.8), score difference" in joined
    lines = on_terminal(command, "build", "--tensorrt-workspace", "x" * 70, store=warm / "store", cwd=tmp_path)
    assert lines[0].startswith("error: `--tensorrt-workspace` expects")
    assert any(f"`{'x' * 70}`" in line for line in lines)  # a word is never broken


def test_only_a_terminal_gets_broken_lines(tmp_path: Path) -> None:
    with (tmp_path / "f").open("w") as file:
        assert wrapped("word " * 100, file) == "word " * 100


@pytest.mark.parametrize("command", COMMANDS)
def test_the_list_of_artifacts_fits(command: str, warm: Path, tmp_path: Path) -> None:
    lines = [line.rstrip() for line in on_terminal(command, "artifacts.list", store=warm / "store", cwd=tmp_path)]
    assert all(len(line) <= _COLUMNS for line in lines)
    rows = [line for line in lines if re.match(r"[0-9a-f]{12}  \w+ +\w+ +\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", line)]
    assert len(rows) == sum(re.match(r"[0-9a-f]{12} .* \d\d:\d\d:\d\d ", line) is not None for line in lines) > 5
    assert [line for line in lines if re.fullmatch(r"[0-9a-f]{12}  parts-fp16-onnxruntime", line)]


def test_piped_tables_have_no_trailing_spaces(run: Run, warm: Path) -> None:
    for task in ("doctor", "plugins", "artifacts.list"):
        out = run(task, store=warm / "store").out
        assert out
        assert [line for line in out.splitlines() if line != line.rstrip()] == []
    assert re.search(r" \d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", out)
    assert "parts-fp16-onnxruntime" in out


def test_doctor_names_each_package_once_and_commands_whole(run: Run, tmp_path: Path) -> None:
    text = run("doctor").out
    table = text.partition("required for")[2].partition("to install")[0]
    packages = [line.split()[0] for line in table.splitlines() if line.strip()]
    assert len(packages) == len(set(packages)) > 10
    commands = text.partition("to install what is missing:\n")[2].splitlines()
    assert len(commands) == len(set(commands))
    for command in COMMANDS:
        lines = on_terminal(command, "doctor", store=tmp_path, cwd=tmp_path)
        assert set(commands) <= {line.rstrip() for line in lines}
