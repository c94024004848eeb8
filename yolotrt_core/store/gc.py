"""Garbage collection of the store, safe while builds run."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from yolotrt_core.errors import ArtifactError, UsageError
from yolotrt_core.store.action import Record, UnknownSchemaError, is_sha256, record_from_bytes
from yolotrt_core.store.database import Database, read_refs
from yolotrt_core.store.errors import RefusedRowError, is_full
from yolotrt_core.store.lineage import inputs_of
from yolotrt_core.store.locks import COMMIT, locked, try_lock
from yolotrt_core.store.names import ACTION, BLOB, OWNER, SIDE, STAGE_LOG
from yolotrt_core.store.work_folder import read_owner

if TYPE_CHECKING:
    from yolotrt_core.store.bytes_cache import ByteCache

_SECONDS_PER_DAY = 86400.0
_FREE_BYTES = 2 << 20  # for the database's log of deleted rows


@dataclass(frozen=True, slots=True)
class GcReport:
    """Artifacts deleted by a collection, or with `dry_run` to be deleted.

    Attributes:
        records: deleted records. blobs: digests of deleted files. kept_records: number of kept records.
        orphans: deleted files of killed writers. side_files: deleted timing caches and other side files.
        work_folders: deleted folders of failed or killed builds. size: bytes freed, without the database.
    """

    dry_run: bool
    records: tuple[Record, ...] = ()
    kept_records: int = 0
    blobs: tuple[str, ...] = ()
    orphans: int = 0
    side_files: int = 0
    work_folders: int = 0
    size: int = 0


def collect_garbage(database: Database, keep_days: float, dry_run: bool) -> GcReport:
    """Delete unreferenced artifacts; see `Store.gc`.

    Raises:
        UsageError: negative `keep_days`. ArtifactError: the store has records of a newer version.
    """
    if not keep_days >= 0:
        raise UsageError(f"`--keep-days` must be at least 0, found {keep_days:g}")
    if dry_run:
        with database.reporting():
            cache = database.reading()
            return _Collection(database, cache, keep_days, dry_run).run() if cache is not None else GcReport(dry_run)
    with database.reporting():
        if not database.exists():
            return GcReport(dry_run)
    if is_full(database.root):
        _free_space(database, keep_days)
    with database.writing() as writable:
        return _Collection(database, writable, keep_days, dry_run).run()


def _free_space(database: Database, keep_days: float) -> None:
    """Delete unreferenced files until SQLite can open the database, which fails on a full disk.

    Their rows are deleted afterwards; if that fails, the store rebuilds the missing files.
    """
    with (
        database.reporting(),
        locked(database.locks_folder, COMMIT, lambda: "another process writing to the store"),
    ):
        cache = database.reading()
        if cache is None:
            return
        unreferenced = _Collection(database, cache, keep_days, dry_run=True).run()
        for sha256 in unreferenced.blobs:
            with suppress(KeyError, RefusedRowError), cache.read(BLOB + sha256) as file:
                Path(file.name).unlink(missing_ok=True)
            if not is_full(database.root, _FREE_BYTES):
                return


class _Collection:
    """One run of gc; unless dry, the commit lock is held."""

    def __init__(self, database: Database, cache: ByteCache, keep_days: float, dry_run: bool) -> None:
        self._database = database
        self._cache = cache
        self._dry_run = dry_run
        # `created` is wall-clock time, so the limit is, too.
        self._oldest = datetime.now(UTC) - timedelta(days=min(keep_days, 36500))
        self._oldest_seconds = time.time() - min(keep_days, 36500) * _SECONDS_PER_DAY

    def run(self) -> GcReport:
        records, broken = self._records()
        leftovers, in_use = self._work_folders()
        live = _reachable(records, set(read_refs(self._cache).values()) | self._young(records), in_use)
        named = {blob.sha256 for key in live for blob in records[key].outputs.values()} | in_use
        dead = [record for key, record in records.items() if key not in live]
        blobs = [sha for sha in (k.removeprefix(BLOB) for k in self._cache.keys(BLOB)) if sha not in named]
        side = [key for key in self._cache.keys(SIDE) if self._cache.stored_at(key) < self._oldest_seconds]
        size = sum(self._cache.size_of(BLOB + sha) for sha in blobs) + sum(self._cache.size_of(key) for key in side)
        if self._dry_run:
            orphans = self._cache.orphans()
            size += sum(path.stat().st_size for path in orphans)
            found = len(orphans)
        else:
            # Records first: if killed in between, no record without its files remains.
            with self._cache.transact():
                for key in [record.key for record in dead] + broken:
                    self._cache.delete(ACTION + key)
            for name in [BLOB + sha for sha in blobs] + side:
                self._cache.delete(name)
            found, swept = self._cache.sweep()
            size += swept
        return GcReport(
            dry_run=self._dry_run,
            records=tuple(dead),
            kept_records=len(live),
            blobs=tuple(blobs),
            orphans=found,
            side_files=len(side),
            work_folders=leftovers,
            size=size,
        )

    @contextmanager
    def _try_lock(self, key: str, has_owner: bool) -> Iterator[bool]:
        """Yield whether no process builds `key`; if locks fail in a dry run, rely on the owner file."""
        with ExitStack() as stack:
            try:
                free = stack.enter_context(try_lock(self._database.locks_folder, key))
            except OSError:
                if not self._dry_run:
                    raise
                free = not has_owner
            yield free

    def _records(self) -> tuple[dict[str, Record], list[str]]:
        """Return the records by key, and the keys of corrupted records."""
        records, broken = {}, []
        for key in (name.removeprefix(ACTION) for name in self._cache.keys(ACTION)):
            try:
                records[key] = record_from_bytes(key, self._cache.get(ACTION + key) or b"")
            except UnknownSchemaError as err:
                hint = "run gc with the newest version that uses this store, or choose another store with `--store DIR`"
                raise ArtifactError(f"the record {key[:12]} {err}", hint=hint) from err
            except (RefusedRowError, ValueError):
                broken.append(key)
        return records, broken

    def _young(self, records: dict[str, Record]) -> set[str]:
        return {key for key, record in records.items() if not _is_before(record.created, self._oldest)}

    def _work_folders(self) -> tuple[int, set[str]]:
        """Clear folders of failed and killed builds; return their number and the inputs of running builds."""
        leftovers = 0
        in_use: set[str] = set()
        if not self._database.work_folder.is_dir():
            return leftovers, in_use
        for folder in sorted(self._database.work_folder.iterdir()):
            if not is_sha256(folder.name):
                continue
            owner = read_owner(folder)
            with self._try_lock(folder.name, bool(owner)) as free:
                if free and not _is_recent_log(folder, self._oldest_seconds):
                    if not self._dry_run:
                        # Under the lock: a build of this key uses the same folder.
                        shutil.rmtree(folder, ignore_errors=True)
                    leftovers += 1
                running = not free
            if running:
                in_use.update(str(digest) for digest in owner.get("inputs", ()))
        return leftovers, in_use


def _reachable(records: dict[str, Record], roots: Iterable[str], digests: Iterable[str]) -> set[str]:
    """Return the keys of the roots and of all their inputs."""
    producers: dict[str, list[str]] = {}
    for key, record in records.items():
        for blob in record.outputs.values():
            producers.setdefault(blob.sha256, []).append(key)
    waiting = [key for key in roots if key in records]
    waiting += [key for digest in digests for key in producers.get(digest, ())]
    live: set[str] = set()
    while waiting:
        key = waiting.pop()
        if key in live:
            continue
        live.add(key)
        waiting += [producer for digest in inputs_of(records[key]).values() for producer in producers.get(digest, ())]
    return live


def _is_before(created: str, moment: datetime) -> bool:
    try:
        return datetime.fromisoformat(created) < moment
    except (ValueError, TypeError):
        return True


def _is_recent_log(folder: Path, oldest: float) -> bool:
    log = folder / STAGE_LOG
    with suppress(OSError):
        return not (folder / OWNER).exists() and log.stat().st_mtime >= oldest
    return False
