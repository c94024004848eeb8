"""Frames of video files, cameras and streams."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolotrt_core.errors import UsageError
from yolotrt_core.media.inputs import CAMERA, is_live, redact

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """Frame size in pixels, frames per second, and number of frames (0: unknown) of a video."""

    width: int
    height: int
    fps: float
    frames: int


@contextmanager
def open_video(source: Path | str) -> Iterator[tuple[VideoFacts, Iterator[NDArray[np.uint8]]]]:
    """Open a video.

    Args:
        source: a file, or a live source by `is_live`.

    Yields:
        Its facts, and its frames: uint8 (H, W, 3) BGR each, one in memory at a time.

    Raises:
        UsageError: it cannot be opened or has no frame.
    """
    import cv2

    camera = CAMERA.fullmatch(str(source))
    capture = cv2.VideoCapture(int(camera[1]) if camera else str(source))
    try:
        if not capture.isOpened():
            if is_live(str(source)):
                raise UsageError(
                    f"cannot open the live source `{redact(source)}`",
                    hint="check that the device exists and is not in use",
                )
            raise UsageError(
                f"cannot decode the video `{redact(source)}`",
                hint="the file may be truncated or use an unsupported codec",
            )
        facts = VideoFacts(
            width=int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)),
            height=int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)),
            fps=capture.get(cv2.CAP_PROP_FPS) or 25.0,
            frames=max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT))),
        )
        yield facts, _frames(capture, source)
    finally:
        capture.release()


def count_frames(path: Path) -> int:
    """Return the number of frames in a video file's metadata; 0 if it cannot be opened."""
    import cv2

    capture = cv2.VideoCapture(str(path))
    try:
        return max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT))) if capture.isOpened() else 0
    finally:
        capture.release()


def _frames(capture: Any, source: Path | str) -> Iterator[NDArray[np.uint8]]:
    count = 0
    while True:
        good, frame = capture.read()
        if not good:
            break
        count += 1
        yield frame
    if count == 0:
        raise UsageError(f"the video `{redact(source)}` has no readable frame")
