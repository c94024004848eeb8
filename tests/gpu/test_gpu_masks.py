"""Instance masks on a GPU, against the CPU's decoding of the same raw output."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from yolotrt_core.inference.letterbox import preprocess
from yolotrt_core.inference.masks import mask_iou
from yolotrt_core.types import Detections, EngineSpec, Selection
from yolotrt_tensorrt.options import TensorRTOptions
from yolotrt_tensorrt.runtime import mask_drawing
from yolotrt_tensorrt.runtime.session import open_session
from yolotrt_yolov5 import segment
from yolotrt_yolov5.device_program import device_program

pytestmark = pytest.mark.gpu

Engine = Callable[[str], tuple[Path, EngineSpec]]
CHOSEN = [Selection(max_det=1000), Selection(conf=0.01, iou=0.6, multi_label=True, max_det=300)]


class NoCache:
    def load(self, name: str, material: object) -> None:
        return None

    def save(self, name: str, material: object, data: bytes) -> None:
        pass


@pytest.fixture(scope="module")
def frames(data: Path) -> list[np.ndarray]:
    files = sorted((data / "coco" / "images" / "val").glob("*.jpg"))
    sizes = [(1080, 1920), (720, 1280), (333, 100), (64, 64), (7, 9)]
    resized = [cv2.resize(cv2.imread(str(file)), size[::-1]) for file, size in zip(files, sizes, strict=False)]
    return [*resized, *(cv2.imread(str(file)) for file in files[: 32 - len(sizes)])]


def compare(found: Detections, expected: Detections) -> int:
    """Compare with the CPU's; return the number of masks with pixels."""
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    assert found.masks is not None and expected.masks is not None
    np.testing.assert_array_equal(found.masks.windows, expected.masks.windows)
    drawn = 0
    for index in range(len(expected)):
        if expected.masks.window(index).any():
            drawn += 1
            one, other = found.masks.window(index), expected.masks.window(index)
            alike = mask_iou(found.masks, index, expected.masks, index)
            assert alike >= 0.999 or np.count_nonzero(one != other) <= 1, (index, alike, one.shape)
        else:
            assert np.count_nonzero(found.masks.window(index)) <= 1
    return drawn


@pytest.mark.parametrize("variant", ["seg-fp16-b1", "seg-fp16-b32"])
@pytest.mark.parametrize("chosen", CHOSEN, ids=str)
def test_masks_are_the_cpus(
    engine: Engine, frames: list[np.ndarray], variant: str, chosen: Selection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mask_drawing, "_FIRST_AREA", 32 << 10)  # so that some are drawn again
    path, spec = engine(variant)
    drawn = 0
    with open_session(path, spec, TensorRTOptions(), NoCache()) as session:
        program = device_program(spec.model)
        batch = int(spec.model.inputs[0].shape[0])
        for _ in range(3):  # launched one by one, recorded, replayed
            found = session.detect(frames, program, chosen)
        for first in range(0, len(frames), batch):
            images, placed = preprocess(frames[first : first + batch], (640, 640))
            expected = segment.decode(session.infer(images), spec.model, placed, chosen)
            for ours, theirs in zip(found[first : first + batch], expected, strict=True):
                drawn += compare(ours, theirs)
    assert drawn > 100
