"""Calibrators: activation ranges, collected on images or imported."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolotrt_calibrators.options import CollectOptions, ImportOptions, PercentileOptions
from yolotrt_core.errors import UsageError
from yolotrt_core.plugin.stages import Calibrator
from yolotrt_core.types import BuildRequest, OnnxModel, Precision

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Batches = Iterator[NDArray[np.float32]]


class _Calibrator(Calibrator):
    """Base of the calibrators; its only option is `tensors`."""

    Options: type = CollectOptions
    requires = ("onnx", "onnxruntime", "cv2")
    install = "pip install onnx onnxruntime opencv-python-headless"
    tools: tuple[str, ...] | None = ("numpy", "onnxruntime")

    def calibrate(self, model: OnnxModel, batches: Batches, request: BuildRequest, options: Any, out: Path) -> str:
        from yolotrt_calibrators import collectors

        methods = {"minmax": collectors.minmax, "entropy": collectors.entropy, "mse": collectors.mse}
        return methods[self.name](model, batches, options.tensors, out)


class MinMax(_Calibrator):
    """The largest magnitude."""

    name = "minmax"
    title = "Min-max calibrator"
    default_for: frozenset[Precision] = frozenset({"fp8"})


class Entropy(_Calibrator):
    """The range whose quantized distribution has the minimum divergence from the real one."""

    name = "entropy"
    title = "Entropy calibrator"


class Percentile(_Calibrator):
    """The magnitude that nearly all values stay under."""

    name = "percentile"
    title = "Percentile calibrator"
    Options = PercentileOptions
    default_for: frozenset[Precision] = frozenset({"int8"})

    def calibrate(
        self, model: OnnxModel, batches: Batches, request: BuildRequest, options: PercentileOptions, out: Path
    ) -> str:
        from yolotrt_calibrators import collectors

        return collectors.percentile(model, batches, options.tensors, options.percent, out)


class Mse(_Calibrator):
    """The range of the minimum squared error of rounding and clipping."""

    name = "mse"
    title = "MSE calibrator"


class Import(_Calibrator):
    """Ranges imported from a file."""

    name = "import"
    title = "Imported ranges"
    Options = ImportOptions
    needs_images = False
    tools = ()

    def check_options(self, options: ImportOptions) -> None:
        if options.file is None:
            raise UsageError("calibrator `import` needs a file", hint="pass `--import-file FILE`")

    def calibrate(
        self, model: OnnxModel, batches: Batches, request: BuildRequest, options: ImportOptions, out: Path
    ) -> str:
        from yolotrt_calibrators import import_ranges

        self.check_options(options)
        assert options.file is not None
        return import_ranges.import_ranges(model, options.file, out)
