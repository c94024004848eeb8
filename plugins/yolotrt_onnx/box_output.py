"""Choice of a model's box output; heads, squeezed and transposed outputs become rows (B, N, 5 + C)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from yolotrt_core.console.text import counted, nearest
from yolotrt_core.errors import UsageError
from yolotrt_core.export.onnx_metadata import strides_from_text
from yolotrt_core.export.output_layout import Known, Rows, locate_boxes, not_scores
from yolotrt_core.inference.input_shapes import shape_text
from yolotrt_core.types import BuildRequest
from yolotrt_onnx.columns import (
    DETECT_HINT,
    NAMES_HINT,
    Classes,
    check_columns,
    declared_columns,
    find_masks,
    read_classes,
)
from yolotrt_onnx.end_to_end import Removed, are_products
from yolotrt_onnx.graph_edits import append
from yolotrt_onnx.raw_heads import DEFAULT_ANCHORS, are_cells, decode, find_levels, has_sigmoid, read_anchors

if TYPE_CHECKING:
    from yolotrt_onnx.options import OnnxSourceOptions

log = logging.getLogger(__name__)

HEAD = "yolov5"
# Maximum distance of a box centre from its cell, in cells: for float32, for 8-bit integers.
_SLACK, _ROUNDED_SLACK = 0.1, 1.0

Run = Callable[[Sequence[str]], Mapping[str, NDArray[np.float32]]]


@dataclass(frozen=True, slots=True)
class Source:
    """A model whose output is looked for.

    Attributes:
        model: changed in place. is_free: whether height or width of the input is free. removed: NMS that was removed.
    """

    model: ModelProto
    path: Path
    request: BuildRequest
    options: OnnxSourceOptions
    is_free: bool
    removed: Removed | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the reference images in pixels."""
        return self.request.height, self.request.width

    @property
    def slack(self) -> float:
        """Tolerance of the centres, as for `find_rows`."""
        rounding = ("QuantizeLinear", "DynamicQuantizeLinear")
        return _ROUNDED_SLACK if any(node.op_type in rounding for node in self.model.graph.node) else _SLACK

    def locate(self, answer: NDArray[Any]) -> Rows:
        """Find the layout of rows (B, N, 5 + C) by their boxes."""
        options = self.options
        known = Known(
            strides_from_text(options.strides, "--onnx-strides"),
            None if options.rows == "auto" else options.rows,
            None if options.units == "auto" else options.units,
        )
        return locate_boxes(answer, self.size, known, self.slack)


@dataclass(frozen=True, slots=True)
class Boxes:
    """The box output of a model.

    Attributes:
        output: its tensor, an output of the graph. answer: its value for the reference images. rows: its layout; None
            for a head other than YOLOv5's. labels: of the classes. prototypes: the output with the prototypes of a
            segmentation model's masks, and its value; None for others.
    """

    output: str
    answer: NDArray[np.float32]
    rows: Rows | None
    labels: tuple[str, ...]
    prototypes: tuple[str, NDArray[np.float32]] | None = None


def read_boxes(source: Source, run: Run) -> Boxes:
    """Find the output with the boxes; nodes that bring it to (B, N, 5 + C) are appended.

    Args:
        run: returns the answers of outputs of the graph for the reference images.

    Raises:
        UsageError: it is not YOLOv5's; names what it may be and how to export again.
    """
    options, model = source.options, source.model
    classes = read_classes(model, source.path, options)
    names = output_names(model, options)
    answers = run(names) if names else {}
    if options.head != HEAD:
        return _other_head(answers, classes)
    output, is_raw = _find_rows(source, classes, answers)
    answer = answers[output] if output in answers else run([output])[output]
    if classes.indices is not None:
        answer = declared_columns(answer, classes)
        output = _expose(model, append(model, "Gather", [output, np.array(classes.indices, np.int64)], axis=2))
    rows = source.locate(answer)
    if (
        source.request.dynamic
        and source.is_free
        and (rows.permutation(*source.size) is not None or rows.units != "pixels")
    ):
        raise UsageError(
            f"the file's rows are {rows.order}-major in {rows.units}, which cannot be rearranged for every size",
            hint="fix height and width in the file, and leave only the batch free",
        )
    others = {name: each for name, each in answers.items() if name != output}
    masks = None if is_raw else find_masks(answer, classes, others, source.size, source.slack)
    if masks is None:
        labels = check_columns(answer, classes, others, source.slack, is_raw)
    else:  # without the task and the prototypes, which are known to fit
        scores = answer[..., : answer.shape[2] - masks.count]
        labels = check_columns(scores, replace(classes, metadata={}), {}, source.slack, is_raw)
    if source.removed is not None:
        log.info(
            "the model ends with %s: replaced by rows of boxes and scores, `--conf` and `--iou` apply",
            source.removed.node,
        )
    if masks is None:
        return Boxes(output, answer, rows, labels)
    log.info("a segmentation model: %s, %d mask coefficients per box", counted(len(labels), "class"), masks.count)
    return Boxes(output, answer, rows, labels, (masks.prototypes, others[masks.prototypes]))


def _other_head(answers: Mapping[str, NDArray[Any]], classes: Classes) -> Boxes:
    """Return the only output with three dimensions, for a postprocessor plugin."""
    if classes.indices is not None:
        raise UsageError("`--onnx-columns` is for YOLOv5's head only", hint="omit it, or `--onnx-head`")
    if not classes.names:
        raise UsageError(f"`{classes.file}` has no class names, and its head is unknown", hint=NAMES_HINT)
    fitting = [name for name, answer in answers.items() if answer.ndim == 3]
    if len(fitting) != 1:
        hint = "choose it with `--onnx-output NAME`" if fitting else None
        raise UsageError(f"expected one float output with three dimensions, found {_shown(answers)}", hint=hint)
    return Boxes(fitting[0], answers[fitting[0]], None, classes.names)


def output_names(model: ModelProto, options: OnnxSourceOptions) -> list[str]:
    """Return the float outputs, or those of the option: one, or those of a head's levels with commas.

    Raises:
        UsageError: there is no such output.
    """
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16)
    known = [v.name for v in model.graph.output if v.type.tensor_type.elem_type in floats]
    if options.output is None:
        return known
    every = [value.name for value in model.graph.output]
    named = [options.output] if options.output in every else options.output.split(",")
    for name in named:
        if name not in every:
            raise UsageError(f"the file has no output `{name}`", hint=nearest(name, every))
        if name not in known:
            raise UsageError(f"the output `{name}` is not float", hint=f"float outputs: {', '.join(known) or 'none'}")
    return named


def _find_rows(source: Source, classes: Classes, answers: Mapping[str, NDArray[Any]]) -> tuple[str, bool]:
    """Return the tensor of rows (B, N, 5 + C), and whether a head is decoded for it."""
    if source.removed is not None:
        for name in source.removed.candidates:
            has_objectness = name in source.removed.assembled or not are_products(source.model, name)
            if name in answers and has_objectness and _are_rows(source, classes, answers[name]):
                return name, False
    else:
        whole = [name for name, answer in answers.items() if answer.ndim == 3]
        if len(whole) > 1:
            wide = [answers[name].shape for name in whole if min(answers[name].shape[1:]) > 5]
            columns = {min(shape[1:]) for shape in wide}
            is_parts = not wide or (1 < len(wide) == len(set(wide)) and len(columns) == 1)
            raise UsageError(
                f"expected one float output (batch, rows, 5 + classes), found {_shown(answers)}",
                hint=f"these may be parts of it: {DETECT_HINT}" if is_parts else "choose it with `--onnx-output NAME`",
            )
        if whole:
            _refuse_products(source.model, whole[0], answers[whole[0]])
            return _upright(source, classes, whole[0], answers[whole[0]]), False
        flat = [name for name, answer in answers.items() if answer.ndim == 2 and len(answer) > 1]
        if len(flat) == 1:
            return _unsqueeze(source, flat[0], answers[flat[0]]), False
    return _decoded_head(source, classes, answers), True


def _decoded_head(source: Source, classes: Classes, answers: Mapping[str, NDArray[Any]]) -> str:
    anchors = read_anchors(source.options.anchors, classes.metadata)
    count = len(anchors[0]) if anchors else None
    levels = find_levels(answers, source.size, count, classes.width) or find_levels(answers, source.size, count, None)
    if not levels:
        if source.removed is not None:
            raise source.removed.refusal()
        shown = _shown(answers) or _declared(source.model)
        is_flat = any(answer.ndim == 2 for answer in answers.values())
        other = "; for a classification model without class names pass `--onnx-head yolov5_cls`" if is_flat else ""
        raise UsageError(
            f"expected one float output (batch, rows, 5 + classes), found {shown}", hint=DETECT_HINT + other
        )
    if anchors is None:
        for level in levels:
            has_sigmoid(source.model, level.name)  # or it cannot be decoded with anchors either
        shown = _shown({level.name: answers[level.name] for level in levels})
        raise UsageError(
            f"the outputs are the maps of a head before its decoding, {shown}, and the file does not name its anchors",
            hint=f"pass the anchors that the model was trained with, `--onnx-anchors {DEFAULT_ANCHORS}` are YOLOv5's "
            f"own; or {DETECT_HINT}",
        )
    if source.options.anchors is None and are_cells(anchors, levels):
        raise UsageError(
            "the outputs are the maps of a head before its decoding, and the anchors in the file's metadata are "
            "smaller than a cell on every level: they may be in cells",
            hint="pass them in pixels, multiplied by the stride of their level if they are in cells: `--onnx-anchors "
            f"{DEFAULT_ANCHORS}` are YOLOv5's own",
        )
    if source.request.dynamic and source.is_free:
        raise UsageError(
            "the outputs are the maps of a head before its decoding, which cannot be decoded for every size",
            hint=f"fix height and width in the file, and leave only the batch free; or {DETECT_HINT}",
        )
    return _expose(source.model, decode(source.model, levels, anchors))


def _refuse_products(model: ModelProto, name: str, answer: NDArray[Any]) -> None:
    if are_products(model, name):
        raise UsageError(
            f"the output `{name}` {shape_text(answer.shape)} has scores already multiplied by objectness",
            hint=f"expected rows of cx, cy, w, h, objectness and class scores: {DETECT_HINT}",
        )


def _are_rows(source: Source, classes: Classes, answer: NDArray[Any]) -> bool:
    """Check whether a tensor before NMS is rows of boxes and scores."""
    if answer.ndim != 3 or not 6 <= answer.shape[2] < answer.shape[1] or not np.isfinite(answer).all():
        return False
    if classes.width is not None and answer.shape[2] != classes.width:
        return False
    try:
        source.locate(answer)
    except UsageError:
        return False
    return not not_scores(answer, source.slack)


def _upright(source: Source, classes: Classes, name: str, answer: NDArray[Any]) -> str:
    """Transpose an output (B, 5 + C, N) if it is YOLOv5's; anchor-free heads have this shape, but no objectness."""
    if answer.shape[1] >= answer.shape[2] or answer.shape[1] < 5:
        return name
    columns, count = answer.shape[1], classes.count
    found = f"the output `{name}` has the shape {shape_text(answer.shape)}, one column per box"
    anchor_free = UsageError(
        f"{found}, as in anchor-free heads without objectness (YOLOv8 and later); expected YOLOv5's "
        "(batch, rows, 5 + classes)",
        hint="if a postprocessor plugin decodes it, pass its head: `--onnx-head NAME`",
    )
    if count is not None and columns == 4 + count:
        raise anchor_free
    try:
        rows = source.locate(answer.transpose(0, 2, 1))
    except UsageError as error:
        if count is None or columns == 5 + count:
            raise anchor_free from None
        raise UsageError(f"{found}: {error.message}", hint=DETECT_HINT) from None
    if count is None and rows.anchors == 1:  # as many rows as an anchor-free head
        raise UsageError(
            f"{found}: whether the fifth row is objectness or the first class is ambiguous",
            hint="pass the class names with `--onnx-names FILE`, or their number with "
            f"`--onnx-columns classes={columns - 5}`; for YOLOv8 and later a plugin's head with `--onnx-head NAME`",
        )
    return _expose(source.model, append(source.model, "Transpose", [name], perm=[0, 2, 1]))


def _unsqueeze(source: Source, name: str, answer: NDArray[Any]) -> str:
    """Add the batch to an output (N, 5 + C) or (5 + C, N) of one image."""
    model, tensor, rows = source.model, name, answer
    found = f"the output `{name}` has the shape {shape_text(answer.shape)}, without a batch"
    if answer.shape[0] < answer.shape[1]:
        tensor, rows = append(model, "Transpose", [name], perm=[1, 0]), answer.T
    if rows.shape[1] < 6:
        raise UsageError(f"{found}; expected (batch, rows, 5 + classes)", hint=DETECT_HINT)
    if model.graph.input[0].type.tensor_type.shape.dim[0].dim_value != 1:
        raise UsageError(
            f"{found}, but the batch of the input is free: it answers for the first image only",
            hint="fix the batch of the input to 1, or export the model without squeezing the output",
        )
    source.locate(rows[None])
    return _expose(model, append(model, "Reshape", [tensor, np.array([1, *rows.shape], np.int64)]))


def _expose(model: ModelProto, tensor: str) -> str:
    """Make a tensor an output, after nodes were appended for it."""
    elem = {value.name: value.type.tensor_type.elem_type for value in model.graph.output}
    source = next(node.input[0] for node in model.graph.node if tensor in node.output)
    model.graph.output.append(helper.make_tensor_value_info(tensor, elem.get(source, TensorProto.FLOAT), None))
    return tensor


def _shown(answers: Mapping[str, NDArray[Any]]) -> str:
    return ", ".join(f"`{name}` {shape_text(answer.shape)}" for name, answer in answers.items())


def _declared(model: ModelProto) -> str:
    names = {v.name: helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type).name for v in model.graph.output}
    return ", ".join(f"`{name}` of type {dtype}" for name, dtype in names.items())
