"""Precision of a source graph: that of its convolutions and matrix products before any pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from onnx import ModelProto, NodeProto, TensorProto

from yolotrt_core.types import PRECISIONS, Precision
from yolotrt_onnx.graph import constant_value

_HEAVY = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# These compute with integers, without Q/DQ nodes; some return unscaled sums.
_SUMS = frozenset({"ConvInteger", "MatMulInteger"})
_INTEGER = frozenset({"QLinearConv", "QLinearMatMul"}) | _SUMS
# Operators that only move values between a cast or DequantizeLinear and its reader.
_MOVES = frozenset(
    {"Cast", "Concat", "Flatten", "Identity", "MaxPool", "Pad", "Reshape", "Resize", "Slice", "Split", "Squeeze"}
    | {"Transpose", "Unsqueeze"}
)
_NAMES: dict[int | None, Precision] = {
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "int8",
    TensorProto.FLOAT8E4M3FN: "fp8",
    TensorProto.FLOAT8E5M2: "fp8",
}


def source_precision(model: ModelProto) -> Precision | None:
    """Return the lowest precision of the convolutions and matrix products; None for a float32 network.

    Weights that are stored in fp16 and cast to float32 count as float32. Uses weights, casts and Q/DQ nodes only:
    ONNX's type inference takes seconds for a large network.
    """
    return _lowest(precision for _, precision in layer_precisions(model))


def layer_precisions(model: ModelProto) -> Iterator[tuple[NodeProto, Precision | None]]:
    """Yield each convolution and matrix product with the lowest precision of its operands; None for float32.

    Types that weights, casts and Q/DQ nodes do not determine are taken from the graph's `value_info`, if it is there.
    """
    graph = model.graph
    types: dict[str, int] = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    types |= {weight.name: weight.data_type for weight in graph.initializer}
    types |= {value.name: value.type.tensor_type.elem_type for value in graph.input}
    codes: dict[str, int] = {}  # dequantized tensors, with the type of the codes they come from
    for node in graph.node:
        if node.op_type in _INTEGER:
            yield node, "int8"
        elif node.op_type in _HEAVY:
            yield node, _lowest(_NAMES.get(codes.get(name, types.get(name))) for name in node.input[:2])
        elif node.op_type == "DequantizeLinear":
            codes[node.output[0]] = types.get(node.input[0], TensorProto.UNDEFINED)
        else:
            _follow(node, types, codes)


def _lowest(found: Iterable[Precision | None]) -> Precision | None:
    known = set(found)
    return next((precision for precision in reversed(PRECISIONS) if precision in known), None)


def has_integer_sums(model: ModelProto) -> bool:
    """Check whether the graph scales integer sums itself, as after dynamic quantization."""
    return any(node.op_type in _SUMS for node in model.graph.node)


def has_bfloat16(model: ModelProto) -> bool:
    """Check whether any tensor is cast to or stored in bfloat16."""
    graph = model.graph
    casts = (a.i for n in graph.node if n.op_type == "Cast" for a in n.attribute if a.name == "to")
    stored = (w.data_type for w in graph.initializer)
    return TensorProto.BFLOAT16 in {*casts, *stored}


def _follow(node: NodeProto, types: dict[str, int], codes: dict[str, int]) -> None:
    """Record a node's result type where an attribute defines it or the node only moves values."""
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "QuantizeLinear":
        zero_point = types.get(node.input[2]) if len(node.input) > 2 else None
        types[node.output[0]] = zero_point or attributes.get("output_dtype") or TensorProto.UINT8  # ONNX's default
    elif (constant := constant_value(node)) is not None:
        types[node.output[0]] = constant.data_type
    elif node.op_type in _MOVES:
        for known in (types, codes):
            if node.input[0] in known:
                known.update(dict.fromkeys(node.output, known[node.input[0]]))
        if node.op_type == "Cast":
            types[node.output[0]] = attributes["to"]
