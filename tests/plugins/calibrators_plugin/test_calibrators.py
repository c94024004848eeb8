"""The calibrators on a small network, against all activations computed at once by onnxruntime."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from yolotrt_calibrators import yolotrt_calibrators
from yolotrt_calibrators.options import CollectOptions, ImportOptions, PercentileOptions
from yolotrt_calibrators.stages import Entropy, Import, MinMax, Mse, Percentile
from yolotrt_core.calibration.ranges import int8_scale, read_ranges
from yolotrt_core.calibration.tensorrt_cache import cache_from_ranges
from yolotrt_core.errors import StageError, UsageError
from yolotrt_core.types import BuildRequest, OnnxModel

REQUEST = BuildRequest("fp32", 1, 64, 64)
Write = Callable[..., OnnxModel]
CONVOLUTION_INPUTS = ["clean", "stem_out", "down_out", "joined", "join_out"]


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(3).random((7, 3, 64, 64), np.float32)


def _in_batches(images: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for first in range(0, len(images), size):
        yield images[first : first + size]


def _calibrate(stage: Any, model: OnnxModel, images: np.ndarray, out: Path, size: int = 3, **options: Any) -> Any:
    out.mkdir(exist_ok=True)
    stage.calibrate(model, _in_batches(images, size), REQUEST, stage.Options(**options), out)
    return read_ranges(out / "ranges.json")


def _activations(model: OnnxModel, images: np.ndarray, names: list[str]) -> dict[str, np.ndarray]:
    """Run each image with every wanted tensor as an output of the whole graph."""
    graph = onnx.load(model.path)
    graph.graph.output.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    runs = [session.run(names, {"images": p[None]}) for p in images]
    return {name: np.concatenate([r[i].ravel() for r in runs]) for i, name in enumerate(names)}


def test_all_are_there() -> None:
    assert [c.name for c in yolotrt_calibrators()] == ["minmax", "entropy", "percentile", "mse", "import"]


def test_minmax_is_the_largest_magnitude(toy_model: Write, images: np.ndarray, tmp_path: Path) -> None:
    model = toy_model()
    ranges = _calibrate(MinMax(), model, images, tmp_path / "out")
    expected = _activations(model, images, CONVOLUTION_INPUTS)
    assert list(ranges.tensors) == CONVOLUTION_INPUTS
    for name, values in expected.items():
        assert ranges.tensors[name] == pytest.approx(np.abs(values).max(), rel=1e-5)
    assert ranges.onnx_sha256 == model.sha256
    assert ranges.method == "minmax"


def test_percentile_is_numpys(toy_model: Write, images: np.ndarray, tmp_path: Path) -> None:
    model = toy_model()
    ranges = _calibrate(Percentile(), model, images, tmp_path / "out", percent=99.0)
    for name, values in _activations(model, images, CONVOLUTION_INPUTS).items():
        assert ranges.tensors[name] == pytest.approx(np.percentile(np.abs(values), 99), rel=2e-3)
    assert ranges.method == "percentile 99"


@pytest.mark.parametrize("stage", [MinMax(), Entropy(), Percentile(), Mse()], ids=lambda s: s.name)
def test_ranges_do_not_depend_on_the_batch(stage: Any, toy_model: Write, images: np.ndarray, tmp_path: Path) -> None:
    one = _calibrate(stage, toy_model(), images, tmp_path / "one", size=1)
    many = _calibrate(stage, toy_model(), images, tmp_path / "many", size=7)
    assert one == many
    assert all(0 < amax <= 1.05 * 4 for amax in one.tensors.values())


def test_a_static_batch_of_the_engine_does_not_matter(toy_model: Write, images: np.ndarray, tmp_path: Path) -> None:
    """The body of the network knows no batch; its decode has one written in, and is not run."""
    single = toy_model()
    graph = onnx.load(single.path)
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    layout = next(w for w in graph.graph.initializer if w.name == "layout")
    layout.CopyFrom(numpy_helper.from_array(np.array([3, 2, 8, 16, 16], np.int64), "layout"))
    graph.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 3
    del graph.graph.value_info[:]
    batched = toy_model(graph, name="batched")
    one = _calibrate(MinMax(), single, images, tmp_path / "one")
    three = _calibrate(MinMax(), batched, images, tmp_path / "three")
    assert three.tensors == pytest.approx(one.tensors, rel=1e-5)


def test_a_batch_written_into_the_body_is_kept(toy_model: Write, images: np.ndarray, tmp_path: Path) -> None:
    single = toy_model()
    graph = onnx.load(single.path)
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    shape = numpy_helper.from_array(np.array([2, 3, 64, 64], np.int64), "fixed")
    graph.graph.initializer.append(shape)
    identity = next(n for n in graph.graph.node if n.op_type == "Identity")
    identity.op_type = "Reshape"
    identity.input.append("fixed")
    layout = next(w for w in graph.graph.initializer if w.name == "layout")
    layout.CopyFrom(numpy_helper.from_array(np.array([2, 2, 8, 16, 16], np.int64), "layout"))
    graph.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 2
    del graph.graph.value_info[:]
    two = _calibrate(Percentile(), toy_model(graph, name="two"), images, tmp_path / "two", percent=99.9)
    one = _calibrate(Percentile(), single, images, tmp_path / "one", percent=99.9)
    assert two.tensors == pytest.approx(one.tensors, rel=1e-3)


def test_a_dynamic_network_is_calibrated(toy_model: Write, images: np.ndarray, tmp_path: Path) -> None:
    static = _calibrate(Mse(), toy_model(), images, tmp_path / "static")
    dynamic = _calibrate(Mse(), toy_model(name="dynamic", dynamic=True), images, tmp_path / "dynamic")
    assert dynamic.tensors == pytest.approx(static.tensors, rel=1e-3)


def test_all_tensors_up_to_the_last_convolutions(toy_model: Write, images: np.ndarray, tmp_path: Path) -> None:
    model = toy_model()
    ranges = _calibrate(MinMax(), model, images, tmp_path / "out", tensors="all")
    assert set(CONVOLUTION_INPUTS) < set(ranges.tensors)
    assert {"images", "raw", "up", "pooled"} <= set(ranges.tensors)
    assert not {"output0", "xyg", "levels", "soft"} & set(ranges.tensors)
    expected = _activations(model, images, ["raw", "up"])
    assert ranges.tensors["raw"] == pytest.approx(np.abs(expected["raw"]).max(), rel=1e-5)


def test_an_activation_that_is_not_finite_is_named(toy_model: Write, images: np.ndarray, tmp_path: Path) -> None:
    graph = onnx.load(toy_model().path)
    weights = next(w for w in graph.graph.initializer if w.name.startswith("deep"))
    values = numpy_helper.to_array(weights).copy()
    values.flat[0] = np.nan
    weights.CopyFrom(numpy_helper.from_array(values, weights.name))
    for stage in (MinMax(), Entropy()):
        with pytest.raises(StageError, match="`joined` has NaN"):
            _calibrate(stage, toy_model(graph, name="broken"), images, tmp_path / "out")


def test_no_images_are_an_error(toy_model: Write, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="needs at least one image"):
        _calibrate(MinMax(), toy_model(), np.zeros((0, 3, 64, 64), np.float32), tmp_path / "out")


def test_a_tensor_that_is_always_zero_has_some_range(
    toy_model: Write, images: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ranges = _calibrate(Entropy(), toy_model(), np.zeros_like(images), tmp_path / "out")
    assert ranges.tensors["clean"] == 1.0
    assert "`clean` is zero on every calibration image" in caplog.text


def test_import_takes_ranges_of_this_very_network(toy_model: Write, images: np.ndarray, tmp_path: Path) -> None:
    model = toy_model()
    ranges = _calibrate(Entropy(), model, images, tmp_path / "first")
    (tmp_path / "second").mkdir()
    Import().calibrate(model, iter(()), REQUEST, ImportOptions(tmp_path / "first" / "ranges.json"), tmp_path / "second")
    assert read_ranges(tmp_path / "second" / "ranges.json") == ranges


def test_import_refuses_ranges_of_another_network(toy_model: Write, images: np.ndarray, tmp_path: Path) -> None:
    model = toy_model()
    _calibrate(MinMax(), model, images, tmp_path / "first")
    other = dataclasses.replace(model, sha256="f" * 64)
    options = ImportOptions(tmp_path / "first" / "ranges.json")
    with pytest.raises(UsageError, match="are for the ONNX 000000000000, this model's is ffffffffffff"):
        Import().calibrate(other, iter(()), REQUEST, options, tmp_path)


def test_import_of_a_cache_gives_the_same_scales(toy_model: Write, images: np.ndarray, tmp_path: Path) -> None:
    model = toy_model()
    ranges = _calibrate(Percentile(), model, images, tmp_path / "first")
    cache = tmp_path / "model.cache"
    cache.write_text(cache_from_ranges(ranges.tensors, 100300, "EntropyCalibration2") + "gone: 3c010a14\n")
    (tmp_path / "second").mkdir()
    assert Import().calibrate(model, iter(()), REQUEST, ImportOptions(cache), tmp_path / "second")
    back = read_ranges(tmp_path / "second" / "ranges.json")
    assert {n: int8_scale(a) for n, a in back.tensors.items()} == {n: int8_scale(a) for n, a in ranges.tensors.items()}


def test_import_of_a_cache_that_misses_a_tensor(toy_model: Write, tmp_path: Path) -> None:
    cache = tmp_path / "model.cache"
    cache.write_text(cache_from_ranges({"clean": 1.0, "stem_out": 2.0}, 8601, "MinMaxCalibration"))
    with pytest.raises(UsageError, match="has no scale for `down_out` and 2 more"):
        Import().calibrate(toy_model(), iter(()), REQUEST, ImportOptions(cache), tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a ranges file"),
        (b"\xff\xfe\x00", "neither a ranges file nor"),
        (b'{"schema": 1}', "`tensors` is missing"),
        (json.dumps({"schema": 9, "tensors": {}}).encode(), "has schema 9"),
        (
            json.dumps({"schema": 1, "onnx_sha256": "0" * 64, "method": "x", "tensors": {"a": -1}}).encode(),
            "the range of `a` is -1",
        ),
    ],
)
def test_import_of_what_is_neither(toy_model: Write, tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "some.txt"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        Import().calibrate(toy_model(), iter(()), REQUEST, ImportOptions(file), tmp_path)


def test_import_without_a_file(toy_model: Write, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs a file"):
        Import().calibrate(toy_model(), iter(()), REQUEST, ImportOptions(), tmp_path)


def test_options_have_bounds() -> None:
    from yolotrt_core.plugin.options import resolve

    assert resolve(PercentileOptions, "percentile", {"percent": "99.9"}).percent == 99.9
    with pytest.raises(UsageError, match="at least 50"):
        resolve(PercentileOptions, "percentile", {"percent": "4"})
    assert resolve(CollectOptions, "mse", {"tensors": "all"}).tensors == "all"
