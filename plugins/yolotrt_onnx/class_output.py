"""The output of a classification model, (B, classes), and the normalization that its images need.

Upstream's `export.py` leaves the normalization out of the file; here it becomes part of the graph.

Source:
    ultralytics/yolov5 v7.0, utils/augmentations.py `classify_transforms`, export.py `export_onnx`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper

from yolotrt_core.console.text import counted
from yolotrt_core.datasets.class_names import numbered_labels
from yolotrt_core.errors import UsageError
from yolotrt_core.inference.input_shapes import shape_text
from yolotrt_onnx.box_output import HEAD, Source, output_names
from yolotrt_onnx.columns import NAMES_HINT, read_classes
from yolotrt_onnx.graph_edits import free_name

if TYPE_CHECKING:
    from yolotrt_onnx.image_input import ImageInput

log = logging.getLogger(__name__)

CLASS_HEAD = "yolov5_cls"
DEFAULT_SIZE = 224  # pixels; upstream trains at this size unless told otherwise
_TASK = "classify"
# Of ImageNet's red, green and blue.
_MEAN = np.array((0.485, 0.456, 0.406), np.float32).reshape(1, 3, 1, 1)
_DEVIATION = np.array((0.229, 0.224, 0.225), np.float32).reshape(1, 3, 1, 1)
_SUM_SLACK = 1e-2  # of probabilities in half precision


@dataclass(frozen=True, slots=True)
class ClassOutput:
    """The output of a classification model.

    Attributes:
        output: its name. labels: of the classes. is_normalized: whether ImageNet's mean and deviation are applied to
            the images before the file's own graph.
    """

    output: str
    labels: tuple[str, ...]
    is_normalized: bool


def find_class_output(source: Source, image: ImageInput) -> ClassOutput | None:
    """Return the output of a classification model; None for other models.

    It is one if the metadata state that task, or if its only output is (B, C) and it has names for C classes.

    Raises:
        UsageError: it is one by its metadata, but has another output; options for boxes; names of another number; an
            integer input, whose normalization is unknown.
    """
    options, model = source.options, source.model
    if options.head not in (HEAD, CLASS_HEAD):
        return None
    classes = read_classes(model, source.path, options)
    names, shape = output_names(model, options), _only_shape(model)
    is_named = classes.task == _TASK or options.head == CLASS_HEAD
    if not is_named and (classes.task or len(names) != 1 or len(shape) != 2 or shape[1] != classes.count):
        return None
    if len(names) != 1 or len(shape) != 2 or type(shape[1]) is not int:
        raise UsageError(
            f"expected one float output (batch, classes) of a classification model, found {len(names)}"
            + (f" of shape {shape_text(shape)}" if shape else ""),
            hint="export it again with YOLOv5's `export.py --include onnx`",
        )
    if options.columns is not None or options.anchors is not None:
        raise UsageError("`--onnx-columns` and `--onnx-anchors` are for boxes, but this is a classification model")
    if classes.count not in (None, shape[1]):
        raise UsageError(
            f"the output has {shape[1]} classes, but {classes.where} has names for {classes.count}", hint=NAMES_HINT
        )
    if not classes.names:
        log.warning("the file has no names for its %s: numbering them; %s", counted(shape[1], "class"), NAMES_HINT)
    normalized = options.normalize == "on" or (options.normalize == "auto" and not image.is_centred)
    if normalized and image.dtype == np.uint8:
        raise UsageError(
            "the file takes images as integers, but its graph does not normalize them",
            hint="pass `--onnx-normalize off` if the network was trained without ImageNet's mean and deviation",
        )
    log.info(
        "a classification model: %s, images %s",
        counted(shape[1], "class"),
        "normalized by ImageNet's mean and deviation" if normalized else "not normalized before the file's own graph",
    )
    return ClassOutput(names[0], classes.names or numbered_labels(shape[1]), normalized)


def is_class_output(model: ModelProto) -> bool:
    """Check whether a file's only output has two dimensions, with names for as many classes."""
    shape, properties = _only_shape(model), {each.key: each.value for each in model.metadata_props}
    return len(shape) == 2 and (properties.get("task") == _TASK or "names" in properties)


def read_answer(
    found: ClassOutput, images: NDArray[np.float32], run: Callable[[NDArray[np.float32]], NDArray[np.float32]]
) -> NDArray[np.float32]:
    """Return the logits of the file for images (B, 3, H, W), RGB in 0..1.

    Args:
        run: runs the file on such images, normalized where it needs it.

    Raises:
        UsageError: the values are not logits.
    """
    answer = run((images - _MEAN) / _DEVIATION if found.is_normalized else images)
    if answer.shape != (len(images), len(found.labels)) or not np.isfinite(answer).all():
        raise UsageError(
            f"the output `{found.output}` is {shape_text(answer.shape)} or not finite, expected finite values "
            f"{shape_text((len(images), len(found.labels)))}"
        )
    if (answer >= 0).all() and np.abs(answer.sum(1) - 1).max() < _SUM_SLACK and len(found.labels) > 1:
        raise UsageError(
            f"the output `{found.output}` has probabilities, expected the values before the softmax, as YOLOv5's "
            "export has them; YOLOv8 and later export the former, and preprocess images differently",
            hint="export a classification model of YOLOv5; for others a plugin's head with `--onnx-head NAME`",
        )
    return answer


def normalize_images(model: ModelProto) -> None:
    """Insert the normalization behind the input `images`, float (B, 3, H, W) in 0..1."""
    graph = model.graph
    shifted, normalized = free_name(model, "images_shifted"), free_name(model, "images_normalized")
    for node in graph.node:
        for index, read in enumerate(node.input):
            if read == "images":
                node.input[index] = normalized
    steps: tuple[tuple[str, str, NDArray[Any], str], ...] = (
        ("Sub", "images", _MEAN, shifted),
        ("Div", shifted, _DEVIATION, normalized),
    )
    for place, (operator, read, values, result) in enumerate(steps):
        graph.initializer.append(numpy_helper.from_array(values, f"{result}_by"))
        graph.node.insert(place, helper.make_node(operator, [read, f"{result}_by"], [result], name=result))


def _only_shape(model: ModelProto) -> tuple[int | str, ...]:
    """Return the declared shape of the only output; empty if there are several or it is unknown."""
    if len(model.graph.output) != 1:
        return ()
    dims = model.graph.output[0].type.tensor_type.shape.dim
    return tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in dims)
