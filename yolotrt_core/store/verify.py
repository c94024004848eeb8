"""Verification of the whole store, and removal of corrupted entries."""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from yolotrt_core.console.progress import Bar, progress
from yolotrt_core.errors import ArtifactError
from yolotrt_core.store.action import Record, UnknownSchemaError, is_sha256, record_bytes, record_from_bytes
from yolotrt_core.store.database import Database
from yolotrt_core.store.errors import RefusedRowError, error_from_sqlite
from yolotrt_core.store.locks import COMMIT, try_lock
from yolotrt_core.store.names import ACTION, BLOB, REF, SIDE
from yolotrt_core.store.side_cache import is_side_intact

if TYPE_CHECKING:
    from yolotrt_core.store.bytes_cache import ByteCache

log = logging.getLogger(__name__)

_CHUNK_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Damage:
    """One corrupted entry of the store.

    Attributes:
        kind: kind of entry. name: its database key, or the number of a row. problem: description.
    """

    kind: Literal["record", "blob", "ref", "side", "row", "database"]
    name: str
    problem: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """Result of a verification.

    Attributes:
        size: bytes of the files read. orphans: harmless files left by killed writers.
    """

    records: int = 0
    blobs: int = 0
    size: int = 0
    orphans: int = 0
    damage: tuple[Damage, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.damage


def verify_database(database: Database) -> VerifyReport:
    """Compare the whole store with its digests; see `Store.verify`."""
    with database.reporting():
        cache = database.reading()
        return check(cache) if cache is not None else VerifyReport()


def repair_database(database: Database) -> VerifyReport:
    """Delete corrupted entries and leftovers of killed processes; see `Store.repair`."""
    with database.reporting():
        if not database.exists():
            return VerifyReport()
    with database.writing() as cache:
        for path in sorted(database.locks_folder.glob("*.lock")):
            if path.stem == COMMIT:
                continue
            # Locks are released at once: each takes a file descriptor, and there is one per artifact ever built. A
            # build that starts afterwards is safe: its commit waits for the lock held here, and missing inputs are
            # rebuilt.
            with try_lock(database.locks_folder, path.stem) as free:
                if not free:
                    hint = "repair while no build is running"
                    raise ArtifactError(f"{path.stem[:12]} is being built by another process", hint=hint)
        report = check(cache)
        for damage in report.damage:
            if damage.kind == "row":
                cache.drop_row(int(damage.name))
            elif damage.kind == "database":
                raise error_from_sqlite(database.root, sqlite3.DatabaseError(f"malformed: {damage.problem}"))
            else:
                cache.delete(damage.name)
        cache.sweep()
        if foreign := cache.foreign_files():
            # diskcache's check would delete them.
            more = f" and {len(foreign) - 1} more" if foreign[1:] else ""
            log.warning("skipped foreign files in the store: `%s`%s", foreign[0], more)
            return report
        with warnings.catch_warnings():
            # diskcache reports its fixes by warnings, which the report contains already.
            warnings.simplefilter("always")
            for found in cache.check(fix=True):
                log.debug("fixed: %s", found.message)
        return report


def check(cache: ByteCache) -> VerifyReport:
    """Compare all entries of a cache with their digests."""
    damage = [Damage("database", "cache.db", text) for text in cache.integrity_problems()]
    bad_rows = cache.bad_rows((ACTION, BLOB, REF, SIDE))
    damage += [Damage("row", str(row.rowid), f"{row.problem} (key {row.key[:40]!r})") for row in bad_rows]
    skipped = {row.key for row in bad_rows}
    records, bad_records = _read_records(cache, skipped)
    names = [name for name in cache.keys(BLOB) if name not in skipped]
    bad_blobs: dict[str, str] = {}
    size = 0
    with progress("verifying artifacts", total=sum(cache.size_of(name) for name in names) or None) as bar:
        for name in names:
            read, problem = _check_blob(cache, name, size, bar)
            size += read
            if problem:
                bad_blobs[name] = problem
    damage += [Damage("blob", name, problem) for name, problem in bad_blobs.items()]
    damage += bad_records
    good = {name.removeprefix(BLOB) for name in names} - {name.removeprefix(BLOB) for name in bad_blobs}
    for record in records:
        lost = [name for name, blob in record.outputs.items() if blob.sha256 not in good]
        # The record may have been deleted or replaced by gc or a build in the meantime.
        if lost and cache.get(ACTION + record.key) == record_bytes(record):
            damage.append(Damage("record", ACTION + record.key, f"its output `{lost[0]}` is missing or corrupted"))
    damage += _check_small(cache, skipped)
    return VerifyReport(len(records), len(names), size, len(cache.orphans()), tuple(damage))


def _read_records(cache: ByteCache, skipped: set[str]) -> tuple[list[Record], list[Damage]]:
    records, damage = [], []
    for name in cache.keys(ACTION):
        if name in skipped:
            continue
        try:
            records.append(record_from_bytes(name.removeprefix(ACTION), cache.get(name) or b""))
        except UnknownSchemaError as err:
            log.warning("the record %s %s: not verified", name.removeprefix(ACTION)[:12], err)
        except (RefusedRowError, ValueError) as err:
            damage.append(Damage("record", name, str(err)))
    return records, damage


def _check_blob(cache: ByteCache, name: str, done: int, bar: Bar) -> tuple[int, str]:
    """Return the size of a file, and its problem or an empty string."""
    digest = hashlib.sha256()
    size = 0
    try:
        with cache.read(name) as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
                bar.update(completed=done + size)
    except KeyError:
        # gc may have deleted the file in the meantime, and then its row, too.
        return 0, "its file is missing" if name in cache else ""
    except (OSError, RefusedRowError) as err:
        return size, f"cannot be read: {err}"
    return size, "" if digest.hexdigest() == name.removeprefix(BLOB) else "its digest does not match"


def _check_small(cache: ByteCache, skipped: set[str]) -> list[Damage]:
    damage = []
    for name in cache.keys(REF):
        if name not in skipped and not is_sha256((cache.get(name) or b"").decode("ascii", "replace")):
            damage.append(Damage("ref", name, "it is not a key"))
    for name in cache.keys(SIDE):
        if name not in skipped and not is_side_intact(cache.get(name) or b""):
            damage.append(Damage("side", name, "its digest does not match"))
    return damage
