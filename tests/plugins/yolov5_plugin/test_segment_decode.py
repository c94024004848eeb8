"""Decoding of segmentation output, against the detection decoding and the published formula."""

from __future__ import annotations

import numpy as np
import pytest

from yolotrt_core.errors import UsageError
from yolotrt_core.inference.letterbox import geometry
from yolotrt_core.inference.masks import masks_from_prototypes
from yolotrt_core.types import ModelSpec, Selection, TensorSpec
from yolotrt_yolov5 import decode, segment

CLASSES, MASKS, ROWS = 3, 4, 200
PLACED = geometry((48, 60), (64, 64))


def spec() -> ModelSpec:
    return ModelSpec(
        inputs=(TensorSpec("images", "float32", (2, 3, 64, 64)),),
        outputs=(
            TensorSpec("output0", "float32", (2, ROWS, 5 + CLASSES + MASKS)),
            TensorSpec("output1", "float32", (2, MASKS, 16, 16)),
        ),
        labels=("a", "b", "c"),
        strides=(8, 16, 32),
        head="yolov5_seg",
        task="segment",
    )


def raw(dtype: type = np.float32) -> dict[str, np.ndarray]:
    random = np.random.default_rng(3)
    rows = random.random((2, ROWS, 5 + CLASSES + MASKS), dtype=np.float32)
    rows[..., :2] *= 64
    rows[..., 2:4] = rows[..., 2:4] * 30 + 2
    rows[..., 5 + CLASSES :] = random.normal(size=(2, ROWS, MASKS)) * 4
    prototypes = random.normal(size=(2, MASKS, 16, 16))
    return {"output0": rows.astype(dtype), "output1": prototypes.astype(dtype)}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("selection", [Selection(), Selection(0.01, 0.6, multi_label=True, max_det=7)])
def test_boxes_are_those_of_a_detection_head(selection: Selection, dtype: type) -> None:
    given = raw(dtype)
    found = segment.decode(given, spec(), [PLACED, PLACED], selection)
    plain = decode.decode({"output0": given["output0"][..., : 5 + CLASSES]}, spec(), [PLACED, PLACED], selection)
    for one, other in zip(found, plain, strict=True):
        assert len(one) > 3 and one.truncated == other.truncated
        assert np.array_equal(one.boxes, other.boxes)
        assert np.array_equal(one.scores, other.scores)
        assert np.array_equal(one.class_ids, other.class_ids)


def test_each_mask_is_of_its_boxs_row_and_scaled_by_its_objectness() -> None:
    given = raw()
    found = segment.decode(given, spec(), [PLACED, PLACED], Selection(conf=0.5))
    for rows, prototypes, one in zip(given["output0"], given["output1"], found, strict=True):
        assert one.masks is not None and len(one.masks) == len(one)
        scores = rows[:, 4:5] * rows[:, 5 : 5 + CLASSES]
        for index in range(len(one)):
            (row,) = np.flatnonzero(scores[:, one.class_ids[index]] == one.scores[index])
            coefficients = rows[row, 5 + CLASSES :] * rows[row, 4]
            expected = masks_from_prototypes(
                coefficients[None], prototypes, one.boxes[index : index + 1].round(), (48, 60)
            )
            assert np.array_equal(one.masks.full(index), expected.full(0))


@pytest.mark.parametrize("prototypes", [None, np.zeros((2, MASKS, 16)), np.zeros((1, MASKS, 16, 16))])
def test_refuses_outputs_without_prototypes(prototypes: np.ndarray | None) -> None:
    given = {"output0": raw()["output0"], **({} if prototypes is None else {"output1": prototypes})}
    with pytest.raises(UsageError, match="has the output `output1`"):
        segment.decode(given, spec(), [PLACED, PLACED], Selection())


def test_refuses_other_columns() -> None:
    given = raw()
    with pytest.raises(UsageError, match=r"has the shape \(images, boxes, 12\), found \(2, 200, 11\)"):
        segment.decode({**given, "output0": given["output0"][..., :-1]}, spec(), [PLACED, PLACED], Selection())
