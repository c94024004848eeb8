"""The section `accuracy` of gpu_runner.py: engines beside the exact fp32 one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from yolotrt_core.inference.letterbox import preprocess
from yolotrt_core.types import Selection
from yolotrt_yolov5.device_program import device_program

sys.path.insert(0, str(Path(__file__).parent.parent / "gpu"))
import ties

if TYPE_CHECKING:
    from gpu_runner import Bench

MULTI = Selection(conf=0.001, iou=0.6, multi_label=True, max_det=300)
SIZE = (640, 640)


def accuracy(bench: Bench) -> dict[str, Any]:
    """Each engine beside the exact fp32 one: scores, boxes without a partner at IoU 0.95; its detections as .npz.

    `narrowest` are the score gaps by which sure boxes win over another: what an engine may be off to find them all.
    """
    images = [cv2.imread(str(f)) for f in bench.images]
    placed = [preprocess([image], SIZE)[1][0] for image in images]
    with bench.open("fp32-b1-exact") as session:
        exact = list(ties.raw_outputs(session, images, SIZE))
        found = session.detect(images, device_program(session.spec.model), Selection(conf=0.3))
    sure = [list(ties.sure_boxes(*one)) for one in zip(exact, placed, found, strict=True)]
    gaps = sorted(box.narrowest for boxes in sure for box in boxes)
    results: dict[str, Any] = {"sure": len(gaps), "narrowest": [round(gap, 5) for gap in gaps[:8]]}
    for variant in [v.parent.name for v in sorted(bench.engines.glob("*/*.engine"))]:
        with bench.open(variant) as session:
            program = device_program(session.spec.model)
            found = session.detect(images, program, MULTI)
            again = session.detect(images, program, Selection(conf=0.25))
            spec = session.spec.model
            fits = spec.inputs[0].dtype == "float32" and not session.spec.profiles
            raws = list(ties.raw_outputs(session, images, SIZE)) if fits else []
        rows = {
            f.stem: np.column_stack([d.boxes, d.scores, d.class_ids]) for f, d in zip(bench.images, found, strict=True)
        }
        np.savez(bench.out / f"detections_{variant}.npz", **rows)
        missing = [
            ties.best_overlap(box.box[None], box.class_id, ours) < ties.SAME
            for boxes, ours in zip(sure, again, strict=True)
            for box in boxes
        ]
        results[variant] = {
            "missing": sum(missing),
            "score_rms": _score_error(raws, exact),
            "rows": sum(map(len, found)),
        }
    return results


def _score_error(raws: list[np.ndarray], exact: list[np.ndarray]) -> float | None:
    """Return the root mean square of how far scores are off that should be over 0.25."""
    errors = []
    for raw, right in zip(raws, exact, strict=False):
        scores = right[:, 4:5] * right[:, 5:]
        errors.append((raw[:, 4:5] * raw[:, 5:] - scores)[scores > 0.25])
    return float(np.sqrt(np.square(np.concatenate(errors), dtype=np.float64).mean())) if errors else None
