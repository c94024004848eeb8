"""Ctrl-C and SIGTERM: noticed by a flag where an exception would be swallowed or would lose what is there."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM, as systemd and docker end a process: all that cleans up after Ctrl-C does so after it."""


class Interrupt:
    """Tells whether the user asked to stop; native callbacks poll `requested`."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._kind: type[KeyboardInterrupt] = KeyboardInterrupt

    @property
    def requested(self) -> bool:
        return self._event.is_set()

    @property
    def terminated(self) -> bool:
        """Whether it was SIGTERM that asked."""
        return self._kind is Terminated

    def request(self, number: int = signal.SIGINT) -> None:
        if number == signal.SIGTERM:
            self._kind = Terminated
        self._event.set()

    def error(self) -> KeyboardInterrupt:
        """Return what to raise for the signal that came."""
        return self._kind()


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Collect SIGINT in an `Interrupt` for the block, then raise KeyboardInterrupt once.

    A second Ctrl-C acts at once. Outside the main thread signals cannot be handled: the flag
    then stays unset unless somebody calls `request`. SIGTERM is collected within `terminable`.
    """
    interrupt = Interrupt()
    try:
        with _collected(interrupt):
            yield interrupt
    finally:
        if interrupt.requested:
            raise interrupt.error()


@contextmanager
def endable() -> Iterator[Interrupt]:
    """Collect signals as `interruptible` does, for work that ends when asked and keeps what it has.

    SIGTERM is raised after a block that ended well, since whoever sent it wants to read that it worked.
    """
    interrupt = Interrupt()
    with _collected(interrupt):
        yield interrupt
    if interrupt.terminated:
        raise interrupt.error()


@contextmanager
def terminable() -> Iterator[None]:
    """Raise `Terminated` for SIGTERM during the block, unless the program around it handles the signal already."""
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
def _collected(interrupt: Interrupt) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if not callable(before[signal.SIGTERM]):  # nobody would clean up after it: it ends the process, as it did
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
