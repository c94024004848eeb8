"""Upstream's own TensorFlow exports of YOLOv5n against the checkpoint they came from, on 64 COCO images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from yolotrt_core.api import build
from yolotrt_core.datasets.reader import read
from yolotrt_core.evaluation.coco_map import Scored, Truth
from yolotrt_core.inference.letterbox import boxes_to_source, preprocess
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.store.store import Store
from yolotrt_core.types import Detections, Geometry, Layout, ModelSpec, Selection, TensorSpec

pytestmark = [pytest.mark.tf, pytest.mark.slow]

Found = Mapping[str, list[Detections]]

LAST = "yolov5n_saved_model, channels last"
FEW, MANY = Selection(), Selection(conf=0.001, iou=0.6, multi_label=True)


def _detected(weights: Path, data: Path, folder: Path, layout: Layout) -> Found:
    """Return what an fp32 engine of this model finds, as `few` and `many` for each image in order."""
    registry, store = Registry.discover(), Store(folder / "store")
    engine = build(
        weights,
        precision="fp32",
        builder="onnxruntime",
        imgsz=(640, 640),
        flags={"tf": {"layout": layout}},
        store=store,
        out=folder / "out",
    )
    found: Found = {"few": [], "many": []}
    spec, decode = engine.spec.model, registry.postprocessor("yolov5").stage
    builder = registry.get("builder", "onnxruntime").stage
    with builder.open(engine.path, engine.spec, builder.Options(), store.side_cache()) as session:
        for image in sorted((data / "coco" / "images" / "val").glob("*.jpg")):
            images, geometry = preprocess([cv2.imread(str(image))], (640, 640), layout=layout)
            raw = session.infer(images)
            for name, selection in (("few", FEW), ("many", MANY)):
                found[name].extend(decode.decode(raw, spec, geometry, selection, decode.Options()))
    return found


@pytest.fixture(scope="module")
def found(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Found]:
    """What each TensorFlow model finds."""
    names = ("yolov5n_saved_model", "yolov5n_fp16.tflite")
    made = {name: _detected(data / "tf" / name, data, tmp_path_factory.mktemp("tf"), "nchw") for name in names}
    return {**made, LAST: _detected(data / "tf" / names[0], data, tmp_path_factory.mktemp("tf"), "nhwc")}


@pytest.fixture(scope="module")
def upstream(data: Path) -> Mapping[str, list[NDArray[np.float32]]]:
    """What upstream's own code finds with the checkpoint: rows x1 y1 x2 y2 score class."""
    images = sorted(p.stem for p in (data / "coco" / "images" / "val").glob("*.jpg"))
    with np.load(data / "reference" / "yolov5n_detections_val.npz") as arrays:
        return {
            name: [np.asarray(arrays[f"{image}/{key}"]) for image in images]
            for name, key in (("few", "c25"), ("many", "c001"))
        }


def _farthest(ours: Detections, theirs: NDArray[np.float32]) -> float:
    """Return the largest distance of a corner to its own box of the same class, in pixels; inf without one."""
    left, farthest = set(range(len(theirs))), 0.0 if len(ours) == len(theirs) else np.inf
    for box, class_id in zip(ours.boxes, ours.class_ids, strict=True):
        apart = {i: float(np.abs(theirs[i, :4] - box).max()) for i in left if theirs[i, 5] == class_id}
        if not apart:
            return np.inf
        nearest = min(apart, key=lambda i: apart[i])
        farthest = max(farthest, apart[nearest])
        left.remove(nearest)
    return farthest


@pytest.mark.parametrize("name", ["yolov5n_saved_model", LAST])
def test_the_saved_model_finds_what_the_checkpoint_does(
    name: str, found: Mapping[str, Found], upstream: Mapping[str, list[NDArray[np.float32]]]
) -> None:
    pairs = list(zip(found[name]["few"], upstream["few"], strict=True))
    assert sum(len(ours) for ours, _ in pairs) == 315
    worst = max(_farthest(ours, theirs) for ours, theirs in pairs)
    print(f"315 boxes, none farther than {worst:.5f} pixels")
    assert worst <= 0.1
    for ours, theirs in pairs:
        np.testing.assert_allclose(np.sort(ours.scores), np.sort(theirs[:, 4]), atol=1e-5)


def test_half_precision_weights_find_what_they_find_in_tensorflow_lite(
    data: Path, found: Mapping[str, Found], upstream: Mapping[str, list[NDArray[np.float32]]]
) -> None:
    """Rounding the weights moves boxes by less than a pixel, but swaps near-equal candidates on a few images.

    There TensorFlow Lite itself must find what we do, and upstream's box must be among its candidates, behind
    the one that won, or behind the threshold, by at most 0.001 in its score.
    """
    import warnings

    from yolotrt_core.export.output_layout import Rows

    few = found["yolov5n_fp16.tflite"]["few"]
    apart = [_farthest(ours, theirs) for ours, theirs in zip(few, upstream["few"], strict=True)]
    other = [index for index, pixels in enumerate(apart) if pixels > 1.0]
    worst = max(pixels for pixels in apart if pixels <= 1.0)
    print(f"{64 - len(other)} images with the same boxes within {worst:.3f} pixels")
    assert len(other) <= 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorflow as tf

        lite = tf.lite.Interpreter(str(data / "tf" / "yolov5n_fp16.tflite"))
    lite.allocate_tensors()
    registry = Registry.discover()
    decode = registry.postprocessor("yolov5").stage
    rows = Rows((8, 16, 32), 3, "cell", "normalised")  # as the README of the test data has it
    spec = ModelSpec(
        (TensorSpec("images", "float32", (1, 3, 640, 640)),),
        (TensorSpec("output0", "float32", (1, 25200, 85)),),
        tuple(map(str, range(80))),
        (8, 16, 32),
    )
    paths = sorted((data / "coco" / "images" / "val").glob("*.jpg"))
    for index in other:
        images, geometry = preprocess([cv2.imread(str(paths[index]))], (640, 640))
        lite.set_tensor(lite.get_input_details()[0]["index"], np.ascontiguousarray(images.transpose(0, 2, 3, 1)))
        lite.invoke()
        raw = rows.to_project(lite.get_tensor(lite.get_output_details()[0]["index"]), 640, 640)
        (truth,) = decode.decode({"output0": raw}, spec, geometry, FEW, decode.Options())
        theirs = np.concatenate([truth.boxes, truth.scores[:, None], truth.class_ids[:, None]], axis=1)
        assert _farthest(few[index], theirs) <= 0.05
        lost = [row for row in upstream["few"][index] if _apart(row, few[index]) > 1.0]
        assert lost
        for row in lost:
            assert _near_tie(row, raw[0], geometry[0], few[index]) <= 1e-3


def _apart(row: NDArray[np.float32], found: Detections) -> float:
    same = found.class_ids == row[5]
    return float(np.abs(found.boxes[same] - row[:4]).max(axis=1).min(initial=np.inf))


def _near_tie(
    row: NDArray[np.float32], raw: NDArray[np.float32], placed: Geometry, found: Detections, pixels: float = 0.5
) -> float:
    """Return by how little the network's own candidate for a box of upstream's lost; inf if there is none.

    It lost to the threshold of 0.25, or to an overlapping box with a higher score.

    Args:
        row: x1 y1 x2 y2 score class. raw: (N, 85), the network's answer. pixels: how near the candidate must be.
    """
    class_id = int(row[5])
    boxes = np.concatenate([raw[:, :2] - raw[:, 2:4] / 2, raw[:, :2] + raw[:, 2:4] / 2], axis=1)
    far = np.abs(boxes_to_source(boxes, placed) - row[:4]).max(axis=1)
    candidate = int(far.argmin())
    score = float(raw[candidate, 4] * raw[candidate, 5 + class_id])
    if far[candidate] > pixels or abs(score - row[4]) > 2e-3:
        return float("inf")
    if score < FEW.conf:
        return FEW.conf - score
    wide, tall = (np.minimum(row[i + 2], found.boxes[:, i + 2]) - np.maximum(row[i], found.boxes[:, i]) for i in (0, 1))
    common = np.maximum(wide, 0) * np.maximum(tall, 0)
    areas = np.prod(found.boxes[:, 2:] - found.boxes[:, :2], axis=1) + np.prod(row[2:4] - row[:2])
    won = (common / (areas - common) > FEW.iou) & (found.class_ids == class_id) & (found.scores >= score)
    return float((found.scores[won] - score).min(initial=np.inf))


@pytest.mark.parametrize("name", ["yolov5n_saved_model", "yolov5n_fp16.tflite", LAST])
def test_the_same_accuracy_as_the_checkpoint(
    name: str, data: Path, found: Mapping[str, Found], upstream: Mapping[str, list[NDArray[np.float32]]]
) -> None:
    labels = [f"class{i}" for i in range(80)]
    images = read(data / "coco" / "images" / "val", labels).images
    truth = []
    for image in images:
        height, width = cv2.imread(str(image.path)).shape[:2]
        boxes = image.xywh(height, width)
        truth.append(Truth(boxes, image.class_ids, np.zeros(len(boxes), bool), height, width))
    checkpoint = [
        Detections(rows[:, :4].astype(np.float32), rows[:, 4].astype(np.float32), rows[:, 5].astype(np.int64))
        for rows in upstream["many"]
    ]
    want = Scored(truth, checkpoint, labels).accuracy()
    have = Scored(truth, found[name]["many"], labels).accuracy()
    print(f"{name}: mAP50-95 {have.map50_95:.5f}, checkpoint {want.map50_95:.5f}")
    assert want.map50_95 > 0.3
    assert abs(have.map50_95 - want.map50_95) <= 0.002
