"""Detection of ONNX files by their first bytes."""

from __future__ import annotations

from pathlib import Path

_OTHER_FORMATS = ((0, b"PK"), (0, b"\x80"), (0, b"\x89HDF"), (4, b"TFL3"))
# Fields of ModelProto that may follow ir_version: producer, domain, model_version, graph, opset_import, metadata.
_SECOND_TAGS = frozenset(b"\x12\x1a\x22\x28\x32\x3a\x42\x72")


def is_onnx(path: Path) -> bool:
    """Check whether a file starts as ONNX does, or has its suffix and is not plainly another format."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(16)
    # ir_version 3 (2017) and later, then another field: a SavedModel starts alike with version 1.
    if head[:1] == b"\x08" and head[1:2] and 3 <= head[1] < 32 and head[2:3] and head[2] in _SECOND_TAGS:
        return True
    other = any(head[at:].startswith(magic) for at, magic in _OTHER_FORMATS)
    return path.suffix.lower() == ".onnx" and not other
