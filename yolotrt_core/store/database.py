"""Database of a store: records, content-addressed files, and names."""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING

from yolotrt_core.errors import ArtifactError, UsageError, os_error_reason
from yolotrt_core.files.atomic import atomic_path
from yolotrt_core.files.digest import sha256_of
from yolotrt_core.files.paths import user_path
from yolotrt_core.store.action import Record, UnknownSchemaError, is_name, is_sha256, record_from_bytes
from yolotrt_core.store.errors import (
    CorruptedArtifactError,
    MissingArtifactError,
    ReadOnlyStoreError,
    RefusedRowError,
    error_from_os,
    error_from_sqlite,
)
from yolotrt_core.store.locks import COMMIT, locked
from yolotrt_core.store.names import ACTION, BLOB, CACHE, LOCKS, REF, WORK

if TYPE_CHECKING:
    from yolotrt_core.store.bytes_cache import ByteCache, ReadingCache

log = logging.getLogger(__name__)

_CHUNK_BYTES = 4 << 20
_SHOWN_KEYS = 4


class Database:
    """Records by key, files by content, and names.

    The constructor does not access the disk. Reading needs no write access. Every method may raise
    `ArtifactError` if the disk or database fails.

    Args:
        root: the store's folder, created at the first write.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(os.path.abspath(user_path(root)))  # noqa: PTH100 - `resolve` would read the disk
        self._guard = threading.Lock()
        self._opened: tuple[tuple[int, int, int], ReadingCache] | None = None

    @property
    def cache_folder(self) -> Path:
        return self.root / CACHE

    @property
    def locks_folder(self) -> Path:
        return self.root / LOCKS

    @property
    def work_folder(self) -> Path:
        return self.root / WORK

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Convert operating-system and database errors of the block to `ArtifactError`."""
        try:
            yield
        except OSError as err:
            raise error_from_os(self.root, err) from err
        except sqlite3.Error as err:
            raise error_from_sqlite(self.root, err) from err

    def find(self, key: str) -> Record | None:
        """Return the record of a key if it is readable and all its files are present.

        File contents are checked by `obtain(verify=True)`, `copy_out` and `read` only.
        """
        with self.reporting():
            cache = self.reading()
            if cache is None:
                return None
            record = load_record(cache, key)
            if record is None or not all(_present(cache, b.sha256, b.size) for b in record.outputs.values()):
                return None
            return record

    def copy_out(self, sha256: str, destination: Path) -> None:
        """Copy a stored file to `destination` atomically and verify its digest.

        Raises:
            MissingArtifactError: the file is not in the store. CorruptedArtifactError: the digest
                does not match; `obtain(verify=True)` rebuilds it.
        """
        with self._open_blob(sha256) as file:
            digest = hashlib.sha256()
            try:
                with atomic_path(destination) as partial:
                    with partial.open("xb") as out:
                        while chunk := file.read(_CHUNK_BYTES):
                            digest.update(chunk)
                            out.write(chunk)
                    if digest.hexdigest() != sha256:
                        raise self._corrupted(sha256)
            except OSError as err:
                raise _copy_failed(sha256, destination, err) from err

    def export_file(self, sha256: str, path: Path) -> None:
        """Copy a stored file to a path of the user's, unless it has the same content already.

        Raises:
            ArtifactError: the path cannot be written.
        """
        try:
            if path.is_file() and sha256_of(path) == sha256:
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            self.copy_out(sha256, path)
        except OSError as err:
            hint = "choose another folder with `--out`"
            raise ArtifactError(f"cannot write `{path}`: {os_error_reason(err)}", hint=hint) from err

    def read(self, sha256: str) -> bytes:
        """Return the verified content of a small stored file.

        Raises:
            MissingArtifactError, CorruptedArtifactError: as `copy_out`.
        """
        with self._open_blob(sha256) as file, self.reporting():
            data = file.read()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise self._corrupted(sha256)
        return data

    def is_intact(self, sha256: str) -> bool:
        """Return whether a stored file exists and matches its digest."""
        try:
            with self._open_blob(sha256) as file, self.reporting():
                return hashlib.file_digest(file, "sha256").hexdigest() == sha256
        except MissingArtifactError:
            return False

    def records(self) -> Iterator[Record]:
        """Yield every readable record, ordered by key."""
        with self.reporting():
            cache = self.reading()
            keys = cache.keys(ACTION) if cache is not None else []
        for name in keys:
            with self.reporting():
                record = load_record(cache, name.removeprefix(ACTION)) if cache is not None else None
            if record is not None:
                yield record

    def resolve(self, name_or_key: str) -> Record:
        """Return the record with this name or key prefix.

        Raises:
            UsageError: no record or several records match.
        """
        prefix = self.refs().get(name_or_key, name_or_key).lower()
        found = [record for record in self.records() if record.key.startswith(prefix)] if prefix else []
        if len(found) == 1:
            return found[0]
        hint = "`artifacts.list` shows keys and names"
        if not found:
            raise UsageError(f"no artifact with the name or key prefix `{name_or_key}`", hint=hint)
        some = ", ".join(f"`{record.key[:12]}`" for record in found[:_SHOWN_KEYS])
        more = f" and {len(found) - _SHOWN_KEYS} more" if found[_SHOWN_KEYS:] else ""
        raise UsageError(f"{len(found)} artifacts match the key prefix `{name_or_key}`: {some}{more}", hint=hint)

    def set_ref(self, name: str, key: str) -> None:
        """Name a record, which protects it and its inputs from `gc`.

        Raises:
            UsageError: an incomplete key, or a name invalid by `is_name`.
        """
        if not is_name(name) or not is_sha256(key):
            raise UsageError(f"expected a valid name and a complete key, found {name!a} and `{key}`")
        if self.refs().get(name) == key:
            return
        try:
            with self.writing() as cache:
                cache.set(REF + name, key.encode())
        except ReadOnlyStoreError as err:
            # A user without write access cannot run gc either, so the name is not needed.
            log.debug("cannot name %s `%s`: %s", key[:12], name, err)

    def remove_ref(self, name: str) -> None:
        """Remove a name if it exists."""
        if name in self.refs():
            with self.writing() as cache:
                cache.delete(REF + name)

    def refs(self) -> dict[str, str]:
        """Return the key of each name."""
        with self.reporting():
            cache = self.reading()
            return read_refs(cache) if cache is not None else {}

    def close(self) -> None:
        """Close the database; the next access reopens it."""
        with self._guard:
            if self._opened is not None:
                self._opened[1].close()
                self._opened = None

    def reading(self) -> ReadingCache | None:
        """Return the cache for reading, or None if it does not exist."""
        database = self.cache_folder / "cache.db"
        try:
            at = database.stat()
        except FileNotFoundError:
            return None
        identity = (at.st_dev, at.st_ino, at.st_mtime_ns)
        with self._guard:
            # The folder may have been recreated, which a read-only connection does not notice.
            if self._opened is None or self._opened[0] != identity:
                from yolotrt_core.store.bytes_cache import ReadingCache

                cache = ReadingCache(self.cache_folder)
                if not cache.has_tables():
                    return None
                self._opened = (identity, cache)
            return self._opened[1]

    @contextmanager
    def writing(self) -> Iterator[ByteCache]:
        """Open the cache for writing, exclusively."""
        import diskcache

        from yolotrt_core.store.bytes_cache import ByteCache

        with self.reporting():
            self.make_folders()
            with locked(self.locks_folder, COMMIT, lambda: "another process writing to the store"):
                cache = ByteCache(self.cache_folder)
                try:
                    yield cache
                except diskcache.Timeout as err:
                    # diskcache hides SQLite's message.
                    raise error_from_sqlite(self.root, err.__context__ or err) from err
                finally:
                    cache.close()

    def exists(self) -> bool:
        """Return whether the store was ever written."""
        return self.cache_folder.is_dir() or self.work_folder.is_dir()

    def make_folders(self) -> None:
        """Create missing folders of the store, private to the user."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (self.cache_folder, self.locks_folder, self.work_folder):
            folder.mkdir(mode=0o700, exist_ok=True)

    @contextmanager
    def _open_blob(self, sha256: str) -> Iterator[BufferedReader]:
        with self.reporting():
            cache = self.reading()
            try:
                file = cache.read(BLOB + sha256) if cache is not None else None
            except KeyError:
                file = None
        if file is None:
            raise MissingArtifactError(
                f"the file {sha256[:12]} is missing in the store `{self.root}`", hint="run the build again"
            )
        with file:
            yield file

    def _corrupted(self, sha256: str) -> CorruptedArtifactError:
        return CorruptedArtifactError(
            f"the stored file {sha256[:12]} in `{self.root}` is corrupted: its digest does not match",
            hint="list corrupted files with `artifacts.verify`, or rebuild with `--force`",
        )


def load_record(cache: ByteCache, key: str) -> Record | None:
    """Return a record; None with a warning if it is invalid."""
    try:
        data = cache.get(ACTION + key)
        return None if data is None else record_from_bytes(key, data)
    except UnknownSchemaError as err:
        log.debug("record %s %s", key[:12], err)
    except (RefusedRowError, ValueError) as err:
        log.warning("ignoring the corrupted record %s: %s", key[:12], err)
    return None


def read_refs(cache: ByteCache) -> dict[str, str]:
    """Return the key of each name; corrupted entries are skipped."""
    refs = {}
    for name in cache.keys(REF):
        try:
            key = (cache.get(name) or b"").decode("ascii", "replace")
        except RefusedRowError:
            continue
        if is_sha256(key):
            refs[name.removeprefix(REF)] = key
    return refs


def _present(cache: ByteCache, sha256: str, size: int) -> bool:
    try:
        with cache.read(BLOB + sha256) as file:
            return os.fstat(file.fileno()).st_size == size
    except (KeyError, RefusedRowError):
        return False


def _copy_failed(sha256: str, destination: Path, err: OSError) -> ArtifactError:
    reason = os_error_reason(err)
    return ArtifactError(
        f"cannot copy the file {sha256[:12]} to `{destination}`: {reason}",
        hint="choose another folder with `--out DIR`",
    )
