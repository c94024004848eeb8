"""Reading a live source on a thread: its end, its errors, and the user's wish to end it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from yolotrt_core.console.signals import Interrupt, Terminated
from yolotrt_core.errors import UsageError
from yolotrt_core.media import video
from yolotrt_core.media.camera import open_live

FACTS = video.VideoFacts(4, 2, 25.0, 0)


def _source(monkeypatch: pytest.MonkeyPatch, frames: int, then: Any = None) -> threading.Event:
    """Put a camera in the place of OpenCV's; returns what is set once it was closed."""
    closed = threading.Event()

    def each() -> Iterator[NDArray[np.uint8]]:
        for level in range(frames):
            yield np.full((2, 4, 3), level, np.uint8)
        if then is not None:
            then()

    @contextmanager
    def opened(source: str) -> Iterator[tuple[video.VideoFacts, Iterator[NDArray[np.uint8]]]]:
        try:
            yield FACTS, each()
        finally:
            closed.set()

    monkeypatch.setattr(video, "open_video", opened)
    return closed


def test_all_frames_come_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = _source(monkeypatch, 20)
    with open_live("camera:0", Interrupt()) as (facts, frames):
        assert facts == FACTS
        assert [int(frame[0, 0, 0]) for frame in frames] == list(range(20))
    assert closed.is_set()


def test_it_is_read_no_further_than_a_few_ahead_and_closed_when_left(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = _source(monkeypatch, 10**9)
    with open_live("camera:0", Interrupt()) as (_, frames):
        next(frames)
        time.sleep(0.2)
        assert int(next(frames)[0, 0, 0]) == 1
    assert closed.is_set()


def test_it_ends_when_asked_after_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    _source(monkeypatch, 2, release.wait)  # falls silent
    interrupt = Interrupt()
    with open_live("camera:0", interrupt) as (_, frames):
        assert next(frames) is not None
        assert next(frames) is not None
        threading.Timer(0.1, interrupt.request).start()
        assert list(frames) == []
        release.set()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, Terminated])
def test_asked_before_a_frame_it_is_cancelled(monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]) -> None:
    _source(monkeypatch, 100)
    interrupt = Interrupt()
    with pytest.raises(kind) as caught, open_live("camera:0", interrupt) as (_, frames):
        interrupt.request(signal.SIGTERM if kind is Terminated else signal.SIGINT)
        next(frames)
    assert caught.type is kind


def test_its_errors_are_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise UsageError("cable pulled")

    _source(monkeypatch, 2, fail)
    seen = []
    with pytest.raises(UsageError, match="cable pulled"), open_live("camera:0", Interrupt()) as (_, frames):
        seen += [int(frame[0, 0, 0]) for frame in frames]
    with pytest.raises(UsageError, match="cable pulled"), open_live("camera:0", Interrupt()) as (_, frames):
        seen += [int(next(frames)[0, 0, 0]), int(next(frames)[0, 0, 0])]
        next(frames)
    assert seen == [0, 1]
