"""Exporter `zoo`: a model-zoo bundle, a zip of `network.onnx` and `card.json` with classes and strides."""

import zipfile

from yolotrt_core.plugin.hookspecs import hookimpl
from yolotrt_core.plugin.stages import Exporter

YOLOTRT_API = 1


class ZooExporter(Exporter):
    name = "zoo"
    title = "Model zoo exporter"
    sources = (
        "yolotrt_zoo",
        "yolotrt_core.datasets.class_names",
        "yolotrt_core.export.reference_input",
        "yolotrt_core.export.output_layout",
    )
    requires = ("onnx", "onnxruntime")

    def export(self, source, request, options, out):
        from yolotrt_zoo import exporter

        return exporter.export(source, request, out)


@hookimpl
def yolotrt_exporters():
    return (ZooExporter(),)


@hookimpl
def yolotrt_select_exporter(source):
    if not source.path.is_file() or not zipfile.is_zipfile(source.path):
        return None
    with zipfile.ZipFile(source.path) as archive:
        return "zoo" if {"network.onnx", "card.json"} <= set(archive.namelist()) else None
