"""Files of the user's, written whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """Give a path beside `target` to write to, which takes its place at the end of the block.

    If the block fails, neither it nor a part of it stays. The ending is kept, since libraries
    choose the format by it.
    """
    partial = target.with_name(f".{target.stem}.partial{target.suffix}")
    try:
        yield partial
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(target: Path, content: bytes | str) -> None:
    """Write a file at once; text as UTF-8."""
    with whole_file(target) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
