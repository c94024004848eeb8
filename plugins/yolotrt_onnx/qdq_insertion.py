"""Insertion of Q/DQ nodes at the inputs of convolutions, for the passes `int8` and `fp8`.

Quantizes what strongly typed TensorRT fuses (TensorRT 10 and 11, TensorRT-RTX 1.7): the input and the
weights of a convolution, symmetric, weights per output channel; not its bias, its result before the
activation function, or box decoding.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from yolotrt_core.calibration.ranges import E4M3_MAX, INT8_LEVELS, e4m3_scale, int8_scale
from yolotrt_core.errors import StageError, UsageError

log = logging.getLogger(__name__)

FORMATS = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}
# Minimum operator set with FP8 and fp16 scales in Q/DQ.
OPSET = 19


@dataclass(frozen=True, slots=True)
class Plan:
    """What to quantize.

    Attributes:
        format: `int8` or `fp8`. kept: names of the convolution nodes that stay float.
        shortcuts: residual additions read the quantized shortcut. shared_concats:
            concatenated tensors share one scale. per_channel: weights have a scale per channel.
    """

    format: str
    kept: frozenset[str] = frozenset()
    shortcuts: bool = True
    shared_concats: bool = False
    per_channel: bool = True


def is_quantized(model: ModelProto) -> bool:
    """Check whether the graph contains Q/DQ nodes, as after quantization-aware training."""
    return any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node)


def stem_convolutions(model: ModelProto) -> set[str]:
    """Return the names of the convolutions that read the image, through data movement at most (Focus)."""
    inputs = {v.name for v in model.graph.input} - {w.name for w in model.graph.initializer}
    raw = set(inputs)
    found = set()
    for node in model.graph.node:
        if node.op_type == "Conv" and node.input[0] in raw:
            found.add(node.name)
        elif node.op_type in ("Slice", "Concat", "Transpose", "Reshape", "Cast", "Identity") and set(node.input) & raw:
            raw.update(node.output)
    return found


def head_convolutions(model: ModelProto) -> set[str]:
    """Return the names of the last convolutions: the detection head."""
    followed: set[str] = set()  # tensors that lead to a convolution
    heads = set()
    for node in reversed(model.graph.node):
        leads = bool(followed.intersection(node.output))
        if node.op_type == "Conv" and not leads:
            heads.add(node.name)
        if node.op_type == "Conv" or leads:
            followed.update(node.input)
    return heads


def module_name(node: NodeProto) -> str:
    """Return the name of the YOLO module a convolution node came from, e.g. `model.2.cv1.conv`.

    torch's exporters write it to the weight's name (`model.2.cv1.conv.weight`) or in the node's
    (`/model.2/cv1/conv/Conv`); otherwise it is the node's own name.
    """
    weight = node.input[1] if len(node.input) > 1 else ""
    if weight.endswith(".weight"):
        return weight.removesuffix(".weight")
    parts = [p for p in node.name.split("/") if p]
    return ".".join(parts[:-1]) if len(parts) > 1 else node.name


def named_convolutions(model: ModelProto, names: Iterable[str]) -> set[str]:
    """Return the nodes of all convolutions in the named modules (`model.24`, `model.2.cv1`).

    Raises:
        UsageError: an unknown name.
    """
    convolutions = [n for n in model.graph.node if n.op_type == "Conv"]
    found = set()
    for name in names:
        matches = {n.name for n in convolutions if n.name == name or f"{module_name(n)}.".startswith(f"{name}.")}
        if not matches:
            some = ", ".join(f"`{module_name(n)}`" for n in convolutions[:3])
            raise UsageError(f"unknown module `{name}`: it contains no convolution", hint=f"the first are {some}")
        found |= matches
    return found


def layer_names(model: ModelProto, nodes: Iterable[str]) -> list[str]:
    """Return the YOLO module of each of these convolutions, e.g. `model.2.cv1`, in the graph's order.

    Each name selects exactly this convolution in `named_convolutions`.
    """
    selected = set(nodes)
    modules = {n.name: module_name(n) for n in model.graph.node if n.op_type == "Conv"}
    found = []
    for node, module in modules.items():
        short = module.removesuffix(".conv")
        alone = sum(f"{m}.".startswith(f"{short}.") for m in modules.values()) == 1
        if node in selected:
            found.append(short if alone else module)
    return found


def quantize(model: ModelProto, amax: Mapping[str, float], plan: Plan) -> dict[str, Any]:
    """Insert Q/DQ nodes into a float32 graph of operator set 19 or higher, in place.

    Args:
        amax: tensor name to range.

    Returns:
        Facts: counts of convolutions quantized and kept, of Q and DQ nodes, of shortcuts.

    Raises:
        StageError: a tensor has no range; names it.
    """
    return _Quantizer(model, amax, plan).run()


class _Quantizer:
    def __init__(self, model: ModelProto, amax: Mapping[str, float], plan: Plan) -> None:
        self._graph = model.graph
        self._plan = plan
        self._dtype = FORMATS[plan.format]
        self._weights = {w.name: w for w in self._graph.initializer}
        self._chosen = [
            n
            for n in self._graph.node
            if n.op_type == "Conv" and n.name not in plan.kept and n.input[1] in self._weights
        ]
        self._amax = _shared(self._graph, amax) if plan.shared_concats else dict(amax)
        self._activations: dict[str, str] = {}  # tensor to its dequantized form
        self._kernels: dict[str, str] = {}
        self._new: list[TensorProto] = []

    def run(self) -> dict[str, Any]:
        missing = [n.input[0] for n in self._chosen if n.input[0] not in self._amax]
        if missing:
            raise StageError(
                f"the ranges have no entry for `{missing[0]}`"
                + (f" and {len(missing) - 1} more" if missing[1:] else ""),
                hint="calibrate again: the ranges file is incomplete",
            )
        quantized = {n.name for n in self._chosen}
        shortcuts = self._shortcut_readers() if self._plan.shortcuts else {}
        nodes: list[NodeProto] = []
        for node in self._graph.node:
            if node.name in quantized and node.op_type == "Conv":
                node.input[0] = self._activation(node.input[0], nodes)
                node.input[1] = self._kernel(node.input[1], nodes)
            elif node.output[0] in shortcuts:
                place = shortcuts[node.output[0]]
                node.input[place] = self._activation(node.input[place], nodes)
            nodes.append(node)
        del self._graph.node[:]
        self._graph.node.extend(nodes)
        self._graph.initializer.extend(self._new)
        used = {name for n in self._graph.node for name in n.input} | {v.name for v in self._graph.output}
        kept = [w for w in self._graph.initializer if w.name in used]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)
        convolutions = sum(n.op_type == "Conv" for n in self._graph.node)
        return {
            "format": self._plan.format,
            "quantized_convolutions": len(self._chosen),
            "float_convolutions": convolutions - len(self._chosen),
            "quantize_nodes": sum(n.op_type == "QuantizeLinear" for n in self._graph.node),
            "dequantize_nodes": sum(n.op_type == "DequantizeLinear" for n in self._graph.node),
            "quantized_shortcuts": len(shortcuts),
        }

    def _shortcut_readers(self) -> dict[str, int]:
        """Return the residual additions and the index of their shortcut: the input a quantized convolution reads."""
        read = {n.input[0] for n in self._chosen}
        found = {}
        for node in self._graph.node:
            if node.op_type == "Add" and len(node.input) == 2:
                places = [i for i, name in enumerate(node.input) if name in read]
                if len(places) == 1 and node.input[1 - places[0]] not in self._weights:
                    found[node.output[0]] = places[0]
        return found

    def _activation(self, name: str, nodes: list[NodeProto]) -> str:
        if name not in self._activations:
            scale = int8_scale(self._amax[name]) if self._plan.format == "int8" else e4m3_scale(self._amax[name])
            scale_name, zero_name = f"{name}_scale", f"{name}_zero_point"
            self._new.append(numpy_helper.from_array(np.array(scale, np.float32), scale_name))
            self._new.append(self._zero(zero_name, ()))
            low, back = f"{name}_{self._plan.format}", f"{name}_dequantized"
            nodes.append(
                helper.make_node("QuantizeLinear", [name, scale_name, zero_name], [low], name=f"{name}/QuantizeLinear")
            )
            nodes.append(
                helper.make_node(
                    "DequantizeLinear", [low, scale_name, zero_name], [back], name=f"{name}/DequantizeLinear"
                )
            )
            self._activations[name] = back
        return self._activations[name]

    def _kernel(self, name: str, nodes: list[NodeProto]) -> str:
        if name not in self._kernels:
            weights = numpy_helper.to_array(self._weights[name]).astype(np.float32)
            scale = weight_scales(weights, self._plan.format, self._plan.per_channel)
            spread = scale.reshape(-1, *[1] * (weights.ndim - 1)) if scale.ndim else scale
            low, back = f"{name}_{self._plan.format}", f"{name}_dequantized"
            self._new.append(numpy_helper.from_array(scale, f"{name}_scale"))
            self._new.append(self._zero(f"{name}_zero_point", scale.shape))
            self._new.append(_tensor(low, round_to(weights / spread, self._plan.format), self._dtype))
            axis = {"axis": 0} if scale.ndim else {}
            inputs = [low, f"{name}_scale", f"{name}_zero_point"]
            nodes.append(helper.make_node("DequantizeLinear", inputs, [back], name=f"{name}/DequantizeLinear", **axis))
            self._kernels[name] = back
        return self._kernels[name]

    def _zero(self, name: str, shape: tuple[int, ...]) -> TensorProto:
        return _tensor(name, np.zeros(shape, helper.tensor_dtype_to_np_dtype(self._dtype)), self._dtype)


def weight_scales(weights: NDArray[np.float32], form: str, per_channel: bool) -> NDArray[np.float32]:
    """Return the scale of a kernel (K, C, R, S): float32 (K,), or a scalar; all positive and exact in fp16."""
    axes = tuple(range(1, weights.ndim)) if per_channel else None
    amax = np.abs(weights).max(axis=axes).astype(np.float64)
    scale = int8_scale if form == "int8" else e4m3_scale
    return np.array([scale(float(each)) for each in amax.flat], np.float32).reshape(amax.shape)


def round_to(values: NDArray[np.float32], form: str) -> NDArray[Any]:
    """Round to codes, ties to even, clipping: int8 -127..127, or E4M3 -448..448."""
    if form == "int8":
        return np.clip(np.rint(values), -INT8_LEVELS, INT8_LEVELS).astype(np.int8)
    return np.clip(values, -E4M3_MAX, E4M3_MAX).astype(helper.tensor_dtype_to_np_dtype(TensorProto.FLOAT8E4M3FN))


def _tensor(name: str, values: NDArray[Any], dtype: int) -> TensorProto:
    return TensorProto(name=name, data_type=dtype, dims=values.shape, raw_data=values.tobytes())


def _shared(graph: Any, amax: Mapping[str, float]) -> dict[str, float]:
    """Give all tensors of a Concat, and its result, their maximum range."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for node in graph.node:
        # Pooling and nearest resizing only move values, so the scale stays.
        if node.op_type in ("Concat", "MaxPool", "Resize"):
            names = node.input if node.op_type == "Concat" else node.input[:1]
            for name in names:
                parent[root(name)] = root(node.output[0])
    widest: dict[str, float] = {}
    for name, value in amax.items():
        widest[root(name)] = max(widest.get(root(name), 0.0), value)
    return {name: widest[root(name)] for name in amax}
