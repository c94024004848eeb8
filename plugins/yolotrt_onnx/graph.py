"""Reading, writing and checking of ONNX graphs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from yolotrt_core.console.text import first_line
from yolotrt_core.errors import StageError
from yolotrt_core.plugin.stages import ONNX_FILE
from yolotrt_core.types import ModelSpec, TensorSpec


def load(path: Path) -> ModelProto:
    """Read an ONNX file, weights included.

    Raises:
        StageError: the file is missing or corrupted, or contains subgraphs, local functions or operators of
            other domains.
    """
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    except Exception as err:  # protobuf, the checker and the file system have no common exception base
        raise StageError(f"`{path.name}` is not a valid ONNX model: {first_line(err)}") from err
    return model


def save(model: ModelProto, out: Path) -> None:
    """Write `out/model.onnx`; equal models give equal bytes."""
    (out / ONNX_FILE).write_bytes(model.SerializeToString(deterministic=True))


def check(model: ModelProto, producer: str, hint: str) -> None:
    """Run `onnx.checker` with full type and shape inference.

    Args:
        producer: of the model, for the error. hint: for the user.

    Raises:
        StageError: the model is invalid; includes the first line of the checker's reason.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as err:
        raise StageError(f"{producer} produced an invalid ONNX model: {first_line(err)}", hint=hint) from err


def spec_of(model: ModelProto, base: ModelSpec) -> ModelSpec:
    """Return `base` with the graph's actual inputs and outputs."""
    return dataclasses.replace(base, inputs=input_specs(model.graph), outputs=tensor_specs(model.graph.output))


def input_specs(graph: GraphProto) -> tuple[TensorSpec, ...]:
    """Return the inputs except initializers."""
    weights = {weight.name for weight in graph.initializer}
    return tensor_specs(value for value in graph.input if value.name not in weights)


def tensor_specs(values: Iterable[ValueInfoProto]) -> tuple[TensorSpec, ...]:
    """Return name, NumPy dtype and shape; an anonymous free dimension gets the name `NAME_AXIS`."""
    return tuple(
        TensorSpec(
            name=value.name,
            dtype=helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
            shape=tuple(
                dim.dim_value if dim.HasField("dim_value") else dim.dim_param or f"{value.name}_{axis}"
                for axis, dim in enumerate(value.type.tensor_type.shape.dim)
            ),
        )
        for value in values
    )


def lift_constants(model: ModelProto) -> None:
    """Replace `Constant` nodes that contain a tensor by initializers."""
    graph = model.graph
    kept = []
    for node in graph.node:
        value = constant_value(node)
        if value is None:
            kept.append(node)
            continue
        value.name = node.output[0]
        graph.initializer.append(value)
    del graph.node[:]
    graph.node.extend(kept)


def constant_value(node: NodeProto) -> TensorProto | None:
    """Return a copy of the tensor of a `Constant` node; None for other nodes and sparse or text constants."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    attribute = node.attribute[0]
    held = helper.get_attribute_value(attribute)
    if attribute.name == "value":
        copy = TensorProto()
        copy.CopyFrom(held)
        return copy
    dtype = {"value_float": "float32", "value_floats": "float32", "value_int": "int64", "value_ints": "int64"}
    if attribute.name not in dtype:
        return None
    return numpy_helper.from_array(np.asarray(held, dtype=dtype[attribute.name]))


def element_types(model: ModelProto) -> dict[str, int]:
    """Return the element type (`TensorProto.FLOAT` ...) of every tensor in the main graph.

    Raises:
        StageError: a tensor's type cannot be inferred (an operator of another domain), or a node
            has a subgraph; names the node.
    """
    try:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    except onnx.shape_inference.InferenceError as err:
        raise StageError(f"the graph's types cannot be inferred: {first_line(err)}") from err
    graph = inferred.graph
    types = {v.name: v.type.tensor_type.elem_type for v in [*graph.input, *graph.value_info, *graph.output]}
    types.update({weight.name: weight.data_type for weight in graph.initializer})
    for node in graph.node:
        if any(a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for a in node.attribute):
            raise StageError(
                f"node `{node.name}` ({node.op_type}) contains a subgraph, unsupported by precision passes"
            )
        for name in node.output:
            if name and not types.get(name):
                raise StageError(
                    f"the type of `{name}`, output of node `{node.name}` ({node.domain or 'ai.onnx'}.{node.op_type}), "
                    "cannot be inferred"
                )
    return types


def type_conflicts(model: ModelProto) -> list[str]:
    """Find type variables of a node bound to two types, which a strongly typed parser refuses.

    Returns:
        One message per conflict, with node, operator and both types.
    """
    types, version = element_types(model), opset(model)
    found = []
    for node in model.graph.node:
        bound: dict[str, str] = {}
        for slot in [*input_slots(node, version), *output_slots(node, version)]:
            first = bound.setdefault(slot.variable, slot.tensor)
            if types[slot.tensor] != types[first]:
                one, other = (f"`{n}` ({TensorProto.DataType.Name(types[n]).lower()})" for n in (first, slot.tensor))
                found.append(f"node `{node.name}` ({node.op_type}) mixes {one} with {other}")
    return found


def opset(model: ModelProto) -> int:
    """Return the version of the default operator set."""
    return next(int(o.version) for o in model.opset_import if o.domain in ("", "ai.onnx"))


def raise_opset(model: ModelProto, version: int, producer: str) -> None:
    """Convert a model to a later operator set in place.

    Raises:
        StageError: onnx cannot convert it.
    """
    try:
        raised = onnx.version_converter.convert_version(model, version)
    except Exception as err:  # the converter has no exception base of its own
        raise StageError(
            f"{producer} needs operator set {version}, but onnx cannot convert this graph: {first_line(err)}",
            hint=f"export with operator set {version} or higher, or use `--precision fp16`",
        ) from err
    metadata = list(model.metadata_props)
    model.CopyFrom(raised)
    del model.metadata_props[:]
    model.metadata_props.extend(metadata)
    model.ir_version = max(model.ir_version, helper.find_min_ir_version_for(model.opset_import))


def check_strongly_typed(model: ModelProto, producer: str, fallback: str) -> None:
    """Refuse mixed types, which TensorRT would reject without naming tensors.

    Args:
        producer: the pass that wrote the graph. fallback: precision that builds without it.
    """
    hint = f"report this graph; `--precision {fallback}` builds without the pass"
    check(model, f"the {producer} pass", hint)
    conflicts = type_conflicts(model)
    if conflicts:
        raise StageError(f"the {producer} pass produced mixed types: {conflicts[0]}", hint=hint)


class Slot(NamedTuple):
    """One input or output of a node, with its schema.

    Attributes:
        position: index in `node.input` or `node.output`. tensor: its name.
        variable: the schema's type variable (`T`, `T1`), a concrete type (`tensor(float)`), or, in
            a variadic list whose items may differ, a unique name.
        allowed: the types ONNX allows, e.g. `tensor(float16)`.
    """

    position: int
    tensor: str
    variable: str
    allowed: frozenset[str]


def input_slots(node: NodeProto, version: int) -> list[Slot]:
    """Return the inputs that are present, in order; `version` is the operator set's."""
    return _slots(node.input, _schema(node.op_type, node.domain, version)[0])


def output_slots(node: NodeProto, version: int) -> list[Slot]:
    """Return the outputs that are present, in order; `version` is the operator set's."""
    return _slots(node.output, _schema(node.op_type, node.domain, version)[1])


_Formals = tuple[tuple[str, bool, frozenset[str]], ...]  # type variable, homogeneous, allowed types


@lru_cache(maxsize=512)
def _schema(op_type: str, domain: str, version: int) -> tuple[_Formals, _Formals]:
    schema = onnx.defs.get_schema(op_type, version, domain)
    allowed = {c.type_param_str: frozenset(c.allowed_type_strs) for c in schema.type_constraints}
    inputs, outputs = (
        tuple((f.type_str, f.is_homogeneous, allowed.get(f.type_str, frozenset({f.type_str}))) for f in formals)
        for formals in (schema.inputs, schema.outputs)
    )
    return inputs, outputs


def _slots(names: Sequence[str], formals: _Formals) -> list[Slot]:
    found = []
    for index, name in enumerate(names):
        variable, same, allowed = formals[min(index, len(formals) - 1)]
        if name:
            found.append(Slot(index, name, variable if same else f"{variable}#{index}", allowed))
    return found
