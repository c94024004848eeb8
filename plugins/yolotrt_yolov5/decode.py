"""Decoding of raw YOLOv5 head output to boxes in source-image pixels.

These are the exact semantics. Any other implementation (such as a GPU device program) must give the same
detections.

All values are float32, float16 input is widened first. `fl()` is one rounding to float32.

1. Candidates of one image. A row r is cx, cy, w, h, objectness, class scores. For each class c
   score(r, c) = fl(objectness * class score); corners x1 = fl(cx - fl(w / 2)), y1 = fl(cy - fl(h / 2)),
   x2 = fl(cx + fl(w / 2)), y2 = fl(cy + fl(h / 2)). No fused multiply-add: it skips a rounding.
   (r, c) is a candidate if objectness > conf, score > conf (`conf` rounded to float32, both strict),
   and the score and the four corners are finite. So a NaN or infinity removes one class, or the whole
   row if it is in the box or the objectness.
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

Steps 1 to 4 and 6 to 7 follow ultralytics/yolov5 v7.0, utils/general.py, `non_max_suppression` and
`scale_boxes`. Step 5 differs intentionally: upstream separates classes by adding class * 7680 to the
coordinates in float32, which leaves steps of 1/16 pixel for the last of 80 classes, keeps at most
30000 candidates and stops after a time limit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from yolotrt_core.errors import UsageError
from yolotrt_core.inference.letterbox import boxes_to_source
from yolotrt_core.inference.nms import nms
from yolotrt_core.types import Detections, Geometry, ModelSpec, Selection
from yolotrt_yolov5 import onnxruntime_nms

if TYPE_CHECKING:
    from numpy.typing import NDArray

OUTPUT = "output0"


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


def decode(
    raw: Mapping[str, NDArray[Any]], spec: ModelSpec, geometry: Sequence[Geometry], selection: Selection
) -> list[Detections]:
    """Decode a batch's raw output to one Detections per image, as the module describes.

    Args:
        raw: "output0" -> float32 or float16 (B, N, 5 + C); cx, cy, w, h in input pixels,
            objectness and class scores.
        spec: the network; its labels are the C classes.
        geometry: position of each of the B images in its input.

    Raises:
        UsageError: an output of another name, rank, width or dtype, or a threshold outside 0..1.
    """
    output = checked_output(raw, spec, len(geometry))
    check_thresholds(selection)
    return [decode_image(rows, placed, selection)[0] for rows, placed in zip(output, geometry, strict=True)]


def checked_output(
    raw: Mapping[str, NDArray[Any]], spec: ModelSpec, images: int, coefficients: int = 0
) -> NDArray[Any]:
    """Return the rows of a batch, float (B, N, 5 + C + coefficients); see `decode` for errors.

    Args:
        coefficients: columns after the classes, of a segmentation head.
    """
    output = raw.get(OUTPUT)
    if output is None:
        found = ", ".join(f"`{name}`" for name in raw) or "none"
        raise UsageError(f"a YOLOv5 detection head has the output `{OUTPUT}`, found {found}")
    width = 5 + len(spec.labels) + coefficients
    if not spec.labels:
        raise UsageError("a YOLOv5 detection head needs at least one class, but the model has none")
    if output.ndim != 3 or output.shape[2] != width:
        raise UsageError(
            f"output `{OUTPUT}` of a YOLOv5 head with {len(spec.labels)} classes has the shape (images, boxes, "
            f"{width}), found {tuple(output.shape)}",
            hint="segmentation models and other heads are not supported; for a detection model pass its own labels",
        )
    if output.dtype not in (np.float32, np.float16):
        raise UsageError(f"output `{OUTPUT}` of a YOLOv5 head is float32 or float16, found {output.dtype}")
    if len(output) != images:
        raise UsageError(f"output `{OUTPUT}` has {len(output)} images, but the input had {images}")
    return output


def check_thresholds(selection: Selection) -> None:
    """Raise a UsageError for a threshold outside 0..1."""
    for name, value in (("conf", selection.conf), ("iou", selection.iou)):
        if not 0 <= value <= 1:
            raise UsageError(f"`{name}` must be a number from 0 to 1, found {value:g}")
    if selection.max_det < 0:
        raise UsageError(f"`max_det` must be an integer of at least 0, found {selection.max_det}")


def decode_image(rows: NDArray[Any], placed: Geometry, selection: Selection) -> tuple[Detections, NDArray[np.intp]]:
    """Decode one image.

    Args:
        rows: float32 or float16 (N, 5 + C).

    Returns:
        Its detections, and the row of each.
    """
    # Overflow and NaN come from invalid rows, which are filtered out by value.
    with np.errstate(all="ignore"):
        found = _candidates(rows, selection)
        groups = None if selection.agnostic else found.class_ids
        kept = nms(found.boxes, found.scores, groups, selection.iou, onnxruntime_nms.find())
        chosen = found.only(kept[: selection.max_det])
        detections = Detections(
            boxes=boxes_to_source(chosen.boxes, placed),
            scores=chosen.scores,
            class_ids=chosen.class_ids.astype(np.int64, copy=False),
            truncated=len(kept) - len(chosen.scores),
        )
    return detections, chosen.rows


def _candidates(rows: NDArray[Any], selection: Selection) -> Candidates:
    """Do steps 1 to 3 for one image's rows, (N, 5 + C)."""
    conf = np.float32(selection.conf)
    # `conf` must not be rounded to the output's float16.
    likely: NDArray[np.bool_] = rows[:, 4].astype(np.float32, copy=False) > conf
    index = likely.nonzero()[0]
    rows = rows.take(index, axis=0).astype(np.float32, copy=False)
    half = rows[:, 2:4] / np.float32(2)
    boxes: NDArray[np.float32] = np.concatenate((rows[:, :2] - half, rows[:, :2] + half), axis=1)
    if not _all_finite(boxes):
        sound = np.flatnonzero(np.logical_and.reduce(np.isfinite(boxes), axis=1))
        rows, boxes, index = rows.take(sound, axis=0), boxes.take(sound, axis=0), index.take(sound)
    scores = rows[:, 5:] * rows[:, 4:5]
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
    order = np.lexsort((found.class_ids, -found.scores, box_of))
    later = np.zeros(len(order), dtype=np.bool_)
    later[1:] = box_of[order[1:]] == box_of[order[:-1]]
    later &= np.logical_and.reduce(found.boxes[:, 2:] > found.boxes[:, :2], axis=1).take(order)
    return np.sort(order[~later])


def _all_finite(values: NDArray[np.float32]) -> bool:
    """Check that all values are finite; also False where only their sum overflows."""
    return math.isfinite(np.add.reduce(values, axis=None))
