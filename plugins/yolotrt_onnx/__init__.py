"""Passes `simplify`, `fp16`, `bf16`, `int8`, `fp8` (ONNX -> ONNX), and exporter `onnx` for what is ONNX already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import ClassVar, Literal

from yolotrt_core.hookspecs import hookimpl
from yolotrt_core.options import NoOptions, option
from yolotrt_core.stages import Availability, Exporter, Pass
from yolotrt_core.types import BuildRequest, Calibration, Json, ModelSource, ModelSpec, OnnxModel
from yolotrt_onnx.source import OnnxExporter, claims

YOLOTRT_API = 1


@dataclass(frozen=True, slots=True)
class SimplifyOptions:
    """What is cleaned out of the exported graph."""

    tool: Literal["onnxsim", "onnxslim", "both", "off"] = option(
        "onnxsim", help="What simplifies the exported graph; `both` runs onnxsim, then onnxslim"
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
_HEAD = "Quantize the last convolutions, whose results become boxes and scores"
_SHORTCUTS = "Let residual additions read the quantized shortcut; fuses where no activation stands before them"
_CONCATS = "Scales of tensors that are joined: each its own, or one for all"
_WEIGHTS = "One weight scale for each output channel, or for the whole tensor"
_KEEP = "Modules kept in floating point, as model.2.cv1,model.23"
_BASE = "Type of everything that is not quantized; box arithmetic stays fp32"


@dataclass(frozen=True, slots=True)
class Int8Options:
    """What int8 covers; defaults were measured, see the calibrators' README."""

    stem: bool = option(True, help=_STEM)
    head: bool = option(False, help=_HEAD)
    shortcuts: bool = option(False, help=_SHORTCUTS)
    concats: Literal["own", "shared"] = option("own", help=_CONCATS)
    weights: Literal["channel", "tensor"] = option("channel", help=_WEIGHTS)
    keep: str | None = option(None, help=_KEEP)
    base: Literal["fp16", "fp32"] = option("fp16", help=_BASE)


@dataclass(frozen=True, slots=True)
class Fp8Options:
    """What FP8 (E4M3) covers; TensorRT has no FP8 kernel for windows as large as the stem's."""

    stem: bool = option(False, help=_STEM)
    head: bool = option(False, help=_HEAD)
    shortcuts: bool = option(False, help=_SHORTCUTS)
    concats: Literal["own", "shared"] = option("own", help=_CONCATS)
    weights: Literal["channel", "tensor"] = option("channel", help=_WEIGHTS)
    keep: str | None = option(None, help=_KEEP)
    base: Literal["fp16", "fp32"] = option("fp16", help=_BASE)


class SimplifyPass:
    """Removes what an exporter left behind, with onnxsim or onnxslim."""

    name: ClassVar[str] = "simplify"
    stage_version: ClassVar[int] = 1
    sources: ClassVar[tuple[str, ...]] = ("yolotrt_onnx.graph", "yolotrt_onnx.simplify")
    Options: ClassVar[type] = SimplifyOptions
    order: ClassVar[int] = 10
    needs_calibration: ClassVar[bool] = False

    def available(self) -> Availability:
        return _available()

    def fingerprint(self, options: SimplifyOptions) -> Mapping[str, str]:
        tools = {"both": ("onnxsim", "onnxslim"), "off": ()}.get(options.tool, (options.tool,))
        return _versions("onnx", *tools)

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


class Fp16Pass:
    """Half precision as a strongly typed graph."""

    name: ClassVar[str] = "fp16"
    stage_version: ClassVar[int] = 1
    sources: ClassVar[tuple[str, ...]] = ("yolotrt_onnx.graph", "yolotrt_onnx.retype", "yolotrt_onnx.fp16")
    Options: ClassVar[type] = Fp16Options
    order: ClassVar[int] = 50
    needs_calibration: ClassVar[bool] = False

    def available(self) -> Availability:
        return _available()

    def fingerprint(self, options: Fp16Options) -> Mapping[str, str]:
        return _versions("onnx")

    def applies(self, request: BuildRequest, options: Fp16Options) -> bool:
        return request.precision == "fp16"

    def apply(
        self, model: OnnxModel, calibration: Calibration | None, request: BuildRequest, options: Fp16Options, out: Path
    ) -> tuple[ModelSpec, Mapping[str, Json]]:
        from yolotrt_onnx import fp16

        return fp16.apply_fp16(model, options, out)


class Bf16Pass:
    """bfloat16 as a strongly typed graph with float32 input, output and box arithmetic.

    There is nothing to choose: bfloat16 counts pixels from 512 on in steps of 4, and NumPy has no such type.
    """

    name: ClassVar[str] = "bf16"
    stage_version: ClassVar[int] = 1
    sources: ClassVar[tuple[str, ...]] = Fp16Pass.sources
    Options: ClassVar[type] = NoOptions
    order: ClassVar[int] = 50
    needs_calibration: ClassVar[bool] = False

    def available(self) -> Availability:
        return _available()

    def fingerprint(self, options: NoOptions) -> Mapping[str, str]:
        return _versions("onnx")

    def applies(self, request: BuildRequest, options: NoOptions) -> bool:
        return request.precision == "bf16"

    def apply(
        self, model: OnnxModel, calibration: Calibration | None, request: BuildRequest, options: NoOptions, out: Path
    ) -> tuple[ModelSpec, Mapping[str, Json]]:
        from yolotrt_onnx import fp16

        return fp16.apply_bf16(model, out)


class Int8Pass:
    """Symmetric int8 by Q/DQ nodes at the convolutions, from calibrated ranges."""

    name: ClassVar[str] = "int8"
    stage_version: ClassVar[int] = 1
    sources: ClassVar[tuple[str, ...]] = (
        "yolotrt_onnx.graph",
        "yolotrt_onnx.retype",
        "yolotrt_onnx.qdq",
        "yolotrt_onnx.quantized",
    )
    Options: ClassVar[type] = Int8Options
    order: ClassVar[int] = 50
    needs_calibration: ClassVar[bool] = True

    def available(self) -> Availability:
        return _available()

    def fingerprint(self, options: Int8Options) -> Mapping[str, str]:
        return _versions("onnx", "numpy")

    def applies(self, request: BuildRequest, options: Int8Options) -> bool:
        return request.precision == "int8"

    def apply(
        self, model: OnnxModel, calibration: Calibration | None, request: BuildRequest, options: Int8Options, out: Path
    ) -> tuple[ModelSpec, Mapping[str, Json]]:
        from yolotrt_onnx import quantized

        return quantized.apply(model, calibration, "int8", options, out)

    def layers(self, model: OnnxModel, options: Int8Options) -> tuple[str, ...]:
        from yolotrt_onnx import quantized

        return quantized.layers(model, "int8", options)


class Fp8Pass:
    """FP8 (E4M3) by Q/DQ nodes at the convolutions, from calibrated ranges."""

    name: ClassVar[str] = "fp8"
    stage_version: ClassVar[int] = 1
    sources: ClassVar[tuple[str, ...]] = Int8Pass.sources
    Options: ClassVar[type] = Fp8Options
    order: ClassVar[int] = 50
    needs_calibration: ClassVar[bool] = True

    def available(self) -> Availability:
        return _available()

    def fingerprint(self, options: Fp8Options) -> Mapping[str, str]:
        return _versions("onnx", "numpy", "ml_dtypes")

    def applies(self, request: BuildRequest, options: Fp8Options) -> bool:
        return request.precision == "fp8"

    def apply(
        self, model: OnnxModel, calibration: Calibration | None, request: BuildRequest, options: Fp8Options, out: Path
    ) -> tuple[ModelSpec, Mapping[str, Json]]:
        from yolotrt_onnx import quantized

        return quantized.apply(model, calibration, "fp8", options, out)

    def layers(self, model: OnnxModel, options: Fp8Options) -> tuple[str, ...]:
        from yolotrt_onnx import quantized

        return quantized.layers(model, "fp8", options)


@hookimpl
def yolotrt_exporters() -> Sequence[Exporter]:
    return (OnnxExporter(),)


@hookimpl
def yolotrt_select_exporter(source: ModelSource) -> str | None:
    return "onnx" if claims(source.path) else None


@hookimpl
def yolotrt_passes() -> Sequence[Pass]:
    return (SimplifyPass(), Fp16Pass(), Bf16Pass(), Int8Pass(), Fp8Pass())


def _available() -> Availability:
    if util.find_spec("onnx") is None:
        return Availability(False, "onnx is not installed", "pip install onnx onnxsim")
    return Availability(True)


def _versions(*distributions: str) -> dict[str, str]:
    """Return the versions of those that are installed."""
    found = {}
    for name in distributions:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
