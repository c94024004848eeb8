"""The precision that a graph brings along: told of graphs that onnxruntime's own converters and our passes made."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from yolotrt_core.api import build
from yolotrt_core.calibration.ranges import Ranges, write_ranges
from yolotrt_core.errors import UsageError
from yolotrt_core.files.digest import sha256_of
from yolotrt_core.plugin.options import NoOptions
from yolotrt_core.plugin.stages import Availability
from yolotrt_core.types import BuildRequest, Calibration
from yolotrt_onnx.graph import lift_constants
from yolotrt_onnx.options import Fp8Options, Fp16Options, Int8Options
from yolotrt_onnx.source_precision import source_precision
from yolotrt_onnx.stages import Bf16Pass, Fp8Pass, Fp16Pass, Int8Pass
from yolotrt_tensorrt.stages import TensorRTBuilder

Make = Callable[..., Any]


@pytest.fixture
def toy_yolo(toy_yolo: Make) -> Make:
    """The shared network without the names of another."""

    def make() -> Any:
        model = toy_yolo()
        del model.metadata_props[:]
        return model

    return make


class _Noise(CalibrationDataReader):
    def __init__(self) -> None:
        self._left = 2

    def get_next(self) -> Any:
        self._left -= 1
        if self._left < 0:
            return None
        return {"images": np.random.default_rng(self._left).random((1, 3, 64, 64), np.float32)}


def _quantized(model: Any, folder: Path, form: QuantFormat, kind: QuantType) -> Any:
    onnx.save(model, folder / "float.onnx")
    quantize_static(
        folder / "float.onnx", folder / "quantized.onnx", _Noise(), quant_format=form, activation_type=kind,
        weight_type=QuantType.QInt8, op_types_to_quantize=["Conv"],
    )  # fmt: skip
    return onnx.load(folder / "quantized.onnx")


@pytest.mark.parametrize("form", QuantFormat)
@pytest.mark.parametrize("kind", [QuantType.QInt8, QuantType.QUInt8])
def test_what_onnxruntime_quantized_is_int8(toy_yolo: Make, tmp_path: Path, form: QuantFormat, kind: QuantType) -> None:
    assert source_precision(_quantized(toy_yolo(), tmp_path, form, kind)) == "int8"


@pytest.mark.parametrize("keep_io", [True, False])
def test_what_onnxruntime_halved_is_fp16(toy_yolo: Make, keep_io: bool) -> None:
    assert source_precision(toy_yolo()) is None
    assert source_precision(convert_float_to_float16(toy_yolo(), keep_io_types=keep_io)) == "fp16"


@pytest.mark.parametrize(
    ("stage", "options", "held"),
    [
        (Fp16Pass(), Fp16Options(), "fp16"),
        (Bf16Pass(), NoOptions(), "bf16"),
        (Int8Pass(), Int8Options(), "int8"),  # of two precisions the lower one
        (Int8Pass(), Int8Options(base="fp32"), "int8"),
        (Fp8Pass(), Fp8Options(), "fp8"),
    ],
)
def test_what_our_passes_made(toy_model: Make, tmp_path: Path, stage: Any, options: Any, held: str) -> None:
    given, ranges = toy_model(), tmp_path / "ranges.json"
    amax = dict.fromkeys(("clean", "stem_out", "down_out", "joined", "join_out"), 2.0)
    write_ranges(ranges, Ranges(given.sha256, "minmax", amax))
    calibration = Calibration(ranges, sha256_of(ranges), "minmax")
    stage.apply(given, calibration, BuildRequest(held, 1, 64, 64), options, tmp_path)  # type: ignore[arg-type]
    assert source_precision(onnx.load(tmp_path / "model.onnx")) == held


def test_a_cast_before_the_convolution_counts_and_one_of_its_weight_back_does_not(toy_yolo: Make) -> None:
    """Weights may be stored in half and used in float32, or the other way, as PyTorch's autocast does."""
    for stored, computed, held in ((np.float16, TensorProto.FLOAT, None), (np.float32, TensorProto.FLOAT16, "fp16")):
        model = toy_yolo()
        for place, node in enumerate(list(model.graph.node)):
            if node.op_type == "Conv":
                name = node.input[1]
                cast = helper.make_node("Cast", [f"{name}_stored"], [name], to=computed)
                model.graph.node.insert(place, cast)
        for weight in model.graph.initializer:
            if any(n.op_type == "Conv" and n.input[1] == weight.name for n in model.graph.node):
                array = numpy_helper.to_array(weight).astype(stored)
                weight.CopyFrom(numpy_helper.from_array(array, f"{weight.name}_stored"))
        assert source_precision(model) == held


def test_a_quantized_output_is_no_quantized_convolution(toy_yolo: Make) -> None:
    model = toy_yolo()
    model.graph.initializer.append(numpy_helper.from_array(np.float32(4), "step"))
    model.graph.node.append(helper.make_node("QuantizeLinear", ["output0", "step"], ["codes"]))
    model.graph.node.append(helper.make_node("DequantizeLinear", ["codes", "step"], ["rounded"]))
    model.graph.output[0].name = "rounded"
    assert source_precision(model) is None


def test_a_half_onnx_is_built_as_it_is(
    toy_yolo: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "half.onnx"
    network = toy_yolo()
    lift_constants(network)  # the converter cannot read some of them
    half = OnnxModel(convert_float_to_float16(network, keep_io_types=True))
    half.topological_sort()  # and appends its casts
    half.save_model_to_file(str(path))
    given: dict[str, Any] = {"builder": "onnxruntime", "store": tmp_path / "store"}
    with pytest.raises(UsageError, match=r"cannot build fp32: `half\.onnx` is already fp16"):
        build(path, precision="fp32", out=tmp_path / "out", **given)
    with caplog.at_level(logging.INFO):
        engine = build(path, out=tmp_path / "out", **given)
    assert "`half.onnx` is already fp16; building fp16" in caplog.text
    assert engine.path.name == "half-fp16.onnx"
    assert engine.spec.precision == engine.spec.model.provenance["source_precision"] == "fp16"
    assert [step.step.label for step in engine.steps] == ["export", "simplify", "parity", "build"]
    assert engine.gate is None
    assert "there is no fp32 reference" in caplog.text
    again = build(path, precision="fp16", out=tmp_path / "out", **given)
    assert (again.from_cache, again.key) == (True, engine.key)
    caplog.clear()
    monkeypatch.setattr(TensorRTBuilder, "runnable", lambda self: Availability(False, "no GPU"))
    engine = build(path, builder="tensorrt", out=tmp_path / "out", store=tmp_path / "store")
    assert engine.gate is None
    assert "accuracy gate skipped: the source ONNX is already fp16" in caplog.text
    assert "no runtime on this machine" not in caplog.text


@pytest.mark.parametrize("asked", [None, "bf16", "fp32", "auto"])
def test_a_bfloat16_onnx_is_refused_in_words(toy_model: Make, tmp_path: Path, asked: str | None) -> None:
    Bf16Pass().apply(toy_model(), None, BuildRequest("bf16", 1, 64, 64), NoOptions(), tmp_path)
    with pytest.raises(
        UsageError, match=r"`model\.onnx` is already bf16, which onnxruntime.* does not support"
    ) as told:
        build(tmp_path / "model.onnx", precision=asked, store=tmp_path / "store", out=tmp_path / "out")
    assert told.value.hint == "use the float32 model and build it with `--precision bf16`"


def test_bfloat16_behind_float_convolutions_is_refused_in_words(toy_yolo: Make, tmp_path: Path) -> None:
    network = toy_yolo()
    to_low = helper.make_node("Cast", ["output0"], ["low"], to=TensorProto.BFLOAT16)
    squashed = helper.make_node("Sigmoid", ["low"], ["squashed"])
    back = helper.make_node("Cast", ["squashed"], ["boxes"], to=TensorProto.FLOAT)
    network.graph.node.extend([to_low, squashed, back])
    network.graph.output[0].name = "boxes"
    path = tmp_path / "tail.onnx"
    onnx.save(network, path)
    with pytest.raises(UsageError, match="the file computes in bf16, but onnxruntime") as told:
        build(path, builder="onnxruntime", store=tmp_path / "store", out=tmp_path / "out")
    assert told.value.hint == "build from the original float32 model with `--precision bf16`"


def test_a_float_onnx_is_lowered_as_before(toy_yolo: Make, tmp_path: Path) -> None:
    path = tmp_path / "float.onnx"
    onnx.save(toy_yolo(), path)
    engine = build(path, builder="onnxruntime", store=tmp_path / "store", out=tmp_path / "out")
    assert engine.spec.precision == "fp16"
    assert "source_precision" not in engine.spec.model.provenance
    assert engine.gate is not None
    assert engine.gate.facts["reference"] == "fp32"


def test_a_quantized_onnx_is_judged_against_itself_and_says_so(
    toy_yolo: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "trained.onnx"
    onnx.save(_quantized(toy_yolo(), tmp_path, QuantFormat.QDQ, QuantType.QInt8), path)
    given: dict[str, Any] = {"builder": "onnxruntime", "store": tmp_path / "store", "out": tmp_path / "out"}
    with pytest.raises(UsageError, match="is already int8"):
        build(path, precision="fp16", **given)
    with pytest.raises(UsageError, match=r"`--max-drop` needs an fp32 reference, but `trained\.onnx` is already int8"):
        build(path, precision="int8", max_drop=0.1, eval_data=_labelled(tmp_path), **given)
    engine = build(path, **given)
    assert engine.spec.precision == "int8"
    assert engine.path.name == "trained-int8.onnx"
    assert engine.gate is not None
    assert engine.gate.facts["reference"] == "int8 source"
    assert "fp32" not in engine.gate.text
    assert "not with fp32" in caplog.text


def test_what_onnxruntime_quantized_dynamically_stays_as_it_is(
    toy_yolo: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    onnx.save(toy_yolo(), tmp_path / "float.onnx")
    path = tmp_path / "dynamic.onnx"
    quantize_dynamic(tmp_path / "float.onnx", path)
    given = onnx.load(path)
    assert source_precision(given) == "int8"
    engine = build(path, builder="onnxruntime", store=tmp_path / "store", out=tmp_path / "out")
    assert engine.spec.precision == "int8"
    assert "brought_quantized" in next(s.record.facts for s in engine.steps if s.step.label == "int8")
    assert engine.gate is None
    assert "accuracy gate skipped: the source ONNX is already int8" in caplog.text
    images = np.random.default_rng(3).random((1, 3, 64, 64), np.float32)
    before, after = (InferenceSession(p, providers=["CPUExecutionProvider"]) for p in (path, engine.path))
    want, have = (s.run(None, {"images": images})[0] for s in (before, after))
    np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-3)


def _labelled(folder: Path) -> Path:
    for kind in ("images", "labels"):
        (folder / "set" / kind).mkdir(parents=True)
    assert cv2.imwrite(str(folder / "set" / "images" / "0.png"), np.full((64, 64, 3), 90, np.uint8))
    (folder / "set" / "labels" / "0.txt").write_text("0 0.5 0.5 1 1\n")
    return folder / "set"
