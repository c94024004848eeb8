"""Masks of many images as a few arrays, for files of predictions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from yolotrt_core.types import Detections, Masks

if TYPE_CHECKING:
    from numpy.typing import NDArray


def masks_to_arrays(found: Sequence[Detections]) -> dict[str, NDArray[Any]]:
    """Return the masks of all images; nothing of a model without.

    Returns:
        `windows` int32 (N, 4) and `bits` uint8, the bytes of all bitmaps one after the other; see `Masks`.
    """
    import numpy as np

    masks = [d.masks for d in found if d.masks is not None]
    if not masks:
        return {}
    bits = [packed.ravel() for m in masks for packed in m.packed]
    return {
        "windows": np.concatenate([m.windows for m in masks]),
        "bits": np.concatenate([np.zeros(0, np.uint8), *bits]),
    }


def masks_from_arrays(
    arrays: Mapping[str, Any], counts: Sequence[int], sizes: Sequence[Sequence[int]]
) -> Iterator[Masks | None]:
    """Yield the masks of each image; None of each for a model without.

    Args:
        arrays: as `masks_to_arrays` returned. counts: objects of each image. sizes: its (height, width).
    """
    if "windows" not in arrays:
        yield from [None] * len(counts)
        return
    windows, bits = arrays["windows"], arrays["bits"]
    place = begin = 0
    for count, (height, width) in zip(counts, sizes, strict=True):
        packed = []
        own = windows[place : place + count]
        place += count
        for x1, y1, x2, y2 in own.tolist():
            row = (x2 - x1 + 7) // 8
            packed.append(bits[begin : begin + (y2 - y1) * row].reshape(y2 - y1, row))
            begin += (y2 - y1) * row
        yield Masks((height, width), own, tuple(packed))
