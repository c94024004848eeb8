"""Options of the exporter `torch`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from yolotrt_core.plugin.options import option
from yolotrt_torch.standard_models import StandardModel


@dataclass(frozen=True, slots=True)
class TorchOptions:
    """How the ONNX is exported."""

    exporter: Literal["torchscript", "dynamo"] = option(
        "torchscript", help="Exporter of PyTorch: `torchscript` is fast, `dynamo` is newer (needs onnxscript)"
    )
    opset: int = option(18, help="ONNX operator set; `dynamo` writes 18 and later", minimum=15, maximum=20)
    like: StandardModel | None = option(
        None,
        help="Structure of a plain state_dict: that of this standard model; default: none, a checkpoint has its own",
    )
    yaml: Path | None = option(
        None, help="Structure of a plain state_dict: the YOLOv5 model yaml it was trained with; default: none"
    )
    channels: Literal["rgba", "bgra", "argb", "abgr"] = option(
        "rgba", help="Order of the input channels of a model with four; a is alpha"
    )
    names: Path | None = option(
        None,
        help="Class names: a text file with one per line, or YAML with `names`; default: from the checkpoint, numbers "
        "for a plain state_dict",
    )
