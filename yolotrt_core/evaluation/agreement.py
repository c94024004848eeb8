"""Agreement of the detections of two engines on the same images, without labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from yolotrt_core.inference.masks import mask_iou
from yolotrt_core.types import Detections

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Boxes, and masks, of one class match at COCO's lowest IoU threshold.
_SAME_IOU = 0.5


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement of two sets of detections, or of best classes: an image then counts as one box.

    Attributes:
        expected, found: how many boxes each has. matched: pairs of one class that overlap by half or more, with their
            boxes and, of a segmentation model, with their masks.
        drift: mean absolute difference in score of the pairs, 0..1.
    """

    expected: int
    found: int
    matched: int
    drift: float

    @property
    def boxes(self) -> int:
        """Number of boxes of both sides."""
        return self.expected + self.found

    @property
    def common(self) -> int:
        """Number of boxes that are in a pair."""
        return 2 * self.matched

    @property
    def share(self) -> float:
        """Share of matched boxes, 0..1; 1 without any box."""
        return self.common / self.boxes if self.boxes else 1.0


def compare_detections(expected: Sequence[Detections], found: Sequence[Detections]) -> Agreement:
    """Compare detections image by image; each box is in at most one pair, the best-scored choose first."""
    matched, drift = 0, 0.0
    for one, other in zip(expected, found, strict=True):
        pairs = _pairs(one, other)
        matched += len(pairs)
        scores = [each.scores if each.classes is None else each.classes.scores for each in (one, other)]
        drift += sum(abs(float(scores[0][i]) - float(scores[1][j])) for i, j in pairs)
    totals = (sum(map(comparable, expected)), sum(map(comparable, found)))
    return Agreement(*totals, matched, drift / matched if matched else 0.0)


def comparable(found: Detections) -> int:
    """Return how much of an image is compared: its boxes, or of a classification model its best class."""
    return len(found) if found.classes is None else 1


def _pairs(one: Detections, other: Detections) -> list[tuple[int, int]]:
    """Return the indices of pairs: of boxes, or of the classes of two images if they have the same best one."""
    import numpy as np

    if one.classes is not None and other.classes is not None:
        best = one.classes.top(1)
        return [(best[0], best[0])] if best == other.classes.top(1) else []
    overlaps = _overlaps(one.boxes, other.boxes)
    overlaps[one.class_ids[:, None] != other.class_ids[None, :]] = 0
    if one.masks is not None and other.masks is not None:
        for i, j in np.argwhere(overlaps >= _SAME_IOU).tolist():
            if one.masks.window(i).any() or other.masks.window(j).any():  # two without pixels are the same
                overlaps[i, j] = min(overlaps[i, j], mask_iou(one.masks, i, other.masks, j))
    pairs = []
    for i in range(len(one)):
        if len(other) and overlaps[i].max() >= _SAME_IOU:
            j = int(overlaps[i].argmax())
            pairs.append((i, j))
            overlaps[:, j] = 0
    return pairs


def _overlaps(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the IoU of every box (M, 4) with every other (N, 4): float64 (M, N).

    Sides shorter than a pixel count as one pixel: boxes without area have no IoU, and of others, rounding decides.
    """
    import numpy as np

    with np.errstate(invalid="ignore"):  # a broken engine's boxes may be infinite: they overlap nothing
        a, b = (_with_area(boxes.astype(np.float64)) for boxes in (one[:, None], other[None, :]))
        inner = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None).prod(-1)
        union = sum((box[..., 2:] - box[..., :2]).prod(-1) for box in (a, b)) - inner
        return np.asarray(np.nan_to_num(inner / union, nan=0.0))


def _with_area(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    import numpy as np

    low, high = boxes[..., :2], boxes[..., 2:]
    middle, short = (low + high) / 2, high - low < 1
    sides = (np.where(short, middle - 0.5, low), np.where(short, middle + 0.5, high))
    return np.concatenate(sides, axis=-1)
