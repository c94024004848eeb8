"""Figures of the accuracy gate with labels: the loss of mAP of boxes, and of masks where both models have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from yolotrt_core.types import Json

if TYPE_CHECKING:
    from yolotrt_core.evaluation.evaluator import Comparison, Evaluation, MaskEvaluation


def map_facts(reference: Evaluation, lowered: Evaluation, comparison: Comparison, limit: float) -> dict[str, Json]:
    """Return the figures that decide.

    Of a segmentation model `box` and `mask` hold the figures of each (`mask` None without labelled masks), and the
    larger loss, named by `decided_by`, is repeated as the figures of the whole.
    """
    box = _losses(reference, lowered, comparison)
    own: dict[str, Json] = {}
    decisive = box
    if reference.spec.model.has_masks:
        mask = None
        if reference.masks and lowered.masks and comparison.masks:
            mask = _losses(reference.masks, lowered.masks, comparison.masks)
        by_mask = mask is not None and _number(mask["drop"]) > max(_number(box["drop"]), 0.0)
        decisive = mask if mask is not None and by_mask else box
        own = {"decided_by": "mask" if by_mask else "box", "box": box, "mask": mask}
    return {
        "by": "map50_95",
        "passed": _number(decisive["drop"]) <= limit and reference.map50_95.value > 0,
        **decisive,
        "max_drop": limit,
        **own,
    }


def _losses(
    reference: Evaluation | MaskEvaluation, lowered: Evaluation | MaskEvaluation, comparison: Comparison
) -> dict[str, Json]:
    change = comparison.map50_95
    return {
        "fp32": reference.map50_95.value,
        "lowered": lowered.map50_95.value,
        "drop": reference.map50_95.value - lowered.map50_95.value,
        "drop_low": None if change.high is None else -change.high,
        "drop_high": None if change.low is None else -change.low,
    }


def map_summary(facts: Mapping[str, Json]) -> str:
    """Return the figures in one line."""
    limit = f"(maximum {facts['max_drop']:g})"
    if "mask" not in facts:
        return f"{_summary('mAP50-95', facts, facts)} {limit}"
    box = _summary("box mAP50-95", facts["box"], facts)
    if facts["mask"] is None:
        return f"{box} {limit}, labels without masks"
    return f"{box}; {_summary('mask mAP50-95', facts['mask'], facts)} {limit}"


def _summary(name: str, losses: Json | Mapping[str, Json], facts: Mapping[str, Json]) -> str:
    assert isinstance(losses, Mapping)
    return f"{name} {losses['lowered']:.4f}, {facts['reference']} {losses['fp32']:.4f}, loss {losses['drop']:.4f}"


def _number(value: Json) -> float:
    assert isinstance(value, (int, float))
    return value
