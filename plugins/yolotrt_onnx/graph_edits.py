"""Edits of ONNX graphs: fewer outputs, other names, appended nodes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from yolotrt_core.export.onnx_normalize import read_names, sort_nodes

if TYPE_CHECKING:
    from numpy.typing import NDArray

_WEIGHTS_ALONE = 4  # the IR version since which weights need not be inputs


def keep_outputs(model: ModelProto, outputs: Collection[str]) -> None:
    """Remove all outputs but these, and unused nodes and weights."""
    graph = model.graph
    kept = [value for value in graph.output if value.name in outputs]
    del graph.output[:]
    graph.output.extend(kept)
    producers = {name: node for node in graph.node for name in node.output if name}
    needed, waiting, used = set(outputs), list(outputs), set()
    while waiting:
        node = producers.get(waiting.pop())
        if node is None or id(node) in used:
            continue
        used.add(id(node))
        read = {name for name in read_names(node) if name not in needed}
        needed |= read
        waiting.extend(read)
    nodes = [node for node in graph.node if id(node) in used]
    del graph.node[:]
    graph.node.extend(nodes)
    weights = [weight for weight in graph.initializer if weight.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(weights)


def remove_unused(model: ModelProto) -> None:
    """Remove nodes and weights that no output needs."""
    keep_outputs(model, [value.name for value in model.graph.output])


def append(
    model: ModelProto, operator: str, inputs: Sequence[str | NDArray[Any]], result: str = "", **attributes: Any
) -> str:
    """Append a node; arrays become weights.

    Args:
        result: name of its output; default: a new one.

    Returns:
        The name of its output.
    """
    graph = model.graph
    result = result or free_name(model, f"decode_{operator.lower()}")
    names = []
    for index, given in enumerate(inputs):
        if isinstance(given, str):
            names.append(given)
        else:
            names.append(free_name(model, f"{result}_constant{index}"))
            graph.initializer.append(numpy_helper.from_array(given, names[-1]))
    graph.node.append(helper.make_node(operator, names, [result], name=free_name(model, result), **attributes))
    return result


def append_split(model: ModelProto, tensor: str, sizes: Sequence[int], axis: int) -> list[str]:
    """Append a Split, whose sizes are an attribute before operator set 13; return the names of the parts."""
    base = free_name(model, "decode_split")
    parts = [free_name(model, f"{base}_{index}") for index in range(len(sizes))]
    version = next(each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
    if version < 13:
        node = helper.make_node("Split", [tensor], parts, name=base, axis=axis, split=list(sizes))
    else:
        held = free_name(model, f"{base}_sizes")
        model.graph.initializer.append(numpy_helper.from_array(np.array(sizes, np.int64), held))
        node = helper.make_node("Split", [tensor, held], parts, name=base, axis=axis)
    model.graph.node.append(node)
    return parts


def free_name(model: ModelProto, wanted: str) -> str:
    """Return `wanted`, numbered if a node or tensor of the main graph has this name."""
    graph = model.graph
    taken = {name for node in graph.node for name in (node.name, *node.input, *node.output)}
    taken |= {thing.name for thing in (*graph.input, *graph.output, *graph.initializer)}
    name, count = wanted, 1
    while name in taken:
        count += 1
        name = f"{wanted}_{count}"
    return name


def rename(model: ModelProto, names: Mapping[str, str]) -> None:
    """Rename tensors of the main graph; tensors that already have a new name are renamed too."""
    graph = model.graph
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    taken |= {value.name for value in (*graph.input, *graph.output)}
    renames = {old: new for old, new in names.items() if old != new}
    for new in list(renames.values()):
        if new in taken:
            room = f"{new}_original"
            while room in taken:
                room += "_"
            renames[new] = room
    for node in graph.node:
        for used in (node.input, node.output):
            for index, name in enumerate(used):
                used[index] = renames.get(name, name)
    for thing in (*graph.input, *graph.output, *graph.initializer):
        thing.name = renames.get(thing.name, thing.name)
    del graph.value_info[:]


def cast_output_to_float(model: ModelProto) -> None:
    """Cast the one output, `output0`, to float32."""
    value = model.graph.output[0]
    if value.type.tensor_type.elem_type != TensorProto.FLOAT:
        rename(model, {"output0": "output0_typed"})
        node = helper.make_node("Cast", ["output0_typed"], ["output0"], name="output0_cast", to=TensorProto.FLOAT)
        model.graph.node.append(node)
        value.name, value.type.tensor_type.elem_type = "output0", TensorProto.FLOAT


def drop_weight_inputs(model: ModelProto) -> None:
    """Remove weights from the inputs, where ONNX allows them as defaults (`keep_initializers_as_inputs`)."""
    graph = model.graph
    weights = {weight.name for weight in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if len(inputs) < len(graph.input):
        del graph.input[:]
        graph.input.extend(inputs)
        model.ir_version = max(model.ir_version, _WEIGHTS_ALONE)


def sort_if_needed(model: ModelProto) -> bool:
    """Sort nodes that read tensors of later nodes, which onnxruntime and TensorRT accept but `onnx.checker` does not.

    Returns:
        Whether the order has changed; a sorted graph keeps its order.

    Raises:
        UsageError: the nodes form a cycle.
    """
    made = {name for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if any(name in made for name in read_names(node)):
            sort_nodes(model.graph)
            return True
        made.difference_update(node.output)
    return False
