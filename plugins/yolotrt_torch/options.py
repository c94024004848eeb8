"""Options of the exporter `torch`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from yolotrt_core.plugin.options import option


@dataclass(frozen=True, slots=True)
class TorchOptions:
    """How the ONNX is exported."""

    exporter: Literal["torchscript", "dynamo"] = option(
        "torchscript", help="Exporter of PyTorch: `torchscript` is fast, `dynamo` is newer (needs onnxscript)"
    )
    opset: int = option(18, help="ONNX operator set; `dynamo` writes 18 and later", minimum=15, maximum=20)
