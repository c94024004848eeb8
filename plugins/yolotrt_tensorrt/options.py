"""Options of the builder `tensorrt` and of the calibrator `trt`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from yolotrt_core.plugin.options import option

BUILDER_NAME = "tensorrt"
ENGINE_FILE = "model.engine"


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


@dataclass(frozen=True, slots=True)
class TensorRTCalibratorOptions:
    """Which of TensorRT's own calibrators, and where it runs."""

    algorithm: Literal["entropy2", "minmax"] = option("entropy2", help="TensorRT's own calibrator")
    device: int = option(0, help="Number of the CUDA device", minimum=0, in_key=False)
