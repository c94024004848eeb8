"""What several tests of the core need: image files, and servers to fetch from."""

from __future__ import annotations

import http.server
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from image_files import write_files
from release_server import Server

from yolotrt_core.export import model_source


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return write_files(tmp_path)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv(model_source.RELEASE_URL_VARIABLE, raising=False)
    started: list[Server] = []

    def start(*plan: Callable[[http.server.BaseHTTPRequestHandler], None]) -> Server:
        started.append(Server(*plan))
        return started[-1]

    yield start
    for server in started:
        server.stop()
