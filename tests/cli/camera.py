"""A camera for tests: Motion JPEG over HTTP on 127.0.0.1, by a process of its own.

    python camera.py IMAGE FRAMES

Prints its port. Sends the image FRAMES times, 20 a second, prints `silent`, and leaves the connection open.
"""

from __future__ import annotations

import http.server
import sys
import time
from pathlib import Path


class _Camera(http.server.BaseHTTPRequestHandler):
    image = b""
    frames = 0

    def do_GET(self) -> None:
        try:
            self._send()
        except OSError:  # whoever watched is gone
            return

    def _send(self) -> None:
        if self.frames:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
        for _ in range(self.frames):
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(self.image)}\r\n\r\n"
            self.wfile.write(head.encode() + self.image + b"\r\n")
            time.sleep(0.05)
        print("silent", flush=True)
        time.sleep(3600)

    def log_message(self, *told: object) -> None:
        return


if __name__ == "__main__":
    _Camera.image, _Camera.frames = Path(sys.argv[1]).read_bytes(), int(sys.argv[2])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Camera)
    server.daemon_threads = True
    print(server.server_port, flush=True)
    server.serve_forever()
