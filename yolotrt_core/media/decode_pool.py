"""Process pool that decodes image files into shared memory for uploads to a GPU.

Threads compete for the GIL with each other and with the thread that feeds the GPU. On a shared host every switch may
take a millisecond, and threads then reach a third of the decoder's throughput.
"""

from __future__ import annotations

import functools
import logging
import math
import mmap
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from yolotrt_core.console.notices import warn_once
from yolotrt_core.media import images
from yolotrt_core.media.frames import HostBuffer
from yolotrt_core.media.prefetch import prefetched

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from yolotrt_core.errors import UsageError

    PageLock = Callable[[NDArray[np.uint8]], object]
    # Per file the location of its image, the image if the region is full, or the error; None: nothing was read.
    Answer = list["Placed | NDArray[np.uint8] | UsageError"] | None

_log = logging.getLogger(__name__)

_TOGETHER = 8  # images per message
# Pending messages per process: the current one and the next one. More let a slow process block the others, whose full
# memory waits for earlier images.
_AHEAD = 2
_HELD = 36  # messages whose images may wait for the GPU or for earlier images
_MAX_BYTES = 1 << 30  # of shared memory, which is page-locked


class Placed(NamedTuple):
    """Offset in bytes of an image in its region of the shared memory, and its shape."""

    offset: int
    shape: tuple[int, ...]


@dataclass(slots=True, eq=False)
class _Group:
    files: Sequence[Path]
    region: int
    answered: bool = False
    answer: Answer = None


@dataclass(slots=True, eq=False)
class _Process:
    connection: Connection
    started: bool = False
    groups: deque[_Group] = field(default_factory=deque)


class _Memory:
    """Memory shared with processes, page-locked if supported."""

    def __init__(self, size: int) -> None:
        import numpy as np

        self._lock: object = None
        self.file = os.memfd_create("yolotrt-images")
        try:
            os.ftruncate(self.file, size)
            self.bytes = np.frombuffer(mmap.mmap(self.file, size), np.uint8)
        except BaseException:  # raised again: close the descriptor
            os.close(self.file)
            raise

    def lock(self, page_lock: PageLock) -> None:
        self._lock = page_lock(self.bytes)

    @property
    def page_locked(self) -> bool:
        return self._lock is not None

    def __del__(self) -> None:
        self._lock = None  # before the memory is freed


def region_bytes(sizes: Sequence[tuple[int, int]]) -> int | None:
    """Return the maximum memory of a message's images, or None if threads are as fast.

    Args:
        sizes: height and width of sampled JPEG files in pixels. Processes are faster below one megapixel, where
            the GIL costs more than decoding.
    """
    pixels = max(height * width for height, width in sizes)
    return 3 * _TOGETHER * pixels if pixels < 1 << 20 and hasattr(os, "memfd_create") else None


class ImageProcesses:
    """Processes that read images; a context manager.

    Memory: `_AHEAD` regions per process and `_HELD` more, at most 1 GiB.

    Attributes:
        process_id: id of the parent of all worker processes.
    """

    def __init__(
        self, processes: int, region: int, page_lock: PageLock | None = None, depth: int = images.FULL_DEPTH
    ) -> None:
        """Start the processes.

        Args:
            processes: number of processes. region: see `region_bytes`. page_lock: locks memory and returns an
                object that keeps it locked, or None. depth: see `images.read`.

        Raises:
            OSError: not enough memory or processes.
            StageError: `page_lock` failed.
        """
        self._depth = depth
        self._read_here = functools.partial(images.attempt, depth=depth)
        self._region = -(-region // mmap.PAGESIZE) * mmap.PAGESIZE
        regions = max(2, min(_AHEAD * processes + _HELD, _MAX_BYTES // self._region))
        self._memory = _Memory(regions * self._region)
        self._free = deque(range(regions))
        self._processes: list[_Process] = []
        self._warned = False
        theirs: list[Connection] = []
        # Workers use the same import path.
        paths = [path for path in sys.path if isinstance(path, str)]
        program = f"import sys; sys.path[:] = {paths}; from yolotrt_core.media.decode_worker import main; main()"
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # forking may leave locks of threads locked
        try:
            for _ in range(processes):
                ours, other = Pipe()
                self._processes.append(_Process(ours))
                theirs.append(other)
            files = (self._memory.file, *(connection.fileno() for connection in theirs))
            self._root = subprocess.Popen(
                [sys.executable, "-c", program, *map(str, files)],
                pass_fds=files,
                env=environment,
                stdin=subprocess.DEVNULL,
                process_group=0,  # this process handles Ctrl-C
            )
        finally:
            os.close(self._memory.file)
            for connection in theirs:
                connection.close()
        self.process_id = self._root.pid
        if page_lock is not None:  # in parallel to the start of the processes
            try:
                self._memory.lock(page_lock)
            except BaseException:  # raised again: end the processes
                self.close()
                raise

    @property
    def ready(self) -> bool:
        """Whether a process has started, or all have failed."""
        return (
            any(process.started for process in self._processes)
            or not self._processes
            or bool(wait([process.connection for process in self._processes], timeout=0))
        )

    def read(self, paths: Sequence[Path]) -> Iterator[NDArray[np.uint8] | UsageError]:
        """Yield each image, uint8 (H, W, 3) BGR, in order, or the error of its file.

        Images keep their shared memory alive. Files are read by threads if no memory is free or a process died.
        """
        order: deque[_Group] = deque()
        begin = 0
        try:
            while begin < len(paths) or order:
                while begin < len(paths) and self._free and (process := self._least_busy()):
                    group = _Group(paths[begin : begin + _TOGETHER], self._free.popleft())
                    self._send(process, group)
                    order.append(group)
                    begin += _TOGETHER
                if not order:
                    end = begin + _TOGETHER if self._processes else len(paths)
                    yield from prefetched(paths[begin:end], self._read_here)
                    begin = end
                elif order[0].answered:
                    yield from self._images(order.popleft())
                else:
                    self._receive()
        finally:
            if order:  # stopped early: pending answers are discarded
                self.close()

    def _least_busy(self) -> _Process | None:
        process = min(self._processes, key=lambda p: len(p.groups), default=None)
        return process if process is not None and len(process.groups) < _AHEAD else None

    def _send(self, process: _Process, group: _Group) -> None:
        begin = group.region * self._region
        process.groups.append(group)
        try:
            files = [os.fspath(file) for file in group.files]
            process.connection.send((begin, begin + self._region, files, self._depth))
        except OSError:
            self._drop_process(process)

    def _receive(self) -> None:
        """Wait for an answer."""
        by_connection = {p.connection: p for p in self._processes if p.groups}
        for connection in wait(list(by_connection)):
            process = by_connection[connection]  # type: ignore[index] # `wait` returns what it was given
            try:
                answer = process.connection.recv()
            except (EOFError, OSError):
                self._drop_process(process)
                continue
            if not process.started:
                process.started = True
                continue
            group = process.groups.popleft()
            group.answered = True
            group.answer, notices = answer
            for text, key in notices:
                warn_once(text, key)

    def _drop_process(self, process: _Process) -> None:
        """Remove a process that died; its pending files are read by threads."""
        if not self._warned:
            _log.warning("an image decoding process died; continuing without it")
        self._warned = True
        self._processes.remove(process)
        process.connection.close()
        for group in process.groups:
            group.answered = True

    def _images(self, group: _Group) -> Iterator[NDArray[np.uint8] | UsageError]:
        import numpy as np

        if group.answer is None:
            self._free.append(group.region)
            yield from prefetched(group.files, self._read_here)
            return
        memory, region = self._memory, group.region
        begin = region * self._region
        buffer = HostBuffer(
            memory.bytes.ctypes.data + begin,
            self._region,
            functools.partial(_release_region, self._free, region, memory),
            page_locked=memory.page_locked,
        )
        base: NDArray[np.uint8] = np.asarray(buffer)
        del buffer
        for one in group.answer:
            if isinstance(one, Placed):
                yield base[one.offset : one.offset + math.prod(one.shape)].reshape(one.shape)
            else:
                yield one

    def close(self) -> None:
        """End the processes; decoded images stay valid."""
        for process in self._processes:
            process.connection.close()
        self._processes.clear()
        self._root.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


def _release_region(free: deque[int], region: int, memory: _Memory) -> None:
    """Mark a region as free; `memory` is an argument to keep it alive until then."""
    free.append(region)
