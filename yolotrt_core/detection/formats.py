"""Formats of results: yolotrt's JSON and JSON lines, COCO results, YOLO labels."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from yolotrt_core.detection.output_names import Format
from yolotrt_core.types import Classes, Detections, Json, Masks

TOP = 5  # classes of an image that are written, as by upstream


@dataclass(frozen=True, slots=True)
class Found:
    """Detections of one image or one frame of a video.

    Attributes:
        path: the file, or a live source's name. frame: number from 0 within a video, else None.
        height, width: in pixels. seconds: time of the frame since the first, else None.
    """

    path: Path
    frame: int | None
    height: int
    width: int
    detections: Detections
    seconds: float | None = None


def as_json(found: Found, labels: Sequence[str]) -> dict[str, Json]:
    """Return one image's entry of yolotrt's own JSON; boxes are x1 y1 x2 y2 in pixels, masks COCO's run lengths."""
    d = found.detections
    masks = _masks(d)
    return {
        "path": str(found.path),
        "frame": found.frame,
        **({} if found.seconds is None else {"time": round(found.seconds, 6)}),
        "width": found.width,
        "height": found.height,
        "truncated": d.truncated,
        "detections": [
            {
                "box": [round(v, 3) for v in box],
                "score": round(score, 6),
                "class_id": class_id,
                "label": labels[class_id],
                **mask,
            }
            for (box, score, class_id), mask in zip(_plain(d), masks, strict=True)
        ],
        **({} if d.classes is None else {"classes": _top(d.classes, labels)}),
    }


def _top(classes: Classes, labels: Sequence[str]) -> list[Json]:
    """Return the classes with the highest scores, the highest first."""
    return [
        {"class_id": class_id, "label": labels[class_id], "score": round(float(classes.scores[class_id]), 6)}
        for class_id in classes.top(TOP)
    ]


def _masks(d: Detections) -> list[dict[str, Json]]:
    """Return of each detection the member that holds its mask; nothing without masks."""
    if d.masks is None:
        return [{}] * len(d)
    from yolotrt_core.detection.mask_formats import as_rle

    return [{"segmentation": as_rle(d.masks, index)} for index in range(len(d))]


def _plain(d: Detections) -> Iterator[tuple[list[float], float, int]]:
    """Yield box, score and class id as Python numbers, converted as whole arrays: three times as fast."""
    return zip(d.boxes.tolist(), d.scores.tolist(), d.class_ids.tolist(), strict=True)


def opening(form: Format, head: Mapping[str, Json]) -> str:
    """Return what a results file begins with.

    Args:
        head: what yolotrt's JSON says before its images.
    """
    if form == "json":
        # Each entry has a line of its own: indented JSON uses Python's slow encoder, which takes longer than detection.
        return json.dumps(head, indent=1).removesuffix("\n}") + ',\n "images": ['
    return "[" if form == "coco" else ""


def entry_line(form: Format, entry: Json, *, first: bool) -> str:
    """Return one entry of a results file, with what separates it from the one before."""
    text = json.dumps(entry)
    if form == "jsonl":
        return f"{text}\n"
    return ("" if first else ",") + ("\n  " if form == "json" else "\n") + text


def closing(form: Format, tail: Mapping[str, Json]) -> str:
    """Return what a results file ends with.

    Args:
        tail: what yolotrt's JSON says after its images.
    """
    if form == "json":
        return "\n ],\n" + json.dumps(tail, indent=1).removeprefix("{\n") + "\n"
    return "\n]\n" if form == "coco" else ""


@dataclass(frozen=True, slots=True)
class Style:
    """Variants of the formats.

    Attributes:
        category_ids: COCO's id of each class of the model; None: the class index. scores: whether YOLO labels have the
            confidence as sixth column; without it they are labels for training.
    """

    category_ids: tuple[int, ...] | None = None
    scores: bool = True


DEFAULT_STYLE = Style()


def as_coco(found: Found, image_id: int | str, style: Style = DEFAULT_STYLE) -> list[Json]:
    """Return COCO result entries: bbox is x y w h in pixels, category_id the model's class index unless in `style`.

    Args:
        image_id: of the image or frame, see `output_names.Names.image_id`.
    """
    return [
        {
            "image_id": image_id,
            "category_id": class_id if style.category_ids is None else style.category_ids[class_id],
            "bbox": [round(v, 3) for v in (x1, y1, x2 - x1, y2 - y1)],
            "score": round(score, 6),
            **mask,
        }
        for ((x1, y1, x2, y2), score, class_id), mask in zip(
            _plain(found.detections), _masks(found.detections), strict=True
        )
    ]


def as_yolo(found: Found, style: Style = DEFAULT_STYLE, labels: Sequence[str] = ()) -> str:
    """Return YOLO label lines `class cx cy w h score`, coordinates relative to the image size.

    Of a segmentation model `class x y x y ... score`: the outline of the mask's largest part. Of a classification model
    `score name` of the best classes, as upstream's `classify/predict.py --save-txt` writes them.

    Args:
        labels: class names by id, of a classification model.
    """
    lines = []
    if (classes := found.detections.classes) is not None:
        return "".join(f"{classes.scores[class_id]:.2f} {labels[class_id]}\n" for class_id in classes.top(TOP))
    if found.detections.masks is not None:
        return "".join(_outlines(found, found.detections.masks, style))
    for (x1, y1, x2, y2), score, class_id in _plain(found.detections):
        cx, cy = (x1 + x2) / 2 / found.width, (y1 + y2) / 2 / found.height
        w, h = (x2 - x1) / found.width, (y2 - y1) / found.height
        lines.append(f"{class_id} {cx:.6f} {cy:.6f} {w:.6f} {h:.6f}{_confidence(score, style)}\n")
    return "".join(lines)


def _outlines(found: Found, masks: Masks, style: Style) -> Iterator[str]:
    import numpy as np

    from yolotrt_core.detection.mask_formats import as_polygon

    size = np.array([found.width, found.height], np.float64)
    for index, (box, score, class_id) in enumerate(_plain(found.detections)):
        outline = as_polygon(masks, index)
        if len(outline) < 3:  # not an area: the box says at least where it is
            x1, y1, x2, y2 = box
            outline = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])
        points = " ".join(f"{value:.6f}" for value in (outline / size).ravel().tolist())
        yield f"{class_id} {points}{_confidence(score, style)}\n"


def _confidence(score: float, style: Style) -> str:
    return f" {score:.6f}" if style.scores else ""
