"""A head whose boxes are the last dimension and that has no objectness: the example's, through kernels and session."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fake_session import CLASSES, SIDE, Opened, network, same, sample_images
from kernel_emulation import Emulated, compiled

from head_reference import reference
from yolotrt_core.errors import UsageError
from yolotrt_core.inference.letterbox import preprocess
from yolotrt_core.plugin.stages import DeviceProgram
from yolotrt_core.types import Selection

HEAD = Path(__file__).resolve().parents[3] / "examples" / "yolov8" / "yolotrt_yolov8" / "head.cu"
PROGRAM = DeviceProgram("output0", CLASSES, "// compiled by the test", rows_last=True)


def columns_of(images: np.ndarray) -> np.ndarray:
    """The rows of `network` without objectness, (B, 4 + classes, rows); some of their values are not finite."""
    rows = np.delete(network(images), 4, axis=2)
    rows[:, 4:] *= images.mean(axis=(1, 2, 3))[:, None, None]
    random = np.random.default_rng(1)
    for wrong in (np.nan, np.inf, -np.inf):
        rows[:, random.integers(0, rows.shape[1], 5), random.integers(0, rows.shape[2], 5)] = wrong
    return np.ascontiguousarray(rows.transpose(0, 2, 1))


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Emulated:
    return compiled("float32", tmp_path_factory.mktemp("rows_last"), head=HEAD)


@pytest.mark.parametrize(
    "chosen",
    [
        Selection(conf=0.05, max_det=20),
        Selection(conf=0.0, iou=0.3, multi_label=True),
        Selection(conf=0.1, iou=0.3, multi_label=True, agnostic=True, classes=(0, 2), max_det=5),
    ],
    ids=str,
)
def test_boxes_in_columns_are_those_of_rows(
    emulated: Emulated, chosen: Selection, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Opened(emulated, monkeypatch, network=columns_of)
    frames = sample_images(5)
    images, placed = preprocess(frames, (SIDE, SIDE))
    # An objectness of 1 leaves every score as it is.
    rows = np.insert(columns_of(images).transpose(0, 2, 1), 4, 1, axis=2)
    wanted = [reference(each, at.source, (SIDE, SIDE), chosen) for each, at in zip(rows, placed, strict=True)]
    assert sum(len(each.scores) for each in wanted) > 10
    same(held.session.detect(frames, PROGRAM, chosen), wanted)
    with pytest.raises(UsageError, match=r"expected an output `other` of \(B, columns, rows\)"):
        held.session.detect(frames, DeviceProgram("other", CLASSES, "", rows_last=True), chosen)
    held.session.close()
