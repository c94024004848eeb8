"""Inputs, outputs and metadata of an ONNX file, by the onnx package.

onnxruntime reports them only for networks it can run: not with bfloat16 or custom operators.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnx

from yolotrt_core.errors import StageError
from yolotrt_core.plugin.stages import OnnxContents
from yolotrt_core.types import TensorSpec


def contents(path: Path) -> OnnxContents:
    """Read the inputs except weights, the outputs and the metadata.

    Raises:
        StageError: the file is not a protobuf, or contains no graph.
    """
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as err:
        raise StageError(f"it cannot be read: {err}") from err
    if not model.HasField("graph"):
        raise StageError("it contains no graph")
    weights = {weight.name for weight in model.graph.initializer}
    inputs = (value for value in model.graph.input if value.name not in weights)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    return OnnxContents(_tensors(inputs), _tensors(model.graph.output), metadata)


def _tensors(values: Iterable[Any]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(value.name, _dtype(value.type.tensor_type.elem_type), _shape(value.type.tensor_type.shape))
        for value in values
    )


def _dtype(number: int) -> str:
    try:
        return str(onnx.helper.tensor_dtype_to_np_dtype(number).name)
    except KeyError:
        return "unknown"


def _shape(shape: Any) -> tuple[int | str, ...]:
    return tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in shape.dim)
