"""The passes: simplification, and one for each precision."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from yolotrt_core.plugin.options import NoOptions
from yolotrt_core.types import BuildRequest, Calibration, Json, ModelSpec, OnnxModel
from yolotrt_onnx.onnx_pass import OnnxPass, versions
from yolotrt_onnx.options import Fp8Options, Fp16Options, Fp32Options, Int8Options, SimplifyOptions


class SimplifyPass(OnnxPass):
    """Removes what an exporter left behind, with onnxsim or onnxslim."""

    name = "simplify"
    sources: ClassVar[tuple[str, ...]] = ("yolotrt_onnx",)
    Options: ClassVar[type] = SimplifyOptions
    order = 10

    def fingerprint(self, options: SimplifyOptions) -> Mapping[str, str]:
        tools = {"both": ("onnxsim", "onnxslim"), "off": ()}.get(options.tool, (options.tool,))
        return versions("onnx", *tools)

    def applies(self, request: BuildRequest, options: SimplifyOptions) -> bool:
        return options.tool != "off"

    def apply(
        self,
        model: OnnxModel,
        calibration: Calibration | None,
        request: BuildRequest,
        options: SimplifyOptions,
        out: Path,
    ) -> tuple[ModelSpec, Mapping[str, Json]]:
        from yolotrt_onnx import simplify

        spec, facts = simplify.apply(model, options.tool, out)
        return spec, {**facts, "versions": dict(self.fingerprint(options))}


class Fp32Pass(OnnxPass):
    """Single precision that survives TF32 tensor cores; see `tf32_split.py`."""

    name = "fp32"
    sources: ClassVar[tuple[str, ...]] = ("yolotrt_onnx",)
    Options: ClassVar[type] = Fp32Options

    def applies(self, request: BuildRequest, options: Fp32Options) -> bool:
        if request.precision != "fp32":
            return False
        return options.convolutions == "split" or (options.convolutions == "auto" and request.exact_fp32)

    def apply(
        self, model: OnnxModel, calibration: Calibration | None, request: BuildRequest, options: Fp32Options, out: Path
    ) -> tuple[ModelSpec, Mapping[str, Json]]:
        from yolotrt_onnx import tf32_split

        return tf32_split.apply(model, out)


class Fp16Pass(OnnxPass):
    """Half precision as a strongly typed graph."""

    name = "fp16"
    sources: ClassVar[tuple[str, ...]] = ("yolotrt_onnx",)
    Options: ClassVar[type] = Fp16Options

    def apply(
        self, model: OnnxModel, calibration: Calibration | None, request: BuildRequest, options: Fp16Options, out: Path
    ) -> tuple[ModelSpec, Mapping[str, Json]]:
        from yolotrt_onnx import lower_precision

        return lower_precision.apply_fp16(model, options, out)


class Bf16Pass(OnnxPass):
    """bfloat16 as a strongly typed graph with float32 input, output and box arithmetic.

    There is nothing to choose: bfloat16 counts pixels from 512 on in steps of 4, and NumPy has no such type.
    """

    name = "bf16"
    sources: ClassVar[tuple[str, ...]] = ("yolotrt_onnx",)
    Options: ClassVar[type] = NoOptions

    def apply(
        self, model: OnnxModel, calibration: Calibration | None, request: BuildRequest, options: NoOptions, out: Path
    ) -> tuple[ModelSpec, Mapping[str, Json]]:
        from yolotrt_onnx import lower_precision

        return lower_precision.apply_bf16(model, out)


class Int8Pass(OnnxPass):
    """Symmetric int8 by Q/DQ nodes at the convolutions, from calibrated ranges."""

    name = "int8"
    sources: ClassVar[tuple[str, ...]] = ("yolotrt_onnx",)
    Options: ClassVar[type] = Int8Options
    needs_calibration = True
    tools: ClassVar[tuple[str, ...]] = ("onnx", "numpy")

    def apply(
        self, model: OnnxModel, calibration: Calibration | None, request: BuildRequest, options: Int8Options, out: Path
    ) -> tuple[ModelSpec, Mapping[str, Json]]:
        from yolotrt_onnx import quantize

        return quantize.apply(model, calibration, self.name, options, out)

    def layers(self, model: OnnxModel, options: Int8Options) -> tuple[str, ...]:
        from yolotrt_onnx import quantize

        return quantize.layers(model, self.name, options)


class Fp8Pass(Int8Pass):
    """FP8 (E4M3) by Q/DQ nodes at the convolutions, from calibrated ranges."""

    name = "fp8"
    Options = Fp8Options
    tools = ("onnx", "numpy", "ml_dtypes")
