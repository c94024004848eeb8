"""Atomic writes of user files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path next to `target` that replaces it at the end of the block.

    It is deleted if the block fails. Of several writers the last one wins. The path keeps the file suffix, by which
    libraries choose the format. Not from `tempfile`, which ignores the user's umask.
    """
    partial = target.with_name(f".partial-{os.urandom(6).hex()}{target.suffix}")
    try:
        yield partial
        partial.replace(target)
    finally:
        with suppress(OSError):  # the original error matters
            partial.unlink(missing_ok=True)


def write_atomic(target: Path, content: bytes | str) -> None:
    """Write a file atomically; text as UTF-8."""
    with atomic_path(target) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
