"""Lanes shared by threads: each with one at a time, none lost, none freed in use."""

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
from yolotrt_tensorrt.lanes import Hold, Lanes, Ticket


class Gpu:
    """A GPU whose context is current on any thread."""

    @contextmanager
    def current(self) -> Iterator[None]:
        yield


class Lane:
    """A lane whose batches take as long as the test says; complains if two threads use it, or one after `close`."""

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


def start(lanes: Any, number: int, make: Callable[[], Any] = Lane) -> Ticket:
    """Start a batch whose results are `number`."""
    gpu: Any = Gpu()
    lane = lanes.take(make, Hold())
    ticket = Ticket(gpu, lanes, lane, [np.zeros((1, 1, 3), np.uint8)] * 2, number, _same)
    lanes.fly(lane, ticket)
    return ticket


def test_many_threads_get_their_own_results_from_few_lanes() -> None:
    made: list[Lane] = []

    def make() -> Any:
        made.append(Lane(0.0005))
        return made[-1]

    lanes = Lanes(make(), 3)

    def work(thread: int) -> None:
        waiting = []
        for number in range(40):
            if number % 4 == 0:
                hold = Hold()
                lane: Any = lanes.take(make, hold)
                lane.infer()
                lanes.leave(hold)
            waiting.append((1000 * thread + number, start(lanes, 1000 * thread + number, make)))
            if len(waiting) > 5:  # more than there are lanes
                wanted, ticket = waiting.pop(0)
                assert ticket.result() == [wanted] * 2
        for wanted, ticket in waiting:
            assert ticket.result() == [wanted] * 2

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert len(made) == 3
    lanes.close()
    assert not any(lane.closed for lane in made)
    lanes.free()
    assert all(lane.closed for lane in made)


def test_an_error_is_kept_for_whoever_asks_for_the_result() -> None:
    lane: Any = Lane()
    lanes = Lanes(lane, 1)
    lane.collect = lambda count, max_det: 1 // 0
    failing = start(lanes, 1)
    following = start(lanes, 2)  # finishes the one before it
    assert lane.recovered
    del lane.collect
    assert following.result() == [2, 2]
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            failing.result()


def test_no_room_for_another_lane_leaves_those_there_are_for_some_minutes(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms: list[Any] = [Lane(), Lane()]

    def make() -> Any:
        if not rooms:
            raise StageError("out of GPU memory")
        return rooms.pop()

    lanes = Lanes(make(), 5)
    tickets = [start(lanes, number, make) for number in range(6)]
    assert [ticket.result() for ticket in tickets] == [[number] * 2 for number in range(6)]
    assert lanes.most == 2
    rooms.append(Lane())
    assert [start(lanes, number, make).result() for number in range(3)] == [[0] * 2, [1] * 2, [2] * 2]
    assert rooms, "a full GPU is not asked each time"
    later = time.monotonic() + 301
    monkeypatch.setattr("yolotrt_tensorrt.lanes.time.monotonic", lambda: later)
    assert lanes.most == 5
    tickets = [start(lanes, number, make) for number in range(3)]
    assert [ticket.result() for ticket in tickets] == [[number] * 2 for number in range(3)]
    assert not rooms
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
        "running with 2 batch(es) in flight: out of GPU memory"
    ]


def test_closing_finishes_batches_and_waits_for_who_has_a_lane() -> None:
    lanes: Any = Lanes(Lane(0.05), 2)  # type: ignore[arg-type]
    hold = Hold()
    flying, lane = start(lanes, 7), lanes.take(lambda: Lane(0.05), hold)
    events: list[str] = []

    def infer() -> None:
        lane.infer()
        events.append("ran")
        lanes.leave(hold)

    def wait_for_a_lane() -> None:
        with pytest.raises(UsageError, match="the session is closed"):
            while True:
                other = Hold()
                lanes.take(Lane, other)
                lanes.leave(other)

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(infer), pool.submit(wait_for_a_lane)]
        lanes.close()
        events.append("closed")
        lanes.free()
        for future in futures:
            future.result()
    assert events == ["ran", "closed"]
    assert lane.closed
    assert flying.result() == [7, 7]
    with pytest.raises(UsageError, match="the session is closed"):
        lanes.take(Lane, Hold())


def test_a_lane_that_never_comes_back_is_not_freed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("yolotrt_tensorrt.lanes._LONGEST_RUN", 0.05)
    lanes: Any = Lanes(Lane(), 2)  # type: ignore[arg-type]
    hold = Hold()
    lost, other = lanes.take(Lane, Hold()), lanes.take(Lane, hold)
    lanes.leave(hold)
    assert not lanes.close()
    lanes.free()
    assert (lost.closed, other.closed) == (False, True)
    assert "its memory stays" in caplog.text
