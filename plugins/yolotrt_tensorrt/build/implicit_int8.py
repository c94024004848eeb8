"""Implicit INT8 of TensorRT 8 to 10: a weakly typed network, precision flags, and a calibrator.

TensorRT 11 and TensorRT-RTX removed it; there the same ranges become Q/DQ nodes. All releases that have it
need a GPU, so tests check the names used here against the bindings, and the logic against a mock.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

from yolotrt_core.calibration.ranges import read_ranges
from yolotrt_core.calibration.tensorrt_cache import CALIBRATORS, cache_from_ranges, version_number
from yolotrt_core.errors import UsageError
from yolotrt_core.types import Calibration
from yolotrt_tensorrt.library import Library

if TYPE_CHECKING:
    import numpy as np
    import tensorrt
    from numpy.typing import NDArray

_log = logging.getLogger(__name__)

Algorithm = Literal["entropy2", "minmax"]
# Uploads a batch of float32 network inputs and returns its device address.
Upload = Callable[["NDArray[np.float32]"], int]


def refusal(library: Library) -> UsageError:
    """Create the error for a library that supports strongly typed networks only."""
    return UsageError(
        f"{library} does not support weakly typed networks and calibrators, which TensorRT 11 removed",
        hint="omit `--tensorrt-typing weak`: the same ranges then become Q/DQ nodes",
    )


def configure(
    library: Library,
    network: tensorrt.INetworkDefinition,
    config: tensorrt.IBuilderConfig,
    calibrator: Any,
    constraints: str,
) -> int:
    """Let TensorRT choose between INT8 and FP16, with the head in FP16 and box decoding in FP32.

    Args:
        network: weakly typed. calibrator: from `engine_calibrator`.
        constraints: `obey`, `prefer` or `none`: precision constraints of head and box decoding.

    Returns:
        The number of layers with a fixed type.

    Raises:
        UsageError: the library does not support it.
    """
    if not library.has(
        "BuilderFlag.INT8",
        "BuilderFlag.FP16",
        "BuilderFlag.OBEY_PRECISION_CONSTRAINTS",
        "BuilderFlag.PREFER_PRECISION_CONSTRAINTS",
        "IBuilderConfig.int8_calibrator",
    ):
        raise refusal(library)
    trt = library.trt
    config.set_flag(trt.BuilderFlag.INT8)
    config.set_flag(trt.BuilderFlag.FP16)
    config.int8_calibrator = calibrator
    if constraints == "none":
        return 0
    if constraints == "obey":
        config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    else:
        config.set_flag(trt.BuilderFlag.PREFER_PRECISION_CONSTRAINTS)
    return _hold_types(library, network)


def _hold_types(library: Library, network: tensorrt.INetworkDefinition) -> int:
    """Set the last convolutions to FP16 and all later layers to FP32; return their number."""
    if not library.has("ILayer.precision", "ILayer.set_output_type"):
        raise refusal(library)
    trt = library.trt
    read_by_convolution: set[str] = set()
    held = 0
    for index in reversed(range(network.num_layers)):
        layer: tensorrt.ILayer = network.get_layer(index)
        made: list[tensorrt.ITensor] = [layer.get_output(i) for i in range(layer.num_outputs)]
        convolves = layer.type == trt.LayerType.CONVOLUTION
        leads_on = any(tensor.name in read_by_convolution for tensor in made)
        if convolves or leads_on:
            given: list[tensorrt.ITensor | None] = [layer.get_input(i) for i in range(layer.num_inputs)]
            read_by_convolution.update(tensor.name for tensor in given if tensor is not None)
        if leads_on or not all(tensor.dtype in (trt.DataType.FLOAT, trt.DataType.HALF) for tensor in made):
            continue
        kind = trt.DataType.HALF if convolves else trt.DataType.FLOAT
        layer.precision = kind
        for output in range(layer.num_outputs):
            layer.set_output_type(output, kind)
        held += 1
    return held


def cache_for(library: Library, calibration: Calibration, onnx_sha256: str, algorithm: Algorithm) -> bytes:
    """Convert ranges to a calibration cache for this library.

    Raises:
        UsageError: the ranges are for another ONNX.
    """
    ranges = read_ranges(calibration.ranges_path).for_model(onnx_sha256)
    version = version_number(library.installed.version)
    return cache_from_ranges(ranges.tensors, version, CALIBRATORS[algorithm]).encode()


class Feed:
    """Input of TensorRT's calibrators: batches of images, and a cache to read or write.

    Attributes:
        written: the cache TensorRT wrote, None until then.
    """

    def __init__(
        self,
        batches: Iterator[NDArray[np.float32]] | None = None,
        upload: Upload | None = None,
        batch: int = 1,
        cache: bytes | None = None,
    ) -> None:
        """Set the source of batches.

        Args:
            batches: float32 network inputs of any batch size; None where the cache suffices.
            upload: copies a batch to the GPU. batch: images per batch.
            cache: an existing cache; TensorRT needs no images if it accepts it.
        """
        self._images: Iterator[NDArray[np.float32]] = (image for b in batches or () for image in b)
        self._upload, self._batch, self._cache = upload, batch, cache
        self.written: bytes | None = None

    def size(self) -> int:
        return self._batch

    def next(self, names: list[str]) -> list[int] | None:
        """Return the address of the next full batch, or None at the end. An incomplete batch is skipped."""
        import numpy as np

        if self._upload is None or len(names) != 1:
            return None
        taken = list(itertools.islice(self._images, self._batch))
        if len(taken) < self._batch:
            return None
        return [self._upload(np.ascontiguousarray(np.stack(taken)))]

    def read(self) -> bytes | None:
        return self._cache

    def write(self, cache: Any) -> None:
        self.written = bytes(cache)


def engine_calibrator(library: Library, algorithm: Algorithm, feed: Feed) -> Any:
    """Create TensorRT's calibrator object for a feed; keep both alive until the build ends.

    Raises:
        UsageError: the library has no calibrators.
    """
    if not library.has("IInt8EntropyCalibrator2", "IInt8MinMaxCalibrator"):
        raise refusal(library)
    trt = library.trt

    # The two bases differ in the algorithm only; TensorRT calls the same four methods.
    base = trt.IInt8EntropyCalibrator2 if algorithm == "entropy2" else trt.IInt8MinMaxCalibrator

    class EngineCalibrator(base):  # type: ignore[misc, valid-type] # known at run time
        def __init__(self) -> None:
            base.__init__(self)

        def get_batch_size(self) -> int:
            return feed.size()

        def get_batch(self, names: list[str]) -> list[int] | None:
            return feed.next(names)

        def read_calibration_cache(self) -> bytes | None:
            return feed.read()

        def write_calibration_cache(self, cache: Any) -> None:
            feed.write(cache)

    return EngineCalibrator()
