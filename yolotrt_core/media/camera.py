"""Live sources, read by a thread so that a stalled source can be interrupted, and connected again when lost."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Protocol

from yolotrt_core.console.text import counted
from yolotrt_core.errors import UsageError
from yolotrt_core.media import inputs
from yolotrt_core.media.inputs import CAMERA, redact
from yolotrt_core.media.video_decoder import VideoFrame, import_av, open_decoder

if TYPE_CHECKING:
    from yolotrt_core.console.signals import Interrupt

_AHEAD = 4  # frames read ahead; more would only add latency
_POLL_SECONDS = 0.05  # latency of Ctrl-C
# A thread that returns from OpenCV during Python's shutdown aborts the process, so wait for one frame. A stalled
# source is not waited for: it returns after its timeout only.
_LAST_FRAME_SECONDS = 2.0
_SILENT_SECONDS = 10.0  # without data, after which a connection counts as lost; a camera may have to wake up
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 10.0  # seconds between attempts to connect, doubled for each


class Live:
    """An opened live source; iterate it once.

    Attributes:
        fps: nominal frames per second. skipped: number of frames that could not be decoded. lost: why the source ended
            although it has no end, or None.
    """

    def __init__(self, reader: _Reader, interrupt: Interrupt, fps: float) -> None:
        """Wrap a reader; use `open_live`."""
        self._reader, self._interrupt, self.fps = reader, interrupt, fps

    @property
    def skipped(self) -> int:
        """Number of frames that could not be decoded so far."""
        return self._reader.skipped

    @property
    def reconnected(self) -> int:
        """Number of times that it was connected again so far."""
        return self._reader.reconnected

    @property
    def silent(self) -> float:
        """Seconds from the last frame of a connection to the first of the next, of all so far."""
        return self._reader.silent

    @property
    def lost(self) -> str | None:
        """Why the source was given up, or None."""
        return self._reader.lost

    def __iter__(self) -> Iterator[VideoFrame]:
        """Yield frames until the source ends or is lost, or until an interrupt.

        Raises:
            UsageError: it has no frame.
            KeyboardInterrupt: interrupted before the first one; `Terminated` for SIGTERM.
        """
        count = 0
        while isinstance(frame := self._reader.take(self._interrupt), VideoFrame):
            count += 1
            yield frame
        if count == 0:  # interrupted; a source without frames raises in the reader
            raise self._interrupt.error()


@contextmanager
def open_live(
    source: str,
    interrupt: Interrupt,
    *,
    reconnect: float = inputs.RECONNECT_SECONDS,
    status: Callable[[str], None] = lambda text: None,
) -> Iterator[Live]:
    """Open a camera or stream.

    Args:
        source: by `inputs.is_live`. reconnect: seconds without a frame after which it counts as lost; 0: when its
            first connection ends. status: shows a text while it is not connected; called by another thread.

    Raises:
        UsageError: it cannot be opened.
        KeyboardInterrupt: interrupted before it is opened; `Terminated` for SIGTERM.
    """
    reader = _Reader(source, reconnect, status)
    try:
        fps = reader.take(interrupt)
        if not isinstance(fps, float):
            raise interrupt.error()
        yield Live(reader, interrupt, fps)
    finally:
        reader.close()


class _Connection(Protocol):
    """One connection to a source.

    Attributes:
        skipped: frames not decoded so far. fps: nominal frames per second. finite: it has an end. error: of the
            connection, which ended it, or None.
    """

    skipped: int
    fps: float
    error: Exception | None

    @property
    def finite(self) -> bool: ...

    def __iter__(self) -> Iterator[VideoFrame]: ...


class _Camera:
    """A V4L2 camera, by OpenCV."""

    skipped = 0
    finite = False
    error: Exception | None = None

    def __init__(self, number: int) -> None:
        import cv2

        self._capture = cv2.VideoCapture(number)
        self.fps = float(self._capture.get(cv2.CAP_PROP_FPS) or 25.0)

    def __iter__(self) -> Iterator[VideoFrame]:
        while True:
            good, pixels = self._capture.read()
            if not good:
                return
            yield VideoFrame(pixels, 0.0)

    def opened(self) -> bool:
        return bool(self._capture.isOpened())

    def close(self) -> None:
        self._capture.release()


@contextmanager
def connect(source: str) -> Iterator[_Connection]:
    """Connect to a live source.

    Raises:
        UsageError: it cannot be opened.
    """
    failed = f"cannot open the live source `{redact(source)}`"
    if camera := CAMERA.fullmatch(source):
        opened = _Camera(int(camera[1]))
        try:
            if not opened.opened():
                raise UsageError(failed, hint="check that the device exists and is not in use")
            yield opened
        finally:
            opened.close()
        return
    errors = import_av().error
    with ExitStack() as stack:
        try:
            decoder = stack.enter_context(open_decoder(source, frame_threads=False, timeout=_SILENT_SECONDS))
        except errors.FFmpegError as err:
            hint = "check the address, and that the source is on and can be reached from here"
            raise UsageError(f"{failed}: {(err.strerror or 'unknown error').lower()}", hint=hint) from err
        except UsageError as err:
            raise UsageError(f"cannot read the live source `{redact(source)}`: {err}", hint=err.hint) from err
        yield decoder


class _Reader:
    """Reads a source into a short queue, on a daemon thread since a blocked read cannot be cancelled.

    Attributes:
        skipped: number of frames that could not be decoded. reconnected, silent: number of connections after the first,
            and seconds without one. lost: why the source was given up, or None.
    """

    def __init__(self, source: str, reconnect: float, status: Callable[[str], None]) -> None:
        self.skipped = self.reconnected = 0
        self.silent = 0.0
        self.lost: str | None = None
        self._reconnect, self._status = reconnect, status
        self._frames = 0
        self._begun = self._last = 0.0  # times of the first and the last frame
        self._stop = threading.Event()
        self._source = source
        self._queue: queue.Queue[float | VideoFrame | Exception | None] = queue.Queue(_AHEAD)
        self._thread = threading.Thread(target=self._run, name="yolotrt-live", daemon=True)
        self._thread.start()

    def take(self, interrupt: Interrupt) -> float | VideoFrame | None:
        """Return the frames per second first, then frames; None at the end or at an interrupt."""
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

    def _run(self) -> None:
        try:
            self._read_first()
            self._put(None)
        except Exception as err:  # noqa: BLE001 - raised by `take`
            self._put(err)

    def _read_first(self) -> None:
        """Read the first connection; then others, until the source ends, is lost, or `close` is called."""
        ended = self._read()
        if not self._frames and not self._stop.is_set():
            raise UsageError(f"the live source `{redact(self._source)}` has no readable frame")
        wait = _FIRST_WAIT
        while not ended and not self._stop.is_set():
            silent = time.monotonic() - self._last
            if silent >= self._reconnect:
                self.lost = self._loss(f"no frame for {silent:.0f} s" if self._reconnect else "the connection ended")
                return
            self._status(f"no frame for {silent:.0f} s, connecting again")
            self._stop.wait(min(wait, self._reconnect - silent))
            before = self._frames
            try:
                ended = self._read()
            except UsageError:  # not there yet
                ended = False
            wait = _FIRST_WAIT if self._frames > before else min(2 * wait, _LONGEST_WAIT)

    def _loss(self, reason: str) -> str:
        included = f"{counted(self._frames, 'frame')} of {self._last - self._begun:.0f} s"
        return f"the live source `{redact(self._source)}` was lost: {reason}; the results include {included}"

    def _read(self) -> bool:
        """Read one connection; return whether no other follows."""
        with connect(self._source) as connection:
            if not self._frames:
                self._put(connection.fps)
            skipped = self.skipped
            before: int | None = None  # the first frame: what a stream sends until its key frame is no loss
            for frame in connection:
                last, self._last = self._last, time.monotonic()
                if not self._frames:
                    self._begun = self._last
                elif before is None:
                    self.reconnected += 1
                    self.silent += self._last - last
                self._frames += 1
                before = connection.skipped if before is None else before
                self.skipped = skipped + connection.skipped - before
                seconds = frame.seconds if connection.finite else self._last - self._begun
                if not self._put(VideoFrame(frame.pixels, seconds)):
                    return True
            if before is not None:
                self.skipped = skipped + connection.skipped - before
            if connection.finite and connection.error is not None:  # a second connection would repeat its begin
                self.lost = self._loss(f"it ended early ({type(connection.error).__name__})")
            return connection.finite

    def _put(self, item: float | VideoFrame | Exception | None) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return True
        return False
