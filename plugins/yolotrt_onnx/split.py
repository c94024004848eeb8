"""The pass `fp32`: convolutions that stay as exact as float32 on hardware that multiplies in TF32.

Tensor cores read float32 operands as TF32, with 11 of their 24 significant bits, and some libraries offer
no way around (TensorRT-RTX 1.6.1 takes the flag and computes the same). So each operand is written as a sum:
`high`, its value in half precision, which TF32 holds exactly, and `low`, the rest. The network sums in float32

    op(a, b) = op(a_high, b_high) + (op(a_low, b_high) + op(a, b_low))

where TF32 cuts only what the small factor makes small. Outside half's range `low` is no longer small, and the
result is as good as plain TF32 there. Known as 3xTF32 among users of tensor cores. Weights are split here,
activations when the network runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from yolotrt_core.types import Json, ModelSpec, OnnxModel
from yolotrt_onnx.graph import check, element_types, lift_constants, load, save, spec_of

# Operators that are linear in each of their first two inputs and run on tensor cores.
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_HALF_MAX = 65504.0


class _Parts(NamedTuple):
    high: str
    low: str


def apply(model: OnnxModel, out: Path) -> tuple[ModelSpec, Mapping[str, Json]]:
    """Write the graph of `model` with its products split to `out/model.onnx`; see `split_products`."""
    graph = load(model.path)
    count = split_products(graph)
    check(graph, "the fp32 pass", "report this graph; `--fp32-products plain` builds without the pass")
    save(graph, out)
    return spec_of(graph, model.spec), {"split": count, "nodes": len(graph.graph.node)}


def split_products(model: ModelProto) -> int:
    """Split every float32 product of a graph in place; return how many there were.

    Nodes keep the names of what they replace, with a suffix, so that errors and layer lists still point there.
    """
    lift_constants(model)
    types = element_types(model)
    graph = model.graph
    weights = {weight.name: weight for weight in graph.initializer}
    splitter = _Splitter(weights)
    nodes: list[NodeProto] = []
    count = 0
    for node in graph.node:
        if node.op_type in _PRODUCTS and types[node.output[0]] == TensorProto.FLOAT:
            nodes += splitter.replace(node)
            count += 1
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    still_read = {name for node in nodes for name in node.input} | {value.name for value in graph.output}
    kept = [w for w in [*graph.initializer, *splitter.made] if w.name in still_read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return count


class _Splitter:
    """Makes the parts of each tensor once, however many nodes read it."""

    def __init__(self, weights: Mapping[str, TensorProto]) -> None:
        self._weights = weights
        self._parts: dict[str, _Parts] = {}
        self.made: list[TensorProto] = [
            numpy_helper.from_array(np.float32(sign * _HALF_MAX), name)
            for name, sign in (("split/least", -1), ("split/most", 1))
        ]

    def replace(self, node: NodeProto) -> list[NodeProto]:
        """Return the nodes that compute what `node` does."""
        added: list[NodeProto] = []
        first, second = (self._split(name, added) for name in node.input[:2])
        result, label = node.output[0], node.name or node.output[0]
        whole = self._product(node, f"{result}/high", first.high, second.high, list(node.input[2:]), "")
        corrections = [
            self._product(node, f"{result}/low_{i}", a, b, [], f"/low_{i}")
            for i, (a, b) in enumerate(((first.low, second.high), (node.input[0], second.low)))
        ]
        small = f"{result}/low"
        added += [whole, *corrections]
        added.append(helper.make_node("Add", [c.output[0] for c in corrections], [small], name=f"{label}/low"))
        added.append(helper.make_node("Add", [whole.output[0], small], [result], name=f"{label}/sum"))
        return added

    def _product(self, node: NodeProto, result: str, a: str, b: str, rest: list[str], suffix: str) -> NodeProto:
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.name = f"{node.name or node.output[0]}{suffix}"
        del copy.input[:], copy.output[:]
        copy.input.extend([a, b, *rest])
        copy.output.append(result)
        return copy

    def _split(self, name: str, added: list[NodeProto]) -> _Parts:
        if name not in self._parts:
            weight = self._weights.get(name)
            self._parts[name] = self._split_value(name, added) if weight is None else self._split_weight(weight)
        return self._parts[name]

    def _split_weight(self, weight: TensorProto) -> _Parts:
        values = numpy_helper.to_array(weight)
        high = np.clip(values, -_HALF_MAX, _HALF_MAX).astype(np.float16).astype(np.float32)
        parts = _Parts(f"{weight.name}/high", f"{weight.name}/low")
        self.made += [numpy_helper.from_array(v, n) for n, v in zip(parts, (high, values - high), strict=True)]
        return parts

    def _split_value(self, name: str, added: list[NodeProto]) -> _Parts:
        parts = _Parts(f"{name}/split/high", f"{name}/split/low")
        clipped, half = f"{name}/split/clipped", f"{name}/split/half"
        added += [
            helper.make_node("Clip", [name, "split/least", "split/most"], [clipped], name=clipped),
            helper.make_node("Cast", [clipped], [half], name=half, to=TensorProto.FLOAT16),
            helper.make_node("Cast", [half], [parts.high], name=parts.high, to=TensorProto.FLOAT),
            helper.make_node("Sub", [name, parts.high], [parts.low], name=parts.low),
        ]
        return parts
