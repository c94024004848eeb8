"""Top-1 and top-5 accuracy of classification engines, with intervals from resampled images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from yolotrt_core.calibration.images import ImageDigests
from yolotrt_core.datasets.dataset import DataSet
from yolotrt_core.errors import UsageError
from yolotrt_core.evaluation.coco_map import Bootstrap, Interval, with_intervals
from yolotrt_core.evaluation.predictions import predict
from yolotrt_core.inference.detector import Detector
from yolotrt_core.inference.rect_detector import RectDetector
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.store.store import Store
from yolotrt_core.types import EngineSpec, Json, Selection

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_TOP = 5
_BOOTSTRAP = Bootstrap()


@dataclass(frozen=True, slots=True)
class TopAccuracy:
    """Accuracy on the images of one class: shares whose best class, or one of the best five, is right."""

    class_id: int
    label: str
    images: int
    top1: float
    top5: float


@dataclass(frozen=True, slots=True, eq=False)
class ClassEvaluation:
    """One classification engine on one data set.

    Attributes:
        spec: the engine. images: how many were evaluated. skipped: names of unreadable images.
        top1, top5: share of images whose best class, or one of the best five, is right, with 95% intervals.
        classes: the same by class. predictions: key of the artifact that holds the scores.
        hits: float64 (images, 2): whether the best class, and one of the best five, is right.
    """

    spec: EngineSpec
    images: int
    skipped: tuple[str, ...]
    top1: Interval
    top5: Interval
    classes: tuple[TopAccuracy, ...]
    predictions: str
    hits: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ClassComparison:
    """Second engine minus first, on the same resampled images; see `evaluator.Comparison`."""

    top1: Interval
    top5: Interval

    @property
    def is_significant(self) -> bool | None:
        return self.top1.excludes_zero


@dataclass(frozen=True, slots=True)
class ClassEvaluator:
    """Evaluates classification engines with the same data and settings."""

    data: DataSet
    store: Store
    registry: Registry
    bootstrap: Bootstrap = _BOOTSTRAP
    digests: ImageDigests = field(default_factory=ImageDigests)

    def evaluate(self, detector: Detector | RectDetector) -> ClassEvaluation:
        """Run an engine on all images and count the right classes.

        Raises:
            UsageError: over 10% of the images cannot be read.
        """
        import numpy as np

        files = [p.path for p in self.data.images]
        predicted = predict(
            detector, files, Selection(), store=self.store, registry=self.registry, digests=self.digests
        )
        hits, truth, skipped = [], [], []
        for image, found in zip(self.data.images, predicted.boxes, strict=True):
            if found is None or found.classes is None:
                skipped.append(image.name)
                continue
            right, best = int(image.class_ids[0]), found.classes.top(_TOP)
            truth.append(right)
            hits.append((best[0] == right, right in best))
        scored, of_class = np.array(hits, np.float64).reshape(-1, 2), np.array(truth, np.int64)
        top1, top5 = with_intervals(_means(scored), self._resamples(scored))
        classes = tuple(
            TopAccuracy(number, detector.labels[number], int(own.sum()), *_means(scored[own]))
            for number in np.unique(of_class).tolist()
            if (own := of_class == number).any()
        )
        key = predicted.record.key
        return ClassEvaluation(detector.spec, len(scored), tuple(skipped), top1, top5, classes, key, scored)

    def compare(self, first: ClassEvaluation, second: ClassEvaluation) -> ClassComparison:
        """Compare the second with the first on the same resamples of the images.

        Raises:
            UsageError: they are of different images.
        """
        if (first.images, first.skipped) != (second.images, second.skipped):
            raise UsageError("the two evaluations are of different images")
        change = second.hits - first.hits
        return ClassComparison(*with_intervals(_means(change), self._resamples(change)))

    def _resamples(self, values: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Return the means of (images, 2) in each resample, (resamples, 2); None for too few."""
        import numpy as np

        if self.bootstrap.shortfall(len(values)):
            return None
        return np.array([values[drawn].mean(0) for drawn in self.bootstrap.draw(len(values))])


def _means(values: NDArray[np.float64]) -> tuple[float, float]:
    first, second = values.mean(0).tolist() if len(values) else (0.0, 0.0)
    return first, second


def top1_facts(
    reference: ClassEvaluation, lowered: ClassEvaluation, comparison: ClassComparison, limit: float
) -> dict[str, Json]:
    """Return the figures with which the accuracy gate decides, as `map_facts` does for boxes."""
    change, drop = comparison.top1, reference.top1.value - lowered.top1.value
    return {
        "by": "top1",
        "passed": drop <= limit and reference.top1.value > 0,
        "fp32": reference.top1.value,
        "lowered": lowered.top1.value,
        "drop": drop,
        "drop_low": None if change.high is None else -change.high,
        "drop_high": None if change.low is None else -change.low,
        "max_drop": limit,
    }


def top1_summary(facts: Mapping[str, Json]) -> str:
    """Return the figures in one line."""
    return (
        f"top-1 accuracy {facts['lowered']:.4f}, {facts['reference']} {facts['fp32']:.4f}, loss {facts['drop']:.4f} "
        f"(maximum {facts['max_drop']:g})"
    )
