"""Bring what tf2onnx wrote to the project's form: names, batch, row layout, and no `Resize` that TensorRT refuses."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from yolotrt_core.errors import StageError
from yolotrt_core.rows import Rows

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def rename_tensors(model: ModelProto, names: Mapping[str, str]) -> None:
    """Rename tensors everywhere in the main graph."""
    graph = model.graph
    for node in graph.node:
        for used in (node.input, node.output):
            for index, name in enumerate(used):
                if name in names:
                    used[index] = names[name]
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = names.get(value.name, value.name)


def number_names(model: ModelProto) -> None:
    """Order nodes by what the outputs need, and name them by operator and place in that order.

    Layers with weights keep TensorFlow's names. tf2onnx goes through sets: which of several equal nodes
    or constants gives them all its name, and the numbers in the names, differ from run to run.
    """
    graph = model.graph
    _sort_nodes(graph)
    weights = {weight.name for weight in graph.initializer}
    kept = {value.name for value in (*graph.input, *graph.output)}
    names: dict[str, str] = {}
    taken = set(kept)

    def fresh(wanted: str) -> str:
        name, count = wanted, 1
        while name in taken:
            count += 1
            name = f"{wanted}_{count}"
        taken.add(name)
        return name

    for node in graph.node:
        layer = re.sub(r"__\d+$", "", node.name) if node.op_type in _LAYERS and weights.intersection(node.input) else ""
        node.name = fresh(layer or node.op_type)
        for position, name in enumerate(node.output):
            if name and name not in kept:
                names[name] = fresh(f"{node.name}/output{position or ''}")
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name in weights and name not in names and name not in kept:
                names[name] = fresh(f"{node.name}/input{position}")
    rename_tensors(model, names)
    for weight in graph.initializer:
        weight.name = names.get(weight.name, weight.name)
    ordered = sorted(graph.initializer, key=lambda weight: weight.name)
    del graph.initializer[:]
    graph.initializer.extend(ordered)


def _sort_nodes(graph: GraphProto) -> None:
    """Put each node behind those it reads, which come in the order it reads them; what nobody reads goes."""
    producers = {name: node for node in graph.node for name in node.output}
    ordered: dict[int, NodeProto] = {}
    waiting = [producers[value.name] for value in reversed(graph.output) if value.name in producers]
    while waiting:
        node = waiting[-1]
        needed = [producers[name] for name in node.input if name in producers]
        missing = [each for each in needed if id(each) not in ordered]
        if missing and id(node) not in ordered:
            waiting.extend(reversed(missing))
        else:
            ordered.setdefault(id(node), node)
            waiting.pop()
    nodes = list(ordered.values())
    del graph.node[:]
    graph.node.extend(nodes)


def quantize_input(model: ModelProto, scale: float, zero_point: int) -> None:
    """Give a graph whose `images` is an integer tensor a float32 one that is rounded to it."""
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
    """Turn an integer `output0` into float32."""
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
    """Say whether an activation is rounded to integers of which 0 does not stand for 0."""
    weights = {weight.name: weight for weight in model.graph.initializer}
    zeros = {node.input[2] for node in model.graph.node if node.op_type == "QuantizeLinear" and len(node.input) > 2}
    return any(numpy_helper.to_array(weights[name]).any() for name in zeros if name in weights)


def drop_rounding(model: ModelProto) -> None:
    """Take the 8-bit integers out: activations are no longer rounded, weights become the floats they stand for."""
    graph = model.graph
    weights = {weight.name: weight for weight in graph.initializer}
    origin: dict[str, str] = {}  # what a tensor is without the rounding
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
        if value.name in origin:  # the output was one of the integers
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


def arrange_rows(model: ModelProto, rows: Rows, size: tuple[int, int]) -> None:
    """Append what brings `output0` to anchor-major rows in pixels; nothing where it is so already."""
    moved, scale = rows.permutation(*size), rows.scale(*size)
    width = model.graph.output[0].type.tensor_type.shape.dim[2].dim_value
    steps: list[tuple[str, NDArray[np.generic], dict[str, int]]] = []
    if scale is not None:
        factors = np.ones(width, np.float32)
        factors[:4] = scale
        steps.append(("Mul", factors, {}))
    if moved is not None:
        steps.append(("Gather", moved.astype(np.int32), {"axis": 1}))
    if not steps:
        return
    rename_tensors(model, {"output0": "rows_0"})
    for index, (operator, constant, attributes) in enumerate(steps):
        name = f"rows_{operator.lower()}"
        result = f"rows_{index + 1}" if index + 1 < len(steps) else "output0"
        model.graph.initializer.append(numpy_helper.from_array(constant, name))
        model.graph.node.append(helper.make_node(operator, [f"rows_{index}", name], [result], name=name, **attributes))
    model.graph.output[0].name = "output0"


def rewrite_resizes(model: ModelProto) -> int:
    """Write nearest upsampling by whole factors in the one form every TensorRT parser takes.

    TensorFlow's `tf.image.resize` becomes `tf_half_pixel_for_nn` with `floor`. Source pixel of x is
    floor((x + 0.5) / s), which for a whole factor s is floor(x / s): `asymmetric` with `floor`.

    Returns:
        How many nodes were rewritten.
    """
    weights = {weight.name: weight for weight in model.graph.initializer}
    count = 0
    for node in model.graph.node:
        if node.op_type != "Resize" or not _is_half_pixel_floor(node) or len(node.input) < 3:
            continue
        scales = weights.get(node.input[2])
        if scales is None:
            continue
        factors = numpy_helper.to_array(scales)
        if factors.size == 0 or not np.array_equal(factors, np.maximum(np.round(factors), 1)):
            continue
        for attribute in node.attribute:
            if attribute.name == "coordinate_transformation_mode":
                attribute.s = b"asymmetric"
        count += 1
    return count


def _is_half_pixel_floor(node: NodeProto) -> bool:
    words = {a.name: a.s for a in node.attribute if a.type == onnx.AttributeProto.STRING}
    wanted = {
        "mode": b"nearest",
        "coordinate_transformation_mode": b"tf_half_pixel_for_nn",
        "nearest_mode": b"floor",
    }
    return all(words.get(name) == word for name, word in wanted.items())


def set_batch(model: ModelProto, batch: int | str, made_for: int) -> None:
    """Give a graph made for so many pictures another batch, or a free one.

    Raises:
        StageError: the graph's shapes do not follow from its input's.
    """
    graph = model.graph
    constants = {w.name: w for w in graph.initializer}
    for node in graph.node:
        shape = constants.get(node.input[1]) if node.op_type == "Reshape" else None
        if shape is not None and not node.attribute:
            sizes = numpy_helper.to_array(shape).copy()
            if len(sizes) > 1 and sizes[0] == made_for and 0 not in sizes:
                sizes[0] = 0  # as many as the input has
                node.input[1] = f"{shape.name}_batch"
                if node.input[1] not in constants:
                    constants[node.input[1]] = numpy_helper.from_array(sizes, node.input[1])
                    graph.initializer.append(constants[node.input[1]])
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        _set_dim(value, 0, batch)
    try:
        onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as err:
        raise StageError(
            f"the model is made for batches of {made_for} only: {' '.join(str(err).split())[:200]}",
            hint=f"build with `--batch {made_for}`, or save the model with a free batch",
        ) from err


def _set_dim(value: ValueInfoProto, axis: int, size: int | str) -> None:
    dim = value.type.tensor_type.shape.dim[axis]
    dim.Clear()
    if isinstance(size, str):
        dim.dim_param = size
    else:
        dim.dim_value = size


def set_shape(value: ValueInfoProto, shape: tuple[int | str, ...]) -> None:
    """Write the dimensions of an input or output; a text is a free one."""
    del value.type.tensor_type.shape.dim[:]
    for axis, size in enumerate(shape):
        value.type.tensor_type.shape.dim.add()
        _set_dim(value, axis, size)
