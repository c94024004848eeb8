"""Layers by name: what `int8` and `fp8` offer for sensitivity and mixed precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from yolotrt_core.calibration.ranges import Ranges, write_ranges
from yolotrt_core.files.digest import sha256_of
from yolotrt_core.types import BuildRequest, Calibration, OnnxModel
from yolotrt_onnx.options import Fp8Options, Int8Options
from yolotrt_onnx.stages import Bf16Pass, Fp8Pass, Fp16Pass, Int8Pass

Write = Callable[..., OnnxModel]
MODULES = {"stem": "model.0", "down": "model.1.conv", "deep": "model.1.conv2", "join": "model.2.m.0.cv1"}


@pytest.fixture
def named(toy_yolo: Any, toy_model: Write) -> OnnxModel:
    """The toy network with weights named as torch's exporters name them."""
    model = toy_yolo()
    modules = {"stem": "model.0.conv", "down": "model.1.conv", "deep": "model.1.conv2", "join": "model.2.m.0.cv1.conv"}
    for tensor in model.graph.initializer:
        if tensor.name in modules:
            tensor.name = modules[tensor.name] + ".weight"
    for node in model.graph.node:
        if node.op_type == "Conv" and node.input[1] in modules:
            node.input[1] = modules[node.input[1]] + ".weight"
    return toy_model(model)


def test_which_passes_have_layers() -> None:
    assert Int8Pass.quantizes
    assert Fp8Pass.quantizes
    assert not Fp16Pass.quantizes
    assert not Bf16Pass.quantizes


def test_layers_are_yolo_modules_in_the_order_of_the_graph(named: OnnxModel, toy_model: Write) -> None:
    assert Int8Pass().layers(named, Int8Options()) == tuple(MODULES.values())
    assert Int8Pass().layers(named, Int8Options(stem=False, head=True)) == (*list(MODULES.values())[1:], "head_conv")
    assert Int8Pass().layers(named, Int8Options(keep="model.1")) == ("model.0", "model.2.m.0.cv1")
    assert Fp8Pass().layers(named, Fp8Options()) == tuple(MODULES.values())[1:]
    nameless = toy_model()  # without module names the nodes' own
    assert Int8Pass().layers(nameless, Int8Options()) == ("stem_conv", "down_conv", "deep_conv", "join_conv")


@pytest.mark.parametrize("kept", list(MODULES))
def test_each_name_keeps_its_own_convolution(named: OnnxModel, kept: str, tmp_path: Path) -> None:
    ranges = tmp_path / "ranges.json"
    amax = dict.fromkeys(("clean", "stem_out", "down_out", "joined"), 1.0)
    write_ranges(ranges, Ranges(named.sha256, "minmax", amax))
    calibration = Calibration(ranges, sha256_of(ranges), "minmax")
    request = BuildRequest("int8", 1, 64, 64)
    Int8Pass().apply(named, calibration, request, Int8Options(keep=MODULES[kept]), tmp_path)
    graph = onnx.load(tmp_path / "model.onnx").graph
    plain = {n.name for n in graph.node if n.op_type == "Conv" and not n.input[1].endswith("_dequantized")}
    assert plain == {f"{kept}_conv", "head_conv"}


def test_what_is_quantized_already_has_no_layers(named: OnnxModel, toy_model: Write, tmp_path: Path) -> None:
    ranges = tmp_path / "ranges.json"
    amax = dict.fromkeys(("clean", "stem_out", "down_out", "joined"), 1.0)
    write_ranges(ranges, Ranges(named.sha256, "minmax", amax))
    calibration = Calibration(ranges, sha256_of(ranges), "minmax")
    Int8Pass().apply(named, calibration, BuildRequest("int8", 1, 64, 64), Int8Options(), tmp_path)
    brought = toy_model(onnx.load(tmp_path / "model.onnx"), name="brought")
    assert Int8Pass().layers(brought, Int8Options()) == ()
