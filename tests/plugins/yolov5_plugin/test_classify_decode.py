"""Decoding of classification output, against softmax in float64."""

from __future__ import annotations

import numpy as np
import pytest

from yolotrt_core.errors import UsageError
from yolotrt_core.inference.letterbox import geometry
from yolotrt_core.plugin.options import NoOptions
from yolotrt_core.types import Detections, ModelSpec, Selection, TensorSpec
from yolotrt_yolov5.stages import Yolov5ClassifyPostprocessor

LABELS = tuple(f"kind {number}" for number in range(12))
PLACED = geometry((48, 48), (64, 64))


def decode(raw: dict[str, np.ndarray]) -> list[Detections]:
    spec = ModelSpec(
        inputs=(TensorSpec("images", "float32", (2, 3, 64, 64)),),
        outputs=(TensorSpec("output0", "float32", (2, 12)),),
        labels=LABELS,
        strides=(32,),
        head="yolov5_cls",
        task="classify",
    )
    stage = Yolov5ClassifyPostprocessor()
    return stage.decode(raw, spec, [PLACED, PLACED], Selection(), NoOptions())


@pytest.mark.parametrize(("dtype", "scale"), [(np.float32, 3), (np.float16, 3), (np.float32, 1e4)])
def test_scores_are_the_softmax(dtype: type, scale: float) -> None:
    logits = np.random.default_rng(2).normal(0, scale, (2, 12)).astype(dtype)
    given = logits.copy()
    found = decode({"output0": logits})
    assert np.array_equal(logits, given)
    powers = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    for one, expected, own in zip(found, powers / powers.sum(1, keepdims=True), logits, strict=True):
        assert one.classes is not None and one.classes.scores.dtype == np.float32
        np.testing.assert_allclose(one.classes.scores, expected, rtol=1e-5, atol=1e-7)
        assert one.classes.top(3) == sorted(range(12), key=lambda class_id: -own[class_id])[:3] or scale > 10
        assert (len(one), one.boxes.shape, one.masks) == (0, (0, 4), None)


def test_equal_scores_go_by_class_id() -> None:
    (first, _) = decode({"output0": np.zeros((2, 12), np.float32)})
    assert first.classes is not None
    assert first.classes.top() == [0, 1, 2, 3, 4]
    assert first.classes.top(20) == list(range(12))


@pytest.mark.parametrize(
    "raw",
    [
        {"other": np.zeros((2, 12), np.float32)},
        {"output0": np.zeros((2, 11), np.float32)},
        {"output0": np.zeros((1, 12), np.float32)},
        {"output0": np.zeros((2, 12, 1), np.float32)},
        {"output0": np.zeros((2, 12), np.int32)},
        {"output0": np.full((2, 12), np.nan, np.float32)},
    ],
)
def test_another_output_is_refused(raw: dict[str, np.ndarray]) -> None:
    with pytest.raises(UsageError, match="output"):
        decode(raw)
