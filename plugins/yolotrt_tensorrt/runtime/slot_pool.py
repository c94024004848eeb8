"""The slots of one session, shared by its threads, and the in-flight batches.

A slot is never held across the caller's code: a thread without a free slot finishes the oldest in-flight batch of
any thread, whose results are kept in its handle.
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

_TIMEOUT = 60  # seconds
_POLL_INTERVAL = 1  # seconds between checks of a waiting thread: an interrupt may lose a notification
_RETRY_AFTER = 300  # seconds until another slot is tried on a GPU that was out of memory


class BatchHandle:
    """An in-flight batch; `result` waits for it."""

    def __init__(
        self,
        gpu: Gpu,
        slots: SlotPool,
        slot: ExecutionSlot,
        frames: Sequence[NDArray[np.uint8] | DeviceImage],
        max_det: int,
        explain: Callable[[Exception], Exception],
    ) -> None:
        """Register a batch started on `slot`, for `finish`.

        Args:
            explain: converts CUDA's errors to errors for callers.
        """
        self._gpu, self._slots, self._slot, self._explain = gpu, slots, slot, explain
        # Referenced until uploaded: unreferenced pinned memory is reused.
        self._frames, self._max_det = frames, max_det
        self._lock = threading.Lock()
        self._found: list[Detections] | None = None
        self._error: Exception | None = None

    def result(self) -> list[Detections]:
        """Return one Detections per frame.

        Raises:
            StageError: the GPU failed on this batch, or is out of memory for its boxes.
        """
        self.finish()
        if self._error is not None:
            raise self._error
        assert self._found is not None  # set by `finish` unless there is an error
        return self._found

    def finish(self) -> None:
        """Wait for the batch and release its slot; any thread may call it, repeatedly."""
        with self._lock:
            if self._found is not None or self._error is not None:
                self._slots.release(self)  # an interrupt may have prevented it
                return
            try:
                with self._gpu.current():
                    self._found = self._slot.collect(len(self._frames), self._max_det)
            except BaseException as err:  # kept for the caller of `result`
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
    """Claim of one request on a slot, created before it has one."""


class SlotPool:
    """Assigns slots to threads, each to one at a time; creates them on demand.

    An interrupt may hit a thread between any two steps. So a single mapping defines the owners, each change of it is
    one operation, and releasing a slot is idempotent.
    """

    def __init__(self, first: ExecutionSlot, max_slots: int) -> None:
        self._max_slots = max_slots
        self._full_until = 0.0
        # Entered directly, not through the condition, which an interrupt may leave with the lock held.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._slots = [first]
        self._owners: dict[ExecutionSlot, SlotLease | BatchHandle] = {}  # oldest first
        self._creating: set[SlotLease] = set()
        self._closed = False

    @property
    def graph(self) -> str:
        """How engines are launched; see `ExecutionSlot.graph`."""
        return self._slots[0].graph if self._slots else "none"

    @property
    def capacity(self) -> int:
        """Maximum number of slots; the current number for some minutes after the GPU ran out of memory."""
        return self._max_slots if time.monotonic() >= self._full_until else len(self._slots)

    def acquire(self, create: Callable[[], ExecutionSlot], lease: SlotLease) -> ExecutionSlot:
        """Return a slot for this thread, finishing the oldest in-flight batch if none is free.

        Args:
            create: creates a slot, on this thread. Not stored: a session in a reference cycle would be freed by any
                thread, without the GPU's context, which pycuda does not support.
            lease: owns the slot until `release(lease)`, which must always be called.

        Raises:
            UsageError: after `close`.
        """
        while True:
            with self._lock:
                if self._closed:
                    raise UsageError("the session is closed")
                free = next(self._free_slots(), None)
                if free is not None:
                    self._owners[free] = lease
                    return free
                oldest = None
                if len(self._slots) + len(self._creating) < self.capacity:
                    self._creating.add(lease)
                elif (oldest := self._oldest()) is None:
                    self._changed.wait(_POLL_INTERVAL)
                    continue
            if oldest is not None:
                oldest.finish()
                continue
            try:
                slot = create()
                with self._lock:
                    self._slots.append(slot)
                    self._owners[slot] = lease
                return slot
            except StageError as err:
                _log.warning("running with %d in-flight batch(es): %s", len(self._slots), err)
                self._full_until = time.monotonic() + _RETRY_AFTER
            finally:
                with self._lock:
                    self._creating.discard(lease)
                    self._changed.notify_all()

    def slot_of(self, lease: SlotLease) -> ExecutionSlot | None:
        """Return the slot of a request; None if it was transferred to a batch."""
        with self._lock:
            return next((slot for slot, owner in self._owners.items() if owner is lease), None)

    def transfer(self, slot: ExecutionSlot, handle: BatchHandle) -> None:
        """Transfer a slot to its batch; a thread that needs the slot finishes the batch."""
        with self._lock:
            self._owners[slot] = handle
            self._changed.notify_all()

    def release(self, owner: SlotLease | BatchHandle) -> None:
        """Release the slot of a request or batch, if any; idempotent."""
        with self._lock:
            if isinstance(owner, SlotLease):
                self._creating.discard(owner)
            for slot in [slot for slot, current in self._owners.items() if current is owner]:
                del self._owners[slot]
            self._changed.notify_all()

    def _free_slots(self) -> Iterator[ExecutionSlot]:
        return (slot for slot in self._slots if slot not in self._owners)

    def _oldest(self) -> BatchHandle | None:
        return next((owner for owner in self._owners.values() if isinstance(owner, BatchHandle)), None)

    def close(self) -> bool:
        """Refuse new requests, finish in-flight batches, and wait until all slots are free.

        Returns:
            False if a batch still runs after the timeout: its resources must not be freed.
        """
        with self._lock:
            self._closed = True
            self._changed.notify_all()
        last = time.monotonic() + _TIMEOUT
        while True:
            with self._lock:
                if not self._owners and not self._creating:
                    return True
                oldest = self._oldest()
                if oldest is None:
                    if time.monotonic() > last:  # a hanging GPU must not block the program's exit
                        _log.warning("timed out waiting %d seconds for a batch; its GPU memory was not freed", _TIMEOUT)
                        return False
                    self._changed.wait(min(_POLL_INTERVAL, _TIMEOUT))
                    continue
            oldest.finish()

    def free(self) -> None:
        """Free all unowned slots, with the GPU's context current, after `close`."""
        while (slot := next(self._free_slots(), None)) is not None:
            self._slots.remove(slot)
            slot.close()
        self._slots.clear()
