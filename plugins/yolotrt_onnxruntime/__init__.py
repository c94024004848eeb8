"""Builder `onnxruntime`: the same engines on a CPU, for hosts without a GPU and for checking."""

from __future__ import annotations

from collections.abc import Sequence

from yolotrt_core.plugin.hookspecs import hookimpl
from yolotrt_core.plugin.stages import Builder
from yolotrt_onnxruntime.stages import OnnxRuntimeBuilder

YOLOTRT_API = 1


@hookimpl
def yolotrt_builders() -> Sequence[Builder]:
    return (OnnxRuntimeBuilder(),)
