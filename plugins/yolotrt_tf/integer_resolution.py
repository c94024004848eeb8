"""Integers of TensorFlow Lite files that cannot hold the values they are computed from.

Current converters give a tensor the scale of what follows it: TensorFlow 2.21 stores the squared sigmoid of YOLOv5's
widths, 0 to 1, in steps of 0.5 and more. Such a file gives wrong boxes in TensorFlow, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from yolotrt_core.console.text import printable
from yolotrt_core.errors import UsageError

_ADD, _MUL = 0, 18  # tflite BuiltinOperator
_INT8, _UINT8 = 9, 3  # tflite TensorType
LOST, COARSE = 4, 48  # of 256 integers: too few for any values, and too few where boxes are wrong


class Resolution(NamedTuple):
    """Name of a result, the distance between its integers, and how many of them its operands can reach."""

    name: str
    step: float
    reached: float


def coarsest(path: Path) -> Resolution | None:
    """Return the sum or product whose operands reach the fewest integers; None if there is none.

    Args:
        path: a valid TensorFlow Lite file.
    """
    from tf2onnx.tflite.Model import Model

    model = Model.GetRootAs(path.read_bytes(), 0)
    found = [each for index in range(model.SubgraphsLength()) for each in _resolutions(model, model.Subgraphs(index))]
    return min(found, key=lambda each: each.reached, default=None)


def refuse_lost(found: Resolution | None, minimum: int) -> None:
    """Refuse a file whose integers are too coarse.

    Raises:
        UsageError: fewer than `minimum` integers are reached; names the tensor.
    """
    if found is not None and found.reached < minimum:
        raise UsageError(
            f"the file's 8-bit integers are broken at their source: `{printable(found.name[:80])}` has steps of "
            f"{found.step:.3g}, but its operands reach {found.reached:.1f} of 256 steps only, so TensorFlow loses the "
            "boxes, too",
            hint="current TensorFlow converts YOLOv5 like this: convert with TensorFlow 2.13, or pass the float or "
            "fp16 model and build with `--precision int8`",
        )


def _resolutions(model: Any, graph: Any) -> Iterator[Resolution]:
    for operator in map(graph.Operators, range(graph.OperatorsLength())):
        code = model.OperatorCodes(operator.OpcodeIndex())
        kind = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        if kind not in (_ADD, _MUL) or operator.InputsLength() != 2 or operator.OutputsLength() != 1:
            continue
        result = graph.Tensors(operator.Outputs(0))
        one, other = (_range(graph.Tensors(operator.Inputs(index))) for index in range(2))
        made = _range(result)
        if made is None or one is None or other is None:
            continue
        (low, high, _), (other_low, other_high, _) = one, other
        corners = [low * other_low, low * other_high, high * other_low, high * other_high]
        width = max(corners) - min(corners) if kind == _MUL else high - low + other_high - other_low
        yield Resolution(result.Name().decode(errors="replace"), made[2], width / made[2])


def _range(tensor: Any) -> tuple[float, float, float] | None:
    """Return the lowest and highest value of an 8-bit tensor, and its step."""
    quantization = tensor.Quantization()
    if tensor.Type() not in (_INT8, _UINT8) or quantization is None or quantization.ScaleLength() != 1:
        return None
    step = float(quantization.Scale(0))
    zero = int(quantization.ZeroPoint(0)) if quantization.ZeroPointLength() else 0
    low, high = (-128, 127) if tensor.Type() == _INT8 else (0, 255)
    return ((low - zero) * step, (high - zero) * step, step) if np.isfinite(step) and step > 0 else None
