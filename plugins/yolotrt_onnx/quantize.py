"""The passes `int8` and `fp8`: a float32 graph and ranges -> a quantized graph for strongly typed builders."""

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
    "one FP8 weight scale per tensor gives wrong results with TensorRT-RTX 1.6.1 on an H100: "
    "evaluate the engine on its target GPU"
)
_QUANTIZING = ("QuantizeLinear", "DequantizeLinear")


def apply(
    model: OnnxModel, calibration: Calibration | None, form: str, options: Int8Options | Fp8Options, out: Path
) -> tuple[ModelSpec, Mapping[str, Json]]:
    """Write the quantized graph of `model` to `out/model.onnx`.

    A graph with Q/DQ nodes (quantization-aware training) is not quantized again. A graph that multiplies integers
    and scales their sums (dynamic quantization) stays unchanged: the sums exceed fp16's range.

    Args:
        calibration: ranges of exactly this ONNX. form: `int8` or `fp8`.

    Raises:
        StageError: no ranges, or a tensor without a range.
        UsageError: ranges of another ONNX, an unknown module to keep.
    """
    graph = load(model.path)
    lift_constants(graph)
    facts: dict[str, Json] = {"base": options.base}
    if has_integer_sums(graph):
        log.info("the graph already multiplies integers: leaving it unchanged")
        save(graph, out)
        return model.spec, {"format": form, "brought_quantized": True}
    if qdq_insertion.is_quantized(graph):
        log.info("the graph already contains Q/DQ nodes: leaving them unchanged")
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
    if options.base == "fp16" and _has_16_bits(graph):
        log.info(
            "the graph is quantized to 16 bits: keeping it float32, since fp16 holds neither its steps nor integers"
        )
    elif options.base == "fp16":
        facts["casts"] = to_half(graph)
    check_strongly_typed(graph, form, "fp16")
    save(graph, out)
    return spec_of(graph, model.spec), facts


def _has_16_bits(graph: ModelProto) -> bool:
    zeros = {node.input[2] for node in graph.graph.node if node.op_type in _QUANTIZING and len(node.input) > 2}
    wide = (TensorProto.INT16, TensorProto.UINT16)
    return any(weight.name in zeros and weight.data_type in wide for weight in graph.graph.initializer)


def layers(model: OnnxModel, form: str, options: Int8Options | Fp8Options) -> tuple[str, ...]:
    """Return the modules whose convolutions `apply` would quantize; empty for a graph that is already quantized."""
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
    """Convert a quantized graph to fp16 in place, except box decoding and weights out of fp16's range.

    Q/DQ nodes are converted too, scales included: a cast between them and a convolution would prevent its int8
    kernel. The scales are already exact in fp16.

    Returns:
        The number of casts in the graph.
    """
    quantizing = {n.output[0] for n in graph.graph.node if n.op_type in _QUANTIZING}
    scales = {n.input[1] for n in graph.graph.node if n.op_type in _QUANTIZING}
    unfit = unfit_weights(graph, TensorProto.FLOAT16).keys() - scales
    for weight in unfit:
        log.warning("weight `%s` is out of fp16's range; nodes that use it stay float32", weight)
    held = shape_nodes(graph) - quantizing
    held |= unsupported_nodes(graph, TensorProto.FLOAT16) | decode_nodes(graph)
    held |= {n.output[0] for n in graph.graph.node if unfit & set(n.input)}
    retype(graph, Retyping(TensorProto.FLOAT16, frozenset(held)))
    return sum(n.op_type == "Cast" for n in graph.graph.node)
