"""Decoding of raw YOLOv5 head output to boxes in source-image pixels.

These are the exact semantics. Any other implementation (such as a GPU device program) must give the same
detections.

All values are float32, float16 input is widened first. `fl()` is one rounding to float32. A row r is cx, cy, w, h,
objectness, class scores. For each class c score(r, c) = fl(objectness * class score); corners x1 = fl(cx - fl(w / 2)),
y1 = fl(cy - fl(h / 2)), x2 = fl(cx + fl(w / 2)), y2 = fl(cy + fl(h / 2)). No fused multiply-add: it skips a rounding.
A row has candidates only if objectness > conf (`conf` rounded to float32, strict), so a NaN or infinity in the
objectness removes it. `yolotrt_core.inference.candidates` states the rest.

Source:
    ultralytics/yolov5 v7.0, utils/general.py, `non_max_suppression`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from yolotrt_core.errors import UsageError
from yolotrt_core.inference.candidates import corners, select
from yolotrt_core.types import Detections, Geometry, ModelSpec, Selection
from yolotrt_yolov5 import onnxruntime_nms

if TYPE_CHECKING:
    from numpy.typing import NDArray

OUTPUT = "output0"


def decode(
    raw: Mapping[str, NDArray[Any]], spec: ModelSpec, geometry: Sequence[Geometry], selection: Selection
) -> list[Detections]:
    """Decode a batch's raw output to one Detections per image, as the module describes.

    Args:
        raw: "output0" -> float32 or float16 (B, N, 5 + C); cx, cy, w, h in input pixels,
            objectness and class scores.
        spec: the network; its labels are the C classes.
        geometry: position of each of the B images in its input.

    Raises:
        UsageError: an output of another name, rank, width or dtype, or a threshold outside 0..1.
    """
    output = checked_output(raw, spec, len(geometry))
    return [decode_image(rows, placed, selection)[0] for rows, placed in zip(output, geometry, strict=True)]


def checked_output(
    raw: Mapping[str, NDArray[Any]], spec: ModelSpec, images: int, coefficients: int = 0
) -> NDArray[Any]:
    """Return the rows of a batch, float (B, N, 5 + C + coefficients); see `decode` for errors.

    Args:
        coefficients: columns after the classes, of a segmentation head.
    """
    output = raw.get(OUTPUT)
    if output is None:
        found = ", ".join(f"`{name}`" for name in raw) or "none"
        raise UsageError(f"a YOLOv5 detection head has the output `{OUTPUT}`, found {found}")
    width = 5 + len(spec.labels) + coefficients
    if not spec.labels:
        raise UsageError("a YOLOv5 detection head needs at least one class, but the model has none")
    if output.ndim != 3 or output.shape[2] != width:
        raise UsageError(
            f"output `{OUTPUT}` of a YOLOv5 head with {len(spec.labels)} classes has the shape (images, boxes, "
            f"{width}), found {tuple(output.shape)}",
            hint="segmentation models and other heads are not supported; for a detection model pass its own labels",
        )
    if output.dtype not in (np.float32, np.float16):
        raise UsageError(f"output `{OUTPUT}` of a YOLOv5 head is float32 or float16, found {output.dtype}")
    if len(output) != images:
        raise UsageError(f"output `{OUTPUT}` has {len(output)} images, but the input had {images}")
    return output


def decode_image(rows: NDArray[Any], placed: Geometry, selection: Selection) -> tuple[Detections, NDArray[np.intp]]:
    """Decode one image.

    Args:
        rows: float32 or float16 (N, 5 + C).

    Returns:
        Its detections, and the row of each.
    """
    # `conf` must not be rounded to the output's float16.
    likely: NDArray[np.bool_] = rows[:, 4].astype(np.float32, copy=False) > np.float32(selection.conf)
    index = likely.nonzero()[0]
    rows = rows.take(index, axis=0).astype(np.float32, copy=False)
    with np.errstate(all="ignore"):  # `select` filters invalid rows by value
        boxes, scores = corners(rows[:, :4]), rows[:, 5:] * rows[:, 4:5]
    return select(boxes, scores, placed, selection, index, onnxruntime_nms.find())
