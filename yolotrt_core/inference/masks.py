"""Instance masks from coefficients and prototypes, at the source image's resolution, and their run lengths.

Each mask is sigmoid(coefficients . prototypes), a map of the network input at a fraction of its size. It is cut to the
part that the image fills, enlarged bilinearly to the image (half-pixel centers), cropped to its box, and is an object
where it exceeds 0.5. Only the box's part is enlarged, block by block.

Source:
    ultralytics/yolov5 v7.0, utils/segment/general.py, `process_mask_native`: the same pixels up to float32 rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from yolotrt_core.types import Masks

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Columns that are enlarged at once: a block reads few columns of the small map, so the product stays narrow.
_BLOCK = 128


class _Axis(NamedTuple):
    """Bilinear sampling along one axis: for each target pixel its two source pixels and the weight of the second."""

    first: NDArray[np.intp]
    second: NDArray[np.intp]
    weight: NDArray[np.float32]


def masks_from_prototypes(
    coefficients: NDArray[np.float32],
    prototypes: NDArray[np.float32],
    boxes: NDArray[np.float32],
    size: tuple[int, int],
) -> Masks:
    """Compute the masks of one image.

    Args:
        coefficients: float32 (M, K), of each object. prototypes: float32 (K, h, w), of the network input.
        boxes: float32 (M, 4), x1 y1 x2 y2 in source-image pixels.
        size: (height, width) of the source image in pixels.
    """
    import numpy as np

    height, width = size
    depth, rows, columns = prototypes.shape
    gain = min(rows / height, columns / width)
    left, top = int((columns - width * gain) / 2), int((rows - height * gain) / 2)
    right, bottom = int(columns - (columns - width * gain) / 2), int(rows - (rows - height * gain) / 2)
    filled = np.ascontiguousarray(prototypes[:, top:bottom, left:right], np.float32)
    small = (coefficients @ filled.reshape(depth, -1)).reshape(-1, bottom - top, right - left)
    with np.errstate(over="ignore"):  # exp of a large value is infinite, and its sigmoid 0
        np.negative(small, out=small)
        np.exp(small, out=small)
        small += 1
        np.reciprocal(small, out=small)
    # A pixel belongs to the box if x1 <= x < x2, so the window begins at the ceiling.
    windows = np.clip(np.ceil(boxes), 0, (width, height, width, height)).astype(np.int32)
    windows[:, 2:] = np.maximum(windows[:, 2:], windows[:, :2])
    down, across = _axis(bottom - top, height), _axis(right - left, width)
    packed = tuple(_enlarged(mask, window, down, across) for mask, window in zip(small, windows.tolist(), strict=True))
    return Masks(size, windows, packed)


def _axis(source: int, target: int) -> _Axis:
    import numpy as np

    scale = np.float32(source) / np.float32(target)
    place = np.maximum(scale * (np.arange(target, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), 0)
    first = np.minimum(place.astype(np.intp), source - 1)
    return _Axis(first, np.minimum(first + 1, source - 1), place - first.astype(np.float32))


def _enlarged(mask: NDArray[np.float32], window: list[int], down: _Axis, across: _Axis) -> NDArray[np.uint8]:
    """Return the packed bitmap of one window; `mask` is float32 (h, w), values 0..1."""
    import numpy as np

    x1, y1, x2, y2 = window
    out = np.empty((y2 - y1, x2 - x1), np.bool_)
    if not out.size:
        return np.packbits(out, axis=1)
    weight = down.weight[y1:y2, None]
    begin, end = across.first[x1], across.second[x2 - 1] + 1
    needed = mask[:, begin:end]
    tall = needed[down.first[y1:y2]] * (1 - weight) + needed[down.second[y1:y2]] * weight
    for start in range(x1, x2, _BLOCK):
        stop = min(start + _BLOCK, x2)
        source = slice(int(across.first[start]) - int(begin), int(across.second[stop - 1]) + 1 - int(begin))
        sampling = np.zeros((source.stop - source.start, stop - start), np.float32)
        at, share = np.arange(stop - start), across.weight[start:stop]
        offset = source.start + int(begin)
        # At the border both source pixels are the same one, so the weights are added.
        sampling[across.first[start:stop] - offset, at] = 1 - share
        sampling[across.second[start:stop] - offset, at] += share
        np.greater(tall[:, source] @ sampling, 0.5, out=out[:, start - x1 : stop - x1])
    return np.packbits(out, axis=1)


def run_lengths(masks: Masks, index: int) -> list[int]:
    """Return the lengths of alternating runs of 0 and 1 of one mask, by columns, as COCO's uncompressed RLE.

    Source:
        cocodataset/cocoapi, the `counts` of an uncompressed run-length encoding.
    """
    import numpy as np

    height, width = masks.size
    x1, y1, _, y2 = masks.windows[index].tolist()
    columns = np.ascontiguousarray(masks.window(index).T)
    tall = y2 - y1
    if tall < height:  # a run ends with its column
        columns = np.pad(columns, ((0, 0), (0, 1)))
    edges = np.flatnonzero(np.diff(columns.ravel(), prepend=False, append=False))
    column, row = np.divmod(edges, tall + (tall < height))
    at = (x1 + column) * height + y1 + row
    counts: list[int] = np.diff(at, prepend=0, append=height * width).tolist()
    return counts[:-1] if len(counts) > 1 and counts[-1] == 0 else counts


def mask_iou(one: Masks, first: int, other: Masks, second: int) -> float:
    """Return the IoU of two masks of the same image, 0..1; 0 where both are without pixels."""
    import numpy as np

    a, b = one.windows[first], other.windows[second]
    x1, y1 = np.maximum(a[:2], b[:2]).tolist()
    x2, y2 = np.minimum(a[2:], b[2:]).tolist()
    mine, theirs = one.window(first), other.window(second)
    total = int(np.count_nonzero(mine)) + int(np.count_nonzero(theirs))
    if x1 >= x2 or y1 >= y2:
        return 0.0
    parts = (w[y1 - at[1] : y2 - at[1], x1 - at[0] : x2 - at[0]] for w, at in ((mine, a), (theirs, b)))
    shared = int(np.count_nonzero(np.logical_and(*parts)))
    return shared / (total - shared) if shared else 0.0
