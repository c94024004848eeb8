"""YOLOv8 and YOLO11 detection from ONNX exports: boxes (B, 4 + C, N), a column each, without objectness."""

from pathlib import Path

from yolotrt_core.datasets.class_names import labels_in_order
from yolotrt_core.export.onnx_header import read_header, source_info
from yolotrt_core.export.onnx_metadata import literal
from yolotrt_core.plugin.hookspecs import Claim, hookimpl
from yolotrt_core.plugin.stages import DeviceProgram, Exporter, Postprocessor

YOLOTRT_API = 1


def recognise(path):
    """Return header and names of an export of ours, else None; one with free sizes does not state the number 4 + C."""
    found = read_header(path)
    facts = found.metadata if found else {}
    labels = labels_in_order(literal(facts.get("names")))
    if not labels or facts.get("task", "detect") != "detect" or not facts.get("stride", "32").isdigit():
        return None
    tensors = [(each.dtype, len(each.shape)) for each in (*found.inputs, *found.outputs)]
    columns = found.outputs[0].shape[1] if tensors == [("float32", 4), ("float32", 3)] else None
    fits = facts.get("author") == "Ultralytics" if isinstance(columns, str) else columns == 4 + len(labels)
    return (found, labels) if fits else None


class Yolov8Exporter(Exporter):
    name = "yolov8"
    requires = ("onnx", "onnxruntime")

    def inspect(self, source):
        return source_info(read_header(source.path))

    def export(self, source, request, options, out):
        from yolotrt_yolov8 import exporter

        return exporter.export(source, request, out)


class Yolov8Postprocessor(Postprocessor):
    name = "yolov8_boxes"
    heads = frozenset({"yolov8"})
    decodes_on_device = True

    def decode(self, raw, spec, geometry, selection, options):
        from yolotrt_yolov8 import decode

        return decode.decode(raw, spec, geometry, selection)

    def device_program(self, spec):
        source = Path(__file__).with_name("head.cu").read_text(encoding="utf-8")
        return DeviceProgram("output0", len(spec.labels), source, rows_last=True)


@hookimpl
def yolotrt_exporters():
    return (Yolov8Exporter(),)


@hookimpl
def yolotrt_postprocessors():
    return (Yolov8Postprocessor(),)


@hookimpl
def yolotrt_select_exporter(source):
    found = recognise(source.path)
    return found and Claim("yolov8", f"an anchor-free head of {len(found[1])} classes")
