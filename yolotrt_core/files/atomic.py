"""Atomic writes of user files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from yolotrt_core.errors import ArtifactError, os_error_reason


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


def refuse_unwritable(folder: Path) -> None:
    """Check that a folder, which may not exist yet, is writable; creates nothing.

    Raises:
        ArtifactError: a part of its path is not a folder, or not writable.
    """
    hint = "choose another folder with `--out`"
    try:
        place = next(p for p in (folder, *folder.absolute().parents) if p.exists() or p.is_symlink())
        if not place.is_dir():
            raise ArtifactError(f"cannot write to `{folder}`: `{place}` is not a folder", hint=hint)
        if not os.access(place, os.W_OK | os.X_OK):
            raise ArtifactError(f"cannot write to `{folder}`: `{place}` is not writable", hint=hint)
    except OSError as err:
        raise ArtifactError(f"cannot write to `{folder}`: {os_error_reason(err)}", hint=hint) from err


def write_atomic(target: Path, content: bytes | str) -> None:
    """Write a file atomically; text as UTF-8."""
    with atomic_path(target) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
