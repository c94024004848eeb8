"""Where messages go: one line each to standard error, everything to the log of the running stage."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from yolotrt_core.terminal import wrapped

_stdout_lock = threading.Lock()


class _ToStderr(logging.Handler):
    """Writes to whatever `sys.stderr` is at that moment, so that redirection works."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        with contextlib.suppress(OSError, ValueError):  # logging never raises: the reader may be gone
            sys.stderr.write(wrapped(f"{prefix}{text}", sys.stderr) + "\n")
            sys.stderr.flush()


def configure(level: int = logging.INFO) -> None:
    """Send yolotrt's own messages (core and plugins) to standard error; for the commands only.

    A program that uses yolotrt as a library configures logging as it likes and does not call this.
    """
    root = logging.getLogger()
    for handler in root.handlers:
        if isinstance(handler, _ToStderr):
            handler.setLevel(level)
            return
    handler = _ToStderr(level)
    # Frameworks log a lot that is not for our users; it is in the stage's log.
    handler.addFilter(lambda r: r.name.startswith("yolotrt") or r.levelno >= logging.ERROR)
    root.addHandler(handler)
    root.setLevel(level)


@contextlib.contextmanager
def stage_log(path: Path) -> Iterator[None]:
    """Collect in a file what is logged, warned or printed during the block.

    Standard output is redirected at the level of the file descriptor, because native libraries
    print there and standard output belongs to results.
    """
    root = logging.getLogger()
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    levels = {name: logging.getLogger(name).level for name in _our_loggers()}
    root.addHandler(handler)
    for name in levels:
        logging.getLogger(name).setLevel(logging.DEBUG)
    with warnings.catch_warnings():

        def note(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: object = None,
            line: object = None,
        ) -> None:
            logging.getLogger("py.warnings").warning("%s:%s: %s: %s", filename, lineno, category.__name__, message)

        warnings.showwarning = note
        try:
            with path.open("a", encoding="utf-8") as stream, _stdout_to(stream):
                yield
        finally:
            root.removeHandler(handler)
            handler.close()
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def _our_loggers() -> set[str]:
    roots = {name.split(".")[0] for name in logging.root.manager.loggerDict}
    return {name for name in roots if name.startswith("yolotrt")} | {"yolotrt_core"}


@contextlib.contextmanager
def _stdout_to(stream: IO[str]) -> Iterator[None]:
    with _stdout_lock, contextlib.redirect_stdout(stream):
        _flush()
        saved = os.dup(1)
        try:
            os.dup2(stream.fileno(), 1)
            yield
        finally:
            stream.flush()
            _flush()
            os.dup2(saved, 1)
            os.close(saved)


def _flush() -> None:
    if sys.__stdout__ is not None:
        sys.__stdout__.flush()
