"""Memory lent to NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable


class Lent:
    """Bytes that arrays may view; `given_back` is called when the last of them is gone, on whatever thread.

    Attributes:
        page_locked: whether a GPU copies from it by itself.
    """

    def __init__(self, address: int, size: int, given_back: Callable[[], object], *, page_locked: bool) -> None:
        self.page_locked = page_locked
        self._given_back = given_back
        self.__array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (address, False), "version": 3}

    def __del__(self) -> None:
        self._given_back()
