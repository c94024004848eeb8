"""Exporter `tf`: TensorFlow model -> ONNX."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import ClassVar

from yolotrt_core.plugin.dependencies import tools_available
from yolotrt_core.plugin.stages import Availability, SourceInfo
from yolotrt_core.types import BuildRequest, ModelSource, ModelSpec
from yolotrt_tf.options import TfOptions

_INSTALL = "pip install 'yolotrt-core[tf]'"
# All install the module `tensorflow`.
_DISTRIBUTIONS = ("tensorflow", "tensorflow-cpu", "tensorflow-intel", "tensorflow-macos", "tf-nightly")


class TfExporter:
    """Turns a TensorFlow model into ONNX."""

    name: ClassVar[str] = "tf"
    stage_version: ClassVar[int] = 1
    sources: ClassVar[tuple[str, ...]] = ("yolotrt_tf",)
    Options: ClassVar[type] = TfOptions

    def available(self) -> Availability:
        return tools_available(("tensorflow", "tf2onnx", "onnx"), _INSTALL)

    def fingerprint(self, options: TfOptions) -> Mapping[str, str]:
        found = {}
        for tool, distributions in (("tensorflow", _DISTRIBUTIONS), *((t, (t,)) for t in ("keras", "tf2onnx", "onnx"))):
            for distribution in distributions:
                try:
                    found[tool] = metadata.version(distribution)
                    break
                except metadata.PackageNotFoundError:
                    continue
        return found

    def inspect(self, source: ModelSource) -> SourceInfo:
        """Return a fixed size: whatever the model takes, its ONNX is written for the size that was asked for."""
        return SourceInfo(fixed_size=True)

    def export(self, source: ModelSource, request: BuildRequest, options: TfOptions, out: Path) -> ModelSpec:
        from yolotrt_tf import exporter

        return exporter.export(source, request, options, out)
