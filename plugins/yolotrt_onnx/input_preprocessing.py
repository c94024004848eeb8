"""Preprocessing inside a graph: what becomes of the image before the network reads it.

Follows every tensor that holds the image, pixel by pixel: its axes, its channels, and for each channel the factor and
offset that turned the input's value into its own. Where that ends (a convolution, padding, quantization) the network
starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from onnx import ModelProto, NodeProto

from yolotrt_core.errors import UsageError
from yolotrt_core.export.onnx_normalize import read_names
from yolotrt_onnx.pixel_tracking import FLOATS, RGB, Constants, Pixels, follow

Order = Literal["rgb", "bgr"]
Maximum = Literal[1, 255]
_BGR = (2, 1, 0)
# Factors that bring 0..255 to the few units that networks compute with, and factors that 0..1 needs for the same.
_SMALL, _LARGE = 0.04, 0.2
_INSIDE_1, _BEYOND_1 = 1.5, 2.0  # values of the input that become zero: plausible means of 0..1 and of 0..255
_QUANTIZED_255 = 16.0  # covered by the integers of a quantized input: more than normalized values need
# Operators that move or pool values: behind them a factor is still one of the image.
_MOVES = frozenset({"Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "MaxPool", "Pad", "Reshape", "Resize"})
_MOVES |= {"ReverseSequence", "Slice", "SpaceToDepth", "Split", "Squeeze", "Transpose", "Unsqueeze", "Upsample"}
# Other operators than convolutions where a network, or something apart from the image, may start.
_STARTS = frozenset({"AveragePool", "BatchNormalization", "DynamicQuantizeLinear", "GlobalAveragePool"})
_STARTS |= {"GlobalMaxPool", "GroupNormalization", "InstanceNormalization", "LayerNormalization", "QuantizeLinear"}
_STARTS |= {"ReduceMax", "ReduceMean", "ReduceMin"}


class End(NamedTuple):
    """A node that reads the image and does something else than preprocessing.

    Attributes:
        tensor: what it reads. moves: whether it only moves values, so that their factors can change behind it.
        covered: for a quantization, the width of the range that its integers cover.
    """

    node: NodeProto
    tensor: str
    pixels: Pixels
    moves: bool = False
    covered: float = 0.0


@dataclass
class Preprocessing:
    """How a graph preprocesses its input.

    Attributes:
        ends: where the network starts. shapes: nodes that read the shape only.
        clips: nodes that limit values, with both limits and what they read.
        turns: nodes that may reorder channels in a way that was not followed.
        others: nodes that compute with values or channels in a way that was not followed.
        inside: tensors of the image that a subgraph reads.
    """

    ends: list[End] = field(default_factory=list)
    shapes: list[End] = field(default_factory=list)
    clips: list[tuple[NodeProto, float, float, Pixels]] = field(default_factory=list)
    turns: list[NodeProto] = field(default_factory=list)
    others: list[NodeProto] = field(default_factory=list)
    inside: set[str] = field(default_factory=set)

    @property
    def starts(self) -> list[End]:
        """The ends whose tensors are followed exactly."""
        return [end for end in self.ends if end.pixels.axes]

    def order(self) -> Order:
        """Return the order of the channels that the input expects, if the network itself computes with RGB.

        Raises:
            UsageError: channels are reordered in an unknown way; names the node.
        """
        if self.others:
            raise _unknown_values(self.others[0])
        if self.turns:
            raise _unknown_order(self.turns[0])
        found = {end.pixels.channels for end in self.starts}
        if found <= {RGB} or not found:
            return "rgb"
        if found <= {_BGR}:
            return "bgr"
        node = next(end.node for end in self.starts if end.pixels.channels != RGB)
        raise _unknown_order(node)

    def maximum(self, dtype: int) -> Maximum:
        """Return the largest value that the input expects, from the constants that scale it.

        Raises:
            UsageError: the constants fit neither; names the node behind them.
        """
        if dtype not in FLOATS or any(_limits_bytes(*clip) for clip in self.clips):
            return 255
        if self.others:
            raise _unknown_values(self.others[0])
        found = {_maximum(end): end for end in reversed(self.ends) if not end.moves}
        if None in found or len(found) > 1:
            end = found.get(None) or found[255]
            factors = ", ".join(
                f"{a:.4g} * x + {b:.4g}" for a, b in zip(end.pixels.scale, end.pixels.shift, strict=True)
            )
            raise UsageError(
                f"node `{end.node.name}` ({end.node.op_type}) reads the image as {factors}, which fits neither values "
                "in 0..1 nor in 0..255",
                hint="pass the largest value that the file expects: `--onnx-range 1` or `--onnx-range 255`",
            )
        return next(iter(found), None) or 1

    def refuse_clips(self, maximum: Maximum) -> None:
        """Check that no limit cuts values off.

        Raises:
            UsageError: names the node.
        """
        for node, low, high, pixels in self.clips:
            for scale, shift in zip(pixels.scale, pixels.shift, strict=True):
                reached = sorted((shift, scale * maximum + shift))
                if reached[0] < low - 1e-3 or reached[1] > high * (1 + 1e-3) + 1e-3:
                    raise UsageError(
                        f"node `{node.name}` ({node.op_type}) limits the image to {low:g}..{high:g}, but with an input "
                        f"in 0..{maximum} its values are {reached[0]:g}..{reached[1]:g}",
                        hint="pass the largest value that the file expects: `--onnx-range 1` or `--onnx-range 255`",
                    )


def _unknown_order(node: NodeProto) -> UsageError:
    return UsageError(
        f"node `{node.name}` ({node.op_type}) takes the image's channels apart in an unknown way",
        hint="pass the order that the file expects: `--onnx-order rgb` or `--onnx-order bgr`",
    )


def _unknown_values(node: NodeProto) -> UsageError:
    return UsageError(
        f"node `{node.name}` ({node.op_type}) computes with the image, which is neither a scaling nor a known start of "
        "the network",
        hint="pass what the file expects: `--onnx-range 1` or `--onnx-range 255`, and `--onnx-order rgb` or "
        "`--onnx-order bgr`",
    )


def _limits_bytes(node: NodeProto, low: float, high: float, pixels: Pixels) -> bool:
    """Check whether the input itself is limited to values beyond 0..1."""
    return _BEYOND_1 < high < np.inf and set(pixels.scale) == {1.0} and set(pixels.shift) == {0.0}


def _maximum(end: End) -> Maximum | None:
    """Return the range that one reader's factors make sense for; None if neither or both do."""
    found: set[Maximum | None] = set()
    for scale, shift in zip(end.pixels.scale, end.pixels.shift, strict=True):
        factor, zero = abs(scale), -shift / scale if scale else 0.0
        if _BEYOND_1 < zero <= 2 * 255 or (factor <= _SMALL and (zero == 0 or abs(zero) > _INSIDE_1)):
            found.add(255)
        elif factor >= _LARGE and abs(zero) <= _INSIDE_1:
            found.add(1)
        else:
            found.add(1 if end.pixels.weights else None)
    if end.covered and all(factor == 1 for factor in end.pixels.scale):  # only its scale knows the range
        return 1 if end.covered < _QUANTIZED_255 else 255
    return found.pop() if len(found) == 1 else None


def find_preprocessing(model: ModelProto, name: str, dtype: int, axes: str) -> Preprocessing:
    """Follow the image from the input `name` through a sorted graph.

    Args:
        dtype: the input's element type. axes: its axes, `NCHW` or `NHWC`.
    """
    found = Preprocessing()
    constants = Constants(model)
    known = {name: Pixels(axes, RGB, (1.0,) * 3, (0.0,) * 3, dtype)}
    for node in model.graph.node:
        read = [each for each in node.input if each in known]
        inner = [each for each in read_names(node) if each in known and each not in read]
        found.inside.update(inner)
        if not read:
            found.ends += [End(node, each, known[each]) for each in inner]
            continue
        result = None
        if not inner and node.domain in ("", "ai.onnx"):
            result = _follow(node, known, constants, found)
        if result is not None:
            known.update(zip(node.output, result, strict=False))
        elif node.op_type in ("Shape", "Size"):
            found.shapes += [End(node, each, known[each]) for each in read if known[each].axes]
        else:
            moves = node.op_type in _MOVES and not _reads_values(node, known)
            if not moves and "Conv" not in node.op_type and node.op_type not in _STARTS:
                found.others.append(node)
            covered = constants.get(node.input[1]) if node.op_type == "QuantizeLinear" else None
            for each in dict.fromkeys(read):
                if known[each].axes or not moves:
                    reach = 0.0 if covered is None else 255 * float(np.max(covered))
                    found.ends.append(End(node, each, known[each], moves, reach))
            if moves:
                if _turns(node, [known[each] for each in read], constants):
                    found.turns.append(node)
                known.update({each: known[read[0]].moved() for each in node.output})
    return found


def _reads_values(node: NodeProto, known: Mapping[str, Pixels]) -> bool:
    """Check whether the image is used as an index or size."""
    return node.op_type not in ("Concat", "ReverseSequence") and any(each in known for each in node.input[1:])


def _turns(node: NodeProto, read: Sequence[Pixels], constants: Constants) -> bool:
    """Check whether a node that only moves values could reorder the channels."""
    if node.op_type == "Concat":
        return len({pixels.channels for pixels in read}) > 1
    if node.op_type == "Slice":
        return bool(read[0].axes) and _may_slice_channels(node, read[0], constants)
    return node.op_type in ("Gather", "ReverseSequence", "Split") and bool(read[0].axes)


def _may_slice_channels(node: NodeProto, pixels: Pixels, constants: Constants) -> bool:
    if len(node.input) < 4:  # axes as attributes, or all axes
        attributes = {each.name: [*each.ints] for each in node.attribute}
        axes = attributes.get("axes", [*range(len(pixels.axes))])
    else:
        given = constants.get(node.input[3])
        if given is None:
            return True
        axes = np.atleast_1d(given).tolist()
    return any(pixels.axes[axis] == "C" for axis in axes if -len(pixels.axes) <= axis < len(pixels.axes))


def _follow(
    node: NodeProto, known: Mapping[str, Pixels], constants: Constants, found: Preprocessing
) -> Sequence[Pixels] | None:
    """Return what a node makes of the image, and note limits."""
    if node.op_type != "Clip":
        return follow(node, known, constants)
    attributes = {each.name: each.f for each in node.attribute}
    limits = [attributes.get("min", -np.inf), attributes.get("max", np.inf)]
    for index, name in enumerate(node.input[1:]):
        value = constants.get(name) if name else limits[index]
        if value is None or np.size(value) != 1:
            return None
        limits[index] = float(np.reshape(value, ()))
    pixels = known[node.input[0]]
    found.clips.append((node, limits[0], limits[1], pixels))
    return [pixels]
