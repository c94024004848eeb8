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

from yolotrt_core.console.text import wrapped

# Reentrant, because a hook of a plugin may itself build.
_stdout_lock = threading.RLock()
_is_away = False


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
    for other in root.handlers:
        # What a plugin set up at its import, with `basicConfig` or by logging a line, would say it all again.
        stream = getattr(other, "stream", None)
        if stream is not None and stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
            other.addFilter(_others)
    for handler in root.handlers:
        if isinstance(handler, _ToStderr):
            handler.setLevel(level)
            return
    handler = _ToStderr(level)
    handler.addFilter(_ours)
    root.addHandler(handler)
    root.setLevel(level)


def _ours(record: logging.LogRecord) -> bool:
    """Say what is shown: frameworks log a lot that is not for our users; it is in the stage's log."""
    return record.name.startswith("yolotrt") or record.levelno >= logging.ERROR


def _others(record: logging.LogRecord) -> bool:
    return not _ours(record)


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
def stdout_aside() -> Iterator[None]:
    """Send to standard error what plugins print while they are imported or asked, native code included.

    Inside a stage the stage's log takes it already.
    """
    with contextlib.ExitStack() as undo:
        if _stdout_lock.acquire(blocking=False):
            undo.callback(_stdout_lock.release)
            if not _is_away:
                undo.enter_context(contextlib.redirect_stdout(sys.stderr))
                with contextlib.suppress(OSError):  # one of the two is closed: nothing can be spoilt
                    undo.enter_context(_descriptor_to(2))
        yield


@contextlib.contextmanager
def _descriptor_to(descriptor: int) -> Iterator[None]:
    """Let descriptor 1 be another one during the block."""
    global _is_away
    _flush()
    saved = os.dup(1)
    try:
        os.dup2(descriptor, 1)
        before, _is_away = _is_away, True
        try:
            yield
        finally:
            _is_away = before
            _flush()
    finally:
        os.dup2(saved, 1)
        os.close(saved)


@contextlib.contextmanager
def _stdout_to(stream: IO[str]) -> Iterator[None]:
    with _stdout_lock, contextlib.redirect_stdout(stream), _descriptor_to(stream.fileno()):
        try:
            yield
        finally:
            stream.flush()


def _flush() -> None:
    if sys.__stdout__ is not None:
        sys.__stdout__.flush()
