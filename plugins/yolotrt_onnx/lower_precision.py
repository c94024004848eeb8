"""The passes `fp16` and `bf16`: a strongly typed 16-bit graph with box decoding in float32."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onnx import ModelProto, TensorProto

from yolotrt_core.errors import UsageError
from yolotrt_core.types import Json, ModelSpec, OnnxModel
from yolotrt_onnx.graph import check_strongly_typed, lift_constants, load, opset, raise_opset, save, spec_of
from yolotrt_onnx.precision_cast import Retyping, decode_nodes, retype, shape_nodes, unfit_weights, unsupported_nodes

if TYPE_CHECKING:
    from yolotrt_onnx.options import Fp16Options

log = logging.getLogger(__name__)

_NAMES = {TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
# Minimum operator set with bfloat16 convolution and pooling.
_BF16_OPSET = 22


@dataclass(frozen=True, slots=True)
class Lowering:
    """Settings of a 16-bit graph.

    Attributes:
        dtype: `TensorProto.FLOAT16` or `BFLOAT16`. low_decode: box decoding uses it too.
        low_inputs, low_outputs: the network's inputs, outputs use it too.
    """

    dtype: int
    low_decode: bool = False
    low_inputs: bool = False
    low_outputs: bool = False


def apply_fp16(model: OnnxModel, options: Fp16Options, out: Path) -> tuple[ModelSpec, Mapping[str, Json]]:
    """Write the graph of `model` in half precision to `out/model.onnx`; see `lower`."""
    low = {field: getattr(options, field) == "fp16" for field in ("decode", "input", "output")}
    return _apply(model, Lowering(TensorProto.FLOAT16, low["decode"], low["input"], low["output"]), out)


def apply_bf16(model: OnnxModel, out: Path) -> tuple[ModelSpec, Mapping[str, Json]]:
    """Write the graph of `model` in bfloat16, float32 at both ends, to `out/model.onnx`; see `lower`."""
    return _apply(model, Lowering(TensorProto.BFLOAT16), out)


def _apply(model: OnnxModel, lowering: Lowering, out: Path) -> tuple[ModelSpec, Mapping[str, Json]]:
    lowered = load(model.path)
    facts = lower(lowered, lowering)
    save(lowered, out)
    return spec_of(lowered, model.spec), facts


def lower(model: ModelProto, lowering: Lowering) -> dict[str, Json]:
    """Convert a float32 graph in place.

    Nodes stay float32 if they compute with sizes, if ONNX does not define them for the type, if one of their
    weights would overflow or underflow (with a warning each), and, unless `low_decode`, after the last
    convolution.

    Returns:
        Facts: counts of nodes and casts, counts of float32 nodes by reason (a node may have several), and the
        names of weights out of range.

    Raises:
        UsageError: the graph is not float32 throughout.
        StageError: it contains subgraphs or operators without a schema, or cannot be converted to the operator
            set that bfloat16 needs.
    """
    name = _NAMES[lowering.dtype]
    lift_constants(model)
    if lowering.dtype == TensorProto.BFLOAT16 and opset(model) < _BF16_OPSET:
        raise_opset(model, _BF16_OPSET, name)
    _refuse_mixed(model, name)
    unfit = unfit_weights(model, lowering.dtype)
    for weight, error in unfit.items():
        log.warning("%s: weight `%s` %s; nodes that use it stay float32", name, weight, _trouble(error))
    fixed = {
        "shape": shape_nodes(model),
        "unsupported": unsupported_nodes(model, lowering.dtype),
        "weights": {node.output[0] for node in model.graph.node if unfit.keys() & set(node.input)},
        "decode": set() if lowering.low_decode else decode_nodes(model),
    }
    held = frozenset().union(*fixed.values())
    retype(model, Retyping(lowering.dtype, held, lowering.low_inputs, lowering.low_outputs))
    check_strongly_typed(model, name, "fp32")
    return {
        "nodes": len(model.graph.node),
        "casts": sum(node.op_type == "Cast" for node in model.graph.node),
        "fp32_nodes": {reason: len(nodes) for reason, nodes in fixed.items()},
        "unfit_weights": sorted(unfit),
    }


def _refuse_mixed(model: ModelProto, name: str) -> None:
    for value in [*model.graph.initializer, *model.graph.input]:
        dtype = value.data_type if isinstance(value, TensorProto) else value.type.tensor_type.elem_type
        if dtype in (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE):
            found = TensorProto.DataType.Name(dtype).lower()
            raise UsageError(
                f"the {name} pass expects a float32 graph, but `{value.name}` is {found}",
                hint="export the model in float32",
            )


def _trouble(error: float) -> str:
    if error == float("inf"):
        return "has values out of range"
    return f"would have a rounding error of {error:.1%}"
