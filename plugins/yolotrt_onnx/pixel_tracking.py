"""Pixel by pixel tracking of an image through the operators that preprocess it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from yolotrt_onnx.graph import constant_value

RGB = (0, 1, 2)
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
_INTEGERS = (TensorProto.UINT8, TensorProto.INT32, TensorProto.INT64)
_FOLDED = frozenset(
    {"Add", "Cast", "Concat", "Div", "Identity", "Mul", "Neg", "Reciprocal", "Reshape", "Sqrt", "Squeeze"}
)
_FOLDED |= {"Sub", "Transpose", "Unsqueeze"}
_MAX_FOLDED = 4096  # elements
_MAX_DEPTH = 64  # operators that make one constant


@dataclass(frozen=True, slots=True)
class Pixels:
    """A tensor whose every element is a factor times one value of the image, plus an offset.

    Attributes:
        axes: its axes, of N, C, H, W; empty if values were moved or padded, and the rest holds on average only.
        channels: for each of its channels, the input's.
        scale, shift: float64, one per channel.
        dtype: element type, of `TensorProto`.
        weights: whether a factor comes from weights that training may have made.
    """

    axes: str
    channels: tuple[int, ...]
    scale: tuple[float, ...]
    shift: tuple[float, ...]
    dtype: int
    weights: bool = False

    def pick(self, indices: Sequence[int], axes: str | None = None) -> Pixels:
        """Return these channels."""
        return replace(
            self,
            axes=self.axes if axes is None else axes,
            channels=tuple(self.channels[i] for i in indices),
            scale=tuple(self.scale[i] for i in indices),
            shift=tuple(self.shift[i] for i in indices),
        )

    def moved(self) -> Pixels:
        """Return the average, for values in unknown places."""
        return replace(
            self, axes="", channels=(0,), scale=(float(np.mean(self.scale)),), shift=(float(np.mean(self.shift)),)
        )


class Constants:
    """Values of initializers, `Constant` nodes and arithmetic on small ones."""

    def __init__(self, model: ModelProto) -> None:
        self._weights = {weight.name: weight for weight in model.graph.initializer}
        self._nodes = {name: node for node in model.graph.node for name in node.output if name}
        self._shapes = {value.name: value.type.tensor_type.shape.dim for value in model.graph.input}
        self._found: dict[str, NDArray[Any] | None] = {}
        self._depth = 0

    def get(self, name: str) -> NDArray[Any] | None:
        """Return a tensor's value; None if it is not constant."""
        if name not in self._found:
            self._found[name] = None  # for cycles
            self._depth += 1
            if self._depth <= _MAX_DEPTH:
                self._found[name] = self._evaluate(name)
            self._depth -= 1
        return self._found[name]

    def _evaluate(self, name: str) -> NDArray[Any] | None:
        if name in self._weights:
            return np.asarray(numpy_helper.to_array(self._weights[name]))
        node = self._nodes.get(name)
        if node is None:
            return None
        constant = constant_value(node)
        if constant is not None:
            return np.asarray(numpy_helper.to_array(constant))
        if node.op_type == "Gather":
            return self._size(node)
        if node.op_type not in _FOLDED or node.domain not in ("", "ai.onnx") or not node.input:
            return None
        given = {each: self.get(each) for each in node.input if each}
        if any(value is None or value.size > _MAX_FOLDED for value in given.values()):
            return None
        try:
            return np.asarray(ReferenceEvaluator(node).run(None, given)[0])
        except Exception:  # noqa: BLE001 - onnx's reference has no exception base: not a constant that is understood
            return None

    def _size(self, node: NodeProto) -> NDArray[Any] | None:
        """Return one fixed size of an input, which exporters read with `Shape` and `Gather`."""
        shape = self._nodes.get(node.input[0])
        dims = self._shapes.get(shape.input[0]) if shape is not None and shape.op_type == "Shape" else None
        index = self.get(node.input[1])
        if dims is None or shape is None or shape.attribute or index is None or index.size != 1:
            return None
        place = int(index.reshape(()))
        if not -len(dims) <= place < len(dims) or not dims[place].dim_value:
            return None
        return np.full(index.shape, dims[place].dim_value, np.int64)


def follow(node: NodeProto, known: Mapping[str, Pixels], constants: Constants) -> Sequence[Pixels] | None:
    """Return what a node makes of the image, one per output; None if it is not preprocessing."""
    if node.op_type == "Concat":
        return _concatenated(node, [known.get(name) for name in node.input])
    positions = [index for index, name in enumerate(node.input) if name in known]
    if len(positions) != 1:
        return None
    pixels = known[node.input[positions[0]]]
    rest = [constants.get(name) if name else None for name in node.input]
    given = any(name and rest[index] is None and index != positions[0] for index, name in enumerate(node.input))
    if given:  # something that is not constant
        return None
    attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    if node.op_type in ("Add", "Sub", "Mul", "Div", "DequantizeLinear", "BatchNormalization", "Conv"):
        affine = _affine(node, positions[0], rest, attributes, pixels)
        return None if affine is None else [affine]
    if node.op_type == "Cast":
        follows = attributes["to"] in FLOATS or (attributes["to"] in _INTEGERS and pixels.dtype in _INTEGERS)
        return [replace(pixels, dtype=attributes["to"])] if follows else None
    if node.op_type in ("Identity", "Dropout"):
        return [pixels]
    if not pixels.axes or positions[0] != 0:
        return None
    reorder = {
        "Transpose": _transposed,
        "Gather": _gathered,
        "GatherND": _picked,
        "Slice": _sliced,
        "Split": _split,
    }.get(node.op_type)
    reorder = reorder or {"Unsqueeze": _unsqueezed, "Squeeze": _squeezed}.get(node.op_type)
    return None if reorder is None else reorder(node, rest, attributes, pixels)


def _affine(
    node: NodeProto,
    position: int,
    rest: Sequence[NDArray[Any] | None],
    attributes: Mapping[str, Any],
    pixels: Pixels,
) -> Pixels | None:
    """Return the image after arithmetic with constants."""
    if node.op_type == "DequantizeLinear":
        return _dequantized(rest, pixels)
    if pixels.dtype not in FLOATS:  # integer arithmetic truncates
        return None
    if node.op_type == "BatchNormalization":
        return _normalized(rest, attributes, pixels)
    if node.op_type == "Conv":
        return _convolved(node, rest, attributes, pixels)
    value = _per_channel(rest[1 - position], pixels)
    if value is None:
        return None
    scale, shift = np.array(pixels.scale), np.array(pixels.shift)
    if node.op_type == "Mul":
        scale, shift = scale * value, shift * value
    elif node.op_type == "Div" and position == 0 and np.all(value != 0):
        scale, shift = scale / value, shift / value
    elif node.op_type == "Add":
        shift = shift + value
    elif node.op_type == "Sub":
        sign = 1.0 if position == 0 else -1.0
        scale, shift = scale * sign, (shift - value) * sign
    else:
        return None
    return _scaled(pixels, scale, shift)


def _scaled(pixels: Pixels, scale: Any, shift: Any, **changes: Any) -> Pixels | None:
    if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
        return None
    return replace(pixels, scale=tuple(map(float, scale)), shift=tuple(map(float, shift)), **changes)


def _dequantized(rest: Sequence[NDArray[Any] | None], pixels: Pixels) -> Pixels | None:
    scale, zero = rest[1], rest[2] if len(rest) > 2 else None
    if scale is None or scale.size != 1 or pixels.dtype != TensorProto.UINT8:
        return None
    factor, offset = float(scale.reshape(())), 0.0 if zero is None else float(zero.reshape(()))
    shift = (np.array(pixels.shift) - offset) * factor
    return _scaled(pixels, np.array(pixels.scale) * factor, shift, dtype=TensorProto.FLOAT)


def _normalized(rest: Sequence[NDArray[Any] | None], attributes: Mapping[str, Any], pixels: Pixels) -> Pixels | None:
    if pixels.axes != "NCHW" or any(value is None or value.shape != (3,) for value in rest[1:5]):
        return None
    gain, bias, mean, variance = (np.asarray(value, np.float64) for value in rest[1:5])
    if not (variance + attributes.get("epsilon", 1e-5) > 0).all():
        return None
    gain = gain / np.sqrt(variance + attributes.get("epsilon", 1e-5))
    return _scaled(pixels, np.array(pixels.scale) * gain, (np.array(pixels.shift) - mean) * gain + bias, weights=True)


def _convolved(
    node: NodeProto, rest: Sequence[NDArray[Any] | None], attributes: Mapping[str, Any], pixels: Pixels
) -> Pixels | None:
    """Return the image after a 1x1 convolution from three channels to three that only scales and reorders them."""
    kernel = rest[1]
    group = attributes.get("group", 1)
    if pixels.axes != "NCHW" or kernel is None or kernel.shape != (3, 3 // group, 1, 1) or group not in (1, 3):
        return None
    plain = all(set(attributes.get(key, [d])) == {d} for key, d in (("strides", 1), ("pads", 0), ("dilations", 1)))
    matrix = kernel.reshape(3, -1).astype(np.float64)
    matrix = np.diag(matrix[:, 0]) if group == 3 else matrix
    sources = np.abs(matrix).argmax(axis=1)
    if not plain or np.count_nonzero(matrix) != 3 or sorted(sources) != [0, 1, 2]:
        return None
    bias = np.zeros(3) if len(rest) < 3 or rest[2] is None else rest[2].astype(np.float64)
    chosen, factors = pixels.pick([int(each) for each in sources]), matrix[np.arange(3), sources]
    return _scaled(chosen, np.array(chosen.scale) * factors, np.array(chosen.shift) * factors + bias, weights=True)


def _per_channel(value: NDArray[Any] | None, pixels: Pixels) -> NDArray[np.float64] | None:
    """Return one number per channel of a constant that is the same for every pixel."""
    if value is None or not value.size or value.dtype.kind not in "fiu":
        return None
    count = len(pixels.channels)
    if not pixels.axes:
        return np.full(count, np.mean(value, dtype=np.float64)) if value.size <= _MAX_FOLDED else None
    if value.ndim > len(pixels.axes):
        return None
    wide = value.reshape((1,) * (len(pixels.axes) - value.ndim) + value.shape).astype(np.float64)
    axis = pixels.axes.find("C")
    others = tuple(each for each in range(wide.ndim) if each != axis)
    if np.ptp(wide, axis=others).any():
        return None
    numbers = wide.max(axis=others).reshape(-1)
    return np.broadcast_to(numbers, (count,)) if numbers.size in (1, count) else None


def _concatenated(node: NodeProto, parts: Sequence[Pixels | None]) -> list[Pixels] | None:
    read = [part for part in parts if part is not None]
    if len(read) < len(parts) or len({(part.axes, part.dtype) for part in read}) > 1 or "C" not in read[0].axes:
        return None
    if _axis(read[0].axes, node.attribute[0].i) != read[0].axes.index("C"):
        return None
    channels, scale, shift = (
        tuple(v for part in read for v in getattr(part, name)) for name in ("channels", "scale", "shift")
    )
    joined = replace(read[0], channels=channels, scale=scale, shift=shift, weights=any(p.weights for p in read))
    # A network that continues with another number of channels has begun: its concatenation is not preprocessing.
    return [joined] if len(channels) == len(RGB) else None


def _axis(axes: str, axis: int) -> int:
    return axis + len(axes) if axis < 0 else axis


def _transposed(
    node: NodeProto, rest: Sequence[NDArray[Any] | None], attributes: Mapping[str, Any], pixels: Pixels
) -> list[Pixels]:
    order = attributes.get("perm", range(len(pixels.axes))[::-1])
    return [replace(pixels, axes="".join(pixels.axes[each] for each in order))]


def _gathered(
    node: NodeProto, rest: Sequence[NDArray[Any] | None], attributes: Mapping[str, Any], pixels: Pixels
) -> list[Pixels] | None:
    indices, count = rest[1], len(pixels.channels)
    if indices is None or indices.ndim > 1 or indices.size > _MAX_FOLDED:
        return None
    if _axis(pixels.axes, attributes.get("axis", 0)) != pixels.axes.find("C"):
        return None
    chosen = [int(each) + (count if each < 0 else 0) for each in np.atleast_1d(indices)]
    if not chosen or not all(0 <= each < count for each in chosen):
        return None
    return [pixels.pick(chosen, pixels.axes if indices.ndim else pixels.axes.replace("C", ""))]


def _picked(
    node: NodeProto, rest: Sequence[NDArray[Any] | None], attributes: Mapping[str, Any], pixels: Pixels
) -> list[Pixels] | None:
    """Follow `GatherND` along the first axis, as PyTorch's exporter writes x[:, [2, 1, 0]] between transpositions."""
    indices = rest[1]
    if indices is None or indices.ndim != 2 or indices.shape[1] != 1 or attributes.get("batch_dims", 0):
        return None
    return _gathered(node, [None, indices[:, 0]], {"axis": 0}, pixels)


def _sliced(
    node: NodeProto, rest: Sequence[NDArray[Any] | None], attributes: Mapping[str, Any], pixels: Pixels
) -> list[Pixels] | None:
    names = ("starts", "ends", "axes", "steps")
    values: list[Any] = [rest[i + 1] if len(rest) > i + 1 else attributes.get(name) for i, name in enumerate(names)]
    if values[0] is None or values[1] is None:
        return None
    starts, ends = (np.atleast_1d(value).tolist() for value in values[:2])
    axes = list(range(len(starts))) if values[2] is None else np.atleast_1d(values[2]).tolist()
    steps = [1] * len(starts) if values[3] is None else np.atleast_1d(values[3]).tolist()
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        return None
    chosen = list(range(len(pixels.channels)))
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if _axis(pixels.axes, axis) == pixels.axes.find("C"):
            # A negative end counts from the last; ONNX writes "past the first" as a number below minus the length.
            last = None if step < 0 and end < -len(chosen) else end
            chosen = chosen[start:last:step]
        elif (start, step) != (0, 1) or end < 1 << 30:
            return None
    return [pixels.pick(chosen)] if chosen else None


def _split(
    node: NodeProto, rest: Sequence[NDArray[Any] | None], attributes: Mapping[str, Any], pixels: Pixels
) -> list[Pixels] | None:
    if _axis(pixels.axes, attributes.get("axis", 0)) != pixels.axes.find("C"):
        return None
    given = rest[1] if len(rest) > 1 and rest[1] is not None else attributes.get("split")
    count = len(pixels.channels)
    sizes = [-(-count // len(node.output))] * len(node.output) if given is None else np.atleast_1d(given).tolist()
    ends = np.cumsum(sizes).tolist()
    if len(sizes) != len(node.output) or min(sizes) < 1 or ends[-1] != count:
        return None
    return [pixels.pick(range(end - size, end)) for end, size in zip(ends, sizes, strict=True)]


def _unsqueezed(
    node: NodeProto, rest: Sequence[NDArray[Any] | None], attributes: Mapping[str, Any], pixels: Pixels
) -> list[Pixels] | None:
    axes = _named_axes(rest, attributes)
    if len(axes) != 1 or "C" in pixels.axes:
        return None
    place = axes[0] + (len(pixels.axes) + 1 if axes[0] < 0 else 0)
    return [replace(pixels, axes=f"{pixels.axes[:place]}C{pixels.axes[place:]}")]


def _squeezed(
    node: NodeProto, rest: Sequence[NDArray[Any] | None], attributes: Mapping[str, Any], pixels: Pixels
) -> list[Pixels] | None:
    axes = _named_axes(rest, attributes)
    if len(axes) != 1 or _axis(pixels.axes, axes[0]) != pixels.axes.find("C") or len(pixels.channels) != 1:
        return None
    return [replace(pixels, axes=pixels.axes.replace("C", ""))]


def _named_axes(rest: Sequence[NDArray[Any] | None], attributes: Mapping[str, Any]) -> list[int]:
    given = rest[1] if len(rest) > 1 else attributes.get("axes")
    return [] if given is None else [int(each) for each in np.atleast_1d(given)]
