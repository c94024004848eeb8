"""TensorRT engines: one builder for `tensorrt` 10, `tensorrt` 11 and `tensorrt_rtx`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from yolotrt_core.hookspecs import hookimpl
from yolotrt_core.options import option
from yolotrt_core.stages import Availability, Builder, Calibrator, Session, SideCache
from yolotrt_core.types import PRECISIONS, BuildRequest, Calibration, EngineSpec, OnnxModel, Precision

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

YOLOTRT_API = 1


def _sources(*modules: str) -> tuple[str, ...]:
    return tuple(f"yolotrt_tensorrt.{module}" for module in ("driver", "installed", "library", *modules))


@dataclass(frozen=True, slots=True)
class TensorRTOptions:
    """How an engine is built and opened."""

    # Which library made the engine is in the fingerprint, so that `auto` and its choice share a key.
    module: Literal["auto", "tensorrt", "tensorrt_rtx"] = option(
        "auto", help="TensorRT library; auto takes tensorrt where it is complete and a GPU is present", in_key=False
    )
    device: int = option(0, help="Number of the CUDA device to build for and to run on", minimum=0, in_key=False)
    workspace: int | None = option(
        None,
        help="Most scratch memory a kernel may use; default: the library's own limit",
        unit="MiB",
        minimum=1,
        maximum=10**9,
    )
    optimization_level: int | None = option(
        None, help="How long to search for fast kernels, 0 to 5 (tensorrt only)", minimum=0, maximum=5
    )
    tf32: bool = option(
        True,
        help="Allow TF32 in fp32 layers; for tensorrt_rtx, which uses it all the same, off splits the convolutions of "
        "fp32 engines into exact, slower sums",
    )
    compute_capabilities: str | None = option(
        None, help="GPUs the engine must run on, e.g. 86,89 or current (tensorrt_rtx only); default: its portable set"
    )
    # A timing cache changes which of several correct kernels is chosen, as a second build without it would.
    timing_cache: Literal["auto", "on", "off"] = option(
        "auto", help="Reuse kernel timings of earlier builds; auto: where the library has them", in_key=False
    )
    typing: Literal["strong", "weak"] = option(
        "strong", help="Where int8 comes from: Q/DQ nodes, or ranges and precision flags (weak: TensorRT 10 only)"
    )
    constraints: Literal["obey", "prefer", "none"] = option(
        "obey", help="With weak typing: how binding fp16 for the head and fp32 for the box arithmetic are"
    )
    profiling: Literal["detailed", "layer_names", "none"] = option(
        "detailed", help="How much of its layers the engine tells profilers and TensorRT's engine inspector"
    )
    cuda_graph: bool = option(True, help="Replay recorded CUDA graphs instead of launching kernels", in_key=False)
    in_flight: int = option(
        3,
        help="Most batches on the GPU at once; one of them waits, uploaded",
        minimum=1,
        in_key=False,
    )


class TensorRTBuilder:
    """Builds and opens TensorRT plans; the plan is a plain file that any TensorRT tool loads."""

    name = "tensorrt"
    stage_version = 1
    sources = (
        *_sources("builder", "implicit", "layers", "profiles", "targets"),
        *("yolotrt_core.calibration_cache", "yolotrt_core.shapes"),
    )
    session_sources = (
        *_sources("decoding", "gpu", "graphs", "jpegs", "lane", "lanes", "layouts", "nvjpeg", "plan", "programs"),
        *("yolotrt_tensorrt.runner", "yolotrt_tensorrt.staging"),
        *(f"yolotrt_tensorrt/kernels/{file}" for file in ("letterbox.cu", "prelude.cuh", "suppress.cu")),
        *(f"yolotrt_core.{name}" for name in ("inputs", "jpeg", "letterbox", "prefetch")),
    )
    Options = TensorRTOptions
    engine_file = "model.engine"
    precisions: frozenset[Precision] = frozenset(PRECISIONS)
    priority = 100

    def available(self) -> Availability:
        """Say whether a complete TensorRT library is installed, without importing it."""
        from yolotrt_tensorrt import installed

        return installed.available("auto")

    def runnable(self) -> Availability:
        """Say whether an engine can run here: library, NVIDIA driver and pycuda; nothing is imported."""
        from yolotrt_tensorrt import installed

        return installed.runnable()

    def fingerprint(self, options: TensorRTOptions) -> Mapping[str, str]:
        """Name module and version, and for plans bound to a GPU that GPU and its driver."""
        from yolotrt_tensorrt import installed

        return installed.fingerprint(options)

    def place(self, options: TensorRTOptions) -> Mapping[str, str]:
        """Name the library, GPU and driver that run an engine here: its answers are theirs."""
        from yolotrt_tensorrt import installed

        return installed.place(options)

    def takes_ranges(self, request: BuildRequest, options: TensorRTOptions) -> bool:
        """Say whether int8 is built from ranges rather than from Q/DQ nodes."""
        return request.precision == "int8" and options.typing == "weak"

    def rounds_fp32(self, request: BuildRequest, options: TensorRTOptions) -> bool:
        """Say whether TF32 is forbidden and the library uses it all the same."""
        from yolotrt_tensorrt import installed

        return request.precision == "fp32" and not options.tf32 and installed.choose(options.module).is_rtx

    def preflight(self, request: BuildRequest, options: TensorRTOptions) -> None:
        """Refuse what the installed library cannot build; see `yolotrt_tensorrt.preflight`."""
        from yolotrt_tensorrt import preflight

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
        """Build `out/model.engine` from a typed ONNX, or from ranges; see `yolotrt_tensorrt.builder.build`."""
        from yolotrt_tensorrt import builder

        return builder.build(model, request, options, out, side_cache, calibration)

    def open(self, engine: Path, spec: EngineSpec, options: TensorRTOptions, side_cache: SideCache) -> Session:
        """Load an engine onto the GPU."""
        from yolotrt_tensorrt.runner import open_session

        return open_session(engine, spec, options, side_cache)


@dataclass(frozen=True, slots=True)
class OwnCalibratorOptions:
    """Which of TensorRT's own calibrators, and where it runs."""

    algorithm: Literal["entropy2", "minmax"] = option("entropy2", help="TensorRT's own calibrator")
    device: int = option(0, help="Number of the CUDA device", minimum=0, in_key=False)


class OwnCalibrator:
    """TensorRT 8 to 10's own calibration, which needs a GPU; its ranges then serve every builder."""

    name = "trt"
    stage_version = 1
    sources = (*_sources("calibrator", "gpu", "implicit"), "yolotrt_core.calibration_cache")
    Options = OwnCalibratorOptions
    needs_images = True

    def available(self) -> Availability:
        """Say whether a TensorRT with calibrators is installed, without importing it."""
        from yolotrt_tensorrt import installed

        found = installed.find("tensorrt")
        if found is None or found.missing or int(found.version.partition(".")[0] or 0) > 10:
            reason = "calibrators are a part of TensorRT 8 to 10" + (f", and here is {found}" if found else "")
            return Availability(
                False, reason, "pip install --extra-index-url https://pypi.nvidia.com 'tensorrt-cu13<11'"
            )
        return Availability(True)

    def fingerprint(self, options: OwnCalibratorOptions) -> Mapping[str, str]:
        """Name the library and the GPU it calibrates on."""
        from yolotrt_tensorrt import installed

        return installed.fingerprint(TensorRTOptions(module="tensorrt", device=options.device))

    def calibrate(
        self,
        model: OnnxModel,
        batches: Iterator[NDArray[np.float32]],
        request: BuildRequest,
        options: OwnCalibratorOptions,
        out: Path,
    ) -> str:
        """Calibrate while building an engine; see `yolotrt_tensorrt.calibrator.calibrate`."""
        from yolotrt_tensorrt import calibrator

        return calibrator.calibrate(model, batches, request, options, out)


@hookimpl
def yolotrt_calibrators() -> Sequence[Calibrator]:
    """Bring the calibrator `trt`."""
    return (OwnCalibrator(),)


@hookimpl
def yolotrt_builders() -> Sequence[Builder]:
    """Bring the builder `tensorrt`."""
    builder: Any = TensorRTBuilder()
    return (builder,)
