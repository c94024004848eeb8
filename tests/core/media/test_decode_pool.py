"""Processes that read images: the same as reading them here, whatever happens to them."""

from __future__ import annotations

import gc
import logging
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from image_files import assert_as_read_here, memory_of

from yolotrt_core.errors import StageError, UsageError
from yolotrt_core.media import images
from yolotrt_core.media.decode_pool import ImageProcesses, region_bytes
from yolotrt_core.media.frames import HostBuffer


def children(of: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{of}/task/{of}/children").read_text().split()]


def test_images_and_errors_are_those_read_here_twice_over(files: list[Path]) -> None:
    with ImageProcesses(3, 1 << 16) as processes:
        for _ in range(2):
            found = [one if isinstance(one, UsageError) else one.copy() for one in processes.read(files)]
            assert_as_read_here(found, files)
    assert sum(isinstance(one, UsageError) for one in found) == 2


def test_their_images_lie_in_locked_memory_which_is_unlocked_last(files: list[Path]) -> None:
    events: list[str] = []

    class Lock:
        def __init__(self, memory: np.ndarray) -> None:
            self.size = memory.nbytes

        def __del__(self) -> None:
            events.append("unlocked")

    with ImageProcesses(2, 1 << 16, Lock) as processes:
        kept = next(frame for frame in processes.read(files[:8]) if isinstance(frame, np.ndarray))
        base = memory_of(kept)
        assert isinstance(base, HostBuffer)
        assert base.page_locked
    expected = images.read(files[0])
    del processes, base
    gc.collect()
    assert events == []
    np.testing.assert_array_equal(kept, expected)
    del kept
    gc.collect()
    assert events == ["unlocked"]


def test_whoever_keeps_every_image_gets_every_image(files: list[Path]) -> None:
    many = files * 8
    with ImageProcesses(2, 1 << 16) as processes:
        kept = list(processes.read(many))  # more than there is shared memory for
    assert_as_read_here(kept, many)
    shared = sum(isinstance(memory_of(one), HostBuffer) for one in kept if isinstance(one, np.ndarray))
    assert 0 < shared < len(kept) - 16


def test_images_too_big_for_their_region_come_all_the_same(files: list[Path]) -> None:
    with ImageProcesses(2, 8192) as processes:  # one of eight fits
        assert_as_read_here(
            [one if isinstance(one, UsageError) else one.copy() for one in processes.read(files)], files
        )


def test_killed_processes_lose_no_image(files: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    many = files * 20
    found = []
    with ImageProcesses(3, 1 << 16) as processes:
        root = processes.process_id
        for index, one in enumerate(processes.read(many)):
            found.append(one if isinstance(one, UsageError) else one.copy())
            if index in (100, 400, 700):
                os.kill(children(root)[0], signal.SIGKILL)
    assert_as_read_here(found, many)
    assert [r.levelno for r in caplog.records if "decoding process died" in r.message] == [logging.WARNING]


def test_processes_that_never_start_lose_no_image(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with ImageProcesses(2, 1 << 16) as processes:
        assert_as_read_here(list(processes.read(files)), files)


def test_nothing_is_left_after_an_early_end(files: list[Path]) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with ImageProcesses(3, 1 << 16) as processes:
        root = processes.process_id
        for index, frame in enumerate(processes.read(files * 20)):  # noqa: B007 - the frame is let go of below
            if index == 30:
                running = [root, *children(root)]
                break
    assert len(running) == 4
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in running):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    del processes, frame
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_nothing_is_left_where_memory_cannot_be_locked_or_nothing_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(memory: np.ndarray) -> object:
        raise StageError("no room")

    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(StageError, match="no room"):
        ImageProcesses(2, 1 << 16, refuse)
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with pytest.raises(OSError, match="/nowhere/python"):
        ImageProcesses(2, 1 << 16)
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_region_holds_eight_of_the_biggest_seen() -> None:
    sizes = [(40, 60), (200, 100), (64, 64)]
    assert region_bytes(sizes) == 8 * 200 * 100 * 3
    assert region_bytes([*sizes, (1080, 1920)]) is None, "decoding takes long beside the turns it costs"
