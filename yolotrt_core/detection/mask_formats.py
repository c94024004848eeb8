"""Instance masks in result files: COCO run-length encoding and polygons."""

from __future__ import annotations

from typing import TYPE_CHECKING

from yolotrt_core.errors import PluginError
from yolotrt_core.inference.masks import run_lengths
from yolotrt_core.types import Json, Masks

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def as_rle(masks: Masks, index: int) -> dict[str, Json]:
    """Return one mask as COCO's compressed run-length encoding: `size` [height, width] and `counts`.

    Raises:
        PluginError: faster-coco-eval, which compresses, is not installed.
    """
    try:
        from faster_coco_eval import mask as coco
    except ImportError as err:
        raise PluginError(
            "masks in results need faster-coco-eval, which is not installed", hint="`pip install yolotrt-core[eval]`"
        ) from err
    height, width = masks.size
    packed = coco.frPyObjects({"size": [height, width], "counts": run_lengths(masks, index)}, height, width)
    return {"size": [height, width], "counts": packed["counts"].decode("ascii")}


def as_polygon(masks: Masks, index: int) -> NDArray[np.float64]:
    """Return the outline of the largest part of a mask, without its holes.

    Returns:
        float64 (P, 2), x and y in source-image pixels; empty for a mask without pixels.
    """
    import cv2
    import numpy as np

    x1, y1, _, _ = masks.windows[index].tolist()
    bitmap = np.ascontiguousarray(masks.window(index)).view(np.uint8)
    outlines = cv2.findContours(bitmap, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0] if bitmap.size else ()
    if not outlines:
        return np.zeros((0, 2))
    largest = max(outlines, key=cv2.contourArea)
    return np.asarray(largest.reshape(-1, 2) + np.array([x1, y1]), np.float64)
