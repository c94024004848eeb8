"""The passes on the official YOLOv5n and a COCO image, against upstream's own raw output."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest

from arrays import relative_l2
from yolotrt_core.inference.letterbox import preprocess
from yolotrt_core.types import BuildRequest, ModelSource, OnnxModel
from yolotrt_onnx.graph import type_conflicts
from yolotrt_onnx.options import Fp16Options, SimplifyOptions
from yolotrt_onnx.stages import Fp16Pass, SimplifyPass
from yolotrt_torch.stages import TorchExporter

REQUEST = BuildRequest("fp32", 1, 640, 640)
Lower = Callable[[Fp16Options], tuple[Path, Any]]


@pytest.fixture(scope="module")
def exported(data: Path, tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    out = tmp_path_factory.mktemp("export")
    weights = data / "weights" / "yolov5n.pt"
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    stage = TorchExporter()
    spec = stage.export(ModelSource(weights, sha256, "yolov5n"), REQUEST, stage.Options(), out)
    return OnnxModel(out / "model.onnx", "", spec)


@pytest.fixture(scope="module")
def simplified(exported: OnnxModel, tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    out = tmp_path_factory.mktemp("simplify")
    spec, _ = SimplifyPass().apply(exported, None, REQUEST, SimplifyOptions(), out)
    return OnnxModel(out / "model.onnx", "", spec)


@pytest.fixture(scope="module")
def lower(simplified: OnnxModel, tmp_path_factory: pytest.TempPathFactory) -> Lower:
    def apply(options: Fp16Options) -> tuple[Path, Any]:
        out = tmp_path_factory.mktemp("fp16")
        return out / "model.onnx", Fp16Pass().apply(simplified, None, REQUEST, options, out)[1]

    return apply


@pytest.fixture(scope="module")
def upstream(data: Path) -> tuple[np.ndarray, np.ndarray]:
    """The first validation image as network input, and upstream's raw output for it."""
    frame = cv2.imread(str(data / "coco" / "images" / "val" / "000000000139.jpg"))
    with np.load(data / "reference" / "yolov5n_raw_000000000139.npz") as arrays:
        return preprocess([frame], (640, 640))[0], arrays["output0"].reshape(25200, 85).astype(np.float64)


def infer(path: Path, images: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    half = session.get_inputs()[0].type == "tensor(float16)"
    return session.run(None, {"images": images.astype(np.float16) if half else images})[0][0].astype(np.float64)


@pytest.mark.parametrize("tool", ["onnxsim", "onnxslim", "both"])
def test_static_graph_is_at_most_242_nodes(exported: OnnxModel, tmp_path: Path, tool: Any) -> None:
    facts = SimplifyPass().apply(exported, None, REQUEST, SimplifyOptions(tool), tmp_path)[1]
    assert facts["nodes"] <= 242
    after, before = onnx.load(tmp_path / "model.onnx"), onnx.load(exported.path)
    assert after.metadata_props == before.metadata_props
    assert {p.key for p in after.metadata_props} >= {"stride", "names", "task", "imgsz"}


def test_simplified_graph_computes_upstreams_output(
    simplified: OnnxModel, upstream: tuple[np.ndarray, np.ndarray]
) -> None:
    images, expected = upstream
    assert relative_l2(infer(simplified.path, images), expected) <= 1e-5


@pytest.mark.parametrize(
    ("options", "casts", "xy", "box_pixels"),
    [
        # Box error: half keeps 11 bits, so w and h of a box hundreds of pixels wide are off by a tenth or so.
        (Fp16Options(), 10, 1e-4, 0.3),
        (Fp16Options("fp16", "fp32", "fp32"), 9, 1e-4, 0.3),
        (Fp16Options("fp16", "fp16", "fp16"), 0, 1e-3, 0.6),
    ],
    ids=["default", "half input", "all half"],
)
def test_half_precision_stays_close_to_upstream(
    lower: Lower,
    upstream: tuple[np.ndarray, np.ndarray],
    options: Fp16Options,
    casts: int,
    xy: float,
    box_pixels: float,
) -> None:
    path, facts = lower(options)
    assert facts["casts"] == casts
    assert facts["unfit_weights"] == []
    assert type_conflicts(onnx.load(path)) == []
    images, expected = upstream
    found = infer(path, images)
    assert relative_l2(found, expected) < 1e-3
    assert relative_l2(found[:, :2], expected[:, :2]) < xy
    score = (expected[:, 4:5] * expected[:, 5:]).max(axis=1)
    sure = score > 0.25
    assert sure.sum() > 100
    assert np.abs(found - expected)[sure, :4].max() < box_pixels
    assert np.abs((found[:, 4:5] * found[:, 5:]).max(axis=1) - score)[sure].max() < 0.01
