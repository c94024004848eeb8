"""Postprocessor `yolov5`: raw output of a YOLOv5 detection head -> boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from yolotrt_core.plugin.options import NoOptions
from yolotrt_core.plugin.stages import Availability, DeviceProgram
from yolotrt_core.types import Detections, Geometry, ModelSpec, Selection

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Yolov5Postprocessor:
    """Decodes the head of YOLOv5 releases 3 to 7, exactly."""

    name: ClassVar[str] = "yolov5"
    stage_version: ClassVar[int] = 1
    sources: ClassVar[tuple[str, ...]] = ("yolotrt_yolov5",)
    Options: ClassVar[type] = NoOptions
    heads: ClassVar[frozenset[str]] = frozenset({"yolov5"})

    def available(self) -> Availability:
        return Availability(True)

    def fingerprint(self, options: NoOptions) -> Mapping[str, str]:
        return {}

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
        """Return the same decoding for a GPU, as `stages.DeviceProgram` describes it."""
        from yolotrt_yolov5 import device_program

        return device_program.device_program(spec)
