"""Write an export in yolotrt's form: of the requested size, with its own output in onnxruntime as reference."""

import numpy as np
import onnx
import onnxruntime

from yolotrt_core.errors import UsageError
from yolotrt_core.export import onnx_normalize
from yolotrt_core.export.onnx_metadata import metadata_of
from yolotrt_core.export.reference_input import reference_images
from yolotrt_core.plugin.stages import ONNX_FILE, REFERENCE_FILE
from yolotrt_core.types import ModelSpec, TensorSpec
from yolotrt_yolov8 import recognise

AGAIN = "export it again: `yolo export format=onnx`, with `dynamic=True` for free sizes"


def export(source, request, out):
    found = recognise(source.path)
    if found is None:
        raise UsageError(f"`{source.path.name}` is not a float32 ONNX export of YOLOv8 or YOLO11 boxes", hint=AGAIN)
    (header, labels), given = found, found[0].inputs[0].shape
    batch = max(request.batch, 2) if request.dynamic else request.batch
    images = reference_images(batch, request.height, request.width)
    fits = all(a == b for a, b in zip(given, images.shape, strict=True) if isinstance(a, int))
    if not fits or (request.dynamic and isinstance(given[0], int)):
        raise UsageError(f"the file takes images of {given} only, not of {images.shape}", hint=AGAIN)
    try:
        model = onnx.load(source.path)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        (answer,) = session.run(None, {header.inputs[0].name: images})
    except Exception as err:  # each of the two raises its own
        raise UsageError(f"onnxruntime cannot run the file: {' '.join(str(err).split())[:200]}", hint=AGAIN) from err
    if answer.shape[1] != 4 + len(labels):
        raise UsageError(f"expected {4 + len(labels)} values for each box, found {answer.shape}", hint=AGAIN)
    sides, boxes = (given, header.outputs[0].shape[2]) if request.dynamic else (images.shape, answer.shape[2])
    inputs = (TensorSpec("images", "float32", sides),)
    outputs = (TensorSpec("output0", "float32", (sides[0], 4 + len(labels), boxes)),)
    spec = ModelSpec(inputs, outputs, labels, head="yolov8", network_stride=int(header.metadata.get("stride", 32)))
    onnx_normalize.declare(model, spec)
    onnx.helper.set_model_props(model, metadata_of(spec, request))
    (out / ONNX_FILE).write_bytes(model.SerializeToString(deterministic=True))
    np.savez(out / REFERENCE_FILE, images=images, output0=answer)
    return spec
