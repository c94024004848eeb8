"""Structures of YOLOv5's standard models since release 6.0, in the form of a model yaml."""

from __future__ import annotations

from typing import Any, Literal, get_args

StandardModel = Literal[
    "yolov5n", "yolov5s", "yolov5m", "yolov5l", "yolov5x", "yolov5n6", "yolov5s6", "yolov5m6", "yolov5l6", "yolov5x6"
]
STANDARD_MODELS: tuple[str, ...] = get_args(StandardModel)
_MULTIPLES = {"n": (0.33, 0.25), "s": (0.33, 0.5), "m": (0.67, 0.75), "l": (1.0, 1.0), "x": (1.33, 1.25)}
# Width and repeats of the backbone's stages, from 4 pixels per cell on.
_STAGES = ((128, 3), (256, 6), (512, 9), (1024, 3))
_STAGES_P6 = ((128, 3), (256, 6), (512, 9), (768, 3), (1024, 3))
_REPEATS = 3  # in the head
_ANCHORS = 3  # per level; their values are in the weights


def standard_config(name: str, classes: int) -> dict[str, Any]:
    """Return the structure of a standard model.

    Args:
        name: one of `STANDARD_MODELS`.
    """
    depth, width = _MULTIPLES[name.removeprefix("yolov5")[0]]
    stages = _STAGES_P6 if name.endswith("6") else _STAGES
    backbone: list[list[Any]] = [[-1, 1, "Conv", [64, 6, 2, 2]]]
    ends = []  # last layer of each stage
    for channels, repeats in stages:
        backbone += [[-1, 1, "Conv", [channels, 3, 2]], [-1, repeats, "C3", [channels]]]
        ends.append(len(backbone) - 1)
    backbone.append([-1, 1, "SPPF", [stages[-1][0], 5]])
    return {
        "nc": classes,
        "depth_multiple": depth,
        "width_multiple": width,
        "anchors": _ANCHORS,
        "backbone": backbone,
        "head": _head([channels for channels, _ in stages], ends, len(backbone)),
    }


def _head(widths: list[int], ends: list[int], first: int) -> list[list[Any]]:
    """Return a path from the coarsest level to 8 pixels per cell, one back, and the detection layer."""
    layers: list[list[Any]] = []
    joined = []  # the narrowed maps on the way down, which the way back reads again
    for level in range(len(widths) - 2, 0, -1):
        joined.append(first + len(layers))
        layers += [[-1, 1, "Conv", [widths[level], 1, 1]], [-1, 1, "nn.Upsample", ["None", 2, "nearest"]]]
        layers += [[[-1, ends[level]], 1, "Concat", [1]], [-1, _REPEATS, "C3", [widths[level], False]]]
    found = [first + len(layers) - 1]
    for level in range(1, len(widths) - 1):
        layers += [[-1, 1, "Conv", [widths[level], 3, 2]], [[-1, joined.pop()], 1, "Concat", [1]]]
        layers.append([-1, _REPEATS, "C3", [widths[level + 1], False]])
        found.append(first + len(layers) - 1)
    layers.append([found, 1, "Detect", ["nc", "anchors"]])
    return layers
