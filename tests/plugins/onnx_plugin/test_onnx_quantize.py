"""The passes `int8` and `fp8`: which nodes stand where, with which scales, and what the graph still computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from yolotrt_core.calibration.ranges import Ranges, amax_of_int8_scale, int8_scale, write_ranges
from yolotrt_core.calibration.tensorrt_cache import cache_from_ranges, parse_cache
from yolotrt_core.errors import StageError, UsageError
from yolotrt_core.files.digest import sha256_of
from yolotrt_core.types import BuildRequest, Calibration, OnnxModel
from yolotrt_onnx import qdq_insertion
from yolotrt_onnx.graph import type_conflicts
from yolotrt_onnx.options import Fp8Options, Int8Options
from yolotrt_onnx.stages import Fp8Pass, Int8Pass

REQUEST = BuildRequest("int8", 1, 64, 64)
Write = Callable[..., OnnxModel]
AMAX = {"clean": 1.0, "stem_out": 2.5, "down_out": 1.7, "joined": 1.9, "join_out": 1.3}


@pytest.fixture
def lower(toy_model: Write, tmp_path: Path) -> Callable[..., tuple[onnx.ModelProto, dict[str, Any]]]:
    """Return `lower(options, model=None, amax=AMAX)` -> lowered graph and facts."""

    def run(options: Any = None, model: Any = None, amax: Any = AMAX) -> tuple[onnx.ModelProto, dict[str, Any]]:
        options = options or Int8Options()
        given = toy_model(model)
        ranges = tmp_path / "ranges.json"
        write_ranges(ranges, Ranges(given.sha256, "minmax", amax))
        stage = Fp8Pass() if isinstance(options, Fp8Options) else Int8Pass()
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        calibration = Calibration(ranges, sha256_of(ranges), "minmax")
        spec, facts = stage.apply(given, calibration, REQUEST, options, out)
        assert spec.inputs[0].dtype == spec.outputs[0].dtype == "float32"
        return onnx.load(out / "model.onnx"), dict(facts)

    return run


def _made_by(graph: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in graph.graph.node for name in node.output}


def _weights(graph: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {w.name: numpy_helper.to_array(w) for w in graph.graph.initializer}


def _quantized(graph: onnx.ModelProto) -> set[str]:
    made = _made_by(graph)
    convolutions = [n for n in graph.graph.node if n.op_type == "Conv"]
    return {
        n.name.removesuffix("_conv")
        for n in convolutions
        if all(i in made and made[i].op_type == "DequantizeLinear" for i in n.input[:2])
    }


def _run(graph: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"images": images})[0])


@pytest.mark.parametrize("base", ["fp16", "fp32"])
def test_convolutions_read_quantized_input_and_weights(lower: Any, base: str) -> None:
    graph, facts = lower(Int8Options(base=base))
    assert _quantized(graph) == {"stem", "down", "deep", "join"}
    assert facts["quantized_convolutions"] == 4
    assert facts["float_convolutions"] == 1
    assert type_conflicts(graph) == []
    onnx.checker.check_model(graph, full_check=True)


def test_every_rule_of_strong_typing_holds(lower: Any) -> None:
    """Symmetric, scalar activation scales, weights per output channel on axis 0, nothing else quantized."""
    graph, _ = lower()
    weights, made = _weights(graph), _made_by(graph)
    for node in graph.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        scale, zero = weights[node.input[1]], weights[node.input[2]]
        assert np.all(scale > 0)
        assert zero.dtype == np.int8
        assert not zero.any()
        axis = [a.i for a in node.attribute if a.name == "axis"]
        if node.input[0] in weights:
            assert axis == [0]
            assert scale.shape == (weights[node.input[0]].shape[0],)
        else:
            assert axis == []
            assert scale.shape == ()
    for node in graph.graph.node:
        if node.op_type == "Conv" and len(node.input) > 2:
            assert node.input[2] in weights
            assert weights[node.input[2]].dtype in (np.float16, np.float32)
        if node.op_type == "QuantizeLinear":
            producer = made.get(node.input[0])
            assert producer is None or producer.op_type != "Conv"


def test_one_tensor_is_quantized_once(lower: Any) -> None:
    graph, _ = lower()
    read = [n.input[0] for n in graph.graph.node if n.op_type == "QuantizeLinear"]
    assert len(read) == len(set(read)) == 4


@pytest.mark.parametrize(("options", "missing"), [
    (Int8Options(stem=False), {"stem"}),
    (Int8Options(head=True), set()),
    (Int8Options(keep="deep_conv"), {"deep"}),
    (Int8Options(keep="down_conv, join_conv"), {"down", "join"}),
])  # fmt: skip
def test_what_stays_float(lower: Any, options: Int8Options, missing: set[str]) -> None:
    graph, _ = lower(options)
    everything = {"stem", "down", "deep", "join", "head"}
    assert _quantized(graph) == everything - missing - (set() if options.head else {"head"})


def test_a_module_that_does_not_exist(lower: Any) -> None:
    with pytest.raises(UsageError, match=r"unknown module `model\.99`"):
        lower(Int8Options(keep="model.99"))


def test_scales_are_those_of_the_ranges_and_of_the_cache_bit_for_bit(lower: Any) -> None:
    cache = parse_cache(cache_from_ranges(AMAX, 100300, "EntropyCalibration2"), "x")
    for base in ("fp32", "fp16"):
        graph, _ = lower(Int8Options(base=base, head=True))
        weights = _weights(graph)
        found = {}
        for node in graph.graph.node:
            if node.op_type == "QuantizeLinear":
                name = node.input[0].removesuffix("_float16")
                found[name] = np.float32(weights[node.input[1]]).tobytes()
        assert found == {n: np.float32(s).tobytes() for n, s in cache.scales.items()}


def test_reading_the_cache_back_gives_the_same_graph(lower: Any) -> None:
    first, _ = lower(Int8Options(base="fp32"))
    cache = parse_cache(cache_from_ranges(AMAX, 100300, "EntropyCalibration2"), "x")
    second, _ = lower(Int8Options(base="fp32"), amax={n: amax_of_int8_scale(s) for n, s in cache.scales.items()})
    assert first == second


def test_weights_are_rounded_to_nearest_on_their_own_channel(lower: Any, toy_yolo: Any) -> None:
    original = _weights(toy_yolo())
    graph, _ = lower(Int8Options(base="fp32"))
    weights, made = _weights(graph), _made_by(graph)
    for node in (n for n in graph.graph.node if n.name in ("stem_conv", "down_conv", "deep_conv", "join_conv")):
        dequantize = made[node.input[1]]
        codes, scale = weights[dequantize.input[0]], weights[dequantize.input[1]]
        exact = original[dequantize.input[0].removesuffix("_int8")]
        assert codes.dtype == np.int8
        assert codes.min() >= -127
        error = np.abs(codes * scale[:, None, None, None] - exact)
        # Half a step, and what rounding the scale to half precision clips off the largest weight.
        assert np.all(error <= scale[:, None, None, None] * (0.5 + 127 * 2.0**-11))
        assert np.abs(codes).max(axis=(1, 2, 3)).min() >= 126


@pytest.mark.parametrize("form", ["int8", "fp8"])
def test_the_graph_computes_what_a_literal_simulation_does(lower: Any, toy_yolo: Any, form: str) -> None:
    """Every convolution's input and weights rounded by NumPy in a graph without any Q/DQ node."""
    options = Int8Options(base="fp32") if form == "int8" else Fp8Options(base="fp32", stem=True)
    graph, _ = lower(options)
    images = np.random.default_rng(4).random((1, 3, 64, 64), np.float32)
    assert np.linalg.norm(_run(graph, images) - _simulated(toy_yolo(), images, form)) <= 2e-3 * np.linalg.norm(
        _run(toy_yolo(), images)
    )
    exact = _run(toy_yolo(), images)
    relative = np.linalg.norm(_run(graph, images) - exact) / np.linalg.norm(exact)
    assert 1e-6 < relative < 0.1


def _simulated(graph: onnx.ModelProto, images: np.ndarray, form: str) -> np.ndarray:
    """Run convolution by convolution, cutting the float graph where each reads, and round in NumPy between."""
    largest = 127 if form == "int8" else 448

    def rounded(x: np.ndarray, amax: Any) -> np.ndarray:
        scale = np.asarray(amax, np.float64) / largest
        if form == "int8":
            return (np.clip(np.rint(x / scale), -127, 127) * scale).astype(np.float32)
        return (np.clip(x / scale, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * scale).astype(
            np.float32
        )

    for weight in graph.graph.initializer:
        if weight.name in {n.input[1] for n in graph.graph.node if n.op_type == "Conv" and n.name != "head_conv"}:
            values = numpy_helper.to_array(weight)
            amax = np.abs(values).max(axis=(1, 2, 3), keepdims=True)
            weight.CopyFrom(numpy_helper.from_array(rounded(values, amax), weight.name))
    known = {"images": images}
    for convolution in [n for n in graph.graph.node if n.op_type == "Conv"]:
        name = convolution.input[0]
        part = onnx.ModelProto()
        part.CopyFrom(graph)
        part.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
        value = np.asarray(_part(part, known, name))
        if convolution.name != "head_conv":
            value = rounded(value, AMAX[name])
        known[name] = value
        for node in graph.graph.node:  # from here on every convolution that reads it sees the rounded value
            if node.op_type == "Conv" and node.input[0] == name:
                node.input[0] = f"{name}_rounded"
        graph.graph.input.append(helper.make_tensor_value_info(f"{name}_rounded", TensorProto.FLOAT, value.shape))
        known[f"{name}_rounded"] = value
    return np.asarray(_part(graph, known, "output0"))


def _part(graph: onnx.ModelProto, known: dict[str, np.ndarray], output: str) -> np.ndarray:
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = {v.name for v in session.get_inputs()}
    return np.asarray(session.run([output], {n: v for n, v in known.items() if n in wanted})[0])


def test_a_residual_addition_reads_the_quantized_shortcut(lower: Any, toy_yolo: Any) -> None:
    model = _with_shortcut(toy_yolo())
    graph, facts = lower(Int8Options(shortcuts=True, base="fp32"), model, AMAX)
    addition = next(n for n in graph.graph.node if n.name == "shortcut")
    assert [_made_by(graph)[i].op_type for i in addition.input].count("DequantizeLinear") == 1
    assert facts["quantized_shortcuts"] == 1
    graph, facts = lower(Int8Options(), _with_shortcut(toy_yolo()), AMAX)
    assert facts["quantized_shortcuts"] == 0


def _with_shortcut(model: onnx.ModelProto) -> onnx.ModelProto:
    """Add `join_out`'s source to it, as a bottleneck does: joined -> 1x1 -> + of a second 1x1."""
    graph = model.graph
    kernel = numpy_helper.from_array(np.eye(16, dtype=np.float32).reshape(16, 16, 1, 1), "again.weight")
    graph.initializer.append(kernel)
    join = next(i for i, n in enumerate(graph.node) if n.name == "join_conv")
    added = [
        helper.make_node("Conv", ["joined", "again.weight"], ["again"], name="again"),
        helper.make_node("Add", ["joined", "again"], ["summed"], name="shortcut"),
    ]
    nodes = [*graph.node[:join], *added, *graph.node[join:]]
    # The convolution behind the sum keeps reading `joined`, so that its range is known.
    concat = next(n for n in nodes if n.op_type == "Concat" and n.output[0] == "joined")
    assert concat
    scores = helper.make_node("ReduceMax", ["summed"], ["largest"], name="use_of_the_sum", keepdims=0)
    del graph.node[:]
    graph.node.extend([*nodes, scores])
    graph.output.append(helper.make_tensor_value_info("largest", TensorProto.FLOAT, []))
    return model


def test_shared_concats_have_one_scale(lower: Any) -> None:
    graph, _ = lower(Int8Options(concats="shared", base="fp32"))
    weights = _weights(graph)
    scales = {n.input[0]: float(weights[n.input[1]]) for n in graph.graph.node if n.op_type == "QuantizeLinear"}
    assert scales["joined"] == scales["down_out"] == int8_scale(1.9)
    assert scales["stem_out"] == int8_scale(2.5)


def test_fp8_codes(lower: Any) -> None:
    graph, facts = lower(Fp8Options())
    assert _quantized(graph) == {"down", "deep", "join"}
    assert facts["format"] == "fp8"
    kinds = {w.data_type for w in graph.graph.initializer if w.name.endswith("_zero_point")}
    assert kinds == {TensorProto.FLOAT8E4M3FN}
    assert graph.opset_import[0].version >= 19


def test_one_scale_for_all_weights(lower: Any) -> None:
    graph, _ = lower(Int8Options(weights="tensor"))
    weights = _weights(graph)
    assert all(weights[n.input[1]].shape == () for n in graph.graph.node if n.op_type == "DequantizeLinear")


def test_box_arithmetic_stays_float32_in_a_half_graph(lower: Any) -> None:
    graph, facts = lower(Int8Options())
    types = {v.name: v.type.tensor_type.elem_type for v in onnx.shape_inference.infer_shapes(graph).graph.value_info}
    assert types["xy_pixels"] == TensorProto.FLOAT
    assert types["join_out"] == TensorProto.FLOAT16
    assert facts["casts"] <= 5


def test_ranges_of_another_network_are_refused(toy_model: Write, tmp_path: Path) -> None:
    ranges = tmp_path / "ranges.json"
    write_ranges(ranges, Ranges("a" * 64, "minmax", AMAX))
    with pytest.raises(UsageError, match="are for the ONNX aaaaaaaaaaaa"):
        Int8Pass().apply(toy_model(), Calibration(ranges, "", "minmax"), REQUEST, Int8Options(), tmp_path)


def test_ranges_that_miss_a_tensor_are_refused(lower: Any) -> None:
    with pytest.raises(StageError, match="have no entry for `down_out` and 1 more"):
        lower(amax={n: a for n, a in AMAX.items() if n not in ("down_out", "joined")})


def test_without_ranges(toy_model: Write, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="needs ranges"):
        Int8Pass().apply(toy_model(), None, REQUEST, Int8Options(), tmp_path)


def test_a_graph_with_its_own_nodes_is_not_quantized_twice(lower: Any, toy_model: Write, tmp_path: Path) -> None:
    trained, _ = lower(Int8Options(base="fp32", head=True))
    before = sum(n.op_type == "QuantizeLinear" for n in trained.graph.node)
    _, facts = Int8Pass().apply(toy_model(trained, name="qat"), None, REQUEST, Int8Options(), tmp_path)
    after = onnx.load(tmp_path / "model.onnx")
    assert facts["brought_quantized"] is True
    assert sum(n.op_type == "QuantizeLinear" for n in after.graph.node) == before
    assert _quantized(after) == _quantized(trained)
    assert type_conflicts(after) == []


def test_module_names() -> None:
    by_weight = helper.make_node("Conv", ["x", "model.2.cv1.conv.weight"], ["y"], name="node_conv2d_1")
    by_node = helper.make_node("Conv", ["x", "onnx::Conv_7"], ["y"], name="/model.2/cv1/conv/Conv")
    assert qdq_insertion.module_name(by_weight) == qdq_insertion.module_name(by_node) == "model.2.cv1.conv"


def test_16_bits_are_not_computed_in_fp16(lower: Any, toy_yolo: Any) -> None:
    """Integers and steps of 16 bits do not fit fp16: a file of onnxruntime's quantizer stays as it is."""
    model = toy_yolo()
    model.opset_import[0].version = 21
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    read = conv.input[0]
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(np.float32(1 / 65535), "step"),
            numpy_helper.from_array(np.array(40000, np.uint16), "zero"),
        ]
    )
    at = list(model.graph.node).index(conv)
    model.graph.node.insert(at, onnx.helper.make_node("QuantizeLinear", [read, "step", "zero"], ["q"], "q"))
    model.graph.node.insert(at + 1, onnx.helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["dq"], "dq"))
    conv.input[0] = "dq"
    images = np.random.default_rng(0).random((1, 3, 64, 64), np.float32)
    graph, facts = lower(model=model)
    assert facts["brought_quantized"]
    np.testing.assert_array_equal(_run(graph, images), _run(model, images))
