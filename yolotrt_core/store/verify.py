"""Reading the whole store against its digests, and removing what fails."""

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
from yolotrt_core.store.errors import RefusedRowError, error_from_sqlite, reporting
from yolotrt_core.store.locks import COMMIT, tried
from yolotrt_core.store.names import ACTION, BLOB, REF, SIDE
from yolotrt_core.store.side_cache import is_side_intact

if TYPE_CHECKING:
    from yolotrt_core.store.bytes_cache import ByteCache

log = logging.getLogger(__name__)

_CHUNK_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing in the store that is not as it was put in.

    Attributes:
        kind: what it is. name: its key in the database, for a row its number. problem: in words.
    """

    kind: Literal["record", "blob", "ref", "side", "row", "database"]
    name: str
    problem: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was read and what was wrong with it.

    Attributes:
        size: bytes of the files read. orphans: files left by killed writers, harmless.
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
    """Read everything and compare it with its digests; see `Store.verify`."""
    with reporting(database.root):
        cache = database.reading()
        return check(cache) if cache is not None else VerifyReport()


def repair_database(database: Database) -> VerifyReport:
    """Delete what is damaged and what killed processes left; see `Store.repair`."""
    with reporting(database.root):
        if not database.exists():
            return VerifyReport()
    with database.writing() as cache:
        for path in sorted(database.locks_folder.glob("*.lock")):
            if path.stem == COMMIT:
                continue
            # None stays held, since each takes a file descriptor and there is one for every artifact ever made. A
            # build that takes its lock once it was tried harms nothing: what it writes into the cache has to wait for
            # the commit lock, which is held here, and an input that vanishes under it is made again.
            with tried(database.locks_folder, path.stem) as free:
                if not free:
                    hint = "repair when no build runs"
                    raise ArtifactError(f"{path.stem[:12]} is being made in the store", hint=hint)
        report = check(cache)
        for damage in report.damage:
            if damage.kind == "row":
                cache.drop_row(int(damage.name))
            elif damage.kind == "database":
                raise error_from_sqlite(database.root, sqlite3.DatabaseError(f"malformed: {damage.problem}"))
            else:
                cache.delete(damage.name)
        cache.sweep()
        if strangers := cache.strangers():
            # diskcache's mending of its counts would delete them.
            more = f" and {len(strangers) - 1} more" if strangers[1:] else ""
            log.warning("left alone what is not the store's: `%s`%s", strangers[0], more)
            return report
        with warnings.catch_warnings():
            # diskcache tells what it mends by warnings; the report has said it already.
            warnings.simplefilter("always")
            for found in cache.check(fix=True):
                log.debug("mended: %s", found.message)
        return report


def check(cache: ByteCache) -> VerifyReport:
    """Compare everything in a cache with its digests."""
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
        # A record that a collection or a new build has taken away meanwhile is none to complain of.
        if lost and cache.get(ACTION + record.key) == record_bytes(record):
            damage.append(Damage("record", ACTION + record.key, f"its output `{lost[0]}` is missing or damaged"))
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
    """Return how many bytes a file has, and what is wrong with it or an empty text."""
    digest = hashlib.sha256()
    size = 0
    try:
        with cache.read(name) as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
                bar.update(completed=done + size)
    except KeyError:
        # A collection may delete files meanwhile; then its row is gone as well.
        return 0, "its file has vanished" if name in cache else ""
    except (OSError, RefusedRowError) as err:
        return size, f"it cannot be read: {err}"
    return size, "" if digest.hexdigest() == name.removeprefix(BLOB) else "its bytes have changed"


def _check_small(cache: ByteCache, skipped: set[str]) -> list[Damage]:
    damage = []
    for name in cache.keys(REF):
        if name not in skipped and not is_sha256((cache.get(name) or b"").decode("ascii", "replace")):
            damage.append(Damage("ref", name, "it names no key"))
    for name in cache.keys(SIDE):
        if name not in skipped and not is_side_intact(cache.get(name) or b""):
            damage.append(Damage("side", name, "its bytes have changed"))
    return damage
