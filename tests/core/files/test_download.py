"""Fetching a file whose content is known, from servers that do as they should and others."""

from __future__ import annotations

import hashlib
import http.server
import multiprocessing
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from release_server import CONTENT, SHA256, Server, left_in, whole

from yolotrt_core.errors import ArtifactError, UsageError
from yolotrt_core.files.download import Patience, RemoteFile, fetch

QUICK = Patience(attempts=4, pause_seconds=0.01, timeout_seconds=20)


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


def test_connection_that_always_breaks_ends_with_what_to_do(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve(broken_after(10_000))
    with pytest.raises(UsageError, match=r"closed after 40000 of 700000 bytes, in 4 attempts") as caught:
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
    with pytest.raises(UsageError, match="longer than the expected 700000 bytes"):
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
    with pytest.raises(UsageError, match="connection timed out, in 2 attempts"):
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
    with pytest.raises(UsageError, match="host not found"):
        fetch(RemoteFile("http://mirror.invalid/tiny.pt", SHA256, 1), tmp_path / "tiny.pt", QUICK)


def test_only_web_addresses_are_fetched(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(CONTENT)
    with pytest.raises(UsageError, match="expected an http or https URL"):
        fetch(RemoteFile(secret.as_uri(), SHA256, len(CONTENT)), tmp_path / "tiny.pt", QUICK)


def test_cache_that_cannot_be_written(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve(whole)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ArtifactError, match="cannot write to") as raised:
        fetch(remote(server), tmp_path / "file" / "tiny.pt", QUICK)
    assert "XDG_CACHE_HOME" in (raised.value.hint or "")  # which is what moves the folder
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
