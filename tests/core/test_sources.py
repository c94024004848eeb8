"""Sources: files, folders, the embedded model, and releases fetched from a server on this machine."""

from __future__ import annotations

import hashlib
import http.server
import json
import multiprocessing
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from yolotrt_core import download, sources
from yolotrt_core.download import Patience, RemoteFile, fetch
from yolotrt_core.errors import ArtifactError, UsageError
from yolotrt_core.sources import RELEASES, Release, resolve_source

CONTENT = hashlib.shake_256(b"a checkpoint").digest(700_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
QUICK = Patience(attempts=4, pause_seconds=0.01, timeout_seconds=20)


class Server:
    """Serves one answer after another; `plan` holds how each connection goes, the last one for all others."""

    def __init__(self, *plan: Callable[[http.server.BaseHTTPRequestHandler], None]) -> None:
        self.requests: list[tuple[str, str | None]] = []
        self.release = threading.Event()
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append((self.path, self.headers["Range"]))
                plan[min(len(server.requests), len(plan)) - 1](self)

            def log_message(self, format: str, *args: object) -> None:
                return

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/v7.0"

    def stop(self) -> None:
        self.release.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv(sources.RELEASE_URL_VARIABLE, raising=False)
    started: list[Server] = []

    def start(*plan: Callable[[http.server.BaseHTTPRequestHandler], None]) -> Server:
        started.append(Server(*plan))
        return started[-1]

    yield start
    for server in started:
        server.stop()


def whole(handler: http.server.BaseHTTPRequestHandler, content: bytes = CONTENT) -> None:
    """Answer as a server that knows ranges does."""
    asked = handler.headers["Range"]
    start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
    handler.send_response(206 if asked else 200)
    if asked:
        handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
    handler.send_header("Content-Length", str(len(content) - start))
    handler.end_headers()
    handler.wfile.write(content[start:])


def whole_without_ranges(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(CONTENT)))
    handler.end_headers()
    handler.wfile.write(CONTENT)


def broken_after(size: int) -> Callable[[http.server.BaseHTTPRequestHandler], None]:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        asked = handler.headers["Range"]
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        handler.send_response(206 if asked else 200)
        handler.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        handler.send_header("Content-Length", str(len(CONTENT) - start))
        handler.end_headers()
        handler.wfile.write(CONTENT[start : start + size])
        handler.wfile.flush()
        handler.connection.shutdown(socket.SHUT_RDWR)

    return answer


def answers(code: int) -> Callable[[http.server.BaseHTTPRequestHandler], None]:
    return lambda handler: handler.send_error(code)


def remote(server: Server, content: bytes = CONTENT) -> RemoteFile:
    return RemoteFile(f"{server.base}/tiny.pt", hashlib.sha256(content).hexdigest(), len(content))


def left_in(folder: Path) -> list[str]:
    """Name what a fetch left, the lock aside, which is empty and stays."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


# --- what is fetched


def test_release_is_fetched_checked_and_then_served_from_the_cache(
    serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(whole)
    monkeypatch.setattr(sources, "RELEASES", {"tiny": Release(SHA256, len(CONTENT), (640, 640))})
    monkeypatch.setenv(sources.RELEASE_URL_VARIABLE, server.base + "/")
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
    monkeypatch.setattr(sources, "RELEASES", {"tiny": Release(SHA256, len(CONTENT), (640, 640))})
    (tmp_path / "tiny.pt").write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(UsageError, match="is not the official file, and `--offline` forbids"):
        resolve_source("tiny", cache_dir=tmp_path, offline=True)
    found = resolve_source("tiny", cache_dir=tmp_path, release_url=server.base)
    assert found.path.read_bytes() == CONTENT


def test_broken_connections_are_taken_up_where_they_broke(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve(broken_after(300_000), broken_after(1000), whole)
    fetch(remote(server), tmp_path / "tiny.pt", QUICK)
    assert (tmp_path / "tiny.pt").read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == [None, "bytes=300000-", "bytes=301000-"]


def test_server_without_ranges_starts_over(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve(broken_after(300_000), whole_without_ranges)
    fetch(remote(server), tmp_path / "tiny.pt", QUICK)
    assert (tmp_path / "tiny.pt").read_bytes() == CONTENT


def test_busy_server_is_asked_again(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve(answers(503), whole)
    fetch(remote(server), tmp_path / "tiny.pt", QUICK)
    assert len(server.requests) == 2


# --- what goes wrong


def test_connection_that_always_breaks_ends_with_what_to_do(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve(broken_after(10_000))
    with pytest.raises(UsageError, match=r"ended after 40000 of 700000 bytes, in 4 attempts") as caught:
        fetch(remote(server), tmp_path / "tiny.pt", QUICK)
    assert len(server.requests) == 4
    assert caught.value.hint and SHA256 in caught.value.hint and str(tmp_path / "tiny.pt") in caught.value.hint
    assert left_in(tmp_path) == []


def test_wrong_content_is_removed_and_both_digests_shown(serve: Callable[..., Server], tmp_path: Path) -> None:
    other = CONTENT[:1000] + bytes([CONTENT[1000] ^ 1]) + CONTENT[1001:]
    server = serve(lambda handler: whole(handler, other))
    with pytest.raises(UsageError) as caught:
        fetch(remote(server), tmp_path / "tiny.pt", QUICK)
    assert SHA256 in str(caught.value) and hashlib.sha256(other).hexdigest() in str(caught.value)
    assert len(server.requests) == 1
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("content", [b"<html>sign in to this network</html>", CONTENT + b"more"])
def test_content_of_another_size_is_refused_before_it_fills_the_disk(
    serve: Callable[..., Server], tmp_path: Path, content: bytes
) -> None:
    server = serve(lambda handler: whole(handler, content))
    with pytest.raises(UsageError, match=f"it has {len(content)} bytes, expected 700000"):
        fetch(remote(server), tmp_path / "tiny.pt", QUICK)
    assert left_in(tmp_path) == []


def test_endless_content_without_a_length_is_cut(serve: Callable[..., Server], tmp_path: Path) -> None:
    def endless(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            for _ in range(10_000):
                handler.wfile.write(CONTENT)
        except OSError:
            return  # the client hung up, as it should

    server = serve(endless)
    with pytest.raises(UsageError, match="longer than the 700000 bytes expected"):
        fetch(remote(server), tmp_path / "tiny.pt", QUICK)
    assert left_in(tmp_path) == []


def test_missing_file_on_the_server_is_not_asked_for_again(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve(answers(404))
    with pytest.raises(UsageError, match="the server answered 404 not found") as caught:
        fetch(remote(server), tmp_path / "tiny.pt", QUICK)
    assert len(server.requests) == 1
    assert caught.value.hint and SHA256 in caught.value.hint


def test_silent_server_times_out(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve(lambda handler: server.release.wait(5) and None)
    with pytest.raises(UsageError, match="the server fell silent, in 2 attempts"):
        fetch(remote(server), tmp_path / "tiny.pt", Patience(2, 0.01, 0.1))
    assert left_in(tmp_path) == []


def test_refused_connection_and_unknown_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        monkeypatch.setenv("no_proxy", "*")
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/tiny.pt"
        with pytest.raises(UsageError, match="connection refused, in 4 attempts"):
            fetch(RemoteFile(url, SHA256, 1), tmp_path / "tiny.pt", QUICK)
    # The name space `.invalid` never resolves (RFC 2606).
    with pytest.raises(UsageError, match="its host is not found"):
        fetch(RemoteFile("http://mirror.invalid/tiny.pt", SHA256, 1), tmp_path / "tiny.pt", QUICK)


def test_only_web_addresses_are_fetched(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(CONTENT)
    with pytest.raises(UsageError, match="expected an address of http or https"):
        fetch(RemoteFile(secret.as_uri(), SHA256, len(CONTENT)), tmp_path / "tiny.pt", QUICK)


def test_cache_that_cannot_be_written(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve(whole)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ArtifactError, match="cannot write to"):
        fetch(remote(server), tmp_path / "file" / "tiny.pt", QUICK)
    assert server.requests == []


def test_full_disk_is_the_stores_error_not_the_networks(
    serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(whole)
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full on this system")
    genuine = Path.open

    def opened(self: Path, mode: str = "r", *args: object) -> object:
        return genuine(full if self.suffix == ".part" else self, mode, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(ArtifactError, match="no space left on device"):
        fetch(remote(server), tmp_path / "tiny.pt", QUICK)
    assert len(server.requests) == 1


def _fetch_in_process(url: str, folder: str, ready: str) -> None:
    while not Path(ready).exists():
        pass
    fetch(RemoteFile(url, SHA256, len(CONTENT)), Path(folder) / "tiny.pt", QUICK)


def test_processes_at_once_fetch_once(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve(whole)
    ready = tmp_path / "ready"
    context = multiprocessing.get_context("spawn")
    cache = tmp_path / "cache"
    arguments = (remote(server).url, str(cache), str(ready))
    processes = [context.Process(target=_fetch_in_process, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    ready.touch()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(server.requests) == 1
    assert left_in(cache) == ["tiny.pt"]


def test_offline_says_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def no_network(*arguments: object, **named: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(download, "fetch", no_network)
    with pytest.raises(UsageError, match=r"`yolov5n` is not in .* and `--offline` forbids") as caught:
        resolve_source("yolov5n", cache_dir=tmp_path / "cache", offline=True)
    hint = caught.value.hint or ""
    assert RELEASES["yolov5n"].sha256 in hint and "releases/download/v7.0/yolov5n.pt" in hint
    assert not (tmp_path / "cache").exists()


def test_pinned_digest_is_the_official_files(data: Path) -> None:
    file = data / "weights" / "yolov5n.pt"
    said = subprocess.run(["sha256sum", file], capture_output=True, text=True, check=True).stdout.split()[0]
    assert (said, file.stat().st_size) == (RELEASES["yolov5n"].sha256, RELEASES["yolov5n"].size_bytes)
    assert all(len(bytes.fromhex(release.sha256)) == 32 for release in RELEASES.values())


# --- what is there


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
    with pytest.raises(UsageError, match="holds no file"):
        resolve_source(empty, cache_dir=tmp_path)
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "saved_model.pb").symlink_to("/etc/hostname")
    with pytest.raises(UsageError, match="is a symbolic link"):
        resolve_source(linked, cache_dir=tmp_path)
    piped = tmp_path / "piped"
    piped.mkdir()
    os.mkfifo(piped / "saved_model.pb")
    with pytest.raises(UsageError, match="neither a file nor a folder"):
        resolve_source(piped, cache_dir=tmp_path)


def test_device_is_refused_not_read_forever(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither a file nor a folder"):
        resolve_source("/dev/zero", cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("weights", "hint"),
    [
        ("yolov5q", "one of the names `parts`, `yolov5n`, `yolov5s`, `yolov5m`"),
        ("runs/best.pt", "pass a file that exists"),
        ("yolov5n.pt", "pass `yolov5n` to fetch the official file"),
        ("", "pass a file that exists"),
        ("nul\0byte", "pass a file that exists"),
    ],
)
def test_neither_file_nor_name(weights: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no file") as caught:
        resolve_source(weights, cache_dir=tmp_path)
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize("weights", ["x" * 5000, "~nobody-of-this-name/model.pt"])
def test_impossible_paths_are_usage_errors(weights: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        resolve_source(weights, cache_dir=tmp_path)
