"""The slots of one session, shared by its threads, and the batches in flight.

A slot is never held across the caller's own code: who finds none free finishes the oldest batch in flight first,
whoever started it; its results wait in its handle.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from yolotrt_core.errors import StageError, UsageError
from yolotrt_core.types import Detections
from yolotrt_tensorrt.cuda.device import Gpu
from yolotrt_tensorrt.runtime.jpeg_decoder import DeviceImage
from yolotrt_tensorrt.runtime.slot import ExecutionSlot

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_log = logging.getLogger(__name__)

_LONGEST_RUN = 60  # seconds
_LONGEST_SLEEP = 1  # seconds until a thread that waits looks again: an interrupt may have eaten the word
_AGAIN_AFTER = 300  # seconds until a GPU that was full is asked for another slot


class BatchHandle:
    """A batch in flight; `result` waits for it."""

    def __init__(
        self,
        gpu: Gpu,
        slots: SlotPool,
        slot: ExecutionSlot,
        frames: Sequence[NDArray[np.uint8] | DeviceImage],
        max_det: int,
        explain: Callable[[Exception], Exception],
    ) -> None:
        """Note a batch that `slot` has started on, for `finish` to wait for.

        Args:
            explain: makes an error that callers can use of what CUDA raises.
        """
        self._gpu, self._slots, self._slot, self._explain = gpu, slots, slot, explain
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
        """Wait for the batch and give its slot back; any thread may, and often."""
        with self._lock:
            if self._found is not None or self._error is not None:
                self._slots.release(self)  # an interrupt may have come before
                return
            try:
                with self._gpu.current():
                    self._found = self._slot.collect(len(self._frames), self._max_det)
            except BaseException as err:  # kept for whoever asks for the result
                self._error = StageError("the batch was interrupted")
                with self._gpu.current():
                    self._slot.recover()
                if not isinstance(err, Exception):
                    raise
                self._error = self._explain(err)
            finally:
                self._frames = ()
                self._slots.release(self)


class SlotLease:
    """One request's claim on a slot, made before it has one."""


class SlotPool:
    """Hands slots to threads, each to one at a time; makes them as they are needed.

    An interrupt may hit a thread between any two of its steps. So one mapping alone says who has a slot, each change of
    it is one operation, and what gives a slot back may be done again.
    """

    def __init__(self, first: ExecutionSlot, most: int) -> None:
        self._most = most
        self._full_until = 0.0
        # Entered by itself, not through the condition, which an interrupt may leave with the lock taken.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._slots = [first]
        self._owners: dict[ExecutionSlot, SlotLease | BatchHandle] = {}  # the one that was taken first comes first
        self._making: set[SlotLease] = set()
        self._closed = False

    @property
    def graph(self) -> str:
        """How engines are launched; see `ExecutionSlot.graph`."""
        return self._slots[0].graph if self._slots else "none"

    @property
    def capacity(self) -> int:
        """How many slots there may be; where the GPU had no room for another, those there are for the next minutes."""
        return self._most if time.monotonic() >= self._full_until else len(self._slots)

    def acquire(self, make: Callable[[], ExecutionSlot], lease: SlotLease) -> ExecutionSlot:
        """Return a slot for this thread alone, finishing the oldest batch in flight if there is no other.

        Args:
            make: makes one, on this thread. Not kept: a session in a cycle would be freed by any thread, without the
                GPU's context, which pycuda cannot.
            lease: has the slot until it is given to `release`, which must be, whatever happens.

        Raises:
            UsageError: after `close`.
        """
        while True:
            with self._lock:
                if self._closed:
                    raise UsageError("the session is closed")
                free = next(self._free(), None)
                if free is not None:
                    self._owners[free] = lease
                    return free
                oldest = None
                if len(self._slots) + len(self._making) < self.capacity:
                    self._making.add(lease)
                elif (oldest := self._oldest()) is None:
                    self._changed.wait(_LONGEST_SLEEP)
                    continue
            if oldest is not None:
                oldest.finish()
                continue
            try:
                slot = make()
                with self._lock:
                    self._slots.append(slot)
                    self._owners[slot] = lease
                return slot
            except StageError as err:
                _log.warning("running with %d batch(es) in flight: %s", len(self._slots), err)
                self._full_until = time.monotonic() + _AGAIN_AFTER
            finally:
                with self._lock:
                    self._making.discard(lease)
                    self._changed.notify_all()

    def slot_of(self, lease: SlotLease) -> ExecutionSlot | None:
        """Return the slot that a request has; None where a batch took it over."""
        with self._lock:
            return next((slot for slot, owner in self._owners.items() if owner is lease), None)

    def transfer(self, slot: ExecutionSlot, handle: BatchHandle) -> None:
        """Hand a slot over to the batch that was started on it; who needs the slot finishes the batch."""
        with self._lock:
            self._owners[slot] = handle
            self._changed.notify_all()

    def release(self, owner: SlotLease | BatchHandle) -> None:
        """Take back the slot that a request or a batch has, if it has one; any number of times."""
        with self._lock:
            if isinstance(owner, SlotLease):
                self._making.discard(owner)
            for slot in [slot for slot, its in self._owners.items() if its is owner]:
                del self._owners[slot]
            self._changed.notify_all()

    def _free(self) -> Iterator[ExecutionSlot]:
        return (slot for slot in self._slots if slot not in self._owners)

    def _oldest(self) -> BatchHandle | None:
        return next((owner for owner in self._owners.values() if isinstance(owner, BatchHandle)), None)

    def close(self) -> bool:
        """Hand out no more slots, finish what is in flight, and wait until no thread has one.

        Returns:
            Whether that came about: if not, a batch still runs, and nothing that it needs may be freed.
        """
        with self._lock:
            self._closed = True
            self._changed.notify_all()
        last = time.monotonic() + _LONGEST_RUN
        while True:
            with self._lock:
                if not self._owners and not self._making:
                    return True
                oldest = self._oldest()
                if oldest is None:
                    if time.monotonic() > last:  # a GPU that hangs must not keep a program from its end
                        _log.warning("a batch has not ended for %d seconds; its memory stays", _LONGEST_RUN)
                        return False
                    self._changed.wait(min(_LONGEST_SLEEP, _LONGEST_RUN))
                    continue
            oldest.finish()

    def free(self) -> None:
        """Free every slot that no thread has, with the GPU's context current, after `close`."""
        while (slot := next(self._free(), None)) is not None:
            self._slots.remove(slot)
            slot.close()
        self._slots.clear()
