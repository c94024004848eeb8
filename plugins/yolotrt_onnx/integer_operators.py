"""Quantized models of onnxruntime in the form that TensorRT supports: Q/DQ nodes around float operators.

`quant_format=QOperator` writes operators that compute with integers, such as `QLinearConv`; `quant_format=QDQ` writes
Q/DQ nodes, but biases as int32 with a `DequantizeLinear` of their own, which TensorRT refuses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from yolotrt_core.errors import UsageError
from yolotrt_onnx.graph import opset, raise_opset
from yolotrt_onnx.pixel_tracking import Constants

_PER_CHANNEL_OPSET = 13  # the first `DequantizeLinear` with one scale per channel
_MICROSOFT = "com.microsoft"
_CHANNELS = "_per_channel"  # ends the names of `DequantizeLinear` nodes with one scale per channel


class _Form(NamedTuple):
    """An operator on integers.

    Attributes:
        operator: the float operator. operands: index of each operand; its scale and zero point follow.
        result: index of the result's scale; its zero point follows. bias: index of an int32 bias with the product of
            the first two operands' scales. axis: of the second operand, for one scale per channel.
    """

    operator: str
    operands: tuple[int, ...]
    result: int
    bias: int | None = None
    axis: int = 0


_FORMS: Mapping[tuple[str, str], _Form] = {
    ("", "QLinearConv"): _Form("Conv", (0, 3), 6, 8),
    ("", "QLinearMatMul"): _Form("MatMul", (0, 3), 6, axis=-1),
    (_MICROSOFT, "QGemm"): _Form("Gemm", (0, 3), 7, 6, axis=-1),
    (_MICROSOFT, "QLinearAdd"): _Form("Add", (0, 3), 6),
    (_MICROSOFT, "QLinearMul"): _Form("Mul", (0, 3), 6),
    (_MICROSOFT, "QLinearSigmoid"): _Form("Sigmoid", (0,), 3),
    (_MICROSOFT, "QLinearLeakyRelu"): _Form("LeakyRelu", (0,), 3),
    (_MICROSOFT, "QLinearAveragePool"): _Form("AveragePool", (0,), 3),
    (_MICROSOFT, "QLinearGlobalAveragePool"): _Form("GlobalAveragePool", (0,), 3),
    (_MICROSOFT, "QLinearConcat"): _Form("Concat", (), 0),
}


def use_float_operators(model: ModelProto) -> int:
    """Replace operators on integers by Q/DQ nodes around float operators, and int32 biases by float ones, in place.

    A result can differ by one step of its scale, where onnxruntime rounds in integers.

    Returns:
        The number of changed operators and biases.

    Raises:
        UsageError: an operator on integers that has no such form; names the node.
    """
    nodes: list[NodeProto] = []
    constants, changed, per_channel = Constants(model), 0, False
    for node in model.graph.node:
        form = _FORMS.get((node.domain.removesuffix("ai.onnx"), node.op_type))
        if form is None:
            _refuse(node)
            nodes.append(node)
            continue
        made = list(_replaced(model, node, form, constants))
        per_channel |= any(each.name.endswith(_CHANNELS) for each in made)
        nodes += made
        changed += 1
    if changed:
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        _drop_domain(model)
    changed += _use_float_biases(model)
    if per_channel and opset(model) < _PER_CHANNEL_OPSET:
        raise_opset(model, _PER_CHANNEL_OPSET, "one scale per channel")
    return changed


def has_zero_points(model: ModelProto) -> bool:
    """Check whether a quantized tensor has a nonzero zero point, which TensorRT refuses."""
    constants = Constants(model)
    kinds = ("QuantizeLinear", "DequantizeLinear")
    zeros = (constants.get(n.input[2]) for n in model.graph.node if n.op_type in kinds and len(n.input) > 2)
    return any(zero is not None and bool(zero.astype(np.float32).any()) for zero in zeros)


def _refuse(node: NodeProto) -> None:
    kind = node.op_type
    if kind.startswith(("QLinear", "QAttention", "QEmbed", "QGemm", "QMoE", "NhwcMaxPool")) or (
        node.domain == _MICROSOFT and kind in ("MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM")
    ):
        raise UsageError(
            f"the file is quantized with operators on integers, and node `{node.name}` ({kind}) has no equal in float",
            hint="quantize with `quant_format=QuantFormat.QDQ`, or pass the float model and build with "
            "`--precision int8`",
        )


def _replaced(model: ModelProto, node: NodeProto, form: _Form, constants: Constants) -> Iterator[NodeProto]:
    prefix, inputs = node.name or node.output[0], list(node.input)
    operands = form.operands or tuple(range(2, len(inputs), 3))
    attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    if attributes.pop("channels_last", 0):
        raise UsageError(
            f"node `{prefix}` ({node.op_type}) computes with channels last, which is not supported",
            hint="quantize with `quant_format=QuantFormat.QDQ`",
        )
    read = []
    for place, index in enumerate(operands):
        scale = constants.get(inputs[index + 1])
        channels = place == 1 and scale is not None and scale.size > 1
        name = f"{prefix}_operand_{place}{_CHANNELS if channels else ''}"
        read.append(name)
        more = {"axis": form.axis} if channels else {}
        present = _present(inputs[index : index + 3])
        yield helper.make_node("DequantizeLinear", present, [name], name=name, **more)
    if form.bias is not None and len(inputs) > form.bias and inputs[form.bias]:
        read.append(f"{prefix}_bias")
        scales = [constants.get(inputs[index + 1]) for index in operands]
        bias = constants.get(inputs[form.bias])
        if bias is None or scales[0] is None or scales[1] is None:
            raise UsageError(
                f"node `{prefix}` ({node.op_type}) has a bias or scale that is not constant",
                hint="quantize with `quant_format=QuantFormat.QDQ`",
            )
        value = bias.astype(np.float32) * (scales[0] * scales[1]).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), read[-1]))
    result = f"{prefix}_result"
    yield helper.make_node(form.operator, read, [result], name=prefix, **attributes)
    scale_and_zero = _present(inputs[form.result : form.result + 2])
    yield helper.make_node("QuantizeLinear", [result, *scale_and_zero], list(node.output), name=f"{prefix}_quantize")


def _present(names: Sequence[str]) -> list[str]:
    """Drop an absent zero point."""
    return list(names[:-1]) if names and not names[-1] else list(names)


def _drop_domain(model: ModelProto) -> None:
    used = {node.domain for node in model.graph.node}
    kept = [each for each in model.opset_import if each.domain != _MICROSOFT or _MICROSOFT in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def _use_float_biases(model: ModelProto) -> int:
    """Dequantize constant int32 tensors once and for all: value = integer * scale, in float32 as onnxruntime does."""
    constants, kept, changed = Constants(model), [], 0
    types = {weight.name: weight.data_type for weight in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear" or types.get(node.input[0]) != TensorProto.INT32:
            kept.append(node)
            continue
        numbers, scale = constants.get(node.input[0]), constants.get(node.input[1])
        axis = next((each.i for each in node.attribute if each.name == "axis"), 1)
        if numbers is None or scale is None or scale.dtype != np.float32:
            kept.append(node)
            continue
        if scale.ndim == 1 and scale.size > 1 and numbers.ndim:
            shape = [1] * numbers.ndim
            shape[axis % numbers.ndim if numbers.ndim > 1 else 0] = -1
            scale = scale.reshape(shape)
        value = (numbers.astype(np.float32) * scale.reshape(scale.shape if scale.size > 1 else ())).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
        changed += 1
    if changed:
        del model.graph.node[:]
        model.graph.node.extend(kept)
    return changed
