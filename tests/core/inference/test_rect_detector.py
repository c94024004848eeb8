"""The network size for each image, and that the boxes come back to the image's own pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from yolotrt_core.errors import UsageError
from yolotrt_core.inference.detector import Detector
from yolotrt_core.inference.rect_detector import RectDetector
from yolotrt_core.plugin.stages import Session
from yolotrt_core.types import Detections, EngineSpec, ModelSpec, Selection, ShapeRange, TensorSpec


def _spec(profiles: tuple[ShapeRange, ...]) -> EngineSpec:
    model = ModelSpec(
        (TensorSpec("images", "float32", ("batch", 3, "height", "width")),), (), ("thing",), (8, 16, 32), "fake"
    )
    return EngineSpec(model, "fp32", "fake", {}, profiles)


class _Head:
    """Reports one box: the whole network input, so that it must come back as the whole image and its padding."""

    stage: Any

    def __init__(self) -> None:
        self.stage = self

    def decode(self, raw: Any, spec: Any, geometry: Any, selection: Any, options: Any) -> list[Detections]:
        (placed,) = geometry
        _, _, height, width = raw["images"].shape
        assert placed.target == (height, width)
        box = np.array([[0, 0, *placed.source[::-1]]], np.float32)
        return [Detections(box, np.array([0.9], np.float32), np.zeros(1, np.int64))]


class _Session(Session):
    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.seen: list[tuple[int, ...]] = []

    def infer(self, images: np.ndarray) -> dict[str, np.ndarray]:
        self.seen.append(images.shape)
        return {"images": images}


ANY = (ShapeRange((1, 64, 64), (1, 640, 640), (1, 640, 640)),)


@pytest.mark.parametrize(
    ("image", "size"),
    [
        ((480, 640), (480, 640)),
        ((427, 640), (448, 640)),
        ((640, 427), (640, 448)),
        ((1080, 1920), (384, 640)),  # 360 rows, on to the next multiple of 32
        ((100, 100), (640, 640)),  # small images are enlarged, as in the square letterbox
        ((10, 640), (64, 640)),  # not below what the profile takes
    ],
)
def test_size(image: tuple[int, int], size: tuple[int, int]) -> None:
    session = _Session(_spec(ANY))
    rect = RectDetector(Detector(session, _Head(), None))  # type: ignore[arg-type]
    assert rect.size_for(image) == size
    (found,) = rect.stream([np.zeros((*image, 3), np.uint8)], Selection())
    assert session.seen == [(1, 3, *size)]
    np.testing.assert_array_equal(found.boxes, [[0, 0, image[1], image[0]]])


@pytest.mark.parametrize("profiles", [(), (ShapeRange((2, 64, 64), (2, 64, 64), (2, 64, 64)),)])
def test_one_shape_is_refused(profiles: tuple[ShapeRange, ...]) -> None:
    spec = _spec(profiles)
    if not profiles:
        model = ModelSpec((TensorSpec("images", "float32", (1, 3, 64, 64)),), (), ("thing",), (32,), "fake")
        spec = EngineSpec(model, "fp32", "fake", {})
    detector = Detector(_Session(spec), _Head(), None)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="needs a dynamic-shape engine"):
        RectDetector(detector)
