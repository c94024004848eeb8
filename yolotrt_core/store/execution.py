"""Builds an artifact exactly once across processes, safely against kills."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from yolotrt_core.errors import StageError, YolotrtError
from yolotrt_core.serialization import to_json
from yolotrt_core.store.action import Action, Blob, Record, canonical_json, is_output_name, record_bytes
from yolotrt_core.store.database import Database
from yolotrt_core.store.errors import ReadOnlyStoreError, RefusedRowError, disk_error
from yolotrt_core.store.locks import locked
from yolotrt_core.store.names import ACTION, BLOB, OWNER, STAGE_LOG
from yolotrt_core.store.work_folder import clean_after_failure, clear, read_owner, write_owner
from yolotrt_core.types import Json

if TYPE_CHECKING:
    from yolotrt_core.store.bytes_cache import ByteCache

log = logging.getLogger(__name__)

Make = Callable[[Path], Mapping[str, Json]]
OnStart = Callable[[Action], None]

_ALLOWED = {"in", "out", STAGE_LOG, OWNER}


def obtain_artifact(
    database: Database,
    action: Action,
    make: Make,
    *,
    verify: bool = False,
    force: bool = False,
    on_start: OnStart | None = None,
) -> tuple[Record, bool]:
    """Return the record of an action and whether it was cached; build it on a cache miss.

    If several processes request the same action, one builds it and the others wait.

    Args:
        make: called with a folder that contains an empty `out/`; writes every output under `out`
            and returns facts for the record. It may also write `stage.log` and files under `in/`.
        verify: compare the files of a cached artifact with their digests, and rebuild on a mismatch.
        force: rebuild a cached artifact.
        on_start: called just before `make`.

    Raises:
        ArtifactError: the store failed, is full or read-only. Errors of `make` are raised unchanged;
            a `StageError` gets the stage, the key and the path of the log.
    """
    key = action.key
    record = None if force else database.find(key)
    if record is not None:
        bad = _find_corrupted_outputs(database, record) if verify else ()
        if not bad:
            return record, True
        log.warning("rebuilding %s: corrupted in the store (%s)", _describe(action), ", ".join(bad))
    try:
        with database.reporting():
            database.make_folders()
        lock = locked(database.locks_folder, key, lambda: _describe_owner(database, action))
        with lock:
            return _obtain_locked(database, action, make, verify=verify, force=force, on_start=on_start)
    except ReadOnlyStoreError as err:
        raise ReadOnlyStoreError(f"{err}, cannot build {_describe(action)}", hint=err.hint) from err


def _obtain_locked(
    database: Database,
    action: Action,
    make: Make,
    *,
    verify: bool,
    force: bool,
    on_start: OnStart | None,
) -> tuple[Record, bool]:
    """Look up the artifact again under its lock, and build it if it is still missing."""
    record = None if force else database.find(action.key)
    if record is not None:
        bad = _find_corrupted_outputs(database, record) if verify else ()
        if not bad:
            return record, True
        _delete(database, record, bad)
    return _build(database, action, make, on_start), False


def _build(database: Database, action: Action, make: Make, on_start: OnStart | None) -> Record:
    """Run `make` in its folder and store its outputs; the artifact's lock is held."""
    work = database.work_folder / action.key
    try:
        with database.reporting():
            clear(work)
            (work / "out").mkdir(parents=True)
            write_owner(work, action)
        if on_start is not None:
            on_start(action)
        started = time.monotonic()
        facts = make(work)
        seconds = time.monotonic() - started
        record = _commit(database, action, work, facts, seconds)
    except BaseException as err:  # raised again: clean up after errors and interrupts
        # Before the folder is cleared, which may free the space.
        shown = isinstance(err, YolotrtError) and not isinstance(err, StageError)
        disk_failure = None if shown else disk_error(database.root, err)
        log_path = clean_after_failure(work, keep_log=isinstance(err, Exception) and disk_failure is None)
        if isinstance(err, StageError):
            _set_location(err, action, log_path)
        if disk_failure is not None:
            raise disk_failure from err
        raise
    with suppress(OSError):
        # The artifact is stored; the next build or gc removes leftovers.
        shutil.rmtree(work)
    return record


def _commit(database: Database, action: Action, work: Path, facts: Mapping[str, Json], seconds: float) -> Record:
    """Store the outputs and the record in one transaction."""
    with database.reporting():
        _refuse_strays(action, work)
        paths = dict(_outputs(action, work / "out"))
        outputs = {name: _blob(path) for name, path in paths.items()}
    record = Record(
        key=action.key,
        action=action.material(),
        outputs=outputs,
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
        seconds=round(seconds, 3),
        facts=_plain(action, facts),
    )
    data = record_bytes(record)
    with database.writing() as cache:
        try:
            with cache.transact():
                for name, blob in outputs.items():
                    _add(cache, blob, paths[name])
                cache.set(ACTION + record.key, data)
        except BaseException:  # raised again
            # The transaction was rolled back: delete its files, too.
            cache.close()
            cache.sweep()
            raise
    return record


def _add(cache: ByteCache, blob: Blob, path: Path) -> None:
    """Store a file under its digest, unless it is stored already."""
    name = BLOB + blob.sha256
    with suppress(KeyError, RefusedRowError), cache.read(name) as stored:
        if hashlib.file_digest(stored, "sha256").hexdigest() == blob.sha256:
            return
    with path.open("rb") as file:
        reader = _Hashing(file)
        cache.set(name, reader, read=True)
    if reader.digest.hexdigest() != blob.sha256:
        raise StageError(f"the output `{path.name}` changed while it was being stored", hint="run the build again")


class _Hashing:
    """A stream that hashes the bytes read from it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def read(self, size: int) -> bytes:
        chunk = self._file.read(size)
        self.digest.update(chunk)
        return chunk


def _outputs(action: Action, out: Path) -> Iterator[tuple[str, Path]]:
    """Yield the name and path of every file under `out`, sorted; links and special files are refused."""
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise _plugin_bug(action, f"wrote `{name}`, which is neither a file nor a folder")
        if path.is_file():
            if not is_output_name(name):
                raise _plugin_bug(action, f"wrote a file with the invalid name {name!r}")
            yield name, path


def _refuse_strays(action: Action, work: Path) -> None:
    strays = sorted(entry.name for entry in work.iterdir() if entry.name not in _ALLOWED)
    if strays:
        raise _plugin_bug(action, f"wrote `{strays[0]}` outside `out`")


def _plain(action: Action, facts: Mapping[str, Json]) -> dict[str, Json]:
    try:
        plain = to_json(facts)
        canonical_json(plain)
    except (TypeError, ValueError) as err:
        raise _plugin_bug(action, f"reported facts that are not JSON: {err}") from err
    if not isinstance(plain, dict):
        raise _plugin_bug(action, "reported facts that are not a mapping")
    return plain


def _plugin_bug(action: Action, what: str) -> StageError:
    hint = f"plugin bug: please report it to the authors of `{action.plugin.dist}`"
    return StageError(f"{_describe(action)} {what}", hint=hint)


def _blob(path: Path) -> Blob:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Blob(digest, os.fstat(file.fileno()).st_size)


def _describe_owner(database: Database, action: Action) -> str:
    owner = read_owner(database.work_folder / action.key)
    who = f"process {owner['pid']} on {owner['host']}" if {"pid", "host"} <= owner.keys() else "another process"
    return f"{who}, which is building {_describe(action)} ({action.key[:12]})"


def _describe(action: Action) -> str:
    return f"{action.stage} `{action.plugin.name}`"


def _find_corrupted_outputs(database: Database, record: Record) -> tuple[str, ...]:
    return tuple(name for name, blob in record.outputs.items() if not database.is_intact(blob.sha256))


def _delete(database: Database, record: Record, bad: tuple[str, ...]) -> None:
    with database.writing() as cache:
        cache.delete(ACTION + record.key)
        for name in bad:
            cache.delete(BLOB + record.outputs[name].sha256)


def _set_location(err: StageError, action: Action, log_path: Path | None) -> None:
    err.stage = err.stage or action.stage
    err.key = err.key or action.key
    # The only file of the work folder that was kept.
    err.log = log_path
