"""Masks survive the file of predictions."""

from __future__ import annotations

import numpy as np

from yolotrt_core.evaluation.stored_masks import StoredMasks, masks_from_arrays, masks_to_arrays
from yolotrt_core.types import Masks


def image(size: tuple[int, int], *windows: tuple[int, int, int, int], share: float = 0.5) -> Masks:
    random = np.random.default_rng(len(windows))
    bitmaps = [random.random((y2 - y1, x2 - x1)) < share for x1, y1, x2, y2 in windows]
    return Masks(
        size, np.array(windows, np.int32).reshape(-1, 4), tuple(np.packbits(bitmap, axis=1) for bitmap in bitmaps)
    )


def test_round_trip() -> None:
    images = [
        image((20, 30), (0, 0, 30, 20), (3, 4, 12, 5), (7, 7, 7, 9), (29, 0, 30, 20)),
        image((9, 9)),
        image((9, 17), (0, 1, 17, 9), (3, 0, 5, 9), share=1),
        image((9, 17), (0, 1, 17, 9), share=0),
    ]
    sizes = [masks.size for masks in images]
    arrays = masks_to_arrays([StoredMasks.of(masks) for masks in images])
    again = masks_from_arrays(arrays, [len(masks) for masks in images], sizes)
    for one, stored in zip(images, again, strict=True):
        assert stored is not None
        other = stored.unpacked()
        assert (one.size, len(one), len(stored)) == (other.size, len(other), len(other))
        for index in range(len(other)):
            assert np.array_equal(one.full(index), other.full(index))


def test_models_without_masks() -> None:
    assert masks_to_arrays([None, None]) == {}
    assert list(masks_from_arrays({}, [0, 0], [(1, 1), (1, 1)])) == [None, None]
