"""TensorFlow model -> ONNX in the project's layout, with TensorFlow's own answer beside it."""

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

if TYPE_CHECKING:
    from yolotrt_tf.loaders import Network
    from yolotrt_tf.options import TfOptions

log = logging.getLogger(__name__)

# How far a box centre may lie outside its cells, in cells: rounding of float32, of 8-bit integers.
_SLACK, _QUANTIZED_SLACK = 0.02, 1.0
# TensorFlow Lite rounds between its integers otherwise than Q/DQ nodes do: 0.4% of the output on small networks.
_ROUNDED_TOLERANCE = 0.05


def export(source: ModelSource, request: BuildRequest, options: TfOptions, out: Path) -> ModelSpec:
    """Write `out/model.onnx` and `out/reference.npz` for a TensorFlow model.

    Batch may be free; height and width are those of the request, which a model that fixes them must share.

    Raises:
        UsageError: no TensorFlow model, not YOLOv5's output, or made for another size.
        StageError: tf2onnx could not convert it.
    """
    form = _form(source.path)
    known = Known(
        strides_from_text(options.strides, "--tf-strides"),
        None if options.rows == "auto" else options.rows,
        None if options.units == "auto" else options.units,
    )
    size = (request.height, request.width)
    # A free batch is tried with more than one image, or a graph that mixes them up would pass.
    frames = reference_images(max(request.batch, 2) if request.dynamic else request.batch, *size, "nhwc")
    with only_in_stage_log("tensorflow", "absl", "tf2onnx"):  # what matters of it is in the error
        from yolotrt_tf.loaders import load

        network = load(source.path, form, options)
        _refuse_size(network, request)
        answer = _answer(network, frames)
        rows = find_rows(answer, size, known, _QUANTIZED_SLACK if network.rounded else _SLACK)
        model = _convert(network, source.path, request, options)
    log.debug("%s: %s", NAMES[form], rows)
    asymmetric = edit.has_zero_points(model)
    if asymmetric:
        log.warning("the model's 8-bit integers have zero points, which TensorRT refuses: `--tf-quantized float` is "
                    "for TensorRT, onnxruntime takes it as it is")  # fmt: skip
    onnx_normalize.number_names(model)
    onnx_normalize.rewrite_resizes(model)
    onnx_normalize.arrange_rows(model, rows, size)
    spec = _spec(source, form, request, options, rows, answer.shape)
    if asymmetric:  # kept with the export: whoever refuses it may find it in the store, long after the warning
        spec = replace(spec, provenance={**spec.provenance, "zero_points": "`--tf-quantized float` exports none"})
    _finish(model, spec, request, out / ONNX_FILE)
    images = frames if options.layout == "nhwc" else frames.transpose(0, 3, 1, 2)
    arrays = {"images": images, "output0": rows.to_project(answer, *size)}
    if network.rounded:
        arrays["tolerance"] = np.array(_ROUNDED_TOLERANCE, np.float64)
    np.savez(out / REFERENCE_FILE, **arrays)  # type: ignore[arg-type]
    return spec


def _form(path: Path) -> Format:
    form = recognise(path)
    if form == "savedmodel_pb":
        raise UsageError(f"`{path}` is one file of a SavedModel", hint=f"pass its folder, `{path.parent}`")
    if form is None:
        known = ", ".join(NAMES[f] for f in ("savedmodel", "keras", "hdf5", "graphdef", "tflite"))
        raise UsageError(f"`{path}` is no TensorFlow model that is known: {known}")
    return form


def _refuse_size(network: Network, request: BuildRequest) -> None:
    _, height, width = network.shape
    for fixed, asked in ((height, request.height), (width, request.width)):
        if fixed not in (None, asked):
            raise UsageError(
                f"the model is made for images of {height or 'any'} x {width or 'any'} pixels, "
                f"and {request.height} x {request.width} was asked for",
                hint=f"pass `--imgsz {height or request.height},{width or request.width}`",
            )


def _answer(network: Network, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Run TensorFlow on (B, H, W, 3), one image at a time where the model is made so."""
    step = network.shape[0] or len(images)
    if len(images) % step:
        raise UsageError(
            f"the model is made for batches of {step}, and {len(images)} was asked for", hint=f"pass `--batch {step}`"
        )
    try:
        return np.concatenate([network.run(images[at : at + step]) for at in range(0, len(images), step)])
    except Exception as err:  # TensorFlow raises its own, and ValueError, and RuntimeError
        raise StageError(f"TensorFlow could not run the model: {first_line(err)}") from err


def _convert(network: Network, path: Path, request: BuildRequest, options: TfOptions) -> ModelProto:
    from yolotrt_tf.onnx_conversion import onnx_from_network

    batch = None if request.dynamic else request.batch
    made_for = network.shape[0]
    fixed = made_for not in (None, batch)  # in its reshapes too, where TensorFlow notices a batch that is not free
    shape = (None if fixed else batch, request.height, request.width)
    model = onnx_from_network(network, path, shape, options.opset, options.layout)
    given, wanted = model.graph.input, model.graph.output
    onnx_normalize.rename_tensors(model, {given[0].name: "images", wanted[0].name: "output0"})
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
    """Set dimensions and metadata, check, write; equal models give equal bytes."""
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
            f"the model was converted to invalid ONNX: {first_line(err)}",
            hint="try another `--tf-opset`, or another format of the model",
        ) from err
    target.write_bytes(model.SerializeToString(deterministic=True))


def _tensorflow_version() -> str:
    import tensorflow as tf

    return str(tf.__version__)
