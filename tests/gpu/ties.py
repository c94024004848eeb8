"""Which boxes 16 bits may exchange for others: pairs that the fp32 network itself scores almost alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from yolotrt_core.inference.letterbox import boxes_to_source, preprocess
from yolotrt_core.types import Detections, Geometry
from yolotrt_tensorrt.runtime.session import EngineSession

SUPPRESSED = 0.45  # the IoU over which one of two boxes goes
SAME = 0.95


class Sure(NamedTuple):
    """A box of the fp32 network, and those of its class that it suppresses, each in frame pixels.

    `gaps` says how much lower each rival scores: whoever computes less exactly than that may prefer it.
    """

    box: np.ndarray
    class_id: int
    rivals: np.ndarray
    gaps: np.ndarray

    @property
    def narrowest(self) -> float:
        """The gap to the best rival that would not pass for the box itself; infinite without one."""
        others = iou(self.box[None], self.rivals)[0] < SAME
        return float(self.gaps[others].min(initial=np.inf))


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    inter = np.clip(high - low, 0, None).prod(-1)
    areas = [(c[:, 2:] - c[:, :2]).prod(-1) for c in (a, b)]
    return np.asarray(inter / (areas[0][:, None] + areas[1][None, :] - inter))


def best_overlap(boxes: np.ndarray, class_id: int, found: Detections) -> float:
    """Return the highest IoU of any of `boxes` (n, 4) with what was found of the class."""
    return float(iou(boxes, found.boxes[found.class_ids == class_id]).max(initial=0))


def sure_boxes(raw: np.ndarray, placed: Geometry, found: Detections) -> Iterator[Sure]:
    """Yield the boxes that were found in one image, of whose raw output (N, 5 + C) they were made."""
    scores = raw[:, 4:5] * raw[:, 5:]
    classes, scores = scores.argmax(axis=1), scores.max(axis=1)
    centre, half = raw[:, :2], raw[:, 2:4] / 2
    for box, score, class_id in zip(found.boxes, found.scores, found.class_ids, strict=True):
        near = np.flatnonzero((classes == class_id) & (scores <= score) & (scores > 0.1))
        boxes = boxes_to_source(np.concatenate((centre[near] - half[near], centre[near] + half[near]), axis=1), placed)
        rivals = iou(box[None], boxes)[0] > SUPPRESSED
        yield Sure(box, int(class_id), boxes[rivals], score - scores[near][rivals])


def raw_outputs(session: EngineSession, frames: list[np.ndarray], size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Yield the raw output (N, 5 + C) of each frame, as many at once as the engine takes."""
    batch = int(session.spec.model.inputs[0].shape[0])
    for start in range(0, len(frames), batch):
        images, _ = preprocess(frames[start : start + batch], size, layout=session.spec.model.layout)
        yield from session.infer(images)["output0"].copy()
