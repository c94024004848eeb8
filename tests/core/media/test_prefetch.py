"""Order, laziness, errors in their place, threads that end."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator

import pytest

from yolotrt_core.media.prefetch import drawn_ahead, prefetched


def test_results_come_in_order_whatever_takes_longest() -> None:
    def work(item: int) -> int:
        time.sleep(0.002 * (item % 3 == 0))
        return item * item

    assert list(prefetched(range(40), work, threads=4)) == [n * n for n in range(40)]
    assert list(prefetched([], work)) == []


@pytest.mark.parametrize("together", [1, 3, 50])
def test_items_taken_together_keep_order_and_errors(together: int) -> None:
    def work(item: int) -> int:
        if item == 7:
            raise OSError("item 7")
        return -item

    assert list(prefetched(range(7), work, threads=2, together=together)) == [-n for n in range(7)]
    found = []
    with pytest.raises(OSError, match="item 7"):
        for one in prefetched(range(20), work, threads=2, together=together):
            found.append(one)
    assert found == [-n for n in range(7)]


def test_work_is_done_on_other_threads_at_once() -> None:
    together = threading.Barrier(3, timeout=20)

    def work(_: int) -> str:
        together.wait()
        return threading.current_thread().name

    assert len(set(prefetched(range(3), work, threads=3))) == 3


def test_an_endless_source_is_read_only_so_far_ahead() -> None:
    taken = []

    def source() -> Iterator[int]:
        for n in itertools.count():
            taken.append(n)
            yield n

    results = prefetched(source(), lambda n: n, threads=2, ahead=5)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    assert len(taken) <= 3 + 5
    results.close()


def test_an_error_comes_in_the_place_of_its_item() -> None:
    def work(item: int) -> int:
        if item == 3:
            raise OSError("file 3 is damaged")
        return item

    before = threading.active_count()
    found = []
    with pytest.raises(OSError, match="file 3"):
        found.extend(prefetched(range(100), work, threads=2))
        found.append(-1)
    found = []
    try:
        for one in prefetched(range(100), work, threads=2):
            found.append(one)
    except OSError:
        pass
    assert found == [0, 1, 2]
    assert threading.active_count() == before


def test_an_error_of_the_source_comes_after_the_items_before_it() -> None:
    def source() -> Iterator[int]:
        yield from range(5)
        raise OSError("the stream ended")

    found = []
    with pytest.raises(OSError, match="stream"):
        for one in prefetched(source(), lambda n: n, threads=3):
            found.append(one)
    assert found == [0, 1, 2, 3, 4]


def test_items_are_drawn_by_a_thread_while_nobody_asks() -> None:
    drawn, enough = [], threading.Event()

    def video() -> Iterator[int]:
        for n in range(20):
            drawn.append(threading.current_thread().name)
            if n == 5:
                enough.set()
            yield n

    frames = drawn_ahead(video(), 8)
    assert next(frames) == 0
    assert enough.wait(20), "five more are drawn unasked"
    assert list(frames) == list(range(1, 20))
    assert len(set(drawn)) == 1
    assert threading.current_thread().name not in drawn


def test_what_is_drawn_ahead_ends_where_its_source_does() -> None:
    def video(stop: Exception | None) -> Iterator[int]:
        yield from range(5)
        if stop is not None:
            raise stop

    assert list(drawn_ahead(video(None), 2)) == list(range(5))
    assert list(drawn_ahead([], 3)) == []
    found = []
    with pytest.raises(OSError, match="torn"):
        for n in drawn_ahead(video(OSError("torn")), 8):
            found.append(n)
    assert found == list(range(5)), "what came before the failure comes first"


def test_nothing_is_drawn_once_it_is_closed() -> None:
    drawn = []

    def video() -> Iterator[int]:
        for n in itertools.count():
            drawn.append(n)
            yield n

    frames = drawn_ahead(video(), 4)
    assert [next(frames), next(frames)] == [0, 1]
    frames.close()
    count = len(drawn)
    assert count <= 6
    time.sleep(0.05)
    assert len(drawn) == count
