"""Checks before a build of what the installed TensorRT supports."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from yolotrt_core.errors import StageError, UsageError
from yolotrt_core.types import BuildRequest
from yolotrt_tensorrt import discovery
from yolotrt_tensorrt.build import compute_capability, implicit_int8
from yolotrt_tensorrt.cuda import driver
from yolotrt_tensorrt.library import Library, load

if TYPE_CHECKING:
    import tensorrt

    from yolotrt_tensorrt.options import TensorRTOptions

_log = logging.getLogger(__name__)

# Minimum compute capability per precision (NVIDIA's support matrix for TensorRT 10 and 11; TensorRT-RTX
# 1.6 and 1.7 refuse lower targets).
LOWEST_SM = {"bf16": 80, "fp8": 89}


def check(request: BuildRequest, options: TensorRTOptions) -> None:
    """Raise if this request cannot be built on this machine; cheap unless the library must be loaded.

    Raises:
        UsageError: an option unsupported by this library.
        PluginError: no library installed.
        StageError: no GPU where one is needed, or an unsupported precision; suggests an alternative.
    """
    found = discovery.choose(options.module)
    if options.typing == "weak":
        _check_weak(request, load(found.module))
        return
    targets = compute_capability.parse(options.compute_capabilities)
    if targets:
        compute_capability.refuse_unknown(load(found.module), targets)
    lowest = LOWEST_SM.get(request.precision, 0)
    sms = compute_capability.numbers(targets)
    if not found.is_rtx or compute_capability.CURRENT in targets:
        sms.append(driver.gpu(options.device).sm)
    if sms and min(sms) < lowest:
        raise StageError(
            f"{request.precision} needs compute capability {lowest / 10:.1f} or higher, but the engine is for "
            f"{min(sms) / 10:.1f}",
            hint="build with `--precision fp16`" + (", or omit that target" if targets else ""),
        )
    if lowest and not sms and request.precision == "fp8":
        _log.info("an fp8 engine runs only on GPUs of compute capability %.1f or higher", lowest / 10)
    if request.precision == "int8" and found.is_rtx and not int8_convolution_builds(load(found.module)):
        raise StageError(
            f"{found} has no INT8 convolutions",
            hint="build with `--precision fp16` or fp8, or install `tensorrt-rtx-cu13>=1.7` or `tensorrt`",
        )


def _check_weak(request: BuildRequest, library: Library) -> None:
    if request.precision != "int8":
        raise UsageError(
            f"`--tensorrt-typing weak` is for int8, found {request.precision}",
            hint="omit it: the graph's types set every other precision",
        )
    if not library.has("BuilderFlag.INT8", "IInt8EntropyCalibrator2"):
        raise implicit_int8.refusal(library)


@functools.cache
def int8_convolution_builds(library: Library) -> bool:
    """Check for INT8 convolutions by building one; takes about 0.1 s, once.

    TensorRT-RTX 1.6 parses such a network and then fails to build it, without an earlier sign.
    """
    import numpy as np

    trt = library.trt
    with library.collecting(), _silent_stderr():
        builder = trt.Builder(library.logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        config = builder.create_builder_config()
        image = network.add_input("image", trt.DataType.FLOAT, (1, 16, 8, 8))
        # TensorRT reads weights at build time: the arrays must live until then.
        weights, scale = np.ones((16, 16, 3, 3), np.float32), np.ones(1, np.float32)

        def quantized(tensor: tensorrt.ITensor) -> tensorrt.ITensor:
            factor = network.add_constant((), trt.Weights(scale)).get_output(0)
            narrow = network.add_quantize(tensor, factor, trt.DataType.INT8).get_output(0)
            return network.add_dequantize(narrow, factor, trt.DataType.FLOAT).get_output(0)

        kernel = quantized(network.add_constant(weights.shape, trt.Weights(weights)).get_output(0))
        convolution = network.add_convolution_nd(quantized(image), 16, (3, 3), trt.Weights())
        convolution.set_input(1, kernel)
        network.mark_output(convolution.get_output(0))
        return builder.build_serialized_network(network, config) is not None


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Silence standard error: TensorRT-RTX 1.6 prints its failed assertion there."""
    sys.stderr.flush()
    saved, away = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(away, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(away)
