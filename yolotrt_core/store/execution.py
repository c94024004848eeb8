"""Making an artifact once, however many processes ask for it and whenever one is killed."""

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
from yolotrt_core.store.errors import ReadOnlyStoreError, RefusedRowError, disk_error, reporting
from yolotrt_core.store.locks import locked
from yolotrt_core.store.names import ACTION, BLOB, OWNER, STAGE_LOG
from yolotrt_core.store.work_folder import clean_after_failure, clear, owner_of, write_owner
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
    """Return the record of an action and whether it was found; make it if it was not.

    Of all processes that want the same action at one time, one makes it and the others wait.

    Args:
        make: gets an empty folder that holds an empty `out/`, writes every output under `out`
            and returns facts for the record. It may also write `stage.log` and under `in/`.
        verify: read a found artifact's files and compare their digests; rebuild on a mismatch.
        force: make it even if it is there.
        on_start: called just before `make`.

    Raises:
        ArtifactError: the store fails, is full or read-only. Whatever `make` raises; a
            `StageError` then names the stage, the key and the log, which is all that is kept.
    """
    key = action.key
    record = None if force else database.find(key)
    if record is not None:
        bad = _damaged_outputs(database, record) if verify else ()
        if not bad:
            return record, True
        log.warning("%s is damaged in the store (%s): making it again", _describe(action), ", ".join(bad))
    try:
        with reporting(database.root):
            database.make_folders()
        lock = locked(database.locks_folder, key, lambda: _waited_for(database, action))
        with lock:
            return _obtain_alone(database, action, make, verify=verify, force=force, on_start=on_start)
    except ReadOnlyStoreError as err:
        raise ReadOnlyStoreError(f"{err}, and {_describe(action)} must be made", hint=err.hint) from err


def _obtain_alone(
    database: Database,
    action: Action,
    make: Make,
    *,
    verify: bool,
    force: bool,
    on_start: OnStart | None,
) -> tuple[Record, bool]:
    """Look again, now that nobody else can be making it, and make it if it is still needed."""
    record = None if force else database.find(action.key)
    if record is not None:
        bad = _damaged_outputs(database, record) if verify else ()
        if not bad:
            return record, True
        _delete(database, record, bad)
    return _build(database, action, make, on_start), False


def _build(database: Database, action: Action, make: Make, on_start: OnStart | None) -> Record:
    """Run `make` in its folder and keep what it wrote; the artifact's lock is held."""
    work = database.work_folder / action.key
    try:
        with reporting(database.root):
            clear(work)
            (work / "out").mkdir(parents=True)
            write_owner(work, action)
        if on_start is not None:
            on_start(action)
        started = time.monotonic()
        facts = make(work)
        seconds = time.monotonic() - started
        record = _commit(database, action, work, facts, seconds)
    except BaseException as err:  # raised again: whatever ended the stage, an interrupt too, nothing half made stays
        # Before the folder is cleared: that may be what makes room again.
        shown = isinstance(err, YolotrtError) and not isinstance(err, StageError)
        trouble = None if shown else disk_error(database.root, err)
        log_path = clean_after_failure(work, keep_log=isinstance(err, Exception) and trouble is None)
        if isinstance(err, StageError):
            _say_where(err, action, log_path)
        if trouble is not None:
            raise trouble from err
        raise
    with suppress(OSError):
        # The artifact is safe; what is left of the folder goes with the next build or gc.
        shutil.rmtree(work)
    return record


def _commit(database: Database, action: Action, work: Path, facts: Mapping[str, Json], seconds: float) -> Record:
    """Put the outputs and then the record into the cache, all or nothing."""
    with reporting(database.root):
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
            # The database has forgotten the files of the transaction, whatever ended it; so must the disk.
            cache.close()
            cache.sweep()
            raise
    return record


def _add(cache: ByteCache, blob: Blob, path: Path) -> None:
    """Store a file under its digest, unless its bytes are there already."""
    name = BLOB + blob.sha256
    with suppress(KeyError, RefusedRowError), cache.read(name) as stored:
        if hashlib.file_digest(stored, "sha256").hexdigest() == blob.sha256:
            return
    with path.open("rb") as file:
        reader = _Hashing(file)
        cache.set(name, reader, read=True)
    if reader.digest.hexdigest() != blob.sha256:
        raise StageError(f"the output `{path.name}` was changed while it was stored", hint="run the build again")


class _Hashing:
    """A stream that hashes what is read from it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def read(self, size: int) -> bytes:
        chunk = self._file.read(size)
        self.digest.update(chunk)
        return chunk


def _outputs(action: Action, out: Path) -> Iterator[tuple[str, Path]]:
    """Yield the name and path of every file under `out`, sorted; links and the like are refused."""
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise _fault(action, f"wrote `{name}`, which is neither a file nor a folder")
        if path.is_file():
            if not is_output_name(name):
                raise _fault(action, f"wrote a file of the bad name {name!r}")
            yield name, path


def _refuse_strays(action: Action, work: Path) -> None:
    strays = sorted(entry.name for entry in work.iterdir() if entry.name not in _ALLOWED)
    if strays:
        raise _fault(action, f"wrote `{strays[0]}` outside `out`")


def _plain(action: Action, facts: Mapping[str, Json]) -> dict[str, Json]:
    try:
        plain = to_json(facts)
        canonical_json(plain)
    except (TypeError, ValueError) as err:
        raise _fault(action, f"reported facts that are no JSON: {err}") from err
    if not isinstance(plain, dict):
        raise _fault(action, "reported facts that are no mapping")
    return plain


def _fault(action: Action, what: str) -> StageError:
    hint = f"this is a fault of the plugin: report it to the authors of `{action.plugin.dist}`"
    return StageError(f"{_describe(action)} {what}", hint=hint)


def _blob(path: Path) -> Blob:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Blob(digest, os.fstat(file.fileno()).st_size)


def _waited_for(database: Database, action: Action) -> str:
    owner = owner_of(database.work_folder / action.key)
    who = f"process {owner['pid']} on {owner['host']}" if {"pid", "host"} <= owner.keys() else "another process"
    return f"{who}, which is making {_describe(action)} ({action.key[:12]})"


def _describe(action: Action) -> str:
    return f"{action.stage} `{action.plugin.name}`"


def _damaged_outputs(database: Database, record: Record) -> tuple[str, ...]:
    return tuple(name for name, blob in record.outputs.items() if not database.is_intact(blob.sha256))


def _delete(database: Database, record: Record, bad: tuple[str, ...]) -> None:
    with database.writing() as cache:
        cache.delete(ACTION + record.key)
        for name in bad:
            cache.delete(BLOB + record.outputs[name].sha256)


def _say_where(err: StageError, action: Action, log_path: Path | None) -> None:
    err.stage = err.stage or action.stage
    err.key = err.key or action.key
    # Whatever log was named, this is what is left of the folder.
    err.log = log_path
