"""The passes fp16 and bf16: typed so that TensorRT takes them, and as exact as 16 bits allow."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from arrays import relative_l2
from yolotrt_core.errors import StageError, UsageError
from yolotrt_core.plugin.options import NoOptions
from yolotrt_core.types import BuildRequest, OnnxModel
from yolotrt_onnx.graph import type_conflicts
from yolotrt_onnx.options import Fp16Options
from yolotrt_onnx.stages import Bf16Pass, Fp16Pass

WriteToy = Callable[..., OnnxModel]
FP16 = BuildRequest("fp16", 1, 64, 64)
BF16 = BuildRequest("bf16", 1, 64, 64)
CHOICES = [Fp16Options(i, o, d) for i in ("fp32", "fp16") for o in ("fp32", "fp16") for d in ("fp32", "fp16")]  # type: ignore[arg-type]
DEFAULT = Fp16Options()
LOW = Fp16Options("fp16", "fp16", "fp16")


@pytest.fixture
def lower(tmp_path: Path) -> Callable[..., tuple[ModelProto, Any, Any]]:
    """Return `lower(model, options)` -> (graph, spec, facts); NoOptions runs bf16."""

    def apply(model: OnnxModel, options: Any = DEFAULT) -> tuple[ModelProto, Any, Any]:
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        stage: Any = Bf16Pass() if isinstance(options, NoOptions) else Fp16Pass()
        request = BF16 if isinstance(options, NoOptions) else FP16
        spec, facts = stage.apply(model, None, request, options, out)
        return onnx.load(out / "model.onnx"), spec, facts

    return apply


def run(model: ModelProto, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    half = session.get_inputs()[0].type == "tensor(float16)"
    return session.run(None, {"images": images.astype(np.float16) if half else images})[0].astype(np.float64)


def tensorrt_refusal(model: ModelProto, dynamic: bool = False) -> str:
    """Build with TensorRT-RTX, strongly typed, without a GPU; return its complaint or nothing."""
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString()):
        return str(parser.get_error(0).desc())
    config = builder.create_builder_config()
    if dynamic:
        profile = builder.create_optimization_profile()
        profile.set_shape("images", (1, 3, 32, 32), (1, 3, 64, 64), (4, 3, 128, 128))
        config.add_optimization_profile(profile)
    return "" if builder.build_serialized_network(network, config) is not None else "the build failed"


def superfluous_casts(model: ModelProto) -> list[str]:
    """Name casts of casts between float types, and second casts of one tensor to one type."""
    made_by = {name: node for node in model.graph.node for name in node.output}
    floats = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16}
    casts = [node for node in model.graph.node if node.op_type == "Cast"]
    found = [name for (name, _), n in Counter((c.input[0], c.attribute[0].i) for c in casts).items() if n > 1]
    for cast in casts:
        before = made_by.get(cast.input[0])
        if before is not None and before.op_type == "Cast" and {c.attribute[0].i for c in (cast, before)} <= floats:
            found.append(cast.name)
    return found


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("options", [*CHOICES, NoOptions()], ids=str)
def test_strongly_typed_and_clean(toy_model: WriteToy, lower: Callable[..., Any], options: Any, dynamic: bool) -> None:
    graph, spec, facts = lower(toy_model(dynamic=dynamic), options)
    assert type_conflicts(graph) == []
    assert superfluous_casts(graph) == []
    assert tensorrt_refusal(graph, dynamic) == ""
    assert facts["nodes"] == len(graph.graph.node)
    assert facts["casts"] == sum(node.op_type == "Cast" for node in graph.graph.node)
    assert facts["unfit_weights"] == []
    kinds = {"fp32": "float32", "fp16": "float16"}
    assert spec.inputs[0].dtype == kinds[getattr(options, "input", "fp32")]
    assert spec.outputs[0].dtype == kinds[getattr(options, "output", "fp32")]
    assert [v.name for v in (*graph.graph.input, *graph.graph.output)] == ["images", "output0"]


def test_a_type_mix_is_found_as_tensorrt_finds_it() -> None:
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 4])
    added = helper.make_tensor_value_info("sum", TensorProto.FLOAT, [1, 4])
    half = numpy_helper.from_array(np.ones((1, 4), np.float16), "half")
    node = helper.make_node("Add", ["images", "half"], ["sum"], name="mixed")
    model = helper.make_model(helper.make_graph([node], "g", [images], [added], [half]), ir_version=8)
    model.opset_import[0].version = 17
    assert type_conflicts(model) == ["node `mixed` (Add) mixes `images` (float) with `half` (float16)"]
    assert "Half" in tensorrt_refusal(model)


@pytest.mark.parametrize(
    ("options", "casts"),
    [
        (LOW, 0),
        (Fp16Options("fp32", "fp32", "fp16"), 2),  # both ends
        (Fp16Options(), 4),  # the input, and of the one head centres, sizes and scores
        (Fp16Options("fp16", "fp32", "fp32"), 3),
        (Fp16Options("fp16", "fp16", "fp32"), 4),
    ],
    ids=str,
)
def test_casts_stand_only_where_types_meet(
    toy_model: WriteToy, lower: Callable[..., Any], options: Fp16Options, casts: int
) -> None:
    assert lower(toy_model(), options)[2]["casts"] == casts


def test_convolutions_run_in_the_type(toy_model: WriteToy, lower: Callable[..., Any]) -> None:
    for options, dtype in ((Fp16Options(), TensorProto.FLOAT16), (NoOptions(), TensorProto.BFLOAT16)):
        graph = lower(toy_model(), options)[0].graph
        weights = {w.name: w.data_type for w in graph.initializer}
        convolutions = [node for node in graph.node if node.op_type == "Conv"]
        assert len(convolutions) == 5
        assert {weights[node.input[1]] for node in convolutions} == {dtype}
        assert "stem" not in weights  # no float32 copy is left behind


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("options", CHOICES, ids=str)
def test_computes_the_same_to_half_precision(
    toy_model: WriteToy, lower: Callable[..., Any], options: Fp16Options, dynamic: bool
) -> None:
    model = toy_model(dynamic=dynamic)
    shape = (3, 3, 96, 32) if dynamic else (1, 3, 64, 64)
    images = np.random.default_rng(2).random(shape, np.float32)
    expected = run(onnx.load(model.path), images)
    assert relative_l2(run(lower(model, options)[0], images), expected) < 1e-3


def test_decode_in_float32_keeps_coordinates(toy_yolo: Any, toy_model: WriteToy, lower: Callable[..., Any]) -> None:
    """Half counts 512..1024 in steps of 0.5: there centres are off by a quarter pixel on average."""
    model = toy_model(toy_yolo(size=1024))
    images = np.random.default_rng(3).random((1, 3, 1024, 1024), np.float32)
    expected = run(onnx.load(model.path), images)
    right = expected[..., 0] > 512
    worst = {
        options.decode: np.abs(run(lower(model, options)[0], images) - expected)[..., 0][right].max()
        for options in (Fp16Options(), Fp16Options(decode="fp16"))
    }
    assert worst["fp32"] < 0.05
    assert 0.25 <= worst["fp16"] <= 1.5


def test_sizes_are_counted_in_float32(toy_model: WriteToy, lower: Callable[..., Any]) -> None:
    """A side of 4104 gives 513 cells, doubled 1026: more than bfloat16 can count."""
    model = toy_model(dynamic=True)
    graph, _, facts = lower(model, LOW)
    types = {v.name: v.type.tensor_type.elem_type for v in onnx.shape_inference.infer_shapes(graph).graph.value_info}
    assert types["up_float"] == types["w_centre"] == TensorProto.FLOAT
    assert facts["fp32_nodes"]["shape"] > 0
    images = np.random.default_rng(4).random((1, 3, 16, 4104), np.float32)
    expected = run(onnx.load(model.path), images)
    found = run(graph, images)
    assert found.shape == expected.shape == (1, 2 * 4 * 1026, 8)
    assert relative_l2(found[..., 4:], expected[..., 4:]) < 5e-3


def _set_weight(model: ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> ModelProto:
    weight = next(w for w in model.graph.initializer if w.name == name)
    weight.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(weight).copy()), name))
    return model


def _one_huge(values: np.ndarray) -> np.ndarray:
    values.flat[0] = 1e5
    return values


@pytest.mark.parametrize(
    ("change", "trouble"),
    [
        (_one_huge, "weight `deep` has values out of range"),
        (lambda values: values * np.float32(1e-8), "weight `deep` would have a rounding error of"),
    ],
    ids=["overflow", "fading"],
)
def test_weights_that_do_not_fit_stay_float32_and_are_named(
    toy_yolo: Any,
    toy_model: WriteToy,
    lower: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
    change: Callable[[np.ndarray], np.ndarray],
    trouble: str,
) -> None:
    model = toy_model(_set_weight(toy_yolo(), "deep", change))
    with caplog.at_level(logging.WARNING):
        graph, _, facts = lower(model)
    assert trouble in caplog.text
    assert facts["unfit_weights"] == ["deep"]
    assert facts["fp32_nodes"]["weights"] == 1
    kept = next(w for w in graph.graph.initializer if w.name == "deep")
    np.testing.assert_array_equal(numpy_helper.to_array(kept), change(_weight(toy_yolo(), "deep")))
    assert type_conflicts(graph) == []
    assert tensorrt_refusal(graph) == ""


def _weight(model: ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(w for w in model.graph.initializer if w.name == name)).copy()


def test_bfloat16_holds_large_weights(
    toy_yolo: Any, toy_model: WriteToy, lower: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    facts = lower(toy_model(_set_weight(toy_yolo(), "deep", _one_huge)), NoOptions())[2]
    assert facts["unfit_weights"] == []
    assert caplog.text == ""


def test_bf16_is_valid_onnx_and_keeps_the_metadata(toy_model: WriteToy, lower: Callable[..., Any]) -> None:
    model = toy_model()
    graph = lower(model, NoOptions())[0]
    # Conv and MaxPool take bfloat16 from operator set 22 on (onnx, docs/Changelog.md).
    assert graph.opset_import[0].version == 22
    assert graph.metadata_props == onnx.load(model.path).metadata_props


def test_bf16_computes_the_same_to_its_precision(toy_model: WriteToy, lower: Callable[..., Any]) -> None:
    """onnxruntime has no bfloat16 convolution; onnx's own reference implementation does."""
    model = toy_model()
    images = np.random.default_rng(9).random((1, 3, 64, 64), np.float32)
    found = ReferenceEvaluator(lower(model, NoOptions())[0]).run(None, {"images": images})[0]
    assert found.dtype == np.float32
    assert 1e-5 < relative_l2(found, run(onnx.load(model.path), images)) < 5e-3


def test_bf16_weights_are_rounded_to_nearest_even(toy_yolo: Any, toy_model: WriteToy, lower: Any) -> None:
    exact = _weight(toy_yolo(), "stem")
    graph = lower(toy_model(), NoOptions())[0]
    found = numpy_helper.to_array(next(w for w in graph.graph.initializer if w.name.startswith("stem")))
    bits = exact.view(np.uint32)
    expected = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32)
    np.testing.assert_array_equal(found.astype(np.float32), expected)


def test_a_weight_read_on_both_sides_exists_in_both_types(toy_model: WriteToy, lower: Callable[..., Any]) -> None:
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 2, 4, 4])
    output = helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, 2, 4, 4])
    shared = numpy_helper.from_array(np.full((2, 2, 1, 1), 0.1, np.float32), "shared")
    nodes = [
        helper.make_node("Conv", ["images", "shared"], ["features"]),
        helper.make_node("Mul", ["features", "shared"], ["scaled"]),
        helper.make_node("ReduceMean", ["scaled"], ["output0"], axes=[0], keepdims=1),
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", [images], [output], [shared]), ir_version=8)
    model.opset_import[0].version = 17
    graph = lower(toy_model(model))[0]
    assert {w.name: w.data_type for w in graph.graph.initializer} == {
        "shared": TensorProto.FLOAT,
        "shared_float16": TensorProto.FLOAT16,
    }


def test_only_float32_is_lowered(toy_yolo: Any, toy_model: WriteToy, lower: Callable[..., Any]) -> None:
    lowered = lower(toy_model(), LOW)[0]
    with pytest.raises(UsageError, match=r"expects a float32 graph, but `.*` is float16"):
        lower(toy_model(lowered, name="again"))
    double = _set_weight(toy_yolo(), "deep", lambda values: values)
    next(w for w in double.graph.initializer if w.name == "anchors").CopyFrom(
        numpy_helper.from_array(_weight(double, "anchors").astype(np.float64), "anchors")
    )
    with pytest.raises(UsageError, match="`anchors` is double"):
        lower(toy_model(double, name="double"))


def test_subgraphs_and_foreign_operators_are_refused_by_name(
    toy_yolo: Any, toy_model: WriteToy, lower: Callable[..., Any]
) -> None:
    foreign = toy_yolo()
    foreign.opset_import.append(helper.make_opsetid("com.acme", 1))
    foreign.graph.node[0].domain, foreign.graph.node[0].op_type = "com.acme", "Polish"
    with pytest.raises(StageError, match=r"node `leftover` \(com.acme.Polish\)"):
        lower(toy_model(foreign, name="foreign"))

    branch = helper.make_graph(
        [helper.make_node("Identity", ["images"], ["inner"])],
        "branch",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, [1, 3, 64, 64])],
    )
    nested = toy_yolo()
    nested.graph.initializer.append(numpy_helper.from_array(np.array(True), "which"))
    nested.graph.node[0].CopyFrom(
        helper.make_node("If", ["which"], ["clean"], name="either", then_branch=branch, else_branch=branch)
    )
    with pytest.raises(StageError, match=r"node `either` \(If\) contains a subgraph"):
        lower(toy_model(nested, name="nested"))


def test_each_pass_applies_to_its_precision_only() -> None:
    assert Fp16Pass().applies(FP16, Fp16Options())
    assert not Fp16Pass().applies(BF16, Fp16Options())
    assert Bf16Pass().applies(BF16, NoOptions())
    assert not Bf16Pass().applies(BuildRequest("fp32", 1, 64, 64), NoOptions())
