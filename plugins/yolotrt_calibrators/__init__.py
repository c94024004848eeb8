"""Calibrators: how far each activation reaches, found on pictures or imported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from yolotrt_core.errors import UsageError
from yolotrt_core.hookspecs import hookimpl
from yolotrt_core.installed import tools_available
from yolotrt_core.options import option
from yolotrt_core.stages import Availability, Calibrator
from yolotrt_core.types import BuildRequest, OnnxModel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Batches = Iterator[NDArray[np.float32]]

YOLOTRT_API = 1

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


class _Calibrator:
    """What the calibrators share; as it stands, one whose only option is `tensors`."""

    name: ClassVar[str]
    stage_version: ClassVar[int] = 1
    sources: ClassVar[tuple[str, ...]] = tuple(
        f"yolotrt_calibrators.{module}" for module in ("activations", "collectors", "histogram", "thresholds")
    )
    Options: ClassVar[type] = CollectOptions
    needs_images: ClassVar[bool] = True

    def available(self) -> Availability:
        return tools_available(("onnx", "onnxruntime", "cv2"), "pip install onnx onnxruntime opencv-python-headless")

    def fingerprint(self, options: Any) -> Mapping[str, str]:
        return {name: metadata.version(name) for name in ("numpy", "onnxruntime")}

    def calibrate(self, model: OnnxModel, batches: Batches, request: BuildRequest, options: Any, out: Path) -> str:
        from yolotrt_calibrators import collectors

        methods = {"minmax": collectors.minmax, "entropy": collectors.entropy, "mse": collectors.mse}
        return methods[self.name](model, batches, options.tensors, out)


class MinMax(_Calibrator):
    """The largest magnitude seen."""

    name = "minmax"


class Entropy(_Calibrator):
    """The range whose quantized distribution tells least from the real one."""

    name = "entropy"


class Percentile(_Calibrator):
    """The magnitude that nearly all values stay under."""

    name = "percentile"
    Options = PercentileOptions

    def calibrate(
        self, model: OnnxModel, batches: Batches, request: BuildRequest, options: PercentileOptions, out: Path
    ) -> str:
        from yolotrt_calibrators import collectors

        return collectors.percentile(model, batches, options.tensors, options.percent, out)


class Mse(_Calibrator):
    """The range that costs least in squares of rounding and clipping."""

    name = "mse"


class Import(_Calibrator):
    """Ranges that were found before or elsewhere."""

    name = "import"
    sources = ("yolotrt_calibrators.activations", "yolotrt_calibrators.importing", "yolotrt_core.calibration_cache")
    Options = ImportOptions
    needs_images = False

    def fingerprint(self, options: ImportOptions) -> Mapping[str, str]:
        return {}

    def check_options(self, options: ImportOptions) -> None:
        if options.file is None:
            raise UsageError("calibrator `import` needs a file", hint="pass `--import-file FILE`")

    def calibrate(
        self, model: OnnxModel, batches: Batches, request: BuildRequest, options: ImportOptions, out: Path
    ) -> str:
        from yolotrt_calibrators import importing

        if options.file is None:
            raise UsageError("calibrator `import` needs a file", hint="pass `--import-file FILE`")
        return importing.import_ranges(model, options.file, out)


@hookimpl
def yolotrt_calibrators() -> Sequence[Calibrator]:
    """Bring `minmax`, `entropy`, `percentile`, `mse` and `import`."""
    return (MinMax(), Entropy(), Percentile(), Mse(), Import())
