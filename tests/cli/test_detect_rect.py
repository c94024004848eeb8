"""`detect --rect on` gives the boxes of upstream's detect.py, which pads each image to its own shape."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from .conftest import Run

# x1 y1 x2 y2 score class, of upstream yolov5 v7.0 (letterbox with auto=True, conf 0.25, iou 0.45, fp32 on a CPU).
_UPSTREAM = {
    "000000000139.jpg": [
        (2.38, 164.46, 156.37, 270.18, 0.87, 62), (291.43, 217.40, 352.54, 318.06, 0.85, 56),
        (411.38, 158.56, 470.18, 300.50, 0.68, 0), (365.96, 217.20, 426.16, 314.80, 0.61, 56),
        (224.14, 176.84, 266.68, 213.25, 0.55, 58), (446.87, 119.29, 462.52, 142.20, 0.54, 74),
        (407.49, 218.08, 441.22, 310.32, 0.33, 56), (383.46, 171.85, 402.36, 213.22, 0.30, 0),
        (237.85, 187.77, 256.86, 213.45, 0.27, 75),
    ],  # 448x640
    "000000000285.jpg": [(11.24, 89.22, 586.00, 640.00, 0.49, 21)],  # 640x608
    "000000000724.jpg": [(121.61, 72.91, 254.00, 226.68, 0.96, 11)],  # 640x480
}  # fmt: skip


@pytest.mark.slow
def test_boxes_are_upstreams(run: Run, data: Path, tmp_path: Path) -> None:
    for module in ("torch", "onnx", "onnxruntime"):
        pytest.importorskip(module)
    folder = tmp_path / "images"
    folder.mkdir()
    for name in _UPSTREAM:
        shutil.copy(data / "coco" / "images" / "val" / name, folder / name)
    weights = ("--weights", str(data / "weights" / "yolov5n.pt"), "--builder", "onnxruntime", "--precision", "fp32")
    for annotate in ("on", "off"):  # by different ways of reading
        options = ("--dynamic", "on", "--rect", "on", "--annotate", annotate, "--show-timing", "--json")
        ran = run("detect", *weights, *options, str(folder))
        assert ran.code == 0, ran.err
        document = json.loads(ran.out)
        assert document["milliseconds_per_frame"]["infer"] > 0
        for image in document["images"]:
            expected = np.array(_UPSTREAM[Path(image["path"]).name])
            found = np.array([(*d["box"], d["score"], d["class_id"]) for d in image["detections"]])
            assert found.shape == expected.shape
            np.testing.assert_array_equal(found[:, 5], expected[:, 5])
            assert np.abs(found[:, :4] - expected[:, :4]).max() < 0.1
            assert np.abs(found[:, 4] - expected[:, 4]).max() < 0.01


def test_a_static_engine_is_refused(run: Run, warm: Path) -> None:
    ran = run("detect", "--builder", "onnxruntime", "--rect", "on", "sample", store=warm / "store")
    assert ran.code == 2
    assert "`--rect` needs a dynamic-shape engine" in ran.err
    assert "--dynamic on" in ran.err
