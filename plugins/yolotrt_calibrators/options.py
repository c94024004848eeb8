"""Options of the calibrators."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from yolotrt_core.plugin.options import option

_TENSORS = "Tensors to calibrate: inputs of convolutions, or all, as in TensorRT 8 and 10 calibration caches"


@dataclass(frozen=True, slots=True)
class CollectOptions:
    """Which tensors are calibrated."""

    tensors: Literal["convolutions", "all"] = option("convolutions", help=_TENSORS)


@dataclass(frozen=True, slots=True)
class PercentileOptions:
    """Which tensors are calibrated, and the share of values within the range."""

    percent: float = option(99.999, help="Share of values within the range", unit="%", minimum=50, maximum=100)
    tensors: Literal["convolutions", "all"] = option("convolutions", help=_TENSORS)


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """Source of the ranges."""

    file: Path | None = option(
        None, help="Path of a ranges.json for this ONNX, or of a TensorRT 8 or 10 calibration cache"
    )
