"""Calibrators: activation ranges, collected on images or imported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from yolotrt_calibrators.options import CollectOptions, ImportOptions, PercentileOptions
from yolotrt_core.errors import UsageError
from yolotrt_core.plugin.dependencies import tools_available
from yolotrt_core.plugin.stages import Availability
from yolotrt_core.types import BuildRequest, OnnxModel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Batches = Iterator[NDArray[np.float32]]


class _Calibrator:
    """What the calibrators share; as it stands, one whose only option is `tensors`."""

    name: ClassVar[str]
    stage_version: ClassVar[int] = 1
    sources: ClassVar[tuple[str, ...]] = ("yolotrt_calibrators",)
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
    sources: ClassVar[tuple[str, ...]] = ("yolotrt_calibrators",)
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
        from yolotrt_calibrators import import_ranges

        if options.file is None:
            raise UsageError("calibrator `import` needs a file", hint="pass `--import-file FILE`")
        return import_ranges.import_ranges(model, options.file, out)
