"""Builder `onnxruntime`: what it makes, what it runs, and how it refuses."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from yolotrt_core.errors import StageError, UsageError
from yolotrt_core.types import BuildRequest, EngineSpec, OnnxModel, Precision, ShapeRange, TensorSpec
from yolotrt_onnxruntime.builder import load
from yolotrt_onnxruntime.options import OnnxRuntimeOptions
from yolotrt_onnxruntime.stages import OnnxRuntimeBuilder

WriteToy = Callable[..., OnnxModel]
STAGE = OnnxRuntimeBuilder()
OPTIONS = OnnxRuntimeOptions(threads=1)
REQUEST = BuildRequest("fp32", 1, 64, 64)
PROFILES = (ShapeRange((1, 32, 32), (1, 64, 64), (2, 96, 96)),)


class NoCache:
    """A side cache that must not be asked: this builder keeps nothing."""

    def load(self, name: str, material: Mapping[str, str]) -> bytes | None:
        raise AssertionError("the side cache was read")

    def save(self, name: str, material: Mapping[str, str], data: bytes) -> None:
        raise AssertionError("the side cache was written")


def build(model: OnnxModel, out: Path, request: BuildRequest = REQUEST) -> EngineSpec:
    out.mkdir(exist_ok=True)
    return STAGE.build(model, None, request, OPTIONS, out, NoCache())


def opened(path: Path, spec: EngineSpec) -> Any:
    return STAGE.open(path, spec, OPTIONS, NoCache())


def parity_spec(model: OnnxModel) -> EngineSpec:
    return EngineSpec(model.spec, "fp32", "onnxruntime", {})


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(5).random((1, 3, 64, 64), np.float32)


def test_engine_is_the_portable_onnx(toy_model: WriteToy, tmp_path: Path) -> None:
    model = toy_model()
    spec = build(model, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [STAGE.engine_file]
    assert (tmp_path / "out" / STAGE.engine_file).read_bytes() == model.path.read_bytes()
    assert spec == EngineSpec(
        model=model.spec,
        precision="fp32",
        builder="onnxruntime",
        tools={"module": "onnxruntime", "version": onnxruntime.__version__, "provider": "CPUExecutionProvider"},
        onnx_sha256=model.sha256,
    )


def test_computes_what_the_onnx_reference_computes(toy_model: WriteToy, tmp_path: Path, images: np.ndarray) -> None:
    model = toy_model()
    expected = ReferenceEvaluator(str(model.path)).run(None, {"images": images})[0]
    with opened(model.path, parity_spec(model)) as session:
        found = session.infer(images)
    assert found.keys() == {"output0"}
    assert found["output0"].dtype == np.float32
    np.testing.assert_allclose(found["output0"], expected, rtol=1e-4, atol=1e-4)


def test_half_engines_take_and_give_float32(toy_yolo: Any, toy_model: WriteToy, images: np.ndarray) -> None:
    model = toy_model()
    with opened(model.path, parity_spec(model)) as session:
        expected = session.infer(images)["output0"]
    half = toy_model(_half(toy_yolo()), name="half")
    with opened(half.path, dataclasses.replace(parity_spec(half), precision="fp16")) as session:
        found = session.infer(images)["output0"]
    assert found.dtype == np.float32
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 1e-3
    assert not np.array_equal(found, expected)  # it did run in half


def _half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Retype by hand: every float32 tensor of the static toy, but for Resize's scales."""
    for weight in model.graph.initializer:
        if weight.data_type == TensorProto.FLOAT:
            weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float16), weight.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return model


def test_any_layout_of_the_array(toy_model: WriteToy, images: np.ndarray) -> None:
    model = toy_model()
    strided = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert not strided.flags.c_contiguous
    with opened(model.path, parity_spec(model)) as session:
        expected = session.infer(images)["output0"]
        np.testing.assert_array_equal(session.infer(strided)["output0"], expected)


def test_dynamic_engine_keeps_to_its_profiles(toy_model: WriteToy, tmp_path: Path) -> None:
    model = _dynamic(toy_model)
    spec = build(model, tmp_path / "out", BuildRequest("fp32", 1, 64, 64, dynamic=True, profiles=PROFILES))
    assert spec.profiles == PROFILES
    with opened(tmp_path / "out" / STAGE.engine_file, spec) as session:
        assert session.infer(np.zeros((2, 3, 96, 32), np.float32))["output0"].shape == (2, 2 * 24 * 8, 8)
        with pytest.raises(UsageError, match="from 1x32x32 to 2x96x96"):
            session.infer(np.zeros((3, 3, 64, 64), np.float32))
    with opened(model.path, parity_spec(model)) as session:  # without profiles: any size
        assert session.infer(np.zeros((3, 3, 128, 64), np.float32))["output0"].shape == (3, 2 * 32 * 16, 8)


def _dynamic(toy_model: WriteToy) -> OnnxModel:
    model = toy_model(dynamic=True)
    spec = dataclasses.replace(
        model.spec,
        inputs=(TensorSpec("images", "float32", ("batch", 3, "height", "width")),),
        outputs=(TensorSpec("output0", "float32", ("batch", "rows", 8)),),
    )
    return dataclasses.replace(model, spec=spec)


def test_another_shape_or_dtype_is_the_callers_error(toy_model: WriteToy) -> None:
    model = toy_model()
    with opened(model.path, parity_spec(model)) as session:
        with pytest.raises(UsageError, match=r"accepts float32 \(1, 3, 64, 64\), found float32 \(2, 3, 64, 64\)"):
            session.infer(np.zeros((2, 3, 64, 64), np.float32))
        with pytest.raises(UsageError, match="found uint8"):
            session.infer(np.zeros((1, 3, 64, 64), np.uint8))


def test_threads_share_a_session(toy_model: WriteToy) -> None:
    model = toy_model()
    batches = np.random.default_rng(6).random((16, 1, 3, 64, 64), np.float32)
    with opened(model.path, parity_spec(model)) as session:
        expected = [session.infer(batch)["output0"] for batch in batches]
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda batch: session.infer(batch)["output0"], batches))
    np.testing.assert_array_equal(found, expected)


def test_closed_means_closed(toy_model: WriteToy, images: np.ndarray) -> None:
    model = toy_model()
    session = opened(model.path, parity_spec(model))
    session.close()
    session.close()
    with pytest.raises(UsageError, match="is closed"):
        session.infer(images)


@pytest.mark.parametrize("content", [None, b"", b"not an engine", b"\x08\x08\x3a\x02"])
def test_what_cannot_be_loaded(
    toy_model: WriteToy, tmp_path: Path, content: bytes | None, capfd: pytest.CaptureFixture[str]
) -> None:
    model = toy_model()
    path = tmp_path / "bad.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StageError, match=r"onnxruntime cannot load `bad.onnx`: \S") as caught:
        opened(path, parity_spec(model))
    assert "[ONNXRuntimeError]" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_build_refuses_what_would_not_load(toy_yolo: Any, toy_model: WriteToy, tmp_path: Path) -> None:
    broken = toy_yolo()
    broken.graph.node[1].op_type = "Konv"
    with pytest.raises(StageError, match="Konv"):
        build(toy_model(broken), tmp_path / "out")


def test_spec_and_file_must_agree(toy_model: WriteToy, tmp_path: Path) -> None:
    model = toy_model()
    for field, kind in (("inputs", "images"), ("outputs", "output0")):
        other = dataclasses.replace(getattr(model.spec, field)[0], name="other")
        wrong = dataclasses.replace(model, spec=dataclasses.replace(model.spec, **{field: (other,)}))
        with pytest.raises(StageError, match=rf"has {field} \['{kind}'\], expected \['other'\]"):
            build(wrong, tmp_path / "out")
    wrong_spec = dataclasses.replace(model.spec, inputs=(dataclasses.replace(model.spec.inputs[0], name="other"),))
    with pytest.raises(StageError, match=r"has the inputs `images` tensor\(float\); expected .*other"):
        opened(model.path, EngineSpec(wrong_spec, "fp32", "onnxruntime", {}))


def test_a_failure_inside_onnxruntime_is_a_stage_error(toy_model: WriteToy, tmp_path: Path) -> None:
    given = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["b", 3, "h", "w"])
    result = helper.make_tensor_value_info("output0", TensorProto.FLOAT, None)
    seven = numpy_helper.from_array(np.array([7, -1]), "seven")
    node = helper.make_node("Reshape", ["images", "seven"], ["output0"], name="fold")
    graph = helper.make_graph([node], "g", [given], [result], [seven])
    path = tmp_path / "reshape.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )
    with (
        opened(path, parity_spec(_dynamic(toy_model))) as session,
        pytest.raises(StageError, match=r"onnxruntime failed: .*fold"),
    ):
        session.infer(np.zeros((1, 3, 4, 4), np.float32))


def _convolution(precision: Precision) -> onnx.ModelProto:
    """One convolution in a precision, float32 at both ends."""
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 8, 8])
    output = helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, 4, 6, 6])
    values = np.random.default_rng(7).standard_normal((4, 3, 3, 3)).astype(np.float32)
    quantized = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}
    plain = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
    if precision in quantized:
        zeros = [helper.make_tensor(f"{name}_zero", quantized[precision], [], [0]) for name in ("x", "w")]
        scales = [numpy_helper.from_array(np.float32(0.02), f"{name}_scale") for name in ("x", "w")]
        weights = [numpy_helper.from_array(values, "w"), *zeros, *scales]
        nodes = []
        for name, source in (("x", "images"), ("w", "w")):
            nodes += [
                helper.make_node("QuantizeLinear", [source, f"{name}_scale", f"{name}_zero"], [f"{name}_q"]),
                helper.make_node("DequantizeLinear", [f"{name}_q", f"{name}_scale", f"{name}_zero"], [f"{name}_dq"]),
            ]
        nodes.append(helper.make_node("Conv", ["x_dq", "w_dq"], ["output0"]))
    else:
        kind = plain[precision]
        weights = [helper.make_tensor("w", kind, values.shape, values.ravel())]
        nodes = [
            helper.make_node("Cast", ["images"], ["x"], to=kind),
            helper.make_node("Conv", ["x", "w"], ["y"]),
            helper.make_node("Cast", ["y"], ["output0"], to=TensorProto.FLOAT),
        ]
    graph = helper.make_graph(nodes, "g", [images], [output], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "fp8"])
def test_precisions_are_those_that_a_convolution_runs_in(tmp_path: Path, precision: Precision) -> None:
    path = tmp_path / f"{precision}.onnx"
    path.write_bytes(_convolution(precision).SerializeToString())
    if precision not in STAGE.precisions:
        with pytest.raises(StageError, match="implementation for Conv"):
            load(path)
        return
    images = np.random.default_rng(8).random((1, 3, 8, 8), np.float32)
    reference = tmp_path / "fp32-reference.onnx"
    reference.write_bytes(_convolution("fp32").SerializeToString())
    expected = load(reference).run(None, {"images": images})[0]
    found = load(path).run(None, {"images": images})[0]
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 0.05


def test_preflight_refuses_bf16_with_a_way_out() -> None:
    with pytest.raises(StageError, match="cannot run bf16") as caught:
        STAGE.preflight(dataclasses.replace(REQUEST, precision="bf16"), OPTIONS)
    assert "--precision fp16" in str(caught.value.hint)
    STAGE.preflight(REQUEST, OPTIONS)


def test_missing_onnxruntime_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yolotrt_onnxruntime.stages.util.find_spec", lambda name: None)
    for answer in (STAGE.available(), STAGE.runnable()):
        assert not answer.ok
        assert answer.install == "pip install onnxruntime"


def test_planning_imports_no_framework() -> None:
    program = (
        "import sys, yolotrt_onnxruntime\n"
        "stage = yolotrt_onnxruntime.yolotrt_builders()[0]\n"
        "assert stage.available().ok and stage.runnable().ok\n"
        "print(stage.fingerprint(stage.Options())['onnxruntime'])\n"
        "print([name for name in ('onnx', 'onnxruntime', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == [onnxruntime.__version__, "[]"]
