"""Ctrl-C while native code runs: noticed by a flag, because libraries swallow the exception."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupt:
    """Tells whether the user asked to stop; native callbacks poll `requested`."""

    def __init__(self) -> None:
        self._event = threading.Event()

    @property
    def requested(self) -> bool:
        return self._event.is_set()

    def request(self) -> None:
        self._event.set()


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Collect SIGINT in an `Interrupt` for the block, then raise KeyboardInterrupt once.

    A second Ctrl-C acts at once. Outside the main thread signals cannot be handled: the flag
    then stays unset unless somebody calls `request`.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    previous = signal.getsignal(signal.SIGINT)

    def handle(number: int, frame: FrameType | None) -> None:
        if interrupt.requested and callable(previous):
            previous(number, frame)
        interrupt.request()

    signal.signal(signal.SIGINT, handle)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, previous)
        if interrupt.requested:
            raise KeyboardInterrupt
