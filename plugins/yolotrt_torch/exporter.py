"""Checkpoint -> network -> ONNX, with the network's output for a fixed input as reference."""

from __future__ import annotations

from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from yolotrt_core.console.text import first_line, printable
from yolotrt_core.errors import StageError, UsageError
from yolotrt_core.export.onnx_metadata import metadata_of
from yolotrt_core.export.reference_input import reference_images
from yolotrt_core.inference.input_shapes import refuse_shape, refuse_sizes
from yolotrt_core.plugin.stages import ONNX_FILE, REFERENCE_FILE
from yolotrt_core.types import MIN_SIZE_STEP, BuildRequest, ModelSource, ModelSpec, Task, TensorSpec
from yolotrt_torch.checkpoint import Checkpoint, read_checkpoint
from yolotrt_torch.classify_head import Classify
from yolotrt_torch.model_builder import network_from_checkpoint
from yolotrt_torch.pickle_names import EXPORT_HINT
from yolotrt_torch.segment_head import Segment
from yolotrt_torch.yolov5_layers import MAX_PIXELS, Detect
from yolotrt_torch.yolov5_model import Network, depends_on_size, fuse

if TYPE_CHECKING:
    from yolotrt_torch.options import TorchOptions

DYNAMO_MIN_OPSET = 18
# Name of the head, which selects the postprocessor, and task.
_HEADS: dict[type, tuple[str, Task]] = {
    Detect: ("yolov5", "detect"),
    Segment: ("yolov5_seg", "segment"),
    Classify: ("yolov5_cls", "classify"),
}


def export(source: ModelSource, request: BuildRequest, options: TorchOptions, out: Path) -> ModelSpec:
    """Write `out/model.onnx` and `out/reference.npz` for a YOLOv5 checkpoint.

    The reference is computed before batch norms are folded and the decoding is made constant, so the parity check
    covers these steps. It is computed in float64, and the tolerance is at minimum twice the error of float32, since
    weights may amplify rounding.

    Raises:
        UsageError: not a YOLOv5 checkpoint, an output other than YOLOv5's, or a size that is not a multiple of its
            size step, or not a square for classification.
        StageError: PyTorch cannot export it.
    """
    _refuse_options(options)
    checkpoint = read_checkpoint(source.path, options)
    network = network_from_checkpoint(checkpoint)
    _refuse_large(request)
    _refuse_order(network, options)
    refuse_sizes(request, size_step(network))
    refuse_shape(request, _HEADS[type(network.head)][1])
    shape = (request.batch, request.height, request.width)
    images = reference_images(*shape, channels=network.channels)
    rounded = _compute_reference(network, images[:1])
    _check_reference(rounded, network, (1, *shape[1:]))
    exact = _compute_reference(network.double(), images.astype(np.float64))
    network.float()
    tolerance = max(_double_error(rounded[name], exact[name][:1]) for name in exact)
    arrays: dict[str, Any] = {name: answer.astype(np.float32) for name, answer in exact.items()}
    np.savez(out / REFERENCE_FILE, images=images, tolerance=tolerance, **arrays)

    fuse(network)
    if not request.dynamic and isinstance(network.head, Detect):
        network.detect.freeze_grid(request.height, request.width)
    target = out / ONNX_FILE
    _export(network, request, options, target)
    spec = spec_of(network, checkpoint, source, request, options)
    _finish(target, spec, request)
    return spec


def _refuse_options(options: TorchOptions) -> None:
    if options.exporter == "dynamo":
        if options.opset < DYNAMO_MIN_OPSET:
            raise UsageError(
                f"`--torch-exporter dynamo` writes opset {DYNAMO_MIN_OPSET} and later, found `--torch-opset "
                f"{options.opset}`",
                hint="use `--torch-exporter torchscript` for older ones",
            )
        if util.find_spec("onnxscript") is None:
            raise UsageError(
                "`--torch-exporter dynamo` needs onnxscript, which is not installed",
                hint="pip install onnxscript, or use `--torch-exporter torchscript`",
            )


def _refuse_order(network: Network, options: TorchOptions) -> None:
    if options.channels != type(options)().channels and network.channels != len(options.channels):
        raise UsageError(
            f"`--torch-channels {options.channels}` is for a model with four input channels, but this one has "
            f"{network.channels}",
            hint="remove `--torch-channels`",
        )


def _refuse_large(request: BuildRequest) -> None:
    shapes = (shape for profile in request.profiles for shape in (profile.min, profile.opt, profile.max))
    if any(max(shape[1:]) > MAX_PIXELS for shape in shapes):
        raise UsageError(f"a profile is larger than {MAX_PIXELS} pixels, the maximum of a dynamic export")


def _double_error(rounded: NDArray[Any], exact: NDArray[Any]) -> float:
    """Return twice the relative L2 error of float32."""
    return float(2 * np.linalg.norm(rounded - exact) / (np.linalg.norm(exact) or 1.0))


def outputs_of(network: Network, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Run a network in `eval()`: output name to array, in the precision of the images."""
    with torch.inference_mode():
        answer = network(torch.from_numpy(images))
    answers = answer if isinstance(answer, tuple) else (answer,)
    return {f"output{number}": each.numpy() for number, each in enumerate(answers)}


def _compute_reference(network: Network, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
    try:
        return outputs_of(network, images)
    except (RuntimeError, TypeError, ValueError) as err:  # PyTorch detects mismatched shapes at run time
        raise UsageError(
            f"the network that the checkpoint's yaml describes cannot run: {printable(first_line(err))[:200]}",
            hint=EXPORT_HINT,
        ) from err


def _check_reference(answers: dict[str, NDArray[Any]], network: Network, shape: tuple[int, int, int]) -> None:
    for tensor in _outputs(network, shape[0], shape[1], shape[2]):
        answer = answers[tensor.name]
        if answer.shape != tensor.shape or not np.isfinite(answer).all():
            found = "NaN or infinite values" if answer.shape == tensor.shape else f"an output of shape {answer.shape}"
            raise UsageError(f"the model's output is not YOLOv5's: expected {tensor.shape}, found {found}")


def _outputs(network: Network, batch: int | str, height: int, width: int) -> tuple[TensorSpec, ...]:
    """Return the outputs for an input size; a dynamic `batch` makes all but the columns dynamic."""
    dynamic, head = isinstance(batch, str), network.head
    if isinstance(head, Classify):
        return (TensorSpec("output0", "float32", (batch, head.nc)),)
    rows = "rows" if dynamic else _rows(network, height, width)
    outputs = [TensorSpec("output0", "float32", (batch, rows, head.no))]
    if isinstance(head, Segment):
        side = [2 * side // network.stride[0] for side in (height, width)]
        maps = ("mask_height", "mask_width") if dynamic else tuple(side)
        outputs.append(TensorSpec("output1", "float32", (batch, head.nm, *maps)))
    return tuple(outputs)


def _rows(network: Network, height: int, width: int) -> int:
    return sum(network.detect.na * (height // s) * (width // s) for s in network.stride)


def size_step(network: Network) -> int:
    """Return the step of height and width in pixels: the network's stride, and at least 32 as in upstream.

    Source:
        ultralytics/yolov5 v7.0, utils/general.py `check_img_size` with models/common.py `DetectMultiBackend`.
    """
    return max(network.network_stride, *network.stride, MIN_SIZE_STEP)


def _export(network: Network, request: BuildRequest, options: TorchOptions, target: Path) -> None:
    # TorchScript's graph rarely depends on the traced size, and a small one is faster. Two images and unequal
    # sides: dynamo would treat a 1, or two equal sizes, as constants.
    step = size_step(network)
    shape = (2, network.channels, 4 * step, 5 * step)
    if not request.dynamic and (options.exporter == "dynamo" or depends_on_size(network)):
        shape = (request.batch, network.channels, request.height, request.width)
    settings: dict[str, Any] = {
        "input_names": ["images"],
        "output_names": [tensor.name for tensor in _outputs(network, 1, step, step)],
        "opset_version": options.opset,
        "dynamo": options.exporter == "dynamo",
    }
    if options.exporter == "dynamo":
        settings |= {"external_data": False, "verbose": False}
        if request.dynamic:
            dims = [torch.export.Dim(name, min=1, max=MAX_PIXELS // step) for name in ("rows", "columns")]
            batch = torch.export.Dim("batch", min=1, max=65536)
            settings["dynamic_shapes"] = {"images": {0: batch, 2: step * dims[0], 3: step * dims[1]}}
    elif request.dynamic:
        tensors = _outputs(network, "batch", step, step)
        settings["dynamic_axes"] = {
            "images": {0: "batch", 2: "height", 3: "width"},
            **{t.name: {i: size for i, size in enumerate(t.shape) if isinstance(size, str)} for t in tensors},
        }
    try:
        torch.onnx.export(network, (torch.zeros(shape),), str(target), **settings)
    except Exception as err:  # PyTorch's exporters have no common exception base
        first = str(err).strip().splitlines()
        raise StageError(
            f"PyTorch cannot export the model with `{options.exporter}` at opset {options.opset}: "
            f"{type(err).__name__}: {first[0][:200] if first else 'no message'}",
            hint="try the other `--torch-exporter`, or another `--torch-opset`",
        ) from err


def spec_of(
    network: Network, checkpoint: Checkpoint, source: ModelSource, request: BuildRequest, options: TorchOptions
) -> ModelSpec:
    """Return the spec of a network exported for a request."""
    size: tuple[int | str, ...] = (request.batch, request.height, request.width)
    if request.dynamic:
        size = ("batch", "height", "width")
    head, task = _HEADS[type(network.head)]
    return ModelSpec(
        inputs=(TensorSpec("images", "float32", (size[0], network.channels, *size[1:])),),
        outputs=_outputs(network, size[0], request.height, request.width),
        order=options.channels if network.channels == len(options.channels) else None,
        labels=checkpoint.labels,
        strides=network.stride,
        network_stride=size_step(network),
        head=head,
        task=task,
        anchors=_anchors(network.head),
        provenance={
            "source_sha256": source.sha256,
            "torch": torch.__version__,
            "yolotrt": metadata.version("yolotrt-core"),
            "exporter": options.exporter,
            "opset": str(options.opset),
            **{f"checkpoint_{key}": value for key, value in checkpoint.facts.items()},
        },
    )


def _anchors(head: Detect | Classify) -> tuple[tuple[tuple[float, float], ...], ...]:
    """Return the anchors of each level in input pixels."""
    if isinstance(head, Classify):
        return ()
    scaled = head.anchors * torch.tensor(head.stride, dtype=torch.float32).view(-1, 1, 1)
    return tuple(tuple((float(w), float(h)) for w, h in level) for level in scaled.tolist())


def _finish(target: Path, spec: ModelSpec, request: BuildRequest) -> None:
    """Set dimensions and metadata, remove machine-specific data, and check."""
    model = onnx.load(str(target))
    for value, tensor in zip((*model.graph.input, *model.graph.output), (*spec.inputs, *spec.outputs), strict=True):
        dims = value.type.tensor_type.shape.dim
        for dim, size in zip(dims, tensor.shape, strict=True):
            if isinstance(size, str):
                dim.dim_param = size
            else:
                dim.dim_value = size
    _constants_to_initializers(model.graph)
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]  # stack traces with local paths
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    del model.metadata_props[:]
    for key, value in metadata_of(spec, request).items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(target))


def _constants_to_initializers(graph: onnx.GraphProto) -> None:
    """Convert `Constant` nodes to initializers, as the other exporter does."""
    constants = [node for node in graph.node if node.op_type == "Constant" and node.attribute[0].name == "value"]
    for node in constants:
        graph.initializer.add().CopyFrom(node.attribute[0].t)
        graph.initializer[-1].name = node.output[0]
        graph.node.remove(node)
