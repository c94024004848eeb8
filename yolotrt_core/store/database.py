"""The database of a store: records, files by content, and names."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING

from yolotrt_core.errors import ArtifactError, UsageError, os_error_reason
from yolotrt_core.files.atomic import whole_file
from yolotrt_core.files.paths import user_path
from yolotrt_core.store.action import Record, UnknownSchemaError, is_name, is_sha256, record_from_bytes
from yolotrt_core.store.errors import (
    DamagedArtifactError,
    MissingArtifactError,
    ReadOnlyStoreError,
    RefusedRowError,
    error_from_sqlite,
    reporting,
)
from yolotrt_core.store.locks import COMMIT, locked
from yolotrt_core.store.names import ACTION, BLOB, CACHE, LOCKS, REF, WORK

if TYPE_CHECKING:
    from yolotrt_core.store.bytes_cache import ByteCache, ReadingCache

log = logging.getLogger(__name__)

_CHUNK_BYTES = 4 << 20
_SHOWN_KEYS = 4


class Database:
    """Reading and writing of a store: records by key, files by content, names.

    Constructing one touches no disk; reading needs no write access, so a read-only store serves
    what it holds. Every method may raise `ArtifactError` for a disk or database that fails.

    Args:
        root: the store's folder; made when something is first written.
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

    def find(self, key: str) -> Record | None:
        """Return the record of a key if it can be read and every file it names is present.

        The files' bytes are not read: `obtain(verify=True)`, `copy_out` and `read` do that.
        """
        with reporting(self.root):
            cache = self.reading()
            if cache is None:
                return None
            record = load_record(cache, key)
            if record is None or not all(_present(cache, b.sha256, b.size) for b in record.outputs.values()):
                return None
            return record

    def copy_out(self, sha256: str, destination: Path) -> None:
        """Copy a stored file to `destination`, whole or not at all, checking its bytes on the way.

        Raises:
            MissingArtifactError: no such file here (any more). DamagedArtifactError: its bytes are
                not those that were stored; `obtain(verify=True)` mends it.
        """
        with self._open_blob(sha256) as file:
            digest = hashlib.sha256()
            try:
                with whole_file(destination) as partial:
                    with partial.open("xb") as out:
                        while chunk := file.read(_CHUNK_BYTES):
                            digest.update(chunk)
                            out.write(chunk)
                    if digest.hexdigest() != sha256:
                        raise self._damaged(sha256)
            except OSError as err:
                raise _copy_failed(sha256, destination, err) from err

    def read(self, sha256: str) -> bytes:
        """Return the bytes of a small stored file, checked.

        Raises:
            MissingArtifactError, DamagedArtifactError: as `copy_out`.
        """
        with self._open_blob(sha256) as file, reporting(self.root):
            data = file.read()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise self._damaged(sha256)
        return data

    def is_intact(self, sha256: str) -> bool:
        """Say whether a stored file is there with the bytes that were put in."""
        try:
            with self._open_blob(sha256) as file, reporting(self.root):
                return hashlib.file_digest(file, "sha256").hexdigest() == sha256
        except MissingArtifactError:
            return False

    def records(self) -> Iterator[Record]:
        """Yield every record that can be read, in the order of their keys."""
        with reporting(self.root):
            cache = self.reading()
            keys = cache.keys(ACTION) if cache is not None else []
        for name in keys:
            with reporting(self.root):
                record = load_record(cache, name.removeprefix(ACTION)) if cache is not None else None
            if record is not None:
                yield record

    def resolve(self, wanted: str) -> Record:
        """Return the record that has a name, or whose key starts so.

        Raises:
            UsageError: none, or several keys do.
        """
        prefix = self.refs().get(wanted, wanted).lower()
        found = [record for record in self.records() if record.key.startswith(prefix)] if prefix else []
        if len(found) == 1:
            return found[0]
        hint = "`artifacts.list` shows keys and names"
        if not found:
            raise UsageError(f"no artifact has a key that starts with `{wanted}`, nor that name", hint=hint)
        some = ", ".join(f"`{record.key[:12]}`" for record in found[:_SHOWN_KEYS])
        more = f" and {len(found) - _SHOWN_KEYS} more" if found[_SHOWN_KEYS:] else ""
        raise UsageError(f"{len(found)} artifacts have keys that start with `{wanted}`: {some}{more}", hint=hint)

    def set_ref(self, name: str, key: str) -> None:
        """Give a record a name, which keeps it and all it was made from through `gc`.

        Raises:
            UsageError: not a whole key, or a name that `is_name` does not let through.
        """
        if not is_name(name) or not is_sha256(key):
            raise UsageError(f"a name and a whole key are needed, found {name!a} and `{key}`")
        if self.refs().get(name) == key:
            return
        try:
            with self.writing() as cache:
                cache.set(REF + name, key.encode())
        except ReadOnlyStoreError as err:
            # Whoever may not write may not collect either, so nothing is lost with the name.
            log.debug("cannot name %s `%s`: %s", key[:12], name, err)

    def remove_ref(self, name: str) -> None:
        """Take a name away; nothing happens if there is none."""
        if name in self.refs():
            with self.writing() as cache:
                cache.delete(REF + name)

    def refs(self) -> dict[str, str]:
        """Return every name and the key it stands for."""
        with reporting(self.root):
            cache = self.reading()
            return read_refs(cache) if cache is not None else {}

    def close(self) -> None:
        """Close the database; the store may be used again."""
        with self._guard:
            if self._opened is not None:
                self._opened[1].close()
                self._opened = None

    def reading(self) -> ReadingCache | None:
        """Return the cache for reading, or None while there is none."""
        database = self.cache_folder / "cache.db"
        try:
            at = database.stat()
        except FileNotFoundError:
            return None
        identity = (at.st_dev, at.st_ino, at.st_mtime_ns)
        with self._guard:
            # Somebody may have made the folder anew, and a read-only connection sees no change at all.
            if self._opened is None or self._opened[0] != identity:
                from yolotrt_core.store.bytes_cache import ReadingCache

                cache = ReadingCache(self.cache_folder)
                if not cache.has_tables():
                    return None
                self._opened = (identity, cache)
            return self._opened[1]

    @contextmanager
    def writing(self) -> Iterator[ByteCache]:
        """Hold the only right to change the cache, for a short time."""
        import diskcache

        from yolotrt_core.store.bytes_cache import ByteCache

        with reporting(self.root):
            self.make_folders()
            with locked(self.locks_folder, COMMIT, lambda: "another process that writes to the store"):
                cache = ByteCache(self.cache_folder)
                try:
                    yield cache
                except diskcache.Timeout as err:
                    # diskcache says only this, whatever SQLite had said.
                    raise error_from_sqlite(self.root, err.__context__ or err) from err
                finally:
                    cache.close()

    def exists(self) -> bool:
        """Say whether anything was ever written here."""
        return self.cache_folder.is_dir() or self.work_folder.is_dir()

    def make_folders(self) -> None:
        """Make the store's folders where they are missing; nobody else may look inside."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (self.cache_folder, self.locks_folder, self.work_folder):
            folder.mkdir(mode=0o700, exist_ok=True)

    @contextmanager
    def _open_blob(self, sha256: str) -> Iterator[BufferedReader]:
        with reporting(self.root):
            cache = self.reading()
            try:
                file = cache.read(BLOB + sha256) if cache is not None else None
            except KeyError:
                file = None
        if file is None:
            raise MissingArtifactError(
                f"the store `{self.root}` does not hold the file {sha256[:12]}", hint="run the build again"
            )
        with file:
            yield file

    def _damaged(self, sha256: str) -> DamagedArtifactError:
        return DamagedArtifactError(
            f"the stored file {sha256[:12]} in `{self.root}` is damaged: its bytes have changed",
            hint="`artifacts.verify` lists all damage; a build with `--force` makes it again",
        )


def load_record(cache: ByteCache, key: str) -> Record | None:
    """Return a record, or None, with a warning, if what is stored under its key is none."""
    try:
        data = cache.get(ACTION + key)
        return None if data is None else record_from_bytes(key, data)
    except UnknownSchemaError as err:
        log.debug("record %s %s", key[:12], err)
    except (RefusedRowError, ValueError) as err:
        log.warning("the record %s is damaged and counts as missing: %s", key[:12], err)
    return None


def read_refs(cache: ByteCache) -> dict[str, str]:
    """Return every name and the key it stands for, leaving out what is damaged."""
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
