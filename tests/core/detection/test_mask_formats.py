"""Masks in results: COCO run lengths by COCO's library, polygons drawn back, tinted pixels, the stored form."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
from faster_coco_eval import mask as coco

from yolotrt_core.detection.annotate import annotate, colour
from yolotrt_core.detection.formats import Found, as_coco, as_json, as_yolo
from yolotrt_core.detection.mask_formats import as_polygon
from yolotrt_core.evaluation.agreement import compare_detections
from yolotrt_core.types import Detections, Masks

HEIGHT, WIDTH = 60, 80


def ellipse(center: tuple[int, int], axes: tuple[int, int]) -> np.ndarray:
    return cv2.ellipse(np.zeros((HEIGHT, WIDTH), np.uint8), center, axes, 0, 0, 360, 1, cv2.FILLED).astype(bool)


def detections(*masks: np.ndarray) -> Detections:
    """Return objects with these masks, their boxes around them."""
    boxes, packed = [], []
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        x1, y1, x2, y2 = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) if rows.size else (5, 5, 9, 9)
        boxes.append((x1, y1, x2, y2))
        packed.append(np.packbits(mask[y1:y2, x1:x2], axis=1))
    windows = np.array(boxes, np.int32).reshape(-1, 4)
    count = len(masks)
    found = Masks((HEIGHT, WIDTH), windows, tuple(packed))
    scores = np.linspace(0.9, 0.5, count, dtype=np.float32)
    return Detections(windows.astype(np.float32), scores, np.arange(count, dtype=np.int64), masks=found)


ROUND, FLAT, EMPTY = ellipse((30, 30), (15, 9)), ellipse((60, 20), (10, 3)), np.zeros((HEIGHT, WIDTH), bool)


def test_coco_and_json_hold_the_run_lengths() -> None:
    found = Found(Path("a.jpg"), None, HEIGHT, WIDTH, detections(ROUND, FLAT, EMPTY))
    entry = as_json(found, "abc")
    for results in (as_coco(found, 1), entry["detections"]):
        for result, mask in zip(results, (ROUND, FLAT, EMPTY), strict=True):
            decoded = coco.decode({**result["segmentation"], "counts": result["segmentation"]["counts"].encode()})
            assert np.array_equal(decoded.astype(bool), mask)


def test_entries_without_masks_have_no_segmentation() -> None:
    plain = dataclasses.replace(detections(ROUND), masks=None)
    found = Found(Path("a.jpg"), None, HEIGHT, WIDTH, plain)
    assert "segmentation" not in as_coco(found, 1)[0]
    assert len(as_yolo(found).split()) == 6


def test_yolo_lines_are_outlines_that_draw_the_mask_again() -> None:
    found = detections(ROUND, FLAT, EMPTY)
    lines = as_yolo(Found(Path("a.jpg"), None, HEIGHT, WIDTH, found)).splitlines()
    for line, mask in zip(lines, (ROUND, FLAT), strict=False):
        points = np.array(line.split()[1:-1], float).reshape(-1, 2) * (WIDTH, HEIGHT)
        again = cv2.fillPoly(np.zeros((HEIGHT, WIDTH), np.uint8), [points.round().astype(np.int32)], 1)
        assert np.array_equal(again.astype(bool), mask)
    assert lines[2].split()[1:9] == [
        "0.062500",
        "0.083333",
        "0.112500",
        "0.083333",
        "0.112500",
        "0.150000",
        "0.062500",
        "0.150000",
    ]


def test_the_polygon_is_that_of_the_largest_part() -> None:
    found = detections(FLAT | ROUND)
    assert found.masks is not None
    assert np.array_equal(as_polygon(found.masks, 0), as_polygon(detections(ROUND).masks, 0))  # type: ignore[arg-type]


def test_masks_are_tinted_in_the_colour_of_the_class() -> None:
    frame = np.full((HEIGHT, WIDTH, 3), 100, np.uint8)
    drawn = annotate(frame, detections(ROUND), ["a"])
    assert drawn[30, 30].tolist() == [(100 + c) // 2 for c in colour(0)]
    assert drawn[55, 5].tolist() == [100, 100, 100]


def test_agreement_needs_the_masks_to_agree() -> None:
    one = detections(ROUND)
    assert one.masks is not None
    hollow = ROUND.copy()
    hollow[22:39, 18:43] = False  # the same box, a fifth of the mask
    assert compare_detections([one], [one]).share == 1
    assert compare_detections([one], [detections(hollow)]).matched == 0
    boxes_only = dataclasses.replace(detections(hollow), masks=None)
    assert compare_detections([one], [boxes_only]).matched == 1
