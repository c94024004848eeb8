"""Exporter `tf`: TensorFlow model -> ONNX."""

from __future__ import annotations

from pathlib import Path

from yolotrt_core.plugin.description import Description
from yolotrt_core.plugin.stages import Exporter, SourceInfo
from yolotrt_core.types import BuildRequest, ModelSource, ModelSpec
from yolotrt_tf.options import TfOptions


class TfExporter(Exporter):
    """Turns a TensorFlow model into ONNX."""

    name = "tf"
    title = "TensorFlow exporter"
    Options = TfOptions
    requires = ("tensorflow", "tf2onnx", "onnx")
    install = "pip install 'yolotrt-core[tf]'"
    tools = ("tensorflow", "keras", "tf2onnx", "onnx")

    def inspect(self, source: ModelSource) -> SourceInfo:
        """Return a fixed size: the ONNX is written for the requested size even if the model takes any."""
        return SourceInfo(fixed_size=True)

    def describe(self, source: ModelSource) -> Description:
        """Return format and class names; the network is not loaded."""
        from yolotrt_tf.class_names import stated_labels
        from yolotrt_tf.formats import NAMES, recognise

        form = recognise(source.path)
        if form is None:
            return Description("unknown", problem="the file is not a TensorFlow model")
        return Description(NAMES[form], labels=stated_labels(source.path, form))

    def export(self, source: ModelSource, request: BuildRequest, options: TfOptions, out: Path) -> ModelSpec:
        from yolotrt_tf import exporter

        return exporter.export(source, request, options, out)
