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

    # The fingerprint contains the library, so `auto` and its choice share a key.
    module: Literal["auto", "tensorrt", "tensorrt_rtx"] = option(
        "auto",
        help="TensorRT library; auto: tensorrt if complete and a GPU is present",
        in_key=False,
    )
    device: int = option(0, help="CUDA device number, for build and inference", minimum=0, in_key=False)
    workspace: int | None = option(
        None,
        help="Maximum workspace size; default: the library's limit",
        unit="MiB",
        minimum=1,
        maximum=10**9,
    )
    optimization_level: int | None = option(
        None, help="Optimization level of the kernel search, 0 to 5 (tensorrt only)", minimum=0, maximum=5
    )
    tf32: bool = option(
        True,
        help="TF32 in fp32 layers; tensorrt_rtx always uses it, so off splits the convolutions of fp32 engines "
        "into exact, slower sums",
    )
    compute_capabilities: str | None = option(
        None, help="Target GPUs by compute capability, e.g. 86,89 or current (tensorrt_rtx only); default: portable"
    )
    # Not in the key: a timing cache only selects among correct kernels, as does any rebuild.
    timing_cache: Literal["auto", "on", "off"] = option(
        "auto", help="Timing cache, reuses kernel timings of earlier builds; auto: on where supported", in_key=False
    )
    typing: Literal["strong", "weak"] = option(
        "strong",
        help="Typing of int8 networks; strong: Q/DQ nodes; weak: ranges and flags (TensorRT 10 only)",
    )
    constraints: Literal["obey", "prefer", "none"] = option(
        "obey", help="Precision constraints for weak typing: fp16 for the head, fp32 for box decoding"
    )
    profiling: Literal["detailed", "layer_names", "none"] = option(
        "detailed", help="Verbosity of layer information for profilers and TensorRT's engine inspector"
    )
    cuda_graph: bool = option(True, help="CUDA graphs instead of single kernel launches", in_key=False)
    in_flight: int = option(
        3,
        help="Maximum number of in-flight batches; one of them only uploads",
        minimum=1,
        in_key=False,
    )


@dataclass(frozen=True, slots=True)
class TensorRTCalibratorOptions:
    """TensorRT's calibration algorithm and its device."""

    algorithm: Literal["entropy2", "minmax"] = option("entropy2", help="Calibration algorithm of TensorRT")
    device: int = option(0, help="CUDA device number", minimum=0, in_key=False)
