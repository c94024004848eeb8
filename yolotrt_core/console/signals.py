"""Ctrl-C and SIGTERM as a flag, for code where an exception would be swallowed or lose results."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM, handled like Ctrl-C."""


class Interrupt:
    """Flag for an interrupt by the user; native callbacks poll `requested`."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._kind: type[KeyboardInterrupt] = KeyboardInterrupt

    @property
    def requested(self) -> bool:
        return self._event.is_set()

    @property
    def terminated(self) -> bool:
        """Whether the signal was SIGTERM."""
        return self._kind is Terminated

    def request(self, number: int = signal.SIGINT) -> None:
        if number == signal.SIGTERM:
            self._kind = Terminated
        self._event.set()

    def error(self) -> KeyboardInterrupt:
        """Return the exception for the received signal."""
        return self._kind()


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Collect SIGINT in an `Interrupt` for the block, then raise KeyboardInterrupt once.

    A second Ctrl-C acts at once. Outside the main thread signals cannot be handled: only `request`
    sets the flag then. SIGTERM is collected within `terminable`.
    """
    interrupt = Interrupt()
    try:
        with _collect_signals(interrupt):
            yield interrupt
    finally:
        if interrupt.requested:
            raise interrupt.error()


@contextmanager
def endable() -> Iterator[Interrupt]:
    """Collect signals like `interruptible`, for work that stops early and keeps its results.

    Only SIGTERM is raised after the block, for the exit code.
    """
    interrupt = Interrupt()
    with _collect_signals(interrupt):
        yield interrupt
    if interrupt.terminated:
        raise interrupt.error()


@contextmanager
def terminable() -> Iterator[None]:
    """Raise `Terminated` for SIGTERM during the block, unless the host program handles the signal."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def _collect_signals(interrupt: Interrupt) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if not callable(before[signal.SIGTERM]):  # the default action: ends the process at once
        del before[signal.SIGTERM]

    def handle(number: int, frame: FrameType | None) -> None:
        previous = before[signal.Signals(number)]
        if interrupt.requested and callable(previous):
            previous(number, frame)
        interrupt.request(number)

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
