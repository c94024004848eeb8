"""Evaluation of engines on labelled images, and significance tests between two."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from yolotrt_core.calibration.images import ImageDigests
from yolotrt_core.datasets.dataset import DataSet
from yolotrt_core.errors import UsageError
from yolotrt_core.evaluation import coco_map
from yolotrt_core.evaluation.coco_map import Accuracy, Bootstrap, Interval, Scored, Truth
from yolotrt_core.evaluation.predictions import Predictions, predict
from yolotrt_core.evaluation.selection import SELECTION
from yolotrt_core.inference.detector import Detector
from yolotrt_core.inference.image_options import ImageOptions
from yolotrt_core.inference.rect_detector import RectDetector
from yolotrt_core.pipeline.build_options import BuildSettings, build_request, resolve_model
from yolotrt_core.plugin.registered import refuse_unavailable
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.store.store import Store
from yolotrt_core.types import Detections, EngineSpec, Selection

_BOOTSTRAP = Bootstrap()


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One engine on one data set.

    Attributes:
        spec: the engine. images, boxes: how many were evaluated. skipped: names of unreadable images.
        map50, map50_95: with 95% intervals. accuracy: the same by class.
        predictions: key of the artifact that holds the detections.
    """

    spec: EngineSpec
    images: int
    boxes: int
    skipped: tuple[str, ...]
    map50: Interval
    map50_95: Interval
    accuracy: Accuracy
    predictions: str
    scored: Scored


@dataclass(frozen=True, slots=True)
class Comparison:
    """Second engine minus first, on the same resampled images.

    A difference is significant if its interval excludes 0; None if images or resamples are too few.
    """

    map50: Interval
    map50_95: Interval

    @property
    def is_significant(self) -> bool | None:
        return self.map50_95.excludes_zero


@dataclass(frozen=True, slots=True)
class Evaluator:
    """Evaluates engines with the same data and settings."""

    data: DataSet
    store: Store
    registry: Registry
    selection: Selection = SELECTION
    bootstrap: Bootstrap = _BOOTSTRAP
    digests: ImageDigests = field(default_factory=ImageDigests)

    def evaluate(self, detector: Detector | RectDetector) -> Evaluation:
        """Run an engine on all images and score it.

        Raises:
            UsageError: over 10% of the images cannot be read.
            PluginError: the metric's library is not installed.
        """
        files = [p.path for p in self.data.images]
        predicted = predict(
            detector, files, self.selection, store=self.store, registry=self.registry, digests=self.digests
        )
        truth, found = self._matched(predicted)
        scored = Scored(truth, found, detector.labels)
        map50, map50_95 = coco_map.intervals(scored, self.bootstrap)
        return Evaluation(
            spec=detector.spec,
            images=len(truth),
            boxes=sum(int((~t.crowd).sum()) for t in truth),
            skipped=tuple(p.name for p, f in zip(self.data.images, predicted.found, strict=True) if f is None),
            map50=map50,
            map50_95=map50_95,
            accuracy=scored.accuracy(),
            predictions=predicted.record.key,
            scored=scored,
        )

    def compare(self, first: Evaluation, second: Evaluation) -> Comparison:
        """Compare the second with the first on the same resamples of the images.

        Raises:
            UsageError: they are of different images.
        """
        if (first.images, first.skipped) != (second.images, second.skipped):
            raise UsageError("the two evaluations are of different images")
        return Comparison(*coco_map.differences(first.scored, second.scored, self.bootstrap))

    def _matched(self, predicted: Predictions) -> tuple[list[Truth], list[Detections]]:
        truth, found = [], []
        for image, (height, width), detections in zip(self.data.images, predicted.sizes, predicted.found, strict=True):
            if detections is None:
                continue
            boxes = image.xywh(height, width)
            truth.append(Truth(boxes, image.class_ids, image.crowd, height, width))
            found.append(detections)
        return truth, found


def open_framework(settings: BuildSettings, registry: Registry) -> Detector:
    """Open a model in its own framework, without an engine; with `settings.dynamic` for any shape.

    Raises:
        UsageError: its exporter cannot run it. PluginError: the framework is not installed.
    """
    exporter, source, info = resolve_model(settings, registry)
    refuse_unavailable(exporter, exporter.stage.available())
    request = build_request(replace(settings, precision="fp32"), source, replace(info, fixed_size=False))
    if not exporter.stage.runs_sources:
        raise UsageError(
            f"exporter `{exporter.name}` cannot run models", hint="evaluate the fp32 ONNX: `--precision fp32`"
        )
    given = settings.options
    options: Any = given.resolve(exporter.stage.Options, exporter.name)
    session = exporter.stage.open_source(source, request, options)
    head = registry.postprocessor(session.spec.model.head)
    chosen = given.resolve(head.stage.Options, head.name)
    bits = given.resolve(ImageOptions, "image").bits
    return Detector(session, head, chosen, exporter.session_key_material(options), bits)
