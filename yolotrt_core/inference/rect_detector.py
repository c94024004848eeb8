"""Rectangular inference: minimum padding per image.

Upstream's detect.py does this by default, with equal boxes. Of about one shape in a hundred it resizes to the full size
but maps boxes back with a smaller scale, by rounding; here the image is resized with that scale, too. Its val.py pads
by another half stride and groups images of similar shape, so its rectangular results differ slightly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from yolotrt_core.errors import UsageError
from yolotrt_core.inference.detector import Detector
from yolotrt_core.inference.frame_checks import checked_frames
from yolotrt_core.inference.letterbox import geometry, placement
from yolotrt_core.media.frames import Frame
from yolotrt_core.types import Detections, EngineSpec, Json, Selection

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class RectDetector:
    """Runs a dynamic engine on one image at a time, each at its own size within the first profile.

    Attributes:
        spec, labels, opened_by, seconds, image_bits, reads_alpha, program, decodes_files: see `Detector`; all but the
            network runs on the CPU.
    """

    program = None
    decodes_files = False

    def __init__(self, detector: Detector) -> None:
        """Wrap a detector.

        Raises:
            UsageError: a static engine, one that does not accept single images, or one of a network without padding.
        """
        self.spec: EngineSpec = detector.spec
        if self.spec.model.fit != "letterbox":
            raise UsageError(
                "`--rect` reduces the padding of images, but this model is given their central square",
                hint="omit `--rect`",
            )
        self.labels = detector.labels
        self.opened_by = detector.opened_by
        self._detector = detector
        if not self.spec.profiles or self.spec.profiles[0].min[0] > 1:
            raise UsageError(
                "`--rect` needs a dynamic-shape engine that accepts batch 1",
                hint="build with `--dynamic on`, or omit `--rect`",
            )

        self.seconds = detector.seconds
        self.image_bits = detector.image_bits
        self.reads_alpha = detector.reads_alpha

    @property
    def frames(self) -> int:
        """See `Detector.frames`."""
        return self._detector.frames

    def decode(self, files: Sequence[bytes]) -> Sequence[None]:
        """Decode no file, see `Detector.decode`."""
        return [None] * len(files)

    def pinned_frames(self, count: int, shape: tuple[int, ...]) -> list[NDArray[np.uint8]]:
        """See `Detector.pinned_frames`."""
        return self._detector.pinned_frames(count, shape)

    def page_lock(self, memory: NDArray[np.uint8]) -> None:
        """Lock no memory, see `Detector.page_lock`."""

    def device_steps(self, frames: Sequence[Frame], selection: Selection = Selection()) -> None:
        """Return no times of the GPU, see `Detector.device_steps`."""

    @property
    def decoded_by(self) -> Mapping[str, Json]:
        """See `Detector.decoded_by`."""
        return self._detector.decoded_by

    def stream(self, frames: Iterable[Frame], selection: Selection) -> Iterator[Detections]:
        """Detect objects on uint8 (H, W, 3) BGR frames, one by one; see `Detector.stream`."""
        for frame in checked_frames(frames, alpha=self.reads_alpha):
            yield self._detector.detect_at(frame, self.size_for((frame.shape[0], frame.shape[1])), selection)

    def size_for(self, source: tuple[int, int]) -> tuple[int, int]:
        """Return the input (height, width) for an image of this (height, width)."""
        profile = self.spec.profiles[0]
        step = self.spec.model.size_step
        limit = (profile.opt[1], profile.opt[2])
        _, _, width, height = placement(geometry(source, limit))
        sides = (math.ceil(side / step) * step for side in (height, width))
        rows, columns = (max(side, least) for side, least in zip(sides, profile.min[1:], strict=True))
        return rows, columns
