"""The GPU counterpart of `decode.py` and `segment.py`: kernel source that reads a YOLOv5 head's raw output."""

from __future__ import annotations

from pathlib import Path

from yolotrt_core.plugin.stages import DeviceProgram
from yolotrt_core.types import ModelSpec


def device_program(spec: ModelSpec) -> DeviceProgram:
    """Return the program for a network whose first output is (B, rows, 5 + classes + coefficients).

    Coefficients, those of a second output (B, coefficients, height, width), are of segmentation networks.
    """
    coefficients = spec.outputs[1].shape[1] if len(spec.outputs) > 1 else 0
    source = Path(__file__).with_name("head.cu").read_text(encoding="utf-8")
    return DeviceProgram(
        output=spec.outputs[0].name,
        classes=len(spec.labels),
        source=f"#define COEFFICIENTS {coefficients}\n{source}",
        prototypes=spec.outputs[1].name if coefficients else "",
    )
