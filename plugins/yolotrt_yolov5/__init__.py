"""Postprocessor `yolov5`: raw output of a YOLOv5 detection head -> boxes."""

from __future__ import annotations

from collections.abc import Sequence

from yolotrt_core.plugin.hookspecs import hookimpl
from yolotrt_core.plugin.stages import Postprocessor
from yolotrt_yolov5.stages import Yolov5Postprocessor

YOLOTRT_API = 1


@hookimpl
def yolotrt_postprocessors() -> Sequence[Postprocessor]:
    return (Yolov5Postprocessor(),)
