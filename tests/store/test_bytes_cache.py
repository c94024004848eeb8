"""The database can hold only bytes: whatever else somebody plants is refused and never unpickled."""

from __future__ import annotations

import io
import os
import pickle
import sqlite3
from pathlib import Path
from typing import Any

import diskcache
import pytest
from store_worker import action, content, maker

from yolotrt_core.store.bytes_cache import ByteCache, BytesOnlyDisk
from yolotrt_core.store.errors import RefusedRowError
from yolotrt_core.store.store import Store

MODE_RAW, MODE_BINARY, MODE_TEXT, MODE_PICKLE = 1, 2, 3, 4


class Bomb:
    """Makes a file if it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._path),)


def plant(store: Store, key: Any, raw: int, mode: int, filename: str | None, value: Any) -> None:
    """Write a row as anybody could who may write the database."""
    with sqlite3.connect(store.cache_folder / "cache.db") as database:
        database.execute("DELETE FROM Cache WHERE key = ?", (key,))
        database.execute(
            "INSERT INTO Cache (key, raw, store_time, size, mode, filename, value) VALUES (?, ?, 0, 0, ?, ?, ?)",
            (key, raw, mode, filename, value),
        )
    database.close()


def use_everything(store: Store) -> None:
    """Every road that reads rows."""
    store.find(action(1).key)
    list(store.records())
    store.refs()
    store.verify()
    store.gc(0, dry_run=True)
    store.side_cache().load("timing", {})
    store.obtain(action(1), maker(1), verify=True)
    store.gc(1)
    store.repair()


def test_stock_diskcache_would_run_the_planted_pickle(store: Store, tmp_path: Path) -> None:
    """The danger is real: without our `Disk` the row of the next test runs its command."""
    store.obtain(action(1), maker(1))
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    plant(store, "action/x", 1, MODE_PICKLE, None, bomb)
    with diskcache.Cache(str(store.cache_folder)) as stock:
        stock.get("action/x")
    assert (tmp_path / "exploded").exists()


def test_planted_pickle_value_is_refused(store: Store, tmp_path: Path) -> None:
    store.obtain(action(1), maker(1))
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    for name in (f"action/{action(1).key}", "ref/build", "side/timing/0", f"blob/{'0' * 64}"):
        plant(store, name, 1, MODE_PICKLE, None, bomb)
    assert store.find(action(1).key) is None
    assert len(store.verify().damage) >= 4
    use_everything(store)
    assert not (tmp_path / "exploded").exists()
    assert store.verify().ok
    assert store.find(action(1).key) is not None


def test_planted_pickle_file_is_refused(store: Store, tmp_path: Path) -> None:
    store.obtain(action(1), maker(1))
    file = store.cache_folder / "aa" / "bb" / f"{'0' * 28}.val"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    plant(store, f"action/{action(1).key}", 1, MODE_PICKLE, "aa/bb/" + file.name, None)
    use_everything(store)
    assert not (tmp_path / "exploded").exists()
    assert store.verify().ok


def test_planted_pickle_key_is_refused(store: Store, tmp_path: Path) -> None:
    store.obtain(action(1), maker(1))
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    plant(store, bomb, 0, MODE_RAW, None, b"value")
    assert [d.kind for d in store.verify().damage] == ["row"]
    use_everything(store)
    assert not (tmp_path / "exploded").exists()
    assert store.verify().ok
    assert store.find(action(1).key) is not None


@pytest.mark.parametrize("way", ["up", "absolute", "link", "linked folder", "other name"])
def test_file_outside_the_folder_is_neither_read_nor_deleted(store: Store, tmp_path: Path, way: str) -> None:
    store.obtain(action(1), maker(1))
    outside = tmp_path / "outside"
    (outside / "bb").mkdir(parents=True)
    secret = outside / "bb" / f"{'0' * 28}.val"
    secret.write_bytes(b"secret")
    cache = store.cache_folder
    (cache / "aa" / "bb").mkdir(parents=True, exist_ok=True)
    (cache / "aa" / "bb" / f"{'0' * 28}.val").symlink_to(secret)
    (cache / "zz").symlink_to(outside)
    linked = next(f"{n:02x}" for n in range(256) if not (cache / f"{n:02x}").exists())  # the store draws such names
    (cache / linked).symlink_to(outside)
    name = {
        "up": f"../../outside/bb/{secret.name}",
        "absolute": str(secret),
        "link": f"aa/bb/{secret.name}",
        "linked folder": f"{linked}/bb/{secret.name}",
        "other name": "zz/bb/secret.val",
    }[way]
    for key in (f"action/{action(1).key}", f"blob/{'1' * 64}", "ref/build"):
        plant(store, key, 1, MODE_BINARY, name, None)
    with pytest.raises(RefusedRowError):
        store.read("1" * 64)
    assert {d.kind for d in store.verify().damage} == {"row"}
    use_everything(store)
    assert secret.read_bytes() == b"secret"
    assert store.verify().ok


@pytest.mark.parametrize(
    ("mode", "value"),
    [(0, None), (MODE_RAW, "text"), (MODE_RAW, 5), (MODE_RAW, None), (MODE_TEXT, None), (9, b"x"), ("two", b"x")],
)
def test_other_rows_are_refused(store: Store, mode: Any, value: Any) -> None:
    store.obtain(action(1), maker(1))
    plant(store, f"action/{action(1).key}", 1, mode, None, value)
    plant(store, "stranger", 1, MODE_RAW, None, b"fine but unknown")
    assert store.find(action(1).key) is None
    assert [d.kind for d in store.verify().damage] == ["row", "row"]
    use_everything(store)
    assert store.verify().ok


def test_planted_settings_change_nothing(store: Store) -> None:
    store.obtain(action(1), maker(1))
    planted = {"get": "x", "_disk": "x", "set": 5, "disk_key": 1, "sqlite_writable_schema": 1, "cull_limit": 10}
    with sqlite3.connect(store.cache_folder / "cache.db") as database:
        database.executemany("INSERT OR REPLACE INTO Settings VALUES (?, ?)", planted.items())
    database.close()
    use_everything(store)
    store.obtain(action(2), maker(2))
    assert store.verify().ok
    with ByteCache(store.cache_folder) as cache:
        assert cache.cull_limit == 0


def test_nothing_is_ever_pickled(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("pickle was used")

    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, never)
    use_everything(store)
    store.set_ref("build", action(1).key)
    store.side_cache().save("timing", {}, b"x" * 100_000)
    use_everything(store)
    assert store.read(store.resolve(action(1).key).outputs["model.onnx"].sha256) == content(1, "model")


def test_nothing_is_evicted(store: Store) -> None:
    with store.writing() as cache:
        assert (cache.eviction_policy, cache.cull_limit, cache.size_limit) == ("none", 0, 2**62)


@pytest.mark.parametrize("key", [5, 1.5, b"bytes", None, ("a", 1)])
def test_only_text_is_a_key(tmp_path: Path, key: object) -> None:
    with ByteCache(tmp_path / "cache") as cache, pytest.raises(TypeError, match="keys are str"):
        cache.set(key, b"value")


@pytest.mark.parametrize("value", ["text", 5, 1.5, None, {"a": 1}, bytearray(b"x")])
def test_only_bytes_are_a_value(tmp_path: Path, value: object) -> None:
    with ByteCache(tmp_path / "cache") as cache:
        with pytest.raises(TypeError, match="values are bytes"):
            cache.set("key", value)
        with pytest.raises(TypeError, match="streams yield bytes"):
            cache.set("key", io.StringIO("text"), read=True)
        assert not list(Path(cache.directory).rglob("*.val"))


@pytest.mark.parametrize("size", [0, 1, 2**15 - 1, 2**15, 2**22 - 1, 2**22, 2**22 + 1, 3 * 2**22])
def test_bytes_and_streams_come_back(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    with ByteCache(tmp_path / "cache") as cache:
        cache.set("value", data)
        cache.set("stream", io.BytesIO(data), read=True)
        assert cache.get("value") == data
        assert cache.get("stream") == data
        with cache.read("stream") as file:
            assert file.read() == data


def test_files_are_written_in_chunks_and_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    synced: list[int] = []
    fsync = os.fsync

    class Stream(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            asked.append(size or 0)
            return super().read(size)

    monkeypatch.setattr(os, "fsync", lambda number: (synced.append(number), fsync(number)))
    with ByteCache(tmp_path / "cache") as cache:
        cache.set("stream", Stream(bytes(9 << 20)), read=True)
    assert set(asked) == {4 << 20}
    assert len(synced) == 1


def test_file_name_is_not_the_content(tmp_path: Path) -> None:
    """Two rows of equal bytes must not share a file: deleting one would take the other's."""
    disk = BytesOnlyDisk(str(tmp_path), min_file_size=0)
    assert disk.store(b"same", False)[2] != disk.store(b"same", False)[2]
