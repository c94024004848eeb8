"""Many processes on one store, and processes that die at any moment."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from store_worker import action, answers, content, go, maker, start

from yolotrt_core.store.store import Store

KILLS = 50


@pytest.mark.parametrize("round_number", range(2))
def test_eight_processes_build_once(store: Store, tmp_path: Path, round_number: int) -> None:
    starts = tmp_path / "starts"
    processes = [start("build", store.root, number=1, seconds=0.3, starts=str(starts)) for _ in range(8)]
    go(*processes)
    found = answers(*processes)
    assert len(starts.read_text().splitlines()) == 1
    assert sorted(f["from_cache"] for f in found) == [False] + [True] * 7
    assert {f["key"] for f in found} == {action(1).key}
    assert len({str(f["outputs"]) for f in found}) == 1
    assert store.verify().ok
    assert store.verify().orphans == 0


def test_eight_processes_build_eight_things_that_share_a_file(store: Store) -> None:
    processes = [start("build", store.root, number=n) for n in range(8)]
    go(*processes)
    assert [f["from_cache"] for f in answers(*processes)] == [False] * 8
    report = store.verify()
    assert report.ok
    assert (report.records, report.blobs, report.orphans) == (8, 17, 0)


def test_eight_processes_mend_a_flipped_byte_once(store: Store, tmp_path: Path) -> None:
    record, _ = store.obtain(action(1), maker(1))
    cache = store.reading()
    assert cache is not None
    with cache.read(f"blob/{record.outputs['model.onnx'].sha256}") as file:
        path = Path(file.name)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    starts = tmp_path / "starts"
    settings = {"number": 1, "seconds": 0.2, "starts": str(starts), "verify": True}
    processes = [start("build", store.root, **settings) for _ in range(8)]
    go(*processes)
    assert sorted(f["from_cache"] for f in answers(*processes)) == [False] + [True] * 7
    assert len(starts.read_text().splitlines()) == 1
    assert store.verify().ok


def test_another_process_takes_over_from_a_killed_one(store: Store, tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    settings = {"number": 1, "starts": str(starts)}
    first = start("build", store.root, seconds=60, **settings)
    go(first)
    while not starts.exists():
        time.sleep(0.01)
    others = [start("build", store.root, **settings) for _ in range(3)]
    go(*others)
    time.sleep(0.2)
    first.kill()
    first.communicate()
    assert sorted(f["from_cache"] for f in answers(*others)) == [False, True, True]
    assert len(starts.read_text().splitlines()) == 2
    assert list(store.work_folder.iterdir()) == []


def test_waiting_says_for_whom(store: Store) -> None:
    holder = start("hold", store.root, number=1)
    go(holder)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "building\n"
    waiter = start("build", store.root, number=1)
    go(waiter)
    assert waiter.stderr is not None
    messages = [waiter.stderr.readline()]
    go(holder)
    assert answers(holder) == [{"from_cache": False}]
    _, errors = waiter.communicate(timeout=60)
    messages += [line for line in errors.splitlines() if "waiting for" in line]
    assert len(messages) == 1
    assert f"process {holder.pid}" in messages[0]
    assert "exporter `torch`" in messages[0]
    assert action(1).key[:12] in messages[0]


def test_killed_at_any_moment_the_store_verifies_and_builds(tmp_path: Path) -> None:
    """SIGKILL at random moments, from making the database to removing the work folder."""
    chance = random.Random(20260101)
    nursery = start("nursery", tmp_path)
    go(nursery)
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    interrupted, orphans, unmade = 0, 0, 0
    for attempt in range(KILLS):
        # Every second try is on a store that is just being created.
        store = Store(tmp_path / ("old" if attempt % 2 else f"new{attempt}"))
        number = 1000 * attempt
        nursery.stdin.write(json.dumps([str(store.root), number]) + "\n")
        nursery.stdin.flush()
        child = int(nursery.stdout.readline())
        while attempt % 2 and store.find(action(number).key) is None:
            time.sleep(0.001)
        time.sleep(chance.uniform(0.0, 0.03 if attempt % 2 else 0.15))
        os.kill(child, signal.SIGKILL)
        assert nursery.stdout.readline() == "dead\n"

        interrupted += store.work_folder.is_dir() and any(store.work_folder.iterdir())
        report = store.verify()
        assert report.ok, (attempt, report.damage)
        orphans += report.orphans > 0
        unmade += report.records == 0
        while store.find(action(number).key) is not None:
            number += 1
        # The one that was being built when the process died, with its work folder and its lock.
        record, from_cache = store.obtain(action(number), maker(number))
        assert not from_cache
        assert store.read(record.outputs["model.onnx"].sha256) == content(number, "model")
        assert store.verify().ok
        store.gc(1)
        assert store.verify().orphans == 0
        assert list(store.work_folder.iterdir()) == []
        store.close()
    nursery.communicate()
    print(f"{KILLS} kills: {interrupted} left a work folder, {orphans} a file without a row, {unmade} no record")
    # Else the kills came too late or too early to show anything.
    assert interrupted >= KILLS / 5
    assert orphans >= 1


def test_builds_go_on_while_others_collect(store: Store, tmp_path: Path) -> None:
    """`gc` of everything, again and again, under builds whose steps need each other's files."""
    stop = tmp_path / "stop"
    builders = [start("chain", store.root, number=10 * n, builds=8) for n in range(2)]
    collectors = [start("collect", store.root, stop=str(stop)) for _ in range(2)]
    go(*builders, *collectors)
    built = answers(*builders)
    stop.touch()
    collected = answers(*collectors)
    print(built, collected)
    assert [b["builds"] for b in built] == [8, 8]
    assert all(c["runs"] > 1 for c in collected), collected
    assert sum(c["deleted"] for c in collected) > 0
    assert store.verify().ok
    assert store.verify().orphans == 0


def test_collection_keeps_what_a_running_build_needs(store: Store) -> None:
    needed, _ = store.obtain(action(1), maker(1))
    store.obtain(action(2), maker(2))
    digest = needed.outputs["model.onnx"].sha256
    holder = start("hold", store.root, number=3, inputs={"onnx": digest})
    go(holder)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "building\n"
    dry = store.gc(0, dry_run=True)
    report = store.gc(0)
    assert [r.key for r in dry.records] == [r.key for r in report.records] == [action(2).key]
    assert store.read(digest) == content(1, "model")
    assert (store.work_folder / action(3, inputs={"onnx": digest}).key / "out").is_dir()
    go(holder)
    assert answers(holder) == [{"from_cache": False}]
    assert store.verify().ok


def test_repair_waits_for_no_build(store: Store) -> None:
    from yolotrt_core.errors import ArtifactError

    store.obtain(action(1), maker(1))
    holder = start("hold", store.root, number=3)
    go(holder)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "building\n"
    with pytest.raises(ArtifactError, match="is being built"):
        store.repair()
    go(holder)
    answers(holder)
    assert store.repair().ok
