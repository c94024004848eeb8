"""Convert a float32 graph to a strongly typed 16-bit graph.

TensorRT 11 and TensorRT-RTX do not promote types: every operator's inputs must agree. So each node is
either *low* (16-bit) or *held* (float32), with one `Cast` per tensor that crosses between them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from yolotrt_onnx.graph import constant_value, element_types, input_slots, opset, output_slots

# After the last of these, a YOLO network only decodes boxes.
_HEAVY = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# Between the last convolutions and box decoding: values in 0..1, or moved values.
_CARRIES = frozenset({"Sigmoid", "Reshape", "Transpose", "Split", "Slice"})
# The results of these describe the image's size, not its content.
_SHAPE_OPS = frozenset({"Shape", "Size"})
_TAKES_ANY = frozenset({"Cast", *_SHAPE_OPS})
# Operators whose result type is an attribute or a constant, not an input's type.
_TYPED_BY_ATTRIBUTE = frozenset({"Cast", "Constant", "ConstantOfShape"})


@dataclass(frozen=True, slots=True)
class Retyping:
    """Types of a graph after the conversion.

    Attributes:
        dtype: `TensorProto.FLOAT16` or `TensorProto.BFLOAT16`.
        held: outputs[0] of the nodes that stay float32.
        low_inputs, low_outputs: float32 graph inputs, outputs change type too.
    """

    dtype: int
    held: frozenset[str]
    low_inputs: bool = False
    low_outputs: bool = False


def shape_nodes(model: ModelProto) -> set[str]:
    """Return outputs[0] of nodes that compute with sizes and constants only, never with pixels.

    Sizes exceed the 16-bit range of exact integers (fp16: 2048), so they stay float32.
    """
    data = {value.name for value in model.graph.input}
    found = set()
    for node in model.graph.node:
        if node.op_type not in _SHAPE_OPS and data.intersection(node.input):
            data.update(node.output)
        else:
            found.add(node.output[0])
    return found


def decode_nodes(model: ModelProto) -> set[str]:
    """Return outputs[0] of the box decoding nodes: those after the last convolutions that compute with pixels.

    The activation and moves that come first are excluded: their inputs are already rounded, and float32 there
    makes YOLOv5n 6% slower on an H100 (2.85 instead of 2.67 ms for 32 images, TensorRT-RTX 1.6.1).
    """
    leads_to_heavy: set[str] = set()  # tensors that some convolution still reads
    found = set()
    for node in reversed(model.graph.node):
        if node.op_type in _HEAVY or leads_to_heavy.intersection(node.output):
            leads_to_heavy.update(node.input)
        else:
            found.add(node.output[0])
    if not leads_to_heavy:
        return set()
    rounded = {output for node in model.graph.node if node.op_type in _HEAVY for output in node.output}
    for node in model.graph.node:
        if node.op_type in _CARRIES and node.output[0] in found and node.input[0] in rounded:
            rounded.update(node.output)
            found.remove(node.output[0])
    return found


def unsupported_nodes(model: ModelProto, dtype: int) -> set[str]:
    """Return outputs[0] of the nodes whose float32 result ONNX does not define for `dtype`."""
    types, version = element_types(model), opset(model)
    found = set()
    for node in model.graph.node:
        inputs = {slot.variable for slot in input_slots(node, version)}
        for slot in output_slots(node, version):
            follows = node.op_type in _TYPED_BY_ATTRIBUTE or slot.variable in inputs
            if types[slot.tensor] == TensorProto.FLOAT and not (follows and _text(dtype) in slot.allowed):
                found.add(node.output[0])
    return found


def unfit_weights(model: ModelProto, dtype: int, max_error: float = 0.01) -> dict[str, float]:
    """Find float32 weights out of `dtype`'s range: too large, or so small that they underflow.

    Args:
        max_error: maximum relative L2 error of rounding; ordinary weights have 2e-4 in fp16 and 2e-3 in
            bfloat16.

    Returns:
        Initializer name to its error; infinite where a value overflows.
    """
    found = {}
    for weight in model.graph.initializer:
        if weight.data_type != TensorProto.FLOAT:
            continue
        exact = numpy_helper.to_array(weight).astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            error = np.square(_rounded(exact, dtype).astype(np.float64) - exact).sum()
            size = np.square(exact).sum()
        relative = float(np.sqrt(error / size)) if size else 0.0
        if not relative <= max_error:
            found[weight.name] = relative
    return found


def retype(model: ModelProto, plan: Retyping) -> None:
    """Apply a `Retyping` in place.

    The graph must be topologically sorted and fully typed. Inputs and outputs keep their names; cast tensors
    are called `NAME_float16`, `NAME_bfloat16`, `NAME_float32`.
    """
    _Retyper(model, plan).run()


@dataclass(slots=True)
class _Retyper:
    model: ModelProto
    plan: Retyping
    types: dict[str, int] = field(init=False)
    version: int = field(init=False)
    nodes: list[NodeProto] = field(default_factory=list)
    casts: dict[tuple[str, int], str] = field(default_factory=dict)
    weights: dict[str, TensorProto] = field(init=False)

    def __post_init__(self) -> None:
        self.types = element_types(self.model)
        self.version = opset(self.model)
        self.weights = {w.name: w for w in self.model.graph.initializer}

    def run(self) -> None:
        graph = self.model.graph
        del graph.value_info[:]
        types = self._interface(graph.input, self.plan.low_inputs)
        self.types.update(types)
        outputs = self._interface(graph.output, self.plan.low_outputs)
        for node in graph.node:
            self._add(node, low=node.output[0] not in self.plan.held)
        for name, dtype in outputs.items():
            self._end_as(name, dtype)
        del graph.node[:]
        graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input} | {v.name for v in graph.output}
        kept = [w for w in self.weights.values() if w.name in used]
        del graph.initializer[:]
        graph.initializer.extend(kept)

    def _interface(self, values: Iterable[onnx.ValueInfoProto], low: bool) -> dict[str, int]:
        """Set the type of the float32 inputs or outputs; return it by name."""
        floats = [v for v in values if v.name not in self.weights and self.types[v.name] == TensorProto.FLOAT]
        for value in floats:
            value.type.tensor_type.elem_type = self.plan.dtype if low else TensorProto.FLOAT
        return {v.name: v.type.tensor_type.elem_type for v in floats}

    def _add(self, node: NodeProto, low: bool) -> None:
        for slot in input_slots(node, self.version):
            # These accept any type, so they need no cast.
            if node.op_type not in _TAKES_ANY and self.types[slot.tensor] in (TensorProto.FLOAT, self.plan.dtype):
                takes_low = low and _text(self.plan.dtype) in slot.allowed
                node.input[slot.position] = self._as(slot.tensor, self.plan.dtype if takes_low else TensorProto.FLOAT)
        if low:
            for slot in output_slots(node, self.version):
                if self.types[slot.tensor] == TensorProto.FLOAT:
                    self.types[slot.tensor] = self.plan.dtype
            _retype_attributes(node, self.plan.dtype)
        self.nodes.append(node)

    def _as(self, name: str, dtype: int) -> str:
        """Return `name` as `dtype`, by converting a weight or adding a cast."""
        if self.types[name] == dtype:
            return name
        if (name, dtype) not in self.casts:
            new = self._unused(f"{name}_{helper.tensor_dtype_to_np_dtype(dtype).name}")
            if name in self.weights:
                low = numpy_helper.from_array(_rounded(numpy_helper.to_array(self.weights[name]), dtype), new)
                self.weights[new] = low
            else:
                self.nodes.append(helper.make_node("Cast", [name], [new], name=f"{new}/Cast", to=dtype))
            self.types[new] = dtype
            self.casts[name, dtype] = new
        return self.casts[name, dtype]

    def _end_as(self, name: str, dtype: int) -> None:
        """Give the graph output `name` the type `dtype`, with a cast if needed."""
        if self.types[name] == dtype:
            return
        inner = self._unused(f"{name}_{helper.tensor_dtype_to_np_dtype(self.types[name]).name}")
        for node in self.nodes:
            for names in (node.input, node.output):
                for index, used in enumerate(names):
                    if used == name:
                        names[index] = inner
        self.nodes.append(helper.make_node("Cast", [inner], [name], name=f"{name}/Cast", to=dtype))

    def _unused(self, name: str) -> str:
        while name in self.types:
            name += "_"
        return name


def _text(dtype: int) -> str:
    """Return a type in the notation of operator schemas."""
    return f"tensor({TensorProto.DataType.Name(dtype).lower()})"


def _retype_attributes(node: NodeProto, dtype: int) -> None:
    """Change a node's float32 result type attribute."""
    if node.op_type == "Cast":
        to = next(a for a in node.attribute if a.name == "to")
        if to.i == TensorProto.FLOAT:
            to.i = dtype
    elif node.op_type == "ConstantOfShape" and node.attribute:
        stored = node.attribute[0].t
        if stored.data_type == TensorProto.FLOAT:
            stored.CopyFrom(numpy_helper.from_array(_rounded(numpy_helper.to_array(stored), dtype), stored.name))
    elif (value := constant_value(node)) is not None and value.data_type == TensorProto.FLOAT:
        del node.attribute[:]
        low = numpy_helper.from_array(_rounded(numpy_helper.to_array(value), dtype))
        node.attribute.append(helper.make_attribute("value", low))


def _rounded(values: NDArray[Any], dtype: int) -> NDArray[Any]:
    """Round to a 16-bit float, nearest even; overflow becomes infinite."""
    with np.errstate(over="ignore"):
        return np.asarray(values).astype(helper.tensor_dtype_to_np_dtype(dtype))
