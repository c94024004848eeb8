"""Exporter `tf`: TensorFlow models of YOLOv5 -> ONNX, through tf2onnx.

SavedModel folders, `.keras` and `.h5` files, frozen GraphDefs and TensorFlow Lite files, recognised
by content.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from yolotrt_core.plugin.hookspecs import hookimpl
from yolotrt_core.plugin.stages import Exporter
from yolotrt_tf.formats import yolotrt_select_exporter as yolotrt_select_exporter
from yolotrt_tf.stages import TfExporter

YOLOTRT_API = 1


@hookimpl
def yolotrt_exporters() -> Sequence[Exporter]:
    return (TfExporter(),)


@hookimpl
def yolotrt_environment() -> Mapping[str, str]:
    """Keep TensorFlow, which writes past Python's loggers, off standard error, and Keras on TensorFlow."""
    return {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0", "KERAS_BACKEND": "tensorflow"}
