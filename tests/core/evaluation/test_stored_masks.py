"""Masks survive the file of predictions."""

from __future__ import annotations

import numpy as np

from yolotrt_core.evaluation.stored_masks import masks_from_arrays, masks_to_arrays
from yolotrt_core.types import Detections, Masks


def image(size: tuple[int, int], *windows: tuple[int, int, int, int]) -> Detections:
    random = np.random.default_rng(len(windows))
    bitmaps = [random.random((y2 - y1, x2 - x1)) > 0.5 for x1, y1, x2, y2 in windows]
    masks = Masks(
        size, np.array(windows, np.int32).reshape(-1, 4), tuple(np.packbits(bitmap, axis=1) for bitmap in bitmaps)
    )
    count = len(windows)
    return Detections(
        np.zeros((count, 4), np.float32), np.zeros(count, np.float32), np.zeros(count, np.int64), 0, masks
    )


def test_round_trip() -> None:
    images = [
        image((20, 30), (0, 0, 30, 20), (3, 4, 12, 5), (7, 7, 7, 9)),
        image((9, 9)),
        image((9, 17), (0, 1, 17, 9)),
    ]
    again = masks_from_arrays(masks_to_arrays(images), [len(d) for d in images], [(20, 30), (9, 9), (9, 17)])
    for one, other in zip(images, again, strict=True):
        assert one.masks is not None and other is not None
        assert (one.masks.size, len(one.masks)) == (other.size, len(other))
        for index in range(len(other)):
            assert np.array_equal(one.masks.full(index), other.full(index))


def test_models_without_masks() -> None:
    empty = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    assert masks_to_arrays([empty]) == {}
    assert list(masks_from_arrays({}, [0, 0], [(1, 1), (1, 1)])) == [None, None]
