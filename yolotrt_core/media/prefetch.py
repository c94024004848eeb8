"""Prefetching on threads, with results in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def processors() -> int:
    """Return the number of processors available to this process, e.g. in a container."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prefetched(
    items: Iterable[T],
    work: Callable[[T], R],
    *,
    threads: int | None = None,
    ahead: int | None = None,
    together: int = 1,
) -> Iterator[R]:
    """Yield `work(item)` for each item, in order, computed ahead by threads.

    Args:
        work: must release the GIL to run in parallel (OpenCV's decoders do). threads: default one per
            processor. ahead: maximum results computed ahead; default four per thread and `together`.
            together: items per task; more means fewer GIL switches, but a later first result.

    Raises:
        Errors of `work` or `items`, in place of that item's result; running work is finished, no more is started.
    """
    threads = threads or processors()
    ahead = max(1, (ahead or 4 * threads * together) // together)
    coming = iter(items)
    failure: Exception | None = None
    with ThreadPoolExecutor(threads, thread_name_prefix="yolotrt-prefetch") as pool:
        waiting: deque[Future[tuple[list[R], Exception | None]]] = deque()
        try:
            while True:
                if failure is None:
                    try:
                        while len(waiting) < ahead:
                            taken = []
                            try:
                                for item in islice(coming, together):
                                    taken.append(item)
                            finally:
                                if taken:
                                    waiting.append(pool.submit(_each, work, taken))
                            if not taken:
                                break
                    except Exception as err:  # noqa: BLE001 - raised below, after the items before it
                        failure = err
                if not waiting:
                    break
                results, error = waiting.popleft().result()
                yield from results
                if error is not None:
                    raise error
        finally:
            for future in waiting:
                future.cancel()
    if failure is not None:
        raise failure


def drawn_ahead(items: Iterable[T], ahead: int) -> Generator[T, None, None]:
    """Yield items in order, read ahead by one thread, such as the frames of a video.

    Close it before releasing resources of `items`.

    Args:
        ahead: maximum number of items read ahead.

    Raises:
        Errors of `items`, in place of the next item.
    """
    coming, end = iter(items), object()
    with ThreadPoolExecutor(1, thread_name_prefix="yolotrt-drawn") as pool:
        waiting = deque(pool.submit(next, coming, end) for _ in range(ahead))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(pool.submit(next, coming, end))
                yield item  # type: ignore[misc] # `end` is not an item
        finally:
            for future in waiting:
                future.cancel()


def _each(work: Callable[[T], R], items: list[T]) -> tuple[list[R], Exception | None]:
    results: list[R] = []
    for item in items:
        try:
            results.append(work(item))
        except Exception as err:  # noqa: BLE001 - raised in place of this item's result
            return results, err
    return results, None
