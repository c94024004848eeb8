"""Decoding of raw YOLOv5 segmentation output: boxes as `decode`, and a mask for each kept box.

The rows have the coefficients of their mask after the classes; the second output holds the prototypes. Masks are
cropped to the box rounded to whole source pixels, as upstream does for masks at the source image's resolution.

Source:
    ultralytics/yolov5 v7.0, segment/predict.py with `--retina-masks`, and utils/general.py, `non_max_suppression`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from yolotrt_core.errors import UsageError
from yolotrt_core.inference.masks import masks_from_prototypes
from yolotrt_core.types import Detections, Geometry, ModelSpec, Selection
from yolotrt_yolov5.decode import checked_output, decode_image

if TYPE_CHECKING:
    from numpy.typing import NDArray

PROTOTYPES = "output1"


def decode(
    raw: Mapping[str, NDArray[Any]], spec: ModelSpec, geometry: Sequence[Geometry], selection: Selection
) -> list[Detections]:
    """Decode a batch's raw output to one Detections with masks per image.

    Args:
        raw: "output0" -> float (B, N, 5 + C + K), "output1" -> float (B, K, h, w): the prototypes of K coefficients.
        spec, geometry: as for `yolotrt_yolov5.decode.decode`.

    Raises:
        UsageError: an output of another name, rank, width or dtype, or a threshold outside 0..1.
    """
    prototypes = raw.get(PROTOTYPES)
    if prototypes is None or prototypes.ndim != 4 or len(prototypes) != len(geometry):
        shape = "none" if prototypes is None else f"shape {tuple(prototypes.shape)}"
        raise UsageError(
            f"a YOLOv5 segmentation head has the output `{PROTOTYPES}` of shape ({len(geometry)}, coefficients, "
            f"height, width), found {shape}"
        )
    output = checked_output(raw, spec, len(geometry), prototypes.shape[1])
    first = 5 + len(spec.labels)
    found = []
    for rows, maps, placed in zip(output, prototypes, geometry, strict=True):
        detections, kept = decode_image(rows[:, :first], placed, selection)
        chosen = rows.take(kept, axis=0).astype(np.float32, copy=False)
        # Upstream scales the coefficients with the class scores: it moves the outline where the map is enlarged.
        coefficients = chosen[:, first:] * chosen[:, 4:5]
        maps = maps.astype(np.float32, copy=False)
        masks = masks_from_prototypes(coefficients, maps, detections.boxes.round(), placed.source)
        found.append(replace(detections, masks=masks))
    return found
