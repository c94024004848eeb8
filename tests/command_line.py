"""Both commands as users start them, and the same command line in this process, which starts in no time."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from unittest import mock

from yolotrt_core.cli import main
from yolotrt_core.console import notices, output

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ("invoke", "yolotrt")


@dataclass(frozen=True)
class Ran:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str


def start(
    command: str,
    *arguments: str,
    cwd: Path,
    store: Path,
    redirect: str = "",
    variables: Mapping[str, str] = {},
    stdout: int = subprocess.PIPE,
) -> Ran:
    """Run one of the two commands in `cwd` with its own store, in a process of its own.

    Args:
        redirect: as for a shell, e.g. `>/dev/full`. variables: more of the environment. stdout: a descriptor to take
            the place of what is returned as `out`.
    """
    program = Path(sys.executable).with_name(command)
    before = ["--search-root", str(ROOT)] if command == "invoke" else []
    environment = {**os.environ, **_variables(store), **variables}
    line = [str(program), *before, *arguments]
    if redirect:
        line = ["bash", "-c", f'exec "$@" {redirect}', "bash", *line]
    done = subprocess.run(line, cwd=cwd, env=environment, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=600)
    return Ran(done.returncode, done.stdout or "", done.stderr)


def call(*arguments: str, cwd: Path, store: Path, variables: Mapping[str, str] = {}) -> Ran:
    """Run the entry point of `yolotrt` in this process, and undo what it leaves in the process.

    A test of what belongs to a process (signals, closed streams, terminals, encodings, plugins at import) uses `start`.
    """
    code: object = 0
    with contextlib.ExitStack() as undo:
        undo.enter_context(_interpreter_state())
        undo.enter_context(mock.patch.dict(os.environ, {**_variables(store), **variables}))
        undo.enter_context(mock.patch.object(sys, "argv", ["yolotrt", *arguments]))
        undo.enter_context(contextlib.chdir(cwd))
        files = [undo.enter_context(_captured(number, name)) for number, name in ((1, "stdout"), (2, "stderr"))]
        undo.enter_context(descriptors_taken_over())
        undo.enter_context(mock.patch.object(notices, "_given", set()))
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
        assert isinstance(code, int), code
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        out, err = (_read(file) for file in files)
    return Ran(code, out, err)


@contextlib.contextmanager
def descriptors_taken_over() -> Iterator[None]:
    """Let descriptor 1 be standard error, as in a process of the command line."""
    saved = os.dup(1)
    try:
        with mock.patch.object(output, "_is_command_line", False):
            os.close(output.take_over())
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def _variables(store: Path) -> dict[str, str]:
    return {"YOLOTRT_STORE": str(store), "COLUMNS": "200", "XDG_CACHE_HOME": str(store.parent / "cache")}


class _Stream(io.TextIOWrapper):
    """A standard stream that the command line leaves as it is: `stdio.prepare` replaces only Python's own type."""


@contextlib.contextmanager
def _captured(number: int, name: str) -> Iterator[IO[bytes]]:
    """Send a descriptor, and the stream of this name, to a file: native libraries print to the descriptor."""
    saved = os.dup(number)
    errors = "surrogateescape" if number == 1 else "backslashreplace"
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, saved)
        file = undo.enter_context(tempfile.TemporaryFile())
        os.dup2(file.fileno(), number)
        undo.callback(os.dup2, saved, number)
        stream = undo.enter_context(
            _Stream(io.FileIO(os.dup(number), "w"), "utf-8", errors, write_through=True, line_buffering=True)
        )
        for attribute in (name, f"__{name}__"):
            undo.enter_context(mock.patch.object(sys, attribute, stream))
        yield file


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()


@contextlib.contextmanager
def _interpreter_state() -> Iterator[None]:
    """Give the command line logging and warnings as in a fresh process, and put back those of the test run."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = []
    root.setLevel(logging.WARNING)
    try:
        with mock.patch.object(sys, "dont_write_bytecode", sys.dont_write_bytecode), warnings.catch_warnings():
            warnings.resetwarnings()
            for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
                warnings.simplefilter("ignore", category)
            warnings.showwarning = _show_warning
            yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: IO[str] | None = None,
    line: str | None = None,
) -> None:
    sys.stderr.write(warnings.formatwarning(str(message), category, filename, lineno, line))
