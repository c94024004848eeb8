"""Files of the user's, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """Give a path beside `target` to write to, which takes its place at the end of the block.

    If the block fails, neither it nor a part of it stays. Each writer has a path of its own: of several, the last
    to finish wins. The ending is kept, since libraries choose the format by it; the rest of the name is not, since
    more could be too long for the disk. Not from `tempfile`: its files are private whatever the user's mask says.
    """
    partial = target.with_name(f".partial-{os.urandom(6).hex()}{target.suffix}")
    try:
        yield partial
        partial.replace(target)
    finally:
        with suppress(OSError):  # what failed before it is what matters
            partial.unlink(missing_ok=True)


def write_whole(target: Path, content: bytes | str) -> None:
    """Write a file at once; text as UTF-8."""
    with whole_file(target) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
