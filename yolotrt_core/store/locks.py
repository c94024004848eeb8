"""Locks between processes: one per artifact, one for all changes of the cache."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from yolotrt_core.errors import ArtifactError
from yolotrt_core.store.errors import ELSEWHERE, error_from_os

log = logging.getLogger(__name__)

COMMIT = "commit"
_PATIENCE_SECONDS = 1.0  # a longer wait is reported to the user
_POLL_SECONDS = 0.02


@contextmanager
def locked(folder: Path, name: str, waiting_for: Callable[[], str]) -> Iterator[None]:
    """Hold the lock `name`; the system releases it if the process dies.

    Args:
        waiting_for: returns a description of the lock's holder; called after a second of waiting.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / f"{name}.lock")
    try:
        try:
            lock.acquire(timeout=_PATIENCE_SECONDS, poll_interval=_POLL_SECONDS)
        except Timeout:
            log.info("waiting for %s", waiting_for())
            lock.acquire(poll_interval=_POLL_SECONDS)
    except NotImplementedError as err:
        hint = f"use a local disk: {ELSEWHERE}"
        raise ArtifactError(f"the disk of `{folder}` does not support file locks", hint=hint) from err
    except OSError as err:
        raise error_from_os(folder.parent, err) from err
    try:
        yield
    finally:
        lock.release()


@contextmanager
def try_lock(folder: Path, name: str) -> Iterator[bool]:
    """Hold the lock `name` if it is free; yields whether it is held."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / f"{name}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
