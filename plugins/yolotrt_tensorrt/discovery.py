"""Discovery of installed TensorRT libraries, without importing them."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import Distribution
from pathlib import Path
from typing import TYPE_CHECKING

from yolotrt_core.errors import PluginError, StageError
from yolotrt_core.plugin.stages import Availability
from yolotrt_tensorrt.cuda import driver

if TYPE_CHECKING:
    from yolotrt_tensorrt.options import TensorRTOptions

MODULES = ("tensorrt", "tensorrt_rtx")
CORE_LIBRARY: Mapping[str, str] = {"tensorrt": "libnvinfer.so", "tensorrt_rtx": "libtensorrt_rtx.so"}
# The wheels of `tensorrt`'s libraries are not on PyPI: the packages there only download from NVIDIA's index.
INSTALL: Mapping[str, str] = {
    "tensorrt": "pip install --extra-index-url https://pypi.nvidia.com tensorrt-cu13",
    "tensorrt_rtx": "pip install tensorrt-rtx-cu13",
}
# /dev/dxg is the GPU under WSL 2, /dev/nvhost-gpu that of a Jetson.
_DEVICES = ("/dev/nvidiactl", "/dev/dxg", "/dev/nvhost-gpu")
_VERSION = re.compile(r"""^__version__\s*=\s*["']([^"']+)["']""", re.MULTILINE)
_LIBRARY_FOLDERS = (
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/lib",
)


@dataclass(frozen=True, slots=True)
class Installed:
    """One TensorRT Python module on disk.

    Attributes:
        module: import name. version: from package metadata, empty if unknown.
        missing: why it cannot be imported; empty if it can.
    """

    module: str
    version: str
    missing: str

    @property
    def is_rtx(self) -> bool:
        """Whether this is TensorRT-RTX: builds without a GPU, and its plans are not bound to one."""
        return self.module == "tensorrt_rtx"

    def __str__(self) -> str:
        return f"`{self.module}` {self.version}".rstrip()


@functools.cache
def find(module: str) -> Installed | None:
    """Look for a module, its compiled bindings and its shared library.

    The bindings alone do not import: `tensorrt-cu13-bindings` from PyPI comes without the library.

    Returns:
        None if the module does not exist.
    """
    folder = _folder(module)
    if folder is None:
        return None
    bindings = _folder(f"{module}_bindings") or folder
    version = _version(module, bindings)
    if not any(bindings.glob("*.so")):
        return Installed(module, version, f"its bindings `{module}_bindings` are missing")
    library = CORE_LIBRARY[module]
    if not _has_library(module, library):
        return Installed(module, version, f"its shared library `{library}` is missing")
    return Installed(module, version, "")


def choose(choice: str) -> Installed:
    """Return the TensorRT to use.

    Args:
        choice: `tensorrt`, `tensorrt_rtx`, or `auto`: `tensorrt`, then `tensorrt_rtx`; without an NVIDIA
            driver in reverse, since only TensorRT-RTX builds without a GPU.

    Raises:
        PluginError: it is missing or incomplete. StageError: it needs a GPU.
    """
    state = available(choice)
    if not state.ok:
        is_whole = any((found := find(m)) and not found.missing for m in _preferred(choice))
        raise (StageError if is_whole else PluginError)(state.reason, hint=state.install)
    return next(found for m in _preferred(choice) if (found := find(m)) and not found.missing)


def available(choice: str) -> Availability:
    """Check whether the library, or any for `auto`, is completely installed."""
    modules = _preferred(choice)
    partly = []
    for module in modules:
        found = find(module)
        if found and not found.missing and (found.is_rtx or has_driver()):
            return Availability(True)
        if found:
            partly.append(f"{found} is installed, but {found.missing or 'it needs an NVIDIA GPU, and none was found'}")
    names = " nor ".join(f"`{m}`" for m in modules)
    reason = "; ".join(partly) or (f"neither {names} is installed" if len(modules) > 1 else f"{names} is not installed")
    # By default, propose the one that installs from PyPI and needs no GPU to build.
    return Availability(False, reason, INSTALL[choice if choice != "auto" else "tensorrt_rtx"])


def runnable() -> Availability:
    """Check whether this machine can run engines, without importing TensorRT or CUDA."""
    library = available("auto")
    if not library.ok:
        return library
    if not has_driver():
        return Availability(False, "no NVIDIA GPU driver on this machine", "install the NVIDIA driver, r580 or newer")
    if importlib.util.find_spec("pycuda") is None:
        return Availability(False, "`pycuda` is not installed", "pip install 'yolotrt-core[gpu]'")
    return Availability(True)


def has_driver() -> bool:
    """Return whether an NVIDIA driver with a device is present, by its device files."""
    return any(Path(device).exists() for device in _DEVICES)


def fingerprint(options: TensorRTOptions) -> Mapping[str, str]:
    """Return what a plan depends on in addition to its inputs.

    A plan of `tensorrt` is bound to the GPU it was timed on, as is one of TensorRT-RTX built for the
    compute capability `current`; other TensorRT-RTX plans are portable.

    Raises:
        PluginError: the library is missing. StageError: no GPU to build for.
    """
    found = choose(options.module)
    tools = {"module": found.module, "version": found.version}
    if found.is_rtx and "current" not in (options.compute_capabilities or "").lower():
        return tools
    gpu = driver.gpu(options.device)
    tools |= {"gpu": gpu.name, "compute_capability": gpu.capability}
    if not found.is_rtx:
        tools["driver"] = driver.version()
    return tools


def place(options: TensorRTOptions) -> Mapping[str, str]:
    """Return library, GPU and driver that run a plan on this machine.

    Raises:
        PluginError: the library is missing. StageError: no GPU to run on.
    """
    found, gpu = choose(options.module), driver.gpu(options.device)
    return {"module": found.module, "version": found.version, "gpu": gpu.name, "driver": driver.version()}


def _preferred(choice: str) -> tuple[str, ...]:
    if choice != "auto":
        return (choice,)
    return MODULES if has_driver() else MODULES[::-1]


def _folder(package: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # a mock in sys.modules without a spec
        return None
    return Path(spec.origin).parent if spec and spec.origin else None


def _version(module: str, bindings: Path) -> str:
    """Return the version of the distribution that owns the bindings."""
    stems = [f"{module}{cuda}{part}" for part in ("_bindings", "") for cuda in ("", "_cu13", "_cu12", "_cu11")]
    for stem in stems:
        for dist in Distribution.discover(name=stem, path=[str(bindings.parent)]):
            return dist.version
    source = bindings / "__init__.py"  # a system package (deb, rpm, tar) has no metadata
    text = source.read_text(encoding="utf-8", errors="replace") if source.is_file() else ""
    found = _VERSION.search(text)
    return found[1] if found else ""


def _has_library(module: str, library: str) -> bool:
    wheel = _folder(f"{module}_libs")
    named = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    folders = [*([wheel] if wheel else []), *(Path(f) for f in (*named, *_LIBRARY_FOLDERS) if f)]
    if any(next(folder.glob(f"{library}*"), None) for folder in folders):
        return True
    cache = Path("/etc/ld.so.cache")  # the loader itself would load the library
    return cache.is_file() and library.encode() in cache.read_bytes()
