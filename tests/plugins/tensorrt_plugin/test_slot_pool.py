"""SlotPool shared by threads: each with one at a time, none lost, none freed in use."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from yolotrt_core.errors import StageError, UsageError
from yolotrt_tensorrt.runtime.slot_pool import BatchHandle, SlotLease, SlotPool


class Gpu:
    """A GPU whose context is current on any thread."""

    @contextmanager
    def current(self) -> Iterator[None]:
        yield


class ExecutionSlot:
    """A slot whose batches take as long as the test says; complains if two threads use it, or one after `close`."""

    graph = "none"

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.closed, self.recovered = seconds, False, False
        self._used = threading.Lock()

    def infer(self) -> None:
        assert self._used.acquire(blocking=False)
        assert not self.closed
        time.sleep(self.seconds)
        assert not self.closed
        self._used.release()

    def collect(self, count: int, max_det: int) -> list[Any]:
        self.infer()
        return [max_det] * count

    def recover(self) -> None:
        self.recovered = True

    def close(self) -> None:
        self.closed = True


def _same(err: Exception) -> Exception:
    return err


def start(slots: Any, number: int, make: Callable[[], Any] = ExecutionSlot) -> BatchHandle:
    """Start a batch whose results are `number`."""
    gpu: Any = Gpu()
    slot = slots.acquire(make, SlotLease())
    handle = BatchHandle(gpu, slots, slot, [np.zeros((1, 1, 3), np.uint8)] * 2, number, _same)
    slots.transfer(slot, handle)
    return handle


def test_many_threads_get_their_own_results_from_few_slots() -> None:
    made: list[ExecutionSlot] = []

    def make() -> Any:
        made.append(ExecutionSlot(0.0005))
        return made[-1]

    slots = SlotPool(make(), 3)

    def work(thread: int) -> None:
        waiting = []
        for number in range(40):
            if number % 4 == 0:
                lease = SlotLease()
                slot: Any = slots.acquire(make, lease)
                slot.infer()
                slots.release(lease)
            waiting.append((1000 * thread + number, start(slots, 1000 * thread + number, make)))
            if len(waiting) > 5:  # more than there are slots
                wanted, handle = waiting.pop(0)
                assert handle.result() == [wanted] * 2
        for wanted, handle in waiting:
            assert handle.result() == [wanted] * 2

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert len(made) == 3
    slots.close()
    assert not any(slot.closed for slot in made)
    slots.free()
    assert all(slot.closed for slot in made)


def test_an_error_is_kept_for_whoever_asks_for_the_result() -> None:
    slot: Any = ExecutionSlot()
    slots = SlotPool(slot, 1)
    slot.collect = lambda count, max_det: 1 // 0
    failing = start(slots, 1)
    following = start(slots, 2)  # finishes the one before it
    assert slot.recovered
    del slot.collect
    assert following.result() == [2, 2]
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            failing.result()


def test_no_room_for_another_slot_leaves_those_there_are_for_some_minutes(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms: list[Any] = [ExecutionSlot(), ExecutionSlot()]

    def make() -> Any:
        if not rooms:
            raise StageError("out of GPU memory")
        return rooms.pop()

    slots = SlotPool(make(), 5)
    handles = [start(slots, number, make) for number in range(6)]
    assert [handle.result() for handle in handles] == [[number] * 2 for number in range(6)]
    assert slots.capacity == 2
    rooms.append(ExecutionSlot())
    assert [start(slots, number, make).result() for number in range(3)] == [[0] * 2, [1] * 2, [2] * 2]
    assert rooms, "a full GPU is not asked each time"
    later = time.monotonic() + 301
    monkeypatch.setattr("yolotrt_tensorrt.runtime.slot_pool.time.monotonic", lambda: later)
    assert slots.capacity == 5
    handles = [start(slots, number, make) for number in range(3)]
    assert [handle.result() for handle in handles] == [[number] * 2 for number in range(3)]
    assert not rooms
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
        "running with 2 in-flight batch(es): out of GPU memory"
    ]


def test_closing_finishes_batches_and_waits_for_who_has_a_slot() -> None:
    slots: Any = SlotPool(ExecutionSlot(0.05), 2)  # type: ignore[arg-type]
    lease = SlotLease()
    flying, slot = start(slots, 7), slots.acquire(lambda: ExecutionSlot(0.05), lease)
    events: list[str] = []

    def infer() -> None:
        slot.infer()
        events.append("ran")
        slots.release(lease)

    def wait_for_a_slot() -> None:
        with pytest.raises(UsageError, match="the session is closed"):
            while True:
                other = SlotLease()
                slots.acquire(ExecutionSlot, other)
                slots.release(other)

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(infer), pool.submit(wait_for_a_slot)]
        slots.close()
        events.append("closed")
        slots.free()
        for future in futures:
            future.result()
    assert events == ["ran", "closed"]
    assert slot.closed
    assert flying.result() == [7, 7]
    with pytest.raises(UsageError, match="the session is closed"):
        slots.acquire(ExecutionSlot, SlotLease())


def test_a_slot_that_never_comes_back_is_not_freed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("yolotrt_tensorrt.runtime.slot_pool._TIMEOUT", 0.05)
    slots: Any = SlotPool(ExecutionSlot(), 2)  # type: ignore[arg-type]
    lease = SlotLease()
    lost, other = slots.acquire(ExecutionSlot, SlotLease()), slots.acquire(ExecutionSlot, lease)
    slots.release(lease)
    assert not slots.close()
    slots.free()
    assert (lost.closed, other.closed) == (False, True)
    assert "its GPU memory was not freed" in caplog.text
