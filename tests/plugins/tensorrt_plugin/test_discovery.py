"""Which TensorRT is found, chosen and named, from folders laid out as wheels and system packages lay them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from yolotrt_core.errors import PluginError, StageError
from yolotrt_core.plugin.hookspecs import PROJECT
from yolotrt_core.plugin.options import option_fields, resolve
from yolotrt_core.types import BuildRequest
from yolotrt_tensorrt import discovery
from yolotrt_tensorrt.cuda import driver
from yolotrt_tensorrt.options import TensorRTOptions
from yolotrt_tensorrt.stages import TensorRTBuilder

Lay = Callable[..., None]


@pytest.fixture
def lay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lay]:
    """Return `lay(module, version, ...)`: put a TensorRT into an otherwise empty import path."""
    hidden = [p for p in sys.path if not (Path(p) / "tensorrt_rtx_bindings").is_dir()]
    monkeypatch.setattr(sys, "path", [str(tmp_path), *hidden])
    for name in [n for n in sys.modules if n.split(".")[0].startswith("tensorrt")]:
        monkeypatch.delitem(sys.modules, name)  # imported by a test before: looked up before the path is
    monkeypatch.setattr(discovery, "has_driver", lambda: False)
    # The loader's own folders may hold a real TensorRT.
    monkeypatch.setattr(discovery, "_LIBRARY_FOLDERS", ())
    discovery.find.cache_clear()

    def make(module: str, version: str, dist: str | None, *, bindings: bool = True, library: bool = True) -> None:
        for package in (module, f"{module}_bindings", f"{module}_libs"):
            (tmp_path / package).mkdir()
            (tmp_path / package / "__init__.py").write_text(f'__version__ = "{version}"\n')
        if bindings:
            (tmp_path / f"{module}_bindings" / f"{module}.so").touch()
        if library:
            (tmp_path / f"{module}_libs" / f"{discovery.CORE_LIBRARY[module]}.10").touch()
        if dist:
            info = tmp_path / f"{dist}-{version}.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: {version}\n")
        discovery.find.cache_clear()

    yield make
    discovery.find.cache_clear()


@pytest.mark.parametrize(
    "dist",
    ["tensorrt_cu13_bindings", "tensorrt_cu12_bindings", "tensorrt_bindings", "tensorrt_cu12", "tensorrt", None],
)
def test_the_version_is_found_whatever_the_distribution(dist: str | None, lay: Lay) -> None:
    lay("tensorrt", "10.16.1.11", dist)
    assert discovery.find("tensorrt") == discovery.Installed("tensorrt", "10.16.1.11", "")


def test_bindings_without_a_library_are_not_a_tensorrt(lay: Lay) -> None:
    lay("tensorrt", "11.4.0.106", "tensorrt_cu13_bindings", library=False)
    state = discovery.available("auto")
    assert not state.ok
    assert "`tensorrt` 11.4.0.106 is installed, but its shared library `libnvinfer.so` is missing" in state.reason
    with pytest.raises(PluginError, match="is missing") as caught:
        discovery.choose("tensorrt")
    assert caught.value.hint == "pip install --extra-index-url https://pypi.nvidia.com tensorrt-cu13"


def test_a_library_on_the_loaders_path_counts(lay: Lay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay("tensorrt", "10.3.0", "tensorrt", library=False)
    (tmp_path / "system").mkdir()
    (tmp_path / "system" / "libnvinfer.so.10").touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path / "system"))
    discovery.find.cache_clear()
    found = discovery.find("tensorrt")
    assert found is not None
    assert found.missing == ""


def test_auto_takes_tensorrt_with_a_gpu_and_rtx_without(lay: Lay, monkeypatch: pytest.MonkeyPatch) -> None:
    lay("tensorrt", "10.16.1.11", "tensorrt_cu13_bindings")
    state = discovery.available("auto")
    assert not state.ok
    assert "needs an NVIDIA GPU" in state.reason
    lay("tensorrt_rtx", "1.7.1.116", "tensorrt_rtx_cu13_bindings")
    assert discovery.choose("auto").module == "tensorrt_rtx"
    monkeypatch.setattr(discovery, "has_driver", lambda: True)
    assert discovery.choose("auto").module == "tensorrt"
    assert discovery.choose("tensorrt_rtx").module == "tensorrt_rtx"


def test_nothing_installed_proposes_what_needs_no_gpu(lay: Lay) -> None:
    state = TensorRTBuilder().available()
    assert (state.ok, state.install) == (False, "pip install tensorrt-rtx-cu13")
    assert not TensorRTBuilder().runnable().ok


def test_a_plan_bound_to_a_gpu_names_it(lay: Lay, monkeypatch: pytest.MonkeyPatch) -> None:
    lay("tensorrt", "10.16.1.11", "tensorrt_cu13_bindings")
    lay("tensorrt_rtx", "1.7.1.116", "tensorrt_rtx_cu13_bindings")
    monkeypatch.setattr(discovery, "has_driver", lambda: True)
    monkeypatch.setattr(driver, "gpu", lambda device: driver.Gpu(f"Test GPU {device}", "8.9"))
    monkeypatch.setattr(driver, "version", lambda: "580.65.06")
    fingerprint = TensorRTBuilder().fingerprint
    assert fingerprint(TensorRTOptions(device=1)) == {
        "module": "tensorrt",
        "version": "10.16.1.11",
        "gpu": "Test GPU 1",
        "compute_capability": "8.9",
        "driver": "580.65.06",
    }
    portable = {"module": "tensorrt_rtx", "version": "1.7.1.116"}
    rtx = TensorRTOptions(module="tensorrt_rtx")
    assert fingerprint(rtx) == portable
    current = TensorRTOptions(module="tensorrt_rtx", compute_capabilities="current")
    assert fingerprint(current) == portable | {"gpu": "Test GPU 0", "compute_capability": "8.9"}


def test_tensorrt_without_a_gpu_says_so_before_work(lay: Lay) -> None:
    if discovery.has_driver():
        pytest.skip("this machine has a GPU")
    lay("tensorrt", "10.16.1.11", "tensorrt_cu13_bindings")
    with pytest.raises(StageError, match="GPU"):
        TensorRTBuilder().fingerprint(TensorRTOptions(module="tensorrt"))


def test_asking_imports_no_framework(installed_rtx: str) -> None:
    snippet = """
import sys
from yolotrt_tensorrt.options import TensorRTOptions
from yolotrt_tensorrt.stages import TensorRTBuilder
builder = TensorRTBuilder()
builder.available(), builder.runnable(), builder.fingerprint(TensorRTOptions())
from yolotrt_core.types import BuildRequest
builder.preflight(BuildRequest("fp16", 1, 640, 640), TensorRTOptions())
print([m for m in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings", "numpy", "pycuda", "onnx") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_options_are_declared_for_help() -> None:
    fields = {f.name: f for f in option_fields(TensorRTOptions, TensorRTBuilder.name)}
    assert fields["workspace"].flag == "--tensorrt-workspace"
    assert fields["workspace"].unit == "MiB"
    assert fields["compute_capabilities"].flag == "--tensorrt-compute-capabilities"
    assert fields["module"].choices == ("auto", "tensorrt", "tensorrt_rtx")
    assert {name for name, f in fields.items() if not f.in_key} >= {"module", "device", "timing_cache"}
    assert resolve(TensorRTOptions, "tensorrt", {"tf32": "off"}).tf32 is False


@pytest.mark.parametrize("module", ["tensorrt", "tensorrt_rtx"])
def test_only_tensorrt_rtx_rounds_fp32_against_the_options(
    lay: Lay, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    lay(module, "1.7.1", None)
    monkeypatch.setattr(discovery, "has_driver", lambda: True)
    builder, forbidden = TensorRTBuilder(), TensorRTOptions(tf32=False)
    assert builder.rounds_fp32(BuildRequest("fp32", 1, 64, 64), forbidden) == (module == "tensorrt_rtx")
    assert not builder.rounds_fp32(BuildRequest("fp32", 1, 64, 64), TensorRTOptions())
    assert not builder.rounds_fp32(BuildRequest("fp16", 1, 64, 64), forbidden)


def test_the_plugin_brings_one_builder() -> None:
    import yolotrt_tensorrt

    marked = getattr(yolotrt_tensorrt.yolotrt_builders, f"{PROJECT}_impl")
    assert marked
    assert [stage.name for stage in yolotrt_tensorrt.yolotrt_builders()] == ["tensorrt"]
