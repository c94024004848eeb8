"""Finding, making and handing out artifacts in one process."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
from store_files import blob_file, left_in
from store_worker import action, content, maker

from yolotrt_core.errors import StageError, UsageError
from yolotrt_core.store.store import Store
from yolotrt_core.types import Json


def test_nothing_is_found_or_made_where_no_store_is(store: Store) -> None:
    assert store.find(action().key) is None
    assert list(store.records()) == []
    assert store.refs() == {}
    assert store.verify().ok
    assert store.gc(0).records == ()
    assert store.repair().ok
    assert not store.root.exists()


def test_second_time_is_found(store: Store) -> None:
    made, from_cache = store.obtain(action(1), maker(1))
    assert not from_cache

    def never(work: Path) -> Mapping[str, Json]:
        raise AssertionError("made again")

    found, from_cache = store.obtain(action(1), never)
    assert from_cache
    assert found == made == store.find(action(1).key)
    assert made.facts == {"number": 1}
    assert set(made.outputs) == {"model.onnx", "nested/reference.npz", "labels.txt"}


def test_files_come_out_as_they_went_in(store: Store, tmp_path: Path) -> None:
    record, _ = store.obtain(action(1), maker(1))
    blob = record.outputs["model.onnx"]
    store.copy_out(blob.sha256, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == store.read(blob.sha256) == content(1, "model")
    assert blob.size == len(content(1, "model"))


def test_copy_is_the_users_own_file(store: Store, tmp_path: Path) -> None:
    record, _ = store.obtain(action(1), maker(1))
    sha256 = record.outputs["model.onnx"].sha256
    mask = os.umask(0o022)
    try:
        store.copy_out(sha256, tmp_path / "copy")
    finally:
        os.umask(mask)
    copy = (tmp_path / "copy").stat()
    assert stat.S_IMODE(copy.st_mode) == 0o644
    assert copy.st_nlink == 1
    assert copy.st_ino != blob_file(store, sha256).stat().st_ino
    assert stat.S_IMODE(blob_file(store, sha256).stat().st_mode) == 0o444


def test_store_is_private(store: Store) -> None:
    store.obtain(action(1), maker(1))
    for folder in (store.root, store.cache_folder, store.locks_folder, store.work_folder):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_equal_files_are_stored_once(store: Store) -> None:
    first, _ = store.obtain(action(1), maker(1))
    second, _ = store.obtain(action(2), maker(2))
    assert first.outputs["labels.txt"] == second.outputs["labels.txt"]
    assert len(list(store.cache_folder.rglob("*.val"))) == 5


def test_force_makes_again_and_replaces_the_record(store: Store) -> None:
    store.obtain(action(1), lambda work: {"try": 1})
    record, from_cache = store.obtain(action(1), lambda work: {"try": 2}, force=True)
    assert not from_cache
    assert store.find(record.key) == record
    assert record.facts == {"try": 2}


def test_on_start_is_called_only_before_a_build(store: Store) -> None:
    started: list[str] = []

    def make(work: Path) -> Mapping[str, Json]:
        assert started == [action(1).key]
        return {}

    store.obtain(action(1), make, on_start=lambda a: started.append(a.key))
    store.obtain(action(1), make, on_start=lambda a: started.append(a.key))
    assert started == [action(1).key]


def test_work_folder_is_empty_before_and_gone_after(store: Store) -> None:
    work = store.work_folder / action(1).key
    (work / "out" / "left").mkdir(parents=True)
    (work / "stage.log").write_text("of a killed build")

    def make(given: Path) -> Mapping[str, Json]:
        assert given == work
        assert left_in(given) == ["out", "owner.json"]
        (given / "in").mkdir()
        (given / "in" / "model.onnx").write_bytes(b"input")
        (given / "stage.log").write_text("fine")
        return {}

    record, _ = store.obtain(action(1), make)
    assert record.outputs == {}
    assert left_in(store.work_folder) == []


def test_failed_stage_leaves_only_its_log(store: Store) -> None:
    def make(work: Path) -> Mapping[str, Json]:
        (work / "in").mkdir()
        (work / "out" / "half").write_bytes(b"x")
        (work / "stage.log").write_text("what the tool said\n")
        raise StageError("the tool failed")

    with pytest.raises(StageError, match="the tool failed") as caught:
        store.obtain(action(1), make)
    key = action(1).key
    assert (caught.value.stage, caught.value.key) == ("exporter", key)
    assert caught.value.log == store.work_folder / key / "stage.log"
    assert left_in(store.work_folder) == [key, f"{key}/stage.log"]
    assert store.find(key) is None
    assert store.verify().records == 0
    assert store.obtain(action(1), maker(1))[1] is False
    assert left_in(store.work_folder) == []


@pytest.mark.parametrize("error", [StageError("no"), UsageError("no"), RuntimeError("no"), KeyboardInterrupt()])
def test_failure_without_a_word_leaves_nothing(store: Store, error: BaseException) -> None:
    def make(work: Path) -> Mapping[str, Json]:
        (work / "out" / "half").write_bytes(b"x")
        (work / "stage.log").touch()
        raise error

    with pytest.raises(type(error)) as caught:
        store.obtain(action(1), make)
    assert caught.value is error
    if isinstance(error, StageError):
        assert error.log is None
    assert left_in(store.work_folder) == []
    assert store.obtain(action(1), maker(1))[1] is False


def _link(work: Path) -> None:
    (work / "out" / "link").symlink_to("/etc/passwd")


def _linked_folder(work: Path) -> None:
    (work / "out" / "folder").symlink_to("/etc", target_is_directory=True)


def _pipe(work: Path) -> None:
    os.mkfifo(work / "out" / "pipe")


def _stray(work: Path) -> None:
    (work / "model.onnx").write_bytes(b"x")


@pytest.mark.parametrize(
    ("do", "said"),
    [(_link, "`link`"), (_linked_folder, "`folder`"), (_pipe, "`pipe`"), (_stray, "`model.onnx` outside `out`")],
)
def test_output_that_is_no_plain_file_under_out_is_refused(store: Store, do: object, said: str) -> None:
    def make(work: Path) -> Mapping[str, Json]:
        do(work)  # type: ignore[operator]
        return {}

    with pytest.raises(StageError, match=said):
        store.obtain(action(1), make)
    assert store.find(action(1).key) is None
    assert left_in(store.work_folder) == []


@pytest.mark.parametrize("facts", [{"loss": float("nan")}, {"when": object()}, [1]])
def test_facts_that_are_no_json_are_the_plugins_fault(store: Store, facts: Mapping[str, Json]) -> None:
    with pytest.raises(StageError, match="reported facts that are no"):
        store.obtain(action(1), lambda work: facts)
    assert store.find(action(1).key) is None


def test_threads_make_once(store: Store) -> None:
    runs: list[int] = []
    results: list[bool] = []

    def make(work: Path) -> Mapping[str, Json]:
        runs.append(1)
        return maker(1, seconds=0.1)(work)

    threads = [threading.Thread(target=lambda: results.append(store.obtain(action(1), make)[1])) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(runs) == 1
    assert sorted(results) == [False] + [True] * 5


def test_resolve_needs_one_key(store: Store) -> None:
    keys = [store.obtain(action(n), maker(n))[0].key for n in range(3)]
    assert store.resolve(keys[0]).key == keys[0]
    assert store.resolve(keys[0][:12].upper()).key == keys[0]
    with pytest.raises(UsageError, match="no artifact with the name or key prefix `zz`"):
        store.resolve("zz")
    with pytest.raises(UsageError, match="no artifact"):
        store.resolve("")
    for number in range(3, 40):  # more keys than hex digits: two must begin alike
        store.obtain(action(number), lambda work: {})
    firsts = [record.key[0] for record in store.records()]
    shared = next(digit for digit in firsts if firsts.count(digit) > 1)
    with pytest.raises(UsageError, match=f"artifacts match the key prefix `{shared}`"):
        store.resolve(shared)


def test_names_stand_for_keys(store: Store) -> None:
    record, _ = store.obtain(action(1), maker(1))
    store.set_ref("yolov5n fp16", record.key)
    store.set_ref("yolov5n fp16", record.key)
    assert store.refs() == {"yolov5n fp16": record.key}
    store.remove_ref("yolov5n fp16")
    store.remove_ref("yolov5n fp16")
    assert store.refs() == {}
    for name in ("größe-fp16", "車", "e\u0301", "مدل\u200cمن"):
        store.set_ref(name, record.key)
        assert store.refs() == {name: record.key}
        store.remove_ref(name)
    for name in ("", ".", "..", "../x", "a/b", "a\nb", "a\x1b[0m", "a\x00", "\udcff", "a\u2028b"):
        with pytest.raises(UsageError, match="expected a valid name and a complete key"):
            store.set_ref(name, record.key)
    assert store.refs() == {}
    with pytest.raises(UsageError):
        store.set_ref("short", record.key[:12])


def test_side_files_are_kept_by_name_and_material(store: Store) -> None:
    side = store.side_cache()
    assert side.load("timing", {"tensorrt": "10.3"}) is None
    side.save("timing", {"tensorrt": "10.3"}, b"small")
    side.save("timing", {"tensorrt": "11.4"}, b"large" * 100_000)
    side.save("timing", {"tensorrt": "10.3"}, b"newer")
    assert side.load("timing", {"tensorrt": "10.3"}) == b"newer"
    assert side.load("timing", {"tensorrt": "11.4"}) == b"large" * 100_000
    assert side.load("kernels", {"tensorrt": "11.4"}) is None
    assert store.verify().ok
