"""Figures of the accuracy gate without labels, and the summary and advice for every result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from yolotrt_core.console.text import counted
from yolotrt_core.evaluation.gate_options import GateOptions
from yolotrt_core.evaluation.map_facts import map_summary
from yolotrt_core.types import Detections, Json, Selection

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BUNDLED = "the bundled image"
# Where no score reaches the usual threshold: as for mAP, then half the highest score.
_LOWEST = 0.001
_MAX_SCORE = 1.1  # integers with rough scales exceed 1 somewhat

Pair = tuple[Sequence[Detections], Sequence[Detections]]


def agreement_facts(predict: Callable[[Selection], Pair], options: GateOptions) -> dict[str, Json]:
    """Compare the detections of two models on the same images.

    Scores that no detector can give fail, and so does an empty comparison. If no score reaches the default confidence
    threshold, boxes of at least half the reference's highest score are compared.

    Args:
        predict: returns the detections of the reference and of the engine, by image.
    """
    from yolotrt_core.evaluation.agreement import compare_detections

    selection = Selection()
    expected, found = predict(selection)
    by_class = any(each.classes is not None for each in expected)
    if not _boxes(expected) + _boxes(found):
        expected, found = predict(Selection(conf=_LOWEST))
        selection = replace(selection, conf=max(_LOWEST, _highest(expected) / 2))
        expected, found = ([_above(each, selection.conf) for each in side] for side in (expected, found))
    agreement = compare_detections(expected, found)
    highest = max(_highest(expected), _highest(found))
    # A single box must not decide on an image with three.
    slack = max(1.0, (1 - options.agreement) * agreement.boxes)
    passed = agreement.boxes - agreement.common <= slack and agreement.drift <= options.drift
    is_low = selection.conf != Selection().conf
    return {
        "by": "top1_agreement" if by_class else "agreement",
        "passed": passed and highest <= _MAX_SCORE and bool(agreement.matched if is_low else agreement.boxes),
        "compared": agreement.boxes,
        "conf": selection.conf,
        "highest_score": highest,
        "fp32_boxes": agreement.expected,
        "boxes": agreement.found,
        "matched": agreement.matched,
        "agreement": agreement.share,
        "score_drift": agreement.drift,
        "least_agreement": options.agreement,
        "most_drift": options.drift,
    }


def _boxes(side: Sequence[Detections]) -> int:
    from yolotrt_core.evaluation.agreement import comparable

    return sum(map(comparable, side))


def _highest(side: Sequence[Detections]) -> float:
    scores = (each.scores if each.classes is None else each.classes.scores for each in side)
    return max((float(each.max()) for each in scores if len(each)), default=0.0)


def _above(found: Detections, conf: float) -> Detections:
    kept: NDArray[np.bool_] = found.scores >= conf
    return replace(found, boxes=found.boxes[kept], scores=found.scores[kept], class_ids=found.class_ids[kept])


def has_compared_nothing(facts: Mapping[str, Json]) -> bool:
    """Check whether the figures are of no detections at all."""
    return not (facts["fp32"] if facts["by"] in ("map50_95", "top1") else facts["compared"])


def _has_no_scores(facts: Mapping[str, Json]) -> bool:
    return facts["by"] == "agreement" and not float(str(facts["highest_score"])) <= _MAX_SCORE


def summary(facts: Mapping[str, Json]) -> str:
    """Return the figures in one line."""
    where = f"on {facts['pictures_from']}, evaluated with {facts['ran']}"
    reference = facts["reference"]
    if facts["by"] == "map50_95":
        if has_compared_nothing(facts):
            return f"nothing was compared: the {reference} model detects none of the labelled objects {where}"
        return f"{map_summary(facts)} {where}"
    if facts["by"] == "top1":
        if has_compared_nothing(facts):
            return f"nothing was compared: the {reference} model gives none of the labelled images its class {where}"
        from yolotrt_core.evaluation.class_accuracy import top1_summary

        return f"{top1_summary(facts)} {where}"
    if facts["by"] == "top1_agreement":
        return (
            f"the same best class as {reference} for {facts['matched']} of "
            f"{counted(_count(facts['fp32_boxes']), 'image')}, agreement {facts['agreement']:.3f} (minimum "
            f"{facts['least_agreement']:g}), score difference {facts['score_drift']:.3f} {where}"
        )
    if has_compared_nothing(facts):
        return f"nothing was compared: no detections in either engine or {reference} {where}"
    if _has_no_scores(facts):
        return f"scores up to {facts['highest_score']:.4g}, expected 0 to 1: they are not class scores; {where}"
    conf = f" above a confidence of {facts['conf']:.3g}" if facts["conf"] != Selection().conf else ""
    return (
        f"{facts['matched']} of {counted(_count(facts['fp32_boxes']), f'{reference} box')} matched{conf}, "
        f"{counted(_count(facts['boxes']), 'box')} in the engine, "
        f"agreement {facts['agreement']:.3f} (minimum {facts['least_agreement']:g}), "
        f"score difference {facts['score_drift']:.3f} {where}"
    )


def _count(value: Json) -> int:
    assert isinstance(value, int)
    return value


def advice(facts: Mapping[str, Json], precision: str) -> str:
    """Return what to do about a failed result, for an engine of this precision."""
    ways = []
    if has_compared_nothing(facts):
        ways.append("pass images with objects of the model's classes with `--eval-data`")
    elif facts["pictures_from"] == BUNDLED:
        ways.append("validate on your own images with `--eval-data`")
    if _has_no_scores(facts):
        ways.append("check that the model is a detection model and what its columns are (`--onnx-columns`)")
    elif facts["reference"] == "fp32" and not has_compared_nothing(facts):
        ways.append(_OTHER.get(precision, "try another `--calibrator`, more images or `--precision fp16`"))
    ways.append("`--gate-check off` disables the gate")
    return "; ".join(ways)


_OTHER = {
    "fp16": "try `--precision bf16` or `--precision fp32`",
    "bf16": "try `--precision fp16` or `--precision fp32`",
}
