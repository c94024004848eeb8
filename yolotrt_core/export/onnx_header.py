"""Inputs, outputs and metadata of an ONNX file, read in milliseconds without a framework and without its weights.

For `yolotrt_select_exporter`, which runs before every build and may not import onnx. The file is a protobuf: fields of
a number, a kind and a value. Everything but the few fields below is skipped, nothing is checked.

Source:
    github.com/onnx/onnx, onnx/onnx.proto3 (field numbers); protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from yolotrt_core.export.onnx_metadata import literal
from yolotrt_core.plugin.stages import OnnxContents, SourceInfo
from yolotrt_core.types import TensorSpec, layout_of, without_channels

# Field numbers.
_GRAPH, _METADATA = 7, 14  # of ModelProto
_WEIGHT, _INPUT, _OUTPUT = 5, 11, 12  # of GraphProto
_WEIGHT_NAME = 8  # of TensorProto
_KEY, _VALUE = 1, 2  # of StringStringEntryProto
_NAME, _TYPE = 1, 2  # of ValueInfoProto
_TENSOR_TYPE = 1  # of TypeProto
_ELEMENT, _SHAPE = 1, 2  # of TypeProto.Tensor
_DIM = 1  # of TensorShapeProto
_SIZE, _PARAMETER = 1, 2  # of TensorShapeProto.Dimension
_DTYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64"}
_NUMBER, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5  # kinds of fields
_MOST_FIELDS = 200_000  # ten times those of the largest networks; a file of another format ends soon
_MOST_TEXT = 1 << 20  # bytes

Span = tuple[int, int]  # first and last position in the file, exclusive


class _InvalidError(Exception):
    """The file is not a protobuf of this form."""


def read_header(path: Path) -> OnnxContents | None:
    """Return what an ONNX file declares; None for every other file and for folders.

    A dtype other than NumPy's is `unknown`.
    """
    try:
        with path.open("rb") as file:
            found = _Reader(file).model((0, path.stat().st_size))
    except (OSError, _InvalidError, UnicodeDecodeError):
        return None
    return found if found.inputs and found.outputs else None


def source_info(header: OnnxContents | None) -> SourceInfo:
    """Return the answer of `Exporter.inspect`: the size that the input fixes, else the one that `imgsz` names."""
    if header is None or len(header.inputs[0].shape) != 4:
        return SourceInfo()
    shape = header.inputs[0].shape
    _, height, width = without_channels(shape, layout_of(shape))
    if isinstance(height, int) and isinstance(width, int):
        return SourceInfo((height, width), fixed_size=True)
    named = literal(header.metadata.get("imgsz"))
    if isinstance(named, list) and len(named) == 2 and all(type(side) is int and side > 0 for side in named):
        return SourceInfo((named[0], named[1]))
    return SourceInfo()


class _Reader:
    def __init__(self, file: BinaryIO) -> None:
        self._file, self._count = file, 0

    def model(self, span: Span) -> OnnxContents:
        inputs: list[TensorSpec] = []
        outputs: list[TensorSpec] = []
        metadata: dict[str, str] = {}
        weights: set[str] = set()  # before version 4 of ONNX they are inputs, too
        for number, part in self._parts(span):
            if number == _METADATA:
                entry = dict(self._parts(part))
                metadata[self._text(entry.get(_KEY))] = self._text(entry.get(_VALUE))
            elif number == _GRAPH:
                for kind, value in self._parts(part):
                    if kind in (_INPUT, _OUTPUT):
                        (inputs if kind == _INPUT else outputs).append(self._tensor(value))
                    elif kind == _WEIGHT:
                        weights.add(self._text(dict(self._parts(value)).get(_WEIGHT_NAME)))
        return OnnxContents(tuple(each for each in inputs if each.name not in weights), tuple(outputs), metadata)

    def _tensor(self, span: Span) -> TensorSpec:
        value = dict(self._parts(span))
        kind = dict(self._parts(value.get(_TYPE, (0, 0)))).get(_TENSOR_TYPE, (0, 0))
        element = dict(self._numbers(kind)).get(_ELEMENT, 0)
        shape: list[int | str] = []
        for number, dim in self._parts(dict(self._parts(kind)).get(_SHAPE, (0, 0))):
            if number == _DIM:
                size = dict(self._numbers(dim)).get(_SIZE)
                shape.append(self._text(dict(self._parts(dim)).get(_PARAMETER)) or "?" if size is None else size)
        return TensorSpec(self._text(value.get(_NAME)), _DTYPES.get(element, "unknown"), tuple(shape))

    def _parts(self, span: Span) -> Iterator[tuple[int, Span]]:
        """Yield number and place of each field with bytes."""
        return ((number, value) for number, value in self._fields(span) if isinstance(value, tuple))

    def _numbers(self, span: Span) -> Iterator[tuple[int, int]]:
        return ((number, value) for number, value in self._fields(span) if isinstance(value, int))

    def _fields(self, span: Span) -> Iterator[tuple[int, int | Span]]:
        at, end = span
        while at < end:
            self._count += 1
            self._file.seek(at)
            number, kind = divmod(self._varint(), 8)
            value: int | Span | None = None
            if kind == _NUMBER:
                value = self._varint()
            length = self._varint() if kind == _BYTES else {_NUMBER: 0, _EIGHT_BYTES: 8, _FOUR_BYTES: 4}.get(kind)
            if length is None or self._count > _MOST_FIELDS:
                raise _InvalidError
            begin = self._file.tell()
            at = begin + length
            if at > end:
                raise _InvalidError
            if kind == _BYTES:
                value = begin, at
            if value is not None:
                yield number, value

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._file.read(1)
            if not byte:
                break
            value |= (byte[0] & 0x7F) << shift
            if byte[0] < 0x80:
                return value
        raise _InvalidError

    def _text(self, span: Span | None) -> str:
        begin, end = span or (0, 0)
        if end - begin > _MOST_TEXT:
            raise _InvalidError
        self._file.seek(begin)
        return self._file.read(end - begin).decode()
