"""Sources: files, folders, the embedded model, and releases by name."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from release_server import CONTENT, SHA256, Server, left_in, whole

from yolotrt_core.errors import UsageError
from yolotrt_core.export import model_source
from yolotrt_core.export.model_source import RELEASES, Release, resolve_source
from yolotrt_core.files import download


def test_release_is_fetched_checked_and_then_served_from_the_cache(
    serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(whole)
    monkeypatch.setattr(model_source, "RELEASES", {"tiny": Release(SHA256, len(CONTENT), (640, 640))})
    monkeypatch.setenv(model_source.RELEASE_URL_VARIABLE, server.base + "/")
    monkeypatch.chdir(tmp_path)
    cache = tmp_path / "deep" / "cache"
    first = resolve_source("tiny", cache_dir=cache)
    assert first.path.read_bytes() == CONTENT
    assert (first.sha256, first.name, first.imgsz) == (SHA256, "tiny", (640, 640))
    assert server.requests == [("/v7.0/tiny.pt", None)]
    assert left_in(cache) == ["tiny.pt"]
    # Second time: nothing is asked of the server, nor may be.
    assert resolve_source("tiny", cache_dir=cache, offline=True) == first
    assert len(server.requests) == 1


def test_damaged_cache_is_fetched_again(
    serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(whole)
    monkeypatch.setattr(model_source, "RELEASES", {"tiny": Release(SHA256, len(CONTENT), (640, 640))})
    (tmp_path / "tiny.pt").write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(UsageError, match="is not the official file, and `--offline` disables"):
        resolve_source("tiny", cache_dir=tmp_path, offline=True)
    found = resolve_source("tiny", cache_dir=tmp_path, release_url=server.base)
    assert found.path.read_bytes() == CONTENT


def test_offline_says_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def no_network(*arguments: object, **named: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(download, "fetch", no_network)
    with pytest.raises(UsageError, match=r"`yolov5n` is not in .* and `--offline` disables") as caught:
        resolve_source("yolov5n", cache_dir=tmp_path / "cache", offline=True)
    hint = caught.value.hint or ""
    assert RELEASES["yolov5n"].sha256 in hint and "releases/download/v7.0/yolov5n.pt" in hint
    assert not (tmp_path / "cache").exists()


def test_pinned_digest_is_the_official_files(data: Path) -> None:
    file = data / "weights" / "yolov5n.pt"
    said = subprocess.run(["sha256sum", file], capture_output=True, text=True, check=True).stdout.split()[0]
    assert (said, file.stat().st_size) == (RELEASES["yolov5n"].sha256, RELEASES["yolov5n"].size_bytes)
    assert all(len(bytes.fromhex(release.sha256)) == 32 for release in RELEASES.values())


def test_file_wins_over_a_known_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("yolov5n").write_bytes(b"mine")
    found = resolve_source("yolov5n", cache_dir=tmp_path / "cache")
    assert (found.path, found.sha256, found.imgsz) == (Path("yolov5n"), hashlib.sha256(b"mine").hexdigest(), None)


def test_file_is_named_by_its_stem(tmp_path: Path) -> None:
    (tmp_path / "best v2.pt").write_bytes(b"x")
    assert resolve_source(tmp_path / "best v2.pt", cache_dir=tmp_path).name == "best v2"


def test_folder_digest_follows_names_and_contents_only(tmp_path: Path) -> None:
    def folder(name: str, files: dict[str, bytes]) -> str:
        for relative, content in files.items():
            (tmp_path / name / relative).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / relative).write_bytes(content)
        return resolve_source(tmp_path / name, cache_dir=tmp_path).sha256

    files = {"saved_model.pb": b"graph", "variables/a": b"1", "variables/b": b"2"}
    first = folder("one", files)
    assert first == folder("two", dict(reversed(files.items())))
    listed = [[name, hashlib.sha256(files[name]).hexdigest()] for name in sorted(files)]
    assert first == hashlib.sha256(json.dumps(listed).encode()).hexdigest()
    os.utime(tmp_path / "one" / "saved_model.pb", (1, 1))
    assert folder("one", {}) == first
    others = [
        {**files, "variables/b": b"3"},
        {"saved_model.pb": b"graph", "variables/a": b"1", "variables/c": b"2"},
        {"saved_model.pb": b"graph", "variables/a": b"12", "variables/b": b""},
        {"saved_model.pb": b"graph", "variables/a": b"2", "variables/b": b"1"},
    ]
    assert len({first, *(folder(f"other{index}", each) for index, each in enumerate(others))}) == 5


def test_folders_that_are_no_model_are_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UsageError, match="is empty"):
        resolve_source(empty, cache_dir=tmp_path)
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "saved_model.pb").symlink_to("/etc/hostname")
    with pytest.raises(UsageError, match="is a symbolic link"):
        resolve_source(linked, cache_dir=tmp_path)
    piped = tmp_path / "piped"
    piped.mkdir()
    os.mkfifo(piped / "saved_model.pb")
    with pytest.raises(UsageError, match="neither a file nor a model folder"):
        resolve_source(piped, cache_dir=tmp_path)


def test_device_is_refused_not_read_forever(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither a file nor a model folder"):
        resolve_source("/dev/zero", cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("weights", "hint"),
    [
        ("yolov5q", "one of `parts`, `yolov5n`, `yolov5s`, `yolov5m`"),
        ("runs/best.pt", "pass an existing file"),
        ("yolov5n.pt", "pass `yolov5n` to download the official checkpoint"),
        ("", "pass an existing file"),
    ],
)
def test_neither_file_nor_name(weights: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="unknown model") as caught:
        resolve_source(weights, cache_dir=tmp_path)
    assert hint in (caught.value.hint or "")
