"""A model small enough to be written and run in every test."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from yolotrt_core.plugin.stages import ONNX_FILE
from yolotrt_core.types import ModelSpec, OnnxModel, TensorSpec


def small_model(folder: Path, *, size: int = 64) -> OnnxModel:
    """Write the ONNX of a small YOLOv5: two convolutions with SiLU, one level of stride 8, two anchors, three classes.

    Input `images` float32 (1, 3, size, size), output `output0` (1, 2 * (size / 8)^2, 8) in pixels.
    """
    onnx = pytest.importorskip("onnx", reason="this contract looks into an ONNX")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    cells, random = size // 8, np.random.default_rng(0)
    y, x = np.mgrid[:cells, :cells].astype(np.float32)
    constants = {
        "stem": random.normal(0, 0.2, (8, 3, 4, 4)).astype(np.float32),
        "head": random.normal(0, 0.5, (16, 8, 2, 2)).astype(np.float32),
        "by_anchor": np.array([1, 2, 8, cells, cells]),
        "rows": np.array([1, 2 * cells * cells, 8]),
        "sizes": np.array([2, 2, 4]),
        "grid": np.stack([x, y], -1)[None, None] - np.float32(0.5),
        "two": np.float32(2),
        "stride": np.float32(8),
        "anchors": np.array([[40, 52], [120, 92]], np.float32).reshape(1, 2, 1, 1, 2),
    }
    nodes = [
        helper.make_node("Conv", ["images", "stem"], ["stem_raw"], name="stem", strides=[4, 4]),
        helper.make_node("Sigmoid", ["stem_raw"], ["gate"], name="gate"),
        helper.make_node("Mul", ["stem_raw", "gate"], ["features"], name="silu"),
        helper.make_node("Conv", ["features", "head"], ["maps"], name="head", strides=[2, 2]),
        helper.make_node("Reshape", ["maps", "by_anchor"], ["levels"], name="split_anchors"),
        helper.make_node("Transpose", ["levels"], ["last"], name="last", perm=[0, 1, 3, 4, 2]),
        helper.make_node("Sigmoid", ["last"], ["soft"], name="soft"),
        helper.make_node("Split", ["soft", "sizes"], ["xy", "wh", "scores"], name="columns", axis=4),
        helper.make_node("Mul", ["xy", "two"], ["xy2"], name="xy2"),
        helper.make_node("Add", ["xy2", "grid"], ["xyg"], name="xyg"),
        helper.make_node("Mul", ["xyg", "stride"], ["xy_pixels"], name="xy_pixels"),
        helper.make_node("Mul", ["wh", "wh"], ["wh2"], name="wh2"),
        helper.make_node("Mul", ["wh2", "anchors"], ["wh_pixels"], name="wh_pixels"),
        helper.make_node("Concat", ["xy_pixels", "wh_pixels", "scores"], ["boxes"], name="boxes", axis=4),
        helper.make_node("Reshape", ["boxes", "rows"], ["output0"], name="flat"),
    ]
    shape, rows = (1, 3, size, size), (1, 2 * cells * cells, 8)
    spec = ModelSpec(
        inputs=(TensorSpec("images", "float32", shape),),
        outputs=(TensorSpec("output0", "float32", rows),),
        labels=("a", "b", "c"),
        strides=(8,),
    )
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output0", onnx.TensorProto.FLOAT, rows)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"names": "{0: 'a', 1: 'b', 2: 'c'}", "stride": "8"})
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ONNX_FILE
    path.write_bytes(model.SerializeToString())
    return OnnxModel(path, hashlib.sha256(path.read_bytes()).hexdigest(), spec)
