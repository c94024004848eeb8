"""Standard streams that are closed, full, or lack characters in their encoding."""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn, TextIO

import invoke

from yolotrt_core.console.output import take_over
from yolotrt_core.errors import ArtifactError, os_error_reason

_NAMES = ("stdin", "stdout", "stderr")


_results: TextIO | None = None  # where results go while `sys.stdout` is another


def prepare() -> None:
    """Make standard output the commands' own, and the standard streams safe to use; the command line's entry.

    A closed stream becomes /dev/null: Python leaves None in its place, and its number free for the next file that is
    opened, into which native libraries would then print.
    """
    for number, name in enumerate(_NAMES):
        if getattr(sys, name) is None:
            _open_nowhere(number)
            _replace(name, open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))  # noqa: SIM115
    if type(sys.stdout) is io.TextIOWrapper and sys.stdout is sys.__stdout__:  # not replaced by a test or a notebook
        sys.stdout.flush()
        results = _Output(sys.stdout, take_over())
        _replace("stdout", results)
        atexit.register(_end, results)


def _replace(name: str, stream: TextIO) -> None:
    setattr(sys, name, stream)
    setattr(sys, f"__{name}__", stream)


def results() -> TextIO:
    """Return the stream of results."""
    return _results or sys.stdout


def show(text: object = "", end: str = "\n") -> None:
    """Write a result."""
    results().write(f"{text}{end}")


@contextlib.contextmanager
def results_apart() -> Iterator[None]:
    """Send what plugins print during the block to standard error; `show` writes results as before."""
    global _results
    before, _results = _results, results()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _results = before


class ReaderGoneError(invoke.Exit, BrokenPipeError):
    """Standard output was closed by its reader (SIGPIPE); an Exit, since `invoke` shows all else with a traceback."""

    def __init__(self) -> None:
        super().__init__(code=141)  # as a shell reports a process ended by SIGPIPE


class _Output(io.TextIOWrapper):
    """Standard output that reports failed writes to the user, and replaces characters it cannot encode."""

    refusal: invoke.Exit | None = None  # exit of the program after a failed write

    def __init__(self, replaced: io.TextIOWrapper, descriptor: int) -> None:
        encoding, errors = replaced.encoding, replaced.errors
        if errors == "strict":
            # A file name that is not UTF-8 is written unchanged; other missing characters become `?`.
            errors = "surrogateescape" if encoding.lower().replace("-", "") == "utf8" else "replace"
        through = replaced.write_through
        file = open(descriptor, "wb", buffering=0 if through else -1)  # noqa: SIM115 - for the process's life
        super().__init__(file, encoding, errors, line_buffering=replaced.line_buffering, write_through=through)

    def write(self, text: str, /) -> int:
        """Write; raises invoke.Exit on failure."""
        with self._reporting():
            return super().write(text)

    def flush(self) -> None:
        """Flush; raises as `write` does."""
        with self._reporting():
            super().flush()

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        # Also for what invoke prints outside of tasks (`--list`).
        try:
            yield
        except BrokenPipeError:
            give_up()
            self.refusal = ReaderGoneError()
            raise self.refusal from None
        except OSError as err:
            give_up()
            if self.refusal is None:  # reported now: Python drops errors of its flush at exit
                reason = os_error_reason(err)
                sys.stderr.write(f"error: cannot write to standard output: {reason}\n")
                sys.stderr.write("hint: free some space, or redirect it elsewhere\n")
            self.refusal = invoke.Exit(code=ArtifactError.exit_code)
            raise self.refusal from err


def _end(output: _Output) -> None:
    """Flush what `invoke` has printed outside of tasks."""
    with contextlib.suppress(invoke.Exit):
        output.flush()
    if output.refusal is not None:
        sys.stderr.flush()
        os._exit(output.refusal.code)  # too late for an exception


def _open_nowhere(number: int) -> None:
    try:
        os.fstat(number)
    except OSError:
        opened = os.open(os.devnull, os.O_RDWR)
        if opened != number:
            os.dup2(opened, number)
            os.close(opened)


def can_show(text: str) -> bool:
    """Return whether standard output's encoding has every character of `text`."""
    try:
        text.encode(results().encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def give_up() -> None:
    """Drop unwritten output, or Python reports the error again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), results().fileno())


def finish(run: Callable[[], None]) -> NoReturn:
    """Run a program and exit with its code, with a message if standard output fails.

    invoke's own help texts and lists are printed outside of any task.
    """
    code: str | int | None = 0
    try:
        try:
            run()
        except SystemExit as ended:
            code = ended.code
        sys.stdout.flush()
    except invoke.Exit as refused:
        if refused.message:
            sys.stderr.write(f"{refused.message}\n")
        code = refused.code
    sys.exit(code)
