"""Exporter `torch`: YOLOv5 checkpoint -> ONNX."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import ClassVar

from yolotrt_core.plugin.dependencies import tools_available
from yolotrt_core.plugin.stages import Availability, Session, SourceInfo
from yolotrt_core.types import BuildRequest, ModelSource, ModelSpec
from yolotrt_torch.options import TorchOptions

_INSTALL = "pip install 'yolotrt-core[torch]'"


class TorchExporter:
    """Turns a YOLOv5 checkpoint into ONNX."""

    name: ClassVar[str] = "torch"
    stage_version: ClassVar[int] = 2
    sources: ClassVar[tuple[str, ...]] = ("yolotrt_torch",)
    Options: ClassVar[type] = TorchOptions

    def available(self) -> Availability:
        return tools_available(("torch", "onnx"), _INSTALL)

    def fingerprint(self, options: TorchOptions) -> Mapping[str, str]:
        tools = ("torch", "onnx", "onnxscript") if options.exporter == "dynamo" else ("torch", "onnx")
        return {tool: _version(tool) for tool in tools}

    def inspect(self, source: ModelSource) -> SourceInfo:
        """Return nothing: a checkpoint takes any size and is float32."""
        return SourceInfo()

    def export(self, source: ModelSource, request: BuildRequest, options: TorchOptions, out: Path) -> ModelSpec:
        from yolotrt_torch import exporter

        return exporter.export(source, request, options, out)

    def open_source(self, source: ModelSource, request: BuildRequest, options: TorchOptions) -> Session:
        from yolotrt_torch import session

        return session.open_source(source, request, options)


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "missing"
