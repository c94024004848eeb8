"""What a collection takes and what it leaves."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from store_worker import action, answers, go, maker, start

from yolotrt_core.errors import ArtifactError, StageError, UsageError
from yolotrt_core.store.store import Store
from yolotrt_core.types import Json


def chain(store: Store, number: int) -> tuple[str, str]:
    """Build an export and an engine from it; return their keys."""
    export, _ = store.obtain(action(number), maker(number))
    onnx = {"onnx": export.outputs["model.onnx"].sha256}

    def make(work: Path) -> Mapping[str, Json]:
        (work / "out" / "model.engine").write_bytes(b"engine %d" % number)
        return {}

    engine, _ = store.obtain(action(number, stage="builder", inputs=onnx), make)
    return export.key, engine.key


def keys(store: Store) -> set[str]:
    return {record.key for record in store.records()}


def test_names_keep_all_they_were_made_from(store: Store) -> None:
    kept = chain(store, 1)
    lost = chain(store, 2)
    store.set_ref("yolov5n fp16", kept[1])
    report = store.gc(0)
    assert {r.key for r in report.records} == set(lost)
    assert keys(store) == set(kept)
    assert report.kept_records == 2
    assert len(report.blobs) == 3  # model, reference and engine; the labels are shared with what stays
    assert store.verify().ok
    assert store.verify().blobs == 4


def test_young_records_stay_with_all_they_were_made_from(store: Store) -> None:
    chain(store, 1)
    assert store.gc(1).records == ()
    assert len(keys(store)) == 2
    assert len(store.gc(0).records) == 2
    assert keys(store) == set()
    assert list(store.cache_folder.rglob("*.val")) == []


def test_dry_run_says_the_same_and_does_nothing(store: Store) -> None:
    chain(store, 1)
    kept = chain(store, 2)
    store.set_ref("a", kept[1])
    store.side_cache().save("timing", {}, bytes(100_000))
    orphan = store.cache_folder / "aa" / "bb" / f"{'0' * 28}.val"
    orphan.parent.mkdir(parents=True, exist_ok=True)
    orphan.write_bytes(b"12345")
    before = sorted(store.root.rglob("*"))
    dry = store.gc(0, dry_run=True)
    assert sorted(store.root.rglob("*")) == before
    occupied = sum(path.stat().st_size for path in store.cache_folder.rglob("*.val"))
    real = store.gc(0)
    freed = occupied - sum(path.stat().st_size for path in store.cache_folder.rglob("*.val"))
    assert real.size == dry.size == freed
    assert (dry.dry_run, real.dry_run) == (True, False)
    assert dry.records == real.records
    assert sorted(dry.blobs) == sorted(real.blobs)
    assert (dry.orphans, dry.side_files) == (real.orphans, real.side_files) == (1, 1)


def test_leftovers_of_killed_builds_go_and_fresh_logs_stay(store: Store) -> None:
    def make(work: Path) -> Mapping[str, Json]:
        (work / "stage.log").write_text("what the tool said")
        raise StageError("failed")

    with pytest.raises(StageError):
        store.obtain(action(1), make)
    process = start("build", store.root, number=2, seconds=60)
    go(process)
    killed = store.work_folder / action(2).key
    while not (killed / "out" / "model.onnx").exists():
        time.sleep(0.01)
    assert store.gc(1).work_folders == 0
    process.kill()
    process.communicate()
    assert store.gc(1, dry_run=True).work_folders == 1
    assert store.gc(1).work_folders == 1
    assert not killed.exists()
    log = store.work_folder / action(1).key / "stage.log"
    assert log.exists()
    os.utime(log, (0, 0))
    assert store.gc(1).work_folders == 1
    assert list(store.work_folder.iterdir()) == []


def test_concurrent_collections(store: Store, tmp_path: Path) -> None:
    kept = chain(store, 1)
    store.set_ref("a", kept[1])
    for number in range(2, 12):
        chain(store, number)
    stop = tmp_path / "stop"
    processes = [start("collect", store.root, stop=str(stop)) for _ in range(4)]
    go(*processes)
    while len(keys(store)) > 2:
        time.sleep(0.01)
    stop.touch()
    assert sum(a["deleted"] for a in answers(*processes)) == 20
    assert keys(store) == set(kept)
    assert store.verify().ok


def test_corrupted_record_goes_and_takes_nothing_along(store: Store) -> None:
    kept = chain(store, 1)
    store.set_ref("a", kept[1])
    with store.writing() as cache:
        cache.set("action/" + "0" * 64, b"{}x")
    store.gc(0)
    assert keys(store) == set(kept)
    assert store.verify().ok


def test_records_of_a_newer_version_are_not_collected(store: Store) -> None:
    chain(store, 1)
    with store.writing() as cache:
        cache.set("action/" + "0" * 64, b'{"schema":2,"anything":"else"}')
    with pytest.raises(ArtifactError, match="schema 2") as caught:
        store.gc(0)
    assert "newest version" in (caught.value.hint or "")
    assert len(keys(store)) == 2
    assert store.verify().ok


@pytest.mark.parametrize("days", [-1, float("nan")])
def test_days_must_be_a_number_from_nought(store: Store, days: float) -> None:
    with pytest.raises(UsageError, match="--keep-days"):
        store.gc(days)


def test_very_many_days_keep_everything(store: Store) -> None:
    chain(store, 1)
    assert store.gc(float("inf")).records == ()
    assert store.gc(1e9).records == ()
