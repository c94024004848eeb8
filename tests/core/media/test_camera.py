"""Reading a live source on a thread: its end, its errors, connecting again, and the user's wish to end it."""

from __future__ import annotations

import http.server
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from video_files import numbered_image, numbers, steady, write_video
from yolotrt_core.console.signals import Interrupt, Terminated
from yolotrt_core.errors import UsageError
from yolotrt_core.media import camera
from yolotrt_core.media.camera import open_live
from yolotrt_core.media.video_decoder import VideoFrame


class _Connection:
    skipped, fps, finite, error = 0, 25.0, True, None

    def __init__(self, frames: int, then: Callable[[], object] | None) -> None:
        self._frames, self._then = frames, then

    def __iter__(self) -> Iterator[VideoFrame]:
        for level in range(self._frames):
            yield VideoFrame(np.full((2, 4, 3), level % 256, np.uint8), level / 25)
        if self._then is not None:
            self._then()


def _source(monkeypatch: pytest.MonkeyPatch, frames: int, then: Any = None) -> threading.Event:
    """Replace connections by one that ends; returns what is set once it was closed."""
    closed = threading.Event()

    @contextmanager
    def connected(source: str) -> Iterator[_Connection]:
        try:
            yield _Connection(frames, then)
        finally:
            closed.set()

    monkeypatch.setattr(camera, "connect", connected)
    return closed


def test_all_frames_come_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = _source(monkeypatch, 20)
    with open_live("camera:0", Interrupt()) as live:
        assert live.fps == 25
        assert [int(frame.pixels[0, 0, 0]) for frame in live] == list(range(20))
        assert live.lost is None
    assert closed.is_set()


def test_it_is_read_no_further_than_a_few_ahead_and_closed_when_left(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = _source(monkeypatch, 10**9)
    with open_live("camera:0", Interrupt()) as live:
        frames = iter(live)
        next(frames)
        time.sleep(0.2)
        assert int(next(frames).pixels[0, 0, 0]) == 1
    assert closed.wait(5)


def test_a_stalled_source_is_left_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camera, "_LAST_FRAME_SECONDS", 0.1)
    release, interrupt = threading.Event(), Interrupt()
    _source(monkeypatch, 1, release.wait)
    begun = time.monotonic()
    with open_live("camera:0", interrupt) as live:
        frames = iter(live)
        next(frames)
        interrupt.request()
        assert list(frames) == []
    assert time.monotonic() - begun < 1
    release.set()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, Terminated])
def test_asked_before_a_frame_it_is_cancelled(monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]) -> None:
    _source(monkeypatch, 100)
    interrupt = Interrupt()
    with pytest.raises(kind) as caught, open_live("camera:0", interrupt) as live:
        interrupt.request(signal.SIGTERM if kind is Terminated else signal.SIGINT)
        next(iter(live))
    assert caught.type is kind


def test_its_errors_are_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ValueError("cable pulled")

    _source(monkeypatch, 2, fail)
    seen = []
    with pytest.raises(ValueError, match="cable pulled"), open_live("camera:0", Interrupt()) as live:
        seen += [int(frame.pixels[0, 0, 0]) for frame in live]
    with pytest.raises(ValueError, match="cable pulled"), open_live("camera:0", Interrupt()) as live:
        for frame in live:
            seen.append(int(frame.pixels[0, 0, 0]))
    assert seen == [0, 1]


def test_a_source_without_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    _source(monkeypatch, 0)
    with (
        pytest.raises(UsageError, match=r"the live source `http://\*\*\*@cam/x` has no readable frame"),
        open_live("http://user:secret@cam/x", Interrupt()) as live,
    ):
        next(iter(live))


class _Server(http.server.ThreadingHTTPServer):
    """Sends to its nth viewer what the nth function does; to further ones nothing."""

    daemon_threads = True

    def __init__(self, *shows: Callable[[http.server.BaseHTTPRequestHandler], object]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.shows, self.viewers, self.ended = list(shows), 0, threading.Event()

    @property
    def address(self) -> str:
        return f"http://user:secret@127.0.0.1:{self.server_port}/live?token=secret"


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, _Server)
        server.viewers += 1
        if server.viewers > len(server.shows):
            server.ended.wait(30)
            return
        try:
            server.shows[server.viewers - 1](self)
        except OSError:  # the viewer is gone
            return

    def log_message(self, *values: object) -> None:
        return


@contextmanager
def _serving(*shows: Callable[[Any], object]) -> Iterator[_Server]:
    with _Server(*shows) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.ended.set()
            server.shutdown()
            thread.join()


def _jpegs(handler: Any, first: int, count: int, damaged: tuple[int, ...] = ()) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
    handler.end_headers()
    for number in range(first, first + count):
        good, data = cv2.imencode(".jpg", numbered_image(number))
        assert good
        content = b"\xff\xd8" + bytes(300) if number in damaged else data.tobytes()
        head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(content)}\r\n\r\n"
        handler.wfile.write(head.encode() + content + b"\r\n")


def _reset(handler: Any) -> None:
    """End the connection by a TCP reset, once everything was received."""
    time.sleep(0.3)
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("_SILENT_SECONDS", 0.7), ("_FIRST_WAIT", 0.05)):
        monkeypatch.setattr(camera, name, seconds)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.mark.usefixtures("impatient")
def test_a_live_source_is_connected_again_and_bad_frames_are_counted() -> None:
    def first(handler: Any) -> None:
        _jpegs(handler, 0, 20, damaged=(7, 12))
        _reset(handler)

    def second(handler: Any) -> None:
        _jpegs(handler, 20, 10)  # then silence
        server.ended.wait(30)

    shown: list[str] = []
    begun = time.monotonic()
    with (
        _serving(first, second, lambda handler: _jpegs(handler, 30, 10)) as server,
        open_live(server.address, Interrupt(), reconnect=2, status=shown.append) as live,
    ):
        frames = list(live)
    assert numbers([frame.pixels for frame in frames]) == [n for n in range(40) if n not in (7, 12)]
    seconds = [frame.seconds for frame in frames]
    assert seconds == sorted(seconds)
    assert seconds[0] == 0
    assert live.skipped == 2
    assert live.reconnected == 2
    assert live.silent == pytest.approx(0.3 + 0.7, abs=0.7)  # by the first two shows
    assert live.lost is not None
    assert live.lost.startswith("the live source `http://***@127.0.0.1:")
    assert "?***` was lost: no frame for " in live.lost
    assert "; the results include 38 frames of " in live.lost
    assert server.viewers > 3
    assert len(shown) >= 3
    assert all(text.startswith("no frame for ") for text in shown)
    assert "secret" not in live.lost + "".join(shown)
    assert 2 < time.monotonic() - begun < 10


@pytest.mark.usefixtures("impatient")
def test_without_reconnecting_the_end_of_a_connection_is_a_loss() -> None:
    with (
        _serving(lambda handler: _jpegs(handler, 0, 5)) as server,
        open_live(server.address, Interrupt(), reconnect=0) as live,
    ):
        assert len(list(live)) == 5
    assert live.lost is not None
    assert "was lost: the connection ended; " in live.lost
    assert live.reconnected == 0
    assert server.viewers == 1


@pytest.mark.usefixtures("impatient")
def test_an_interrupt_ends_connecting_again() -> None:
    interrupt = Interrupt()
    with (
        _serving(lambda handler: _jpegs(handler, 0, 5)) as server,
        open_live(server.address, interrupt, reconnect=60, status=lambda text: interrupt.request()) as live,
    ):
        frames = list(live)
    assert 0 < len(frames) <= 5
    assert live.lost is None


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("share", [1, 0.6])
def test_a_video_file_on_a_server_has_an_end(share: float, tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", steady(50), options={"movflags": "faststart"})

    def send(handler: Any) -> None:
        content = path.read_bytes()
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[: int(share * len(content))])

    with _serving(send) as server, open_live(server.address, Interrupt()) as live:
        frames = list(live)
    assert server.viewers == 1
    assert [frame.seconds for frame in frames] == pytest.approx(steady(len(frames)))
    if share == 1:
        assert len(frames) == 50
        assert live.lost is None
    else:
        assert 20 < len(frames) < 35
        assert live.lost is not None
        assert "it ended early" in live.lost


@pytest.mark.usefixtures("impatient")
def test_a_source_that_is_not_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://user:secret@127.0.0.1:{free.getsockname()[1]}/live"
    with (
        pytest.raises(UsageError, match=r"source `http://\*\*\*@127\.0\.0\.1:\d+/live`: connection refused$"),
        open_live(address, Interrupt()),
    ):
        pass
