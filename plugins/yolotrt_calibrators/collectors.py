"""The built-in calibrators: collect over all images, then choose one range per tensor."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from yolotrt_calibrators import activation_runner, thresholds
from yolotrt_calibrators.histogram import Histogram, NotFiniteError
from yolotrt_core.calibration.ranges import Ranges, write_ranges
from yolotrt_core.errors import StageError
from yolotrt_core.plugin.stages import RANGES_FILE
from yolotrt_core.types import OnnxModel

_log = logging.getLogger(__name__)

# For a tensor that is zero on every image, any range works.
_RANGE_OF_ZEROS = 1.0
Decide = Callable[[NDArray[np.int64], float], float]


class Collector(Protocol):
    """Statistics of one tensor; `observe` is called from several threads."""

    def observe(self, values: NDArray[np.float32]) -> None: ...

    def amax(self) -> float:
        """Return the range; 0 if all values were zero."""


class Extremes:
    """Maximum magnitude."""

    def __init__(self) -> None:
        self._largest = 0.0
        self._lock = threading.Lock()

    def observe(self, values: NDArray[np.float32]) -> None:
        largest = max(float(values.max()), -float(values.min()))
        if not np.isfinite(largest):  # NumPy's max and min propagate NaN
            raise NotFiniteError
        with self._lock:
            self._largest = max(self._largest, largest)

    def amax(self) -> float:
        return self._largest


class HistogramCollector:
    """A histogram, and the range chosen from it."""

    def __init__(self, decide: Decide) -> None:
        self._histogram = Histogram()
        self._decide = decide

    def observe(self, values: NDArray[np.float32]) -> None:
        self._histogram.observe(values)

    def amax(self) -> float:
        if self._histogram.width == 0:
            return 0.0
        return self._decide(self._histogram.counts(), self._histogram.width)


def calibrate(
    model: OnnxModel,
    batches: Iterator[NDArray[np.float32]],
    scope: activation_runner.Scope,
    make: Callable[[], Collector],
    method: str,
    out: Path,
) -> str:
    """Collect over all images and write `out/ranges.json`.

    Raises:
        StageError: no images, onnxruntime cannot run the network, or an activation is not
            finite (names the first one).
    """
    network = activation_runner.load(model.path)
    targets = activation_runner.find_targets(network, scope)
    collectors = {name: make() for name in targets}

    def collect(name: str, values: NDArray[np.float32]) -> None:
        try:
            collectors[name].observe(values)
        except NotFiniteError:
            raise StageError(
                f"activation `{name}` has NaN or infinite values on a calibration image",
                hint="the float32 model computes them: check the checkpoint with `--precision fp32`",
            ) from None

    if targets and not activation_runner.run_images(network, targets, batches, collect):
        raise StageError("calibration needs at least one image")
    tensors = {}
    for name, collector in collectors.items():
        amax = collector.amax()
        if amax <= 0:
            _log.warning("activation `%s` is zero on every calibration image", name)
        tensors[name] = amax if amax > 0 else _RANGE_OF_ZEROS
    tools = {name: metadata.version(name) for name in ("numpy", "onnxruntime")}
    write_ranges(out / RANGES_FILE, Ranges(model.sha256, method, tensors, tools=tools))
    return method


def minmax(model: OnnxModel, batches: Iterator[NDArray[np.float32]], scope: activation_runner.Scope, out: Path) -> str:
    """Write the maximum magnitude of each tensor."""
    return calibrate(model, batches, scope, Extremes, "minmax", out)


def percentile(
    model: OnnxModel, batches: Iterator[NDArray[np.float32]], scope: activation_runner.Scope, percent: float, out: Path
) -> str:
    """Write the magnitude that `percent` of the values do not exceed."""

    def decide(counts: NDArray[np.int64], width: float) -> float:
        return thresholds.percentile(counts, width, percent)

    return calibrate(model, batches, scope, lambda: HistogramCollector(decide), f"percentile {percent:g}", out)


def mse(model: OnnxModel, batches: Iterator[NDArray[np.float32]], scope: activation_runner.Scope, out: Path) -> str:
    """Write the range with the minimum square error of int8 rounding and clipping."""
    return calibrate(model, batches, scope, lambda: HistogramCollector(thresholds.minimize_square_error), "mse", out)


def entropy(model: OnnxModel, batches: Iterator[NDArray[np.float32]], scope: activation_runner.Scope, out: Path) -> str:
    """Write the range with the minimum Kullback-Leibler divergence of the quantized distribution."""
    return calibrate(model, batches, scope, lambda: HistogramCollector(thresholds.minimize_divergence), "entropy", out)
