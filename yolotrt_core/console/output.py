"""Descriptors 1 and 2 of the process, which only the command line redirects.

A program that uses yolotrt as a library has other threads that write there: for it nothing here does anything.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import IO

_is_command_line = False


def take_over() -> int:
    """Let descriptor 1 be standard error until the process ends, for native code and plugins that print.

    Returns:
        A descriptor of standard output, for results; child processes do not inherit it.
    """
    global _is_command_line
    results = os.dup(1)
    os.dup2(2, 1)
    _is_command_line = True
    return results


def is_command_line() -> bool:
    """Return whether this process is one of our commands, whose standard output is ours."""
    return _is_command_line


@contextlib.contextmanager
def native_output_to(target: int, *descriptors: int) -> Iterator[None]:
    """Let some of the descriptors 1 and 2 be another one during the block; in the command line only."""
    if not _is_command_line:
        yield
        return
    with contextlib.ExitStack() as undo:
        for descriptor in descriptors:
            saved = os.dup(descriptor)
            undo.callback(os.close, saved)
            undo.callback(os.dup2, saved, descriptor)
            os.dup2(target, descriptor)
        yield


@contextlib.contextmanager
def printed_to(file: IO[str]) -> Iterator[None]:
    """Send what Python and native code print during the block to a file; in the command line only."""
    if not _is_command_line:
        yield
        return
    with contextlib.redirect_stdout(file), native_output_to(file.fileno(), 1):
        try:
            yield
        finally:
            file.flush()
