"""A small anchor-free network as an exporter of YOLOv8 writes it: (B, 4 + C, N), random weights."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LABELS = ("a", "b", "c")
STRIDE = 8


def write_model(path, labels=LABELS, size=64, free=False, tensors=("images", "output0"), **metadata):
    """Write the network, two convolutions and a box per cell of 8 pixels; returns the path.

    Args:
        free: whether batch, height and width are free, as of an export with `dynamic=True`.
        metadata: further entries, or others than an export has.
    """
    random, columns = np.random.default_rng(0), 4 + len(labels)
    images, output0 = tensors
    head = random.normal(0, 0.5, (columns, 8, 2, 2)).astype(np.float32)
    head -= head.mean((2, 3), keepdims=True)  # a flat image has no boxes, and no class wins everywhere
    head[4:] *= 8
    constants = {
        "stem": random.normal(0, 0.3, (8, 3, 4, 4)).astype(np.float32),
        "head": head,
        "bias": np.array([0] * 4 + [-2.0] * len(labels), np.float32),
        "flat": np.array([0, columns, -1]),
        "parts": np.array([2, 2, len(labels)]),
        "reach": np.float32(4 * STRIDE),
        "one": np.float32(1),
        "half": np.float32(STRIDE / 2),
        "stride": np.float32(STRIDE),
        "axis": np.array([1]),
    }
    nodes = [
        helper.make_node("Conv", [images, "stem"], ["stem_raw"], name="/model.0/Conv", strides=[4, 4]),
        helper.make_node("Sigmoid", ["stem_raw"], ["gate"], name="/model.0/Sigmoid"),
        helper.make_node("Mul", ["stem_raw", "gate"], ["features"], name="/model.0/Mul"),
        helper.make_node("Conv", ["features", "head", "bias"], ["maps"], name="/model.1/Conv", strides=[2, 2]),
        helper.make_node("Sigmoid", ["maps"], ["soft_maps"], name="/model.1/Sigmoid"),
        # The cell of each box: counted by a cumulative sum along each axis, so that every size works.
        helper.make_node("Slice", ["soft_maps", "first", "second", "axis"], ["layer"], name="/model.1/Slice"),
        helper.make_node("Mul", ["layer", "nought"], ["none"], name="/model.1/Mul"),
        helper.make_node("Add", ["none", "one"], ["ones"], name="/model.1/Add"),
        helper.make_node("CumSum", ["ones", "along_x"], ["x"], name="/model.1/x"),
        helper.make_node("CumSum", ["ones", "along_y"], ["y"], name="/model.1/y"),
        helper.make_node("Concat", ["x", "y"], ["cells"], name="/model.1/cells", axis=1),
        helper.make_node("Mul", ["cells", "stride"], ["ends"], name="/model.1/ends"),
        helper.make_node("Sub", ["ends", "half"], ["centres"], name="/model.1/centres"),
        helper.make_node("Split", ["soft_maps", "parts"], ["moved", "grown", "scores"], name="/model.1/Split", axis=1),
        helper.make_node("Mul", ["moved", "stride"], ["moves"], name="/model.1/moves"),
        helper.make_node("Add", ["centres", "moves"], ["xy"], name="/model.1/xy"),
        helper.make_node("Mul", ["grown", "reach"], ["wh"], name="/model.1/wh"),
        helper.make_node("Concat", ["xy", "wh", "scores"], ["boxes"], name="/model.1/boxes", axis=1),
        helper.make_node("Reshape", ["boxes", "flat"], [output0], name="/model.1/Reshape"),
    ]
    constants |= {"first": np.array([0]), "second": np.array([1]), "nought": np.float32(0)}
    constants |= {"along_x": np.array(3), "along_y": np.array(2)}
    cells = (size // STRIDE) ** 2
    sides = ("batch", "height", "width") if free else (1, size, size)
    shapes = (sides[0], 3, *sides[1:]), (sides[0], *(("columns", "anchors") if free else (columns, cells)))
    graph = helper.make_graph(
        nodes,
        "main_graph",
        [helper.make_tensor_value_info(images, TensorProto.FLOAT, shapes[0])],
        [helper.make_tensor_value_info(output0, TensorProto.FLOAT, shapes[1])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    own = {
        "author": "Ultralytics",
        "task": "detect",
        "stride": str(STRIDE),
        "names": str(dict(enumerate(labels))),
        "imgsz": str([size, size]),
    }
    helper.set_model_props(model, own | metadata)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())
    return path
