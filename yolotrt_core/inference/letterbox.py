"""Preprocessing by letterbox or crop, and boxes in source-image pixels.

Calibration, inference and evaluation share it, so their inputs are equal. Behavior follows ultralytics/yolov5
v7.0: utils/augmentations.py `letterbox` (forward, integer padding) and utils/general.py `scale_boxes` (back,
real-valued padding); and utils/augmentations.py `CenterCrop` for classification.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from yolotrt_core.errors import UsageError
from yolotrt_core.types import ChannelOrder, Fit, Geometry, Layout, channel_count, with_channels

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
    order: ChannelOrder = "rgb",
    fit: Fit = "letterbox",
) -> tuple[NDArray[np.float32], list[Geometry]]:
    """Create the network input from images of any size.

    Values are byte / 255 in float32 division; multiplying by 1 / 255 would differ in the last bit.

    A grey input is computed from BGR at the size of the image, by OpenCV's formula; equal channels keep their value.
    Alpha is resized and padded like the colors; an image without alpha is opaque (255).

    Args:
        frames: uint8 (H, W, 3) each, BGR as OpenCV reads them; for an `order` with alpha also (H, W, 4), BGRA.
        target: (height, width) of the network input in pixels.
        out: float32 array to fill, with the shape of the result, or None for a new one.
        layout: layout of the network input (`ModelSpec.layout`). order: of its channels (`ModelSpec.channel_order`).
        fit: whether the whole image becomes the input, or its central square (`ModelSpec.fit`).

    Returns:
        float32 (B, C, height, width), or (B, height, width, C) for "nhwc", C channels of `order` in 0..1, and one
        geometry per image, of a cropped one relative to the square.

    Raises:
        UsageError: invalid dtype or rank of a frame, or no pixels.
    """
    import numpy as np

    if out is None:
        out = np.empty(with_channels(len(frames), *target, layout, channel_count(order)), dtype=np.float32)
    planar = out if layout == "nchw" else out.transpose(0, 3, 1, 2)
    parts = map(central_square, frames) if fit == "crop" else frames
    return out, [_fill(image, part, target, layout, order) for image, part in zip(planar, parts, strict=True)]


def central_square(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the largest square in the middle of an image as a view; an odd pixel is lost right or below.

    Args:
        frame: uint8 (H, W, C).
    """
    height, width = frame.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return frame[top : top + side, left : left + side]


def _fill(
    image_chw: NDArray[np.float32],
    frame: NDArray[np.uint8],
    target: tuple[int, int],
    layout: Layout,
    order: ChannelOrder,
) -> Geometry:
    """Fill one image, a (C, height, width) view of any `layout`."""
    import cv2
    import numpy as np

    accepted = (3, 4) if "a" in order else (3,)
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] not in accepted:
        raise UsageError(f"expected a frame as uint8 (H, W, 3) in BGR, found {frame.dtype} {tuple(frame.shape)}")
    placed = geometry((frame.shape[0], frame.shape[1]), target)
    left, top, width, height = placement(placed)
    right, bottom = left + width, top + height
    fitted = np.ascontiguousarray(frame)
    if order == "grey":
        fitted = np.asarray(cv2.cvtColor(fitted, cv2.COLOR_BGR2GRAY), dtype=np.uint8)
    if (width, height) != (frame.shape[1], frame.shape[0]):
        fitted = np.asarray(cv2.resize(fitted, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
    # Fill the padding only: filling everything costs a third of the time.
    grey, full = np.float32(FILL) / np.float32(255), np.float32(255)
    image_chw[:, :top] = image_chw[:, bottom:] = grey
    image_chw[:, top:bottom, :left] = image_chw[:, top:bottom, right:] = grey
    if layout == "nhwc" and order == "rgb":  # at once: separate planes would access memory with strides
        np.divide(
            cv2.cvtColor(fitted, cv2.COLOR_BGR2RGB), full, out=image_chw.transpose(1, 2, 0)[top:bottom, left:right]
        )
        return placed
    planes = dict(zip("bgra", cv2.split(fitted), strict=False))  # grey is the first of one
    for channel, name in enumerate("b" if order == "grey" else order):
        place = image_chw[channel, top:bottom, left:right]
        if name in planes:
            np.divide(planes[name], full, out=place)
        else:
            place.fill(1)  # opaque
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
