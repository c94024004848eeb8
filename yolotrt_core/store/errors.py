"""Errors of the artifact store."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from yolotrt_core.errors import ArtifactError, os_error_reason

ELSEWHERE = "choose another store with `--store DIR` or the variable YOLOTRT_STORE"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_READ_ONLY = (errno.EROFS,)
_MIN_FREE_BYTES = 64 << 10  # with less, the disk counts as full
_DENIED = (errno.EACCES, errno.EPERM)


class MissingArtifactError(ArtifactError):
    """A stored file is missing: deleted by gc in another process, or by hand."""


class CorruptedArtifactError(ArtifactError):
    """The digest of a stored file does not match."""


class ReadOnlyStoreError(ArtifactError):
    """The store is read-only or belongs to another user."""


class RefusedRowError(ArtifactError):
    """A row of the database that was not written by the store."""


def error_from_os(root: Path, err: OSError) -> ArtifactError:
    """Convert an operating-system error to an error of the store at `root`."""
    reason = os_error_reason(err)
    at = f" at `{err.filename}`" if err.filename and str(err.filename) != str(root) else ""
    if err.errno in _FULL:
        return _full(root)
    if err.errno in _READ_ONLY:
        return _read_only(root)
    if err.errno in _DENIED:
        return ReadOnlyStoreError(f"no permission to access the store `{root}`{at}: {reason}", hint=ELSEWHERE)
    if err.errno in (errno.ENOTDIR, errno.EEXIST):
        return ArtifactError(f"the store `{root}` is not a folder: {reason}{at}", hint=ELSEWHERE)
    if err.errno == errno.EIO:
        return ArtifactError(f"the disk of the store `{root}` failed: {reason}{at}", hint=ELSEWHERE)
    return ArtifactError(f"cannot use the store `{root}`: {reason}{at}", hint=ELSEWHERE)


def error_from_sqlite(root: Path, err: BaseException) -> ArtifactError:
    """Convert a database error to an error of the store at `root`."""
    text = str(err).lower()
    if "disk is full" in text or (("i/o" in text or "unable to open" in text) and is_full(root)):
        return _full(root)
    if "readonly" in text:
        return _read_only(root)
    if "malformed" in text or "not a database" in text:
        hint = f"delete `{root / 'cache'}`, everything in it can be rebuilt; or {ELSEWHERE}"
        return ArtifactError(f"the database of the store `{root}` is corrupted: {text}", hint=hint)
    if "locked" in text:
        hint = f"wait for the other process; on a network disk, {ELSEWHERE}"
        return ArtifactError(f"the database of the store `{root}` is locked by another process", hint=hint)
    return ArtifactError(f"cannot use the database of the store `{root}`: {text}", hint=ELSEWHERE)


def disk_error(root: Path, err: BaseException) -> ArtifactError | None:
    """Return the error to report if a full or read-only disk made a stage fail, else None.

    Frameworks often hide the system error, so a full disk counts as the reason, too.
    """
    seen: BaseException | None = err
    before: set[int] = set()  # an error of a plugin may be its own cause
    while seen is not None and id(seen) not in before:
        before.add(id(seen))
        if isinstance(seen, OSError) and seen.errno in (*_FULL, *_READ_ONLY):
            inside = seen.filename is None or Path(os.fsdecode(seen.filename)).is_relative_to(root)
            if inside and (seen.errno in _READ_ONLY or is_full(root)):
                return error_from_os(root, seen)
            at = f" at `{os.fsdecode(seen.filename)}`" if seen.filename else ""
            hint = "free space there, or set TMPDIR to move temporary files"
            return ArtifactError(f"cannot write{at}: {os_error_reason(seen)}", hint=hint)
        seen = seen.__cause__ or seen.__context__
    return _full(root) if is_full(root) else None


def is_full(root: Path, minimum: int = _MIN_FREE_BYTES) -> bool:
    """Return whether the disk of a store has less than `minimum` bytes free; False if unknown."""
    try:
        disk = os.statvfs(root)
    except OSError:
        return False
    free = disk.f_bfree if os.geteuid() == 0 else disk.f_bavail
    return free * disk.f_frsize < minimum


def _full(root: Path) -> ArtifactError:
    hint = f"free space, for instance with `artifacts.gc`, or {ELSEWHERE}"
    return ArtifactError(f"no space left for the store `{root}`", hint=hint)


def _read_only(root: Path) -> ReadOnlyStoreError:
    return ReadOnlyStoreError(f"the store `{root}` is read-only", hint=ELSEWHERE)
