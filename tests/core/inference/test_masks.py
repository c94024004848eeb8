"""Instance masks against the published formula in PyTorch, and run lengths against COCO's own library."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from faster_coco_eval import mask as coco
from torch.nn import functional

from yolotrt_core.inference.masks import mask_iou, masks_from_prototypes, run_lengths
from yolotrt_core.types import Masks

SIZES = [(72, 128), (128, 72), (64, 64), (33, 200), (427, 640)]


def scene(size: tuple[int, int], count: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return coefficients, smooth prototypes, and boxes: whole image, empty, on the border, and random."""
    random = np.random.default_rng(size[0])
    coarse = torch.from_numpy(random.normal(size=(1, 8, 10, 10)).astype(np.float32))
    prototypes = functional.interpolate(coarse, (40, 40), mode="bicubic")[0].numpy()
    corners = np.sort(random.random((count, 2, 2)) * (size[1], size[0]), axis=1).reshape(count, 4)
    corners[0] = 0, 0, size[1], size[0]
    corners[1, 2] = corners[1, 0]
    corners[2] = size[1] - 1, size[0] - 1, size[1], size[0]
    return random.normal(size=(count, 8)).astype(np.float32), prototypes, corners.astype(np.float32)


def published(coefficients: np.ndarray, prototypes: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Compute bool (M, height, width) over the whole image, as the paper of the method describes it."""
    maps = torch.from_numpy(np.einsum("mk,khw->mhw", coefficients, prototypes)).sigmoid()
    rows, columns = maps.shape[1:]
    gain = min(rows / size[0], columns / size[1])
    left, top = (columns - size[1] * gain) / 2, (rows - size[0] * gain) / 2
    maps = maps[:, int(top) : int(rows - top), int(left) : int(columns - left)]
    large = functional.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0].numpy()
    y, x = np.mgrid[: size[0], : size[1]]
    x1, y1, x2, y2 = (side[:, None, None] for side in boxes.T)
    return (large > 0.5) & (x >= x1) & (x < x2) & (y >= y1) & (y < y2)


@pytest.mark.parametrize("size", SIZES)
def test_masks_are_those_of_the_published_formula(size: tuple[int, int]) -> None:
    coefficients, prototypes, boxes = scene(size)
    found = masks_from_prototypes(coefficients, prototypes, boxes, size)
    expected = published(coefficients, prototypes, boxes, size)
    assert expected.any() and not expected[1].any()
    for index, mask in enumerate(expected):
        # Where the enlarged map is within rounding of 0.5, a pixel may differ.
        assert np.count_nonzero(found.full(index) != mask) <= 1
    assert len(found) == len(boxes)


def test_no_objects() -> None:
    none = masks_from_prototypes(
        np.zeros((0, 8), np.float32), np.zeros((8, 4, 4), np.float32), np.zeros((0, 4), np.float32), (9, 9)
    )
    assert len(none) == 0


@pytest.mark.parametrize("size", SIZES)
def test_run_lengths_are_cocos(size: tuple[int, int]) -> None:
    found = masks_from_prototypes(*scene(size), size)
    for index in range(len(found)):
        expected = coco.encode(np.asfortranarray(found.full(index).astype(np.uint8)))
        counts = coco.frPyObjects({"size": list(size), "counts": run_lengths(found, index)}, *size)
        assert counts["counts"] == expected["counts"]


def test_run_lengths_join_full_columns() -> None:
    whole = Masks((2, 3), np.array([[1, 0, 3, 2]], np.int32), (np.packbits(np.ones((2, 2), bool), axis=1),))
    assert run_lengths(whole, 0) == [2, 4]


@pytest.mark.parametrize("size", SIZES)
def test_mask_iou_is_that_of_whole_masks(size: tuple[int, int]) -> None:
    found = masks_from_prototypes(*scene(size), size)
    for i in range(len(found)):
        for j in range(len(found)):
            one, other = found.full(i), found.full(j)
            union = np.count_nonzero(one | other)
            expected = np.count_nonzero(one & other) / union if union else 0
            assert mask_iou(found, i, found, j) == pytest.approx(expected, abs=1e-12)
