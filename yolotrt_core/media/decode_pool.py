"""Image files decoded by processes into shared memory, which a GPU may take them from.

Threads share one interpreter: each image takes turns of it, and so does the thread that feeds the GPU. On a host
whose processors are shared with others every wait for a turn may cost a millisecond, and threads then reach a third of
what the decoder alone does. Processes wait for nobody.
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

from yolotrt_core.media import images
from yolotrt_core.media.frames import HostBuffer
from yolotrt_core.media.prefetch import prefetched

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from yolotrt_core.errors import UsageError

    PageLock = Callable[[NDArray[np.uint8]], object]
    # For each file where its image is, the image if its region is full, or what is wrong; None: nothing was read.
    Answer = list["Placed | NDArray[np.uint8] | UsageError"] | None

_log = logging.getLogger(__name__)

_TOGETHER = 8  # images to a message
# Messages to a process that it has not answered: one that it works on, and one so that it need not wait. With more, a
# process whose processor others use too holds up the rest: their memory waits, full, for images that come before.
_AHEAD = 2
_HELD = 36  # messages whose images may wait for the GPU, or for one before them
_MOST_BYTES = 1 << 30  # of shared memory, since page-locked memory is nobody else's


class Placed(NamedTuple):
    """Where in its region of the shared memory an image begins, in bytes, and its shape."""

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
    """Memory shared with processes, page-locked where somebody knows how."""

    def __init__(self, size: int) -> None:
        import numpy as np

        self._lock: object = None
        self.file = os.memfd_create("yolotrt-images")
        try:
            os.ftruncate(self.file, size)
            self.bytes = np.frombuffer(mmap.mmap(self.file, size), np.uint8)
        except BaseException:  # raised again: no descriptor may stay, whatever ended it
            os.close(self.file)
            raise

    def lock(self, page_lock: PageLock) -> None:
        self._lock = page_lock(self.bytes)

    @property
    def page_locked(self) -> bool:
        return self._lock is not None

    def __del__(self) -> None:
        self._lock = None  # before the memory goes


def region_bytes(sizes: Sequence[tuple[int, int]]) -> int | None:
    """Return how much memory a message's images may need, or None where threads serve as well.

    Args:
        sizes: height and width of JPEG files like those to come, in pixels. Those of less than a megapixel gain,
            whose decoding is short beside the turns of the interpreter that it costs.
    """
    most = max(height * width for height, width in sizes)
    return 3 * _TOGETHER * most if most < 1 << 20 and hasattr(os, "memfd_create") else None


class ImageProcesses:
    """Processes that read images; a context manager that ends them.

    Memory: `_AHEAD` regions for each process and `_HELD` more, at most a GiB.

    Attributes:
        process_id: of the process that all others were forked from.
    """

    def __init__(self, processes: int, region: int, page_lock: PageLock | None = None) -> None:
        """Start them.

        Args:
            processes: how many. region: see `region_bytes`. page_lock: returns what keeps memory page-locked while it
                lives, or None.

        Raises:
            OSError: the system has no room for them.
            StageError: of `page_lock`.
        """
        self._region = -(-region // mmap.PAGESIZE) * mmap.PAGESIZE
        regions = max(2, min(_AHEAD * processes + _HELD, _MOST_BYTES // self._region))
        self._memory = _Memory(regions * self._region)
        self._free = deque(range(regions))
        self._processes: list[_Process] = []
        self._told = False
        theirs: list[Connection] = []
        # They import what is imported here, wherever it lies.
        paths = [path for path in sys.path if isinstance(path, str)]
        program = f"import sys; sys.path[:] = {paths}; from yolotrt_core.media.decode_worker import main; main()"
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # forking may leave locks of threads held
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
                process_group=0,  # Ctrl-C is for us to tell
            )
        finally:
            os.close(self._memory.file)
            for connection in theirs:
                connection.close()
        self.process_id = self._root.pid
        if page_lock is not None:  # now, since both take their time
            try:
                self._memory.lock(page_lock)
            except BaseException:  # raised again: no process may stay, whatever ended the locking
                self.close()
                raise

    @property
    def ready(self) -> bool:
        """Whether one of them has come so far that it reads, or none ever will."""
        return (
            any(process.started for process in self._processes)
            or not self._processes
            or bool(wait([process.connection for process in self._processes], timeout=0))
        )

    def read(self, paths: Sequence[Path]) -> Iterator[NDArray[np.uint8] | UsageError]:
        """Yield each image, uint8 (H, W, 3) BGR, in order, or what is wrong with its file.

        Images that somebody keeps keep their shared memory; once all of it is kept, and where a process was
        killed, files are read by threads.
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
                    yield from prefetched(paths[begin:end], images.attempt)
                    begin = end
                elif order[0].answered:
                    yield from self._images(order.popleft())
                else:
                    self._receive()
        finally:
            if order:  # their answers are nobody's
                self.close()

    def _least_busy(self) -> _Process | None:
        process = min(self._processes, key=lambda p: len(p.groups), default=None)
        return process if process is not None and len(process.groups) < _AHEAD else None

    def _send(self, process: _Process, group: _Group) -> None:
        begin = group.region * self._region
        process.groups.append(group)
        try:
            process.connection.send((begin, begin + self._region, [os.fspath(file) for file in group.files]))
        except OSError:
            self._bury(process)

    def _receive(self) -> None:
        """Wait for some answer."""
        by_connection = {p.connection: p for p in self._processes if p.groups}
        for connection in wait(list(by_connection)):
            process = by_connection[connection]  # type: ignore[index] # `wait` returns what it was given
            try:
                answer = process.connection.recv()
            except (EOFError, OSError):
                self._bury(process)
                continue
            if not process.started:
                process.started = True
                continue
            group = process.groups.popleft()
            group.answered, group.answer = True, answer

    def _bury(self, process: _Process) -> None:
        """Go on without a process that ended; what it had not answered is read here."""
        if not self._told:
            _log.warning("a process that reads images ended early; going on without")
        self._told = True
        self._processes.remove(process)
        process.connection.close()
        for group in process.groups:
            group.answered = True

    def _images(self, group: _Group) -> Iterator[NDArray[np.uint8] | UsageError]:
        import numpy as np

        if group.answer is None:
            self._free.append(group.region)
            yield from prefetched(group.files, images.attempt)
            return
        memory, region = self._memory, group.region
        begin = region * self._region
        lent = HostBuffer(
            memory.bytes.ctypes.data + begin,
            self._region,
            functools.partial(_give_back, self._free, region, memory),
            page_locked=memory.page_locked,
        )
        base: NDArray[np.uint8] = np.asarray(lent)
        del lent
        for one in group.answer:
            if isinstance(one, Placed):
                yield base[one.offset : one.offset + math.prod(one.shape)].reshape(one.shape)
            else:
                yield one

    def close(self) -> None:
        """End the processes; images that they read stay as they are."""
        for process in self._processes:
            process.connection.close()
        self._processes.clear()
        self._root.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


def _give_back(free: deque[int], region: int, memory: _Memory) -> None:
    """Keep a region for other images; `memory` is only there to stay until its last region is back."""
    free.append(region)
