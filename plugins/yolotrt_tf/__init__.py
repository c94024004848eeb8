"""Exporter `tf`: TensorFlow models of YOLOv5 -> ONNX, through tf2onnx.

SavedModel folders, `.keras` and `.h5` files, frozen GraphDefs and TensorFlow Lite files, recognised
by content.
"""

from __future__ import annotations

from collections.abc import Sequence

from yolotrt_core.plugin.hookspecs import hookimpl
from yolotrt_core.plugin.stages import Exporter
from yolotrt_core.types import ModelSource
from yolotrt_tf.formats import recognise
from yolotrt_tf.stages import TfExporter

YOLOTRT_API = 1


@hookimpl
def yolotrt_exporters() -> Sequence[Exporter]:
    return (TfExporter(),)


@hookimpl
def yolotrt_select_exporter(source: ModelSource) -> str | None:
    return "tf" if recognise(source.path) else None
