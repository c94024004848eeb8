"""Checks before a build of what the installed TensorRT supports."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING

from yolotrt_core.console.output import native_output_to
from yolotrt_core.errors import UsageError
from yolotrt_core.types import BuildRequest
from yolotrt_tensorrt.build import implicit_int8
from yolotrt_tensorrt.library import Library

if TYPE_CHECKING:
    import tensorrt

# Minimum compute capability per precision (NVIDIA's support matrix for TensorRT 10 and 11; TensorRT-RTX
# 1.6 and 1.7 refuse lower targets).
LOWEST_SM = {"bf16": 80, "fp8": 89}


def check_weak_typing(request: BuildRequest, library: Library) -> None:
    """Raise if the library has no weak typing, or the request does not need it."""
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
    # TensorRT-RTX 1.6 prints its failed assertion on standard error itself.
    with library.collecting(), Path(os.devnull).open("wb") as away, native_output_to(away.fileno(), 2):
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
