"""Content of an ONNX file for `inspect`: operations and parameters by shape inference, without running it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import ModelProto, NodeProto, TensorProto

from yolotrt_core.console.text import first_line, printable
from yolotrt_core.datasets.class_names import labels_in_order
from yolotrt_core.export.onnx_metadata import literal
from yolotrt_core.plugin.description import Description, Layer
from yolotrt_core.types import TensorSpec, layout_of, with_channels
from yolotrt_onnx.graph import constant_value, input_specs, tensor_specs
from yolotrt_onnx.graph_edits import drop_weight_inputs, sort_if_needed
from yolotrt_onnx.raw_heads import read_anchors
from yolotrt_onnx.source_precision import layer_precisions

SIZE = 640  # of a file that states none
_MAX_CLASSES = 1 << 16
_MAX_FACTS, _MAX_FACT = 40, 200
# Metadata that is shown in places of its own, or is that of one build.
_READ = frozenset({"names", "stride", "strides", "task", "anchors", "imgsz", "batch"})
# Position of a layer's second operand and of its bias.
_OPERANDS = {"QLinearConv": (3, 8), "QLinearMatMul": (3,)}
_NORMS = {"BatchNormalization": (1, 2), "PRelu": (1,), "InstanceNormalization": (1, 2), "LayerNormalization": (1, 2)}
_MOVES = frozenset({"Cast", "DequantizeLinear", "Identity", "QuantizeLinear", "Reshape", "Transpose"})


def describe(path: Path) -> Description:
    """Describe an ONNX file; what can be read of it, and `problem`, if the rest cannot."""
    described = Description("ONNX")
    try:
        model = onnx.load(str(path), load_external_data=False)
        drop_weight_inputs(model)
        sort_if_needed(model)
        described = _of_declarations(model)
        return _of_graph(described, model)
    except Exception as err:  # noqa: BLE001 - protobuf, the checker and shape inference have no common exception base
        return dataclasses.replace(described, problem=printable(f"the ONNX cannot be read: {first_line(err)}")[:300])


def _of_declarations(model: ModelProto) -> Description:
    properties = {each.key: each.value for each in model.metadata_props}
    names, strides = literal(properties.get("names")), literal(properties.get("strides", properties.get("stride")))
    inputs, outputs = input_specs(model.graph), tensor_specs(model.graph.output)
    producer = f"{model.producer_name} {model.producer_version}".strip()
    opset = max((each.version for each in model.opset_import if not each.domain), default=0)
    facts = {"producer": producer, "opset": str(opset or "")}
    facts |= {key: text for key, text in list(properties.items())[:_MAX_FACTS] if key not in _READ}
    listed = strides if isinstance(strides, list) else [strides]
    levels = read_anchors(None, properties) or []
    labels = labels_in_order(names if isinstance(names, (list, dict)) else (), _label_count(names))
    return Description(
        format="ONNX",
        task=properties.get("task") or (_task(inputs, outputs) if inputs and inputs[0].shape else None),
        labels=tuple(map(printable, labels or ())),
        strides=tuple(n for n in listed if isinstance(n, int)),
        anchors=tuple(tuple((float(w), float(h)) for w, h in level) for level in levels),
        inputs=inputs,
        outputs=outputs,
        facts={printable(key)[:40]: printable(text)[:_MAX_FACT] for key, text in facts.items() if text},
    )


def _label_count(names: object) -> int:
    return min(len(names), _MAX_CLASSES) if isinstance(names, (list, dict)) else 0


def _task(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> str | None:
    """Return the task by the ranks of the outputs: rows of boxes, with prototypes of masks, or scores of classes."""
    ranks = sorted(len(tensor.shape) for tensor in outputs)
    if ranks == [2]:  # by image; boxes of a fixed batch of one may lack the axis of the batch
        return "classify" if outputs[0].shape[0] == inputs[0].shape[0] else None
    return {(3,): "detect", (3, 4): "segment"}.get(tuple(ranks))


def _of_graph(described: Description, model: ModelProto) -> Description:
    size = _fix_sizes(model)
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    graph = _Graph.of(model)
    batch = described.inputs and graph.shapes.get(described.inputs[0].name, (1,))[0]
    counted: set[str] = set()
    layers = []
    for node, precision in layer_precisions(model):
        operations = graph.operations(node)
        layers.append(
            Layer(
                printable(node.name or (node.output[0] if node.output else ""))[:_MAX_FACT],
                node.op_type,
                precision or "fp32",
                graph.parameters(node, _OPERANDS.get(node.op_type, (1, 2)), counted),
                None if operations is None else operations // (batch or 1),
            )
        )
    norms = sum(
        graph.parameters(node, _NORMS[node.op_type], counted) for node in model.graph.node if node.op_type in _NORMS
    )
    known = [layer.operations for layer in layers if layer.operations is not None]
    return dataclasses.replace(
        described,
        size=size,
        parameters=sum(layer.parameters for layer in layers) + norms,
        operations=sum(known) if len(known) == len(layers) else None,
        layers=tuple(layers),
    )


def _fix_sizes(model: ModelProto) -> tuple[int, int] | None:
    """Replace free dimensions of an image input, by the size that the metadata names; return (height, width)."""
    if len(model.graph.input) != 1:
        return None
    dims = model.graph.input[0].type.tensor_type.shape.dim
    shape = [dim.dim_value if dim.HasField("dim_value") else "?" for dim in dims]
    if len(shape) != 4:
        return None
    named = literal(next((each.value for each in model.metadata_props if each.key == "imgsz"), None))
    is_size = isinstance(named, list) and len(named) == 2 and all(isinstance(n, int) and n > 0 for n in named)
    height, width = named if is_size else (SIZE, SIZE)
    free = with_channels(1, height, width, layout_of(shape))
    for dim, size in zip(dims, free, strict=True):
        if not dim.HasField("dim_value"):
            dim.dim_value = size
    for output in model.graph.output:  # declared with names for what is free
        output.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    first = 1 if layout_of(shape) == "nhwc" else 2
    return dims[first].dim_value, dims[first + 1].dim_value


@dataclass(frozen=True)
class _Graph:
    """Shapes of all tensors, and where constants come from."""

    shapes: Mapping[str, tuple[int, ...]]
    constants: frozenset[str]
    producers: Mapping[str, NodeProto]

    @classmethod
    def of(cls, model: ModelProto) -> _Graph:
        graph = model.graph
        shapes: dict[str, tuple[int, ...]] = {}
        for value in (*graph.input, *graph.value_info, *graph.output):
            dims = value.type.tensor_type.shape.dim
            if value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
                shapes[value.name] = tuple(dim.dim_value for dim in dims)
        made: dict[str, TensorProto] = {weight.name: weight for weight in graph.initializer}
        producers: dict[str, NodeProto] = {}
        for node in graph.node:
            producers |= dict.fromkeys(node.output, node)
            if (constant := constant_value(node)) is not None:
                made[node.output[0]] = constant
        shapes |= {name: tuple(tensor.dims) for name, tensor in made.items()}
        return cls(shapes, frozenset(made), producers)

    def operations(self, node: NodeProto) -> int | None:
        """Return 2 for each multiplication with its addition; None where a shape is unknown."""
        second = _OPERANDS.get(node.op_type, (1,))[0]
        if len(node.input) <= second or not node.output:
            return None
        given, weight = self.shapes.get(node.input[0]), self.shapes.get(node.input[second])
        result = self.shapes.get(node.output[0])
        if given is None or weight is None or result is None or not given:
            return None
        if node.op_type == "ConvTranspose":
            return 2 * math.prod(given) * math.prod(weight[1:])
        if "Conv" in node.op_type:
            return 2 * math.prod(result) * math.prod(weight[1:])
        is_transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return 2 * math.prod(result) * (given[0] if is_transposed else given[-1])

    def parameters(self, node: NodeProto, places: Iterable[int], counted: set[str]) -> int:
        """Return the number of values of a node's constant inputs that are not in `counted`, and add them to it."""
        total = 0
        for place in places:
            name = self._origin(node.input[place]) if len(node.input) > place else None
            if name is not None and name not in counted:
                counted.add(name)
                total += math.prod(self.shapes[name])
        return total

    def _origin(self, name: str) -> str | None:
        """Return the constant that nodes convert to a tensor, None for a computed tensor."""
        seen: set[str] = set()
        while name not in self.constants:
            node = self.producers.get(name)
            if node is None or node.op_type not in _MOVES or name in seen:
                return None
            seen.add(name)
            name = node.input[0]
        return name
