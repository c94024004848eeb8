"""Graph edits that do not change results: fewer outputs, other names."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import ModelProto, TensorProto, helper

from yolotrt_core.export.onnx_normalize import read_names, sort_nodes

_WEIGHTS_ALONE = 4  # the IR version since which weights need not be inputs


def keep_output(model: ModelProto, output: str) -> None:
    """Remove all outputs but one, and unused nodes."""
    graph = model.graph
    kept = [value for value in graph.output if value.name == output]
    del graph.output[:]
    graph.output.extend(kept)
    remove_unused(model)


def remove_unused(model: ModelProto) -> None:
    """Remove nodes and weights that no output needs."""
    graph = model.graph
    needed: set[str] = {value.name for value in graph.output}
    nodes = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(read_names(node))
    del graph.node[:]
    graph.node.extend(reversed(nodes))
    weights = [weight for weight in graph.initializer if weight.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(weights)


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
