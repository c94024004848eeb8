"""onnxruntime's suppression as the aid of ours: what it answers, and that nobody can tell."""

from __future__ import annotations

import numpy as np
import pytest
from brute_force import candidates, kept
from test_yolov5_decode import decode, scene

from yolotrt_core.inference.nms import nms
from yolotrt_core.types import Selection
from yolotrt_yolov5 import onnxruntime_nms

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")


def test_keeps_the_best_of_each_group_in_the_order_given() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10], [50, 50, 60, 60]], np.float32)
    assert onnxruntime_nms.suppress(boxes, np.array([3, 3, 9, 3], np.int32), 0.5).tolist() == [0, 2, 3]
    assert onnxruntime_nms.suppress(boxes, np.array([3, 3, 3, 3], np.int32), 0.5).tolist() == [0, 3]
    assert onnxruntime_nms.suppress(boxes, np.array([3, 3, 3, 3], np.int32), 0.9).tolist() == [0, 1, 3]


@pytest.mark.parametrize("agnostic", [False, True])
def test_is_used_and_gives_what_brute_force_does(agnostic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = onnxruntime_nms.suppress

    def watched(*given: object) -> np.ndarray:
        asked.append(given)
        return real(*given)

    monkeypatch.setattr(onnxruntime_nms, "find", lambda: watched)
    raw = scene(np.random.default_rng(0), 3, 500, 10, 40)
    selection = Selection(conf=0.01, iou=0.5, multi_label=not agnostic, agnostic=agnostic, max_det=100_000)
    for rows, found in zip(raw, decode(raw, selection), strict=True):
        expected = kept(candidates(rows, selection), selection)
        assert found.class_ids.tolist() == [f.class_id for f in expected]
        np.testing.assert_array_equal(found.scores, np.array([f.score for f in expected]))
    assert len(asked) == 6


def test_results_are_the_same_without_it() -> None:
    random = np.random.default_rng(1)
    raw = scene(random, 1, 2000, 6, 60)[0]
    boxes = np.concatenate((raw[:, :2] - raw[:, 2:4] / 2, raw[:, :2] + raw[:, 2:4] / 2), axis=1)
    for iou in (0.001, 0.3, 0.6, 0.99):
        for groups in (None, random.integers(0, 80, len(raw))):
            expected = nms(boxes, raw[:, 4], groups, iou)
            np.testing.assert_array_equal(nms(boxes, raw[:, 4], groups, iou, onnxruntime_nms.suppress), expected)
