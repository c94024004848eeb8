"""Pass `simplify`, one for each precision (ONNX -> ONNX), and exporter `onnx` for what is ONNX already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from yolotrt_core.hookspecs import hookimpl
from yolotrt_core.options import NoOptions, option
from yolotrt_core.stages import Exporter, Pass
from yolotrt_core.types import BuildRequest, Calibration, Json, ModelSource, ModelSpec, OnnxModel
from yolotrt_onnx.source import OnnxExporter, claims
from yolotrt_onnx.stage import OnnxPass, versions

YOLOTRT_API = 1


@dataclass(frozen=True, slots=True)
class SimplifyOptions:
    """What is cleaned out of the exported graph."""

    tool: Literal["onnxsim", "onnxslim", "both", "off"] = option(
        "onnxsim", help="What simplifies the exported graph; `both` runs onnxsim, then onnxslim"
    )


@dataclass(frozen=True, slots=True)
class Fp32Options:
    """How exact a single-precision engine is."""

    convolutions: Literal["auto", "plain", "split"] = option(
        "auto",
        help="plain: as they are; split: each as wide as three, whose sum is exact to float32 where the hardware "
        "multiplies in TF32, but slower; auto: split where TF32 is forbidden and the library uses it all the same",
    )


@dataclass(frozen=True, slots=True)
class Fp16Options:
    """Where a half-precision graph keeps float32."""

    input: Literal["fp32", "fp16"] = option("fp32", help="Type of the network's input")
    output: Literal["fp32", "fp16"] = option(
        "fp32", help="Type of the network's output; half resolves 0.5 pixels from 512 on"
    )
    decode: Literal["fp32", "fp16"] = option("fp32", help="Type of the box arithmetic behind the last convolutions")


_STEM = "Quantize the convolution that reads the picture"


@dataclass(frozen=True, slots=True)
class Int8Options:
    """What int8 covers; defaults were measured, see the calibrators' README."""

    stem: bool = option(True, help=_STEM)
    head: bool = option(False, help="Quantize the last convolutions, whose results become boxes and scores")
    shortcuts: bool = option(
        False,
        help="Let residual additions read the quantized shortcut; fuses where no activation stands before them",
    )
    concats: Literal["own", "shared"] = option(
        "own", help="Scales of tensors that are joined: each its own, or one for all"
    )
    weights: Literal["channel", "tensor"] = option(
        "channel", help="One weight scale for each output channel, or for the whole tensor"
    )
    keep: str | None = option(None, help="Modules kept in floating point, as model.2.cv1,model.23")
    base: Literal["fp16", "fp32"] = option(
        "fp16", help="Type of everything that is not quantized; box arithmetic stays fp32"
    )


@dataclass(frozen=True, slots=True)
class Fp8Options(Int8Options):
    """What FP8 (E4M3) covers; TensorRT has no FP8 kernel for windows as large as the stem's."""

    stem: bool = option(False, help=_STEM)


class SimplifyPass(OnnxPass):
    """Removes what an exporter left behind, with onnxsim or onnxslim."""

    name = "simplify"
    sources: ClassVar[tuple[str, ...]] = ("yolotrt_onnx.graph", "yolotrt_onnx.simplify")
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
    """Single precision that survives TF32 tensor cores; see `split.py`."""

    name = "fp32"
    sources: ClassVar[tuple[str, ...]] = ("yolotrt_onnx.graph", "yolotrt_onnx.split")
    Options: ClassVar[type] = Fp32Options

    def applies(self, request: BuildRequest, options: Fp32Options) -> bool:
        if request.precision != "fp32":
            return False
        return options.convolutions == "split" or (options.convolutions == "auto" and request.exact_fp32)

    def apply(
        self, model: OnnxModel, calibration: Calibration | None, request: BuildRequest, options: Fp32Options, out: Path
    ) -> tuple[ModelSpec, Mapping[str, Json]]:
        from yolotrt_onnx import split

        return split.apply(model, out)


class Fp16Pass(OnnxPass):
    """Half precision as a strongly typed graph."""

    name = "fp16"
    sources: ClassVar[tuple[str, ...]] = ("yolotrt_onnx.graph", "yolotrt_onnx.retype", "yolotrt_onnx.fp16")
    Options: ClassVar[type] = Fp16Options

    def apply(
        self, model: OnnxModel, calibration: Calibration | None, request: BuildRequest, options: Fp16Options, out: Path
    ) -> tuple[ModelSpec, Mapping[str, Json]]:
        from yolotrt_onnx import fp16

        return fp16.apply_fp16(model, options, out)


class Bf16Pass(OnnxPass):
    """bfloat16 as a strongly typed graph with float32 input, output and box arithmetic.

    There is nothing to choose: bfloat16 counts pixels from 512 on in steps of 4, and NumPy has no such type.
    """

    name = "bf16"
    sources: ClassVar[tuple[str, ...]] = Fp16Pass.sources
    Options: ClassVar[type] = NoOptions

    def apply(
        self, model: OnnxModel, calibration: Calibration | None, request: BuildRequest, options: NoOptions, out: Path
    ) -> tuple[ModelSpec, Mapping[str, Json]]:
        from yolotrt_onnx import fp16

        return fp16.apply_bf16(model, out)


class Int8Pass(OnnxPass):
    """Symmetric int8 by Q/DQ nodes at the convolutions, from calibrated ranges."""

    name = "int8"
    sources: ClassVar[tuple[str, ...]] = (
        "yolotrt_onnx.graph",
        "yolotrt_onnx.retype",
        "yolotrt_onnx.qdq",
        "yolotrt_onnx.held",
        "yolotrt_onnx.quantized",
    )
    Options: ClassVar[type] = Int8Options
    needs_calibration = True
    tools: ClassVar[tuple[str, ...]] = ("onnx", "numpy")

    def apply(
        self, model: OnnxModel, calibration: Calibration | None, request: BuildRequest, options: Int8Options, out: Path
    ) -> tuple[ModelSpec, Mapping[str, Json]]:
        from yolotrt_onnx import quantized

        return quantized.apply(model, calibration, self.name, options, out)

    def layers(self, model: OnnxModel, options: Int8Options) -> tuple[str, ...]:
        from yolotrt_onnx import quantized

        return quantized.layers(model, self.name, options)


class Fp8Pass(Int8Pass):
    """FP8 (E4M3) by Q/DQ nodes at the convolutions, from calibrated ranges."""

    name = "fp8"
    Options = Fp8Options
    tools = ("onnx", "numpy", "ml_dtypes")


@hookimpl
def yolotrt_exporters() -> Sequence[Exporter]:
    return (OnnxExporter(),)


@hookimpl
def yolotrt_select_exporter(source: ModelSource) -> str | None:
    return "onnx" if claims(source.path) else None


@hookimpl
def yolotrt_passes() -> Sequence[Pass]:
    return (SimplifyPass(), Fp32Pass(), Fp16Pass(), Bf16Pass(), Int8Pass(), Fp8Pass())
