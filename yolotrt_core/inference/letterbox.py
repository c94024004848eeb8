"""Preprocessing by letterbox or crop, and boxes in source-image pixels.

Calibration, inference and evaluation share it, so their inputs are equal. Behavior follows ultralytics/yolov5
v7.0: utils/augmentations.py `letterbox` (forward, integer padding) and utils/general.py `scale_boxes` (back,
real-valued padding); and utils/augmentations.py `CenterCrop` for classification.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from yolotrt_core.errors import UsageError
from yolotrt_core.types import Fit, Geometry, Layout, with_channels

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FILL = 114  # gray of the padding, as upstream


def geometry(source: tuple[int, int], target: tuple[int, int]) -> Geometry:
    """Compute the placement of an image in the network input.

    Args:
        source: (height, width) of the image in pixels. target: of the network input.

    Raises:
        UsageError: an image without pixels.
    """
    if min(source) < 1 or min(target) < 1:
        raise UsageError(f"an image of {source[1]}x{source[0]} pixels cannot be fitted into {target[1]}x{target[0]}")
    scale = min(target[0] / source[0], target[1] / source[1])
    pad = ((target[1] - source[1] * scale) / 2, (target[0] - source[0] * scale) / 2)
    return Geometry(source=source, target=target, scale=scale, pad=pad)


def placement(geometry: Geometry) -> tuple[int, int, int, int]:
    """Return (left, top, width, height) of the resized image in integer input pixels.

    Upstream rounds the resized size, halves the rest, and shifts by 0.1, so that an odd pixel goes to the right or
    bottom.
    """
    width = max(1, round(geometry.source[1] * geometry.scale))
    height = max(1, round(geometry.source[0] * geometry.scale))
    left = round((geometry.target[1] - width) / 2 - 0.1)
    top = round((geometry.target[0] - height) / 2 - 0.1)
    return left, top, width, height


def preprocess(
    frames: Sequence[NDArray[np.uint8]],
    target: tuple[int, int],
    out: NDArray[np.float32] | None = None,
    layout: Layout = "nchw",
    fit: Fit = "letterbox",
) -> tuple[NDArray[np.float32], list[Geometry]]:
    """Create the network input from images of any size.

    Values are byte / 255 in float32 division; multiplying by 1 / 255 would differ in the last bit.

    Args:
        frames: uint8 (H, W, 3) each, BGR as OpenCV reads them.
        target: (height, width) of the network input in pixels.
        out: float32 array to fill, with the shape of the result, or None for a new one.
        layout: layout of the network input (`ModelSpec.layout`).
        fit: whether the whole image becomes the input, or its central square (`ModelSpec.fit`).

    Returns:
        float32 (B, 3, height, width), or (B, height, width, 3) for "nhwc", RGB in 0..1, and one geometry per image, of
        a cropped one relative to the square.

    Raises:
        UsageError: invalid dtype or rank of a frame, or no pixels.
    """
    import numpy as np

    if out is None:
        out = np.empty(with_channels(len(frames), *target, layout), dtype=np.float32)
    planar = out if layout == "nchw" else out.transpose(0, 3, 1, 2)
    parts = map(central_square, frames) if fit == "crop" else frames
    return out, [_fill(image, part, target, layout) for image, part in zip(planar, parts, strict=True)]


def central_square(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the largest square in the middle of an image as a view; an odd pixel is lost right or below.

    Args:
        frame: uint8 (H, W, 3).
    """
    height, width = frame.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return frame[top : top + side, left : left + side]


def _fill(
    image_chw: NDArray[np.float32], frame: NDArray[np.uint8], target: tuple[int, int], layout: Layout
) -> Geometry:
    """Fill one image, a (3, height, width) view of any `layout`."""
    import cv2
    import numpy as np

    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise UsageError(f"expected a frame as uint8 (H, W, 3) in BGR, found {frame.dtype} {tuple(frame.shape)}")
    placed = geometry((frame.shape[0], frame.shape[1]), target)
    left, top, width, height = placement(placed)
    right, bottom = left + width, top + height
    fitted = np.ascontiguousarray(frame)
    if (width, height) != (frame.shape[1], frame.shape[0]):
        fitted = np.asarray(cv2.resize(fitted, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
    # Fill the padding only: filling everything costs a third of the time.
    grey, full = np.float32(FILL) / np.float32(255), np.float32(255)
    image_chw[:, :top] = image_chw[:, bottom:] = grey
    image_chw[:, top:bottom, :left] = image_chw[:, top:bottom, right:] = grey
    if layout == "nhwc":  # at once: separate planes would access memory with strides
        np.divide(
            cv2.cvtColor(fitted, cv2.COLOR_BGR2RGB), full, out=image_chw.transpose(1, 2, 0)[top:bottom, left:right]
        )
        return placed
    for channel, plane in zip((2, 1, 0), cv2.split(fitted), strict=True):
        np.divide(plane, full, out=image_chw[channel, top:bottom, left:right])
    return placed


def boxes_to_source(boxes_xyxy: NDArray[np.float32], geometry: Geometry) -> NDArray[np.float32]:
    """Transform boxes from input pixels to source-image pixels and clip them to the image.

    Args:
        boxes_xyxy: float32 (M, 4), x1 y1 x2 y2 in input pixels; not changed.
    """
    import numpy as np

    (left, top), (height, width) = geometry.pad, geometry.source
    moved = boxes_xyxy - np.array([left, top, left, top], dtype=np.float32)
    moved /= np.float32(geometry.scale)
    np.maximum(moved, 0, out=moved)
    np.minimum(moved, np.array([width, height, width, height], dtype=np.float32), out=moved)
    return moved
