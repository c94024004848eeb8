"""Detections as files that other tools read: our JSON, COCO results, YOLO labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from yolotrt_core.types import Detections, Json


@dataclass(frozen=True, slots=True)
class Found:
    """What was found on one picture or one frame of a video.

    Attributes:
        path: the file, or a live source's name. frame: number from 0 within a video, else None.
        height, width: in pixels.
    """

    path: Path
    frame: int | None
    height: int
    width: int
    detections: Detections


def as_json(found: Found, labels: Sequence[str]) -> dict[str, Json]:
    """Return one picture's entry of yolotrt's own JSON; boxes are x1 y1 x2 y2 in pixels."""
    d = found.detections
    return {
        "path": str(found.path),
        "frame": found.frame,
        "width": found.width,
        "height": found.height,
        "truncated": d.truncated,
        "detections": [
            {
                "box": [round(float(v), 3) for v in d.boxes[i]],
                "score": round(float(d.scores[i]), 6),
                "class_id": int(d.class_ids[i]),
                "label": labels[int(d.class_ids[i])],
            }
            for i in range(len(d))
        ],
    }


def as_coco(found: Found, image_id: int | str) -> list[Json]:
    """Return COCO result entries: bbox is x y w h in pixels, category_id the model's class index.

    Args:
        image_id: what the run calls the picture or frame, see `naming.Names.image_id`.
    """
    d = found.detections
    entries: list[Json] = []
    for i in range(len(d)):
        x1, y1, x2, y2 = (float(v) for v in d.boxes[i])
        entries.append(
            {
                "image_id": image_id,
                "category_id": int(d.class_ids[i]),
                "bbox": [round(v, 3) for v in (x1, y1, x2 - x1, y2 - y1)],
                "score": round(float(d.scores[i]), 6),
            }
        )
    return entries


def as_yolo(found: Found) -> str:
    """Return YOLO label lines `class cx cy w h score`, coordinates as a share of the picture."""
    d = found.detections
    lines = []
    for i in range(len(d)):
        x1, y1, x2, y2 = (float(v) for v in d.boxes[i])
        cx, cy = (x1 + x2) / 2 / found.width, (y1 + y2) / 2 / found.height
        w, h = (x2 - x1) / found.width, (y2 - y1) / found.height
        lines.append(f"{int(d.class_ids[i])} {cx:.6f} {cy:.6f} {w:.6f} {h:.6f} {float(d.scores[i]):.6f}\n")
    return "".join(lines)
