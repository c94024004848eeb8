"""The pass fp32: convolutions split so that TF32 hardware gives float32's result.

No GPU is needed to see it: the graph runs in an evaluator whose convolutions round their operands to TF32,
and is compared with the plain graph in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_conv import _conv_implementation

from arrays import relative_l2
from yolotrt_core.types import BuildRequest, OnnxModel
from yolotrt_onnx.options import Fp32Options
from yolotrt_onnx.stages import Fp32Pass
from yolotrt_onnx.tf32_split import split_convolutions

WriteToy = Callable[..., OnnxModel]
SPLIT = Fp32Options("split")


def tf32(values: np.ndarray) -> np.ndarray:
    """Cut float32 to TF32's 10 stored bits, toward zero: the worse of what hardware does."""
    return (np.ascontiguousarray(values, np.float32).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


class Conv(OpRun):  # type: ignore[misc]
    """A convolution with TF32 operands, summed in float64."""

    def _run(self, x: Any, w: Any, b: Any = None, **kept: Any) -> tuple[np.ndarray]:
        names = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
        given = [kept.get(name) for name in names]
        b = None if b is None else b.astype(np.float64)
        x, w = tf32(x).astype(np.float64), tf32(w).astype(np.float64)
        return (_conv_implementation(x, w, b, *given).astype(np.float32),)


def exact(model: ModelProto, images: np.ndarray) -> np.ndarray:
    """Run the graph in float64."""
    wide = ModelProto()
    wide.CopyFrom(model)
    for weight in wide.graph.initializer:
        if weight.data_type == TensorProto.FLOAT:
            weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float64), weight.name))
    for node in wide.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.t.data_type == TensorProto.FLOAT:
                attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float64)))
    return np.asarray(ReferenceEvaluator(wide).run(None, {"images": images.astype(np.float64)})[0])


@pytest.fixture
def split(tmp_path: Path) -> Callable[[OnnxModel], tuple[ModelProto, Any]]:
    def apply(model: OnnxModel) -> tuple[ModelProto, Any]:
        out = tmp_path / "out"
        out.mkdir()
        spec, facts = Fp32Pass().apply(model, None, BuildRequest("fp32", 1, 64, 64), SPLIT, out)
        assert spec.inputs[0].dtype == spec.outputs[0].dtype == "float32"
        return onnx.load(out / "model.onnx"), facts

    return apply


def test_tf32_hardware_gives_the_float32_result(toy_model: WriteToy, split: Callable[..., Any]) -> None:
    model = toy_model()
    plain = onnx.load(model.path)
    graph, facts = split(model)
    assert facts["split"] == sum(node.op_type == "Conv" for node in plain.graph.node)
    images = np.random.default_rng(0).random((1, 3, 64, 64), np.float32)
    expected = exact(plain, images)

    def on_tf32(model: ModelProto) -> float:
        return relative_l2(ReferenceEvaluator(model, new_ops=[Conv]).run(None, {"images": images})[0], expected)

    assert on_tf32(plain) > 1e-5
    assert on_tf32(graph) < 1e-6


def test_onnxruntime_gives_the_same_as_before(toy_model: WriteToy, split: Callable[..., Any]) -> None:
    model = toy_model(dynamic=True)
    graph, _ = split(model)
    images = np.random.default_rng(1).random((1, 3, 64, 64), np.float32)
    before, after = (
        onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {"images": images})[0]
        for content in (model.path.read_bytes(), graph.SerializeToString())
    )
    assert relative_l2(after, before) < 3e-7


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e9])
def test_values_of_any_size_are_kept(scale: float) -> None:
    weights = (np.random.default_rng(2).standard_normal((8, 16, 1, 1)) / scale).astype(np.float32)
    model = one_convolution(weights)
    assert split_convolutions(model) == 1
    onnx.checker.check_model(model, full_check=True)
    x = (np.random.default_rng(4).standard_normal((1, 16, 4, 4)) * scale).astype(np.float32)
    expected = np.einsum("oc,bchw->bohw", weights[:, :, 0, 0].astype(np.float64), x)
    found = ReferenceEvaluator(model, new_ops=[Conv]).run(None, {"x": x})[0]
    assert relative_l2(found, expected) < 1e-6
    (plain,) = ReferenceEvaluator(one_convolution(weights), new_ops=[Conv]).run(None, {"x": x})
    assert relative_l2(plain, expected) > 1e-4


def test_grouped_convolutions_stay() -> None:
    model = one_convolution(np.ones((16, 1, 1, 1), np.float32), group=16)
    before = model.SerializeToString()
    assert split_convolutions(model) == 0
    assert model.SerializeToString() == before


def one_convolution(weights: np.ndarray, **attributes: Any) -> ModelProto:
    """Return a graph of one convolution, x (1, 16, 4, 4) -> y."""
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="conv", **attributes)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, len(weights), 4, 4])],
        [numpy_helper.from_array(weights, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_only_on_request_and_only_for_fp32() -> None:
    stage = Fp32Pass()
    assert stage.applies(BuildRequest("fp32", 1, 64, 64), SPLIT)
    assert not stage.applies(BuildRequest("fp32", 1, 64, 64), Fp32Options())
    assert not stage.applies(BuildRequest("fp16", 1, 64, 64), SPLIT)
