"""TensorRT engines: one builder for `tensorrt` 10, `tensorrt` 11 and `tensorrt_rtx`."""

from __future__ import annotations

from collections.abc import Sequence

from yolotrt_core.plugin.hookspecs import hookimpl
from yolotrt_core.plugin.stages import Builder, Calibrator
from yolotrt_tensorrt.stages import TensorRTBuilder, TensorRTCalibrator

YOLOTRT_API = 1


@hookimpl
def yolotrt_calibrators() -> Sequence[Calibrator]:
    """Return the calibrator `trt`."""
    return (TensorRTCalibrator(),)


@hookimpl
def yolotrt_builders() -> Sequence[Builder]:
    """Return the builder `tensorrt`."""
    return (TensorRTBuilder(),)
