"""Picture files read before an engine asks for them: by threads, by processes, or where the engine runs."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from yolotrt_core import pictures
from yolotrt_core.errors import StageError, UsageError
from yolotrt_core.picture_processes import PictureProcesses, region_bytes
from yolotrt_core.prefetch import prefetched, processors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from yolotrt_core.detector import Detector
    from yolotrt_core.frames import Frame

_log = logging.getLogger(__name__)

# Pictures: processes make up for their start from about 2,200 on where others use the processors too, from 9,300 on a
# machine to oneself.
_MANY = 4096
_FEW = 4  # processors
_BETWEEN = 64  # pictures read by threads before it is asked again whether processes are there
# Threads that hand files to decoding hardware, and files at a time: 5% more than three with 32, which fewer or more
# threads with 32 do not reach.
_DEVICE_THREADS, _DEVICE_TOGETHER = 4, 16


def decode_ahead(paths: Sequence[Path], detector: Detector) -> Iterator[Frame | UsageError]:
    """Do as `read_ahead` for who needs no pixels on the host: JPEG files are decoded where the engine runs if it can.

    Yields:
        What `detector.stream` takes, in order; or what is wrong with a file.
    """
    if not (detector.decodes_files and pictures.plain_jpeg_sizes(paths)):
        yield from read_ahead(paths, detector)
        return

    def decode(group: Sequence[Path]) -> list[Frame | UsageError]:
        decoded = detector.decode([_contents(path) for path in group])
        return [_read(path, detector) if one is None else one for path, one in zip(group, decoded, strict=True)]

    groups = (paths[begin : begin + _DEVICE_TOGETHER] for begin in range(0, len(paths), _DEVICE_TOGETHER))
    for group in prefetched(groups, decode, threads=_DEVICE_THREADS, ahead=2 * _DEVICE_THREADS):
        yield from group


def read_ahead(paths: Sequence[Path], detector: Detector | None = None) -> Iterator[NDArray[np.uint8] | UsageError]:
    """Yield each picture, uint8 (H, W, 3) BGR, in order, or what is wrong with its file.

    Args:
        detector: for whom, if it takes host frames to a GPU, which uploads fastest from memory of its own.
    """
    if detector is None or not detector.program:
        yield from prefetched(paths, pictures.attempt)
        return

    def read(path: Path) -> NDArray[np.uint8] | UsageError:
        return _read(path, detector)

    # A GPU takes thousands a second if the thread that feeds it has a processor to itself; elsewhere a few waiting
    # pictures are enough, and cheaper.
    by_threads = functools.partial(prefetched, work=read, ahead=256, together=8, threads=max(1, processors() - 1))
    processes = _processes(paths, detector)
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


def _read(path: Path, detector: Detector) -> NDArray[np.uint8] | UsageError:
    return pictures.attempt(path, lambda shape: detector.pinned_frames(1, shape)[0])


def _contents(path: Path) -> bytes:
    try:
        return pictures.contents(path)
    except OSError:  # told when it is read again, since nothing decodes no bytes
        return b""


def _processes(paths: Sequence[Path], detector: Detector) -> PictureProcesses | None:
    """Start processes that read for a GPU if they are worth their start, half a second, and can be had."""
    # One to a processor: the thread that feeds the GPU sleeps most of the time, and shares no interpreter with them.
    count = processors()
    if len(paths) < _MANY or count < _FEW:
        return None
    sizes = pictures.plain_jpeg_sizes(paths)
    region = region_bytes(sizes) if sizes else None
    if region is None:
        return None
    try:
        return PictureProcesses(count, region, detector.page_lock)
    except (OSError, StageError) as err:
        _log.info("reading pictures by threads: %s", err)
        return None
