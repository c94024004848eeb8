"""What the TensorRT tests share: small graphs, side caches, and TensorRT-RTX 1.6.1 beside the installed release."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trt_wheels
from kernel_emulation import Emulated, compiled

from yolotrt_core.testing import MemorySideCache
from yolotrt_core.types import ModelSpec, OnnxModel, TensorSpec

PRELUDE = """
import json, sys
from pathlib import Path
from trt_build import *
"""


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Emulated:
    """The kernels for float32, running on the CPU."""
    return compiled("float32", tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def side_cache() -> MemorySideCache:
    return MemorySideCache()


@pytest.fixture(scope="session")
def installed_rtx() -> str:
    """The version of `tensorrt_rtx` in this environment; the test is skipped without one."""
    from yolotrt_tensorrt import discovery

    found = discovery.find("tensorrt_rtx")
    if found is None or found.missing:
        pytest.skip("no `tensorrt_rtx` is installed (extra `rtx`)")
    return found.version


@pytest.fixture(scope="session")
def rtx_old(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Return `run(snippet, *arguments)`: run Python text under TensorRT-RTX 1.6.1 and return what it prints as JSON.

    The snippet sees `json`, `sys`, `Path` and the functions of `trt_build`; arguments are in `sys.argv`.
    """
    folder = trt_wheels.complete_rtx(trt_wheels.RTX_OLD.version)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(Path(__file__).parent)])}

    def run(snippet: str, *arguments: object) -> Any:
        command = [sys.executable, "-W", "error", "-c", PRELUDE + snippet, *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture
def convolution(tmp_path: Path) -> Callable[..., OnnxModel]:
    """Return `make(kind="fp32", dynamic=False)` -> OnnxModel: one 3x3 convolution and a SiLU, 16 channels.

    `kind` is fp16 or bf16 (a Cast at both ends), or int8 or fp8 (Q/DQ on activation and weights, per
    channel). The convolution's node is called `body`.
    """

    def make(kind: str = "fp32", dynamic: bool = False) -> OnnxModel:
        path = tmp_path / f"{kind}{'-dynamic' * dynamic}.onnx"
        model = _convolution(kind, dynamic)
        path.write_bytes(model.SerializeToString())
        shape: tuple[int | str, ...] = ("batch", 16, "height", "width") if dynamic else (1, 16, 32, 32)
        spec = ModelSpec(
            inputs=(TensorSpec("images", "float32", shape),),
            outputs=(TensorSpec("output0", "float32", shape),),
            labels=("a", "b"),
            strides=(8,),
        )
        return OnnxModel(path, "0" * 64, spec)

    return make


def _convolution(kind: str, dynamic: bool) -> Any:
    import ml_dtypes
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    weights = random.standard_normal((16, 16, 3, 3)).astype(np.float32)
    typed = {"fp16": (TensorProto.FLOAT16, np.float16), "bf16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16)}
    narrow = {"int8": (TensorProto.INT8, 127), "fp8": (TensorProto.FLOAT8E4M3FN, 448)}
    nodes, initializers = [], []
    given, kernel, last = "images", "weights", "output0"
    if kind in typed:
        element, dtype = typed[kind]
        weights = weights.astype(dtype)
        nodes.append(helper.make_node("Cast", ["images"], ["typed"], to=element, name="in"))
        given, last = "typed", "typed_out"
    if kind in narrow:
        element, top = narrow[kind]
        scales = np.abs(weights).max(axis=(1, 2, 3)) / top
        initializers += [
            numpy_helper.from_array(np.float32(0.05), "scale"),
            numpy_helper.from_array(scales.astype(np.float32), "scales"),
            helper.make_tensor("zero", element, [], [0]),
            helper.make_tensor("zeros", element, [16], [0] * 16),
        ]
        for tensor, scale, zero, axis in (("images", "scale", "zero", 1), ("weights", "scales", "zeros", 0)):
            for op, source, target in (
                ("QuantizeLinear", tensor, f"{tensor}_q"),
                ("DequantizeLinear", f"{tensor}_q", f"{tensor}_dq"),
            ):
                nodes.append(helper.make_node(op, [source, scale, zero], [target], axis=axis, name=target))
        given, kernel = "images_dq", "weights_dq"
    nodes += [
        helper.make_node("Conv", [given, kernel], ["raw"], name="body", pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["raw"], ["gate"], name="gate"),
        helper.make_node("Mul", ["raw", "gate"], [last], name="silu"),
    ]
    if last != "output0":
        nodes.append(helper.make_node("Cast", [last], ["output0"], to=TensorProto.FLOAT, name="out"))
    initializers.append(numpy_helper.from_array(weights, "weights"))
    shape = ["batch", 16, "height", "width"] if dynamic else [1, 16, 32, 32]
    graph = helper.make_graph(
        nodes,
        "convolution",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, shape)],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
