"""TensorFlow model -> ONNX in yolotrt's layout, with TensorFlow's output as reference."""

from __future__ import annotations

import logging
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from yolotrt_core.console.log import only_in_stage_log
from yolotrt_core.console.text import first_line
from yolotrt_core.errors import StageError, UsageError
from yolotrt_core.export import onnx_normalize
from yolotrt_core.export.onnx_metadata import metadata_of, strides_from_text
from yolotrt_core.export.output_layout import Known, Rows, find_rows
from yolotrt_core.export.reference_input import reference_images
from yolotrt_core.plugin.stages import ONNX_FILE, REFERENCE_FILE
from yolotrt_core.types import BuildRequest, ModelSource, ModelSpec, TensorSpec, with_channels
from yolotrt_tf import onnx_edits as edit
from yolotrt_tf.class_names import labels_of
from yolotrt_tf.formats import NAMES, Format, recognise
from yolotrt_tf.integer_resolution import COARSE, refuse_lost

if TYPE_CHECKING:
    from yolotrt_tf.loaders import Network
    from yolotrt_tf.options import TfOptions

log = logging.getLogger(__name__)

# Maximum distance of a box centre from its cell, in cells: for float32, for 8-bit integers.
_SLACK, _QUANTIZED_SLACK = 0.02, 1.0
# TensorFlow Lite rounds between integers differently from Q/DQ nodes: 0.4% of the output on small networks.
_ROUNDED_TOLERANCE = 0.05


def export(source: ModelSource, request: BuildRequest, options: TfOptions, out: Path) -> ModelSpec:
    """Write `out/model.onnx` and `out/reference.npz` for a TensorFlow model.

    Batch may be free; height and width are the request's, which must match a model with fixed ones.

    Raises:
        UsageError: not a TensorFlow model, an output other than YOLOv5's, or another size.
        StageError: tf2onnx cannot convert it.
    """
    form = _recognise_format(source.path)
    known = Known(
        strides_from_text(options.strides, "--tf-strides"),
        None if options.rows == "auto" else options.rows,
        None if options.units == "auto" else options.units,
    )
    size = (request.height, request.width)
    # Several images on a free batch, to detect a graph that mixes them up.
    frames = reference_images(max(request.batch, 2) if request.dynamic else request.batch, *size, "nhwc")
    with only_in_stage_log("tensorflow", "absl", "tf2onnx"):  # errors carry what matters
        from yolotrt_tf.loaders import load

        network = load(source.path, form, options)
        _refuse_size(network, request)
        answer = _run_network(network, frames)
        rows = _find_rows(network, answer, size, known)
        model = _convert(network, source.path, request, options)
    log.debug("%s: %s", NAMES[form], rows)
    asymmetric = edit.has_zero_points(model)
    if asymmetric:
        log.warning("the model's 8-bit integers have zero points, which only onnxruntime supports: for TensorRT "
                    "pass `--tf-quantized float`")  # fmt: skip
    onnx_normalize.number_names(model)
    onnx_normalize.rewrite_resizes(model)
    onnx_normalize.arrange_rows(model, rows, size)
    spec = _spec(source, form, request, options, rows, answer.shape)
    if asymmetric:  # kept with the artifact for errors of later stages, when the warning is long gone
        spec = replace(spec, provenance={**spec.provenance, "zero_points": "`--tf-quantized float` exports none"})
    _finish(model, spec, request, out / ONNX_FILE)
    images = frames if options.layout == "nhwc" else frames.transpose(0, 3, 1, 2)
    arrays = {"images": images, "output0": rows.to_project(answer, *size)}
    if network.rounded:
        arrays["tolerance"] = np.array(_ROUNDED_TOLERANCE, np.float64)
    np.savez(out / REFERENCE_FILE, **arrays)  # type: ignore[arg-type]
    return spec


def _find_rows(network: Network, answer: NDArray[np.float32], size: tuple[int, int], known: Known) -> Rows:
    try:
        return find_rows(answer, size, known, _QUANTIZED_SLACK if network.rounded else _SLACK)
    except UsageError:
        refuse_lost(network.resolution, COARSE)  # says why, if integers are to blame
        raise


def _recognise_format(path: Path) -> Format:
    form = recognise(path)
    if form == "savedmodel_pb":
        raise UsageError(f"`{path}` is only one file of a SavedModel", hint=f"pass its folder, `{path.parent}`")
    if form is None:
        known = ", ".join(NAMES[f] for f in ("savedmodel", "keras", "hdf5", "graphdef", "tflite"))
        raise UsageError(f"`{path}` is not a supported TensorFlow model, expected {known}")
    return form


def _refuse_size(network: Network, request: BuildRequest) -> None:
    _, height, width = network.shape
    for fixed, requested in ((height, request.height), (width, request.width)):
        if fixed not in (None, requested):
            raise UsageError(
                f"the model expects images of {height or 'any'} x {width or 'any'} pixels, "
                f"but {request.height} x {request.width} was requested",
                hint=f"pass `--imgsz {height or request.height},{width or request.width}`",
            )


def _run_network(network: Network, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Run TensorFlow on (B, H, W, 3), in batches of the model's size."""
    step = network.shape[0] or len(images)
    if len(images) % step:
        raise UsageError(
            f"the model expects batches of {step}, but {len(images)} was requested", hint=f"pass `--batch {step}`"
        )
    try:
        return np.concatenate([network.run(images[at : at + step]) for at in range(0, len(images), step)])
    except Exception as err:  # TensorFlow's exceptions have no common base
        raise StageError(f"TensorFlow cannot run the model: {first_line(err)}") from err


def _convert(network: Network, path: Path, request: BuildRequest, options: TfOptions) -> ModelProto:
    from yolotrt_tf.onnx_conversion import onnx_from_network

    batch = None if request.dynamic else request.batch
    made_for = network.shape[0]
    fixed = made_for not in (None, batch)  # also in its reshapes
    shape = (None if fixed else batch, request.height, request.width)
    model = onnx_from_network(network, path, shape, options.opset, options.layout)
    inputs, outputs = model.graph.input, model.graph.output
    onnx_normalize.rename_tensors(model, {inputs[0].name: "images", outputs[0].name: "output0"})
    if fixed or (network.graph is None and made_for != batch):
        edit.set_batch(model, "batch" if batch is None else batch, made_for or 1)
    if network.input_quantization is not None:
        edit.quantize_input(model, network.input_quantization.scale, network.input_quantization.zero_point)
    if network.output_quantization is not None:
        edit.dequantize_output(model, network.output_quantization.scale, network.output_quantization.zero_point)
    if network.rounded and options.quantized == "float":
        edit.drop_rounding(model)
    return model


def _spec(
    source: ModelSource,
    form: Format,
    request: BuildRequest,
    options: TfOptions,
    rows: Rows,
    answer: tuple[int, ...],
) -> ModelSpec:
    batch: int | str = "batch" if request.dynamic else request.batch
    shape = with_channels(batch, request.height, request.width, options.layout)
    return ModelSpec(
        inputs=(TensorSpec("images", "float32", shape),),
        outputs=(TensorSpec("output0", "float32", (batch, *answer[1:])),),
        labels=labels_of(source.path, form, answer[2] - 5, options.names),
        strides=tuple(sorted(rows.strides)),
        head="yolov5",
        provenance={
            "source_sha256": source.sha256,
            "tensorflow": _tensorflow_version(),
            "tf2onnx": metadata.version("tf2onnx"),
            "yolotrt": metadata.version("yolotrt-core"),
            "format": NAMES[form],
            "opset": str(options.opset),
            "source_rows": f"{rows.order}-major, {rows.units}, strides {','.join(map(str, rows.strides))}",
        },
    )


def _finish(model: ModelProto, spec: ModelSpec, request: BuildRequest, target: Path) -> None:
    """Set dimensions and metadata, check and write; equal models give equal bytes."""
    for value, tensor in zip((*model.graph.input, *model.graph.output), (*spec.inputs, *spec.outputs), strict=True):
        onnx_normalize.set_shape(value, tensor.shape)
    del model.graph.value_info[:]
    del model.metadata_props[:]
    model.graph.name = "yolov5"
    for key, text in metadata_of(spec, request).items():
        model.metadata_props.add(key=key, value=text)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as err:
        raise StageError(
            f"tf2onnx produced an invalid ONNX: {first_line(err)}",
            hint="try another `--tf-opset`, or another format of the model",
        ) from err
    target.write_bytes(model.SerializeToString(deterministic=True))


def _tensorflow_version() -> str:
    import tensorflow as tf

    return str(tf.__version__)
