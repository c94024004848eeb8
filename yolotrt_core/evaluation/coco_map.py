"""Mean average precision as COCO defines it, by faster-coco-eval, with intervals from resampled images."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from yolotrt_core.console.progress import progress
from yolotrt_core.console.text import counted
from yolotrt_core.evaluation.coco_masks import Rle, coco_library
from yolotrt_core.evaluation.selection import MAX_DET
from yolotrt_core.types import Detections

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# COCO's 0.50:0.05:0.95; its 300 is ours, as detections are asked for with `max_det` 300.
_BAR_AFTER_S = 2.0  # shorter progress bars only flicker
# A 95% interval excludes 2.5% of the resamples on each side: one of 40, between two and three of 100.
MIN_RESAMPLES = 100
# Of two equal engines one is better on all of n images with probability 2 / 2^n, and then every resample agrees:
# 6% for five images, 3% for six, which is below the 5% that a 95% interval excludes.
MIN_IMAGES = 6
_FIRST_ID = 1  # 0 would mean "unmatched" inside COCO's evaluation


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """Ground truth of one image.

    Attributes:
        xywh: float64 (M, 4) in pixels. class_ids: int64 (M,). crowd: bool (M,).
        height, width: of the image in pixels.
        masks: one per box, COCO's compressed run-length encoding; empty where masks are not evaluated.
    """

    xywh: NDArray[np.float64]
    class_ids: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    height: int
    width: int
    masks: tuple[Rle, ...] = ()


@dataclass(frozen=True, slots=True)
class ClassAccuracy:
    """Average precision of one class with its number of boxes."""

    class_id: int
    label: str
    boxes: int
    ap50: float
    ap50_95: float


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Mean average precision, 0..1, over the classes that occur in the truth."""

    map50: float
    map50_95: float
    classes: tuple[ClassAccuracy, ...]


class Scored:
    """Detections of a data set, matched with its ground truth once, by their boxes or by their masks."""

    def __init__(
        self,
        truth: Sequence[Truth],
        found: Sequence[Detections],
        labels: Sequence[str],
        masks: Iterable[Sequence[Rle]] | None = None,
    ) -> None:
        """Match.

        Args:
            masks: of each image, one per detection; None: boxes are matched.

        Raises:
            PluginError: faster-coco-eval is not installed.
        """
        library = coco_library()
        self._labels = labels
        self.images = len(truth)
        self._count = [int(sum((t.class_ids[~t.crowd] == c).sum() for t in truth)) for c in range(len(labels))]
        expected = library.COCO(_dataset(truth, labels, masks is not None))
        results = _results(found) if masks is None else _mask_results(found, masks)
        evaluation = library.COCOeval_faster(
            expected,
            expected.loadRes(results) if results else library.COCO(_dataset_without_boxes(truth, labels)),
            "bbox" if masks is None else "segm",
            print_function=lambda *_: None,
            separate_eval=True,
        )
        evaluation.params.maxDets = [MAX_DET]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        self._evaluation = evaluation
        self._matched = list(evaluation._evalImgs_cpp)
        # What follows needs the matches only, and the masks of a data set are large.
        evaluation.cocoGt = evaluation.cocoDt = None
        evaluation.gt_dataset.clean()
        evaluation.dt_dataset.clean()
        evaluation.ious = {}
        self._drawn: dict[Bootstrap, NDArray[np.float64]] = {}

    def accuracy(self) -> Accuracy:
        """Return the accuracy on the whole data set."""
        per_class = self._per_class(None)
        classes = tuple(
            ClassAccuracy(c, self._labels[c], self._count[c], float(per_class[0, c]), float(per_class[1, c]))
            for c in range(len(self._labels))
            if self._count[c]
        )
        return Accuracy(*_means(per_class), classes)

    def resampled(self, images: NDArray[np.int64]) -> tuple[float, float]:
        """Return (mAP50, mAP50-95) of a resample, given by image indices with repetition.

        Args:
            images: int64 (number of images,).
        """
        return _means(self._per_class(images))

    def resamples(self, bootstrap: Bootstrap) -> NDArray[np.float64]:
        """Return float64 (resamples, 2): mAP50 and mAP50-95 of each; computed once, for intervals and comparisons."""
        import numpy as np

        if bootstrap not in self._drawn:
            drawn: list[tuple[float, float]] = []
            with contextlib.ExitStack() as shown:
                bar, began = None, time.monotonic()
                for images in bootstrap.draw(self.images):
                    drawn.append(self.resampled(images))
                    if bar is None and time.monotonic() - began > _BAR_AFTER_S:
                        bar = shown.enter_context(progress("resampling the images", total=bootstrap.resamples))
                    if bar is not None:
                        bar.update(completed=len(drawn))
            self._drawn[bootstrap] = np.array(drawn).reshape(-1, 2)
        return self._drawn[bootstrap]

    def _per_class(self, images: NDArray[np.int64] | None) -> NDArray[np.float64]:
        """Return float64 (2, classes): AP50 and AP50-95; -1 where the class does not occur."""
        import numpy as np

        matched = self._matched
        if images is not None:
            # The library keeps one entry for each class and image, classes outermost.
            chosen = images.tolist()
            matched = [matched[c * self.images + i] for c in range(len(self._labels)) for i in chosen]
        self._evaluation._evalImgs_cpp = matched
        self._evaluation.accumulate()
        precision = np.asarray(self._evaluation.eval["precision"])[:, :, :, 0, 0]  # (IoU, recall, class)
        occurs = precision[0, 0] > -1
        table = np.full((2, precision.shape[2]), -1.0)
        table[0, occurs] = precision[0][:, occurs].mean(0)
        table[1, occurs] = precision[:, :, occurs].mean((0, 1))
        return table


def _means(per_class: NDArray[np.float64]) -> tuple[float, float]:
    occurs = per_class[0] > -1
    if not occurs.any():
        return 0.0, 0.0
    means = per_class[:, occurs].mean(1)
    return float(means[0]), float(means[1])


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its 95% interval by resampled images; without one if those are too few."""

    value: float
    low: float | None
    high: float | None

    @property
    def excludes_zero(self) -> bool | None:
        """Whether 0 lies outside the interval; None without one."""
        return None if self.low is None or self.high is None else not self.low <= 0 <= self.high


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Number of resamples of the images, and their seed.

    A class whose few images a resample lacks drops out of its mean, so with rare classes an interval lies higher
    than the value; shifting it back would lower its coverage.
    """

    resamples: int = 200
    seed: int = 0

    def draw(self, images: int) -> Iterator[NDArray[np.int64]]:
        """Yield int64 (images,) for each resample: indices drawn with replacement."""
        import numpy as np

        random = np.random.default_rng(self.seed)
        for _ in range(self.resamples):  # all at once takes gigabytes for large data sets
            yield random.integers(0, images, images)

    def shortfall(self, images: int) -> str | None:
        """Return what an interval lacks, images or resamples; None if there are enough."""
        if images < MIN_IMAGES:
            return f"{counted(images, 'image')}; at least {MIN_IMAGES} needed"
        if self.resamples < MIN_RESAMPLES:
            return f"{counted(self.resamples, 'resample')}; at least {MIN_RESAMPLES} needed"
        return None


def intervals(scored: Scored, bootstrap: Bootstrap) -> tuple[Interval, Interval]:
    """Return mAP50 and mAP50-95 with their intervals, or without; `Bootstrap.shortfall` names the reason."""
    accuracy = scored.accuracy()
    drawn = None if bootstrap.shortfall(scored.images) else scored.resamples(bootstrap)
    return with_intervals((accuracy.map50, accuracy.map50_95), drawn)


def differences(first: Scored, second: Scored, bootstrap: Bootstrap) -> tuple[Interval, Interval]:
    """Return second minus first in mAP50 and mAP50-95, with intervals from the same resamples for both.

    Both must be of the same images.
    """
    one, other = first.accuracy(), second.accuracy()
    too_few = bootstrap.shortfall(first.images)
    drawn = None if too_few else second.resamples(bootstrap) - first.resamples(bootstrap)
    return with_intervals((other.map50 - one.map50, other.map50_95 - one.map50_95), drawn)


def with_intervals(values: tuple[float, float], drawn: NDArray[np.float64] | None) -> tuple[Interval, Interval]:
    """Return two figures with the intervals of their resamples, (resamples, 2), or without for None."""
    import numpy as np

    if drawn is None:
        return Interval(values[0], None, None), Interval(values[1], None, None)
    lows, highs = np.percentile(drawn, (2.5, 97.5), axis=0).tolist()
    return Interval(values[0], lows[0], highs[0]), Interval(values[1], lows[1], highs[1])


def _dataset(truth: Sequence[Truth], labels: Sequence[str], with_masks: bool) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    for index, t in enumerate(truth):
        begin = len(annotations)
        for box, class_id, crowd in zip(t.xywh.tolist(), t.class_ids.tolist(), t.crowd.tolist(), strict=True):
            annotations.append(
                {
                    "id": _FIRST_ID + len(annotations),
                    "image_id": _FIRST_ID + index,
                    "category_id": class_id,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(crowd),
                }
            )
        if with_masks:
            for annotation, mask in zip(annotations[begin:], t.masks, strict=True):
                annotation.update(_mask_members(mask))
    return {**_dataset_without_boxes(truth, labels), "annotations": annotations}


def _dataset_without_boxes(truth: Sequence[Truth], labels: Sequence[str]) -> dict[str, Any]:
    return {
        "images": [{"id": _FIRST_ID + i, "height": t.height, "width": t.width} for i, t in enumerate(truth)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(labels)],
        "annotations": [],
    }


def _results(found: Sequence[Detections]) -> list[dict[str, Any]]:
    results = []
    for index, d in enumerate(found):
        xywh = d.boxes.astype(float)
        xywh[:, 2:] -= xywh[:, :2]
        for box, score, class_id in zip(xywh.tolist(), d.scores.tolist(), d.class_ids.tolist(), strict=True):
            results.append({"image_id": _FIRST_ID + index, "category_id": class_id, "bbox": box, "score": score})
    return results


def _mask_results(found: Sequence[Detections], masks: Iterable[Sequence[Rle]]) -> list[dict[str, Any]]:
    results = []
    for index, (d, own) in enumerate(zip(found, masks, strict=True)):
        for mask, score, class_id in zip(own, d.scores.tolist(), d.class_ids.tolist(), strict=True):
            entry = {"image_id": _FIRST_ID + index, "category_id": class_id, "score": score}
            results.append(entry | {"segmentation": mask})
    return results


def _mask_members(mask: Rle) -> dict[str, Any]:
    """Return the mask and its area, which COCO means by the area of a labelled object."""
    return {"segmentation": mask, "area": float(coco_library().mask.area(mask))}
