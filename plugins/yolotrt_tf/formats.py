"""Detection of TensorFlow's model formats by their content."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Literal

from yolotrt_core.plugin.hookspecs import hookimpl
from yolotrt_core.types import ModelSource

Format = Literal["savedmodel", "savedmodel_pb", "keras", "hdf5", "graphdef", "tflite"]

NAMES: dict[Format, str] = {
    "savedmodel": "SavedModel",
    "savedmodel_pb": "SavedModel",
    "keras": "Keras file",
    "hdf5": "HDF5 file",
    "graphdef": "frozen GraphDef",
    "tflite": "TensorFlow Lite file",
}
_OPERATOR = re.compile(rb"[A-Z][A-Za-z0-9]{1,60}")


@hookimpl
def yolotrt_select_exporter(source: ModelSource) -> str | None:
    return "tf" if recognise(source.path) else None


def recognise(path: Path) -> Format | None:
    """Return the format of a file or folder, or None if TensorFlow did not write it.

    `savedmodel_pb` is the file `saved_model.pb` of a SavedModel, named without its folder.
    """
    if path.is_dir():
        named = any((path / f"saved_model{end}").is_file() for end in (".pb", ".pbtxt"))
        return "savedmodel" if named else None
    if not path.is_file():
        return None
    with path.open("rb") as file:
        head = file.read(4096)
    if head[4:8] == b"TFL3":
        return "tflite"
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "hdf5"
    if head.startswith(b"PK"):
        return "keras" if _is_keras(path) else None
    if head.startswith(b"\x08\x01\x12") and path.name == "saved_model.pb":
        return "savedmodel_pb"
    return "graphdef" if _starts_with_node(head) else None


def _is_keras(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return {"config.json", "model.weights.h5"} <= set(archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


def _starts_with_node(head: bytes) -> bool:
    """Check whether a protobuf starts with GraphDef.node (field 1) of NodeDef.name (1) and NodeDef.op (2)."""
    if not head.startswith(b"\x0a"):
        return False
    at = 1
    while at < len(head) and head[at] & 0x80:  # the node's length
        at += 1
    at += 1
    texts = []
    for tag in (0x0A, 0x12):
        if head[at : at + 1] != bytes([tag]) or at + 1 >= len(head) or head[at + 1] & 0x80:
            return False
        texts.append(head[at + 2 : at + 2 + head[at + 1]])
        at += 2 + head[at + 1]
    return texts[0].isascii() and _OPERATOR.fullmatch(texts[1]) is not None
