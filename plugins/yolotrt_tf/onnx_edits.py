"""Edits of tf2onnx's graphs: integer inputs and outputs, another batch."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from yolotrt_core.errors import StageError
from yolotrt_core.export.onnx_normalize import rename_tensors, set_dim


def quantize_input(model: ModelProto, scale: float, zero_point: int) -> None:
    """Replace the integer input `images` by a float32 one that is quantized to it."""
    value = model.graph.input[0]
    element = value.type.tensor_type.elem_type
    _add_weights(model, "images", scale, zero_point, element)
    rename_tensors(model, {"images": "images_quantized"})
    value.name = "images"
    value.type.tensor_type.elem_type = TensorProto.FLOAT
    node = helper.make_node(
        "QuantizeLinear", ["images", "images_scale", "images_zero"], ["images_quantized"], name="images_quantize"
    )
    model.graph.node.insert(0, node)


def dequantize_output(model: ModelProto, scale: float, zero_point: int) -> None:
    """Dequantize an integer `output0` to float32."""
    value = model.graph.output[0]
    _add_weights(model, "output0", scale, zero_point, value.type.tensor_type.elem_type)
    rename_tensors(model, {"output0": "output0_quantized"})
    value.name = "output0"
    value.type.tensor_type.elem_type = TensorProto.FLOAT
    model.graph.node.append(
        helper.make_node(
            "DequantizeLinear", ["output0_quantized", "output0_scale", "output0_zero"], ["output0"], name="dequantize"
        )
    )


def has_zero_points(model: ModelProto) -> bool:
    """Check whether a quantized activation has a nonzero zero point."""
    weights = {weight.name: weight for weight in model.graph.initializer}
    zeros = {node.input[2] for node in model.graph.node if node.op_type == "QuantizeLinear" and len(node.input) > 2}
    return any(numpy_helper.to_array(weights[name]).any() for name in zeros if name in weights)


def drop_rounding(model: ModelProto) -> None:
    """Remove the 8-bit integers: activations are not rounded, weights are dequantized."""
    graph = model.graph
    weights = {weight.name: weight for weight in graph.initializer}
    origin: dict[str, str] = {}  # tensor to its unrounded source
    kept = []
    for node in graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = origin.get(name, name)
        source = node.input[0] if node.input else ""
        if node.op_type == "QuantizeLinear":
            origin[node.output[0]] = source
        elif node.op_type == "DequantizeLinear" and source in weights:
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
            graph.initializer.append(_dequantized([weights[n] for n in node.input], axis, node.output[0]))
        elif node.op_type == "DequantizeLinear":
            origin[node.output[0]] = source
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)
    for value in graph.output:
        if value.name in origin:  # the output was an integer tensor
            rename_tensors(model, {origin[value.name]: value.name})


def _dequantized(parts: list[onnx.TensorProto], axis: int, name: str) -> onnx.TensorProto:
    values, scale = (numpy_helper.to_array(part).astype(np.float32) for part in parts[:2])
    zero = numpy_helper.to_array(parts[2]).astype(np.float32) if len(parts) > 2 else np.zeros_like(scale)
    shape = [-1 if dim == axis else 1 for dim in range(values.ndim)] if scale.ndim else []
    return numpy_helper.from_array((values - zero.reshape(shape)) * scale.reshape(shape), name)


def _add_weights(model: ModelProto, name: str, scale: float, zero_point: int, element: int) -> None:
    dtype = helper.tensor_dtype_to_np_dtype(element)
    model.graph.initializer.append(numpy_helper.from_array(np.float32(scale), f"{name}_scale"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(zero_point, dtype), f"{name}_zero"))


def set_batch(model: ModelProto, batch: int | str, fixed_batch: int) -> None:
    """Change a graph's fixed batch to another, or a free one.

    Raises:
        StageError: the graph's shapes do not depend on its input's.
    """
    graph = model.graph
    constants = {w.name: w for w in graph.initializer}
    for node in graph.node:
        shape = constants.get(node.input[1]) if node.op_type == "Reshape" else None
        if shape is not None and not node.attribute:
            sizes = numpy_helper.to_array(shape).copy()
            if len(sizes) > 1 and sizes[0] == fixed_batch and 0 not in sizes:
                sizes[0] = 0  # as in the input
                node.input[1] = f"{shape.name}_batch"
                if node.input[1] not in constants:
                    constants[node.input[1]] = numpy_helper.from_array(sizes, node.input[1])
                    graph.initializer.append(constants[node.input[1]])
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        set_dim(value, 0, batch)
    try:
        onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as err:
        raise StageError(
            f"the model supports only batches of {fixed_batch}: {' '.join(str(err).split())[:200]}",
            hint=f"build with `--batch {fixed_batch}`, or save the model with a free batch",
        ) from err
