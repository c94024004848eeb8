"""Candidates of one image -> its detections: thresholds, classes, NMS, and boxes in source-image pixels.

What is left to a postprocessor is to read its head's output. `select` does the rest with these exact semantics; any
other implementation (such as the kernels of a GPU) must give the same detections.

1. Candidates. Box r has four corners and a score for each class, float32. (r, c) is a candidate if its score is greater
   than `conf` (rounded to float32, strict), and the score and the four corners are finite. So a NaN or infinity removes
   one class, or the whole row if it is in the box.
2. Multi-label. With `multi_label` every candidate counts. Without, a row keeps the candidate
   with its highest score, at a tie the lowest class id.
3. Class filter. With `classes`, candidates of other classes are dropped. It comes after step 2: a row whose best
   class is not selected gives no candidate, not its second best.
4. Order. Score descending; at equal scores row ascending, then class ascending (candidate order).
5. Suppression, greedy in that order, within one image and class (`agnostic`: within one image): a
   candidate is dropped if its IoU with one kept before it is greater than `iou` (strict). IoU is taken from
   the float32 corners with float64 arithmetic: area = max(x2 - x1, 0) * max(y2 - y1, 0),
   inter = max(min x2 - max x1, 0) * max(min y2 - max y1, 0), IoU = inter / (area + area' - inter),
   compared with `iou` as a float64. Where the union is 0 the IoU is 0: boxes without area neither
   suppress nor are suppressed. No coordinate offset per class, no cap on candidates, no time limit.
6. `max_det`: the first `max_det` kept candidates in the order of step 4, over all classes, are the
   result; `truncated` is the number of the other kept ones.
7. Back to the source image: (x - pad) / scale in float32, pad and scale rounded to float32 first,
   then clipped to 0..width and 0..height (`yolotrt_core.inference.letterbox.boxes_to_source`). Suppression comes
   before this, in input pixels.

Float32 arithmetic may decide step 5 wherever its IoU is further from `iou` than its own rounding
(about 1e-6 relative); nearer pairs need float64.

All steps but 5 follow ultralytics/yolov5 v7.0, utils/general.py, `non_max_suppression` and
`scale_boxes`. Step 5 differs intentionally: upstream separates classes by adding class * 7680 to the
coordinates in float32, which leaves steps of 1/16 pixel for the last of 80 classes, keeps at most
30000 candidates and stops after a time limit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from yolotrt_core.errors import UsageError
from yolotrt_core.inference.input_shapes import shape_text
from yolotrt_core.inference.letterbox import boxes_to_source
from yolotrt_core.inference.nms import nms
from yolotrt_core.types import Detections, Geometry, Selection, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from yolotrt_core.inference.nms import Approximate


class Candidates(NamedTuple):
    """Candidate detections of one image, by ascending row, then class.

    Attributes:
        boxes: float32 (n, 4), x1 y1 x2 y2 in input pixels. scores: float32 (n,). class_ids: (n,).
        rows: (n,), index of each one's row in the output.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    class_ids: NDArray[np.intp]
    rows: NDArray[np.intp]

    def only(self, which: NDArray[np.intp]) -> Candidates:
        """Return the candidates of these indices."""
        return Candidates(
            self.boxes.take(which, axis=0),
            self.scores.take(which),
            self.class_ids.take(which),
            self.rows.take(which),
        )


def select(
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    placed: Geometry,
    selection: Selection,
    rows: NDArray[np.intp] | None = None,
    approximate: Approximate | None = None,
) -> tuple[Detections, NDArray[np.intp]]:
    """Select the detections of one image, as the module describes.

    A caller that knows rows without a candidate leaves them out first: of thousands, a few have one.

    Args:
        boxes: float32 (n, 4), x1 y1 x2 y2 in input pixels. scores: float32 (n, C), of each class.
        placed: position of the image in its input.
        rows: (n,), index of each one's row in the output, ascending; default: 0 to n - 1.
        approximate: as for `yolotrt_core.inference.nms.nms`; does not change the result.

    Returns:
        Its detections, and the row of each.

    Raises:
        UsageError: a threshold outside 0..1.
    """
    import numpy as np

    check_thresholds(selection)
    # Overflow and NaN come from invalid rows, which are filtered out by value.
    with np.errstate(all="ignore"):
        found = _candidates(boxes, scores, np.arange(len(boxes)) if rows is None else rows, selection)
        groups = None if selection.agnostic else found.class_ids
        kept = nms(found.boxes, found.scores, groups, selection.iou, approximate)
        chosen = found.only(kept[: selection.max_det])
        detections = Detections(
            boxes=boxes_to_source(chosen.boxes, placed),
            scores=chosen.scores,
            class_ids=chosen.class_ids.astype(np.int64, copy=False),
            truncated=len(kept) - len(chosen.scores),
        )
    return detections, chosen.rows


def raw_output(raw: Mapping[str, NDArray[Any]], tensor: TensorSpec, images: int) -> NDArray[np.float32]:
    """Return an output of the network for some images as float32.

    Args:
        raw: the outputs by name. tensor: the output's declaration; a dimension that is a text, and the first, may have
            any size.

    Raises:
        UsageError: it is missing, not float32 or float16, or of another shape.
    """
    import numpy as np

    output, declared = raw.get(tensor.name), tensor.shape[1:]
    if (
        output is None
        or output.dtype not in (np.float32, np.float16)
        or output.ndim != len(tensor.shape)
        or len(output) != images
        or any(have != want for have, want in zip(output.shape[1:], declared, strict=True) if isinstance(want, int))
    ):
        found = ", ".join(f"`{name}` {values.dtype} {shape_text(values.shape)}" for name, values in raw.items())
        wanted = shape_text((images, *declared))
        raise UsageError(f"expected the output `{tensor.name}`, float {wanted}, found {found or 'none'}")
    return output.astype(np.float32, copy=False)


def corners(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turn boxes (n, 4) of cx, cy, w, h into x1, y1, x2, y2: c - w / 2 and c + w / 2, each rounded to float32."""
    import numpy as np

    half = boxes[:, 2:] / np.float32(2)
    return np.concatenate((boxes[:, :2] - half, boxes[:, :2] + half), axis=1)


def check_thresholds(selection: Selection) -> None:
    """Raise a UsageError for a threshold outside 0..1."""
    for name, value in (("conf", selection.conf), ("iou", selection.iou)):
        if not 0 <= value <= 1:
            raise UsageError(f"`{name}` must be a number from 0 to 1, found {value:g}")
    if selection.max_det < 0:
        raise UsageError(f"`max_det` must be an integer of at least 0, found {selection.max_det}")


def _candidates(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], index: NDArray[np.intp], selection: Selection
) -> Candidates:
    """Do steps 1 to 3."""
    import numpy as np

    conf = np.float32(selection.conf)
    if not _all_finite(boxes):
        sound = np.flatnonzero(np.logical_and.reduce(np.isfinite(boxes), axis=1))
        boxes, scores, index = boxes.take(sound, axis=0), scores.take(sound, axis=0), index.take(sound)
    if selection.multi_label and scores.shape[1] > 1:
        return _every_class(boxes, scores, index, conf, selection)
    best = scores.argmax(axis=1)
    highest = scores[np.arange(len(best)), best]
    if not _all_finite(highest):  # a NaN or infinity hides the other classes of its row
        scores = np.where(np.isfinite(scores), scores, np.float32(-1))
        best = scores.argmax(axis=1)
        highest = scores[np.arange(len(best)), best]
    keep: NDArray[np.bool_] = highest > conf
    if selection.classes:
        keep &= np.isin(best, selection.classes)
    return Candidates(boxes, highest, best, index).only(keep.nonzero()[0])


def _every_class(
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    rows: NDArray[np.intp],
    conf: np.float32,
    selection: Selection,
) -> Candidates:
    import numpy as np

    flat = np.flatnonzero(scores > conf)
    highest = scores.ravel().take(flat)
    if not _all_finite(highest):
        finite = np.isfinite(highest)
        flat, highest = flat[finite], highest[finite]
    box_of, class_ids = np.divmod(flat, scores.shape[1])
    if selection.classes:
        selected = np.isin(class_ids, selection.classes)
        box_of, class_ids, highest = box_of[selected], class_ids[selected], highest[selected]
    found = Candidates(boxes.take(box_of, axis=0), highest, class_ids, rows.take(box_of))
    if selection.agnostic and selection.iou < 1:
        return found.only(_best_of_each_box(found, box_of))
    return found


def _best_of_each_box(found: Candidates, box_of: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return the candidates that are not suppressed by a better class of the same box.

    A box that suppresses the best one suppresses the others too, and so does the best one itself if it has an
    area. So `agnostic` with `multi_label` need not compare boxes with their copies.
    """
    import numpy as np

    order = np.lexsort((found.class_ids, -found.scores, box_of))
    later = np.zeros(len(order), dtype=np.bool_)
    later[1:] = box_of[order[1:]] == box_of[order[:-1]]
    later &= np.logical_and.reduce(found.boxes[:, 2:] > found.boxes[:, :2], axis=1).take(order)
    return np.sort(order[~later])


def _all_finite(values: NDArray[np.float32]) -> bool:
    """Check that all values are finite; also False where only their sum overflows."""
    import numpy as np

    return math.isfinite(np.add.reduce(values, axis=None))
