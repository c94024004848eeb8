"""INT8 the way of TensorRT 8 to 10: a network without types, precision flags, and a calibrator.

TensorRT 11 and TensorRT-RTX have none of it; there the same ranges become Q/DQ nodes. No release that
has it runs without a GPU, so what is here is checked against the genuine bindings by name, and its
logic against a stand-in.
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
# Takes a batch of float32 network inputs, returns the device address where it lies from then on.
Upload = Callable[["NDArray[np.float32]"], int]


def refusal(library: Library) -> UsageError:
    """Make the error for a library that knows strongly typed networks only."""
    return UsageError(
        f"{library} has no weakly typed networks and no calibrators: they ended with TensorRT 10",
        hint="leave out `--tensorrt-typing weak`: the same ranges then go into the graph as Q/DQ nodes",
    )


def configure(
    library: Library,
    network: tensorrt.INetworkDefinition,
    config: tensorrt.IBuilderConfig,
    calibrator: Any,
    constraints: str,
) -> int:
    """Let TensorRT choose between INT8 and FP16, but for the head, and keep the box arithmetic in FP32.

    Args:
        network: weakly typed. calibrator: from `engine_calibrator`.
        constraints: `obey`, `prefer` or `none`: how binding the types of head and box arithmetic are.

    Returns:
        How many layers are held to a type.

    Raises:
        UsageError: the library has none of this.
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
    """Type the last convolutions FP16 and what is behind them FP32; return how many layers that is."""
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
    """Return our ranges as the calibration cache that this very library reads.

    Raises:
        UsageError: the ranges are of another ONNX.
    """
    ranges = read_ranges(calibration.ranges_path).for_model(onnx_sha256)
    version = version_number(library.installed.version)
    return cache_from_ranges(ranges.tensors, version, CALIBRATORS[algorithm]).encode()


class Feed:
    """What every calibrator answers TensorRT: batches from images, and a cache to read or to keep.

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
        """Remember where batches come from.

        Args:
            batches: float32 network inputs of any batch; None where a cache says it all.
            upload: puts a batch on the GPU. batch: how many images TensorRT gets at once.
            cache: an earlier cache; TensorRT asks for no image if it accepts it.
        """
        self._images: Iterator[NDArray[np.float32]] = (image for b in batches or () for image in b)
        self._upload, self._batch, self._cache = upload, batch, cache
        self.written: bytes | None = None

    def size(self) -> int:
        return self._batch

    def next(self, names: list[str]) -> list[int] | None:
        """Return the address of the next full batch; None when there is none. A rest is left out."""
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
    """Make TensorRT's own calibrator object around a feed; keep both alive until the build is done.

    Raises:
        UsageError: the library has none.
    """
    if not library.has("IInt8EntropyCalibrator2", "IInt8MinMaxCalibrator"):
        raise refusal(library)
    trt = library.trt

    # The two bases differ in the algorithm they name; TensorRT calls the same four methods of both.
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
