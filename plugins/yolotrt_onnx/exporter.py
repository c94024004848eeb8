"""ONNX file -> ONNX in yolotrt's layout, with the file's own output as reference."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from yolotrt_core.console.text import first_line
from yolotrt_core.errors import StageError, UsageError
from yolotrt_core.export.onnx_metadata import literal, metadata_of
from yolotrt_core.export.onnx_normalize import arrange_rows
from yolotrt_core.export.output_layout import Rows
from yolotrt_core.export.reference_input import reference_images
from yolotrt_core.inference.input_shapes import refuse_shape, refuse_sizes
from yolotrt_core.plugin.stages import REFERENCE_FILE, SourceInfo
from yolotrt_core.types import BuildRequest, ModelSource, ModelSpec, Precision
from yolotrt_onnx.box_output import HEAD, Boxes, Source, read_boxes
from yolotrt_onnx.class_output import (
    CLASS_HEAD,
    DEFAULT_SIZE,
    ClassOutput,
    find_class_output,
    is_class_output,
    normalize_images,
    read_answer,
)
from yolotrt_onnx.end_to_end import Removed, remove_nms
from yolotrt_onnx.graph import save, tensor_specs
from yolotrt_onnx.graph_edits import cast_outputs_to_float, drop_weight_inputs, keep_outputs, rename, sort_if_needed
from yolotrt_onnx.image_input import ImageInput
from yolotrt_onnx.integer_operators import has_zero_points, use_float_operators
from yolotrt_onnx.source_precision import has_bfloat16, source_precision

if TYPE_CHECKING:
    from yolotrt_onnx.options import OnnxSourceOptions

log = logging.getLogger(__name__)

# onnxruntime's operators on integers round differently from Q/DQ nodes, by at most one step of a scale.
_ROUNDED_TOLERANCE = 0.05
_SYMMETRIC = (
    "quantize with `ActivationSymmetric` and `WeightSymmetric`, pass the float model, or `--builder onnxruntime`"
)
_FATAL = 4  # onnxruntime also prints what it raises; 4 logs fatal errors only


def export(source: ModelSource, request: BuildRequest, options: OnnxSourceOptions, out: Path) -> ModelSpec:
    """Write `out/model.onnx` and `out/reference.npz` for an ONNX file.

    Changes only the interface (names, float32, BCHW, YOLOv5's rows), free sizes and the metadata; all other
    nodes stay, Q/DQ nodes included. NMS at the end is removed, and a head without decoding is decoded. A classification
    model gets the normalization of its images. The reference is the output of the file in onnxruntime, with these nodes
    if it has no rows of its own.

    Raises:
        UsageError: invalid ONNX, an input other than one image, an output other than YOLOv5's, or another size.
    """
    model, removed = _load(source.path, options)
    image = ImageInput(model)
    image.refuse_other(request)
    image.read_preprocessing(options)
    step = image.size_step()
    refuse_sizes(request, step)
    # Several images on a free batch, to detect a graph that mixes them up.
    batch = max(request.batch, 2) if request.dynamic else request.batch
    images = image.representable(reference_images(batch, request.height, request.width))
    read = Source(model, source.path, request, options, image.is_free, removed)
    found = find_class_output(read, image)
    given = _Given(source, read, image, step, images, source_precision(model))
    if found is not None:
        return _export_classes(given, found, out)
    return _export_boxes(given, read_boxes(read, lambda outputs: _run_source(model, image, outputs, images)), out)


@dataclass(frozen=True, slots=True)
class _Given:
    """A file to export, with the reference images and its size step and precision."""

    source: ModelSource
    read: Source
    image: ImageInput
    step: int
    images: NDArray[np.float32]
    precision: Precision | None


def _export_boxes(given: _Given, boxes: Boxes, out: Path) -> ModelSpec:
    model, size = given.read.model, given.read.size
    outputs = {boxes.output: boxes.answer}
    if boxes.prototypes is not None:
        outputs[boxes.prototypes[0]] = boxes.prototypes[1]
    changed = bool(use_float_operators(model))
    _take_images(given, outputs)
    if boxes.rows is not None:
        arrange_rows(model, boxes.rows, size)
    spec = _spec(given, boxes.rows, boxes.labels)
    if boxes.prototypes is not None:
        spec = replace(spec, head=f"{spec.head}_seg", task="segment")
    answer = boxes.answer if boxes.rows is None else boxes.rows.to_project(boxes.answer, *size)
    answers = {"output0": answer}
    if boxes.prototypes is not None:
        answers["output1"] = boxes.prototypes[1]
    return _write(given, spec, answers, out, changed=changed)


def _export_classes(given: _Given, found: ClassOutput, out: Path) -> ModelSpec:
    model, image = given.read.model, given.image
    refuse_shape(given.read.request, "classify")
    answer = read_answer(
        found, given.images, lambda images: _run_source(model, image, [found.output], images)[found.output]
    )
    changed = bool(use_float_operators(model))
    _take_images(given, {found.output: answer})
    if found.is_normalized:
        normalize_images(model)
    spec = replace(_spec(given, None, found.labels), head=CLASS_HEAD, task="classify")
    return _write(given, spec, {"output0": answer}, out, changed=changed)


def _take_images(given: _Given, outputs: Mapping[str, NDArray[np.float32]]) -> None:
    """Give a model the project's input, and these outputs alone, as `output0` and so on."""
    model = given.read.model
    keep_outputs(model, outputs)
    given.image.become_images(given.read.request)
    rename(model, {name: f"output{number}" for number, name in enumerate(outputs)})
    cast_outputs_to_float(model)
    _free_outputs(model, list(outputs.values()))


def _write(
    given: _Given, spec: ModelSpec, answers: Mapping[str, NDArray[np.float32]], out: Path, *, changed: bool
) -> ModelSpec:
    """Write the model and its reference, and return the spec with its provenance.

    Args:
        changed: whether integer operators were replaced by float ones.
    """
    read, image = given.read, given.image
    origin: dict[str, str] = {"source_precision": given.precision} if given.precision else {}
    if has_zero_points(read.model):  # for errors of TensorRT's parser
        origin["zero_points"] = _SYMMETRIC
    if not image.is_plain:
        origin["source_input"] = image.form
    spec = replace(spec, provenance={**spec.provenance, **origin})
    _finish(read.model, spec, read.request, read.path, out)
    arrays = {"images": given.images, **{name: answer.astype(np.float32) for name, answer in answers.items()}}
    if changed:
        arrays["tolerance"] = np.array(_ROUNDED_TOLERANCE, np.float64)
    np.savez(out / REFERENCE_FILE, **arrays)  # type: ignore[arg-type]
    return spec


def inspect(path: Path) -> SourceInfo:
    """Return size, precision and shape facts of a file; empty for an invalid file, which `export` refuses."""
    try:
        model = onnx.load(str(path), load_external_data=False)
        drop_weight_inputs(model)
        sort_if_needed(model)
        precision = source_precision(model)
    except Exception:  # noqa: BLE001 - `export` reports what is wrong with the file
        return SourceInfo()
    try:
        image = ImageInput(model)
    except UsageError:
        return SourceInfo(precision=precision)
    _, height, width = image.sizes
    named = literal(_properties(model).get("imgsz"))
    if isinstance(named, list) and len(named) == 2 and all(isinstance(n, int) and n > 0 for n in named):
        height, width = height or named[0], width or named[1]
    if not (height or width) and is_class_output(model):
        height = width = DEFAULT_SIZE
    return SourceInfo((height, width) if height and width else None, not image.is_free, precision)


def _load(path: Path, options: OnnxSourceOptions) -> tuple[ModelProto, Removed | None]:
    try:
        model = onnx.load(str(path), load_external_data=False)
        if not model.graph.node:
            raise UsageError(f"`{path}` is not an ONNX model: it contains no graph")
        outside = [w.name for w in model.graph.initializer if w.data_location == TensorProto.EXTERNAL]
        if outside:
            raise UsageError(
                f"`{path}` uses external data for {len(outside)} weights, such as `{outside[0]}`",
                hint="save it as one file: `onnx.save(onnx.load(FILE), NEW, save_as_external_data=False)`",
            )
        drop_weight_inputs(model)
        for value in (*model.graph.output, *model.graph.value_info):
            for dim in value.type.tensor_type.shape.dim:
                dim.ClearField("dim_param")  # exporters give different sizes one name, which onnxruntime relies on
        if sort_if_needed(model):
            log.info("the file's nodes are not in the order in which they run: sorting them")
        removed = remove_nms(model, options.output is not None) if options.head == HEAD else None
        onnx.checker.check_model(model, full_check=True)
    except UsageError:
        raise
    except Exception as err:  # protobuf, the checker and the file system have no common exception base
        raise UsageError(f"`{path}` is not a valid ONNX model: {first_line(err)}", hint="export it again") from err
    return model, removed


def _run_source(
    model: ModelProto, image: ImageInput, outputs: Sequence[str], images: NDArray[np.float32]
) -> dict[str, NDArray[np.float32]]:
    """Run the file in onnxruntime, in batches of its own size; before its interface is changed."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    frames, step = image.of(images), image.sizes[0] or len(images)
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        feed = session.get_inputs()[0].name
        parts = [session.run([*outputs], {feed: frames[at : at + step]}) for at in range(0, len(frames), step)]
    except Exception as err:  # onnxruntime's exception classes have no common base
        if has_bfloat16(model):  # next to convolutions of another type: bf16 convolutions are refused earlier
            raise UsageError(
                "the file computes in bf16, but onnxruntime, which is used for the parity check, does not support it: "
                f"{first_line(err)}",
                hint="build from the original float32 model with `--precision bf16`",
            ) from err
        shape = " x ".join(map(str, images.shape))
        hint = "it may not support this size: export it again, or build without `--dynamic`"
        raise StageError(f"onnxruntime cannot run the file on {shape} pixels: {first_line(err)}", hint=hint) from err
    columns = zip(*parts, strict=True)
    return {
        n: np.concatenate([*map(np.atleast_1d, c)]).astype(np.float32) for n, c in zip(outputs, columns, strict=True)
    }


def _free_outputs(model: ModelProto, answers: Sequence[NDArray[np.float32]]) -> None:
    """Declare rows (B, N, columns), and prototypes (B, K, h, w) behind them, or classes (B, C).

    Their dimensions are free where the input's are.
    """
    given = [d.dim_value if d.HasField("dim_value") else None for d in _dims(model.graph.input[0])]
    is_free = not (given[2] and given[3])
    values = []
    for number, answer in enumerate(answers):
        shape: list[int | str] = [*answer.shape]
        if not given[0]:
            shape[0] = "batch"
        if is_free:
            free = {3: {1: "rows"}, 4: {2: "mask_height", 3: "mask_width"}}.get(answer.ndim, {})
            shape = [free.get(axis, size) for axis, size in enumerate(shape)]
        values.append(helper.make_tensor_value_info(f"output{number}", TensorProto.FLOAT, shape))
    del model.graph.output[:]
    model.graph.output.extend(values)


def _spec(given: _Given, rows: Rows | None, labels: tuple[str, ...]) -> ModelSpec:
    model = given.read.model
    strides = tuple(sorted(rows.strides)) if rows else _read_strides(model)
    producer = f"{model.producer_name} {model.producer_version}".strip()
    return ModelSpec(
        inputs=tensor_specs(model.graph.input),
        outputs=tensor_specs(model.graph.output),
        labels=labels,
        strides=strides,
        head=given.read.options.head,
        network_stride=given.step,
        provenance={
            "source_sha256": given.source.sha256,
            "onnx": onnx.__version__,
            "yolotrt": metadata.version("yolotrt-core"),
            **({"producer": producer} if producer else {}),
            **({"source_rows": f"{rows.order}-major, {rows.units}"} if rows else {}),
        },
    )


def _read_strides(model: ModelProto) -> tuple[int, ...]:
    """Return the strides in the metadata: yolotrt's `strides`, or upstream's `stride`, the maximum; else 32."""
    properties = _properties(model)
    strides = literal(properties.get("strides"))
    if isinstance(strides, list) and strides and all(isinstance(n, int) and n > 0 for n in strides):
        return tuple(sorted(strides))
    largest = literal(properties.get("stride"))
    return (largest,) if isinstance(largest, int) and largest > 0 else (32,)


def _finish(model: ModelProto, spec: ModelSpec, request: BuildRequest, path: Path, out: Path) -> None:
    del model.metadata_props[:]
    for key, text in metadata_of(spec, request).items():
        model.metadata_props.add(key=key, value=text)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as err:
        raise UsageError(
            f"`{path}` does not fit the requested sizes: {first_line(err)}", hint="export it for these sizes"
        ) from err
    save(model, out)


def _properties(model: ModelProto) -> dict[str, str]:
    return {each.key: each.value for each in model.metadata_props}


def _dims(value: ValueInfoProto) -> Any:
    return value.type.tensor_type.shape.dim
