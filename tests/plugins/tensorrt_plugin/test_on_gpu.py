"""What is asked of the driver, against pycuda; and engines that may and may not run on this GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from trt_build import build, request

from yolotrt_core.errors import StageError
from yolotrt_core.serialization import from_json
from yolotrt_core.types import EngineSpec
from yolotrt_tensorrt import discovery, library
from yolotrt_tensorrt.cuda import driver
from yolotrt_tensorrt.options import TensorRTOptions
from yolotrt_tensorrt.stages import TensorRTBuilder

pytestmark = pytest.mark.gpu


def test_the_driver_tells_what_pycuda_tells() -> None:
    import pycuda.driver as cuda

    cuda.init()
    device = cuda.Device(0)
    gpu = driver.gpu(0)
    assert discovery.has_driver()
    assert gpu.name == device.name()
    assert gpu.capability == ".".join(map(str, device.compute_capability()))
    assert driver.version().count(".") >= 1
    with pytest.raises(StageError, match="does not exist"):
        driver.gpu(cuda.Device.count())
    assert TensorRTBuilder().runnable().ok
    place = TensorRTBuilder().place(TensorRTOptions())
    assert place["gpu"] == device.name()
    assert place["version"] == library.load("auto").trt.__version__


def test_an_engine_built_here_may_run_here(convolution: Any, tmp_path: Path) -> None:
    made = build(convolution("fp16"), request("fp16"), tmp_path)
    loaded = library.check_engine(from_json(EngineSpec, made["spec"]))
    runtime = loaded.trt.Runtime(loaded.logger)
    plan = (tmp_path / "model.engine").read_bytes()
    library.check_plan(loaded, runtime, plan)
    assert runtime.deserialize_cuda_engine(plan) is not None


def test_an_engine_for_this_gpu_alone_names_it(convolution: Any, tmp_path: Path) -> None:
    if not library.load("auto").has("ComputeCapability.CURRENT"):
        pytest.skip("needs `tensorrt_rtx`: every engine of `tensorrt` is for this GPU alone")
    made = build(convolution("fp16"), request("fp16"), tmp_path, compute_capabilities="current")
    assert made["spec"]["tools"]["gpu"] == driver.gpu(0).name
    assert TensorRTBuilder().fingerprint(TensorRTOptions()).keys() == {"module", "version"}
