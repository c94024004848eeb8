"""Finding, making and handing out artifacts in one process."""

from __future__ import annotations

import logging
import os
import stat
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
from store_worker import action, content, maker

from yolotrt_core.errors import StageError, UsageError
from yolotrt_core.store.failures import DamagedArtifactError, MissingArtifactError
from yolotrt_core.store.lineage import ABSENT, Difference
from yolotrt_core.store.store import Store
from yolotrt_core.types import Json


def blob_file(store: Store, sha256: str) -> Path:
    """Where a stored file lies."""
    cache = store.reading()
    assert cache is not None
    with cache.read(f"blob/{sha256}") as file:
        return Path(file.name)


def flip_byte(path: Path) -> None:
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def left_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


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


def test_start_is_told_only_before_making(store: Store) -> None:
    told: list[str] = []

    def make(work: Path) -> Mapping[str, Json]:
        assert told == [action(1).key]
        return {}

    store.obtain(action(1), make, on_start=lambda a: told.append(a.key))
    store.obtain(action(1), make, on_start=lambda a: told.append(a.key))
    assert told == [action(1).key]


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


def test_flipped_byte_is_found_and_mended(store: Store, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    record, _ = store.obtain(action(1), maker(1))
    sha256 = record.outputs["model.onnx"].sha256
    flip_byte(blob_file(store, sha256))

    assert store.obtain(action(1), maker(1))[1] is True  # bytes are not read without `verify`
    with pytest.raises(DamagedArtifactError, match=sha256[:12]):
        store.copy_out(sha256, tmp_path / "copy")
    assert left_in(tmp_path / "store" / "work") == []
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    with pytest.raises(DamagedArtifactError):
        store.read(sha256)
    damage = store.verify().damage
    assert {(d.kind, d.name) for d in damage} == {("blob", f"blob/{sha256}"), ("record", f"action/{record.key}")}

    with caplog.at_level(logging.WARNING):
        mended, from_cache = store.obtain(action(1), maker(1), verify=True)
    assert not from_cache
    assert "exporter `torch` is damaged in the store (model.onnx)" in caplog.text
    assert mended.outputs == record.outputs
    assert store.read(sha256) == content(1, "model")
    assert store.verify().ok
    assert store.obtain(action(1), maker(1), verify=True)[1] is True


def test_build_does_not_rely_on_a_damaged_file_of_another_artifact(store: Store) -> None:
    record, _ = store.obtain(action(1), maker(1))
    flip_byte(blob_file(store, record.outputs["labels.txt"].sha256))
    store.obtain(action(2), maker(2))
    assert store.verify().ok


def test_vanished_file_is_no_hit(store: Store, tmp_path: Path) -> None:
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
    with pytest.raises(UsageError, match="no artifact has a key that starts with `zz`"):
        store.resolve("zz")
    with pytest.raises(UsageError, match="no artifact"):
        store.resolve("")
    for number in range(3, 40):  # more keys than hex digits: two must begin alike
        store.obtain(action(number), lambda work: {})
    firsts = [record.key[0] for record in store.records()]
    shared = next(digit for digit in firsts if firsts.count(digit) > 1)
    with pytest.raises(UsageError, match=f"artifacts have keys that start with `{shared}`"):
        store.resolve(shared)


def test_names_stand_for_keys(store: Store) -> None:
    record, _ = store.obtain(action(1), maker(1))
    store.set_ref("yolov5n fp16", record.key)
    store.set_ref("yolov5n fp16", record.key)
    assert store.refs() == {"yolov5n fp16": record.key}
    store.remove_ref("yolov5n fp16")
    store.remove_ref("yolov5n fp16")
    assert store.refs() == {}
    with pytest.raises(UsageError):
        store.set_ref("", record.key)
    with pytest.raises(UsageError):
        store.set_ref("short", record.key[:12])


def _chain(store: Store, *, opset: int = 17) -> tuple[str, str, str]:
    """Build export, simplify and engine; return their keys."""
    export, _ = store.obtain(action(1), maker(1))
    onnx = {"onnx": export.outputs["model.onnx"].sha256}
    simplify = action(1, stage="pass", inputs=onnx, options={"opset": opset})

    def slim(work: Path) -> Mapping[str, Json]:
        (work / "out" / "model.onnx").write_bytes(b"slim %d" % opset)
        return {}

    slimmed, _ = store.obtain(simplify, slim)
    build = action(1, stage="builder", inputs={"onnx": slimmed.outputs["model.onnx"].sha256})
    engine, _ = store.obtain(build, maker(9))
    return export.key, slimmed.key, engine.key


def test_lineage_leads_to_the_source(store: Store) -> None:
    export, slimmed, engine = _chain(store)
    tree = store.lineage(store.resolve(engine))
    assert tree.record.key == engine
    middle = tree.inputs["onnx"]
    assert not isinstance(middle, str)
    assert middle.record.key == slimmed
    first = middle.inputs["onnx"]
    assert not isinstance(first, str)
    assert first.record.key == export
    assert first.inputs == {"source": "cd" * 32}


def test_lineage_of_a_stage_that_returns_its_input_goes_past_it(store: Store) -> None:
    export, _ = store.obtain(action(1), maker(1))
    same = action(1, stage="pass", inputs={"onnx": export.outputs["model.onnx"].sha256})

    def copy(work: Path) -> Mapping[str, Json]:
        (work / "out" / "model.onnx").write_bytes(content(1, "model"))
        return {}

    record, _ = store.obtain(same, copy)
    source = store.lineage(record).inputs["onnx"]
    assert not isinstance(source, str)
    assert source.record.key == export.key


def test_nearest_says_what_differs(store: Store) -> None:
    store.obtain(action(1), maker(1))
    store.obtain(action(2, options={"number": 5, "opset": 11}), maker(2))
    store.obtain(action(1, stage="pass"), maker(1))
    wanted = action(7, tools={"torch": "2.10.0", "onnx": "1.19"})
    found = store.nearest(wanted)
    assert found is not None
    assert found[0].key == action(1).key
    assert found[1] == (
        Difference("options.number", 1, 7),
        Difference("tools.onnx", ABSENT, "1.19"),
        Difference("tools.torch", "2.9.1", "2.10.0"),
    )
    assert store.nearest(action(1, stage="builder")) is None
    exact = store.nearest(action(1))
    assert exact is not None
    assert exact[1] == ()


def test_nearest_tells_one_from_one_point_nought(store: Store) -> None:
    store.obtain(action(1, options={"tolerance": 1}), maker(1))
    found = store.nearest(action(1, options={"tolerance": 1.0}))
    assert found is not None
    assert [d.path for d in found[1]] == ["options.tolerance"]


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


def test_damaged_side_file_is_not_used(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    side = store.side_cache()
    side.save("timing", {"v": "1"}, b"x" * 100_000)
    flip_byte(next(store.cache_folder.rglob("*.val")))
    assert side.load("timing", {"v": "1"}) is None
    assert "damaged" in caplog.text
    assert [d.kind for d in store.verify().damage] == ["side"]
    store.repair()
    assert store.verify().ok


def test_repair_removes_damage_and_leftovers(store: Store) -> None:
    record, _ = store.obtain(action(1), maker(1))
    kept, _ = store.obtain(action(2), maker(2))
    flip_byte(blob_file(store, record.outputs["model.onnx"].sha256))
    orphan = store.cache_folder / "aa" / "bb" / f"{'0' * 28}.val"
    orphan.parent.mkdir(parents=True)
    orphan.write_bytes(b"of a killed writer")
    (store.cache_folder / "stranger").write_text("?")
    assert store.verify().orphans == 1
    assert {d.kind for d in store.repair().damage} == {"blob", "record"}
    assert not orphan.exists()
    assert not (store.cache_folder / "stranger").exists()
    assert store.verify().ok
    assert [r.key for r in store.records()] == [kept.key]
    assert store.read(kept.outputs["labels.txt"].sha256)
