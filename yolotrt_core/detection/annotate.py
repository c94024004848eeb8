"""Draws detections on images, and writes annotated copies."""

from __future__ import annotations

import colorsys
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from yolotrt_core.detection.formats import TOP
from yolotrt_core.errors import ArtifactError
from yolotrt_core.files.atomic import write_atomic
from yolotrt_core.types import Classes, Detections, Masks

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MAX_PENDING = 32  # annotated images not yet written: a slow disk must not fill the memory
_GOLDEN_ANGLE = 0.61803398875  # steps of it keep the hues of neighbouring class ids far apart


def colour(class_id: int) -> tuple[int, int, int]:
    """Return the fixed colour of a class as BGR, 0..255."""
    red, green, blue = colorsys.hsv_to_rgb(class_id * _GOLDEN_ANGLE % 1.0, 0.85, 0.95)
    return int(blue * 255), int(green * 255), int(red * 255)


def annotate(frame: NDArray[np.uint8], found: Detections, labels: Sequence[str]) -> NDArray[np.uint8]:
    """Return a copy of the image with masks, boxes, labels and scores, the best on top.

    Of a classification model with the names and scores of the best classes in the corner.

    Args:
        frame: uint8 (H, W, 3) BGR, or BGRA, whose alpha is dropped. labels: class names by id.
    """
    import cv2

    drawn = frame[..., :3].copy()
    height, width = frame.shape[:2]
    line = max(2, round((height + width) / 2 * 0.003))
    scale, thickness = line / 4, max(1, line - 1)
    for i in reversed(range(len(found))):
        x1, y1, x2, y2 = (round(float(v)) for v in found.boxes[i])
        class_id = int(found.class_ids[i])
        paint = colour(class_id)
        if found.masks is not None:
            _cover(drawn, found.masks, i, paint)
        cv2.rectangle(drawn, (x1, y1), (x2, y2), paint, line, cv2.LINE_AA)
        text = f"{_name(labels, class_id)} {found.scores[i]:.2f}"
        (w, h), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)
        left = min(max(0, x1), max(0, width - w - 2))
        top = y1 - h - below - 2 if y1 - h - below - 2 >= 0 else y1
        _write(drawn, text, (left, top), paint, scale, thickness)
    if found.classes is not None:
        _list(drawn, found.classes, labels, scale, thickness)
    return drawn


def _list(drawn: NDArray[np.uint8], classes: Classes, labels: Sequence[str], scale: float, thickness: int) -> None:
    """Write the best classes below each other into the corner."""
    top = 0
    for class_id in classes.top(TOP):
        text = f"{_name(labels, class_id)} {classes.scores[class_id]:.2f}"
        top += _write(drawn, text, (0, top), colour(class_id), scale, thickness)


def _write(
    drawn: NDArray[np.uint8],
    text: str,
    corner: tuple[int, int],
    paint: tuple[int, int, int],
    scale: float,
    thickness: int,
) -> int:
    """Write a line on a filled box whose upper left corner is given, and return the height of the box."""
    import cv2

    (w, h), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)
    left, top = corner
    cv2.rectangle(drawn, (left, top), (left + w + 2, top + h + below + 2), paint, cv2.FILLED)
    dark = sum(paint) < 380
    ink = (255, 255, 255) if dark else (0, 0, 0)
    place = (left + 1, top + h + 1)
    cv2.putText(drawn, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, ink, thickness, cv2.LINE_AA)
    return int(h + below + 2)


def _cover(drawn: NDArray[np.uint8], masks: Masks, index: int, paint: tuple[int, int, int]) -> None:
    """Tint the pixels of one mask."""
    import numpy as np

    x1, y1, x2, y2 = masks.windows[index].tolist()
    part, mask = drawn[y1:y2, x1:x2], masks.window(index)
    part[mask] = (part[mask].astype(np.uint16) + np.array(paint, np.uint16)) // 2


def _name(labels: Sequence[str], class_id: int) -> str:
    return labels[class_id] if class_id < len(labels) else str(class_id)


class AnnotatedCopies:
    """Draws and writes images on threads; a failure is raised by the next call."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(thread_name_prefix="yolotrt-write")
        self._waiting: deque[Future[None]] = deque()

    def add(self, target: Path, frame: NDArray[np.uint8], found: Detections, labels: Sequence[str]) -> None:
        """Draw on a copy of `frame` and write it to `target`."""
        while len(self._waiting) >= _MAX_PENDING or (self._waiting and self._waiting[0].done()):
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(_draw, target, frame, found, labels))

    def __enter__(self) -> AnnotatedCopies:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            while self._waiting:
                future = self._waiting.popleft()
                if kind is None:
                    future.result()
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)


def _draw(target: Path, frame: NDArray[np.uint8], found: Detections, labels: Sequence[str]) -> None:
    import cv2

    good, encoded = cv2.imencode(target.suffix, annotate(frame, found, labels))
    if not good:
        raise ArtifactError(f"OpenCV cannot write `{target.suffix}` images")
    write_atomic(target, encoded.tobytes())
