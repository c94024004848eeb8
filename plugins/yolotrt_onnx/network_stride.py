"""The coarsest feature map of a graph, which decides the sizes of images that a network accepts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper

from yolotrt_onnx.pixel_tracking import Constants

_POOLS = frozenset({"AveragePool", "Conv", "ConvInteger", "LpPool", "MaxPool", "QLinearConv", "QLinearAveragePool"})
# Operators whose result has the size of what they read: activations, arithmetic, quantization.
_SAME = frozenset(
    {"Add", "BatchNormalization", "Cast", "Clip", "Concat", "DequantizeLinear", "Div", "DynamicQuantizeLinear"}
)
_SAME |= {
    "Elu",
    "Erf",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "InstanceNormalization",
    "LeakyRelu",
    "Max",
    "Min",
}
_SAME |= {"Mish", "Mul", "PRelu", "Pad", "Pow", "QLinearAdd", "QLinearConcat", "QLinearLeakyRelu", "QLinearMul"}
_SAME |= {"QLinearSigmoid", "QuantizeLinear", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Split", "Sub", "Tanh"}
_MAX_STRIDE = 4096


def network_stride(model: ModelProto, name: str, axes: str) -> int:
    """Return the pixels per cell of the coarsest feature map; 1 if none is found.

    Coarse maps without detections count, too: upsampled, they are joined to finer ones, and must have half their size.

    Args:
        model: sorted. name: the image input. axes: its axes, `NCHW` or `NHWC`.
    """
    constants = _Sizes(model)
    known: dict[str, tuple[str, Fraction]] = {name: (axes, Fraction(1))}
    found = 1
    for node in model.graph.node:
        read = [known[each] for each in node.input if each in known]
        if not read:
            continue
        layout, cell = max(read, key=lambda each: each[1])
        result = _follow(node, layout, cell, constants)
        if result is None or not 0 < result[1] <= _MAX_STRIDE:
            continue
        known.update({each: result for each in node.output if each})
        found = math.lcm(found, result[1].numerator)
    return found if found <= _MAX_STRIDE else 1


class _Sizes(Constants):
    """Constants, as lists of numbers."""

    def numbers(self, node: NodeProto, index: int) -> list[float] | None:
        name = node.input[index] if len(node.input) > index else ""
        value = self.get(name) if name else None
        return None if value is None or value.size > 16 else np.atleast_1d(value).astype(float).tolist()


def _follow(node: NodeProto, layout: str, cell: Fraction, sizes: _Sizes) -> tuple[str, Fraction] | None:
    """Return the axes of a node's result and its pixels per cell; None if that is unknown."""
    attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    if node.op_type in _SAME:
        return layout, cell
    if node.op_type == "Transpose":
        order = attributes.get("perm", [])
        return ("".join(layout[i] for i in order), cell) if sorted(order) == [0, 1, 2, 3] else None
    if node.op_type in _POOLS or node.op_type == "ConvTranspose":
        steps = attributes.get("strides", [1, 1])
        if len(steps) != 2 or steps[0] != steps[1]:
            return None
        return layout, (cell / steps[0] if node.op_type == "ConvTranspose" else cell * steps[0])
    if node.op_type in ("SpaceToDepth", "DepthToSpace"):
        block = attributes["blocksize"]
        return layout, (cell * block if node.op_type == "SpaceToDepth" else cell / block)
    if node.op_type == "Slice":
        return _sliced(node, attributes, layout, cell, sizes)
    if node.op_type in ("Resize", "Upsample"):
        return _resized(node, attributes, layout, cell, sizes)
    return None


def _sliced(
    node: NodeProto, attributes: Mapping[str, Any], layout: str, cell: Fraction, sizes: _Sizes
) -> tuple[str, Fraction] | None:
    """Follow every second row or column, as in YOLOv5's `Focus`."""
    axes, steps = sizes.numbers(node, 3) or attributes.get("axes"), sizes.numbers(node, 4)
    if axes is None or steps is None:
        return layout, cell
    if not all(-4 <= axis < 4 for axis in axes):
        return None
    spatial = [abs(int(step)) for axis, step in zip(axes, steps, strict=False) if layout[int(axis)] in "HW"]
    return layout, cell * max(spatial, default=1)


def _resized(
    node: NodeProto, attributes: Mapping[str, Any], layout: str, cell: Fraction, sizes: _Sizes
) -> tuple[str, Fraction] | None:
    scales: Sequence[float] | None = attributes.get("scales")
    scales = scales or sizes.numbers(node, 1 if node.op_type == "Upsample" else 2)
    if not scales or len(scales) != 4:
        return None
    factor = Fraction(scales[layout.index("H")]).limit_denominator(64)
    return (layout, cell / factor) if factor > 0 else None
