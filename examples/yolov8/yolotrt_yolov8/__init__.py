"""YOLOv8 and YOLO11 detection from ONNX exports: boxes (B, 4 + C, N), a column each, without objectness."""

from pathlib import Path

from yolotrt_core.datasets.class_names import labels_in_order
from yolotrt_core.export.onnx_header import read_header
from yolotrt_core.export.onnx_metadata import literal
from yolotrt_core.plugin.hookspecs import Claim, hookimpl
from yolotrt_core.plugin.stages import DeviceProgram, Exporter, Postprocessor, SourceInfo

YOLOTRT_API = 1


def recognise(path):
    """Return header and class names of a float32 export of ours, None of any other file."""
    found = read_header(path)
    labels = found and labels_in_order(literal(found.metadata.get("names")))
    if not labels or found.metadata.get("task", "detect") != "detect":
        return None
    tensors = [(each.dtype, len(each.shape)) for each in (*found.inputs, *found.outputs)]
    fits = tensors == [("float32", 4), ("float32", 3)] and found.outputs[0].shape[1] == 4 + len(labels)
    return (found, labels) if fits and found.metadata.get("stride", "32").isdigit() else None


class Yolov8Exporter(Exporter):
    name = "yolov8"
    requires = ("onnx", "onnxruntime")

    def inspect(self, source):
        found = recognise(source.path)
        size = found[0].inputs[0].shape[2:] if found else ("height", "width")
        fixed = all(isinstance(side, int) for side in size)
        return SourceInfo(size if fixed else None, fixed)

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
