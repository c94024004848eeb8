"""`evaluate`: the accuracy on labelled images, of an engine alone or against another.

It is the mean average precision of boxes and masks, or of classification models the top-1 and top-5 accuracy.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from yolotrt_core.cli.recipe import RecipeSettings, build_groups, build_settings, refuse_build_flags
from yolotrt_core.cli.stdio import show
from yolotrt_core.cli.tables import print_table
from yolotrt_core.cli.task_factory import Given, json_option, make_task
from yolotrt_core.console.text import counted, nearest
from yolotrt_core.datasets import reader
from yolotrt_core.errors import UsageError
from yolotrt_core.evaluation.selection import SELECTION
from yolotrt_core.files.paths import existing_path, user_path
from yolotrt_core.pipeline.build_options import BuildSettings, resolve_model
from yolotrt_core.plugin.options import MANY, option, resolve_settings
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.serialization import to_json
from yolotrt_core.store.location import open_store
from yolotrt_core.types import PRECISIONS, EngineSpec, Json, Selection

if TYPE_CHECKING:
    from yolotrt_core.api import Detector
    from yolotrt_core.evaluation.class_accuracy import ClassComparison, ClassEvaluation, ClassEvaluator
    from yolotrt_core.evaluation.coco_map import Bootstrap, Interval
    from yolotrt_core.evaluation.evaluator import Comparison, Evaluation, Evaluator, MaskEvaluation
    from yolotrt_core.store.store import Store

_MOST_RESAMPLES = 100_000  # more change no fourth digit of an interval, and take hours


@dataclass(frozen=True, eq=False, repr=False)
class EvaluateSettings(RecipeSettings):
    """Settings of an evaluation."""

    data: str | None = option(
        None, common=True, metavar="DIR|FILE", default_text="none",
        help="Labelled images: a folder in YOLO layout, a data set YAML, a list of images, a COCO JSON; for "
        "classification a folder per class",
    )  # fmt: skip
    part: Literal["train", "val", "test"] = option("val", common=True, help="Part of a data set YAML")
    engine: str | None = option(
        None, common=True, metavar="FILE", default_text="from --weights", help="Engine file of `build`"
    )
    rect: bool = option(False, help="Evaluate each image at its own shape; needs a dynamic-shape engine")
    framework: bool = option(False, switch=True, help="Evaluate the original framework model")
    against: str | None = option(
        None, common=True, metavar="FILE|TYPE", default_text="none",
        help=f"Engine file to compare with, or {'|'.join(PRECISIONS)} of the same model",
    )  # fmt: skip
    conf: float = option(SELECTION.conf, minimum=0, maximum=1, help="Confidence threshold")
    iou: float = option(SELECTION.iou, minimum=0, maximum=1, help="IoU threshold for NMS")
    multi_label: bool = option(SELECTION.multi_label, help="Multi-label NMS")
    max_det: int = option(SELECTION.max_det, minimum=1, maximum=MANY, help="Maximum detections per image")
    bootstrap: int = option(
        200, minimum=0, maximum=_MOST_RESAMPLES, help="Resamples for the 95% intervals: 100 or more, or 0 for none"
    )
    seed: int = option(0, minimum=0, maximum=MANY, help="Seed of the resamples")
    json: bool = json_option("evaluate")

    @property
    def selection(self) -> Selection:
        """Return the thresholds."""
        return Selection(conf=self.conf, iou=self.iou, multi_label=self.multi_label, max_det=self.max_det)


def task(registry: Registry) -> Any:
    """Make the `evaluate` task."""
    summary = (
        "Evaluate the mAP or accuracy of an engine on labelled images, with intervals; compare two.\n\n"
        "Runs an engine file, or builds one with the first builder that can run here.\n\n"
        "Example: evaluate --weights yolov5n.pt --data coco.yaml --against fp32"
    )
    groups = build_groups(registry, EvaluateSettings, run=True)
    return make_task("evaluate", summary, groups, lambda given: _evaluate(registry, given))


def _evaluate(registry: Registry, given: Given) -> None:
    from yolotrt_core.api import Detector
    from yolotrt_core.evaluation.class_accuracy import ClassEvaluator
    from yolotrt_core.evaluation.coco_map import Bootstrap
    from yolotrt_core.evaluation.evaluator import Evaluator, open_framework
    from yolotrt_core.inference.engine_file import read_engine_spec
    from yolotrt_core.inference.rect_detector import RectDetector

    asked = resolve_settings(EvaluateSettings, given)
    if not asked.data:
        raise UsageError("`evaluate` needs labelled images", hint="pass `--data DIR_OR_YAML`")
    refuse_build_flags(given)
    settings = build_settings(registry, given)
    # The gate would evaluate the engine twice, and its failure would hide the figures.
    settings = replace(settings, flags={**settings.flags, "gate": {"check": "off"}})
    store = open_store(asked.store)
    bootstrap = Bootstrap(asked.bootstrap, asked.seed)
    if asked.against and not bootstrap.resamples:
        raise UsageError(
            "`--against` needs resamples to test for a significant difference, found `--bootstrap 0`",
            hint="omit `--bootstrap`, or evaluate each engine separately",
        )
    if asked.engine:
        if asked.framework:
            raise UsageError("`--framework` needs `--weights`: an engine does not contain the framework model")
        read_engine_spec(user_path(asked.engine))
    reader.check(asked.data, asked.part)
    _check_against(registry, settings, asked)
    with contextlib.ExitStack() as stack:
        if asked.framework:
            first = stack.enter_context(open_framework(settings, registry))
        else:
            opened = Detector.open(engine=asked.engine, store=store, registry=registry, settings=settings)
            first = stack.enter_context(opened)
        options = reader.LabelOptions.of_task(first.spec.model.task, settings.class_map, settings.allow_unlabeled)
        data = reader.read(asked.data, first.labels, asked.part, options=options)
        if first.spec.model.has_boxes:
            evaluator: Any = Evaluator(data, store, registry, asked.selection, bootstrap)
        else:
            _refuse_box_settings(asked)
            evaluator = ClassEvaluator(data, store, registry, bootstrap)
        result = evaluator.evaluate(RectDetector(first) if asked.rect else first)
        rival = comparison = None
        if asked.against:
            second = stack.enter_context(_open_against(settings, asked.against, store, registry))
            if second.labels != first.labels:
                raise UsageError("the two engines have different classes and cannot be compared")
            rival = evaluator.evaluate(RectDetector(second) if asked.rect else second)
            comparison = evaluator.compare(rival, result)
    has_boxes = first.spec.model.has_boxes
    if asked.json:
        form: Any = document if has_boxes else _class_document
        show(json.dumps(form(evaluator, result, rival, comparison), indent=2))
    else:
        report: Any = _report if has_boxes else _report_classes
        report(evaluator, result, rival, comparison)


def _refuse_box_settings(asked: EvaluateSettings) -> None:
    """Refuse settings that select boxes, for a model without."""
    if asked.selection != SELECTION:
        raise UsageError(
            "`--conf`, `--iou`, `--multi-label` and `--max-det` select boxes, but this is a classification model",
            hint="omit them",
        )


def _check_against(registry: Registry, settings: BuildSettings, asked: EvaluateSettings) -> None:
    """Check `--against` before the first engine is built."""
    from yolotrt_core.inference.engine_file import read_engine_spec

    wanted = asked.against
    if not wanted:
        return
    if wanted not in PRECISIONS:
        path = existing_path(wanted)
        if path is None:
            known = ", ".join(PRECISIONS)
            raise UsageError(
                f"`--against` expects an engine file or one of {known}, found `{wanted}`",
                hint=close if (close := nearest(wanted.lower(), PRECISIONS)).startswith("did") else "`build` makes one",
            )
        read_engine_spec(path)
        return
    if asked.engine:
        raise UsageError(f"`--against {wanted}` needs `--weights`: an engine cannot be built from an engine")
    _, source, info = resolve_model(settings, registry)
    if info.precision not in (None, wanted):
        raise UsageError(
            f"`--against {wanted}` needs a float32 model, but `{source.path.name}` is already {info.precision}",
            hint=f"build its float32 model with `--precision {wanted}`, and pass the engine file here",
        )
    if registry.default_calibrator(wanted) and settings.calib_data is None and settings.calibrator is None:
        raise UsageError(
            f"`--against {wanted}` needs calibration images, but `--calib-data` was not given",
            hint="pass `--calib-data DIR`",
        )


def _open_against(settings: BuildSettings, wanted: str, store: Store, registry: Registry) -> Detector:
    from yolotrt_core.api import Detector

    if wanted in PRECISIONS:
        return Detector.open(store=store, registry=registry, settings=replace(settings, precision=wanted))
    settings = replace(settings, weights=None)
    return Detector.open(engine=wanted, store=store, registry=registry, settings=settings)


def document(evaluator: Evaluator, result: Evaluation, rival: Evaluation | None, comparison: Comparison | None) -> Json:
    """Return what `evaluate --json` prints, as described in yolotrt_core/schemas/evaluate.json."""
    against: Json = None
    if rival is not None and comparison is not None:
        against = {
            **_figures(rival),
            "difference": {
                "map50": to_json(comparison.map50),
                "map50_95": to_json(comparison.map50_95),
                "more_than_noise": comparison.is_significant,
                **_mask_difference(comparison),
            },
        }
    return {
        "schema": 1,
        "data": str(evaluator.data.path),
        "pictures": result.images,
        "boxes": result.boxes,
        "backgrounds": evaluator.data.backgrounds,
        "unlabeled": evaluator.data.unlabeled,
        "skipped": list(result.skipped),
        "selection": to_json(evaluator.selection),
        "bootstrap": to_json(evaluator.bootstrap),
        **_figures(result),
        "against": against,
    }


def _class_document(
    evaluator: ClassEvaluator,
    result: ClassEvaluation,
    rival: ClassEvaluation | None,
    comparison: ClassComparison | None,
) -> Json:
    """Return `document` of a classification model."""
    against: Json = None
    if rival is not None and comparison is not None:
        figures = {"top1": to_json(comparison.top1), "top5": to_json(comparison.top5)}
        against = {
            **_class_figures(rival),
            "difference": {**figures, "more_than_noise": comparison.is_significant},
        }
    return {
        "schema": 1,
        "data": str(evaluator.data.path),
        "pictures": result.images,
        "skipped": list(result.skipped),
        "bootstrap": to_json(evaluator.bootstrap),
        **_class_figures(result),
        "against": against,
    }


def _class_figures(result: ClassEvaluation) -> dict[str, Json]:
    return {
        "engine": _engine(result.spec),
        "top1": to_json(result.top1),
        "top5": to_json(result.top5),
        "classes": to_json(result.classes),
        "predictions": result.predictions,
    }


def _engine(spec: EngineSpec) -> Json:
    return {
        "builder": spec.builder,
        "precision": spec.precision,
        "tools": to_json(spec.tools),
        "sha256": spec.engine_sha256,
    }


def _mask_difference(comparison: Comparison) -> dict[str, Json]:
    masks = comparison.masks
    if masks is None:
        return {}
    figures = {"map50": to_json(masks.map50), "map50_95": to_json(masks.map50_95)}
    return {"masks": {**figures, "more_than_noise": masks.is_significant}}


def _figures(result: Evaluation) -> dict[str, Json]:
    masks: dict[str, Json] = {}
    if result.masks is not None:
        own = result.masks
        figures = {"map50": to_json(own.map50), "map50_95": to_json(own.map50_95)}
        masks = {"masks": {**figures, "classes": to_json(own.accuracy.classes)}}
    elif result.spec.model.has_masks:
        masks = {"masks": None}
    return {
        "engine": _engine(result.spec),
        "map50": to_json(result.map50),
        "map50_95": to_json(result.map50_95),
        "classes": to_json(result.accuracy.classes),
        "predictions": result.predictions,
        **masks,
    }


def _report(evaluator: Evaluator, result: Evaluation, rival: Evaluation | None, comparison: Comparison | None) -> None:
    rows = [(c.label, str(c.boxes), f"{c.ap50:.4f}", f"{c.ap50_95:.4f}") for c in result.accuracy.classes]
    if result.masks is None:
        print_table(("class", "boxes", "AP50", "AP50-95"), rows)
    else:
        masks = [(f"{c.ap50:.4f}", f"{c.ap50_95:.4f}") for c in result.masks.accuracy.classes]
        both = [(*row, *own) for row, own in zip(rows, masks, strict=True)]
        print_table(("class", "boxes", "AP50", "AP50-95", "mask AP50", "mask AP50-95"), both)
    show()
    _report_engines("", result, result, rival, rival, comparison)
    if result.masks is not None:
        show()
        _report_engines("mask ", result, result.masks, rival, rival and rival.masks, comparison and comparison.masks)
    skipped = f", {len(result.skipped)} unreadable skipped" if result.skipped else ""
    show(
        f"\n{counted(result.images, 'image')}, {counted(result.boxes, 'box')}{skipped}; "
        f"{evaluator.data.backgrounds_text}"
    )
    if result.masks is None and result.spec.model.has_masks:
        show("boxes only: the labels have no masks")
    _report_significance(evaluator.bootstrap, result.images, "mAP50-95", comparison)
    if comparison is not None and comparison.masks is not None and not evaluator.bootstrap.shortfall(result.images):
        show(f"the difference in mask mAP50-95 is {_significance(comparison.masks)} on these images")


def _report_classes(
    evaluator: ClassEvaluator,
    result: ClassEvaluation,
    rival: ClassEvaluation | None,
    comparison: ClassComparison | None,
) -> None:
    rows = [(c.label, str(c.images), f"{c.top1:.4f}", f"{c.top5:.4f}") for c in result.classes]
    print_table(("class", "images", "top-1", "top-5"), rows)
    show()
    engines = [_row(f"{result.spec.builder} {result.spec.precision}", result.top1, result.top5)]
    if rival is not None and comparison is not None:
        engines.append(_row(f"{rival.spec.builder} {rival.spec.precision}", rival.top1, rival.top5))
        engines.append(_row("difference", comparison.top1, comparison.top5, sign="+"))
    around = () if result.top1.low is None else ("95%",)
    print_table(("engine", "top-1", *around, "top-5", *around), engines)
    skipped = f", {len(result.skipped)} unreadable skipped" if result.skipped else ""
    show(f"\n{counted(result.images, 'image')}{skipped}")
    _report_significance(evaluator.bootstrap, result.images, "top-1 accuracy", comparison)


def _report_significance(
    bootstrap: Bootstrap, images: int, figure: str, comparison: Comparison | ClassComparison | None
) -> None:
    too_few = bootstrap.shortfall(images)
    if comparison is None:
        if too_few and bootstrap.resamples:  # 0 resamples: no intervals requested
            show(f"no confidence interval: only {too_few}")
    elif too_few:
        show(f"the difference in {figure} was not tested for significance: only {too_few}")
    else:
        show(f"the difference in {figure} is {_significance(comparison)} on these images")


def _significance(comparison: Comparison | ClassComparison) -> str:
    return "statistically significant" if comparison.is_significant else "not statistically significant"


def _report_engines(
    kind: str,
    result: Evaluation,
    figures: Evaluation | MaskEvaluation,
    rival: Evaluation | None,
    others: Evaluation | MaskEvaluation | None,
    comparison: Comparison | None,
) -> None:
    """Print a row per engine, by their boxes or their masks."""
    shown = [_row(f"{result.spec.builder} {result.spec.precision}", figures.map50, figures.map50_95)]
    if rival is not None and others is not None and comparison is not None:
        shown.append(_row(f"{rival.spec.builder} {rival.spec.precision}", others.map50, others.map50_95))
        shown.append(_row("difference", comparison.map50, comparison.map50_95, sign="+"))
    around = () if figures.map50.low is None else ("95%",)
    print_table(("engine", f"{kind}mAP50", *around, f"{kind}mAP50-95", *around), shown)


def _row(name: str, *figures: Interval, sign: str = "") -> tuple[str, ...]:
    cells = [name]
    for f in figures:
        cells.append(f"{f.value:{sign}.4f}")
        if f.low is not None:
            cells.append(f"{f.low:{sign}.4f} to {f.high:{sign}.4f}")
    return tuple(cells)
