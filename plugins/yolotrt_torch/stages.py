"""Exporter `torch`: YOLOv5 checkpoint -> ONNX."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

from yolotrt_core.errors import UsageError
from yolotrt_core.plugin.description import Description
from yolotrt_core.plugin.hookspecs import hookimpl
from yolotrt_core.plugin.stages import Exporter, Session, SourceInfo, tool_versions
from yolotrt_core.types import BuildRequest, ModelSource, ModelSpec
from yolotrt_torch.options import TorchOptions

_OTHER_FORMATS = ((0, b"\x89HDF\r\n\x1a\n"), (4, b"TFL3"))  # Keras weights, TensorFlow Lite
_SUFFIXES = (".pt", ".pth")


@hookimpl
def yolotrt_select_exporter(source: ModelSource) -> str | None:
    return "torch" if is_checkpoint(source.path) else None


def is_checkpoint(path: Path) -> bool:
    """Check whether PyTorch saved a file, or whether it has a checkpoint's suffix and is not plainly another format.

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
    """Check whether PyTorch wrote a zip file; `NAME/data.pkl` comes first, so this works for truncated ones too."""
    name_bytes = int.from_bytes(head[26:28], "little")
    if head[30 : 30 + name_bytes].endswith(b"data.pkl"):
        return True
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.rpartition("/")[2] == "data.pkl" for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return path.suffix.lower() in _SUFFIXES


class TorchExporter(Exporter):
    """Turns a YOLOv5 checkpoint into ONNX."""

    name = "torch"
    title = "PyTorch exporter"
    stage_version = 2
    Options = TorchOptions
    requires = ("torch", "onnx")
    install = "pip install 'yolotrt-core[torch]'"
    runs_sources = True

    def fingerprint(self, options: TorchOptions) -> Mapping[str, str]:
        return tool_versions((*self.requires, "onnxscript") if options.exporter == "dynamo" else self.requires)

    def check_options(self, options: TorchOptions) -> None:
        if options.like is not None and options.yaml is not None:
            raise UsageError("`--torch-like` and `--torch-yaml` both name the structure", hint="remove one")

    def inspect(self, source: ModelSource) -> SourceInfo:
        """Return the size of a classification model's images; other checkpoints take any size, and all are float32."""
        from yolotrt_torch.trained_size import find_trained_size

        size = find_trained_size(source.path)
        return SourceInfo(None if size is None else (size, size))

    def describe(self, source: ModelSource) -> Description:
        """Return what is in a checkpoint, and the names in its pickle, also of one that is refused."""
        from yolotrt_torch import description

        return description.describe(source)

    def export(self, source: ModelSource, request: BuildRequest, options: TorchOptions, out: Path) -> ModelSpec:
        from yolotrt_torch import exporter

        return exporter.export(source, request, options, out)

    def open_source(self, source: ModelSource, request: BuildRequest, options: TorchOptions) -> Session:
        from yolotrt_torch import session

        return session.open_source(source, request, options)
