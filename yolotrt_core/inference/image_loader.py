"""Prefetching of image files by threads, by processes, or on the GPU."""

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

# Number of images: processes amortize their start from about 2,200 images on a shared machine, 9,300 on an idle one.
_MANY = 4096
_FEW = 4  # processors
_BETWEEN = 64  # images read by threads between checks whether processes are ready
# Threads that feed the hardware decoder, and files per call: 5% faster than three threads with 32 files.
_DEVICE_THREADS, _DEVICE_TOGETHER = 4, 16
_AHEAD, _TOGETHER = 256, 8  # images read ahead, and images per task
_MAX_BYTES = 1 << 30  # of images read ahead, in page-locked or GPU memory


class DecodeTarget(Protocol):
    """The members of `Detector` needed for prefetching images."""

    image_bits: int
    reads_alpha: bool

    @property
    def program(self) -> object | None: ...
    @property
    def decodes_files(self) -> bool: ...
    def decode(self, files: Sequence[bytes]) -> Sequence[DeviceFrame | None]: ...
    def pinned_frames(self, count: int, shape: tuple[int, ...]) -> list[NDArray[np.uint8]]: ...
    def page_lock(self, memory: NDArray[np.uint8]) -> object: ...


def decode_ahead(paths: Sequence[Path], target: DecodeTarget) -> Iterator[Frame | UsageError]:
    """Prefetch images like `read_ahead`, but decode JPEG files on the GPU if supported.

    Yields:
        Frames for `target.stream`, or the error of a file, in order.
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


def read_ahead(paths: Sequence[Path], target: DecodeTarget) -> Iterator[NDArray[np.uint8] | UsageError]:
    """Yield each image, uint8 (H, W, 3) BGR, or the error of its file, in order.

    For a network with an alpha channel, images that have one are (H, W, 4) BGRA.

    Args:
        target: detector whose settings to follow, and whose page-locked memory to use if it runs on a GPU.
    """
    if not target.program:
        yield from prefetched(
            paths, functools.partial(images.attempt, depth=target.image_bits, alpha=target.reads_alpha)
        )
        return

    def read(path: Path) -> NDArray[np.uint8] | UsageError:
        return _read(path, target)

    # A GPU processes thousands of images per second if its feeding thread has a processor of its own.
    sizes = images.plain_jpeg_sizes(paths)
    threads = max(1, processors() - 1)
    # The size of other formats is unknown before decoding.
    ahead = min(_AHEAD, _affordable(sizes)) if sizes else 2 * threads
    together = max(1, min(_TOGETHER, ahead // (2 * threads)))
    by_threads = functools.partial(prefetched, work=read, ahead=ahead, together=together, threads=threads)
    processes = _processes(len(paths), sizes, target)
    if processes is None:
        yield from by_threads(paths)
        return
    taken = 0

    def next_paths() -> Iterator[Path]:
        nonlocal taken
        while taken < len(paths) and not processes.ready:
            group = paths[taken : taken + _BETWEEN]
            taken += len(group)
            yield from group

    with processes:
        yield from by_threads(next_paths())
        yield from processes.read(paths[taken:])


def _affordable(sizes: Sequence[tuple[int, int]]) -> int:
    """Return the maximum number of images of these sizes to hold in memory."""
    return max(1, _MAX_BYTES // (3 * max(height * width for height, width in sizes)))


def _read(path: Path, target: DecodeTarget) -> NDArray[np.uint8] | UsageError:
    def room(shape: tuple[int, ...]) -> NDArray[np.uint8]:
        try:
            return target.pinned_frames(1, shape)[0]
        except MemoryError:  # no more page-locked memory: use pageable memory
            import numpy as np

            return np.empty(shape, np.uint8)

    return images.attempt(path, room, depth=target.image_bits)


def _contents(path: Path) -> bytes:
    try:
        return images.read_file(path)
    except OSError:  # reported when the file is read again, since empty content cannot be decoded
        return b""


def _processes(files: int, sizes: Sequence[tuple[int, int]], target: DecodeTarget) -> ImageProcesses | None:
    """Start decoding processes if they pay off and are available."""
    # One per processor: the thread that feeds the GPU sleeps most of the time.
    count = processors()
    if files < _MANY or count < _FEW:
        return None
    region = region_bytes(sizes) if sizes else None
    if region is None:
        return None
    try:
        return ImageProcesses(count, region, target.page_lock, target.image_bits)
    except (OSError, StageError) as err:
        _log.info("reading images by threads: %s", err)
        return None
