"""The imported library: which engines it may load, and what its logger keeps."""

from __future__ import annotations

import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from trt_build import build, request

from yolotrt_core.errors import StageError
from yolotrt_core.serialization import from_json
from yolotrt_core.types import EngineSpec, ModelSpec
from yolotrt_tensorrt import discovery, library
from yolotrt_tensorrt.cuda import driver

EMPTY = ModelSpec((), (), (), ())


def spec_of(**tools: str) -> EngineSpec:
    return EngineSpec(EMPTY, "fp16", "tensorrt", tools)


@pytest.mark.parametrize(
    ("tools", "words"),
    [
        ({"module": "onnxruntime", "version": "1.2"}, "was built by `onnxruntime`, not by TensorRT"),
        ({}, "was built by `tensorrt`, not by TensorRT"),
        ({"module": "tensorrt_rtx", "version": "1.2.3"}, "was built by `tensorrt_rtx` 1.2.3, but found "),
    ],
)
def test_an_engine_of_another_making_is_refused(tools: dict[str, str], words: str, installed_rtx: str) -> None:
    with pytest.raises(StageError) as caught:
        library.check_engine(spec_of(**tools))
    assert words in str(caught.value)


def test_an_engine_of_a_library_that_is_not_here_is_refused(
    installed_rtx: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = library.discovery.find("tensorrt_rtx")
    monkeypatch.setattr(library.discovery, "find", lambda module: found if module == "tensorrt_rtx" else None)
    with pytest.raises(StageError) as caught:
        library.check_engine(spec_of(module="tensorrt", version="10.3.0"))
    expected = f"the engine was built by `tensorrt` 10.3.0, but found `tensorrt_rtx` {installed_rtx}"
    assert str(caught.value) == expected
    assert "rebuild the engine on this machine" in str(caught.value.hint)


def test_an_engine_for_another_gpu_is_refused(installed_rtx: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "gpu", lambda device: driver.Gpu("NVIDIA L4", "8.9"))
    made = {"module": "tensorrt_rtx", "version": installed_rtx}
    with pytest.raises(StageError) as caught:
        library.check_engine(spec_of(**made, gpu="NVIDIA H100", compute_capability="9.0"))
    expected = "the engine was built for NVIDIA H100 (compute capability 9.0), but found NVIDIA L4 (8.9)"
    assert str(caught.value) == expected


def test_the_sidecar_of_a_build_is_accepted_here(convolution: Any, tmp_path: Path, installed_rtx: str) -> None:
    made = build(convolution(), request(), tmp_path)
    loaded = library.check_engine(from_json(EngineSpec, made["spec"]))
    assert loaded is library.load("auto")
    runtime = loaded.trt.Runtime(loaded.logger)
    with pytest.raises(StageError, match="is not an engine of `tensorrt_rtx`"):
        library.check_plan(loaded, runtime, b"ftrt and so on")
    plan = (tmp_path / "model.engine").read_bytes()
    with pytest.raises(StageError, match="malformed engine"):
        library.check_plan(loaded, runtime, plan[:40])
    if not discovery.has_driver():
        with pytest.raises(StageError, match="no usable GPU driver"):
            library.check_plan(loaded, runtime, plan)


def test_the_version_on_disk_is_the_version_imported(installed_rtx: str) -> None:
    assert library.load("tensorrt_rtx").trt.__version__ == installed_rtx


def test_features_are_found_by_name(installed_rtx: str) -> None:
    loaded = library.load("tensorrt_rtx")
    assert loaded.has("Builder", "IBuilderConfig.set_compute_capability", "ComputeCapability.SM86")
    assert not loaded.has("Builder", "BuilderFlag.INT8")
    assert not loaded.has("IInt8EntropyCalibrator2")


def test_one_logger_serves_all_who_collect(installed_rtx: str) -> None:
    loaded = library.load("tensorrt_rtx")
    severity = loaded.trt.ILogger.Severity
    with loaded.collecting() as outer:
        loaded.logger.log(severity.ERROR, "first\n  error")
        with loaded.collecting() as inner:
            loaded.logger.log(severity.WARNING, "a warning")
            loaded.logger.log(severity.INTERNAL_ERROR, "second " + "x" * 1000)
    loaded.logger.log(severity.ERROR, "nobody listens")
    assert outer.errors == ["first\n  error", inner.errors[0]]
    assert inner.verbose == []
    assert len(inner.last_error()) == 400
    assert library.Messages(outer.all[:1]).last_error() == "first error"
    assert "no reason given" in str(loaded.failure("do it", library.Messages()))


def test_a_module_that_breaks_on_import_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "tensorrt_rtx").mkdir()
    (tmp_path / "tensorrt_rtx" / "__init__.py").write_text("raise OSError('libcudart.so.13: cannot open')\n")
    (tmp_path / "tensorrt_rtx" / "tensorrt_rtx.so").touch()
    (tmp_path / "tensorrt_rtx_libs").mkdir()
    (tmp_path / "tensorrt_rtx_libs" / "__init__.py").touch()
    (tmp_path / "tensorrt_rtx_libs" / "libtensorrt_rtx.so.1").touch()
    snippet = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from yolotrt_tensorrt import library\n"
        "from yolotrt_core.errors import StageError\n"
        "try: library.load('tensorrt_rtx')\n"
        "except StageError as err: print(err)\n"
    )
    done = subprocess.run([sys.executable, "-c", snippet, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "cannot be imported: libcudart.so.13: cannot open" in done.stdout


def test_another_gpu_of_the_same_kind_is_a_warning(
    installed_rtx: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(driver, "gpu", lambda device: driver.Gpu("NVIDIA H200", "9.0"))
    made = spec_of(module="tensorrt_rtx", version=installed_rtx, gpu="NVIDIA H100", compute_capability="9.0")
    with caplog.at_level(logging.WARNING):
        library.check_engine(replace(made))
    assert "tuned for NVIDIA H100 and runs on NVIDIA H200" in caplog.text
