"""Picture files read on threads before an engine asks for them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from yolotrt_core import pictures
from yolotrt_core.detector import Detector
from yolotrt_core.errors import StageError, UsageError
from yolotrt_core.picture_processes import PictureProcesses, region_bytes
from yolotrt_core.prefetch import prefetched

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_log = logging.getLogger(__name__)

_MANY = 4096  # pictures
_FEW = 4  # processors


def read_ahead(paths: Sequence[Path], detector: Detector | None = None) -> Iterator[NDArray[np.uint8] | UsageError]:
    """Yield each picture, uint8 (H, W, 3) BGR, in order, or what is wrong with its file.

    Args:
        detector: for whom, if it takes host frames to a GPU, which uploads fastest from memory of its own.
    """
    fed = detector if detector is not None and detector.program else None
    room = (lambda shape: fed.pinned_frames(1, shape)[0]) if fed else None

    def read(path: Path) -> NDArray[np.uint8] | UsageError:
        return pictures.attempt(path, room)

    if fed is None:
        yield from prefetched(paths, read)
        return
    processes = _processes(paths, fed)
    if processes is None:
        # A GPU takes thousands a second if the thread that feeds it has a processor to itself; elsewhere a few
        # waiting pictures are enough, and cheaper.
        yield from prefetched(paths, read, ahead=256, together=8, threads=max(1, (os.cpu_count() or 1) - 1))
        return
    with processes:
        yield from processes.read(paths)


def _processes(paths: Sequence[Path], detector: Detector) -> PictureProcesses | None:
    """Start processes that read for a GPU if they are worth their start, half a second, and can be had."""
    # One to a processor: the thread that feeds the GPU sleeps most of the time, and shares no interpreter with them.
    count = os.cpu_count() or 1
    if len(paths) < _MANY or count < _FEW:
        return None
    region = region_bytes(paths)
    if region is None:
        return None
    try:
        return PictureProcesses(count, region, detector.page_lock)
    except (OSError, StageError) as err:
        _log.info("reading pictures by threads: %s", err)
        return None
