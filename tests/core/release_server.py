"""A server on this machine in place of the one that releases are fetched from."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Callable
from pathlib import Path

CONTENT = hashlib.shake_256(b"a checkpoint").digest(700_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


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


def left_in(folder: Path) -> list[str]:
    """Name what a fetch left, the lock aside, which is empty and stays."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")
