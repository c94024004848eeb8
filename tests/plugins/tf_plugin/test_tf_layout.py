"""`--tf-layout nhwc`: images go in as TensorFlow has them, and nothing else changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from keras_yolo import ROWS, SIZE, sample_image
from numpy.typing import NDArray

from yolotrt_core.api import Detector, build
from yolotrt_core.calibration.ranges import read_ranges
from yolotrt_core.files.digest import sha256_of
from yolotrt_core.store.store import Store
from yolotrt_core.types import BuildRequest, ModelSource, ModelSpec, Selection
from yolotrt_tf.options import TfOptions
from yolotrt_tf.stages import TfExporter

pytestmark = [pytest.mark.tf, pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")]

REQUEST = BuildRequest("fp32", 1, SIZE, SIZE)
FILES = ("saved_model", "toy.keras", "toy.h5", "toy.pb", "fp32.tflite")
Answer = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def export(path: Path, out: Path, request: BuildRequest = REQUEST, **options: Any) -> ModelSpec:
    out.mkdir(parents=True)
    source = ModelSource(path, sha256_of(path), path.stem)
    return TfExporter().export(source, request, TfOptions(**options), out)


def run(out: Path, images: NDArray[np.float32]) -> NDArray[np.float32]:
    session = ort.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["output0"], {"images": images})[0])


def transposed(out: Path) -> list[str]:
    return [n.input[0] for n in onnx.load(out / "model.onnx").graph.node if n.op_type == "Transpose"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("dynamic", [False, True])
def test_every_format_takes_images_as_tensorflow_does(
    file: str, dynamic: bool, models: Path, expected: Answer, tmp_path: Path
) -> None:
    request = dataclasses.replace(REQUEST, dynamic=dynamic)
    spec = export(models / file, tmp_path / "nhwc", request, layout="nhwc")
    batch = "batch" if dynamic else 1
    assert spec.inputs[0].shape == (batch, SIZE, SIZE, 3)
    assert spec.outputs[0].shape == (batch, ROWS, 8)
    assert spec.layout == "nhwc"
    entry = onnx.load(tmp_path / "nhwc" / "model.onnx").graph.input[0].type.tensor_type.shape.dim
    assert tuple(d.dim_param or d.dim_value for d in entry) == spec.inputs[0].shape
    for count in (1, 3) if dynamic else (1,):
        images = sample_image(count)
        want = expected(images.transpose(0, 3, 1, 2))
        assert np.abs(run(tmp_path / "nhwc", images) - want).max() <= 1e-4
    export(models / file, tmp_path / "nchw", request)
    # The input costs one, and no more: convolutions work on NCHW in ONNX.
    assert transposed(tmp_path / "nhwc").count("images") == 1
    assert len(transposed(tmp_path / "nhwc")) == len(transposed(tmp_path / "nchw")) + 1
    with np.load(tmp_path / "nhwc" / "reference.npz") as last, np.load(tmp_path / "nchw" / "reference.npz") as first:
        np.testing.assert_array_equal(last["images"].transpose(0, 3, 1, 2), first["images"])
        np.testing.assert_array_equal(last["output0"], first["output0"])


@pytest.mark.parametrize("file", ["int8.tflite", "uint8io.tflite"])
def test_eight_bit_models(file: str, models: Path, tmp_path: Path) -> None:
    assert export(models / file, tmp_path / "m", layout="nhwc").layout == "nhwc"
    with np.load(tmp_path / "m" / "reference.npz") as stored:
        error = np.linalg.norm(run(tmp_path / "m", stored["images"]) - stored["output0"])
        assert error <= float(stored["tolerance"]) / 2 * np.linalg.norm(stored["output0"])


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    folder = tmp_path / "frames"
    folder.mkdir()
    for seed in range(6):
        pixels = (sample_image(size=SIZE + 8 * seed, seed=seed)[0] * 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{seed}.png"), pixels[: SIZE - 8 * (seed % 3)])
    return folder


@pytest.mark.parametrize("settings", [{}, {"dynamic": True, "batch": 2}], ids=["static", "dynamic"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_boxes_and_ranges_are_those_of_the_other_layout(
    precision: Any, settings: dict[str, Any], models: Path, frames: Path, tmp_path: Path
) -> None:
    """Calibration, its Q/DQ graph, the gate, the detector and a second intake as ONNX."""
    chosen = Selection(conf=0.01, iou=0.6, multi_label=True)
    images = [cv2.imread(str(file)) for file in sorted(frames.iterdir())]
    found, ranges, engines = {}, {}, {}
    for layout in ("nchw", "nhwc"):
        store = Store(tmp_path / f"store_{layout}")
        engine = build(
            models / "batched_saved_model",
            precision=precision,
            builder="onnxruntime",
            imgsz=(SIZE, SIZE),
            calib_data=frames if precision == "int8" else None,
            flags={"tf": {"layout": layout}},
            store=store,
            out=tmp_path / layout,
            **settings,
        )
        assert engine.spec.model.layout == layout
        engines[layout] = engine.path
        with Detector.open(engine=engine.path, store=store) as detector:
            found[layout] = detector.detect(images, chosen)
        for result in engine.steps:
            if "ranges.json" in result.record.outputs:
                store.copy_out(result.record.outputs["ranges.json"].sha256, tmp_path / "ranges.json")
                ranges[layout] = read_ranges(tmp_path / "ranges.json").tensors
    assert sum(len(each) for each in found["nchw"]) > 20
    for ours, theirs in zip(found["nhwc"], found["nchw"], strict=True):
        np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-3)
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-5)
        np.testing.assert_array_equal(ours.class_ids, theirs.class_ids)
    if precision == "int8":
        assert len(ranges["nchw"]) > 5
        # What is quantized is the first convolution's input, which here is behind the transposition.
        last = {"images" if name == "Transpose/output" else name: value for name, value in ranges["nhwc"].items()}
        assert last == pytest.approx(ranges["nchw"], rel=1e-5)
        return
    # The ONNX itself may be a source again.
    onnx_file = engines["nhwc"]
    again = build(onnx_file, precision="fp32", builder="onnxruntime", store=tmp_path / "again", out=tmp_path / "third")
    with Detector.open(engine=again.path, store=tmp_path / "again") as detector:
        for ours, theirs in zip(detector.detect(images, chosen), found["nchw"], strict=True):
            np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-3)
            np.testing.assert_array_equal(ours.class_ids, theirs.class_ids)
