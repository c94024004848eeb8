"""Live sources, read by a thread so that a stalled source can be interrupted."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from yolotrt_core.media import video

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from yolotrt_core.console.signals import Interrupt

_AHEAD = 4  # frames read ahead; more would only add latency
_POLL_SECONDS = 0.05  # latency of Ctrl-C
# A thread that returns from OpenCV during Python's shutdown aborts the process, so wait for one frame. A stalled
# source is not waited for: OpenCV times out after 30 s only.
_LAST_FRAME_SECONDS = 2.0


@contextmanager
def open_live(source: str, interrupt: Interrupt) -> Iterator[tuple[video.VideoFacts, Iterator[NDArray[np.uint8]]]]:
    """Open a camera or stream; its frames end with the source or at an interrupt.

    Yields:
        As `video.open_video`.

    Raises:
        UsageError: it cannot be opened or has no frame.
        KeyboardInterrupt: interrupted before the first frame; `Terminated` for SIGTERM.
    """
    reader = _Reader(source)
    try:
        facts = reader.take(interrupt)
        if not isinstance(facts, video.VideoFacts):
            raise interrupt.error()
        yield facts, _frames(reader, interrupt)
    finally:
        reader.close()


def _frames(reader: _Reader, interrupt: Interrupt) -> Iterator[NDArray[np.uint8]]:
    count = 0
    while True:
        frame = reader.take(interrupt)
        if frame is None or isinstance(frame, video.VideoFacts):
            break
        count += 1
        yield frame
    if count == 0:  # interrupted; a source without frames raises in the reader
        raise interrupt.error()


class _Reader:
    """Reads a source into a short queue, on a daemon thread since a blocked read cannot be cancelled."""

    def __init__(self, source: str) -> None:
        self._stop = threading.Event()
        self._source = source
        self._queue: queue.Queue[video.VideoFacts | NDArray[np.uint8] | Exception | None] = queue.Queue(_AHEAD)
        self._thread = threading.Thread(target=self._read, name="yolotrt-live", daemon=True)
        self._thread.start()

    def take(self, interrupt: Interrupt) -> video.VideoFacts | NDArray[np.uint8] | None:
        """Return the facts first, then frames; None at the end or at an interrupt."""
        while not interrupt.requested:
            try:
                item = self._queue.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
            if isinstance(item, Exception):
                raise item
            return item
        return None

    def close(self) -> None:
        self._stop.set()
        self._thread.join(_LAST_FRAME_SECONDS)

    def _read(self) -> None:
        try:
            with video.open_video(self._source) as (facts, frames):
                self._put(facts)
                for frame in frames:
                    if not self._put(frame):
                        return
            self._put(None)
        except Exception as err:  # noqa: BLE001 - raised by `take`
            self._put(err)

    def _put(self, item: video.VideoFacts | NDArray[np.uint8] | Exception | None) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return True
        return False
