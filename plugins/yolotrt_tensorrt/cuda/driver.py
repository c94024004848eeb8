"""GPUs as reported by the NVIDIA driver, without a CUDA context or a package."""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from yolotrt_core.errors import StageError

_VERSION_FILE = Path("/proc/driver/nvidia/version")
# cuda.h, CUdevice_attribute.
_CAPABILITY_MAJOR = 75
_CAPABILITY_MINOR = 76
_PORTABLE = 1  # CU_MEMHOSTREGISTER_PORTABLE
_HOST, _DEVICE = 1, 2  # CUmemorytype


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


@functools.cache
def version() -> str:
    """Return the driver's version, e.g. 580.65.06; empty if unknown."""
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
    cuda = _cuda()
    count = ctypes.c_int()
    _check(cuda.cuDeviceGetCount(ctypes.byref(count)))
    if device >= count.value:
        raise StageError(f"CUDA device {device} does not exist, found {count.value}")
    handle, major, minor = _handle(cuda, device), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    _check(cuda.cuDeviceGetName(name, len(name), handle))
    _check(cuda.cuDeviceGetAttribute(ctypes.byref(major), _CAPABILITY_MAJOR, handle))
    _check(cuda.cuDeviceGetAttribute(ctypes.byref(minor), _CAPABILITY_MINOR, handle))
    return Gpu(name.value.decode(errors="replace"), f"{major.value}.{minor.value}")


@contextmanager
def current(device: int) -> Iterator[None]:
    """Make a device's primary context current in this thread.

    Raises:
        StageError: no driver, no such device, or out of memory for a context.
    """
    cuda = _cuda()
    handle, context = _handle(cuda, device), ctypes.c_void_p()
    _check(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), handle))
    try:
        _check(cuda.cuCtxPushCurrent_v2(context))
        try:
            yield
        finally:
            cuda.cuCtxPopCurrent_v2(ctypes.byref(context))
    finally:
        cuda.cuDevicePrimaryCtxRelease_v2(handle)


class _Copy2D(ctypes.Structure):
    """CUDA_MEMCPY2D of cuda.h."""

    _fields_ = (
        ("source_x", ctypes.c_size_t),
        ("source_y", ctypes.c_size_t),
        ("source_kind", ctypes.c_uint),
        ("source_host", ctypes.c_void_p),
        ("source_device", ctypes.c_uint64),
        ("source_array", ctypes.c_void_p),
        ("source_pitch", ctypes.c_size_t),
        ("target_x", ctypes.c_size_t),
        ("target_y", ctypes.c_size_t),
        ("target_kind", ctypes.c_uint),
        ("target_host", ctypes.c_void_p),
        ("target_device", ctypes.c_uint64),
        ("target_array", ctypes.c_void_p),
        ("target_pitch", ctypes.c_size_t),
        ("width", ctypes.c_size_t),
        ("height", ctypes.c_size_t),
    )


@functools.cache
def copy_rows_to_device(*, page_locked: bool) -> Callable[[int, int, int, int, int, int], int]:
    """Return a function that copies equally spaced rows to the device without gaps.

    Its arguments: (device address, host address, bytes from row to row, bytes of a row, rows, stream handle) -> CUDA
    error code.

    Args:
        page_locked: for page-locked memory only, and keeps the GIL like `copy_to_device`. Otherwise the driver
            copies before it returns, without the GIL.
    """
    call = (ctypes.PyDLL if page_locked else ctypes.CDLL)("libcuda.so.1").cuMemcpy2DAsync_v2
    call.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    call.restype = ctypes.c_int

    def copy(target: int, source: int, step: int, width: int, rows: int, stream: int) -> int:
        host, device = (0, 0, _HOST, source, 0, None, step), (0, 0, _DEVICE, None, target, None, width)
        return int(call(ctypes.byref(_Copy2D(*host, *device, width, rows)), stream))

    return copy


@functools.cache
def copy_to_device() -> Callable[[int, int, int, int], int]:
    """Return `cuMemcpyHtoDAsync`: (device address, host address, bytes, stream handle) -> CUDA error code.

    It keeps the GIL, so it is for page-locked memory only, where it takes two microseconds to start. If another thread
    blocks the driver meanwhile (e.g. by allocating), all Python threads wait.
    """
    call = ctypes.PyDLL("libcuda.so.1").cuMemcpyHtoDAsync_v2
    call.argtypes = (ctypes.c_uint64, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    call.restype = ctypes.c_int
    return call


def page_lock(address: int, size: int) -> None:
    """Page-lock host memory for all contexts of this process; one must be current.

    Not by pycuda, which refuses memory-mapped arrays.

    Raises:
        StageError: the driver refuses.
    """
    _check(_cuda().cuMemHostRegister_v2(ctypes.c_void_p(address), ctypes.c_size_t(size), _PORTABLE))


def page_unlock(address: int) -> None:
    """Undo `page_lock`."""
    _check(_cuda().cuMemHostUnregister(ctypes.c_void_p(address)))


@functools.cache
def _cuda() -> ctypes.CDLL:
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as err:
        raise StageError(
            "an NVIDIA GPU is required, but no driver was found (`libcuda.so.1`)",
            hint="on a machine without a GPU, build with `tensorrt_rtx`: pip install tensorrt-rtx-cu13",
        ) from err
    _check(cuda.cuInit(0))
    return cuda


def _handle(cuda: ctypes.CDLL, device: int) -> ctypes.c_int:
    handle = ctypes.c_int()
    _check(cuda.cuDeviceGet(ctypes.byref(handle), device))
    return handle


def _check(code: int) -> None:
    if code:
        raise StageError(f"the NVIDIA driver reports CUDA error {code}", hint="see `nvidia-smi`")
