"""Decode float (B, 4 + C, N): cx, cy, w, h in input pixels, then a score in 0..1 for each class."""

import numpy as np

from yolotrt_core.errors import UsageError
from yolotrt_core.inference.letterbox import boxes_to_source
from yolotrt_core.inference.nms import nms
from yolotrt_core.types import Detections


def decode(raw, spec, geometry, selection):
    output, height = raw.get("output0"), 4 + len(spec.labels)
    boxes = spec.outputs[0].shape[2]
    fits = output is not None and output.ndim == 3 and output.shape[1] == height and output.dtype.kind == "f"
    if not fits or (isinstance(boxes, int) and output.shape[2] != boxes):
        found = ", ".join(f"`{name}` {values.dtype} {values.shape}" for name, values in raw.items())
        raise UsageError(f"expected `output0`, float (images, {height}, {boxes}), found {found}")
    return [_image(each.astype(np.float32).T, placed, selection) for each, placed in zip(output, geometry, strict=True)]


def _image(rows, placed, selection):
    scores = rows[:, 4:]
    if selection.multi_label:
        index, classes = np.nonzero(scores > selection.conf)
    else:
        index = np.flatnonzero(scores.max(1) > selection.conf)
        classes = scores[index].argmax(1)
    if selection.classes:
        wanted = np.isin(classes, selection.classes)
        index, classes = index[wanted], classes[wanted]
    centre, half, best = rows[index, :2], rows[index, 2:4] / 2, scores[index, classes]
    boxes = np.concatenate([centre - half, centre + half], axis=1)
    kept = nms(boxes, best, None if selection.agnostic else classes, selection.iou)
    cut = max(0, len(kept) - selection.max_det)
    kept = kept[: selection.max_det]
    return Detections(boxes_to_source(boxes[kept], placed), best[kept], classes[kept].astype(np.int64), cut)
