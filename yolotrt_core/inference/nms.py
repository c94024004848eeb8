"""Exact greedy non-maximum suppression without limits on boxes or time.

The result equals the plain algorithm in float64. The implementation is vectorized: the best remaining boxes are
resolved among themselves, then remove the boxes they suppress, and so on. Overlaps are compared in float32; the few
pairs within its rounding error of the threshold are decided in float64.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.floating[Any]]
    # Greedy suppression with errors for overlaps within APPROXIMATE_ERROR of the threshold: takes
    # boxes (n, 4) sorted best first, their groups (n,) and the threshold; returns ascending indices.
    Approximate = Callable[[NDArray[np.float32], NDArray[np.int32], float], NDArray[np.intp]]

_FEW = 24  # a plain loop is fastest up to this number
# The fastest of about 100 combinations on COCO images at confidence 0.001, where half or double of any one
# costs about 5%.
_HEAD = 64  # boxes resolved in one step
_ALL = 140  # fewer boxes are all resolved in one step
_BUCKET = 600  # small groups are merged up to this number of boxes
_ALONE = 200  # larger groups get their own bucket
_COLUMNS = 1024  # boxes compared with kept ones at once, to fit the L2 cache

# Half-width of the undecided band, in areas. The error of float32 intersections, areas and their difference is below
# 12 roundings of 2**-24 of the smaller area near the threshold.
_BAND = 2e-6

# The error of IoU in float32 is below 17 roundings of 2**-24.
APPROXIMATE_ERROR = 2e-6
_APPROXIMATE_MIN = 250  # boxes; with fewer, loading the approximate NMS does not pay off
_APPROXIMATE_MAX = 10_000  # boxes; onnxruntime compares all kept boxes of a group with all others

_kept_memory = threading.local()


def nms(
    boxes_xyxy: NDArray[np.float32],
    scores: NDArray[np.float32],
    groups: NDArray[np.integer[Any]] | None,
    iou: float,
    approximate: Approximate | None = None,
) -> NDArray[np.intp]:
    """Return the indices of the boxes kept by greedy suppression, best first.

    Boxes are sorted by descending score, then ascending index. A box is suppressed if its IoU with an
    earlier kept box of its group is greater than `iou`. Areas and intersections are computed in float64;
    a box with x2 <= x1 or y2 <= y1 has no area, overlaps nothing and is kept.

    Args:
        boxes_xyxy: float32 (n, 4), x1 y1 x2 y2, finite.
        scores: float32 (n,), finite, at least 0.
        groups: integers (n,), at least 0 and small (class ids); None: one group.
        iou: threshold, 0..1.
        approximate: a faster suppression to try first; does not change the result.
    """
    import numpy as np

    if not len(scores):
        return np.empty(0, dtype=np.intp)
    if len(scores) <= _FEW:
        return _few(boxes_xyxy, scores, groups, iou)
    order = _best_first(scores)
    grouped = np.zeros(len(order), dtype=np.int32) if groups is None else groups.take(order).astype(np.int32)
    sorted_boxes = boxes_xyxy.take(order, axis=0)
    if approximate is not None and _APPROXIMATE_MIN <= len(order) <= _APPROXIMATE_MAX:
        certain = _between(approximate, sorted_boxes, grouped, iou)
        if certain is not None:
            return order.take(certain)
    columns = _columns(sorted_boxes, iou)
    if len(order) <= _BUCKET:
        return order.take(np.concatenate(_greedy(columns, grouped, np.arange(len(order)), iou)))
    # Groups are independent, so they are processed in buckets, which have fewer pairs.
    bucket = _buckets(np.bincount(grouped)).take(grouped)
    by_bucket = np.argsort(bucket, kind="stable")
    columns, grouped = columns.take(by_bucket, axis=1), grouped.take(by_bucket)
    kept, start = [], 0
    for stop in np.cumsum(np.bincount(bucket)).tolist():
        kept += _greedy(columns[:, start:stop], grouped[start:stop], by_bucket[start:stop], iou)
        start = stop
    return order.take(np.sort(np.concatenate(kept)))


def _between(
    approximate: Approximate, boxes_xyxy: NDArray[np.float32], groups: NDArray[np.int32], iou: float
) -> NDArray[np.intp] | None:
    """Return the exact result if two approximate runs prove it, else None.

    The first run's threshold exceeds `iou` by the error bound, so each box it drops overlaps a better kept one by
    more than `iou`. The second run's threshold is below `iou` by the bound; if it drops none of the kept boxes, no
    two of them overlap by more than `iou`. Only the result of greedy suppression has both properties.
    """
    import numpy as np

    plain = iou + APPROXIMATE_ERROR <= 1 and _moderate(boxes_xyxy, iou)
    # Implementations differ for boxes without area.
    if not plain or not np.logical_and.reduce(boxes_xyxy[:, 2:] > boxes_xyxy[:, :2], axis=None):
        return None
    kept = approximate(boxes_xyxy, groups, iou + APPROXIMATE_ERROR)
    again = approximate(boxes_xyxy.take(kept, axis=0), groups.take(kept), iou - APPROXIMATE_ERROR)
    return kept if len(again) == len(kept) else None


def _buckets(counts: NDArray[np.intp]) -> NDArray[np.uint16]:
    """Assign groups to buckets, large groups first and separately."""
    import numpy as np

    largest_first = np.argsort(-counts)
    room = counts.take(largest_first)
    room = np.where(room >= _ALONE, -(-room // _BUCKET) * _BUCKET, room)
    buckets = np.empty(len(counts), dtype=np.uint16)
    buckets[largest_first] = (np.cumsum(room) - room) // _BUCKET
    return buckets


def _few(
    boxes_xyxy: NDArray[np.float32], scores: NDArray[np.float32], groups: NDArray[np.integer[Any]] | None, iou: float
) -> NDArray[np.intp]:
    """Run `nms` box by box, by its definition; a Python float is a float64."""
    import numpy as np

    corners, ids = boxes_xyxy.tolist(), [0] * len(scores) if groups is None else groups.tolist()
    kept: list[int] = []
    chosen: list[tuple[Any, float, float, float, float, float]] = []
    for index in sorted(range(len(scores)), key=scores.tolist().__getitem__, reverse=True):
        (left, top, right, bottom), group = corners[index], ids[index]
        area = (right - left) * (bottom - top) if right > left and bottom > top else 0.0
        for other, x1, y1, x2, y2, other_area in chosen:
            if other != group:
                continue
            width = (right if right < x2 else x2) - (left if left > x1 else x1)
            height = (bottom if bottom < y2 else y2) - (top if top > y1 else y1)
            if width > 0 and height > 0:
                inter = width * height
                if inter / (other_area + area - inter) > iou:
                    break
        else:
            kept.append(index)
            chosen.append((group, left, top, right, bottom, area))
    return np.array(kept, dtype=np.intp)


def _best_first(scores: NDArray[np.float32]) -> NDArray[np.intp]:
    """Sort by descending score, then ascending index, with one sort of unique 64-bit keys."""
    import numpy as np

    positive = scores + np.float32(0)  # turns -0 into 0, so that bits sort like values
    keys = (~positive.view(np.uint32)).astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= np.arange(len(keys), dtype=np.uint64)
    keys.sort()
    keys &= np.uint64(0xFFFFFFFF)
    return keys.astype(np.intp)


def _columns(boxes_xyxy: NDArray[np.float32], iou: float) -> Floats:
    """Arrange boxes for comparison: rows x1, y1, x2, y2, share, low, high.

    IoU > t is the same as intersection - share(b) > share(a), where share = area * t / (1 + t).
    `low` and `high` are share(a) without and with the undecided band.
    """
    import numpy as np

    columns = np.empty((7, len(boxes_xyxy)), dtype=np.float32 if _moderate(boxes_xyxy, iou) else np.float64)
    columns[:4] = boxes_xyxy.T
    area = _area(columns[2:4] - columns[:2])
    share = iou / (1 + iou)
    band = min(_BAND, share / 2)
    for row, part in enumerate((share, share - band, share + band), start=4):
        np.multiply(area, part, out=columns[row])
    return columns


def _moderate(boxes_xyxy: NDArray[np.float32], iou: float) -> bool:
    """Return whether float32 areas neither overflow nor underflow, nor are as small as the band."""
    if iou < 1e-3 or not (boxes_xyxy.max() < 1e15 and boxes_xyxy.min() > -1e15):
        return False
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    return bool(sides.min() > 1e-15 or (sides[sides < 1e-15] <= 0).all())


def _greedy(
    columns: Floats, groups: NDArray[np.integer[Any]], ranks: NDArray[np.intp], iou: float
) -> list[NDArray[np.intp]]:
    """Return the ranks of the kept boxes; all arguments are sorted best first."""
    import numpy as np

    if not len(ranks):
        return []
    any_of = np.logical_or.reduce  # the method `any` takes twice as long for small arrays
    mixed = groups.max() != groups.min()
    memory = _memory(columns.dtype)
    kept = []
    while len(ranks):
        size = len(ranks) if len(ranks) <= _ALL else _HEAD
        head, head_groups = columns[:, :size], groups[:size]
        over = _overlaps(head, head, iou, memory)
        if mixed:
            over &= head_groups[:, None] == head_groups
        best = _resolve(over)
        kept.append(ranks.take(best))
        if size == len(ranks):
            break
        winners, winner_groups = head.take(best, axis=1), head_groups.take(best)[:, None]
        alive = []
        for start in range(size, len(ranks), _COLUMNS):
            stop = start + _COLUMNS
            over = _overlaps(winners, columns[:, start:stop], iou, memory)
            if mixed:
                over &= winner_groups == groups[start:stop]
            alive.append((~any_of(over, axis=0)).nonzero()[0] + start)
        rest = alive[0] if len(alive) == 1 else np.concatenate(alive)
        columns, groups, ranks = columns.take(rest, axis=1), groups.take(rest), ranks.take(rest)
    return kept


def _resolve(over: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Return the indices of kept boxes.

    Args:
        over: [i, j] -> boxes i and j overlap too much; sorted best first. Overwritten.
    """
    import numpy as np

    over &= _earlier()[: len(over), : len(over)]
    # A box is kept if no kept box overlaps it. Each iteration resolves at least the best unresolved box,
    # in practice chains of a few.
    any_of = np.logical_or.reduce
    keep = ~any_of(over, axis=0)
    while (again := ~any_of(over[keep], axis=0)).tobytes() != keep.tobytes():
        keep = again
    best: NDArray[np.intp] = keep.nonzero()[0]
    return best


@cache
def _earlier() -> NDArray[np.bool_]:
    """Return the matrix i < j for the boxes of one step."""
    import numpy as np

    return ~np.tri(_ALL, dtype=np.bool_)


def _overlaps(first: Floats, second: Floats, iou: float, memory: Floats) -> NDArray[np.bool_]:
    """Return for each pair of the two sets (h, w) whether its IoU is greater than `iou`.

    Args:
        first, second: (7, h) and (7, w), see `_columns`.
        memory: see `_memory`.
    """
    import numpy as np

    shape = (2, first.shape[1], second.shape[1])
    count = 2 * shape[1] * shape[2]
    sides, left_top = memory[:count].reshape(shape), memory[count : 2 * count].reshape(shape)
    np.minimum(first[2:4, :, None], second[2:4, None], out=sides)
    sides -= np.maximum(first[:2, :, None], second[:2, None], out=left_top)
    inter, height = sides
    # Clipping one side at 0 is enough: a negative other side cannot make the product positive.
    np.maximum(inter, 0, out=inter)
    inter *= height
    inter -= second[4]
    over: NDArray[np.bool_] = inter > first[5, :, None]
    sure = inter > first[6, :, None]
    if over.tobytes() != sure.tobytes():
        i, j = np.nonzero(over > sure)
        a, b = first[:4, i].astype(np.float64), second[:4, j].astype(np.float64)
        sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
        over[i, j] = _iou(_area(sides), _area(a[2:] - a[:2]) + _area(b[2:] - b[:2])) > iou
    return over


def _memory(dtype: np.dtype[Any]) -> Floats:
    """Return scratch memory for one comparison, reused per thread.

    Fresh memory for each comparison would cost as much as the arithmetic.
    """
    import numpy as np

    most = 4 * max(_ALL * _ALL, _HEAD * _COLUMNS)
    held: NDArray[np.uint8] | None = getattr(_kept_memory, "held", None)
    if held is None:
        held = _kept_memory.held = np.empty(most * np.dtype(np.float64).itemsize, dtype=np.uint8)
    return held.view(dtype)


def _iou(inter: NDArray[np.float64], areas: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return intersection over union; `areas` are the sums of both areas. Overwrites its arguments."""
    import numpy as np

    areas -= inter
    # Without any area the union is 0, and so is the IoU; other unions are larger.
    np.maximum(areas, 5e-324, out=areas)
    inter /= areas
    return inter


def _area(sides: NDArray[Any]) -> NDArray[Any]:
    """Multiply width and height, (2, ...), clipped at 0; overwrites them."""
    import numpy as np

    np.maximum(sides, 0, out=sides)
    area: NDArray[Any] = sides[0] * sides[1]
    return area
