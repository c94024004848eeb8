"""Normalization of ONNX graphs from framework converters.

Works on the fields of an `onnx.ModelProto` without importing onnx. `apply` runs all steps, which exporters can also
call one by one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from yolotrt_core.errors import StageError, UsageError
from yolotrt_core.export.output_layout import Rows
from yolotrt_core.types import ModelSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# Numbers of onnx.proto3: TensorProto.FLOAT and INT32, AttributeProto.INT.
_FLOAT, _INT32, _INT = 1, 6, 2


def apply(model: ModelProto, spec: ModelSpec, rows: Rows | None, size: tuple[int, int]) -> None:
    """Normalize names, row order and shapes of a graph with one input and one output.

    Equal networks then give equal bytes, independent of the converter's numbering.

    Args:
        model: changed in place; its input has the spec's layout, its output the layout `rows`.
        spec: spec of the result. size: (height, width) in pixels.
        rows: result of `find_rows`; None for a head other than YOLOv5's, which stays as it is.

    Raises:
        StageError: a different number of inputs or outputs.
    """
    weights = {weight.name for weight in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    found = (len(inputs), len(model.graph.output))
    if found != (1, 1):
        raise StageError(
            f"expected a graph with one input and one output, found {found[0]} and {found[1]}",
            hint="convert the model with the image input and the box output only",
        )
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    rename_tensors(model, {inputs[0].name: spec.inputs[0].name, model.graph.output[0].name: spec.outputs[0].name})
    number_names(model)
    rewrite_resizes(model)
    if rows is not None:
        arrange_rows(model, rows, size)
    declare(model, spec)
    del model.graph.value_info[:]
    model.graph.name = spec.head
    for part in (model, model.graph, *model.graph.node):  # converters write numbered text there
        part.doc_string = ""


def declare(model: ModelProto, spec: ModelSpec) -> None:
    """Give inputs and outputs the names and shapes of the spec, in their order."""
    values, tensors = (*model.graph.input, *model.graph.output), (*spec.inputs, *spec.outputs)
    rename_tensors(model, {value.name: tensor.name for value, tensor in zip(values, tensors, strict=True)})
    for value, tensor in zip(values, tensors, strict=True):
        set_shape(value, tensor.shape)


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
    """Sort nodes by the needs of the outputs, and name them by operator and position.

    Layers with weights keep TensorFlow's names. tf2onnx iterates over sets, so its names and numbers differ between
    runs.
    """
    graph = model.graph
    sort_nodes(graph)
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


def sort_nodes(graph: GraphProto) -> None:
    """Sort nodes topologically, in the order of their inputs; unused nodes are removed.

    Raises:
        UsageError: the nodes form a cycle; names one of them.
    """
    producers = {name: node for node in graph.node for name in node.output if name}
    ordered: dict[int, NodeProto] = {}
    opened: set[int] = set()
    waiting = [producers[value.name] for value in reversed(graph.output) if value.name in producers]
    while waiting:
        node = waiting[-1]
        needed = [producers[name] for name in read_names(node) if name in producers]
        missing = [each for each in needed if id(each) not in ordered]
        if missing and id(node) not in ordered:
            if id(node) in opened:
                raise UsageError(f"node `{node.name}` ({node.op_type}) of the graph needs its own output")
            opened.add(id(node))
            waiting.extend(reversed(missing))
        else:
            ordered.setdefault(id(node), node)
            waiting.pop()
    nodes = list(ordered.values())
    del graph.node[:]
    graph.node.extend(nodes)


def read_names(node: NodeProto) -> Iterator[str]:
    """Yield the names of the tensors that a node reads, including those that its subgraphs read from outside."""
    yield from node.input
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            made = {name for each in inner.node for name in each.output}
            made |= {value.name for value in (*inner.input, *inner.initializer)}
            reads = (name for each in inner.node for name in read_names(each))
            yield from (name for name in (*reads, *(value.name for value in inner.output)) if name not in made)


def arrange_rows(model: ModelProto, rows: Rows, size: tuple[int, int]) -> None:
    """Append nodes that convert `output0` to anchor-major rows in pixels, if necessary.

    Args:
        size: (height, width) of the input in pixels.
    """
    import numpy as np

    moved, scale = rows.permutation(*size), rows.scale(*size)
    width = model.graph.output[0].type.tensor_type.shape.dim[2].dim_value
    steps: list[tuple[str, NDArray[Any], dict[str, int]]] = []
    if scale is not None:
        factors = np.ones(width, np.float32)
        factors[:4] = scale
        steps.append(("Mul", factors, {}))
    if moved is not None:
        steps.append(("Gather", moved.astype(np.int32), {"axis": 1}))
    if not steps:
        return
    prefix, taken = "rows", {weight.name for weight in model.graph.initializer}
    taken.update(name for node in model.graph.node for name in node.output)
    while any(name.startswith(f"{prefix}_") for name in taken):
        prefix += "_"
    rename_tensors(model, {"output0": f"{prefix}_0"})
    for index, (operator, constant, attributes) in enumerate(steps):
        name = f"{prefix}_{operator.lower()}"
        result = f"{prefix}_{index + 1}" if index + 1 < len(steps) else "output0"
        model.graph.initializer.add(
            name=name,
            dims=constant.shape,
            data_type=_FLOAT if constant.dtype == np.float32 else _INT32,
            raw_data=constant.astype(constant.dtype.newbyteorder("<")).tobytes(),
        )
        node = model.graph.node.add(op_type=operator, name=name, input=[f"{prefix}_{index}", name], output=[result])
        for key, value in attributes.items():
            node.attribute.add(name=key, type=_INT, i=value)
    model.graph.output[0].name = "output0"


def rewrite_resizes(model: ModelProto) -> int:
    """Rewrite nearest upsampling by integer factors in the form that all TensorRT parsers support.

    TensorFlow's `tf.image.resize` becomes `tf_half_pixel_for_nn` with `floor`. Source pixel of x is
    floor((x + 0.5) / s), which for an integer factor s is floor(x / s): `asymmetric` with `floor`.

    Returns:
        The number of rewritten nodes.
    """
    import numpy as np

    weights = {weight.name: weight for weight in model.graph.initializer}
    count = 0
    for node in model.graph.node:
        if node.op_type != "Resize" or not _is_half_pixel_floor(node) or len(node.input) < 3:
            continue
        scales = weights.get(node.input[2])
        if scales is None:
            continue
        factors = _floats(scales)
        if factors.size == 0 or not np.array_equal(factors, np.maximum(np.round(factors), 1)):
            continue
        for attribute in node.attribute:
            if attribute.name == "coordinate_transformation_mode":
                attribute.s = b"asymmetric"
        count += 1
    return count


def _floats(weight: TensorProto) -> NDArray[np.float32]:
    import numpy as np

    if weight.data_type != _FLOAT:
        return np.zeros(0, np.float32)
    return np.frombuffer(weight.raw_data, "<f4") if weight.raw_data else np.array(weight.float_data, np.float32)


def _is_half_pixel_floor(node: NodeProto) -> bool:
    found = {attribute.name: attribute.s for attribute in node.attribute}
    expected = {
        "mode": b"nearest",
        "coordinate_transformation_mode": b"tf_half_pixel_for_nn",
        "nearest_mode": b"floor",
    }
    return all(found.get(name) == value for name, value in expected.items())


def set_shape(value: ValueInfoProto, shape: tuple[int | str, ...]) -> None:
    """Set the dimensions of an input or output; strings are dynamic dimensions."""
    del value.type.tensor_type.shape.dim[:]
    for axis, size in enumerate(shape):
        value.type.tensor_type.shape.dim.add()
        set_dim(value, axis, size)


def set_dim(value: ValueInfoProto, axis: int, size: int | str) -> None:
    """Set one dimension of an input or output; a string is a dynamic dimension."""
    dim = value.type.tensor_type.shape.dim[axis]
    dim.Clear()
    if isinstance(size, str):
        dim.dim_param = size
    else:
        dim.dim_value = size
