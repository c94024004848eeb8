"""ONNX models that end with NMS or with the plug-in of a runtime: cut back to the boxes that it reads."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, shape_inference

from yolotrt_core.errors import UsageError
from yolotrt_core.export.onnx_normalize import read_names
from yolotrt_onnx.graph_edits import append, append_split, free_name, keep_outputs

# NonMaxSuppression, EfficientNMS_TRT, BatchedNMSDynamic_TRT, INMS; YoloLayer_TRT and DetectionOutput also decode.
_NMS = re.compile(r"nms|non_?max_?suppression|yolo\w*layer|detection_?output", re.IGNORECASE)
_ONNX = ("", "ai.onnx")
# Domains whose operators onnxruntime has.
_KNOWN = (*_ONNX, "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc")
_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "QLinearConv", "ConvInteger"})
# Operators that only move values.
_MOVES = frozenset({"Cast", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"})
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
_SEPARATE = "BoxesAndScores"
_MAX_CANDIDATES = 48
_UNKNOWN = -1  # rank of a tensor that is reshaped to computed sizes, as with a free batch


@dataclass(frozen=True, slots=True)
class Removed:
    """What was removed from the end of a model.

    Attributes:
        node: description of the node. candidates: tensors that may be the boxes it reads, the most likely first.
        assembled: those of them that were made of boxes and scores.
    """

    node: str
    candidates: tuple[str, ...]
    assembled: frozenset[str] = frozenset()

    def refusal(self) -> UsageError:
        """Return the error for a model whose boxes are not among the candidates."""
        return UsageError(
            f"the model ends with {self.node}, and the graph before it has no tensor of YOLOv5 rows "
            "(batch, rows, 5 + classes) to cut back to",
            hint="export it again up to the Detect layer: `export.py --include onnx` without `--nms`, `--end2end` or "
            "the plug-ins of a runtime",
        )


def remove_nms(model: ModelProto, is_output_given: bool) -> Removed | None:
    """Remove the NMS at the end of a model, and refuse operators that ONNX does not define.

    Outputs that do not depend on NMS are kept, if there are any. Otherwise the outputs become the tensors before it
    that may contain YOLOv5's rows, and rows made of the boxes and scores that NMS reads. Boxes and scores that are
    separate outputs are joined in the same way, unless one is given as the output.

    Raises:
        UsageError: another operator is unknown.
    """
    ends = [node for node in model.graph.node if _is_nms(node)]
    if not ends and not is_output_given:
        ends = _separate_outputs(model)
    if ends:
        after = _depending(model, ends)
        free = [value.name for value in model.graph.output if value.name not in after]
        known = {name for node in model.graph.node for name in node.output}
        candidates = tuple(free or _expose(model, ends, after))
        removed = Removed(_describe(ends[0]), candidates, frozenset(candidates) - known)
        keep_outputs(model, removed.candidates)
    _refuse_unknown(model)
    _drop_unused_domains(model)
    return removed if ends else None


def _separate_outputs(model: ModelProto) -> list[NodeProto]:
    """Return a node that reads boxes and scores, if they are separate outputs; empty otherwise."""
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in model.graph.output
        if value.type.tensor_type.elem_type in _FLOATS and len(value.type.tensor_type.shape.dim) == 3
    }
    boxes = [name for name, shape in shapes.items() if shape[2] == 4]
    scores = [name for name in shapes if name not in boxes]
    if len(boxes) != 1 or len(scores) != 1 or shapes[boxes[0]][1] != shapes[scores[0]][1]:
        return []
    node = helper.make_node(_SEPARATE, [boxes[0], scores[0]], [])
    del model.graph.output[:]
    model.graph.node.append(node)
    return [node]


def _is_nms(node: NodeProto) -> bool:
    if _NMS.search(node.op_type):
        return True
    inner = (each for a in node.attribute for graph in (a.g, *a.graphs) for each in graph.node)
    return any(_is_nms(each) for each in inner)


def _describe(node: NodeProto) -> str:
    if node.op_type == _SEPARATE:
        return f"separate boxes `{node.input[0]}` and scores `{node.input[1]}`"
    name = f" `{node.name}`" if node.name else ""
    domain = f", domain `{node.domain}`" if node.domain not in _ONNX else ""
    return f"the node{name} ({node.op_type}{domain})"


def _depending(model: ModelProto, ends: Sequence[NodeProto]) -> set[str]:
    """Return all tensors computed from the outputs of these nodes."""
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:  # which need not be sorted
        for name in read_names(node):
            readers.setdefault(name, []).append(node)
    waiting = [name for node in ends for name in node.output if name]
    after = set(waiting)
    while waiting:
        made = {name for node in readers.get(waiting.pop(), ()) for name in node.output if name} - after
        after |= made
        waiting.extend(made)
    return after


def _expose(model: ModelProto, ends: Sequence[NodeProto], after: Collection[str]) -> list[str]:
    """Make tensors that may contain rows outputs of the graph; return their names, nearest to NMS first."""
    graph = model.graph
    found = _before(model, ends)
    del graph.output[:]
    kept = [name for name in found if name not in after]
    nodes = [node for node in graph.node if node.output and not any(name in after for name in node.output)]
    del graph.node[:]
    graph.node.extend(nodes)
    tensors = _infer(model)
    ranks = {name: tensors.get(name, (0, 3))[1] for name in kept}
    rows = [name for name in kept if ranks[name] == 3][:_MAX_CANDIDATES]
    rows += [name for end in ends for name in _assembled(model, end, tensors)]
    maps = [name for name in ends[0].input if ranks.get(name) in (4, 5)]
    tensors = _infer(model)
    chosen = [name for name in dict.fromkeys([*rows, *maps]) if tensors.get(name, (0, 0))[0] in _FLOATS]
    for name in chosen:
        dtype, rank = tensors[name]
        graph.output.append(helper.make_tensor_value_info(name, dtype, [None] * rank))
    return chosen


def _before(model: ModelProto, ends: Sequence[NodeProto]) -> list[str]:
    """Return the tensors between the last convolutions and NMS, breadth first from NMS."""
    producers = {name: node for node in model.graph.node for name in node.output}
    found: dict[str, None] = dict.fromkeys(name for end in ends for name in read_names(end) if name in producers)
    waiting = list(found)
    while waiting:
        node = producers[waiting.pop(0)]
        if node.op_type in _LAYERS:
            continue
        fresh = [name for name in read_names(node) if name in producers and name not in found]
        found.update(dict.fromkeys(fresh))
        waiting.extend(fresh)
    return list(found)


def _infer(model: ModelProto) -> dict[str, tuple[int, int]]:
    """Return the element type and rank of tensors as far as ONNX infers them; `_UNKNOWN` for a computed rank."""
    try:
        graph = shape_inference.infer_shapes(model).graph
    except (onnx.shape_inference.InferenceError, RuntimeError):  # an invalid graph, which the checker reports
        graph = model.graph
    typed = ((value.name, value.type.tensor_type) for value in graph.value_info)
    return {name: (held.elem_type, len(held.shape.dim) if held.HasField("shape") else _UNKNOWN) for name, held in typed}


def _assembled(model: ModelProto, end: NodeProto, tensors: Mapping[str, tuple[int, int]]) -> list[str]:
    """Append rows made of an NMS node's boxes and scores, with an objectness of 1; return their names."""
    attributes = {a.name: a.i for a in end.attribute}
    per_box = {
        "EfficientNMS_TRT": 2,
        "BatchedNMS_TRT": 2,
        "BatchedNMSDynamic_TRT": 2,
        "NonMaxSuppression": 5,
        _SEPARATE: 2,
    }
    if len(end.input) < 2 or not 2 <= len(end.input) <= per_box.get(end.op_type, 0):
        return []  # a third input of EfficientNMS_TRT are anchors, so its boxes are not decoded
    boxes, scores = end.input[:2]
    rank, rank_of_scores = (tensors.get(name, (0, 0))[1] for name in (boxes, scores))
    boxes, scores = (
        append(model, "Cast", [name], to=TensorProto.FLOAT)
        if tensors.get(name, (0, 0))[0] == TensorProto.FLOAT16
        else name
        for name in (boxes, scores)
    )
    if rank_of_scores == _UNKNOWN:
        scores = append(model, "Reshape", [scores, np.array([0, 0, -1], np.int64)])
    if rank in (4, _UNKNOWN) and (end.op_type == "EfficientNMS_TRT" or attributes.get("shareLocation", 1)):
        boxes = append(model, "Reshape", [boxes, np.array([0, -1, 4], np.int64)])  # (B, N, 1, 4)
    elif rank != 3:
        return []
    if end.op_type == "NonMaxSuppression":
        scores = append(model, "Transpose", [scores], perm=[0, 2, 1])
    if attributes.get("score_activation"):
        scores = append(model, "Sigmoid", [scores])
    is_centred = attributes.get("box_coding") or attributes.get("center_point_box")
    found = []
    if is_centred or end.op_type == _SEPARATE:
        width = append_split(model, boxes, (1, 1, 1, 1), 2)[2]
        found.append(append(model, "Concat", [boxes, _ones(model, width), scores], axis=2))
    if not is_centred:  # corners: which of x and y comes first shows in the values
        found += [_from_corners(model, boxes, scores, order) for order in ((0, 1, 2, 3), (1, 0, 3, 2))]
    return found


def _from_corners(model: ModelProto, boxes: str, scores: str, order: tuple[int, int, int, int]) -> str:
    corners = append_split(model, boxes, (1, 1, 1, 1), 2)
    x1, y1, x2, y2 = (corners[index] for index in order)
    half = np.array(0.5, np.float32)
    centre = [append(model, "Mul", [append(model, "Add", pair), half]) for pair in ([x1, x2], [y1, y2])]
    size = [append(model, "Sub", [high, low]) for low, high in ((x1, x2), (y1, y2))]
    return append(
        model, "Concat", [*centre, *size, _ones(model, size[0]), scores], free_name(model, "decode_rows"), axis=2
    )


def _ones(model: ModelProto, like: str) -> str:
    zero = append(model, "Mul", [like, np.array(0, np.float32)])
    return append(model, "Add", [zero, np.array(1, np.float32)])


def are_products(model: ModelProto, tensor: str) -> bool:
    """Check whether the last columns of rows are objectness times class score, so that they have no objectness."""
    producers = {name: node for node in model.graph.node for name in node.output}

    def origins(tensor: str, is_last: bool) -> list[NodeProto]:
        """Return the nodes that compute a tensor, through moves of values; `is_last` follows the last joined."""
        found, waiting, seen = [], [tensor], {tensor}
        while waiting:
            node = producers.get(waiting.pop())
            if node is None:
                continue
            if node.op_type == "Concat":
                read = node.input[-1:] if is_last else node.input
            elif node.op_type in _MOVES:
                read = node.input[:1]
            else:
                found.append(node)
                continue
            waiting.extend(set(read) - seen)
            seen.update(read)
        return found

    for last in origins(tensor, True):
        factors = [[node.op_type for node in origins(name, False)] for name in last.input]
        if last.op_type == "Mul" and all("Sigmoid" in found for found in factors):
            return True
    return False


def _refuse_unknown(model: ModelProto) -> None:
    """Refuse operators that neither ONNX nor onnxruntime defines, before the checker refuses their domain."""
    local = {(function.domain, function.name) for function in model.functions}
    for node in model.graph.node:
        standard = node.domain in _ONNX
        known = onnx.defs.has(node.op_type) if standard else node.domain in _KNOWN
        if known or (node.domain, node.op_type) in local:
            continue
        raise UsageError(
            f"{_describe(node)} is not an ONNX operator but a plug-in of some runtime",
            hint="export the model without it: `export.py --include onnx` ends with the Detect layer's boxes",
        )


def _drop_unused_domains(model: ModelProto) -> None:
    used = {node.domain for node in model.graph.node} | {function.domain for function in model.functions}
    kept = [each for each in model.opset_import if each.domain in (*_KNOWN, *used)]
    del model.opset_import[:]
    model.opset_import.extend(kept)
