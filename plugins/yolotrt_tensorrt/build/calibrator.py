"""The calibrator `trt`: entropy2 and minmax of TensorRT 8 to 10, converted to a ranges file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from yolotrt_core.calibration.ranges import Ranges, amax_of_int8_scale, write_ranges
from yolotrt_core.calibration.tensorrt_cache import parse_cache
from yolotrt_core.errors import StageError
from yolotrt_core.plugin.stages import RANGES_FILE
from yolotrt_core.types import BuildRequest, OnnxModel, layout_of, with_channels
from yolotrt_tensorrt.build import implicit_int8
from yolotrt_tensorrt.cuda import driver
from yolotrt_tensorrt.library import Library, load

if TYPE_CHECKING:
    import numpy as np
    import tensorrt
    from numpy.typing import NDArray

    from yolotrt_tensorrt.options import TensorRTCalibratorOptions


def calibrate(
    model: OnnxModel,
    batches: Iterator[NDArray[np.float32]],
    request: BuildRequest,
    options: TensorRTCalibratorOptions,
    out: Path,
) -> str:
    """Calibrate with a TensorRT build whose engine is discarded; write `out/ranges.json`.

    Args:
        model: float32, static or dynamic. batches: float32 (b, 3, H, W) or (b, H, W, 3) as its input; an
            incomplete last batch is skipped.

    Raises:
        StageError: the library has no calibrators, there is no GPU, or the build failed.
    """
    library = load("tensorrt")
    batch = _batch(model, request)
    with driver.current(options.device), library.collecting() as messages:
        from yolotrt_tensorrt.cuda.device import DeviceMemory, open_gpu

        gpu = open_gpu(options.device)
        memory = DeviceMemory(gpu, batch * 3 * request.height * request.width * 4)

        def upload(images: NDArray[np.float32]) -> int:
            with gpu.current():
                gpu.cuda.memcpy_htod(memory.address, images)
            return memory.address

        feed = implicit_int8.Feed(batches, upload, batch)
        calibrator = implicit_int8.engine_calibrator(library, options.algorithm, feed)
        builder = library.trt.Builder(library.logger)
        network = builder.create_network(0)
        config = builder.create_builder_config()
        parser = library.trt.OnnxParser(network, library.logger)
        if not parser.parse_from_file(str(model.path)):
            raise library.failure("read the ONNX", messages)
        implicit_int8.configure(library, network, config, calibrator, "none")
        _profile(library, builder, network, config, (batch, request.height, request.width))
        plan = builder.build_serialized_network(network, config)
        memory.close()
        if plan is None or feed.written is None:
            raise library.failure("calibrate", messages)
    return _write(model, feed.written, out)


def _batch(model: OnnxModel, request: BuildRequest) -> int:
    first = model.spec.inputs[0].shape[0]
    return first if isinstance(first, int) else request.batch


def _profile(
    library: Library,
    builder: tensorrt.Builder,
    network: tensorrt.INetworkDefinition,
    config: tensorrt.IBuilderConfig,
    shape: tuple[int, int, int],
) -> None:
    """Fix the shape of a dynamic network for build and calibration."""
    entry = network.get_input(0)
    if -1 not in tuple(entry.shape):
        return
    if not library.has("IBuilderConfig.set_calibration_profile"):
        raise implicit_int8.refusal(library)
    batch, height, width = shape
    shape = tuple(entry.shape)
    full = with_channels(batch, height, width, layout_of(shape), shape[3 if layout_of(shape) == "nhwc" else 1])
    profile = builder.create_optimization_profile()
    profile.set_shape(entry.name, full, full, full)
    config.add_optimization_profile(profile)
    config.set_calibration_profile(profile)


def _write(model: OnnxModel, cache: bytes, out: Path) -> str:
    parsed = parse_cache(cache.decode(), "TensorRT's calibration cache")
    tensors = {name: amax_of_int8_scale(scale) for name, scale in parsed.scales.items()}
    if not tensors:
        raise StageError("TensorRT wrote a calibration cache without ranges")
    method = f"TensorRT {parsed.algorithm}"
    write_ranges(
        out / RANGES_FILE, Ranges(model.sha256, method, tensors, tools={"tensorrt_cache": str(parsed.version)})
    )
    return method
