"""Decoding of raw YOLOv5 classification output: logits to scores by softmax.

Source:
    ultralytics/yolov5 v7.0, classify/predict.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from yolotrt_core.errors import UsageError
from yolotrt_core.types import Classes, Detections, Geometry, ModelSpec
from yolotrt_yolov5.decode import OUTPUT

if TYPE_CHECKING:
    from numpy.typing import NDArray


def decode(raw: Mapping[str, NDArray[Any]], spec: ModelSpec, geometry: Sequence[Geometry]) -> list[Detections]:
    """Decode a batch's raw output to one Detections per image, with `classes` and without boxes.

    Args:
        raw: "output0" -> float32 or float16 (B, C), logits. spec: the network; its labels are the C classes.

    Raises:
        UsageError: an output of another name, shape or dtype, or values that are not finite.
    """
    output, expected = raw.get(OUTPUT), (len(geometry), len(spec.labels))
    if output is None or output.shape != expected or output.dtype not in (np.float32, np.float16):
        found = "none" if output is None else f"{output.dtype} {tuple(output.shape)}"
        raise UsageError(
            f"a YOLOv5 classification head has the output `{OUTPUT}`, float {expected}: images and classes, found "
            f"{found}"
        )
    if not np.isfinite(output).all():
        raise UsageError(f"output `{OUTPUT}` has values that are not finite", hint="build in fp32 or bf16")
    powers = np.exp(output.astype(np.float32) - output.max(axis=1, keepdims=True).astype(np.float32))
    scores = powers / powers.sum(axis=1, keepdims=True)
    return [_without_boxes(Classes(of_image)) for of_image in scores]


def _without_boxes(classes: Classes) -> Detections:
    nothing = np.zeros(0, np.float32)
    return Detections(nothing.reshape(0, 4), nothing, np.zeros(0, np.int64), classes=classes)
