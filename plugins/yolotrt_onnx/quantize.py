"""The passes `int8` and `fp8`: from a float32 graph and ranges to what a strongly typed builder takes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from onnx import ModelProto, TensorProto

from yolotrt_core.calibration.ranges import read_ranges
from yolotrt_core.errors import StageError
from yolotrt_core.types import Calibration, Json, ModelSpec, OnnxModel
from yolotrt_onnx import qdq_insertion
from yolotrt_onnx.graph import check_strongly_typed, lift_constants, load, opset, raise_opset, save, spec_of
from yolotrt_onnx.precision_cast import Retyping, decode_nodes, retype, shape_nodes, unfit_weights, unsupported_nodes
from yolotrt_onnx.source_precision import has_integer_sums

if TYPE_CHECKING:
    from yolotrt_onnx.options import Fp8Options, Int8Options

log = logging.getLogger(__name__)

_FP8_TENSOR = (
    "with one FP8 weight scale for a whole tensor TensorRT-RTX 1.6.1 computes nonsense on an H100 (measured): "
    "judge the engine on the GPU it is for"
)
_QUANTIZING = ("QuantizeLinear", "DequantizeLinear")


def apply(
    model: OnnxModel, calibration: Calibration | None, form: str, options: Int8Options | Fp8Options, out: Path
) -> tuple[ModelSpec, Mapping[str, Json]]:
    """Write the quantized graph of `model` to `out/model.onnx`.

    A graph that brings its own Q/DQ nodes (quantization-aware training) is not quantized again, and one that
    multiplies integers and scales their sums itself (dynamic quantization) stays as it is: half cannot hold the sums.

    Args:
        calibration: ranges of exactly this ONNX. form: `int8` or `fp8`.

    Raises:
        StageError: no ranges, ranges that miss a tensor.
        UsageError: ranges of another ONNX, a module to keep that does not exist.
    """
    graph = load(model.path)
    lift_constants(graph)
    facts: dict[str, Json] = {"base": options.base}
    if has_integer_sums(graph):
        log.info("the graph multiplies integers of its own: it stays as it is")
        save(graph, out)
        return model.spec, {"format": form, "brought_quantized": True}
    if qdq_insertion.is_quantized(graph):
        log.info("the graph brings its own Q/DQ nodes: they stay as they are")
        facts |= {"format": form, "brought_quantized": True}
    else:
        if calibration is None:
            raise StageError(f"the {form} pass needs ranges", hint="calibrate first")
        ranges = read_ranges(calibration.ranges_path).for_model(model.sha256)
        if opset(graph) < qdq_insertion.OPSET:
            raise_opset(graph, qdq_insertion.OPSET, form)
        if form == "fp8" and options.weights == "tensor":
            log.warning(_FP8_TENSOR)
        facts |= qdq_insertion.quantize(graph, ranges.tensors, _plan(graph, form, options)) | {"method": ranges.method}
    if options.base == "fp16":
        facts["casts"] = to_half(graph)
    check_strongly_typed(graph, form, "fp16")
    save(graph, out)
    return spec_of(graph, model.spec), facts


def layers(model: OnnxModel, form: str, options: Int8Options | Fp8Options) -> tuple[str, ...]:
    """Return the modules whose convolutions `apply` would quantize; none of a graph that is quantized already."""
    graph = load(model.path)
    lift_constants(graph)
    if qdq_insertion.is_quantized(graph) or has_integer_sums(graph):
        return ()
    kept = _plan(graph, form, options).kept
    weights = {w.name for w in graph.graph.initializer}
    nodes = [n.name for n in graph.graph.node if n.op_type == "Conv" and n.name not in kept and n.input[1] in weights]
    return tuple(qdq_insertion.layer_names(graph, nodes))


def _plan(graph: ModelProto, form: str, options: Int8Options | Fp8Options) -> qdq_insertion.Plan:
    kept = set(
        qdq_insertion.named_convolutions(graph, [w.strip() for w in (options.keep or "").split(",") if w.strip()])
    )
    if not options.stem:
        kept |= qdq_insertion.stem_convolutions(graph)
    if not options.head:
        kept |= qdq_insertion.head_convolutions(graph)
    return qdq_insertion.Plan(
        form,
        frozenset(kept),
        shortcuts=options.shortcuts,
        shared_concats=options.concats == "shared",
        per_channel=options.weights == "channel",
    )


def to_half(graph: ModelProto) -> int:
    """Move all but the box arithmetic, and what half cannot hold, of a quantized graph to half, in place.

    Q/DQ nodes move with their neighbours, scales included: a cast between them and a convolution
    would stand in the way of its int8 kernel. The scales are half numbers already.

    Returns:
        How many casts the graph has now.
    """
    quantizing = {n.output[0] for n in graph.graph.node if n.op_type in _QUANTIZING}
    scales = {n.input[1] for n in graph.graph.node if n.op_type in _QUANTIZING}
    unfit = unfit_weights(graph, TensorProto.FLOAT16).keys() - scales
    for weight in unfit:
        log.warning("weight `%s` does not fit half precision; the nodes that read it stay float32", weight)
    held = shape_nodes(graph) - quantizing
    held |= unsupported_nodes(graph, TensorProto.FLOAT16) | decode_nodes(graph)
    held |= {n.output[0] for n in graph.graph.node if unfit & set(n.input)}
    retype(graph, Retyping(TensorProto.FLOAT16, frozenset(held)))
    return sum(n.op_type == "Cast" for n in graph.graph.node)
