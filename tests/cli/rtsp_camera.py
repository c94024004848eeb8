"""A camera for tests: RTSP (RFC 2326) on 127.0.0.1 that sends a video as MPEG-TS in RTP, within its TCP connection.

Frames come as fast as they are taken; behind the last one the camera goes silent, and the connection stays open.
"""

from __future__ import annotations

import contextlib
import socketserver
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

_PACKET = 7 * 188  # bytes: as many packets of a transport stream as Ethernet takes
_SDP = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=test\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\na=control:track\r\n"


def write_stream(path: Path, frames: list[np.ndarray]) -> None:
    """Write frames as an MPEG-2 transport stream of 10 a second."""
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mpg2"), 10, (width, height))
    for frame in frames:
        writer.write(frame)
    writer.release()


class _Session(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        with contextlib.suppress(OSError):  # whoever watched is gone
            self._serve()

    def _serve(self) -> None:
        server = self.server
        assert isinstance(server, RtspCamera)
        while first := self.rfile.readline():
            method, address, _ = first.decode().split()
            headers = {}
            while (line := self.rfile.readline().decode().strip()) != "":
                name, _, value = line.partition(":")
                headers[name.lower()] = value.strip()
            server.asked.append((method, address))
            self._answer(method, headers)
            if method == "PLAY":
                threading.Thread(target=self._send, args=(server.stream,), daemon=True).start()

    def _answer(self, method: str, headers: dict[str, str]) -> None:
        body = _SDP if method == "DESCRIBE" else ""
        lines = ["RTSP/1.0 200 OK", f"CSeq: {headers['cseq']}", "Session: 1"]
        lines += ["Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN"] if method == "OPTIONS" else []
        lines += ["Transport: RTP/AVP/TCP;unicast;interleaved=0-1"] if method == "SETUP" else []
        lines += ["Content-Type: application/sdp"] if body else []
        head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""])
        self.wfile.write((head + body).encode())

    def _send(self, stream: bytes) -> None:
        with contextlib.suppress(OSError):
            for number, begin in enumerate(range(0, len(stream), _PACKET)):
                part = stream[begin : begin + _PACKET]
                packet = struct.pack("!BBHII", 0x80, 33, number & 0xFFFF, 90 * number, 1) + part
                self.wfile.write(struct.pack("!cBH", b"$", 0, len(packet)) + packet)


class RtspCamera(socketserver.ThreadingTCPServer):
    """Attributes: stream: what each viewer is sent. asked: method and address of each request."""

    daemon_threads = True

    def __init__(self, stream: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Session)
        self.stream, self.asked = stream, list[tuple[str, str]]()


@contextlib.contextmanager
def rtsp_camera(stream: bytes) -> Iterator[RtspCamera]:
    """Run a camera until the end of the block."""
    with RtspCamera(stream) as camera:
        thread = threading.Thread(target=camera.serve_forever)
        thread.start()
        try:
            yield camera
        finally:
            camera.shutdown()
            thread.join()
