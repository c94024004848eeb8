"""The official YOLOv5n on COCO images, against figures of an independent run with pycocotools."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from fake_stages import FakeExporter, FakeSession, fake_plugin, image_spec
from yolotrt_core.api import Detector
from yolotrt_core.datasets import reader
from yolotrt_core.errors import UsageError
from yolotrt_core.evaluation.coco_map import Bootstrap
from yolotrt_core.evaluation.evaluator import Evaluator, open_framework
from yolotrt_core.evaluation.predictions import predict
from yolotrt_core.evaluation.selection import SELECTION
from yolotrt_core.pipeline.build_options import BuildSettings, resolve
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.plugin.stages import SourceInfo
from yolotrt_core.store.store import Store
from yolotrt_core.types import BuildRequest, Detections, EngineSpec, ModelSource


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.discover()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    opened = Store(tmp_path_factory.mktemp("evaluate") / "store")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def detector(data: Path, registry: Registry, store: Store) -> Iterator[Detector]:
    weights = data / "weights" / "yolov5n.pt"
    with Detector.open(weights, store=store, registry=registry, precision="fp32", builder="onnxruntime") as opened:
        yield opened


@pytest.mark.slow
def test_fp32_has_the_known_accuracy(data: Path, detector: Detector, registry: Registry, store: Store) -> None:
    """0.5004 / 0.3357: onnxruntime, upstream's letterbox and thresholds, pycocotools 2.0.11."""
    judge = Evaluator(reader.read(data / "coco", detector.labels), store, registry, bootstrap=Bootstrap(0))
    result = judge.evaluate(detector)
    assert (result.images, result.boxes) == (64, 440)
    assert result.map50.value == pytest.approx(0.5004, abs=0.0005)
    assert result.map50_95.value == pytest.approx(0.3357, abs=0.0005)
    again = judge.evaluate(detector)
    assert again.accuracy == result.accuracy
    assert again.predictions == result.predictions


@pytest.mark.slow
def test_the_torch_model_has_it_too(data: Path, registry: Registry, store: Store) -> None:
    settings = BuildSettings(weights=data / "weights" / "yolov5n.pt", imgsz=(640, 640))
    with open_framework(settings, registry) as model:
        assert model.spec.builder == "torch"
        judge = Evaluator(reader.read(data / "coco", model.labels), store, registry, bootstrap=Bootstrap(0))
        result = judge.evaluate(model)
    assert result.map50.value == pytest.approx(0.5004, abs=0.0005)
    assert result.map50_95.value == pytest.approx(0.3357, abs=0.0005)


def test_a_framework_runs_a_model_at_the_size_that_its_engine_would_have(store: Store, tmp_path: Path) -> None:
    class Own(FakeExporter):
        runs_sources = True

        def inspect(self, source: ModelSource) -> SourceInfo:
            return SourceInfo(imgsz=(64, 96))

        def open_source(self, source: ModelSource, request: BuildRequest, options: Any) -> FakeSession:
            return FakeSession(1.0, EngineSpec(image_spec(request, "fake"), "fp32", "text", {}))

    registry = Registry.of(fake_plugin(exporters=[Own()]))
    weights = tmp_path / "model.txt"
    weights.write_text("2")
    settings = BuildSettings(weights=weights)
    planned = resolve(settings, registry).request
    assert (planned.height, planned.width) == (64, 96)
    assert open_framework(settings, registry).input_size == (64, 96)
    assert open_framework(replace(settings, imgsz=(32, 32)), registry).input_size == (32, 32)


def test_predictions_come_back_bit_for_bit(
    data: Path, detector: Detector, registry: Registry, store: Store, tmp_path: Path
) -> None:
    files = sorted((data / "coco" / "images" / "val").iterdir())[:3]
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    listed = [*files, *files[:2], broken, *files[:2], *files]
    first = predict(detector, listed, SELECTION, store=store, registry=registry)
    again = predict(detector, listed, SELECTION, store=store, registry=registry)
    assert (first.from_cache, again.from_cache) == (False, True)
    assert [i for i, f in enumerate(first.found) if f is None] == [5]
    direct = detector.detect([cv2.imread(str(f)) for f in files], SELECTION)
    for index, expected in zip(first.read[:3], direct, strict=True):
        for found in (first.found[index], again.found[index]):
            assert isinstance(found, Detections)
            np.testing.assert_array_equal(found.boxes, expected.boxes)
            np.testing.assert_array_equal(found.scores, expected.scores)
            np.testing.assert_array_equal(found.class_ids, expected.class_ids)


def test_too_many_unreadable_images(
    data: Path, detector: Detector, registry: Registry, store: Store, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    good = sorted((data / "coco" / "images" / "val").iterdir())[0]
    with pytest.raises(UsageError, match="1 of 2 images cannot be read"):
        predict(detector, [good, broken], SELECTION, store=store, registry=registry)
