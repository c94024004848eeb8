"""The default model's accuracy on scenes it has not seen, by the COCO definition (faster-coco-eval)."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from scenes import NAMES, Scene
from torch import nn

from yolotrt_core.inference.letterbox import boxes_to_source, preprocess
from yolotrt_torch.checkpoint import read_checkpoint
from yolotrt_torch.model_builder import network_from_checkpoint
from yolotrt_torch.yolov5_model import Network

IMGSZ = (320, 320)


def load(path: Path) -> Network:
    """Return the network of a checkpoint as the exporter reads it, in float32 and `eval()`."""
    return network_from_checkpoint(read_checkpoint(path))


@torch.no_grad()
def detections(network: nn.Module, scenes: Sequence[Scene], *, conf: float = 0.001) -> list[list[dict[str, Any]]]:
    """Return per scene its detections, best first: `bbox` xywh in the image's pixels, `score`, `category_id`."""
    results = []
    for scene in scenes:
        images, (placed,) = preprocess([scene.image], IMGSZ)
        rows = network(torch.from_numpy(images))[0].numpy()
        rows = rows[rows[:, 4] > conf]
        scores = rows[:, 5:] * rows[:, 4:5]
        row, kind = np.nonzero(scores > conf)
        xywh = rows[row, :4]
        xyxy = boxes_to_source(np.hstack([xywh[:, :2] - xywh[:, 2:] / 2, xywh[:, :2] + xywh[:, 2:] / 2]), placed)
        boxes = np.hstack([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]])
        kept = cv2.dnn.NMSBoxesBatched(boxes.tolist(), scores[row, kind].tolist(), kind.tolist(), conf, 0.6)
        results.append(
            [
                {"bbox": boxes[k].tolist(), "score": float(scores[row[k], kind[k]]), "category_id": int(kind[k])}
                for k in np.asarray(kept, np.int64).ravel()[:300]
            ]
        )
    return results


def mean_average_precision(scenes: Sequence[Scene], found: Sequence[list[dict[str, Any]]]) -> tuple[float, float]:
    """Return (mAP50, mAP50-95) as COCO defines them."""
    annotations = []
    for image, scene in enumerate(scenes):
        for box, kind in zip(scene.boxes.tolist(), scene.classes.tolist(), strict=True):
            xywh = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image, "category_id": kind, "bbox": xywh,
                 "area": xywh[2] * xywh[3], "iscrowd": 0}
            )  # fmt: skip
    truth = {
        "images": [{"id": i, "height": s.image.shape[0], "width": s.image.shape[1]} for i, s in enumerate(scenes)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(NAMES)],
        "annotations": annotations,
    }
    results = [{"image_id": image, **each} for image, list_ in enumerate(found) for each in list_]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(truth)
        evaluation = COCOeval_faster(coco, coco.loadRes(results), "bbox", print_function=lambda *_: None)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[1]), float(evaluation.stats[0])
