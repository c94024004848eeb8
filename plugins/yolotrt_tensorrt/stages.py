"""Builder `tensorrt` and calibrator `trt`."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from yolotrt_core.errors import StageError
from yolotrt_core.plugin.stages import Availability, Builder, Calibrator, Session, SideCache
from yolotrt_core.types import PRECISIONS, BuildRequest, Calibration, EngineSpec, OnnxModel, Precision
from yolotrt_tensorrt.options import BUILDER_NAME, ENGINE_FILE, TensorRTCalibratorOptions, TensorRTOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


_log = logging.getLogger(__name__)

_SHARED = ("yolotrt_tensorrt.discovery", "yolotrt_tensorrt.library", "yolotrt_tensorrt.options")
_SHAPES = "yolotrt_core.inference.input_shapes"


class TensorRTBuilder(Builder):
    """Builds and opens TensorRT plans; the plan is a plain file that any TensorRT tool loads."""

    name = BUILDER_NAME
    title = "TensorRT builder"
    sources = (*_SHARED, "yolotrt_tensorrt.build", _SHAPES)
    session_sources = (*_SHARED, "yolotrt_tensorrt.runtime", "yolotrt_tensorrt.cuda", _SHAPES)
    Options = TensorRTOptions
    engine_file = ENGINE_FILE
    precisions: frozenset[Precision] = frozenset(PRECISIONS)
    priority = 100

    def available(self) -> Availability:
        """Return whether a complete TensorRT library is installed, without importing it."""
        from yolotrt_tensorrt import discovery

        return discovery.available("auto")

    def runnable(self) -> Availability:
        """Return whether engines run on this machine: library, NVIDIA driver and pycuda; nothing is imported."""
        from yolotrt_tensorrt import discovery

        return discovery.runnable()

    def fingerprint(self, options: TensorRTOptions) -> Mapping[str, str]:
        """Return module and version, and for plans bound to a GPU that GPU and its driver."""
        from yolotrt_tensorrt import discovery

        return discovery.fingerprint(options)

    def place(self, options: TensorRTOptions) -> Mapping[str, str]:
        """Return the library, GPU and driver that run an engine on this machine: its output depends on them."""
        from yolotrt_tensorrt import discovery

        return discovery.place(options)

    def takes_ranges(self, request: BuildRequest, options: TensorRTOptions) -> bool:
        """Return whether int8 is built from ranges rather than from Q/DQ nodes."""
        return request.precision == "int8" and options.typing == "weak"

    def rounds_fp32(self, request: BuildRequest, options: TensorRTOptions) -> bool:
        """Return whether TF32 is forbidden but the library uses it nevertheless."""
        from yolotrt_tensorrt import discovery

        return request.precision == "fp32" and not options.tf32 and discovery.choose(options.module).is_rtx

    def preflight(self, request: BuildRequest, options: TensorRTOptions) -> None:
        """Raise if this request cannot be built on this machine; cheap unless the library must be loaded.

        Raises:
            UsageError: an option unsupported by this library.
            PluginError: no library installed.
            StageError: no GPU where one is needed, or an unsupported precision; suggests an alternative.
        """
        from yolotrt_tensorrt import discovery
        from yolotrt_tensorrt.build import compute_capability, preflight
        from yolotrt_tensorrt.cuda import driver
        from yolotrt_tensorrt.library import load

        found = discovery.choose(options.module)
        if options.typing == "weak":
            preflight.check_weak_typing(request, load(found.module))
            return
        wanted: tuple[str, ...] = ()
        sms: list[int] = []
        if options.compute_capabilities is not None:
            wanted = compute_capability.parse(options.compute_capabilities)
            compute_capability.refuse_unknown(load(found.module), wanted)
            sms = compute_capability.numbers(wanted)
        lowest = preflight.LOWEST_SM.get(request.precision, 0)
        if not found.is_rtx or compute_capability.CURRENT in wanted:
            sms.append(driver.gpu(options.device).sm)
        if sms and min(sms) < lowest:
            raise StageError(
                f"{request.precision} needs compute capability {lowest / 10:.1f} or higher, but the engine is for "
                f"{min(sms) / 10:.1f}",
                hint="build with `--precision fp16`" + (", or omit that target" if wanted else ""),
            )
        if lowest and not sms and request.precision == "fp8":
            _log.info("an fp8 engine runs only on GPUs of compute capability %.1f or higher", lowest / 10)
        if request.precision == "int8" and found.is_rtx and not preflight.int8_convolution_builds(load(found.module)):
            raise StageError(
                f"{found} has no INT8 convolutions",
                hint="build with `--precision fp16` or fp8, or install `tensorrt-rtx-cu13>=1.7` or `tensorrt`",
            )

    def build(
        self,
        model: OnnxModel,
        calibration: Calibration | None,
        request: BuildRequest,
        options: TensorRTOptions,
        out: Path,
        side_cache: SideCache,
    ) -> EngineSpec:
        """Build `out/model.engine` from a typed ONNX, or from ranges; see `yolotrt_tensorrt.build.builder.build`."""
        from yolotrt_tensorrt.build import builder

        return builder.build(model, request, options, out, side_cache, calibration)

    def open(self, engine: Path, spec: EngineSpec, options: TensorRTOptions, side_cache: SideCache) -> Session:
        """Load an engine onto the GPU."""
        from yolotrt_tensorrt.runtime.session import open_session

        return open_session(engine, spec, options, side_cache)


class TensorRTCalibrator(Calibrator):
    """TensorRT 8 to 10's own calibration, which needs a GPU; every builder can use its ranges."""

    name = "trt"
    title = "TensorRT calibrator"
    sources = (*_SHARED, "yolotrt_tensorrt.build", "yolotrt_tensorrt.cuda")
    Options = TensorRTCalibratorOptions

    def available(self) -> Availability:
        """Return whether a TensorRT with calibrators is installed, without importing it."""
        from yolotrt_tensorrt import discovery

        found = discovery.find("tensorrt")
        if found is None or found.missing or int(found.version.partition(".")[0] or 0) > 10:
            reason = "calibrators are a part of TensorRT 8 to 10" + (f", found {found}" if found else "")
            return Availability(
                False, reason, "pip install --extra-index-url https://pypi.nvidia.com 'tensorrt-cu13<11'"
            )
        return Availability(True)

    def fingerprint(self, options: TensorRTCalibratorOptions) -> Mapping[str, str]:
        """Return the library and the GPU it calibrates on."""
        from yolotrt_tensorrt import discovery

        return discovery.fingerprint(TensorRTOptions(module="tensorrt", device=options.device))

    def calibrate(
        self,
        model: OnnxModel,
        batches: Iterator[NDArray[np.float32]],
        request: BuildRequest,
        options: TensorRTCalibratorOptions,
        out: Path,
    ) -> str:
        """Calibrate while building an engine; see `yolotrt_tensorrt.build.calibrator.calibrate`."""
        from yolotrt_tensorrt.build import calibrator

        return calibrator.calibrate(model, batches, request, options, out)
