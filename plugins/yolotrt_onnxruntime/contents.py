"""What an ONNX file declares of itself, read from its bytes.

onnxruntime tells it too, but only of networks that it can run: not of bfloat16, nor of operators of others.
Field numbers and types are those of onnx.proto (ONNX 1.19, IR version 11), the encoding is protobuf's.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from yolotrt_core.errors import StageError
from yolotrt_core.stages import OnnxContents
from yolotrt_core.types import TensorSpec

# ModelProto, GraphProto, StringStringEntryProto, ValueInfoProto, TypeProto, TypeProto.Tensor, TensorShapeProto.
_GRAPH, _METADATA = 7, 14
_INITIALIZER, _INPUT, _OUTPUT = 5, 11, 12
_KEY, _VALUE = 1, 2
_NAME, _TYPE = 1, 2
_TENSOR = 1
_ELEMENT, _SHAPE = 1, 2
_DIM, _DIM_VALUE, _DIM_PARAM = 1, 1, 2
_INITIALIZER_NAME = 8
_DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "str", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16",
    17: "float8_e4m3fn",
}  # fmt: skip
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_WIDTHS = {_FIXED64: 8, _FIXED32: 4}


def contents(path: Path) -> OnnxContents:
    """Read the inputs that are no weights, the outputs and the metadata.

    Raises:
        StageError: the file is no protobuf, or holds no graph.
    """
    if not path.stat().st_size:
        raise StageError("it is empty")
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _model(data)
    except (ValueError, IndexError) as err:
        raise StageError(f"it cannot be read: {err}") from err


def _model(data: mmap.mmap) -> OnnxContents:
    inputs: list[TensorSpec] = []
    outputs: list[TensorSpec] = []
    metadata: dict[str, str] = {}
    weights: set[str] = set()
    found = False
    for field, start, end in _fields(data, 0, len(data)):
        if field == _METADATA:
            entry = {f: data[a:b].decode() for f, a, b in _fields(data, start, end)}
            metadata[entry.get(_KEY, "")] = entry.get(_VALUE, "")
        if field != _GRAPH:
            continue
        found = True
        for part, a, b in _fields(data, start, end):
            if part == _INPUT:
                inputs.append(_tensor(data, a, b))
            elif part == _OUTPUT:
                outputs.append(_tensor(data, a, b))
            elif part == _INITIALIZER:
                weights |= {data[c:d].decode() for f, c, d in _fields(data, a, b) if f == _INITIALIZER_NAME}
    if not found:
        raise StageError("it holds no graph")
    return OnnxContents(tuple(i for i in inputs if i.name not in weights), tuple(outputs), metadata)


def _tensor(data: mmap.mmap, start: int, end: int) -> TensorSpec:
    name, dtype, shape = "", "unknown", []
    for field, a, b in _fields(data, start, end):
        if field == _NAME:
            name = data[a:b].decode()
        elif field == _TYPE:
            for _, c, d in (part for part in _fields(data, a, b) if part[0] == _TENSOR):
                for inner, e, f in _fields(data, c, d):
                    if inner == _ELEMENT:
                        dtype = _DTYPES.get(_varint(data, e)[0], "unknown")
                    elif inner == _SHAPE:
                        shape = [_dimension(data, g, h) for _, g, h in _fields(data, e, f)]
    return TensorSpec(name, dtype, tuple(shape))


def _dimension(data: mmap.mmap, start: int, end: int) -> int | str:
    for field, a, b in _fields(data, start, end):
        if field == _DIM_VALUE:
            return _varint(data, a)[0]
        if field == _DIM_PARAM:
            return data[a:b].decode()
    return "?"


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, first and last position of each field of a message."""
    at = start
    while at < end:
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == _VARINT:
            _, after = _varint(data, at)
        elif kind == _BYTES:
            size, at = _varint(data, at)
            after = at + size
        elif kind in _WIDTHS:
            after = at + _WIDTHS[kind]
        else:
            raise ValueError(f"no protobuf at byte {at}")
        if after > end:
            raise ValueError(f"cut off at byte {end}")
        yield tag >> 3, at, after
        at = after


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    """Return a number of seven bits a byte, the lowest first, and the position behind it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError(f"no number at byte {at}")
