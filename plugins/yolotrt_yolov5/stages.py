"""Postprocessors `yolov5`, `yolov5_seg` and `yolov5_cls`: raw output of a YOLOv5 head -> boxes, masks or classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from yolotrt_core.plugin.options import NoOptions
from yolotrt_core.plugin.stages import DeviceProgram, Postprocessor
from yolotrt_core.types import Detections, Geometry, ModelSpec, Selection

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Yolov5Postprocessor(Postprocessor):
    """Decodes the head of YOLOv5 releases 3 to 7, exactly."""

    name = "yolov5"
    title = "YOLOv5 decoding"
    heads = frozenset({"yolov5"})
    columns_before_classes: int | None = 5  # box and objectness
    decodes_on_device = True

    def decode(
        self,
        raw: Mapping[str, NDArray[Any]],
        spec: ModelSpec,
        geometry: Sequence[Geometry],
        selection: Selection,
        options: NoOptions,
    ) -> list[Detections]:
        from yolotrt_yolov5 import decode

        return decode.decode(raw, spec, geometry, selection)

    def device_program(self, spec: ModelSpec) -> DeviceProgram:
        """Return the same decoding for a GPU."""
        from yolotrt_yolov5 import device_program

        return device_program.device_program(spec)


class Yolov5SegmentPostprocessor(Yolov5Postprocessor):
    """Decodes the segmentation head of YOLOv5 release 7."""

    name = "yolov5_seg"
    title = "YOLOv5 segmentation decoding"
    heads = frozenset({"yolov5_seg"})
    columns_before_classes = None  # mask coefficients come after them

    def decode(
        self,
        raw: Mapping[str, NDArray[Any]],
        spec: ModelSpec,
        geometry: Sequence[Geometry],
        selection: Selection,
        options: NoOptions,
    ) -> list[Detections]:
        from yolotrt_yolov5 import segment

        return segment.decode(raw, spec, geometry, selection)


class Yolov5ClassifyPostprocessor(Postprocessor):
    """Decodes the classification head of YOLOv5 releases 6.2 and 7."""

    name = "yolov5_cls"
    title = "YOLOv5 classification decoding"
    heads = frozenset({"yolov5_cls"})
    columns_before_classes = 0

    def decode(
        self,
        raw: Mapping[str, NDArray[Any]],
        spec: ModelSpec,
        geometry: Sequence[Geometry],
        selection: Selection,
        options: NoOptions,
    ) -> list[Detections]:
        from yolotrt_yolov5 import classify

        return classify.decode(raw, spec, geometry)
