"""Files and database rows of the store: a diskcache that accepts bytes only.

diskcache's own `Disk` and `JSONDisk` unpickle rows (CVE-2025-69872), so a writable database means code
execution. Here a row holds bytes or the name of a file of bytes; anything else is refused.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import diskcache
from diskcache.core import DBNAME, DEFAULT_SETTINGS, ENOVAL, METADATA, MODE_BINARY, MODE_RAW, UNKNOWN

from yolotrt_core.store.errors import RefusedRowError

log = logging.getLogger(__name__)

CHUNK_BYTES = 4 << 20
_MIN_FILE_BYTES = 2**15  # smaller values are stored in the database; diskcache's default
# Names by `diskcache.Disk.filename`: 16 random bytes in hex, with two levels of folders.
_FILE_NAME = re.compile(r"[0-9a-f]{2}/[0-9a-f]{2}/[0-9a-f]{28}\.val")
# The defaults would evict artifacts beyond 1 GiB and map the database into memory,
# where a disk failure is a fatal signal instead of an error.
_SETTINGS = {
    "eviction_policy": "none",
    "cull_limit": 0,
    "size_limit": 2**62,
    "statistics": 0,
    "tag_index": 0,
    "sqlite_mmap_size": 0,
    "disk_min_file_size": _MIN_FILE_BYTES,
    "disk_pickle_protocol": 0,
}
_BUSY_SECONDS = 30.0


class BytesOnlyDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache has no type information
    """A diskcache disk with str keys and values of bytes or binary streams, without pickle."""

    def __init__(self, directory: str, min_file_size: int = 0, **_unknown: object) -> None:
        # diskcache passes every setting found in the database.
        super().__init__(directory, min_file_size=min_file_size)

    def put(self, key: object) -> tuple[str, bool]:
        """Return the database form of a key.

        Raises:
            TypeError: not a str.
        """
        if type(key) is not str:
            raise TypeError(f"keys are str, not {type(key).__name__}")
        return key, True

    def get(self, key: object, raw: object) -> str:
        """Return the key of a database row.

        Raises:
            RefusedRowError: the key was not written by this class.
        """
        if raw != 1 or type(key) is not str:
            raise RefusedRowError("a row of the store's database has a key that is not text")
        return key

    def store(self, value: Any, read: bool, key: object = UNKNOWN) -> tuple[int, int, str | None, Any]:
        """Write a value's file, if any; return (size, mode, file name, database value)."""
        if not read and type(value) is bytes and len(value) < self.min_file_size:
            return 0, MODE_RAW, None, sqlite3.Binary(value)
        name, path = self.filename(key, value)
        if read:
            return self._write_file(path, iter(lambda: value.read(CHUNK_BYTES), b"")), MODE_BINARY, name, None
        if type(value) is not bytes:
            raise TypeError(f"values are bytes or streams, not {type(value).__name__}")
        return self._write_file(path, iter((value,))), MODE_BINARY, name, None

    @staticmethod
    def _write_file(path: str, chunks: Iterator[bytes]) -> int:
        """Write a new file durably or not at all; return its size."""
        target = Path(path)
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        size = 0
        try:
            with target.open("xb") as file:
                for chunk in chunks:
                    if not isinstance(chunk, bytes):
                        raise TypeError(f"streams yield bytes, not {type(chunk).__name__}")
                    size += file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
                os.fchmod(file.fileno(), 0o444)
        except BaseException:  # raised again: remove the partial file
            target.unlink(missing_ok=True)
            raise
        return size

    def fetch(self, mode: object, filename: object, value: object, read: bool) -> bytes | BinaryIO:
        """Return the bytes of a row, or with `read` an open file.

        Raises:
            RefusedRowError: another mode, or a file outside the folder. OSError: the file is missing.
        """
        if mode == MODE_RAW and type(value) is bytes and not read:
            return value
        if mode != MODE_BINARY:
            raise RefusedRowError(f"a row of the store's database has the unsupported mode {mode!r}")
        path = self.path_of(filename)
        if read:
            return path.open("rb")
        return path.read_bytes()

    def path_of(self, filename: object) -> Path:
        """Return the full path of a row's file.

        Raises:
            RefusedRowError: the name is not one of the store's, or the path contains a link.
        """
        if not isinstance(filename, str) or not _FILE_NAME.fullmatch(filename):
            raise RefusedRowError(f"a row of the store's database refers to the foreign file {filename!r}")
        folder = os.path.realpath(self._directory)
        path = Path(folder, filename)
        if os.path.realpath(path) != str(path):
            raise RefusedRowError(f"the store's file `{path}` is a link")
        return path

    def remove(self, file_path: object) -> None:
        """Delete a row's file; names outside the folder are ignored."""
        try:
            path = self.path_of(file_path)
        except RefusedRowError as err:
            log.warning("%s; not deleted", err)
            return
        super().remove(str(path.relative_to(os.path.realpath(self._directory))))


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row not written by the store; `rowid` is its number in the database."""

    rowid: int
    key: str
    problem: str


class ByteCache(diskcache.Cache):  # type: ignore[misc]  # diskcache has no type information
    """A diskcache for reading and writing, with additional queries."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), timeout=_BUSY_SECONDS, disk=BytesOnlyDisk, **_SETTINGS)

    def reset(self, key: str, value: Any = ENOVAL, update: bool = True) -> Any:
        """Set one of diskcache's settings; unknown names are ignored.

        diskcache would turn every name in the database into an attribute and a PRAGMA.
        """
        if key not in DEFAULT_SETTINGS and key not in METADATA:
            return value
        return super().reset(key, value, update)

    def keys(self, prefix: str) -> list[str]:
        """Return the sorted keys that start with the ASCII string `prefix`; foreign rows are skipped."""
        last = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        query = "SELECT key FROM Cache WHERE raw = 1 AND typeof(key) = 'text' AND key >= ? AND key < ? ORDER BY key"
        return [key for (key,) in self._sql(query, (prefix, last)).fetchall()]

    def stored_at(self, key: str) -> float:
        """Return when a key was last set, in seconds since the epoch; 0 if it is missing."""
        rows = self._sql("SELECT store_time FROM Cache WHERE raw = 1 AND key = ?", (key,)).fetchall()
        return float(rows[0][0]) if rows and isinstance(rows[0][0], (int, float)) else 0.0

    def size_of(self, key: str) -> int:
        """Return the size of a key's file in bytes; 0 without a file."""
        with suppress(KeyError, OSError, RefusedRowError), self.read(key) as file:
            return os.fstat(file.fileno()).st_size
        return 0

    def integrity_problems(self) -> list[str]:
        """Return the problems SQLite reports for the database file."""
        found = [str(text) for (text,) in self._sql("PRAGMA quick_check").fetchall()]
        return [] if found == ["ok"] else found

    def bad_rows(self, prefixes: tuple[str, ...]) -> list[BadRow]:
        """Return the rows that `BytesOnlyDisk` refuses or whose key has no known prefix."""
        bad = []
        query = "SELECT rowid, key, raw, mode, filename, typeof(value) FROM Cache"
        for rowid, key, raw, mode, filename, kind in self._sql(query).fetchall():
            try:
                if not self._disk.get(key, raw).startswith(prefixes):
                    raise RefusedRowError("unknown kind of key")
                if mode != MODE_RAW or kind != "blob":
                    if mode != MODE_BINARY:
                        raise RefusedRowError(f"unsupported mode {mode!r} with a value of type {kind}")
                    self._disk.path_of(filename)
            except RefusedRowError as err:
                bad.append(BadRow(rowid, str(key), str(err)))
        return bad

    def drop_row(self, rowid: int) -> None:
        """Delete a row by its number, but not its file."""
        self._sql("DELETE FROM Cache WHERE rowid = ?", (rowid,))

    def orphans(self) -> list[Path]:
        """Return files without a row, left by killed writers; exact only while no process writes."""
        named = {name for (name,) in self._sql("SELECT filename FROM Cache WHERE filename IS NOT NULL").fetchall()}
        folder = Path(self.directory)
        found = (path for path in folder.glob("??/??/*.val") if not path.is_symlink())
        names = ((path, path.relative_to(folder).as_posix()) for path in found)
        return sorted(path for path, name in names if _FILE_NAME.fullmatch(name) and name not in named)

    def foreign_files(self) -> list[Path]:
        """Return files in the folder that belong neither to the store nor to the database."""
        folder = Path(self.directory)
        inside = ((path, path.relative_to(folder).as_posix()) for path in folder.rglob("*"))
        ours = re.compile(r"[0-9a-f]{2}(/[0-9a-f]{2})?")
        return sorted(
            path
            for path, name in inside
            if not (DBNAME in name or _FILE_NAME.fullmatch(name) or (path.is_dir() and ours.fullmatch(name)))
        )

    def sweep(self) -> tuple[int, int]:
        """Delete the orphans; return their number and size in bytes."""
        files, size = 0, 0
        for path in self.orphans():
            size += path.stat().st_size
            self._disk.remove(path.relative_to(self.directory).as_posix())
            files += 1
        return files, size


class ReadingCache(ByteCache):
    """A read-only `ByteCache`: opens fast, writes nothing, works on a read-only disk."""

    def __init__(self, folder: Path) -> None:
        # diskcache's constructor writes all settings, which takes time and needs a writable disk.
        self._directory = str(folder)
        self._timeout = _BUSY_SECONDS
        self._local = threading.local()
        self._txn_id = None
        self.eviction_policy = "none"
        self.statistics = 0
        self._disk = BytesOnlyDisk(str(folder), min_file_size=_MIN_FILE_BYTES)

    @property
    def _con(self) -> sqlite3.Connection:
        if getattr(self._local, "pid", None) != os.getpid():
            self.close()
            self._local.pid = os.getpid()
        con: sqlite3.Connection | None = getattr(self._local, "con", None)
        if con is None:
            con = self._local.con = _connect_for_reading(Path(self._directory, DBNAME))
        return con

    def has_tables(self) -> bool:
        """Return whether the database was created completely."""
        query = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'Cache'"
        return bool(self._sql(query).fetchall()[0][0])


def _connect_for_reading(database: Path) -> sqlite3.Connection:
    """Open the database; on a read-only or full disk without the shared files of WAL mode."""
    address = database.absolute().as_uri()
    ways = ["mode=rw", "mode=ro"]
    wal = database.with_name(database.name + "-wal")
    is_whole = not wal.exists() or not wal.stat().st_size
    if is_whole:
        ways.append("mode=ro&immutable=1")
    for way in ways:
        con = sqlite3.connect(f"{address}?{way}", uri=True, timeout=_BUSY_SECONDS, isolation_level=None)
        try:
            con.execute("SELECT count(*) FROM sqlite_master").fetchall()
        except sqlite3.OperationalError as err:
            con.close()
            # On a full disk creating the shared files fails with "disk I/O error" or "disk is full".
            if not any(message in str(err) for message in ("unable to open", "readonly", "disk")):
                raise
            if way == ways[-1]:
                reason = str(err) if is_whole else "open it once from a writable mount to merge its write-ahead log"
                raise sqlite3.OperationalError(reason) from err
        else:
            return con
    raise AssertionError("the last attempt either returns or raises")
