"""Postprocessors `yolov5`, `yolov5_seg` and `yolov5_cls`: raw output of a YOLOv5 head -> boxes, masks or classes."""

from __future__ import annotations

from collections.abc import Sequence

from yolotrt_core.plugin.hookspecs import hookimpl
from yolotrt_core.plugin.stages import Postprocessor
from yolotrt_yolov5.stages import Yolov5ClassifyPostprocessor, Yolov5Postprocessor, Yolov5SegmentPostprocessor

YOLOTRT_API = 1


@hookimpl
def yolotrt_postprocessors() -> Sequence[Postprocessor]:
    return Yolov5Postprocessor(), Yolov5SegmentPostprocessor(), Yolov5ClassifyPostprocessor()
