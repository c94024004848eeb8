"""The pass `fp32`: convolutions with float32 accuracy on TF32 hardware.

Tensor cores read float32 operands as TF32, with 11 of their 24 significant bits, and some libraries cannot
disable it (TensorRT-RTX 1.6.1 ignores the flag). So each operand is written as a sum:
`high`, rounded so that TF32 holds it exactly, and `low`, the rest. A convolution sums over its input channels,
so one convolution of three times as many adds up, in float32,

    conv([x_high, x_low, x], [w_high, w_high, w_low]) = conv(x, w)

where TF32 truncates only products with the small factor. This is known as 3xTF32. Weights are split at build
time, activations at run time by way of bfloat16, which has float32's range.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from yolotrt_core.types import Json, ModelSpec, OnnxModel
from yolotrt_onnx.graph import check, element_types, lift_constants, load, save, spec_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

_log = logging.getLogger(__name__)

_TF32_DROPS = 13  # of float32's 23 fraction bits


def apply(model: OnnxModel, out: Path) -> tuple[ModelSpec, Mapping[str, Json]]:
    """Write the graph of `model` with its convolutions split to `out/model.onnx`; see `split_convolutions`."""
    graph = load(model.path)
    count = split_convolutions(graph)
    _log.info("splitting %d convolutions into exact sums, which are slower than TF32", count)
    check(graph, "the fp32 pass", "report this graph; `--fp32-convolutions plain` builds without the pass")
    save(graph, out)
    return spec_of(graph, model.spec), {"split": count, "nodes": len(graph.graph.node)}


def split_convolutions(model: ModelProto) -> int:
    """Split the float32 convolutions of a graph in place; return their number.

    They keep their names. Grouped convolutions stay unchanged: they do not sum over all channels, and do not
    use tensor cores.
    """
    lift_constants(model)
    types = element_types(model)
    graph = model.graph
    weights = {weight.name: weight for weight in graph.initializer}
    splitter = _Splitter(weights)
    nodes: list[NodeProto] = []
    count = 0
    for node in graph.node:
        if _splittable(node, weights) and types[node.output[0]] == TensorProto.FLOAT:
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


def _splittable(node: NodeProto, weights: Mapping[str, TensorProto]) -> bool:
    if node.op_type != "Conv" or node.input[1] not in weights:
        return False
    return all(a.i == 1 for a in node.attribute if a.name == "group")


class _Splitter:
    """Splits each tensor once, however many convolutions read it."""

    def __init__(self, weights: Mapping[str, TensorProto]) -> None:
        self._weights = weights
        self._split: dict[str, str] = {}
        self.made: list[TensorProto] = []

    def replace(self, node: NodeProto) -> list[NodeProto]:
        """Return the nodes that replace `node`."""
        added: list[NodeProto] = []
        image, weight = node.input[:2]
        if image not in self._split:
            self._split[image] = self._split_image(image, added)
        if weight not in self._split:
            self._split[weight] = self._split_weight(self._weights[weight])
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.input[0], copy.input[1] = self._split[image], self._split[weight]
        return [*added, copy]

    def _split_weight(self, weight: TensorProto) -> str:
        values = numpy_helper.to_array(weight)
        high = _rounded_to_tf32(values)
        name = f"{weight.name}/split"
        self.made.append(numpy_helper.from_array(np.concatenate((high, high, values - high), axis=1), name))
        return name

    def _split_image(self, name: str, added: list[NodeProto]) -> str:
        short, high, low, joined = (f"{name}/split/{part}" for part in ("bf16", "high", "low", "joined"))
        added += [
            helper.make_node("Cast", [name], [short], name=short, to=TensorProto.BFLOAT16),
            helper.make_node("Cast", [short], [high], name=high, to=TensorProto.FLOAT),
            helper.make_node("Sub", [name, high], [low], name=low),
            helper.make_node("Concat", [high, low, name], [joined], name=joined, axis=1),
        ]
        return joined


def _rounded_to_tf32(values: NDArray[np.float32]) -> NDArray[np.float32]:
    bits = np.ascontiguousarray(values).view(np.uint32)
    half = np.uint32(1 << (_TF32_DROPS - 1))
    return ((bits + half) >> _TF32_DROPS << _TF32_DROPS).astype(np.uint32).view(np.float32)
