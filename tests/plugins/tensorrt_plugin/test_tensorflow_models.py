"""fp16 engines of upstream's TensorFlow exports, under the installed TensorRT-RTX and under 1.6.1."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trt_build import described

from yolotrt_core.api import build
from yolotrt_core.serialization import from_json
from yolotrt_core.store.store import Store
from yolotrt_core.types import BuildRequest, Layout, ModelSpec, OnnxModel, ShapeRange, with_channels

pytestmark = [pytest.mark.tf, pytest.mark.slow, pytest.mark.usefixtures("installed_rtx")]

OLD = "print(json.dumps(build_described(sys.argv[1], sys.argv[2])))"
BATCHES = ShapeRange((1, 640, 640), (2, 640, 640), (8, 640, 640))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    ("name", "layout"),
    [("yolov5n_saved_model", "nchw"), ("yolov5n_saved_model", "nhwc"), ("yolov5n_fp16.tflite", "nchw")],
)
def test_fp16_engines(
    name: str, layout: Layout, dynamic: bool, data: Path, rtx_old: Callable[..., Any], tmp_path: Path
) -> None:
    pytest.importorskip("tf2onnx", reason="the exporter needs TensorFlow and tf2onnx (extra `tf`)")
    store, profiles = Store(tmp_path / "store"), (BATCHES,) if dynamic else ()
    engine = build(
        data / "tf" / name,
        builder="tensorrt",
        dynamic=dynamic,
        profiles=profiles,
        store=store,
        out=tmp_path / "out",
        imgsz=(640, 640),
        flags={"tf": {"layout": layout}},
    )
    last = engine.steps[-1]
    # Every YOLOv5n has 60 convolutions: 57 in its Conv blocks, 3 in the head.
    assert last.record.facts["convolutions"] == {"fp16": 60}
    assert engine.spec.model.inputs[0].shape == with_channels("batch" if dynamic else 1, 640, 640, layout)
    assert engine.spec.model.outputs[0].shape == ("batch" if dynamic else 1, 25200, 85)
    assert engine.spec.model.strides == (8, 16, 32)
    for file in ("onnx", "spec"):
        store.copy_out(last.action.inputs[file], tmp_path / file)
    spec = from_json(ModelSpec, json.loads((tmp_path / "spec").read_text()))
    model = OnnxModel((tmp_path / "onnx").rename(tmp_path / "model.onnx"), last.action.inputs["onnx"], spec)
    asked = BuildRequest("fp16", 1, 640, 640, dynamic, profiles)
    old = rtx_old(OLD, described(model, asked), tmp_path / "old")
    assert old["spec"]["tools"]["version"] == "1.6.1.120"
    assert old["facts"]["convolutions"] == {"fp16": 60}
