"""Full, read-only and unusable disks: one line, what to do, and nothing left behind."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from store_worker import Disk, action, answers, content, go, maker, start

from yolotrt_core.errors import ArtifactError, StageError
from yolotrt_core.store.errors import ReadOnlyStoreError, disk_error
from yolotrt_core.store.store import Store
from yolotrt_core.types import Json

Mount = Callable[[str], Disk]


def files_of(root: Path) -> set[str]:
    """What takes space in a store: all but its folders, locks and database."""
    found = (path for path in root.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path.relative_to(root).as_posix() for path in found if not path.name.startswith("cache.db")}


def assert_error(error: ArtifactError, *words: str) -> None:
    """One line, lower case, with a hint that names another store."""
    for word in words:
        assert word in str(error)
    assert "\n" not in str(error)
    assert str(error)[0].islower()
    assert error.hint
    assert "--store" in error.hint
    assert "YOLOTRT_STORE" in error.hint


def test_disk_fills_while_a_stage_writes(disk: Mount) -> None:
    small = disk("1m")
    store = Store(small.folder / "store")

    def make(work: Path) -> Mapping[str, Json]:
        (work / "out" / "model.onnx").write_bytes(bytes(2 << 20))
        return {}

    with pytest.raises(ArtifactError) as caught:
        store.obtain(action(1), make)
    assert_error(caught.value, "no space left", str(store.root))
    assert files_of(store.root) == set()
    assert store.obtain(action(1), maker(1))[1] is False
    assert store.verify().ok


def test_disk_fills_while_a_tool_hides_the_reason(disk: Mount) -> None:
    small = disk("1m")
    store = Store(small.folder / "store")

    def make(work: Path) -> Mapping[str, Json]:
        with suppress(OSError):
            (work / "out" / "model.onnx").write_bytes(bytes(2 << 20))
        raise StageError("the tool failed: unexpected position 64 vs 0")

    with pytest.raises(ArtifactError) as caught:
        store.obtain(action(1), make)
    assert_error(caught.value, "no space left")
    assert files_of(store.root) == set()


@pytest.mark.parametrize("spare", [0, 8 << 10, 60 << 10, 120 << 10, 200 << 10])
def test_disk_fills_while_the_store_copies(disk: Mount, spare: int) -> None:
    small = disk("2m")
    store = Store(small.folder / "store")
    kept, _ = store.obtain(action(1), maker(1))
    before = files_of(store.root)

    def make(work: Path) -> Mapping[str, Json]:
        (work / "out" / "one").write_bytes(os.urandom(100 << 10))
        (work / "out" / "two").write_bytes(os.urandom(140 << 10))
        small.fill(leave_bytes=spare)
        return {}

    with pytest.raises(ArtifactError) as caught:
        store.obtain(action(2), make)
    assert_error(caught.value, "no space left")
    assert files_of(store.root) == before
    assert store.find(action(2).key) is None
    report = store.verify()
    assert (report.ok, report.records, report.orphans) == (True, 1, 0)
    assert store.obtain(action(1), maker(1), verify=True) == (kept, True)

    (small.folder / "filler").unlink()
    assert store.obtain(action(2), maker(2))[1] is False
    assert store.verify().ok


def test_disk_is_full_from_the_start(disk: Mount) -> None:
    small = disk("1m")
    filler = small.fill()
    store = Store(small.folder / "store")
    with pytest.raises(ArtifactError) as caught:
        store.obtain(action(1), maker(1))
    assert_error(caught.value, "no space left")
    assert files_of(small.folder) == {"filler"}
    filler.unlink()
    assert store.obtain(action(1), maker(1))[1] is False
    assert store.verify().ok


@pytest.mark.parametrize("spare", [4 << 10, 16 << 10, 32 << 10, 64 << 10])
def test_disk_fills_while_the_database_is_made(disk: Mount, spare: int) -> None:
    small = disk("1m")
    store = Store(small.folder / "store")

    def make(work: Path) -> Mapping[str, Json]:
        small.fill(leave_bytes=spare)
        return {}

    with pytest.raises(ArtifactError) as caught:
        store.obtain(action(1), make)
    assert_error(caught.value, "no space left")
    (small.folder / "filler").unlink()
    assert store.obtain(action(1), maker(1))[1] is False
    assert store.verify().ok


def test_side_file_on_a_full_disk_is_only_warned_about(disk: Mount, caplog: pytest.LogCaptureFixture) -> None:
    small = disk("1m")
    store = Store(small.folder / "store")
    store.obtain(action(1), maker(1))
    before = files_of(store.root)
    small.fill(leave_bytes=50 << 10)
    store.side_cache().save("timing", {}, bytes(200 << 10))
    assert "cannot save the cache file `timing`" in caplog.text
    assert files_of(store.root) == before


def test_copy_to_a_full_disk_leaves_nothing(disk: Mount, store: Store) -> None:
    small = disk("1m")
    record, _ = store.obtain(action(1), maker(1))
    small.fill(leave_bytes=8 << 10)
    with pytest.raises(ArtifactError, match=r"cannot copy the file .* no space left on device") as caught:
        store.copy_out(record.outputs["model.onnx"].sha256, small.folder / "model.onnx")
    assert caught.value.hint
    assert files_of(small.folder) == {"filler"}


def test_space_that_ran_out_elsewhere_is_not_blamed_on_the_store(store: Store) -> None:
    def make(work: Path) -> Mapping[str, Json]:
        raise OSError(errno.ENOSPC, "No space left on device", "/elsewhere/file")

    with pytest.raises(ArtifactError, match="cannot write at `/elsewhere/file`: no space left") as caught:
        store.obtain(action(1), make)
    assert "TMPDIR" in (caught.value.hint or "")


def test_read_only_store_serves_what_it_holds(disk: Mount, tmp_path: Path) -> None:
    small = disk("2m")
    filled = Store(small.folder / "store")
    record, _ = filled.obtain(action(1), maker(1))
    filled.set_ref("build", record.key)
    filled.side_cache().save("timing", {}, b"x")
    filled.close()
    small.remount("ro")

    store = Store(small.folder / "store")
    assert store.obtain(action(1), maker(1), verify=True) == (record, True)
    store.copy_out(record.outputs["model.onnx"].sha256, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == content(1, "model")
    store.set_ref("build", record.key)
    store.set_ref("other", record.key)
    assert store.refs() == {"build": record.key}
    assert store.side_cache().load("timing", {}) == b"x"
    store.side_cache().save("timing", {}, b"y")
    assert store.verify().ok
    assert [r.key for r in store.records()] == [record.key]
    assert store.gc(0, dry_run=True).records == ()

    with pytest.raises(ReadOnlyStoreError) as caught:
        store.obtain(action(2), maker(2))
    assert_error(caught.value, "is read-only", "cannot build exporter `torch`", str(store.root))
    with pytest.raises(ReadOnlyStoreError, match="is read-only"):
        store.gc(0)
    with pytest.raises(ReadOnlyStoreError, match="is read-only"):
        store.repair()


def test_read_only_store_that_was_left_in_the_middle_of_writing(disk: Mount) -> None:
    """With a write-ahead log beside the database, as a killed process leaves it."""
    small = disk("4m")
    filled = Store(small.folder / "store")
    record, _ = filled.obtain(action(1), maker(1))
    database = sqlite3.connect(filled.cache_folder / "cache.db")
    database.execute("SELECT * FROM Cache").fetchall()  # an open reader keeps the log from being merged
    second, _ = filled.obtain(action(2), maker(2))
    assert (filled.cache_folder / "cache.db-wal").stat().st_size > 0
    for name in ("whole", "parted"):
        shutil.copytree(filled.root, small.folder / name)
    (small.folder / "parted" / "cache" / "cache.db-shm").unlink()
    database.close()
    filled.close()
    small.remount("ro")
    whole = Store(small.folder / "whole")
    assert [whole.find(record.key), whole.find(second.key)] == [record, second]
    whole.close()
    with pytest.raises(ArtifactError) as caught:
        Store(small.folder / "parted").find(record.key)
    assert_error(caught.value, "to merge its write-ahead log")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_store_of_another_user_serves_what_it_holds() -> None:
    # Not under `tmp_path`, which no other user may enter.
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "store"
        filled = Store(root)
        record, _ = filled.obtain(action(1), maker(1))
        filled.set_ref("build", record.key)
        filled.close()
        for path in (Path(folder), root, *root.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o444)
        process = start("read", root, user=65534, key=record.key)
        go(process)
        found = answers(process)[0]
        assert found["from_cache"] is True
        assert found["sha256"] == hashlib.sha256(content(1, "model")).hexdigest()
        assert "no permission to access" in found["error"]
        assert "cannot build exporter `torch`" in found["error"]


def test_read_only_disk_without_a_store(disk: Mount) -> None:
    small = disk("1m")
    small.remount("ro")
    store = Store(small.folder / "store")
    assert store.find(action(1).key) is None
    with pytest.raises(ReadOnlyStoreError) as caught:
        store.obtain(action(1), maker(1))
    assert_error(caught.value, "is read-only")


def test_corruption_in_a_read_only_store_is_reported(disk: Mount) -> None:
    small = disk("2m")
    filled = Store(small.folder / "store")
    record, _ = filled.obtain(action(1), maker(1))
    cache = filled.reading()
    assert cache is not None
    with cache.read(f"blob/{record.outputs['model.onnx'].sha256}") as file:
        path = Path(file.name)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    filled.close()
    small.remount("ro")
    with pytest.raises(ReadOnlyStoreError) as caught:
        Store(small.folder / "store").obtain(action(1), maker(1), verify=True)
    assert_error(caught.value, "is read-only", "cannot build")


@pytest.mark.parametrize("where", ["root", "parent", "cache", "locks"])
def test_file_where_a_folder_should_be(tmp_path: Path, where: str) -> None:
    root = tmp_path / "parent" / "store"
    blocked = {"root": root, "parent": root.parent, "cache": root / "cache", "locks": root / "locks"}[where]
    blocked.parent.mkdir(parents=True, exist_ok=True)
    blocked.write_text("a file")
    store = Store(root)
    with pytest.raises(ArtifactError) as caught:
        store.obtain(action(1), maker(1))
    assert_error(caught.value, "is not a folder")
    assert blocked.read_text() == "a file"


def test_database_that_is_none(store: Store) -> None:
    store.obtain(action(1), maker(1))
    store.close()
    (store.cache_folder / "cache.db").write_bytes(b"this is no database, not at all" * 500)
    for use in (
        lambda: store.find(action(1).key),
        lambda: store.obtain(action(1), maker(1)),
        store.verify,
        store.repair,
    ):
        with pytest.raises(ArtifactError) as caught:
            use()
        assert_error(caught.value, "corrupted")
        assert str(store.cache_folder) in (caught.value.hint or "")


def test_database_with_overwritten_pages(store: Store) -> None:
    for number in range(30):
        store.obtain(action(number), lambda work: {"padding": "x" * 4000})
    store.close()
    database = store.cache_folder / "cache.db"
    data = bytearray(database.read_bytes())
    data[8192:] = os.urandom(len(data) - 8192)
    database.write_bytes(bytes(data))
    problems = 0
    for use in (
        lambda: list(store.records()),
        lambda: store.verify().ok,
        lambda: store.obtain(action(1), maker(1)),
        store.repair,
    ):
        try:
            problems += use() is False
        except ArtifactError as err:
            assert_error(err, "database")
            problems += 1
    assert problems >= 2


def test_locked_database_is_reported(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import yolotrt_core.store.bytes_cache as disk_module

    monkeypatch.setattr(disk_module, "_BUSY_SECONDS", 0.1)
    store.obtain(action(1), maker(1))
    holder = sqlite3.connect(store.cache_folder / "cache.db", isolation_level=None)
    with pytest.raises(ArtifactError, match="locked by another process") as caught, store.writing() as cache:
        holder.execute("BEGIN IMMEDIATE")
        cache.set("ref/x", b"y")
    assert_error(caught.value)
    holder.close()


def test_an_error_that_is_its_own_cause_ends(tmp_path: Path) -> None:
    odd = StageError("of a plugin")
    odd.__cause__ = odd
    assert disk_error(tmp_path, odd) is None
