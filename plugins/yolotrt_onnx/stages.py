"""Exporter `onnx`, the simplification pass, and a pass for each precision."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yolotrt_core.plugin.description import Description
from yolotrt_core.plugin.hookspecs import hookimpl
from yolotrt_core.plugin.stages import Exporter, Pass, SourceInfo, tool_versions
from yolotrt_core.types import BuildRequest, Calibration, Json, ModelSource, ModelSpec, OnnxModel
from yolotrt_onnx.options import Fp8Options, Fp16Options, Fp32Options, Int8Options, OnnxSourceOptions, SimplifyOptions

_OTHER_FORMATS = ((0, b"PK"), (0, b"\x80"), (0, b"\x89HDF"), (4, b"TFL3"))
# Fields of ModelProto that may follow ir_version: producer, domain, model_version, graph, opset_import, metadata.
_SECOND_TAGS = frozenset(b"\x12\x1a\x22\x28\x32\x3a\x42\x72")


@hookimpl
def yolotrt_select_exporter(source: ModelSource) -> str | None:
    return "onnx" if is_onnx(source.path) else None


def is_onnx(path: Path) -> bool:
    """Check whether a file starts as ONNX does, or has its suffix and is not plainly another format."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(16)
    # ir_version 3 (2017) and later, then another field: a SavedModel starts alike with version 1.
    if head[:1] == b"\x08" and head[1:2] and 3 <= head[1] < 32 and head[2:3] and head[2] in _SECOND_TAGS:
        return True
    other = any(head[at:].startswith(magic) for at, magic in _OTHER_FORMATS)
    return path.suffix.lower() == ".onnx" and not other


class OnnxExporter(Exporter):
    """Checks an ONNX file and brings it to the project's layout."""

    name = "onnx"
    title = "ONNX exporter"
    Options = OnnxSourceOptions
    requires = ("onnx", "onnxruntime")

    def inspect(self, source: ModelSource) -> SourceInfo:
        """Return the size that the file fixes or its metadata names, and the lowest precision of its convolutions."""
        from yolotrt_onnx import exporter

        return exporter.inspect(source.path)

    def describe(self, source: ModelSource) -> Description:
        from yolotrt_onnx import description

        return description.describe(source.path)

    def export(self, source: ModelSource, request: BuildRequest, options: OnnxSourceOptions, out: Path) -> ModelSpec:
        from yolotrt_onnx import exporter

        return exporter.export(source, request, options, out)


class SimplifyPass(Pass):
    """Removes what an exporter left behind, with onnxsim or onnxslim."""

    name = "simplify"
    title = "ONNX simplifier"
    Options = SimplifyOptions
    order = 10
    requires = ("onnx",)
    install = "pip install onnx onnxsim"

    def fingerprint(self, options: SimplifyOptions) -> Mapping[str, str]:
        return tool_versions(("onnx", *{"both": ("onnxsim", "onnxslim"), "off": ()}.get(options.tool, (options.tool,))))

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


class _PrecisionPass(Pass):
    """A pass that sets the precision it is named after."""

    order = 50
    requires = ("onnx",)
    install = SimplifyPass.install

    def applies(self, request: BuildRequest, options: Any) -> bool:
        return request.precision == self.name


class Fp32Pass(_PrecisionPass):
    """Single precision that survives TF32 tensor cores; see `tf32_split.py`."""

    name = "fp32"
    title = "FP32 precision"
    Options = Fp32Options

    def applies(self, request: BuildRequest, options: Fp32Options) -> bool:
        if request.precision != "fp32":
            return False
        return options.convolutions == "split" or (options.convolutions == "auto" and request.exact_fp32)

    def apply(
        self, model: OnnxModel, calibration: Calibration | None, request: BuildRequest, options: Fp32Options, out: Path
    ) -> tuple[ModelSpec, Mapping[str, Json]]:
        from yolotrt_onnx import tf32_split

        return tf32_split.apply(model, out)


class Fp16Pass(_PrecisionPass):
    """Half precision as a strongly typed graph."""

    name = "fp16"
    title = "FP16 precision"
    Options = Fp16Options

    def apply(
        self, model: OnnxModel, calibration: Calibration | None, request: BuildRequest, options: Fp16Options, out: Path
    ) -> tuple[ModelSpec, Mapping[str, Json]]:
        from yolotrt_onnx import lower_precision

        return lower_precision.apply_fp16(model, options, out)


class Bf16Pass(_PrecisionPass):
    """bfloat16 as a strongly typed graph with float32 input, output and box arithmetic.

    It has no options: bfloat16 counts pixels from 512 on in steps of 4, and NumPy has no such type.
    """

    name = "bf16"
    title = "BF16 precision"

    def apply(
        self, model: OnnxModel, calibration: Calibration | None, request: BuildRequest, options: Any, out: Path
    ) -> tuple[ModelSpec, Mapping[str, Json]]:
        from yolotrt_onnx import lower_precision

        return lower_precision.apply_bf16(model, out)


class Int8Pass(_PrecisionPass):
    """Symmetric int8 by Q/DQ nodes at the convolutions, from calibrated ranges."""

    name = "int8"
    title = "INT8 quantization"
    Options: type = Int8Options
    needs_calibration = True
    quantizes = True
    tools: tuple[str, ...] | None = ("onnx", "numpy")

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
    title = "FP8 quantization"
    Options = Fp8Options
    tools = ("onnx", "numpy", "ml_dtypes")
