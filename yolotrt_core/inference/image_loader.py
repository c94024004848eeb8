"""Image files read before an engine asks for them: by threads, by processes, or where the engine runs."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from yolotrt_core.errors import StageError, UsageError
from yolotrt_core.media import images
from yolotrt_core.media.decode_pool import ImageProcesses, region_bytes
from yolotrt_core.media.prefetch import prefetched, processors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from yolotrt_core.media.frames import DeviceFrame, Frame

_log = logging.getLogger(__name__)

# Images: processes make up for their start from about 2,200 on where others use the processors too, from 9,300 on a
# machine to oneself.
_MANY = 4096
_FEW = 4  # processors
_BETWEEN = 64  # images read by threads before it is asked again whether processes are there
# Threads that hand files to decoding hardware, and files at a time: 5% more than three with 32, which fewer or more
# threads with 32 do not reach.
_DEVICE_THREADS, _DEVICE_TOGETHER = 4, 16
_AHEAD, _TOGETHER = 256, 8  # images that threads read ahead, and take at once
_MOST_BYTES = 1 << 30  # of images read ahead: page-locked memory, and a GPU's, are nobody else's


class DecodeTarget(Protocol):
    """The members of `Detector` that reading images ahead needs."""

    @property
    def program(self) -> object | None: ...
    @property
    def decodes_files(self) -> bool: ...
    def decode(self, files: Sequence[bytes]) -> Sequence[DeviceFrame | None]: ...
    def pinned_frames(self, count: int, shape: tuple[int, ...]) -> list[NDArray[np.uint8]]: ...
    def page_lock(self, memory: NDArray[np.uint8]) -> object: ...


def decode_ahead(paths: Sequence[Path], target: DecodeTarget) -> Iterator[Frame | UsageError]:
    """Do as `read_ahead` for who needs no pixels on the host: JPEG files are decoded where the engine runs if it can.

    Yields:
        What `target.stream` takes, in order; or what is wrong with a file.
    """
    sizes = images.plain_jpeg_sizes(paths) if target.decodes_files else []
    if not sizes:
        yield from read_ahead(paths, target)
        return

    def decode(group: Sequence[Path]) -> list[Frame | UsageError]:
        decoded = target.decode([_contents(path) for path in group])
        return [_read(path, target) if one is None else one for path, one in zip(group, decoded, strict=True)]

    waiting = 2 * _DEVICE_THREADS
    together = max(1, min(_DEVICE_TOGETHER, _affordable(sizes) // waiting))
    groups = (paths[begin : begin + together] for begin in range(0, len(paths), together))
    for group in prefetched(groups, decode, threads=_DEVICE_THREADS, ahead=waiting):
        yield from group


def read_ahead(paths: Sequence[Path], target: DecodeTarget | None = None) -> Iterator[NDArray[np.uint8] | UsageError]:
    """Yield each image, uint8 (H, W, 3) BGR, in order, or what is wrong with its file.

    Args:
        target: for whom, if it takes host frames to a GPU, which uploads fastest from memory of its own.
    """
    if target is None or not target.program:
        yield from prefetched(paths, images.attempt)
        return

    def read(path: Path) -> NDArray[np.uint8] | UsageError:
        return _read(path, target)

    # A GPU takes thousands a second if the thread that feeds it has a processor to itself; elsewhere a few waiting
    # images are enough, and cheaper.
    sizes = images.plain_jpeg_sizes(paths)
    threads = max(1, processors() - 1)
    # Of other formats nobody knows the size before they are read.
    ahead = min(_AHEAD, _affordable(sizes)) if sizes else 2 * threads
    together = max(1, min(_TOGETHER, ahead // (2 * threads)))
    by_threads = functools.partial(prefetched, work=read, ahead=ahead, together=together, threads=threads)
    processes = _processes(len(paths), sizes, target)
    if processes is None:
        yield from by_threads(paths)
        return
    taken = 0

    def meanwhile() -> Iterator[Path]:
        nonlocal taken
        while taken < len(paths) and not processes.ready:
            group = paths[taken : taken + _BETWEEN]
            taken += len(group)
            yield from group

    with processes:
        yield from by_threads(meanwhile())
        yield from processes.read(paths[taken:])


def _affordable(sizes: Sequence[tuple[int, int]]) -> int:
    """Return how many images of such heights and widths may be held ahead."""
    return max(1, _MOST_BYTES // (3 * max(height * width for height, width in sizes)))


def _read(path: Path, target: DecodeTarget) -> NDArray[np.uint8] | UsageError:
    def room(shape: tuple[int, ...]) -> NDArray[np.uint8]:
        try:
            return target.pinned_frames(1, shape)[0]
        except MemoryError:  # no more of it to lock: from ordinary memory it takes longer
            import numpy as np

            return np.empty(shape, np.uint8)

    return images.attempt(path, room)


def _contents(path: Path) -> bytes:
    try:
        return images.read_file(path)
    except OSError:  # told when it is read again, since nothing decodes no bytes
        return b""


def _processes(files: int, sizes: Sequence[tuple[int, int]], target: DecodeTarget) -> ImageProcesses | None:
    """Start processes that read for a GPU if they are worth their start, half a second, and can be had."""
    # One to a processor: the thread that feeds the GPU sleeps most of the time, and shares no interpreter with them.
    count = processors()
    if files < _MANY or count < _FEW:
        return None
    region = region_bytes(sizes) if sizes else None
    if region is None:
        return None
    try:
        return ImageProcesses(count, region, target.page_lock)
    except (OSError, StageError) as err:
        _log.info("reading images by threads: %s", err)
        return None
