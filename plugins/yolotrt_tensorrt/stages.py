"""Builder `tensorrt` and calibrator `trt`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from yolotrt_core.plugin.stages import Availability, Builder, Calibrator, Session, SideCache
from yolotrt_core.types import PRECISIONS, BuildRequest, Calibration, EngineSpec, OnnxModel, Precision
from yolotrt_tensorrt.options import BUILDER_NAME, ENGINE_FILE, TensorRTCalibratorOptions, TensorRTOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


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
        """Refuse what the installed library cannot build; see `yolotrt_tensorrt.build.preflight`."""
        from yolotrt_tensorrt.build import preflight

        preflight.check(request, options)

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
