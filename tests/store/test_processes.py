"""Many processes on one store, and processes that die at any moment."""

from __future__ import annotations

import random
import signal
import subprocess
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
    time.sleep(1.6)
    go(holder)
    assert answers(holder) == [{"from_cache": False}]
    _, errors = waiter.communicate(timeout=30)
    told = [line for line in errors.splitlines() if "waiting for" in line]
    assert len(told) == 1
    assert f"process {holder.pid}" in told[0]
    assert "exporter `torch`" in told[0]
    assert action(1).key[:12] in told[0]


def test_killed_at_any_moment_the_store_verifies_and_builds(store: Store) -> None:
    """SIGKILL at random moments, from opening the database to removing the work folder."""
    chance = random.Random(20260101)
    waiting = [_endless(store, 0)]
    for attempt in range(KILLS):
        process = waiting.pop()
        go(process)
        if attempt + 1 < KILLS:
            waiting.append(_endless(store, attempt + 1))  # its start is not idle time
        time.sleep(chance.uniform(0.0, 0.04))
        process.send_signal(signal.SIGKILL)
        process.communicate()

        report = store.verify()
        assert report.ok, (attempt, report.damage)
        number = _first(attempt)
        while store.find(action(number).key) is not None:
            number += 1
        # The one that was being made when the process died, with its work folder and its lock.
        record, from_cache = store.obtain(action(number), maker(number))
        assert not from_cache
        assert store.read(record.outputs["model.onnx"].sha256) == content(number, "model")
    report = store.repair()
    assert report.ok
    assert store.verify().orphans == 0
    for record in store.records():
        assert record.outputs["model.onnx"].size == len(content(int(str(record.facts["number"])), "model"))
    assert store.verify().records >= KILLS


def _first(attempt: int) -> int:
    return attempt * 10_000


def _endless(store: Store, attempt: int) -> subprocess.Popen[str]:
    return start("endless", store.root, number=_first(attempt))


def test_builds_go_on_while_others_collect(store: Store) -> None:
    """`gc` of everything, again and again, under builds whose steps need each other's files."""
    builders = [start("chain", store.root, number=10 * n, seconds=2.5) for n in range(2)]
    collectors = [start("collect", store.root, seconds=2.5) for _ in range(2)]
    go(*builders, *collectors)
    built = answers(*builders)
    collected = answers(*collectors)
    assert all(b["builds"] > 5 for b in built), built
    # A file may go in the moment between two steps; the pipeline then starts over. It must be rare.
    assert all(b["retries"] <= b["builds"] / 4 for b in built), built
    assert all(c["runs"] > 2 for c in collected), collected
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
    time.sleep(1.1)  # records tell their age in whole seconds
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
    with pytest.raises(ArtifactError, match="is being made"):
        store.repair()
    go(holder)
    answers(holder)
    assert store.repair().ok
