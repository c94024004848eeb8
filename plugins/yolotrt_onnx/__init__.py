"""Pass `simplify`, one for each precision (ONNX -> ONNX), and exporter `onnx` for what is ONNX already."""

from __future__ import annotations

from collections.abc import Sequence

from yolotrt_core.plugin.hookspecs import hookimpl
from yolotrt_core.plugin.stages import Exporter, Pass
from yolotrt_onnx.stages import (
    Bf16Pass,
    Fp8Pass,
    Fp16Pass,
    Fp32Pass,
    Int8Pass,
    OnnxExporter,
    SimplifyPass,
    yolotrt_select_exporter as yolotrt_select_exporter,
)

YOLOTRT_API = 1


@hookimpl
def yolotrt_exporters() -> Sequence[Exporter]:
    return (OnnxExporter(),)


@hookimpl
def yolotrt_passes() -> Sequence[Pass]:
    return (SimplifyPass(), Fp32Pass(), Fp16Pass(), Bf16Pass(), Int8Pass(), Fp8Pass())
