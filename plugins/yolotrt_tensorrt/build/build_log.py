"""Kernels and precision of convolutions of an engine, parsed from TensorRT's build log.

TensorRT-RTX's format was taken from builds with 1.6 and 1.7; that of `tensorrt` 8 to 10 from published logs
(github NVIDIA/TensorRT, issues 3737 and 4020): other type names, weights listed separately from the inputs,
and ONNX nodes sometimes only in the layer's name, as `a + b || c`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

# Type names in logs, old and new, to precision; narrowest first.
_PRECISIONS = ("int8", "fp8", "bf16", "fp16", "fp32")
_TYPE_NAMES = {
    "int8": "int8",
    "fp8": "fp8",
    "fp8e4m3": "fp8",
    "bf16": "bf16",
    "bfloat16": "bf16",
    "half": "fp16",
    "fp16": "fp16",
    "float": "fp32",
    "fp32": "fp32",
}
# Layer types that multiply: TensorRT-RTX's convolutions and fusions, TensorRT's CaskConvolution and similar.
# A `kgen` only casts, adds or moves.
_MULTIPLYING = re.compile(r"correlation|runtime_fusion|conv|gemm", re.IGNORECASE)
_LAYER = re.compile(r"^\s*Name: (?P<name>.*?), LayerType: (?P<kind>[^,]+), Inputs: (?P<rest>.*)$", re.MULTILINE)
_ONNX_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_WEIGHTS = re.compile(r'Weights: \{"Type": "(\w+)"')
_NAME_PARTS = re.compile(r" \+ | \|\| ")
_TYPE = re.compile(r"Datatype: ([^,}]+)")
_SHAPE = re.compile(r"Dimensions: \[([\d,\- ]*)\]")


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of the engine in the log.

    Attributes:
        kind: TensorRT's name of the implementation, e.g. `correlation`.
        operands: precision of its first input and of its weights, e.g. ("int8", "int8").
        nodes: names of its ONNX nodes.
    """

    name: str
    kind: str
    operands: tuple[str, ...]
    nodes: tuple[str, ...]


def parse(messages: Iterable[str]) -> list[Layer]:
    """Find the engine's layers in verbose log messages of a build with detailed profiling."""
    return [_layer(found) for text in messages if "LayerType: " in text for found in _LAYER.finditer(text)]


def convolutions_by_precision(layers: Iterable[Layer], convolutions: Collection[str]) -> Mapping[str, int]:
    """Count the network's convolutions by the precision of their kernels.

    The widest operand counts: int8 weights multiplied in fp16 are fp16.

    Args:
        layers: of the engine. convolutions: names of the network's convolution nodes.

    Returns:
        Precision to count; `other` counts convolutions without a kernel in the log.
    """
    found: dict[str, str] = {}
    for layer in layers:
        if not layer.operands or not _MULTIPLYING.search(layer.kind):
            continue
        widest = max(layer.operands, key=_PRECISIONS.index)
        found |= {node: widest for node in layer.nodes if node in convolutions}
    counts = Counter(found.get(name, "other") for name in convolutions)
    return {p: counts[p] for p in (*_PRECISIONS, "other") if counts[p]}


def _layer(found: re.Match[str]) -> Layer:
    inputs, _, rest = found["rest"].partition("Constants: ")
    constants, _, tail = rest.partition("Outputs: ") if rest else ("", "", found["rest"])
    # A residual branch is a second input: it is added, not multiplied.
    operands = [*inputs.split("{")[1:2], *(t for t in constants.split("{")[1:] if _is_matrix(t))]
    operands += [f"Datatype: {kind}" for kind in _WEIGHTS.findall(tail)]
    nodes = _ONNX_NODE.findall(tail.partition("Metadata: ")[2]) or _NAME_PARTS.split(found["name"])
    return Layer(
        name=found["name"],
        kind=found["kind"].strip(),
        operands=tuple(p for t in operands if (p := _precision(t))),
        nodes=tuple(nodes),
    )


def _is_matrix(tensor: str) -> bool:
    """Check for weights: biases and scales have at most one axis longer than 1."""
    shape = _SHAPE.search(tensor)
    return shape is not None and sum(n.strip() not in ("", "1") for n in shape[1].split(",")) > 1


def _precision(tensor: str) -> str:
    found = _TYPE.search(tensor)
    names = re.findall(r"[a-z0-9]+", found[1].lower()) if found else []
    return next((_TYPE_NAMES[w] for w in names if w in _TYPE_NAMES), "")
