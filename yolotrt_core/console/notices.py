"""Warnings that are given once per process, also from processes that decode images."""

from __future__ import annotations

import logging
from collections.abc import Callable

_log = logging.getLogger(__name__)
_given: set[str] = set()


def _show(text: str, key: str) -> None:
    _log.warning("%s", text)


_sink: Callable[[str, str], None] = _show


def warn_once(text: str, key: str = "") -> None:
    """Warn, unless a warning with this key (by default its text) was given before."""
    key = key or text
    if key not in _given:
        _given.add(key)
        _sink(text, key)


def collect_notices() -> list[tuple[str, str]]:
    """Let a worker process collect its warnings instead, as (text, key), for `warn_once` of its parent."""
    global _sink
    collected: list[tuple[str, str]] = []
    _sink = lambda text, key: collected.append((text, key))  # noqa: E731 - assigned to a variable of the module
    return collected
