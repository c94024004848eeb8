"""ONNX file -> ONNX in yolotrt's layout, with the file's own output as reference."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
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
from yolotrt_core.inference.input_shapes import refuse_sizes
from yolotrt_core.plugin.stages import REFERENCE_FILE, SourceInfo
from yolotrt_core.types import BuildRequest, ModelSource, ModelSpec
from yolotrt_onnx.box_output import HEAD, Source, read_boxes
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
    nodes stay, Q/DQ nodes included. NMS at the end is removed, and a head without decoding is decoded. The reference
    is the output of the file in onnxruntime, with these nodes if it has no rows of its own.

    Raises:
        UsageError: invalid ONNX, an input other than one image, an output other than YOLOv5's, or another size.
    """
    model, removed = _load(source.path, options)
    image = ImageInput(model)
    image.refuse_other(request)
    image.read_preprocessing(options)
    step = image.size_step()
    refuse_sizes(request, step)
    size = (request.height, request.width)
    # Several images on a free batch, to detect a graph that mixes them up.
    images = reference_images(max(request.batch, 2) if request.dynamic else request.batch, *size)
    images = image.representable(images)
    boxes = read_boxes(
        Source(model, source.path, request, options, image.is_free, removed),
        lambda outputs: _run_source(model, image, outputs, images),
    )
    answer, rows = boxes.answer, boxes.rows
    precision = source_precision(model)
    changed = use_float_operators(model)

    outputs = {boxes.output: answer}
    if boxes.prototypes is not None:
        outputs[boxes.prototypes[0]] = boxes.prototypes[1]
    keep_outputs(model, outputs)
    image.become_images(request)
    rename(model, {name: f"output{number}" for number, name in enumerate(outputs)})
    cast_outputs_to_float(model)
    _free_outputs(model, list(outputs.values()))
    if rows is not None:
        arrange_rows(model, rows, size)
    spec = replace(_spec(model, source, options, rows, boxes.labels), network_stride=step)
    if boxes.prototypes is not None:
        spec = replace(spec, head=f"{spec.head}_seg", task="segment")
    spec = replace(spec, provenance={**spec.provenance, **({"source_precision": precision} if precision else {})})
    if has_zero_points(model):  # for errors of TensorRT's parser
        spec = replace(spec, provenance={**spec.provenance, "zero_points": _SYMMETRIC})
    if not image.is_plain:
        spec = replace(spec, provenance={**spec.provenance, "source_input": image.form})
    _finish(model, spec, request, source.path, out)
    given = answer if rows is None else rows.to_project(answer, *size)
    arrays = {"images": images, "output0": given.astype(np.float32)}
    if boxes.prototypes is not None:
        arrays["output1"] = boxes.prototypes[1].astype(np.float32)
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
    """Declare rows (B, N, columns), and prototypes (B, K, h, w) behind them, with dimensions from the input's."""
    given = [d.dim_value if d.HasField("dim_value") else None for d in _dims(model.graph.input[0])]
    is_free = not (given[2] and given[3])
    values = []
    for number, answer in enumerate(answers):
        shape: list[int | str] = [*answer.shape]
        if not given[0]:
            shape[0] = "batch"
        if is_free:
            free = {1: "rows"} if answer.ndim == 3 else {2: "mask_height", 3: "mask_width"}
            shape = [free.get(axis, size) for axis, size in enumerate(shape)]
        values.append(helper.make_tensor_value_info(f"output{number}", TensorProto.FLOAT, shape))
    del model.graph.output[:]
    model.graph.output.extend(values)


def _spec(
    model: ModelProto, source: ModelSource, options: OnnxSourceOptions, rows: Rows | None, labels: tuple[str, ...]
) -> ModelSpec:
    strides = tuple(sorted(rows.strides)) if rows else _read_strides(model)
    producer = f"{model.producer_name} {model.producer_version}".strip()
    return ModelSpec(
        inputs=tensor_specs(model.graph.input),
        outputs=tensor_specs(model.graph.output),
        labels=labels,
        strides=strides,
        head=options.head,
        provenance={
            "source_sha256": source.sha256,
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
