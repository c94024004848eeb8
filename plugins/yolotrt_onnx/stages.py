"""Exporter `onnx`: an existing ONNX file as the source of a build."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from yolotrt_core.plugin.dependencies import tools_available
from yolotrt_core.plugin.stages import Availability
from yolotrt_core.types import BuildRequest, ModelSource, ModelSpec, Precision
from yolotrt_onnx.onnx_pass import versions
from yolotrt_onnx.options import OnnxSourceOptions


class OnnxExporter:
    """Checks an ONNX file and brings it to the project's layout."""

    name: ClassVar[str] = "onnx"
    stage_version: ClassVar[int] = 1
    sources: ClassVar[tuple[str, ...]] = ("yolotrt_onnx",)
    Options: ClassVar[type] = OnnxSourceOptions

    def available(self) -> Availability:
        return tools_available(("onnx", "onnxruntime"))

    def fingerprint(self, options: OnnxSourceOptions) -> Mapping[str, str]:
        return versions("onnx", "onnxruntime")

    def export(self, source: ModelSource, request: BuildRequest, options: OnnxSourceOptions, out: Path) -> ModelSpec:
        from yolotrt_onnx import exporter

        return exporter.export(source, request, options, out)

    def native_size(self, source: ModelSource) -> tuple[int, int] | None:
        """Return the (height, width) that the file fixes, or that its metadata names; None if neither."""
        from yolotrt_onnx import exporter

        return exporter.native_size(source.path)

    def has_fixed_size(self, source: ModelSource) -> bool:
        """Say whether the file fixes height and width."""
        from yolotrt_onnx import exporter

        return exporter.has_fixed_size(source.path)

    def held_precision(self, source: ModelSource) -> Precision | None:
        """Return the lowest precision of the file's convolutions; None where all are float32."""
        from yolotrt_onnx import exporter

        return exporter.precision_of(source.path)
