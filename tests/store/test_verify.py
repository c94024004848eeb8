"""Files that are corrupted or missing: never returned, detected, and rebuilt."""

from __future__ import annotations

import logging
import os
import resource
from pathlib import Path

import pytest
from store_files import blob_file, flip_byte, left_in
from store_worker import action, content, maker

from yolotrt_core.store.errors import CorruptedArtifactError, MissingArtifactError
from yolotrt_core.store.store import Store


def test_flipped_byte_is_found_and_rebuilt(store: Store, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    record, _ = store.obtain(action(1), maker(1))
    sha256 = record.outputs["model.onnx"].sha256
    flip_byte(blob_file(store, sha256))

    assert store.obtain(action(1), maker(1))[1] is True  # bytes are not read without `verify`
    with pytest.raises(CorruptedArtifactError, match=sha256[:12]):
        store.copy_out(sha256, tmp_path / "copy")
    assert left_in(tmp_path / "store" / "work") == []
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    with pytest.raises(CorruptedArtifactError):
        store.read(sha256)
    damage = store.verify().damage
    assert {(d.kind, d.name) for d in damage} == {("blob", f"blob/{sha256}"), ("record", f"action/{record.key}")}

    with caplog.at_level(logging.WARNING):
        rebuilt, from_cache = store.obtain(action(1), maker(1), verify=True)
    assert not from_cache
    assert "rebuilding exporter `torch`: corrupted in the store (model.onnx)" in caplog.text
    assert rebuilt.outputs == record.outputs
    assert store.read(sha256) == content(1, "model")
    assert store.verify().ok
    assert store.obtain(action(1), maker(1), verify=True)[1] is True


def test_build_does_not_rely_on_a_corrupted_file_of_another_artifact(store: Store) -> None:
    record, _ = store.obtain(action(1), maker(1))
    flip_byte(blob_file(store, record.outputs["labels.txt"].sha256))
    store.obtain(action(2), maker(2))
    assert store.verify().ok


def test_missing_file_is_a_cache_miss(store: Store, tmp_path: Path) -> None:
    record, _ = store.obtain(action(1), maker(1))
    sha256 = record.outputs["model.onnx"].sha256
    blob_file(store, sha256).unlink()
    assert store.find(record.key) is None
    with pytest.raises(MissingArtifactError):
        store.copy_out(sha256, tmp_path / "copy")
    assert not store.verify().ok
    assert store.obtain(action(1), maker(1))[1] is False
    assert store.verify().ok
    assert store.read(sha256) == content(1, "model")


def test_shortened_file_is_no_hit(store: Store) -> None:
    record, _ = store.obtain(action(1), maker(1))
    path = blob_file(store, record.outputs["model.onnx"].sha256)
    path.chmod(0o644)
    os.truncate(path, 100)
    assert store.find(record.key) is None


def test_store_deleted_and_made_anew_under_an_open_one(store: Store) -> None:
    import shutil

    store.obtain(action(1), maker(1))
    shutil.rmtree(store.root)
    assert store.find(action(1).key) is None
    assert store.obtain(action(1), maker(1))[1] is False
    assert store.find(action(1).key) is not None
    assert store.verify().ok


def test_corrupted_side_file_is_not_used(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    side = store.side_cache()
    side.save("timing", {"v": "1"}, b"x" * 100_000)
    flip_byte(next(store.cache_folder.rglob("*.val")))
    assert side.load("timing", {"v": "1"}) is None
    assert "corrupted" in caplog.text
    assert [d.kind for d in store.verify().damage] == ["side"]
    store.repair()
    assert store.verify().ok


def test_repair_of_a_store_that_made_more_than_may_be_open(store: Store) -> None:
    store.obtain(action(1), maker(1))
    for number in range(200):
        (store.locks_folder / f"{number:064x}.lock").touch()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (sum(1 for _ in Path("/proc/self/fd").iterdir()) + 50, before[1]))
    try:
        assert store.repair().ok
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_repair_leaves_files_of_others_alone(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    record, _ = store.obtain(action(1), maker(1))
    flip_byte(blob_file(store, record.outputs["model.onnx"].sha256))
    strange = [store.cache_folder / name for name in ("mine.txt", "photos/p.jpg", "ab/x", "aa/bb/x.val")]
    for path in strange:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    (store.cache_folder / "empty").mkdir()
    assert {d.kind for d in store.repair().damage} == {"blob", "record"}
    assert all(path.read_text() == "mine" for path in strange)
    assert (store.cache_folder / "empty").is_dir()
    assert "skipped foreign files in the store" in caplog.text
    assert store.verify().ok


def test_repair_removes_damage_and_leftovers(store: Store) -> None:
    record, _ = store.obtain(action(1), maker(1))
    kept, _ = store.obtain(action(2), maker(2))
    flip_byte(blob_file(store, record.outputs["model.onnx"].sha256))
    orphan = store.cache_folder / "aa" / "bb" / f"{'0' * 28}.val"
    orphan.parent.mkdir(parents=True, exist_ok=True)
    orphan.write_bytes(b"of a killed writer")
    assert store.verify().orphans == 1
    assert {d.kind for d in store.repair().damage} == {"blob", "record"}
    assert not orphan.exists()
    assert not orphan.parent.exists()
    assert store.verify().ok
    assert [r.key for r in store.records()] == [kept.key]
    assert store.read(kept.outputs["labels.txt"].sha256)
