"""Picture files read on threads before an engine asks for them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from yolotrt_core import pictures
from yolotrt_core.detector import Detector
from yolotrt_core.errors import UsageError
from yolotrt_core.prefetch import prefetched

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def read_ahead(paths: Sequence[Path], detector: Detector | None = None) -> Iterator[NDArray[np.uint8] | UsageError]:
    """Yield each picture, uint8 (H, W, 3) BGR, in order, or what is wrong with its file.

    Args:
        detector: for whom, if it takes host frames to a GPU, which uploads fastest from memory of its own.
    """
    fed = detector if detector is not None and detector.program else None
    room = (lambda shape: fed.pinned_frames(1, shape)[0]) if fed else None

    def read(path: Path) -> NDArray[np.uint8] | UsageError:
        try:
            return pictures.read(path, room)
        except UsageError as err:
            return err

    if fed is None:
        yield from prefetched(paths, read)
        return
    # A GPU takes thousands a second if the thread that feeds it has a processor to itself; elsewhere a few
    # waiting pictures are enough, and cheaper.
    threads = max(1, (os.cpu_count() or 1) - 1)
    yield from prefetched(paths, read, ahead=256, together=8, threads=threads)
