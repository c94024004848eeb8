"""Work done ahead on threads, results in order: decoding pictures while an engine runs."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def prefetched(
    items: Iterable[T], work: Callable[[T], R], *, threads: int | None = None, ahead: int | None = None
) -> Iterator[R]:
    """Yield `work(item)` for each item, in order, computed by threads before it is asked for.

    Args:
        work: must let go of the GIL to gain anything (OpenCV's decoders do). threads: default one per
            CPU. ahead: most results computed and not yet taken; default four per thread.

    Raises:
        Whatever `work` or `items` raise, in the place of that item's result; work under way is finished, none begun.
    """
    threads = threads or os.cpu_count() or 1
    ahead = ahead or 4 * threads
    coming = iter(items)
    failure: Exception | None = None
    with ThreadPoolExecutor(threads, thread_name_prefix="yolotrt-prefetch") as pool:
        waiting: deque[Future[R]] = deque()
        try:
            while True:
                if failure is None:
                    try:
                        for item in islice(coming, max(1, ahead - len(waiting))):
                            waiting.append(pool.submit(work, item))
                    except Exception as err:  # noqa: BLE001 - raised below, once the items before it are done
                        failure = err
                if not waiting:
                    break
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
    if failure is not None:
        raise failure
