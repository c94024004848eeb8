"""Where messages go: one line each to standard error, everything to the log of the running stage."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from yolotrt_core.console import output
from yolotrt_core.console.text import wrapped


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

    Python's warnings become messages of their libraries, which are not shown, unless `-W` or PYTHONWARNINGS requests
    them.

    A program that uses yolotrt as a library configures logging as it likes and does not call this.
    """
    if not sys.warnoptions:
        warnings.showwarning = _log_warning
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


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    text = warnings.formatwarning(message, category, filename, lineno, line)
    logging.getLogger("py.warnings").warning("%s", text.rstrip())


def _ours(record: logging.LogRecord) -> bool:
    """Return whether a record is shown; messages of frameworks go to the log of the stage."""
    return record.name.startswith("yolotrt") or record.levelno >= logging.ERROR


def _others(record: logging.LogRecord) -> bool:
    return not _ours(record)


@contextlib.contextmanager
def stage_log(path: Path) -> Iterator[None]:
    """Collect in a file what yolotrt and its plugins log during the block.

    In the command line all of it from DEBUG on, and also what other libraries log, what is warned and what is printed.
    In a program that uses yolotrt as a library these, and the levels of our loggers, are the program's.
    """
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    with contextlib.ExitStack() as undo:
        undo.callback(handler.close)
        if not output.is_command_line():
            _add_handler(handler, _our_loggers(), undo)
            yield
            return
        _add_handler(handler, [logging.getLogger()], undo)
        for logger in _our_loggers():
            undo.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.DEBUG)
        logging.captureWarnings(True)
        undo.callback(logging.captureWarnings, False)
        # One line at a time: native code writes to the same file.
        stream = undo.enter_context(path.open("a", encoding="utf-8", buffering=1))
        undo.enter_context(output.printed_to(stream))
        yield


def _add_handler(handler: logging.Handler, loggers: list[logging.Logger], undo: contextlib.ExitStack) -> None:
    for logger in loggers:
        logger.addHandler(handler)
        undo.callback(logger.removeHandler, handler)


@contextlib.contextmanager
def only_in_stage_log(*loggers: str) -> Iterator[None]:
    """Show nothing of what these loggers of a framework say during the block, not even errors; for plugins.

    It changes what the command line shows, and nothing in a program that uses yolotrt as a library.
    """

    def is_another(record: logging.LogRecord) -> bool:
        return record.name.partition(".")[0] not in loggers

    shown = [handler for handler in logging.getLogger().handlers if isinstance(handler, _ToStderr)]
    for handler in shown:
        handler.addFilter(is_another)
    try:
        yield
    finally:
        for handler in shown:
            handler.removeFilter(is_another)


def _our_loggers() -> list[logging.Logger]:
    """Return the loggers of the core and of loaded plugins; modules that a stage imports later inherit from them."""
    names = {name for name in sys.modules if name.startswith("yolotrt") and "." not in name}
    return [logging.getLogger(name) for name in sorted(names)]
