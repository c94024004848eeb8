"""Run the network on each image and look at what its convolutions read."""

import numpy as np
import onnx
import onnxruntime

from yolotrt_core.calibration.ranges import Ranges, write_ranges
from yolotrt_core.errors import UsageError
from yolotrt_core.plugin.stages import RANGES_FILE


def calibrate(model, batches, out):
    graph = onnx.load(str(model.path))
    image = graph.graph.input[0].name
    read = list(dict.fromkeys(node.input[0] for node in graph.graph.node if node.op_type == "Conv"))
    inner = [name for name in read if name != image]
    graph.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in inner)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    largest = []
    for batch in batches:
        for frame in batch:
            feed = np.repeat(frame[None], model.spec.inputs[0].shape[0], axis=0)
            found = dict(zip(inner, session.run(inner, {image: feed}), strict=True)) | {image: feed}
            largest.append([float(np.abs(found[name]).max()) for name in read])
    if not largest:
        raise UsageError("no image to calibrate on", hint="pass a folder with `--calib-data`")
    tensors = dict(zip(read, np.maximum(np.mean(largest, axis=0), 1e-6).tolist(), strict=True))
    write_ranges(out / RANGES_FILE, Ranges(onnx_sha256=model.sha256, method="image_mean", tensors=tensors))
