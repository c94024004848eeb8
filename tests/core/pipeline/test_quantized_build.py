"""The official YOLOv5n in int8, from the checkpoint to an engine, on a few COCO images."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from yolotrt_core.api import Engine, build_engine
from yolotrt_core.calibration.ranges import ranges_from_json
from yolotrt_core.calibration.tensorrt_cache import cache_from_ranges, parse_cache
from yolotrt_core.errors import GateError, UsageError
from yolotrt_core.pipeline.build_options import BuildSettings
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.store.store import Store

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    opened = Store(tmp_path_factory.mktemp("quantized") / "store")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def build(data: Path, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Any:
    registry = Registry.discover()

    def run(**settings: Any) -> Engine:
        given = {
            "weights": data / "weights" / "yolov5n.pt",
            "calib_data": data / "coco" / "images" / "calib",
            "calib_images": 16,
            "precision": "int8",
            "builder": "onnxruntime",
            **settings,
        }
        out = tmp_path_factory.mktemp("engine")
        return build_engine(BuildSettings(**given), store=store, registry=registry, out=out)

    return run


def _facts(engine: Engine, label: str) -> Any:
    return next(s.record.facts for s in engine.steps if s.step.label == label)


def test_at_least_54_of_60_convolutions_are_int8_by_the_build_log(build: Any) -> None:
    rtx = pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX 1.7 (extra `rtx`)")
    if tuple(int(n) for n in rtx.__version__.split(".")[:2]) < (1, 7):
        pytest.skip(f"TensorRT-RTX {rtx.__version__} has no INT8 convolutions")
    engine = build(builder="tensorrt")
    convolutions = _facts(engine, "build")["convolutions"]
    assert sum(convolutions.values()) == 60
    assert convolutions["int8"] >= 54
    assert engine.gate is not None
    assert engine.gate.facts["agreement"] >= 0.85


def test_graph_and_cache_hold_the_same_scales(build: Any, store: Store) -> None:
    """Every activation scale of the default (half) graph, bit for bit, and back from a cache to the same graph."""
    engine = build()
    record = next(s.record for s in engine.steps if s.step.label == "calibrate")
    ranges = ranges_from_json(json.loads(store.read(record.outputs["ranges.json"].sha256)), "ranges")
    cache = parse_cache(cache_from_ranges(ranges.tensors, 100300, "EntropyCalibration2"), "cache")
    graph = onnx.load(engine.path)
    weights = {w.name: numpy_helper.to_array(w) for w in graph.graph.initializer}
    scales = {
        n.input[0].removesuffix("_float16"): np.float32(weights[n.input[1]])
        for n in graph.graph.node
        if n.op_type == "QuantizeLinear"
    }
    assert len(scales) == 49
    assert {n: s.tobytes() for n, s in scales.items()} == {n: np.float32(cache.scales[n]).tobytes() for n in scales}
    assert ranges.images["count"] == 16
    assert record.facts["used"]
    assert len(record.facts["used"]) == 16


def test_a_cache_read_back_gives_the_same_engine(build: Any, store: Store, tmp_path: Path) -> None:
    first = build()
    record = next(s.record for s in first.steps if s.step.label == "calibrate")
    ranges = ranges_from_json(json.loads(store.read(record.outputs["ranges.json"].sha256)), "ranges")
    cache = tmp_path / "calibration.cache"
    cache.write_text(cache_from_ranges(ranges.tensors, 8601, "EntropyCalibration2"))
    again = build(calibrator="import", calib_data=None, flags={"import": {"file": str(cache)}})
    assert again.spec.engine_sha256 == first.spec.engine_sha256


def test_ranges_of_another_model_are_refused(build: Any, store: Store, data: Path, tmp_path: Path) -> None:
    record = next(s.record for s in build().steps if s.step.label == "calibrate")
    ranges = tmp_path / "ranges.json"
    ranges.write_bytes(store.read(record.outputs["ranges.json"].sha256))
    flags = {"import": {"file": str(ranges)}}
    with pytest.raises(UsageError, match="the ranges are for the ONNX"):
        build(weights=data / "weights" / "helmet_yolov5n.pt", calibrator="import", calib_data=None, flags=flags)


def test_ranges_that_ruin_the_engine_are_held_back(build: Any) -> None:
    with pytest.raises(GateError, match="the int8 engine failed the accuracy gate"):
        build(flags={"percentile": {"percent": "60"}})


def test_every_calibrator_swaps_in(build: Any) -> None:
    keys = {build(calibrator=name, flags={"gate": {"check": "off"}}).key for name in ("minmax", "mse", "entropy")}
    assert len(keys) == 3


@pytest.mark.parametrize("weights", ["int8", "float"])
def test_a_quantized_onnx_is_built_as_it_is(build: Any, tmp_path: Path, weights: str) -> None:
    """As quantization-aware training leaves it: weights as codes, or as floats that a Q/DQ pair rounds."""
    ours = build(flags={"int8": {"base": "fp32"}})
    graph = onnx.load(ours.path)
    if weights == "float":
        _unpack_weights(graph)
    trained = tmp_path / "trained.onnx"
    onnx.save(graph, trained)
    engine = build(weights=trained, calib_data=None, flags={"int8": {"base": "fp32"}})
    assert [s.step.label for s in engine.steps] == ["export", "simplify", "parity", "int8", "build"]
    facts = _facts(engine, "int8")
    assert facts["brought_quantized"] is True
    again = onnx.load(engine.path)
    assert _count(again) == _count(graph)


def _count(graph: onnx.ModelProto) -> dict[str, int]:
    kinds = [n.op_type for n in graph.graph.node]
    return {kind: kinds.count(kind) for kind in ("QuantizeLinear", "DequantizeLinear", "Conv")}


def _unpack_weights(graph: onnx.ModelProto) -> None:
    """Turn each stored int8 kernel back into the float one it stands for, with a Q before its DQ."""
    held = {w.name: w for w in graph.graph.initializer}
    nodes = []
    for node in graph.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in held:
            code, scale = (numpy_helper.to_array(held[name]) for name in node.input[:2])
            name = f"{node.input[0]}_kernel"
            kernel = (code * scale.reshape(-1, 1, 1, 1)).astype(np.float32)
            graph.graph.initializer.append(numpy_helper.from_array(kernel, name))
            rounded = f"{name}_rounded"
            nodes.append(onnx.helper.make_node("QuantizeLinear", [name, *node.input[1:]], [rounded], axis=0))
            node.input[0] = rounded
        nodes.append(node)
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
