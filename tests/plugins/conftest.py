"""A YOLO network small enough for every test, with the parts that make real ones hard to lower."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yolotrt_core.types import ModelSpec, OnnxModel, TensorSpec

MakeToy = Callable[..., Any]


@pytest.fixture(scope="session")
def toy_yolo() -> MakeToy:
    """Return `make(dynamic=False, size=64)` -> ModelProto.

    One stem, one downsampling, a pooled and an upsampled branch joined, a head of 2 anchors and 3
    classes with YOLOv5's decode (stride 4), float32 `images` (1, 3, size, size) to `output0`
    (1, 2 * (size / 4)^2, 8). It carries what exporters leave: an Identity, Constant nodes, and, if
    dynamic, a grid and an upsampling size computed from `Shape`.
    """
    return _make


@pytest.fixture
def toy_model(toy_yolo: MakeToy, tmp_path: Path) -> Callable[..., OnnxModel]:
    """Return `write(model=None, name="toy", **make)` -> OnnxModel in a file of its own."""

    def write(model: Any = None, name: str = "toy", **made: Any) -> OnnxModel:
        model = toy_yolo(**made) if model is None else model
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(model.SerializeToString())
        spec = ModelSpec(
            inputs=(TensorSpec("images", "float32", (1, 3, 64, 64)),),
            outputs=(TensorSpec("output0", "float32", (1, 512, 8)),),
            labels=("a", "b", "c"),
            strides=(4,),
            provenance={"from": "toy"},
        )
        return OnnxModel(path, "0" * 64, spec)

    return write


def _make(dynamic: bool = False, size: int = 64) -> Any:
    from onnx import TensorProto, helper

    anchors, classes, cells = 2, 3, size // 4
    width = anchors * (5 + classes)
    random = np.random.default_rng(0)
    weights = {}
    for name, shape in {
        "stem": (8, 3, 3, 3),
        "down": (8, 8, 3, 3),
        "deep": (8, 8, 3, 3),
        "join": (8, 16, 1, 1),
        "head": (width, 8, 1, 1),
    }.items():
        weights[name] = (random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
    weights["anchors"] = np.array([[10, 13], [33, 23]], np.float32).reshape(1, anchors, 1, 1, 2)
    weights["stride"], weights["two"] = np.float32(4), np.float32(2)
    y, x = np.mgrid[:cells, :cells].astype(np.float32)
    grid = np.stack([x, y], -1).reshape(1, 1, cells, cells, 2) - 0.5

    nodes = [helper.make_node("Identity", ["images"], ["clean"], name="leftover")]
    nodes += _conv("stem", "clean", strides=[2, 2], pads=[1, 1, 1, 1])
    nodes += _conv("down", "stem_out", strides=[2, 2], pads=[1, 1, 1, 1])
    nodes += _conv("deep", "down_out", strides=[2, 2], pads=[1, 1, 1, 1])
    nodes += [helper.make_node("MaxPool", ["deep_out"], ["pooled"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])]
    if dynamic:
        # As exporters write it: the size as float, times two, and back.
        weights["int_scale"] = np.array([1, 1, 2, 2], np.float32)
        nodes += [
            helper.make_node("Shape", ["pooled"], ["pooled_shape"]),
            helper.make_node("Cast", ["pooled_shape"], ["pooled_float"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["pooled_float", "int_scale"], ["up_float"], name="size_in_float"),
            helper.make_node("Cast", ["up_float"], ["up_size"], to=TensorProto.INT64),
            helper.make_node(
                "Resize", ["pooled", "", "", "up_size"], ["up"], mode="nearest",
                coordinate_transformation_mode="asymmetric", nearest_mode="floor",
            ),
        ]  # fmt: skip
    else:
        nodes += [
            helper.make_node("Constant", [], ["scales"], value_floats=[1.0, 1.0, 2.0, 2.0]),
            helper.make_node(
                "Resize", ["pooled", "", "scales"], ["up"], mode="nearest",
                coordinate_transformation_mode="asymmetric", nearest_mode="floor",
            ),
        ]  # fmt: skip
    nodes += [helper.make_node("Concat", ["up", "down_out"], ["joined"], axis=1)]
    nodes += _conv("join", "joined")
    nodes += [helper.make_node("Conv", ["join_out", "head"], ["raw"], name="head_conv")]
    ints = {"split_sizes": [2, 2, 1 + classes], "flat": [0, -1, 5 + classes]}
    if dynamic:
        ints |= {"zero": [0], "one": [1], "axis2": [2], "axis3": [3], "tail": [anchors, 5 + classes]}
        nodes += _dynamic_layout(TensorProto)
        weights["half_cell"] = np.float32(0.5)
    else:
        ints["layout"] = [1, anchors, 5 + classes, cells, cells]
        weights["grid"] = grid
    nodes += [
        helper.make_node("Reshape", ["raw", "layout"], ["levels"]),
        helper.make_node("Transpose", ["levels"], ["last"], perm=[0, 1, 3, 4, 2]),
        helper.make_node("Sigmoid", ["last"], ["soft"]),
        helper.make_node("Constant", [], ["split"], value_ints=ints.pop("split_sizes")),
        helper.make_node("Split", ["soft", "split"], ["xy", "wh", "scores"], axis=4),
        helper.make_node("Mul", ["xy", "two"], ["xy2"]),
        helper.make_node("Add", ["xy2", "grid"], ["xyg"]),
        helper.make_node("Mul", ["xyg", "stride"], ["xy_pixels"]),
        helper.make_node("Mul", ["wh", "two"], ["wh2"]),
        helper.make_node("Pow", ["wh2", "two"], ["wh4"]),
        helper.make_node("Mul", ["wh4", "anchors"], ["wh_pixels"]),
        helper.make_node("Concat", ["xy_pixels", "wh_pixels", "scores"], ["rows"], axis=4),
        helper.make_node("Reshape", ["rows", "flat"], ["output0"]),
    ]
    dims = ["batch", 3, "height", "width"] if dynamic else [1, 3, size, size]
    rows = ["batch", "rows", 5 + classes] if dynamic else [1, anchors * cells * cells, 5 + classes]
    initializers = [_tensor(name, value) for name, value in weights.items()]
    initializers += [_tensor(name, np.array(value, np.int64)) for name, value in ints.items()]
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, rows)],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"stride": "4", "names": '{"0": "a"}', "imgsz": "[64, 64]"})
    return model


def _conv(name: str, given: str, **attributes: Any) -> list[Any]:
    from onnx import helper

    return [
        helper.make_node("Conv", [given, name], [f"{name}_raw"], name=f"{name}_conv", **attributes),
        helper.make_node("Sigmoid", [f"{name}_raw"], [f"{name}_gate"]),
        helper.make_node("Mul", [f"{name}_raw", f"{name}_gate"], [f"{name}_out"]),
    ]


def _dynamic_layout(types: Any) -> list[Any]:
    """Nodes that make `layout` (B, anchors, 5 + classes, h, w) and `grid` (1, 1, h, w, 2) from the shape of `raw`."""
    from onnx import helper

    nodes = [helper.make_node("Shape", ["raw"], ["raw_shape"])]
    for name, first, end in (("b", "zero", "one"), ("h", "axis2", "axis3"), ("w", "axis3", "four")):
        if end == "four":
            nodes.append(helper.make_node("Constant", [], ["four"], value_ints=[4]))
        nodes.append(helper.make_node("Slice", ["raw_shape", first, end], [name]))
    nodes.append(helper.make_node("Concat", ["b", "tail", "h", "w"], ["layout"], axis=0))
    nodes += [
        helper.make_node("Constant", [], ["int0"], value_int=0),
        helper.make_node("Constant", [], ["int1"], value_int=1),
        helper.make_node("Concat", ["h", "w"], ["hw"], axis=0),
    ]
    for name in ("h", "w"):
        nodes += [
            helper.make_node("Squeeze", [name], [f"{name}0"]),
            helper.make_node("Range", ["int0", f"{name}0", "int1"], [f"{name}_range"]),
            helper.make_node("Cast", [f"{name}_range"], [f"{name}_float"], to=types.FLOAT),
            helper.make_node("Sub", [f"{name}_float", "half_cell"], [f"{name}_centre"]),
        ]
    nodes += [
        helper.make_node("Unsqueeze", ["h_centre", "one"], ["h_column"]),
        helper.make_node("Expand", ["h_column", "hw"], ["ys"]),
        helper.make_node("Expand", ["w_centre", "hw"], ["xs"]),
        helper.make_node("Constant", [], ["lead"], value_ints=[0, 1, 4]),
        helper.make_node("Unsqueeze", ["ys", "lead"], ["ys5"]),
        helper.make_node("Unsqueeze", ["xs", "lead"], ["xs5"]),
        helper.make_node("Concat", ["xs5", "ys5"], ["grid"], axis=4),
    ]
    return nodes


def _tensor(name: str, value: Any) -> Any:
    from onnx import numpy_helper

    return numpy_helper.from_array(np.asarray(value), name)
