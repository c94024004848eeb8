"""The lanes of one session, shared by its threads, and the batches in flight.

A lane is never held across the caller's own code: who finds none free finishes the oldest batch in flight first,
whoever started it; its results wait in its ticket.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from yolotrt_core.errors import StageError, UsageError
from yolotrt_core.types import Detections
from yolotrt_tensorrt.gpu import Gpu
from yolotrt_tensorrt.jpegs import DevicePicture
from yolotrt_tensorrt.lane import Lane

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_log = logging.getLogger(__name__)

_LONGEST_RUN = 60  # seconds


class Ticket:
    """A batch in flight; `result` waits for it."""

    def __init__(
        self,
        gpu: Gpu,
        lanes: Lanes,
        lane: Lane,
        frames: Sequence[NDArray[np.uint8] | DevicePicture],
        max_det: int,
        explain: Callable[[Exception], Exception],
    ) -> None:
        """Note a batch that `lane` has started on, for `finish` to wait for.

        Args:
            explain: makes an error that callers can use of what CUDA raises.
        """
        self._gpu, self._lanes, self._lane, self._explain = gpu, lanes, lane, explain
        # Held until they are uploaded: pinned memory that nobody holds is lent to the next.
        self._frames, self._max_det = frames, max_det
        self._lock = threading.Lock()
        self._found: list[Detections] | None = None
        self._error: Exception | None = None

    def result(self) -> list[Detections]:
        """Return one Detections per frame.

        Raises:
            StageError: the GPU failed on this batch, or has no room for its boxes.
        """
        self.finish()
        if self._error is not None:
            raise self._error
        assert self._found is not None  # set by `finish` where no error is
        return self._found

    def finish(self) -> None:
        """Wait for the batch and give its lane back; any thread may, and often."""
        with self._lock:
            if self._found is not None or self._error is not None:
                return
            try:
                with self._gpu.current():
                    self._found = self._lane.collect(len(self._frames), self._max_det)
            except BaseException as err:  # kept for whoever asks for the result
                self._error = StageError("the batch was interrupted")
                with self._gpu.current():
                    self._lane.recover()
                if not isinstance(err, Exception):
                    raise
                self._error = self._explain(err)
            finally:
                self._frames = ()
                self._lanes.release(self._lane, self)


class Lanes:
    """Hands lanes to threads, each to one at a time; makes them as they are needed.

    Attributes:
        most: how many there may be; fewer once the GPU has no room for another.
    """

    def __init__(self, first: Lane, most: int) -> None:
        self.most = most
        self._changed = threading.Condition()
        self._flying: deque[Ticket] = deque()
        self._being_made = 0
        self._closed = False
        self._lanes = [first]
        self._free = list(self._lanes)

    @property
    def graph(self) -> str:
        """How engines are launched; see `Lane.graph`."""
        return self._lanes[0].graph if self._lanes else "none"

    def take(self, make: Callable[[], Lane]) -> Lane:
        """Return a lane for this thread alone, finishing the oldest batch in flight if there is no other.

        Args:
            make: makes one, on this thread. Not kept: a session in a cycle would be freed by any thread, without the
                GPU's context, which pycuda cannot.

        Raises:
            UsageError: after `close`.
        """
        while True:
            with self._changed:
                if self._closed:
                    raise UsageError("the session is closed")
                if self._free:
                    return self._free.pop()
                if len(self._lanes) + self._being_made < self.most:
                    self._being_made += 1
                    oldest = None
                elif self._flying:
                    oldest = self._flying[0]
                else:
                    self._changed.wait()
                    continue
            if oldest is not None:
                oldest.finish()
                continue
            try:
                lane = make()
                self._lanes.append(lane)
                return lane
            except StageError as err:
                _log.warning("running with %d batch(es) in flight: %s", len(self._lanes), err)
                self.most = len(self._lanes)
            finally:
                with self._changed:
                    self._being_made -= 1
                    self._changed.notify_all()

    def fly(self, ticket: Ticket) -> None:
        """Note a batch that was started, for others to finish."""
        with self._changed:
            self._flying.append(ticket)
            self._changed.notify_all()

    def release(self, lane: Lane, ticket: Ticket | None = None) -> None:
        """Take a lane back, and its ticket off the list of those in flight."""
        with self._changed:
            if ticket is not None and ticket in self._flying:
                self._flying.remove(ticket)
            self._free.append(lane)
            self._changed.notify_all()

    def close(self) -> None:
        """Hand out no more lanes, finish what is in flight, and wait until no thread has one."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        while True:
            with self._changed:
                # Not for ever: an interrupt may have hit a thread between taking a lane and noting it.
                ready = self._changed.wait_for(lambda: self._flying or self._all_free(), timeout=_LONGEST_RUN)
                if not ready:
                    _log.warning("a batch has not ended for %d seconds; its memory stays", _LONGEST_RUN)
                if not self._flying:
                    return
                oldest = self._flying[0]
            oldest.finish()

    def _all_free(self) -> bool:
        return len(self._free) == len(self._lanes) and not self._being_made

    def free(self) -> None:
        """Free every lane that no thread has, with the GPU's context current, after `close`."""
        while self._free:
            self._free.pop().close()
        self._lanes.clear()
