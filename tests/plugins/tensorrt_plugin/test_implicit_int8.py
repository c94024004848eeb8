"""Weakly typed INT8: what TensorRT 10 would be asked, by a stand-in with its names; what others refuse."""

from __future__ import annotations

import enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from yolotrt_core.calibration.ranges import Ranges, int8_scale, read_ranges, write_ranges
from yolotrt_core.calibration.tensorrt_cache import parse_cache
from yolotrt_core.errors import StageError, UsageError
from yolotrt_core.types import BuildRequest, Calibration, ModelSpec, OnnxModel
from yolotrt_tensorrt.build import calibrator, implicit_int8
from yolotrt_tensorrt.discovery import Installed
from yolotrt_tensorrt.library import Library, load
from yolotrt_tensorrt.options import TensorRTOptions
from yolotrt_tensorrt.stages import TensorRTBuilder, TensorRTCalibrator

Float = enum.Enum("DataType", ["FLOAT", "HALF", "INT8", "INT64"])
Layer = enum.Enum("LayerType", ["CONVOLUTION", "ACTIVATION", "ELEMENTWISE", "SHAPE"])


class _Tensor(SimpleNamespace):
    pass


class _Layer:
    def __init__(self, kind: Any, given: list[_Tensor | None], made: list[_Tensor]) -> None:
        self.type, self._given, self._made = kind, given, made
        self.num_inputs, self.num_outputs = len(given), len(made)
        self.precision: Any = None
        self.output_types: dict[int, Any] = {}

    def get_input(self, index: int) -> _Tensor | None:
        return self._given[index]

    def get_output(self, index: int) -> _Tensor:
        return self._made[index]

    def set_output_type(self, index: int, kind: Any) -> None:
        self.output_types[index] = kind


class _Base:
    """Counts that the base class was set up, which pybind11 demands."""

    def __init__(self) -> None:
        self.ready = True


class _Library(Library):
    """TensorRT 10.3 as far as these calls go."""

    def __init__(self) -> None:
        self.installed = Installed("tensorrt", "10.3.0", "")
        self.trt = SimpleNamespace(
            DataType=Float,
            LayerType=Layer,
            BuilderFlag=enum.Enum("F", ["INT8", "FP16", "OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS"]),
            IBuilderConfig=SimpleNamespace(int8_calibrator=None),
            ILayer=SimpleNamespace(precision=None, set_output_type=None),
            IInt8EntropyCalibrator2=type("IInt8EntropyCalibrator2", (_Base,), {}),
            IInt8MinMaxCalibrator=type("IInt8MinMaxCalibrator", (_Base,), {}),
        )


class _Config:
    def __init__(self) -> None:
        self.flags: list[str] = []
        self.int8_calibrator: Any = None

    def set_flag(self, flag: Any) -> None:
        self.flags.append(flag.name)


def _network() -> tuple[Any, list[_Layer]]:
    """conv -> silu -> head conv -> sigmoid, and a shape of it that is no float."""
    names = ["images", "a", "b", "raw", "output0"]
    tensors = {n: _Tensor(name=n, dtype=Float.FLOAT) for n in names} | {
        "shape": _Tensor(name="shape", dtype=Float.INT64)
    }
    layers = [
        _Layer(Layer.CONVOLUTION, [tensors["images"], None], [tensors["a"]]),
        _Layer(Layer.ACTIVATION, [tensors["a"]], [tensors["b"]]),
        _Layer(Layer.CONVOLUTION, [tensors["b"], None], [tensors["raw"]]),
        _Layer(Layer.SHAPE, [tensors["raw"]], [tensors["shape"]]),
        _Layer(Layer.ELEMENTWISE, [tensors["raw"]], [tensors["output0"]]),
    ]
    return SimpleNamespace(num_layers=len(layers), get_layer=layers.__getitem__), layers


@pytest.mark.parametrize("constraints", ["obey", "prefer", "none"])
def test_flags_and_held_types(constraints: str) -> None:
    network, layers = _network()
    config, calibrator = _Config(), object()
    held = implicit_int8.configure(_Library(), network, config, calibrator, constraints)  # type: ignore[arg-type]
    assert config.int8_calibrator is calibrator
    extra = {"obey": ["OBEY_PRECISION_CONSTRAINTS"], "prefer": ["PREFER_PRECISION_CONSTRAINTS"], "none": []}
    assert config.flags == ["INT8", "FP16", *extra[constraints]]
    if constraints == "none":
        assert held == 0
        return
    assert held == 2
    assert [layer.precision for layer in layers] == [None, None, Float.HALF, None, Float.FLOAT]
    assert [layer.output_types for layer in layers] == [{}, {}, {0: Float.HALF}, {}, {0: Float.FLOAT}]


@pytest.mark.parametrize(
    ("algorithm", "base"), [("entropy2", "IInt8EntropyCalibrator2"), ("minmax", "IInt8MinMaxCalibrator")]
)
def test_batches_are_full_and_in_order(algorithm: Any, base: str) -> None:
    images = np.arange(7, dtype=np.float32).reshape(7, 1, 1, 1)
    uploaded: list[np.ndarray] = []

    def upload(batch: np.ndarray) -> int:
        assert batch.flags["C_CONTIGUOUS"]
        uploaded.append(batch.copy())
        return 4096

    feed = implicit_int8.Feed(iter([images[:2], images[2:7]]), upload, batch=3)
    library = _Library()
    made = implicit_int8.engine_calibrator(library, algorithm, feed)
    assert isinstance(made, getattr(library.trt, base))
    assert made.ready
    assert made.get_batch_size() == 3
    assert made.get_batch(["images"]) == [4096]
    assert made.get_batch(["images"]) == [4096]
    assert made.get_batch(["images"]) is None  # one image is left: not a batch
    assert [b.ravel().tolist() for b in uploaded] == [[0, 1, 2], [3, 4, 5]]
    assert made.read_calibration_cache() is None
    made.write_calibration_cache(memoryview(b"TRT-100300-EntropyCalibration2\n"))
    assert feed.written == b"TRT-100300-EntropyCalibration2\n"


def test_our_ranges_reach_it_as_its_own_cache(tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    write_ranges(path, Ranges("a" * 64, "mse", {"images": 1.0, "x": 3.7}))
    cache = implicit_int8.cache_for(_Library(), Calibration(path, "", "mse"), "a" * 64, "entropy2")
    feed = implicit_int8.Feed(cache=cache)
    calibrator = implicit_int8.engine_calibrator(_Library(), "entropy2", feed)
    assert calibrator.get_batch(["images"]) is None
    told = parse_cache(calibrator.read_calibration_cache().decode(), "x")
    assert (told.version, told.algorithm) == (100300, "EntropyCalibration2")
    assert told.scales == {"images": int8_scale(1.0), "x": int8_scale(3.7)}
    with pytest.raises(UsageError, match="are for the ONNX aaaaaaaaaaaa"):
        implicit_int8.cache_for(_Library(), Calibration(path, "", "mse"), "b" * 64, "entropy2")


def test_a_library_without_it_says_what_to_do(installed_rtx: str) -> None:
    request = BuildRequest("int8", 1, 640, 640)
    options = TensorRTOptions(module="tensorrt_rtx", typing="weak")
    with pytest.raises(UsageError, match="does not support weakly typed networks and calibrators") as refused:
        TensorRTBuilder().preflight(request, options)
    assert "Q/DQ nodes" in str(refused.value.hint)
    with pytest.raises(UsageError, match="support weakly typed"):
        implicit_int8.engine_calibrator(load("tensorrt_rtx"), "minmax", implicit_int8.Feed())


def test_weak_typing_is_for_int8(installed_rtx: str) -> None:
    with pytest.raises(UsageError, match="is for int8, found fp16"):
        TensorRTBuilder().preflight(
            BuildRequest("fp16", 1, 640, 640), TensorRTOptions(module="tensorrt_rtx", typing="weak")
        )


def test_only_weak_int8_takes_ranges() -> None:
    builder = TensorRTBuilder()
    int8, fp16 = BuildRequest("int8", 1, 64, 64), BuildRequest("fp16", 1, 64, 64)
    assert builder.takes_ranges(int8, TensorRTOptions(typing="weak"))
    assert not builder.takes_ranges(int8, TensorRTOptions())
    assert not builder.takes_ranges(fp16, TensorRTOptions(typing="weak"))


def test_its_own_calibrator_is_not_here(installed_rtx: str) -> None:
    """TensorRT-RTX has no calibrators, and no `tensorrt` 10 is installed where these tests run."""
    can = TensorRTCalibrator().available()
    if can.ok:
        pytest.skip("tensorrt 10 is installed")
    assert "calibrators are a part of TensorRT 8 to 10" in can.reason


def test_what_its_own_calibrator_wrote_becomes_ranges(tmp_path: Path) -> None:
    lines = [
        "TRT-100300-EntropyCalibration2",
        "images: 3c010a14",
        "x: 3d000000",
        "(Unnamed Layer* 3) [A]_output: 00000000",
    ]
    text = "\n".join(lines).encode()
    model = OnnxModel(tmp_path / "model.onnx", "c" * 64, ModelSpec((), (), (), ()))
    assert calibrator._write(model, text, tmp_path) == "TensorRT EntropyCalibration2"
    ranges = read_ranges(tmp_path / "ranges.json")
    assert ranges.onnx_sha256 == "c" * 64
    assert ranges.tensors == {"images": pytest.approx(127 * 0.00787594, rel=1e-6), "x": 127 / 32}
    with pytest.raises(StageError, match="without ranges"):
        calibrator._write(model, b"TRT-100300-EntropyCalibration2\n", tmp_path)
