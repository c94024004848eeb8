"""`inspect` of ONNX files: operations, parameters and precisions by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from yolotrt_core.testing import small_model
from yolotrt_onnx.description import describe


def test_convolutions_by_hand(tmp_path: Path) -> None:
    found = describe(small_model(tmp_path).path)
    stem, head = found.layers
    # 8 channels of 16 x 16, each of 3 x 4 x 4 weights; 16 channels of 8 x 8, each of 8 x 2 x 2.
    assert (stem.name, stem.operations, stem.parameters) == ("stem", 2 * 8 * 16 * 16 * 48, 8 * 48)
    assert (head.name, head.operations, head.parameters) == ("head", 2 * 16 * 8 * 8 * 32, 16 * 32)
    assert found.operations == stem.operations + head.operations
    assert (found.parameters, found.size, found.task) == (896, (64, 64), "detect")
    assert found.labels == ("a", "b", "c")
    assert found.precisions == {"fp32": 2}


@pytest.mark.parametrize("batch", [4, "n"])
def test_a_quantized_convolution_and_free_sizes(batch: int | str, tmp_path: Path) -> None:
    weights = np.ones((8, 3, 3, 3), np.int8)
    constants = {"w": weights, "s": np.float32(0.1), "z": np.int8(0), "half": np.ones((8, 5), np.float16)}
    nodes = [
        helper.make_node("QuantizeLinear", ["images", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["x"]),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["weight"]),
        helper.make_node("Conv", ["x", "weight"], ["y"], name="quantized", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["y"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Cast", ["flat"], ["flat16"], to=TensorProto.FLOAT16),
        helper.make_node("Gemm", ["flat16", "half"], ["out"], name="linear"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, (batch, 3, "h", "w"))],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT16, (batch, 5))],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"imgsz": "[32, 64]"})
    onnx.save(model, tmp_path / "m.onnx")
    found = describe(tmp_path / "m.onnx")
    assert [(each.name, each.precision, each.operations, each.parameters) for each in found.layers] == [
        ("quantized", "int8", 2 * 8 * 16 * 32 * 27, 216),
        ("linear", "fp16", 2 * 8 * 5, 40),
    ]
    assert (found.size, found.task) == ((32, 64), "classify")


def test_other_files_are_described_as_such(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\x08\x08\x12nonsense")
    found = describe(tmp_path / "m.onnx")
    assert found.problem.startswith("the ONNX cannot be read")
    assert "\n" not in found.problem
