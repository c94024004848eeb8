"""The semantics of `yolotrt_yolov5.decode`, written down a second time with nothing but plain loops."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from yolotrt_core.types import Selection


class Candidate(NamedTuple):
    score: np.float32
    row: int
    class_id: int
    corners: tuple[np.float32, ...]


def candidates(rows: np.ndarray, selection: Selection) -> list[Candidate]:
    """Return the candidates of one image's rows (N, 5 + C), best first."""
    conf = np.float32(selection.conf)
    found = []
    with np.errstate(all="ignore"):
        for index in np.flatnonzero(rows[:, 4].astype(np.float32) > conf):
            cx, cy, width, height, objectness = rows[index, :5].astype(np.float32)
            half_width, half_height = np.float32(width / np.float32(2)), np.float32(height / np.float32(2))
            corners = (cx - half_width, cy - half_height, cx + half_width, cy + half_height)
            if not all(np.isfinite(corners)):
                continue
            scores = objectness * rows[index, 5:].astype(np.float32)
            good = [(-scores[c], c) for c in np.flatnonzero(np.isfinite(scores) & (scores > conf))]
            if good and not selection.multi_label:
                good = [min(good)]
            found += [Candidate(-s, int(index), int(c), corners) for s, c in good]
    if selection.classes:
        found = [f for f in found if f.class_id in selection.classes]
    return sorted(found, key=lambda f: (-f.score, f.row, f.class_id))


def kept(found: list[Candidate], selection: Selection, offset: float | None = None) -> list[Candidate]:
    """Return what greedy suppression keeps, best first.

    Args:
        found: in the order to take them in.
        offset: None for float64 within each class; else as upstream does it: all classes together,
            `class * offset` added to the coordinates, everything in float32.
    """
    kind = np.float64 if offset is None else np.float32
    corners = np.array([f.corners for f in found], np.float32).reshape(-1, 4)
    ids = np.array([0 if selection.agnostic else f.class_id for f in found], int)
    if offset is not None:
        corners = corners + (ids * np.float32(offset)).astype(np.float32)[:, None]
        ids = np.zeros_like(ids)
    left, top, right, bottom = corners.astype(kind).T
    area = np.maximum(right - left, 0) * np.maximum(bottom - top, 0)
    alive = np.ones(len(found), dtype=bool)
    result = []
    for best in range(len(found)):
        if not alive[best]:
            continue
        result.append(found[best])
        width = np.minimum(right, right[best]) - np.maximum(left, left[best])
        height = np.minimum(bottom, bottom[best]) - np.maximum(top, top[best])
        inter = np.maximum(width, 0) * np.maximum(height, 0)
        union = area + area[best] - inter
        overlap = np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)
        alive &= ~((overlap.astype(np.float64) > selection.iou) & (ids == ids[best]))
    return result
