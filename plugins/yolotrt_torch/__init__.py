"""Exporter `torch`: YOLOv5 checkpoints (`.pt`, releases v3 to v7) -> ONNX.

The checkpoint is read without executing anything from it, and rebuilt with modules of our own.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import ClassVar, Literal

from yolotrt_core.hookspecs import hookimpl
from yolotrt_core.installed import tools_available
from yolotrt_core.options import option
from yolotrt_core.stages import Availability, Exporter, Session
from yolotrt_core.types import BuildRequest, ModelSource, ModelSpec

YOLOTRT_API = 1
INSTALL = "pip install 'yolotrt-core[torch]'"
_OTHER_FORMATS = ((0, b"\x89HDF\r\n\x1a\n"), (4, b"TFL3"))  # Keras weights, TensorFlow Lite


@dataclass(frozen=True, slots=True)
class TorchOptions:
    """How the ONNX is written."""

    exporter: Literal["torchscript", "dynamo"] = option(
        "torchscript", help="PyTorch's exporter: `torchscript` is fast, `dynamo` is its newer one (needs onnxscript)"
    )
    opset: int = option(18, help="ONNX operator set; `dynamo` writes 18 and later", minimum=15, maximum=20)


class TorchExporter:
    """Turns a YOLOv5 checkpoint into ONNX."""

    name: ClassVar[str] = "torch"
    stage_version: ClassVar[int] = 2
    sources: ClassVar[tuple[str, ...]] = (
        "yolotrt_core.labels",
        "yolotrt_core.onnx_metadata",
        "yolotrt_core.reference",
        "yolotrt_core.text",
        *(
            f"yolotrt_torch.{module}"
            for module in ("archive", "checkpoint", "exporter", "foreign", "layers", "network", "rebuild")
        ),
        "yolotrt_torch.pickle_reader",
    )
    session_sources: ClassVar[tuple[str, ...]] = (*sources, "yolotrt_torch.session", "yolotrt_core.shapes")
    Options: ClassVar[type] = TorchOptions

    def available(self) -> Availability:
        return tools_available(("torch", "onnx"), INSTALL)

    def fingerprint(self, options: TorchOptions) -> Mapping[str, str]:
        tools = ("torch", "onnx", "onnxscript") if options.exporter == "dynamo" else ("torch", "onnx")
        return {tool: _version(tool) for tool in tools}

    def export(self, source: ModelSource, request: BuildRequest, options: TorchOptions, out: Path) -> ModelSpec:
        from yolotrt_torch import exporter

        return exporter.export(source, request, options, out)

    def open_source(self, source: ModelSource, request: BuildRequest, options: TorchOptions) -> Session:
        from yolotrt_torch import session

        return session.open_source(source, request, options)


@hookimpl
def yolotrt_exporters() -> Sequence[Exporter]:
    return (TorchExporter(),)


@hookimpl
def yolotrt_select_exporter(source: ModelSource) -> str | None:
    """Take what PyTorch saved, and whatever is named so unless it is plainly another format.

    A text file or an ONNX named `.pt` comes here too, so that the error says what it is.
    """
    path = source.path
    if not path.is_file():
        return None
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(b"PK"):
        return "torch" if _holds_pickle(path, head) else None
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "torch"
    if any(head[at:].startswith(magic) for at, magic in _OTHER_FORMATS):
        return None
    return "torch" if path.suffix.lower() in (".pt", ".pth") else None


def _holds_pickle(path: Path, head: bytes) -> bool:
    """Tell PyTorch's zip files from others; it writes `NAME/data.pkl` first, so a truncated one shows it too."""
    name_bytes = int.from_bytes(head[26:28], "little")
    if head[30 : 30 + name_bytes].endswith(b"data.pkl"):
        return True
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return path.suffix.lower() in (".pt", ".pth")


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "missing"
