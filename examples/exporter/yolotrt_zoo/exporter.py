"""Unpack a bundle, check it against its card, and write it in yolotrt's form."""

import json
import zipfile

import numpy as np
import onnx
import onnxruntime

from yolotrt_core.errors import UsageError
from yolotrt_core.export.onnx_metadata import metadata_of
from yolotrt_core.export.output_layout import Known, find_rows
from yolotrt_core.export.reference_input import reference_images
from yolotrt_core.plugin.stages import ONNX_FILE, REFERENCE_FILE
from yolotrt_core.types import ModelSpec, TensorSpec


def export(source, request, out):
    try:
        with zipfile.ZipFile(source.path) as archive:
            card, model = json.loads(archive.read("card.json")), onnx.load_from_string(archive.read("network.onnx"))
        labels, strides = tuple(card["classes"]), tuple(card["strides"])
    except Exception as err:  # zip, JSON and protobuf each raise their own
        raise UsageError(f"`{source.path.name}` is not a bundle of the zoo: {' '.join(str(err).split())}") from err
    size = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    if request.dynamic or size != [request.batch, 3, request.height, request.width]:
        raise UsageError(f"the bundle is made for {size[0]} x {size[2]} x {size[3]}", hint="see `--batch`, `--imgsz`")
    images = reference_images(size[0], size[2], size[3])
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"images": images})
    find_rows(answer, (size[2], size[3]), Known(strides, "anchor", "pixels"))  # raises if the card is wrong
    tensors = TensorSpec("images", "float32", tuple(size)), TensorSpec("output0", "float32", answer.shape)
    spec = ModelSpec(tensors[:1], tensors[1:], labels, tuple(sorted(strides)))
    onnx.helper.set_model_props(model, metadata_of(spec, request))
    (out / ONNX_FILE).write_bytes(model.SerializeToString(deterministic=True))
    np.savez(out / REFERENCE_FILE, images=images, output0=answer)
    return spec
