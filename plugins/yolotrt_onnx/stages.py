"""Exporter `onnx`: an existing ONNX file as the source of a build."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from yolotrt_core.plugin.dependencies import tools_available
from yolotrt_core.plugin.stages import Availability, SourceInfo
from yolotrt_core.types import BuildRequest, ModelSource, ModelSpec
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

    def inspect(self, source: ModelSource) -> SourceInfo:
        """Return the size that the file fixes or its metadata names, and the lowest precision of its convolutions."""
        from yolotrt_onnx import exporter

        return exporter.inspect(source.path)
