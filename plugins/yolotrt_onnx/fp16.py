"""The passes `fp16` and `bf16`: a strongly typed 16-bit graph, its boxes still computed in float32."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from onnx import ModelProto, TensorProto, helper

from yolotrt_core.errors import StageError, UsageError
from yolotrt_core.text import first_line
from yolotrt_core.types import Json, ModelSpec, OnnxModel
from yolotrt_onnx.graph import check, lift_constants, load, opset, save, spec_of, type_conflicts
from yolotrt_onnx.retype import Retyping, decode_nodes, retype, shape_nodes, unfit_weights, unsupported_nodes

if TYPE_CHECKING:
    from yolotrt_onnx import Fp16Options

log = logging.getLogger(__name__)

_NAMES = {TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
# ONNX defines convolution and pooling in bfloat16 from this operator set on.
_BF16_OPSET = 22


@dataclass(frozen=True, slots=True)
class Lowering:
    """What a user can choose of a 16-bit graph.

    Attributes:
        dtype: `TensorProto.FLOAT16` or `BFLOAT16`. low_decode: the box arithmetic runs in it too.
        low_inputs, low_outputs: the network's inputs, outputs are of that type, not float32.
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
    """Lower a float32 graph in place.

    Nodes stay float32 if they compute with sizes, if ONNX does not define them for the type, if
    one of their weights would overflow or fade in it (each named in a warning), and, unless
    `low_decode`, if they lie behind the last convolution.

    Returns:
        Facts: counts of nodes and casts, of nodes left in float32 by reason (a node may have
        several), and the names of weights that did not fit.

    Raises:
        UsageError: the graph is not float32 throughout.
        StageError: it holds subgraphs or operators without a schema, or cannot be raised to the operator
            set that bfloat16 needs.
    """
    name = _NAMES[lowering.dtype]
    lift_constants(model)
    if lowering.dtype == TensorProto.BFLOAT16 and opset(model) < _BF16_OPSET:
        _raise_opset(model, _BF16_OPSET)
    _refuse_mixed(model, name)
    unfit = unfit_weights(model, lowering.dtype)
    for weight, error in unfit.items():
        log.warning("%s: weight `%s` %s; the nodes that read it stay float32", name, weight, _trouble(error))
    fixed = {
        "shape": shape_nodes(model),
        "unsupported": unsupported_nodes(model, lowering.dtype),
        "weights": {node.output[0] for node in model.graph.node if unfit.keys() & set(node.input)},
        "decode": set() if lowering.low_decode else decode_nodes(model),
    }
    held = frozenset().union(*fixed.values())
    retype(model, Retyping(lowering.dtype, held, lowering.low_inputs, lowering.low_outputs))
    _verify(model, name)
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


def _raise_opset(model: ModelProto, version: int) -> None:
    try:
        raised = onnx.version_converter.convert_version(model, version)
    except Exception as err:  # the converter raises what its C++ side has
        raise StageError(
            f"bf16 needs operator set {version}, and onnx cannot convert this graph: {first_line(err)}",
            hint=f"export with operator set {version} or higher, or use `--precision fp16`",
        ) from err
    metadata = list(model.metadata_props)
    model.CopyFrom(raised)
    del model.metadata_props[:]
    model.metadata_props.extend(metadata)
    model.ir_version = max(model.ir_version, helper.find_min_ir_version_for(model.opset_import))


def _trouble(error: float) -> str:
    if error == float("inf"):
        return "has values beyond the type's range"
    return f"would be off by {error:.1%} after rounding"


def _verify(model: ModelProto, name: str) -> None:
    """Refuse what a strongly typed parser would: better here, with names, than in TensorRT."""
    check(model, f"the {name} pass", "report this graph; `--precision fp32` builds without the pass")
    conflicts = type_conflicts(model)
    if conflicts:
        raise StageError(
            f"the {name} pass left mixed types: {conflicts[0]}",
            hint="report this graph; `--precision fp32` builds without the pass",
        )
