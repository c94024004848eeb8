"""Options of the calibrators."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from yolotrt_core.plugin.options import option

_TENSORS = "Which tensors get a range: what convolutions read, or all, as TensorRT 8 and 10 calibration caches want"


@dataclass(frozen=True, slots=True)
class CollectOptions:
    """What is looked at."""

    tensors: Literal["convolutions", "all"] = option("convolutions", help=_TENSORS)


@dataclass(frozen=True, slots=True)
class PercentileOptions:
    """What is looked at, and how much of it the range covers."""

    percent: float = option(99.999, help="Share of all values the range covers", unit="%", minimum=50, maximum=100)
    tensors: Literal["convolutions", "all"] = option("convolutions", help=_TENSORS)


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """Where the ranges come from."""

    file: Path | None = option(None, help="A ranges.json of this very ONNX, or a TensorRT 8 or 10 calibration cache")
