"""What the NVIDIA driver says about this machine's GPUs, without a CUDA context or a package."""

from __future__ import annotations

import ctypes
import functools
import re
from dataclasses import dataclass
from pathlib import Path

from yolotrt_core.errors import StageError

# /dev/dxg is the GPU under WSL 2, /dev/nvhost-gpu that of a Jetson.
_DEVICES = ("/dev/nvidiactl", "/dev/dxg", "/dev/nvhost-gpu")
_VERSION_FILE = Path("/proc/driver/nvidia/version")
# cuda.h, CUdevice_attribute.
_CAPABILITY_MAJOR = 75
_CAPABILITY_MINOR = 76


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU: its marketing name and its compute capability, e.g. 9.0."""

    name: str
    capability: str

    @property
    def sm(self) -> int:
        """The compute capability as in `SM90`."""
        major, minor = self.capability.split(".")
        return int(major) * 10 + int(minor)


def present() -> bool:
    """Say whether a driver with a device is here, by its device files."""
    return any(Path(device).exists() for device in _DEVICES)


@functools.cache
def version() -> str:
    """Return the driver's version, e.g. 580.65.06; empty if it does not tell."""
    try:
        text = _VERSION_FILE.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", text)
    return found[1] if found else ""


@functools.cache
def gpu(device: int) -> Gpu:
    """Return a GPU by its CUDA device number.

    Raises:
        StageError: no driver, or no such device.
    """
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as err:
        raise StageError(
            "this needs an NVIDIA GPU, and no driver was found (`libcuda.so.1`)",
            hint="on a machine without a GPU, build with `tensorrt_rtx`: pip install tensorrt-rtx-cu13",
        ) from err
    code = cuda.cuInit(0)
    count = ctypes.c_int()
    if code == 0:
        code = cuda.cuDeviceGetCount(ctypes.byref(count))
    if code:
        raise StageError(f"the NVIDIA driver reports CUDA error {code}", hint="look at `nvidia-smi`")
    if device >= count.value:
        raise StageError(f"there is no CUDA device {device}, found {count.value} of them")
    handle, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    cuda.cuDeviceGet(ctypes.byref(handle), device)
    cuda.cuDeviceGetName(name, len(name), handle)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), _CAPABILITY_MAJOR, handle)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), _CAPABILITY_MINOR, handle)
    return Gpu(name.value.decode(errors="replace"), f"{major.value}.{minor.value}")
