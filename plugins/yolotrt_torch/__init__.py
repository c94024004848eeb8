"""Exporter `torch`: YOLOv5 checkpoints (`.pt`, releases v3 to v7) -> ONNX.

The checkpoint is read without executing its code, and rebuilt with yolotrt's modules.
"""

from __future__ import annotations

from collections.abc import Sequence

from yolotrt_core.plugin.hookspecs import hookimpl
from yolotrt_core.plugin.stages import Exporter
from yolotrt_core.types import ModelSource
from yolotrt_torch.formats import is_checkpoint
from yolotrt_torch.stages import TorchExporter

YOLOTRT_API = 1


@hookimpl
def yolotrt_exporters() -> Sequence[Exporter]:
    return (TorchExporter(),)


@hookimpl
def yolotrt_select_exporter(source: ModelSource) -> str | None:
    return "torch" if is_checkpoint(source.path) else None
