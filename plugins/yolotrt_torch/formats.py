"""Detection of PyTorch checkpoints by their first bytes."""

from __future__ import annotations

import zipfile
from pathlib import Path

_OTHER_FORMATS = ((0, b"\x89HDF\r\n\x1a\n"), (4, b"TFL3"))  # Keras weights, TensorFlow Lite
_SUFFIXES = (".pt", ".pth")


def is_checkpoint(path: Path) -> bool:
    """Check whether PyTorch saved a file, or whether its suffix says so and it is not plainly another format.

    True for a text file or an ONNX named `.pt` as well, so that the exporter's error names what was found.
    """
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(b"PK"):
        return _contains_pickle(path, head)
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return True
    if any(head[at:].startswith(magic) for at, magic in _OTHER_FORMATS):
        return False
    return path.suffix.lower() in _SUFFIXES


def _contains_pickle(path: Path, head: bytes) -> bool:
    """Tell PyTorch's zip files from others; it writes `NAME/data.pkl` first, so a truncated one shows it too."""
    name_bytes = int.from_bytes(head[26:28], "little")
    if head[30 : 30 + name_bytes].endswith(b"data.pkl"):
        return True
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return path.suffix.lower() in _SUFFIXES
