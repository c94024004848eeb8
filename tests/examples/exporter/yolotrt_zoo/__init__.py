"""Exporter `zoo`: a model-zoo bundle, a zip of `network.onnx` and `card.json` with classes and strides."""

import zipfile
from importlib import metadata

from yolotrt_core.hookspecs import hookimpl
from yolotrt_core.options import NoOptions
from yolotrt_core.stages import Availability

YOLOTRT_API = 1


class ZooExporter:
    name = "zoo"
    stage_version = 1
    sources = ("yolotrt_zoo.exporter",)
    Options = NoOptions

    def available(self):
        return Availability(True)

    def fingerprint(self, options):
        return {name: metadata.version(name) for name in ("onnx", "onnxruntime")}

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
