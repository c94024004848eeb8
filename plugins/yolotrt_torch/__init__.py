"""Exporter `torch`: YOLOv5 checkpoints (`.pt`, releases v3 to v7) -> ONNX.

The checkpoint is read without executing its code, and rebuilt with yolotrt's modules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from yolotrt_core.plugin.hookspecs import hookimpl
from yolotrt_core.plugin.stages import Exporter
from yolotrt_torch.stages import TorchExporter, yolotrt_select_exporter as yolotrt_select_exporter

YOLOTRT_API = 1


@hookimpl
def yolotrt_exporters() -> Sequence[Exporter]:
    return (TorchExporter(),)


@hookimpl
def yolotrt_environment() -> Mapping[str, str]:
    """Keep warnings of PyTorch's exporter, which have a handler of their own, off standard error."""
    return {"TORCH_LOGS": "-onnx"}
