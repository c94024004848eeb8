"""YOLOv5 heads without decoding, one map per level: decoded in the graph.

Supported is YOLOv5's formula, which all its releases and its YOLOv3 models use, with t after the sigmoid:

    xy = (2 t - 0.5 + cell) * stride        wh = (2 t)^2 * anchor

YOLOv3's and YOLOv4's own, with exp(t), is not.

Source:
    ultralytics/yolov5 v7.0, models/yolo.py, Detect.forward; the same since v1.0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from yolotrt_core.errors import UsageError
from yolotrt_core.export.onnx_metadata import literal
from yolotrt_onnx.graph_edits import append, append_split

if TYPE_CHECKING:
    from numpy.typing import NDArray

DEFAULT_ANCHORS = "10,13,16,30,33,23/30,61,62,45,59,119/116,90,156,198,373,326"
# Axes of a map after the batch: anchor, row, column, channel of an anchor; those in brackets are one axis.
_FORMS = ("ayxc", "acyx", "yxac", "(ac)yx", "yx(ac)", "a(yx)c", "ac(yx)")
_STRIDES = (4, 8, 16, 32, 64, 128)
# Operators that only move values.
_MOVES = frozenset(
    {"Cast", "Concat", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
    | {"QuantizeLinear", "DequantizeLinear"}
)
_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "QLinearConv"})


@dataclass(frozen=True, slots=True)
class Level:
    """One map of a head.

    Attributes:
        name: its tensor. form: one of `_FORMS`. stride: pixels per cell. sizes: length of each axis of the form.
    """

    name: str
    form: str
    stride: int
    sizes: Mapping[str, int]


def read_anchors(text: str | None, metadata: Mapping[str, str]) -> list[NDArray[np.float32]] | None:
    """Return the anchors of each level, (A, 2) width and height in pixels, from the option or the file's metadata.

    Raises:
        UsageError: the option is invalid.
    """
    if text is not None:
        if re.fullmatch(r"[\d.,/ ]{3,2000}", text):
            levels: Any = [[literal(each) for each in part.split(",")] for part in text.replace(" ", "").split("/")]
        else:
            levels = None
        found = _as_anchors(levels)
        if found is None:
            raise UsageError(
                f"`--onnx-anchors` expects width,height,... in pixels for each level, finest first, such as "
                f"{DEFAULT_ANCHORS}, found `{text}`"
            )
        return found
    return _as_anchors(literal(metadata.get("anchors")))


def are_cells(anchors: Sequence[NDArray[np.float32]], levels: Sequence[Level]) -> bool:
    """Check whether anchors may be in cells instead of pixels, as in YOLOv5's `Detect.anchors`: all below a cell."""
    return all((sizes < level.stride).all() for sizes, level in zip(anchors, levels, strict=False))


def _as_anchors(levels: Any) -> list[NDArray[np.float32]] | None:
    try:
        found = [np.array(level, np.float32).reshape(-1, 2) for level in levels]
    except (TypeError, ValueError):
        return None
    if not 1 <= len(found) <= len(_STRIDES) or len({len(each) for each in found}) != 1:
        return None
    if not 1 <= len(found[0]) <= 12 or not all(np.isfinite(each).all() and (each > 0).all() for each in found):
        return None
    # As upstream's check_anchor_order: the finest level has the smallest anchors.
    return found[::-1] if found[0].prod(1).mean() > found[-1].prod(1).mean() else found


def find_levels(
    answers: Mapping[str, NDArray[Any]], size: tuple[int, int], anchors: int | None, width: int | None
) -> list[Level]:
    """Return the maps among a model's outputs, finest first; empty if they are not a head's.

    Args:
        answers: all float outputs for an image. size: (height, width) of the input in pixels.
        anchors: boxes per cell; None if unknown, in which case the maps can be recognised but not decoded.
        width: columns of a row, 5 + classes; None if unknown.
    """
    maps = {name: answer.shape for name, answer in answers.items() if answer.ndim in (4, 5)}
    best: list[Level] = []
    for form in _FORMS:
        for count in [anchors] if anchors else [3, 1, 2, 4, 5, 6]:
            levels = [each for name, shape in maps.items() if (each := _as_level(name, shape[1:], form, size, count))]
            for columns in {level.sizes["c"] for level in levels}:
                fitting = [each for each in levels if each.sizes["c"] == columns and width in (None, columns)]
                distinct = len({each.stride for each in fitting}) == len(fitting)
                if distinct and len(fitting) > len(best):
                    best = sorted(fitting, key=lambda level: level.stride)
    return best


def _as_level(name: str, shape: tuple[int, ...], form: str, size: tuple[int, int], anchors: int) -> Level | None:
    axes = re.findall(r"\(\w+\)|\w", form)
    if len(axes) != len(shape):
        return None
    lengths = {axis.strip("()"): length for axis, length in zip(axes, shape, strict=True)}
    cells = lengths.get("yx") or lengths["y"] * lengths["x"]
    stride = math.isqrt(size[0] * size[1] // max(cells, 1))
    if stride not in _STRIDES or any(side % stride for side in size):
        return None
    channels = lengths["ac"] / anchors if "ac" in lengths else lengths["c"]
    expected = {"a": anchors, "y": size[0] // stride, "x": size[1] // stride, "c": channels}
    if channels != int(channels) or channels < 6:
        return None
    if any(math.prod(expected[letter] for letter in axis) != length for axis, length in lengths.items()):
        return None
    return Level(name, form, stride, {letter: int(length) for letter, length in expected.items()})


def decode(model: ModelProto, levels: Sequence[Level], anchors: Sequence[NDArray[np.float32]]) -> str:
    """Append the decoding of a head's maps to a graph, in float32.

    Returns:
        The name of the rows, (B, N, 5 + C) in the project's layout.

    Raises:
        UsageError: another number of levels than anchors, or maps that come neither from a convolution nor a sigmoid.
    """
    if len(levels) != len(anchors):
        raise UsageError(
            f"the model has {len(levels)} maps, of strides {', '.join(str(level.stride) for level in levels)}, but "
            f"anchors are given for {len(anchors)} levels"
        )
    parts = [_decode_level(model, level, sizes) for level, sizes in zip(levels, anchors, strict=True)]
    return append(model, "Concat", parts, axis=1)


def _decode_level(model: ModelProto, level: Level, anchors: NDArray[np.float32]) -> str:
    is_sigmoid = has_sigmoid(model, level.name)
    tensor = append(model, "Cast", [level.name], to=TensorProto.FLOAT)
    letters = re.sub(r"\W", "", level.form)
    if letters != level.form:
        tensor = append(model, "Reshape", [tensor, np.array([0, *(level.sizes[a] for a in letters)], np.int64)])
    order = [0, *(letters.index(letter) + 1 for letter in "ayxc")]
    if order != sorted(order):
        tensor = append(model, "Transpose", [tensor], perm=order)
    if not is_sigmoid:
        tensor = append(model, "Sigmoid", [tensor])
    columns = level.sizes["c"]
    place, extent, scores = append_split(model, tensor, (2, 2, columns - 4), 4)
    y, x = np.mgrid[: level.sizes["y"], : level.sizes["x"]]
    corner = (np.stack((x, y), -1)[None, None] - 0.5).astype(np.float32)
    two, stride = np.array(2, np.float32), np.array(level.stride, np.float32)
    centre = append(model, "Mul", [append(model, "Add", [append(model, "Mul", [place, two]), corner]), stride])
    double = append(model, "Mul", [extent, two])
    box = append(model, "Mul", [append(model, "Mul", [double, double]), anchors.reshape(1, -1, 1, 1, 2)])
    joined = append(model, "Concat", [centre, box, scores], axis=4)
    return append(model, "Reshape", [joined, np.array([0, -1, columns], np.int64)])


def has_sigmoid(model: ModelProto, tensor: str) -> bool:
    """Check in the graph whether a map has been through a sigmoid.

    Raises:
        UsageError: it has in part, or another operator computes it.
    """
    producers = {name: node for node in model.graph.node for name in node.output}
    weights = {weight.name for weight in model.graph.initializer}
    weights |= {name for name, node in producers.items() if node.op_type == "Constant"}
    found: dict[bool, NodeProto] = {}
    waiting, seen = [(tensor, False)], set()
    while waiting:
        name, is_scaled = step = waiting.pop()
        node = producers.get(name)
        if node is None or step in seen:
            continue
        seen.add(step)
        constants = weights.intersection(node.input)
        if node.op_type == "Sigmoid" and not is_scaled:
            found[True] = node
        elif node.op_type in _LAYERS:
            found[False] = node
        elif node.op_type in _MOVES:  # of other inputs than the first come sizes, as of `Reshape`
            read = node.input if node.op_type == "Concat" else node.input[:1]
            waiting.extend((each, is_scaled) for each in read if each not in weights)
        elif node.op_type in ("Add", "Mul") and constants:  # a bias apart; after a sigmoid it would be decoding
            waiting.extend((each, True) for each in node.input if each not in weights)
        else:
            raise UsageError(
                f"the map `{tensor}` cannot be decoded: node `{node.name}` ({node.op_type}) computes it, expected a "
                "convolution or a Sigmoid",
                hint="export the model with the Detect layer's decoding",
            )
    if len(found) != 1:
        which = f"only part of it goes through `{found[True].name}` (Sigmoid)" if found else "it is a constant"
        raise UsageError(
            f"the map `{tensor}` cannot be decoded: {which}", hint="export the model with the Detect layer's decoding"
        )
    return next(iter(found))
