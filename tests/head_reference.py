"""The semantics of decoding a YOLOv5 head, one candidate after the other, as plainly as they can be written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from yolotrt_core.inference.letterbox import geometry
from yolotrt_core.types import Selection


@dataclass
class Result:
    boxes: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray
    truncated: int


def reference(raw: np.ndarray, shape: tuple[int, int], target: tuple[int, int], chosen: Selection) -> Result:
    """Decode one image's raw output (rows, 5 + classes); shape is the source image's (height, width)."""
    f32 = np.float32
    raw = raw.astype(f32)
    candidates = []
    for row, values in enumerate(raw):
        x, y, w, h, objectness = values[:5]
        with np.errstate(all="ignore"):
            box = (x - w / f32(2), y - h / f32(2), x + w / f32(2), y + h / f32(2))
            scores = values[5:] * objectness
        if not (objectness > f32(chosen.conf) and np.isfinite(objectness) and np.isfinite(box).all()):
            continue
        passing = [(-s, row, c) for c, s in enumerate(scores) if s > f32(chosen.conf) and np.isfinite(s)]
        if not chosen.multi_label:
            passing = sorted(passing)[:1]
        candidates += [(*p, box) for p in passing if not chosen.classes or p[2] in chosen.classes]
    kept: list[Any] = []
    for candidate in sorted(candidates, key=lambda c: c[:3]):
        rivals = [k for k in kept if chosen.agnostic or k[2] == candidate[2]]
        if not any(iou(k[3], candidate[3]) > chosen.iou for k in rivals):
            kept.append(candidate)
    placed = geometry(shape, target)
    pad = np.array([*placed.pad, *placed.pad], f32)
    boxes = np.array([k[3] for k in kept], f32).reshape(-1, 4)
    boxes = np.clip((boxes - pad) / f32(placed.scale), 0, np.array([shape[1], shape[0]] * 2, f32))
    first = slice(0, chosen.max_det)
    return Result(
        boxes[first],
        np.array([-k[0] for k in kept], f32)[first],
        np.array([k[2] for k in kept], np.int64)[first],
        max(0, len(kept) - chosen.max_det),
    )


def iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    ax1, ay1, ax2, ay2 = (float(v) for v in a)
    bx1, by1, bx2, by2 = (float(v) for v in b)
    inter = max(min(ax2, bx2) - max(ax1, bx1), 0.0) * max(min(ay2, by2) - max(ay1, by1), 0.0)
    area_a, area_b = max(ax2 - ax1, 0.0) * max(ay2 - ay1, 0.0), max(bx2 - bx1, 0.0) * max(by2 - by1, 0.0)
    union = area_a + area_b - inter
    return inter / union if union > 0 else 0.0
